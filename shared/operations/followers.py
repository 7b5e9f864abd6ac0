"""Followers of the change feed in Table Storage: how far each is, who follows now, and what was refused.

A follower's row is held by one host at a time: it writes its id and a time until which it holds the row,
under the row's ETag, and again with each step forward. A host that has lost it learns so at its next write.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.data.tables import UpdateMode
from azure.data.tables.aio import TableServiceClient

from shared.dicom.identifiers import InstanceKey
from shared.errors import DependencyUnavailable

FOLLOWERS = "followers"
_ROW = "cursor"


class LostHold(Exception):
    """Another host follows by now."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower is: the last Sequence that is delivered, or given up and kept in a table.

    ``failing_since`` and ``failure`` say since when and why it does not get on; empty where it does.
    """

    name: str
    sequence: int
    failing_since: str = ""
    failure: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A change that was not delivered, as a table keeps it: identifiers and a sentence, no values."""

    sequence: int
    action: str
    timestamp: str
    key: InstanceKey
    error: str
    table: str
    row: tuple[str, str] = ("", "")


class FollowerTable:
    """The followers of one storage account."""

    def __init__(self, service: TableServiceClient) -> None:
        self._service = service

    async def find(self, name: str) -> Position | None:
        """Where a follower is, or None before its first run."""
        async with _translated():
            try:
                return _position(name, await self._service.get_table_client(FOLLOWERS).get_entity(name, _ROW))
            except ResourceNotFoundError:
                return None

    async def take(self, name: str, holder: str, seconds: float, start: int) -> Position | None:
        """Hold the follower's row; None while another host does. A new follower begins after ``start``."""
        async with _translated():
            client = self._service.get_table_client(FOLLOWERS)
            try:
                row = await client.get_entity(name, _ROW)
            except ResourceNotFoundError:
                with contextlib.suppress(ResourceExistsError):
                    await client.create_table()
                with contextlib.suppress(ResourceExistsError):
                    entity = {"PartitionKey": name, "RowKey": _ROW, "Sequence": str(start)}
                    await client.create_entity(entity | {"Holder": "", "Until": "", "FailingSince": ""})
                row = await client.get_entity(name, _ROW)
            if row["Until"] > _moment():
                return None
            with contextlib.suppress(LostHold):
                return await self.hold(_position(name, row), holder, seconds)
        return None

    async def hold(self, position: Position, holder: str, seconds: float) -> Position:
        """Write ``position`` and hold the row for ``seconds`` more; 0 lets go. Raises LostHold."""
        entity = {
            "PartitionKey": position.name,
            "RowKey": _ROW,
            "Sequence": str(position.sequence),
            "FailingSince": position.failing_since,
            "Failure": position.failure,
            "Holder": holder,
            "Until": _moment(seconds) if seconds else "",
        }
        async with _translated():
            try:
                written = await self._service.get_table_client(FOLLOWERS).update_entity(
                    entity,
                    UpdateMode.REPLACE,
                    etag=position.etag,
                    match_condition=MatchConditions.IfNotModified,
                )
            except ResourceModifiedError as error:
                etag = await self._own_write(position.name, holder)
                if not etag:
                    raise LostHold from error
                return await self.hold(replace(position, etag=etag), holder, seconds)
            except ResourceNotFoundError as error:
                raise LostHold from error
        return replace(position, etag=str(written["etag"]))

    async def _own_write(self, name: str, holder: str) -> str:
        """The row's ETag if ``holder`` wrote it: a write that was sent twice changed it the first time."""
        try:
            row = await self._service.get_table_client(FOLLOWERS).get_entity(name, _ROW)
        except ResourceNotFoundError:
            return ""
        return str(row.metadata["etag"]) if holder and row["Holder"] == holder else ""

    # --- what was given up -----------------------------------------------------------------------------

    async def keep(self, change: GivenUp) -> None:
        """Keep a change that was not delivered; the same one again replaces what was said of it before."""
        key = change.key
        identity = f"{key.study}/{key.series}/{key.instance}"
        row: dict[str, Any] = {
            "PartitionKey": key.partition,
            "RowKey": f"{change.sequence:020}-{sha256(identity.encode()).hexdigest()[:16]}",
            "Sequence": str(change.sequence),
            "Action": change.action,
            "ChangeTime": change.timestamp,
            "StudyInstanceUid": key.study,
            "SeriesInstanceUid": key.series,
            "SopInstanceUid": key.instance,
            "Error": change.error,
            "Time": _moment(),
            "Retry": False,
        }
        async with _translated():
            client = self._service.get_table_client(change.table)
            try:
                await client.upsert_entity(row, mode=UpdateMode.REPLACE)
            except ResourceNotFoundError:
                with contextlib.suppress(ResourceExistsError):
                    await client.create_table()
                await client.upsert_entity(row, mode=UpdateMode.REPLACE)

    async def given_up(self, table: str, asked_for: bool) -> AsyncIterator[GivenUp]:
        """The changes a table keeps, in order; ``asked_for`` leaves those whose ``Retry`` was set."""
        client = self._service.get_table_client(table)
        async with _translated():
            try:
                rows = client.query_entities("Retry eq true") if asked_for else client.list_entities()
                async for row in rows:
                    yield _given_up(table, row)
            except ResourceNotFoundError:
                return

    async def ask_for_retry(self, change: GivenUp) -> None:
        """Have a change delivered again by the follower's next run."""
        entity = {"PartitionKey": change.row[0], "RowKey": change.row[1], "Retry": True}
        async with _translated():
            with contextlib.suppress(ResourceNotFoundError):
                await self._service.get_table_client(change.table).update_entity(entity, UpdateMode.MERGE)

    async def forget(self, change: GivenUp) -> None:
        """Remove a change that has been delivered after all."""
        async with _translated():
            with contextlib.suppress(ResourceNotFoundError):
                await self._service.get_table_client(change.table).delete_entity(*change.row)


def _position(name: str, row: Any) -> Position:
    return Position(
        name,
        int(row["Sequence"]),
        str(row.get("FailingSince") or ""),
        str(row.get("Failure") or ""),
        str(row.metadata["etag"]),
    )


def _given_up(table: str, row: Any) -> GivenUp:
    key = InstanceKey(
        row["PartitionKey"], row["StudyInstanceUid"], row["SeriesInstanceUid"], row["SopInstanceUid"]
    )
    return GivenUp(
        int(row["Sequence"]),
        row["Action"],
        row["ChangeTime"],
        key,
        row["Error"],
        table,
        (row["PartitionKey"], row["RowKey"]),
    )


def _moment(seconds: float = 0) -> str:
    """UTC as text that sorts."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except (AzureError, OSError) as error:
        raise DependencyUnavailable("Table Storage is unavailable; try again later.") from error
