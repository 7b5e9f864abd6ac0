// Everything the server needs in a subscription: a resource group, storage, Azure SQL, Key Vault, the function app
// with an identity of its own and no shared key, monitoring, and, where the deployer may, the Entra application.
targetScope = 'subscription'

@description('Name of the environment; names of resources are made from it.')
@minLength(1)
@maxLength(32)
param environmentName string

@description('Azure region of all resources. Flex Consumption must be offered there.')
@metadata({ azd: { type: 'location' } })
param location string

@description('trial: smallest and cheapest. production: redundant storage, longer retention, alerts. private: production without public endpoints.')
@allowed(['trial', 'production', 'private'])
param profile string = 'trial'

@description('Name of the resource group; made from the environment where it is empty.')
param resourceGroupName string = ''

@description('Object id of the Entra group or user that administers the database. The deployer by default.')
param sqlAdministratorObjectId string = deployer().objectId

@description('Sign-in name or name of the database administrator, as it shall be shown.')
param sqlAdministratorName string = 'deployer'

@description('Whether the database administrator is a User, a Group or an Application.')
@allowed(['User', 'Group', 'Application'])
param sqlAdministratorType string = 'User'

@description('Makes the Entra application with its app roles. Needs the right to create applications; without it follow the manual path in docs/deploy.md.')
param createEntraApplication bool = true

@description('Audiences the server accepts, where the application is made by hand: its client id and its api:// identifier, with a comma between them.')
param authAudience string = ''

@description('Origins of viewers that may call the server from a browser, such as https://viewer.example.org.')
param corsOrigins array = []

@description('Scheme, host and path that clients see, where a front end such as Front Door stands before the app.')
param publicBaseUrl string = ''

@description('Most instances of the function app.')
@minValue(1)
@maxValue(1000)
param maximumInstances int = 40

@description('Memory of an instance in MB.')
@allowed([2048, 4096])
param instanceMemoryMB int = 2048

@description('HTTP requests one instance works on at a time.')
@minValue(1)
@maxValue(1000)
param httpConcurrency int = 32

@description('Most bytes a request may have.')
@minValue(1048576)
param requestBodyLimit int = 8589934592

@description('Most virtual cores of the serverless database.')
@allowed([1, 2, 4, 6, 8, 10, 12, 14, 16])
param sqlCores int = 2

@description('Minutes without use after which the database pauses; -1 for never. Timers keep it awake while their schedules are shorter.')
@minValue(-1)
param sqlPauseMinutes int = profile == 'trial' ? 60 : -1

@description('Days for which deleted blobs can be restored. Bytes of deleted instances live on as long, outside the reach of the server.')
@minValue(0)
@maxValue(365)
param blobRestoreDays int = profile == 'trial' ? 0 : 7

@description('Whether each request is in the audit trail of the container audit before it is answered.')
param auditContainer bool = false

@description('Days for which nobody may change or delete what the container audit has (an immutability policy, unlocked); 0 for none.')
@minValue(0)
@maxValue(146000)
param auditDays int = 0

@description('Keeps what a blob was before it was overwritten, for as many days, at least one.')
param blobVersioning bool = false

@description('Days after which files move to the cool tier, which is cheaper to keep and dearer to read; 0 for never.')
@minValue(0)
@maxValue(3650)
param coolAfterDays int = 0

@description('E-mail address that alerts go to; none are made where it is empty.')
param alertEmail string = ''

@description('A storage account with a static website for the OHIF viewer.')
param viewer bool = false

@description('Azure Web PubSub, by which subscribers of workitems get their events at once. Without it they fetch them.')
param workitemEvents bool = false

@description('An Event Grid topic to which the server sends events of images.')
param imageEvents bool = false

@description('Base URL of a FHIR server that is kept in step; none where it is empty. Give the app\'s identity its role there.')
param fhirUrl string = ''

var token = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var isPrivate = profile == 'private'

resource group 'Microsoft.Resources/resourceGroups@2024-03-01' = {
  name: empty(resourceGroupName) ? 'rg-${environmentName}' : resourceGroupName
  location: location
  tags: tags
}

module identity 'modules/identity.bicep' = {
  name: 'identity'
  scope: group
  params: {
    name: 'id-dicom-${token}'
    location: location
    tags: tags
  }
}

