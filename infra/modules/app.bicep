// The function app on Flex Consumption: its plan, its settings, its identity.
@description('Name of the function app; its first 32 characters must be its own.')
@maxLength(60)
param name string
@description('Name of the plan.')
@maxLength(40)
param planName string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Resource id of the identity.')
param identityId string
@description('Client id of the identity.')
param identityClientId string
@description('Name of the storage account.')
param storageName string
@description('Container of the deployed package.')
param packageContainer string
@description('Host name of the SQL server.')
param databaseHost string
@description('Name of the database.')
param databaseName string
@description('URI of the vault.')
param vaultUri string
@description('Endpoint of the Web PubSub service; none where it is empty.')
param webPubSubEndpoint string
@description('Where telemetry goes.')
param insightsConnectionString string
@description('Audiences of accepted access tokens, with commas between them.')
param authAudience string
@description('Origins that browsers may call from.')
param corsOrigins array
@description('URL that clients see, where it is not the app\'s own.')
param publicBaseUrl string
@description('Endpoint of the topic for events of images; none are sent where it is empty.')
param eventsEndpoint string
@description('Base URL of a FHIR server; none is kept in step where it is empty.')
param fhirUrl string
@description('Whether the audit trail is written to its container, too.')
param auditContainer bool
@description('Most instances.')
param maximumInstances int
@description('Memory of an instance in MB.')
param instanceMemoryMB int
@description('HTTP requests an instance works on at a time.')
param httpConcurrency int
@description('Most bytes of a request.')
param requestBodyLimit int
@description('Subnet the app is in; none where it is empty.')
param subnetId string

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: storageName
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: { reserved: true }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  tags: union(tags, { 'azd-service-name': 'dicom' })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    keyVaultReferenceIdentity: identityId
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storage.properties.primaryEndpoints.blob}${packageContainer}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: {
        name: 'python'
        version: '3.12'
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstances
        triggers: { http: { perInstanceConcurrency: httpConcurrency } }
      }
    }
    siteConfig: {
      minTlsVersion: '1.2'
      ftpsState: 'Disabled'
      http20Enabled: true
      cors: { allowedOrigins: corsOrigins }
    }
  }
}

resource settings 'Microsoft.Web/sites/config@2024-04-01' = {
  parent: app
  name: 'appsettings'
  properties: {
    AzureWebJobsStorage__blobServiceUri: storage.properties.primaryEndpoints.blob
    AzureWebJobsStorage__queueServiceUri: storage.properties.primaryEndpoints.queue
    AzureWebJobsStorage__tableServiceUri: storage.properties.primaryEndpoints.table
    AzureWebJobsStorage__credential: 'managedidentity'
    AzureWebJobsStorage__clientId: identityClientId
    AzureWebJobsDisableHomepage: 'true'
    PYTHON_ENABLE_INIT_INDEXING: '1'
    APPLICATIONINSIGHTS_CONNECTION_STRING: insightsConnectionString
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
    FUNCTIONS_REQUEST_BODY_SIZE_LIMIT: string(requestBodyLimit)
    DICOM_SQL_URL: 'mssql+pyodbc://@${databaseHost}:1433/${databaseName}?driver=ODBC+Driver+18+for+SQL+Server&Encrypt=yes'
    DICOM_PUBLIC_BASE_URL: publicBaseUrl
    DICOM_AUDIT_CONTAINER: string(auditContainer)
    DICOM_EVENTS_ENDPOINT: eventsEndpoint
    DICOM_FHIR_URL: fhirUrl
    DICOM_AUTH_AUTHORITY: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
    DICOM_AUTH_AUDIENCE: authAudience
    DICOM_AUTH_TENANT: tenant().tenantId
    DICOM_KEY_VAULT_URI: vaultUri
    DICOM_WEB_PUBSUB_ENDPOINT: webPubSubEndpoint
    DICOM_BLOB_TRIGGER_SOURCE: 'EventGrid'
    DICOM_CLEANUP_SCHEDULE: '0 */1 * * * *'
    DICOM_FOLLOWER_SCHEDULE: '*/10 * * * * *'
    DICOM_OPERATIONS_SCHEDULE: '30 */1 * * * *'
    DICOM_RECONCILE_SCHEDULE: '0 */10 * * * *'
  }
}

output name string = app.name
output url string = 'https://${app.properties.defaultHostName}'
