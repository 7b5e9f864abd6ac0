#!/bin/sh
# Makes Event Grid call the deployed app's blob triggers: one subscription for each container that has one.
# Flex Consumption knows no other way. Needs the Azure CLI, signed in to the subscription.
set -eu
: "${RESOURCE_GROUP:?run by azd, or set the outputs of the deployment}" "${AZURE_FUNCTION_APP_NAME:?}" "${STORAGE_EVENTS_TOPIC_NAME:?}"
key=$(az functionapp keys list --resource-group "$RESOURCE_GROUP" --name "$AZURE_FUNCTION_APP_NAME" --query systemKeys.blobs_extension --output tsv)
host=$(az functionapp show --resource-group "$RESOURCE_GROUP" --name "$AZURE_FUNCTION_APP_NAME" --query properties.defaultHostName --output tsv)

subscribe() {
    az eventgrid system-topic event-subscription create \
        --resource-group "$RESOURCE_GROUP" --system-topic-name "$STORAGE_EVENTS_TOPIC_NAME" \
        --name "$1" --subject-begins-with "/blobServices/default/containers/$2/" \
        --included-event-types Microsoft.Storage.BlobCreated \
        --endpoint "https://$host/runtime/webhooks/blobs?functionName=Host.Functions.$3&code=$key" \
        --output none
}

subscribe dicom dicom index_dicom_blob
subscribe inbox inbox store_inbox_blob
echo "Blob triggers of $AZURE_FUNCTION_APP_NAME are subscribed."
