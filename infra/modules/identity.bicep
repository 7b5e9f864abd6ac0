// The identity of the function app: what it may do is said in roles.bicep and, for the database, by scripts/grant-database.sh.
@description('Name of the user-assigned identity.')
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: name
  location: location
  tags: tags
}

output id string = identity.id
output name string = identity.name
output clientId string = identity.properties.clientId
output principalId string = identity.properties.principalId
