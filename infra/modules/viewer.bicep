// The viewer as a static website: a storage account that holds nothing but the viewer's files.
//
// Static websites are switched on in the data plane, which a template cannot do, and files come by upload:
// infra/scripts/deploy-viewer.sh does both after the deployment. The files are public, as those of any web
// page; the images are not: the page asks the DICOM server for them with the token of its user.

@description('Name of the storage account: 3 to 24 lower-case letters and digits.')
@minLength(3)
@maxLength(24)
param name string

@description('Region of the storage account.')
param location string = resourceGroup().location

@description('Tags of the resources.')
param tags object = {}

@description('Object id of who publishes the files; empty where that is arranged elsewhere.')
param publisherId string = ''

@description('Kind of the publisher.')
@allowed([
  'User'
  'Group'
  'ServicePrincipal'
])
param publisherType string = 'User'

// Storage Blob Data Contributor writes the files, Storage Account Contributor the properties of the blob service.
var roles = [
  'ba92f5b4-2d11-453d-a403-e96b0029c9fe'
  '17d1049b-9a84-46fb-8f53-869881c3d3ab'
]
var publisherRoles = empty(publisherId) ? [] : roles

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: {
    name: 'Standard_LRS'
  }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
  }
}

resource publisher 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for role in publisherRoles: {
  name: guid(account.id, publisherId, role)
  scope: account
  properties: {
    principalId: publisherId
    principalType: publisherType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role)
  }
}]

@description('Name of the storage account, for deploy-viewer.sh.')
output accountName string = account.name

@description('Where the viewer is.')
output url string = account.properties.primaryEndpoints.web

@description('The origin that CORS of the function app must allow: the URL without its last slash.')
output origin string = substring(account.properties.primaryEndpoints.web, 0, length(account.properties.primaryEndpoints.web) - 1)
