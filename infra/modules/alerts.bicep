// Alerts: the server fails, and the database is nearly full or overloaded.
@description('Azure region of the log alerts.')
param location string
@description('Tags.')
param tags object
@description('Where alerts go.')
param email string
@description('The Application Insights component.')
param insightsId string
@description('The database.')
param databaseId string

resource receivers 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: 'ag-dicom'
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'dicom'
    emailReceivers: [
      {
        name: 'operators'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

resource failures 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dicom-failed-requests'
  location: 'global'
  tags: tags
  properties: {
    description: 'Requests fail: a dependency is away, or there is a bug.'
    severity: 1
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: 'failed'
          criterionType: 'StaticThresholdCriterion'
          metricNamespace: 'microsoft.insights/components'
          metricName: 'requests/failed'
          operator: 'GreaterThan'
          threshold: 10
          timeAggregation: 'Count'
        }
      ]
    }
    actions: [{ actionGroupId: receivers.id }]
  }
}

resource storageOfDatabase 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dicom-database-nearly-full'
  location: 'global'
  tags: tags
  properties: {
    description: 'The database has used most of its space.'
    severity: 2
    enabled: true
    scopes: [databaseId]
    evaluationFrequency: 'PT1H'
    windowSize: 'PT1H'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          name: 'full'
          criterionType: 'StaticThresholdCriterion'
          metricNamespace: 'Microsoft.Sql/servers/databases'
          metricName: 'storage_percent'
          operator: 'GreaterThan'
          threshold: 80
          timeAggregation: 'Maximum'
        }
      ]
    }
    actions: [{ actionGroupId: receivers.id }]
  }
}

resource poison 'Microsoft.Insights/scheduledQueryRules@2023-03-15-preview' = {
  name: 'dicom-poison-messages'
  location: location
  tags: tags
  properties: {
    description: 'A message or a blob was given up after several tries.'
    severity: 2
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT15M'
    criteria: {
      allOf: [
        {
          query: 'traces | where message has "was poisonous" or message has "MessageAddedToPoisonQueue"'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
        }
      ]
    }
    actions: { actionGroups: [receivers.id] }
  }
}
