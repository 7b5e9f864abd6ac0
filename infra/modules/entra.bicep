// The application in Entra ID: what tokens are for, and the app roles that roles.json gives a meaning to.
extension microsoftGraphV1

@description('Name by which repeated deployments find the application.')
param uniqueName string
@description('Name people see.')
param displayName string
@description('URL of the viewer that signs people in; none where it is empty.')
param viewerUrl string

var identifier = 'api://${tenant().tenantId}/${uniqueName}'
var roleNames = map(loadJsonContent('../../roles.json').roles, role => role.name)

resource application 'Microsoft.Graph/applications@v1.0' = {
  uniqueName: uniqueName
  displayName: displayName
  signInAudience: 'AzureADMyOrg'
  identifierUris: [identifier]
  api: {
    requestedAccessTokenVersion: 2
    oauth2PermissionScopes: [
      {
        id: guid(uniqueName, 'Dicom.ReadWrite')
        value: 'Dicom.ReadWrite'
        type: 'User'
        isEnabled: true
        adminConsentDisplayName: 'Use DICOM data as the signed-in user'
        adminConsentDescription: 'Lets an application work with DICOM data as far as the roles of its user allow.'
        userConsentDisplayName: 'Use DICOM data for you'
        userConsentDescription: 'Lets the application work with DICOM data as far as your roles allow.'
      }
    ]
  }
  spa: {
    redirectUris: empty(viewerUrl) ? [] : ['${viewerUrl}/callback']
  }
  appRoles: [
    for role in roleNames: {
      id: guid(uniqueName, role)
      value: role
      displayName: role
      description: 'The role ${role} of roles.json.'
      allowedMemberTypes: ['User', 'Application']
      isEnabled: true
    }
  ]
}

resource principal 'Microsoft.Graph/servicePrincipals@v1.0' = {
  appId: application.appId
  appRoleAssignmentRequired: true
}

output clientId string = application.appId
output scope string = '${identifier}/Dicom.ReadWrite'
output audience string = '${application.appId},${identifier}'