module network 'modules/network.bicep' = if (isPrivate) {
  name: 'network'
  scope: group
  params: {
    name: 'vnet-dicom-${token}'
    location: location
    tags: tags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  scope: group
  params: {
    token: token
    location: location
    tags: tags
    retentionDays: profile == 'trial' ? 30 : 90
  }
}

module storage 'modules/storage.bicep' = {
  name: 'storage'
  scope: group
  params: {
    name: 'st${token}'
    location: location
    tags: tags
    sku: profile == 'trial' ? 'Standard_LRS' : 'Standard_ZRS'
    publicAccess: !isPrivate
    restoreDays: blobRestoreDays
    auditDays: auditDays
    versioning: blobVersioning
    coolAfterDays: coolAfterDays
  }
}

module database 'modules/database.bicep' = {
  name: 'database'
  scope: group
  params: {
    serverName: 'sql-dicom-${token}'
    location: location
    tags: tags
    administratorObjectId: sqlAdministratorObjectId
    administratorName: sqlAdministratorName
    administratorType: sqlAdministratorType
    cores: sqlCores
    pauseMinutes: sqlPauseMinutes
    publicAccess: !isPrivate
    zoneRedundant: profile != 'trial'
  }
}

module vault 'modules/vault.bicep' = {
  name: 'vault'
  scope: group
  params: {
    name: 'kv-${token}'
    location: location
    tags: tags
    publicAccess: !isPrivate
  }
}

module webPubSub 'modules/webpubsub.bicep' = if (workitemEvents) {
  name: 'webpubsub'
  scope: group
  params: {
    name: 'wps-dicom-${token}'
    location: location
    tags: tags
    sku: profile == 'trial' ? 'Free_F1' : 'Standard_S1'
    publicAccess: !isPrivate
  }
}

module entra 'modules/entra.bicep' = if (createEntraApplication) {
  name: 'entra'
  scope: group
  params: {
    uniqueName: 'dicom-server-${token}'
    displayName: 'DICOM server (${environmentName})'
    viewerUrl: viewer ? site!.outputs.origin : ''
  }
}

module roles 'modules/roles.bicep' = {
  name: 'roles'
  scope: group
  params: {
    principalId: identity.outputs.principalId
    storageName: storage.outputs.name
    vaultName: vault.outputs.name
    insightsName: monitoring.outputs.insightsName
    webPubSubName: workitemEvents ? webPubSub!.outputs.name : ''
  }
}

module endpoints 'modules/endpoints.bicep' = if (isPrivate) {
  name: 'endpoints'
  scope: group
  params: {
    location: location
    tags: tags
    networkId: network!.outputs.id
    subnetId: network!.outputs.endpointsSubnetId
    storageId: storage.outputs.id
    databaseServerId: database.outputs.serverId
    vaultId: vault.outputs.id
    webPubSubId: workitemEvents ? webPubSub!.outputs.id : ''
  }
}

module app 'modules/app.bicep' = {
  name: 'app'
  scope: group
  dependsOn: [roles, endpoints]
  params: {
    name: 'func-dicom-${token}'
    planName: 'plan-dicom-${token}'
    location: location
    tags: tags
    identityId: identity.outputs.id
    identityClientId: identity.outputs.clientId
    storageName: storage.outputs.name
    packageContainer: storage.outputs.packageContainer
    databaseHost: database.outputs.host
    databaseName: database.outputs.name
    vaultUri: vault.outputs.uri
    webPubSubEndpoint: workitemEvents ? webPubSub!.outputs.endpoint : ''
    insightsConnectionString: monitoring.outputs.connectionString
    authAudience: createEntraApplication ? entra!.outputs.audience : authAudience
    corsOrigins: viewer ? union(corsOrigins, [site!.outputs.origin]) : corsOrigins
    publicBaseUrl: publicBaseUrl
    auditContainer: auditContainer
    eventsEndpoint: imageEvents ? imageTopic!.outputs.endpoint : ''
    fhirUrl: fhirUrl
    maximumInstances: maximumInstances
    instanceMemoryMB: instanceMemoryMB
    httpConcurrency: httpConcurrency
    requestBodyLimit: requestBodyLimit
    subnetId: isPrivate ? network!.outputs.appSubnetId : ''
  }
}

module events 'modules/events.bicep' = {
  name: 'events'
  scope: group
  params: {
    name: 'evgt-dicom-${token}'
    location: location
    tags: tags
    storageId: storage.outputs.id
  }
}

module imageTopic 'modules/image-events.bicep' = if (imageEvents) {
  name: 'image-events'
  scope: group
  params: {
    name: 'evgt-images-${token}'
    location: location
    tags: tags
    principalId: identity.outputs.principalId
  }
}

module alerts 'modules/alerts.bicep' = if (!empty(alertEmail)) {
  name: 'alerts'
  scope: group
  params: {
    tags: tags
    email: alertEmail
    insightsId: monitoring.outputs.insightsId
    databaseId: database.outputs.id
    location: location
  }
}

module site 'modules/viewer.bicep' = if (viewer) {
  name: 'viewer'
  scope: group
  params: {
    name: 'stv${token}'
    location: location
    tags: tags
    publisherId: sqlAdministratorObjectId
  }
}

output AZURE_LOCATION string = location
output AZURE_TENANT_ID string = tenant().tenantId
output RESOURCE_GROUP string = group.name
output AZURE_FUNCTION_APP_NAME string = app.outputs.name
output SERVICE_DICOM_URL string = '${app.outputs.url}/v2'
output AZURE_STORAGE_ACCOUNT_NAME string = storage.outputs.name
output STORAGE_EVENTS_TOPIC_NAME string = events.outputs.name
output SQL_SERVER string = database.outputs.host
output SQL_DATABASE string = database.outputs.name
output APP_IDENTITY_NAME string = identity.outputs.name
output VIEWER_CLIENT_ID string = createEntraApplication ? entra!.outputs.clientId : ''
output VIEWER_SCOPE string = createEntraApplication ? 'openid profile offline_access ${entra!.outputs.scope}' : ''
output VIEWER_STORAGE_ACCOUNT_NAME string = viewer ? site!.outputs.accountName : ''
output VIEWER_URL string = viewer ? site!.outputs.url : ''
