// Azure Web PubSub: the WebSockets of those who are subscribed to workitems. No keys; the app's identity sends.
@description('Name of the service.')
@minLength(3)
@maxLength(63)
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Free_F1: 20 connections and 20,000 messages a day, one in a subscription; Standard_S1: 1,000 connections a unit.')
@allowed(['Free_F1', 'Standard_S1'])
param sku string
@description('Whether the service is reached without a private endpoint, with a token.')
param publicAccess bool

resource service 'Microsoft.SignalRService/webPubSub@2023-02-01' = {
  name: name
  location: location
  tags: tags
  sku: {
    name: sku
    capacity: 1
  }
  properties: {
    disableLocalAuth: true
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
  }
}

output id string = service.id
output name string = service.name
output endpoint string = 'https://${service.properties.hostName}'
