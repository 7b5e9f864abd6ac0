"""A container of Azurite to export to."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)

Json = dict[str, Any]


class Target:
    """A container to export to, in the account of the server under test."""

    def __init__(self, connection: str) -> None:
        self.connection = connection
        self.name = f"target-{uuid.uuid4().hex[:12]}"
        self.client: ContainerClient = BlobServiceClient.from_connection_string(connection).create_container(
            self.name
        )

    def sas(self, permission: str = "cw", hours: float = 1) -> Json:
        """Settings with a SAS."""
        now = datetime.now(UTC)
        token = generate_container_sas(
            str(self.client.account_name),
            self.name,
            account_key=self.client.credential.account_key,
            permission=ContainerSasPermissions.from_string(permission),
            start=now - timedelta(days=1),
            expiry=now + timedelta(hours=hours),
        )
        return {"blobContainerUri": f"{self.client.url}?{token}"}

    def by_connection(self) -> Json:
        """Settings with a connection string."""
        return {"connectionString": self.connection, "blobContainerName": self.name}

    def blobs(self) -> dict[str, bytes]:
        """All there is, by name."""
        return {name: self.client.download_blob(name).readall() for name in self.client.list_blob_names()}
