// Azure SQL: one serverless database, whose only sign-in is Microsoft Entra ID.
@description('Name of the logical server.')
@minLength(1)
@maxLength(63)
param serverName string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Object id of the administrator in Entra ID.')
param administratorObjectId string
@description('Name of the administrator.')
param administratorName string
@description('Kind of the administrator.')
@allowed(['User', 'Group', 'Application'])
param administratorType string
@description('Most virtual cores.')
param cores int
@description('Minutes without use after which the database pauses; -1 for never.')
param pauseMinutes int
@description('Whether the server is reached from Azure without a private endpoint.')
param publicAccess bool
@description('Replicas in several zones.')
param zoneRedundant bool

resource server 'Microsoft.Sql/servers@2023-08-01-preview' = {
  name: serverName
  location: location
  tags: tags
  properties: {
    minimalTlsVersion: '1.2'
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
    administrators: {
      administratorType: 'ActiveDirectory'
      azureADOnlyAuthentication: true
      login: administratorName
      principalType: administratorType
      sid: administratorObjectId
      tenantId: tenant().tenantId
    }
  }
}

// The range 0.0.0.0 stands for services inside Azure; whoever comes still needs a token of a user of the database.
resource fromAzure 'Microsoft.Sql/servers/firewallRules@2023-08-01-preview' = if (publicAccess) {
  parent: server
  name: 'AllowAllWindowsAzureIps'
  properties: {
    startIpAddress: '0.0.0.0'
    endIpAddress: '0.0.0.0'
  }
}

resource database 'Microsoft.Sql/servers/databases@2023-08-01-preview' = {
  parent: server
  name: 'dicom'
  location: location
  tags: tags
  sku: {
    name: 'GP_S_Gen5'
    tier: 'GeneralPurpose'
    family: 'Gen5'
    capacity: cores
  }
  properties: {
    autoPauseDelay: pauseMinutes
    minCapacity: json(cores > 4 ? '1' : '0.5')
    zoneRedundant: zoneRedundant
    requestedBackupStorageRedundancy: zoneRedundant ? 'Zone' : 'Local'
  }
}

output id string = database.id
output serverId string = server.id
output host string = server.properties.fullyQualifiedDomainName
output name string = database.name
