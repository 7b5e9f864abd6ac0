// The storage account: all DICOM data and metadata, the inbox, queues and tables. No shared keys, no anonymous access.
@description('Name of the storage account.')
@minLength(3)
@maxLength(24)
param name string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Redundancy.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param sku string
@description('Whether the account is reached from the internet, with a token.')
param publicAccess bool
@description('Days for which deleted blobs can be restored; 0 for none.')
@minValue(0)
@maxValue(365)
param restoreDays int
@description('Whether what a blob was before it was overwritten is kept, for as many days as deleted blobs, at least one.')
param versioning bool
@description('Days after which files move to the cool tier; 0 for never.')
@minValue(0)
param coolAfterDays int

@description('Days for which nobody may change or delete what the container audit has; 0 for none.')
@minValue(0)
@maxValue(146000)
param auditDays int

var containers = ['dicom', 'metadata', 'inbox', 'inbox-failed', 'cache', 'operations', 'audit']
var queues = ['operations', 'operation-steps', 'operations-poison', 'operation-steps-poison', 'workitem-events']
var packages = 'app-package'

// The app removes what operations leave. This is for what it could not: no operation runs for half a year.
var forgottenOperations = {
  name: 'forgotten-operations'
  enabled: true
  type: 'Lifecycle'
  definition: {
    filters: { blobTypes: ['blockBlob', 'appendBlob'], prefixMatch: ['operations/'] }
    actions: { baseBlob: { delete: { daysAfterModificationGreaterThan: 180 } } }
  }
}
var cool = {
  name: 'cool-files'
  enabled: true
  type: 'Lifecycle'
  definition: {
    filters: { blobTypes: ['blockBlob'], prefixMatch: ['dicom/'] }
    actions: { baseBlob: { tierToCool: { daysAfterModificationGreaterThan: coolAfterDays } } }
  }
}
var formerVersions = {
  name: 'former-versions'
  enabled: true
  type: 'Lifecycle'
  definition: {
    filters: { blobTypes: ['blockBlob', 'appendBlob'] }
    actions: { version: { delete: { daysAfterCreationGreaterThan: restoreDays > 0 ? restoreDays : 1 } } }
  }
}
var coolRules = coolAfterDays > 0 ? [cool] : []
var versionRules = versioning ? [formerVersions] : []

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: { name: sku }
  properties: {
    accessTier: 'Hot'
    allowBlobPublicAccess: false
    allowSharedKeyAccess: false
    allowCrossTenantReplication: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
    networkAcls: {
      defaultAction: publicAccess ? 'Allow' : 'Deny'
      bypass: 'AzureServices' // Event Grid tells of new blobs
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
  properties: {
    isVersioningEnabled: versioning
    deleteRetentionPolicy: restoreDays > 0 ? { enabled: true, days: restoreDays } : { enabled: false }
    containerDeleteRetentionPolicy: { enabled: true, days: restoreDays > 0 ? restoreDays : 7 }
  }
}

resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = {
  parent: account
  name: 'default'
  dependsOn: [blobs]
  properties: {
    policy: { rules: concat([forgottenOperations], coolRules, versionRules) }
  }
}

resource blobContainers 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = [
  for container in union(containers, [packages]): {
    parent: blobs
    name: container
    properties: { publicAccess: 'None' }
  }
]

resource auditContainer 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' existing = {
  parent: blobs
  name: 'audit'
}

// Made unlocked: an operator locks it, once and for ever, when its days have proven right.
resource auditPolicy 'Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies@2023-05-01' = if (auditDays > 0) {
  parent: auditContainer
  name: 'default'
  dependsOn: [blobContainers]
  properties: {
    immutabilityPeriodSinceCreationInDays: auditDays
    allowProtectedAppendWrites: true
  }
}

resource queueService 'Microsoft.Storage/storageAccounts/queueServices@2023-05-01' = {
  parent: account
  name: 'default'
}

resource storageQueues 'Microsoft.Storage/storageAccounts/queueServices/queues@2023-05-01' = [
  for queue in queues: {
    parent: queueService
    name: queue
  }
]

output id string = account.id
output name string = account.name
output packageContainer string = packages
