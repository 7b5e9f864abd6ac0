// A topic for events of images, and the app's right to send to it. Subscriptions are the customer's.
@description('Name of the topic.')
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Principal id of the app\'s identity.')
param principalId string

var dataSender = 'd5a91429-5739-47e2-a06b-3470a27159e7' // EventGrid Data Sender: publishes events of images

resource topic 'Microsoft.EventGrid/topics@2022-06-15' = {
  name: name
  location: location
  tags: tags
  properties: {
    inputSchema: 'CloudEventSchemaV1_0'
    disableLocalAuth: true
  }
}

resource sender 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(topic.id, principalId, dataSender)
  scope: topic
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
  }
}

output endpoint string = topic.properties.endpoint
