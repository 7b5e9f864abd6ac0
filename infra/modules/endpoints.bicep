// Private endpoints, and the private zones in which the app finds their addresses.
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('The virtual network.')
param networkId string
@description('The subnet of the endpoints.')
param subnetId string
@description('The storage account.')
param storageId string
@description('The logical SQL server.')
param databaseServerId string
@description('The vault.')
param vaultId string
@description('The Web PubSub service; none where it is empty.')
param webPubSubId string

var suffix = environment().suffixes.storage
var always = [
  { name: 'blob', resource: storageId, group: 'blob', zone: 'privatelink.blob.${suffix}' }
  { name: 'queue', resource: storageId, group: 'queue', zone: 'privatelink.queue.${suffix}' }
  { name: 'table', resource: storageId, group: 'table', zone: 'privatelink.table.${suffix}' }
  { name: 'sql', resource: databaseServerId, group: 'sqlServer', zone: 'privatelink${environment().suffixes.sqlServerHostname}' }
  { name: 'vault', resource: vaultId, group: 'vault', zone: 'privatelink.vaultcore.azure.net' }
]
var webPubSub = { name: 'webpubsub', resource: webPubSubId, group: 'webpubsub', zone: 'privatelink.webpubsub.azure.com' }
var targets = empty(webPubSubId) ? always : concat(always, [webPubSub])

resource zones 'Microsoft.Network/privateDnsZones@2020-06-01' = [
  for target in targets: {
    name: target.zone
    location: 'global'
    tags: tags
  }
]

resource links 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2020-06-01' = [
  for (target, index) in targets: {
    parent: zones[index]
    name: 'network'
    location: 'global'
    properties: {
      registrationEnabled: false
      virtualNetwork: { id: networkId }
    }
  }
]

resource endpoints 'Microsoft.Network/privateEndpoints@2024-05-01' = [
  for target in targets: {
    name: 'pe-dicom-${target.name}'
    location: location
    tags: tags
    properties: {
      subnet: { id: subnetId }
      privateLinkServiceConnections: [
        {
          name: target.name
          properties: {
            privateLinkServiceId: target.resource
            groupIds: [target.group]
          }
        }
      ]
    }
  }
]

resource zoneGroups 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [
  for (target, index) in targets: {
    parent: endpoints[index]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: target.name
          properties: { privateDnsZoneId: zones[index].id }
        }
      ]
    }
  }
]
