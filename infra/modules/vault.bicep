// Key Vault: secrets of export destinations and of systems the server talks to; roles instead of access policies.
@description('Name of the vault.')
@minLength(3)
@maxLength(24)
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Whether the vault is reached without a private endpoint, with a token.')
param publicAccess bool

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: true
    enablePurgeProtection: true
    softDeleteRetentionInDays: 7
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
    networkAcls: {
      defaultAction: publicAccess ? 'Allow' : 'Deny'
      bypass: 'AzureServices'
    }
  }
}

output id string = vault.id
output name string = vault.name
output uri string = vault.properties.vaultUri
