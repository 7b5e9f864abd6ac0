"""Small state in Table Storage: cursors of scans, and files that could not be stored from the inbox."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.data.tables import UpdateMode
from azure.data.tables.aio import TableClient, TableServiceClient

from shared import telemetry
from shared.errors import DependencyUnavailable

CURSORS = "cursors"
INBOX_FAILURES = "inboxfailures"
QUERY_TAGS = "querytags"


class State:
    """The tables of one storage account."""

    def __init__(self, service: TableServiceClient) -> None:
        self._service = service

    async def cursor(self, name: str) -> str:
        """The value saved under ``name``; empty where there is none."""
        async with _translated("cursor"):
            try:
                entity = await self._service.get_table_client(CURSORS).get_entity("cursor", name)
            except ResourceNotFoundError:
                return ""
            return str(entity["Value"])

    async def save_cursor(self, name: str, value: str) -> None:
        """Remember ``value`` under ``name``."""
        await self._write(CURSORS, {"PartitionKey": "cursor", "RowKey": name, "Value": value})

    async def record_inbox_failure(self, name: str, reason: int, message: str, time: str) -> None:
        """Say why a file of the inbox was not stored; it lies in ``inbox-failed`` under the same name."""
        row = {"PartitionKey": time[:10], "RowKey": sha256(name.encode()).hexdigest()}
        await self._write(
            INBOX_FAILURES, row | {"Name": name, "FailureReason": reason, "Message": message, "Time": time}
        )

    async def query_tags(self) -> tuple[int, str]:
        """The version and the text saved by :meth:`save_query_tags`; 0 and empty where there is none."""
        async with _translated("query_tags"):
            try:
                row = await self._service.get_table_client(QUERY_TAGS).get_entity("tags", "all")
            except ResourceNotFoundError:
                return 0, ""
            return int(row["Version"]), zlib.decompress(row["Text"]).decode()

    async def save_query_tags(self, version: int, text: str) -> None:
        """Keep the definitions of the query tags, which SQL alone has otherwise; the newest version stays."""
        entity: dict[str, object] = {"PartitionKey": "tags", "RowKey": "all", "Version": str(version)}
        entity["Text"] = zlib.compress(text.encode())
        while True:
            async with _translated("save_query_tags"):
                client = self._service.get_table_client(QUERY_TAGS)
                try:
                    row = await client.get_entity("tags", "all", select=["PartitionKey", "RowKey", "Version"])
                except ResourceNotFoundError:
                    with contextlib.suppress(ResourceExistsError):
                        await client.create_table()
                    with contextlib.suppress(ResourceExistsError):
                        await client.create_entity(entity)
                        return
                    continue
                if int(row["Version"]) >= version:
                    return
                with contextlib.suppress(ResourceModifiedError):
                    await client.update_entity(
                        entity,
                        UpdateMode.REPLACE,
                        etag=row.metadata["etag"],
                        match_condition=MatchConditions.IfNotModified,
                    )
                    return

    async def _write(self, table: str, entity: dict[str, object]) -> None:
        async with _translated("write"):
            client: TableClient = self._service.get_table_client(table)
            try:
                await client.upsert_entity(entity, mode=UpdateMode.REPLACE)
            except ResourceNotFoundError:
                with contextlib.suppress(ResourceExistsError):
                    await client.create_table()
                await client.upsert_entity(entity, mode=UpdateMode.REPLACE)


@contextlib.asynccontextmanager
async def _translated(call: str = "") -> AsyncIterator[None]:
    try:
        with (
            telemetry.dependency(f"table {call}", **{"peer.service": "Table Storage"})
            if call
            else contextlib.nullcontext()
        ):
            yield
    except (AzureError, OSError) as error:
        raise DependencyUnavailable("Table Storage is unavailable; try again later.") from error
