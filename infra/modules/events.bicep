// The topic by which storage tells of new blobs. Its subscription calls the deployed app, so a step after the
// deployment makes it (scripts/subscribe-to-blobs.sh): before, there is nobody to answer its handshake.
@description('Name of the system topic.')
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('The storage account.')
param storageId string

resource topic 'Microsoft.EventGrid/systemTopics@2022-06-15' = {
  name: name
  location: location
  tags: tags
  properties: {
    source: storageId
    topicType: 'Microsoft.Storage.StorageAccounts'
  }
}

output name string = topic.name
