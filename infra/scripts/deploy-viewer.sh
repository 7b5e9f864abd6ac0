#!/usr/bin/env bash
# Puts the viewer on the static website of a storage account (infra/modules/viewer.bicep), or a newer one over it.
#
#   deploy-viewer.sh ACCOUNT SERVER [further options of `dev.py viewer`]
#
# ACCOUNT is the storage account's name, SERVER the URL of the DICOM server. Needs the Azure CLI, logged in as
# somebody with the roles Storage Blob Data Contributor and Storage Account Contributor on the account.
# With FUNCTION_APP and RESOURCE_GROUP set, CORS of that function app is made to allow the site.
set -euo pipefail

if [ "$#" -lt 2 ]; then
    sed -n 's/^#   /usage: /p' "$0" >&2
    exit 2
fi
account=$1
server=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 "$root/dev.py" viewer --output "$work/site" --url "$server" "$@"

login=(--account-name "$account" --auth-mode login --only-show-errors --output none)
az storage blob service-properties update "${login[@]}" \
    --static-website true --index-document index.html --404-document 404.html

# Files whose names tell their content go first and stay in caches; those that name them come last.
mkdir "$work/named"
for file in "$work"/site/*; do
    if [[ ${file##*/} =~ (^|\.)[0-9a-f]{16}\. ]]; then
        mv "$file" "$work/named/"
    fi
done
upload() {
    az storage blob upload-batch "${login[@]}" --destination '$web' --overwrite true \
        --source "$1" --content-cache-control "$2"
}
upload "$work/named" 'public, max-age=31536000, immutable'
upload "$work/site" no-cache

url=$(az storage account show --name "$account" --query primaryEndpoints.web --output tsv)
if [ -n "${FUNCTION_APP:-}" ]; then
    az functionapp cors add --name "$FUNCTION_APP" --resource-group "$RESOURCE_GROUP" \
        --allowed-origins "${url%/}" --only-show-errors --output none
fi
echo "The viewer is at $url; CORS of the DICOM server must allow the origin ${url%/}."
