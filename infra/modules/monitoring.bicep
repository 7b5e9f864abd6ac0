// Log Analytics and Application Insights; telemetry is accepted from identities alone.
@description('Makes the names unique.')
param token string
@description('Azure region.')
param location string
@description('Tags.')
param tags object
@description('Days that logs are kept; the audit trail is among them.')
@minValue(30)
@maxValue(730)
param retentionDays int

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'log-dicom-${token}'
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionDays
  }
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: 'appi-dicom-${token}'
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspace.id
    DisableLocalAuth: true
  }
}

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, 'dicom-workbook')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'DICOM server'
    category: 'workbook'
    sourceId: insights.id
    serializedData: loadTextContent('workbook.json')
    version: '1.0'
  }
}

output insightsName string = insights.name
output insightsId string = insights.id
output connectionString string = insights.properties.ConnectionString
