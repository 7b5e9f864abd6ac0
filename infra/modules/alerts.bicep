// Alerts: the server fails, work was given up or does not keep up, and the database is nearly full.
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

resource failures 'Microsoft.Insights/scheduledQueryRules@2023-03-15-preview' = {
  name: 'dicom-failed-requests'
  location: location
  tags: tags
  properties: {
    description: 'Requests, or functions of queues, blobs and timers, fail: a dependency is away, or there is a bug.'
    severity: 1
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    criteria: {
      allOf: [
        {
          query: 'requests | where toint(resultCode) >= 500 or (isnotempty(customDimensions["trigger"]) and success == false)'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 10
        }
      ]
    }
    actions: { actionGroups: [receivers.id] }
  }
}

resource cleanup 'Microsoft.Insights/scheduledQueryRules@2023-03-15-preview' = {
  name: 'dicom-cleanup-behind'
  location: location
  tags: tags
  properties: {
    description: 'Bytes of many deleted instances have waited for an hour to go.'
    severity: 2
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT30M'
    windowSize: 'PT1H'
    criteria: {
      allOf: [
        {
          query: 'customMetrics | where name == "dicom.cleanup.waiting" | summarize least = min(valueMin) | where least > 10000'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
        }
      ]
    }
    actions: { actionGroups: [receivers.id] }
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
          query: 'union (traces | where message has "was poisonous"), (customMetrics | where name == "dicom.queue.messages" and customDimensions.queue endswith "-poison" and valueMax > 0)'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
        }
      ]
    }
    actions: { actionGroups: [receivers.id] }
  }
}
