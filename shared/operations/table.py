"""Status of long-running operations in Table Storage.

The rows of an operation share a partition, so that one entity group transaction moves it on: planning
inserts steps and advances the cursor, or does neither. Rows: ``operation``, and ``step-{number}`` for each
step that is planned and not yet counted. An index names those that run and those that have ended.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.data.tables import TableTransactionError, UpdateMode
from azure.data.tables.aio import TableClient, TableServiceClient

from shared import telemetry
from shared.errors import DependencyUnavailable, InvalidRequest
from shared.operations.operation import RUNNING, Json, Operation, Progress, Step, Tally

OPERATIONS = "operations"
INDEX = "operationindex"
_ACTIVE, _ENDED = "active", "ended"
_ROW = "operation"
_CHUNK = 60 * 1024  # of the 64 KiB that a property may have
_LARGEST = 512 * 1024  # of the 1 MiB that a row may have

Entity = dict[str, Any]


class Overtaken(Exception):
    """Somebody else has changed the operation since it was read."""


@dataclass(frozen=True, slots=True)
class Record:
    """An operation as it was read, with its progress; ``etag`` guards what is written from it."""

    operation: Operation
    progress: Progress
    etag: str


def now() -> str:
    """The time as operations show it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class OperationTable:
    """The tables of one storage account."""

    def __init__(self, service: TableServiceClient) -> None:
        self._service = service
        self._made: set[str] = set()

    async def create(self, operation: Operation) -> bool:
        """Keep a new operation; False where its id is taken.

        Raises InvalidRequest where the input is too large for Table Storage.
        """
        entity = {
            "PartitionKey": operation.id,
            "RowKey": _ROW,
            "Type": operation.type,
            "Status": operation.status,
            "Created": operation.created,
            "Resources": json.dumps(operation.resources),
            "CancelRequested": False,
            "Traceparent": operation.traceparent,
            **_packed("Input", operation.input),
            **_progress_columns(Progress(), operation.created),
        }
        index = {"PartitionKey": _ACTIVE, "RowKey": operation.id, "Created": operation.created}
        async with _translated("create"):
            await self._written(INDEX, index)
            try:
                await (await self._existing(OPERATIONS)).create_entity(entity)
            except ResourceExistsError:
                return False
        return True

    async def find(self, id: str) -> Record | None:
        """The operation, or None."""
        async with _translated("find"):
            try:
                return _record(await self._client(OPERATIONS).get_entity(id, _ROW))
            except ResourceNotFoundError:
                return None

    async def with_steps(self, id: str) -> tuple[Record, list[Step]] | None:
        """The operation and its steps that are not counted yet, in order, without their items."""
        async with _translated("with_steps"):
            try:
                record = _record(await self._client(OPERATIONS).get_entity(id, _ROW))
                rows = self._client(OPERATIONS).query_entities(
                    "PartitionKey eq @id and RowKey gt @row",
                    parameters={"id": id, "row": _ROW},
                    select=["RowKey", "Count", "Due", "Over", "Broken", *_TALLY],
                )
                return record, sorted([_step(row) async for row in rows], key=lambda step: step.number)
            except ResourceNotFoundError:
                return None

    async def items(self, id: str, number: int) -> tuple[list[Json], Step] | None:
        """A step with its items; None where it is counted already."""
        async with _translated("items"):
            try:
                row = await self._client(OPERATIONS).get_entity(id, _step_key(number))
            except ResourceNotFoundError:
                return None
        items: list[Json] = _unpacked("Items", row)
        return items, _step(row)

    async def plan(self, record: Record, progress: Progress, steps: Sequence[Sequence[Json]]) -> Record:
        """Move the operation on to ``progress`` and insert the steps that are new in it, or neither.

        Raises Overtaken, and ValueError where a step is larger than allowed.
        """
        moment = now()
        rows = [
            {
                "PartitionKey": record.operation.id,
                "RowKey": _step_key(record.progress.planned + number),
                "Count": len(items),
                "Due": moment,
                "Over": False,
                **_packed("Items", list(items)),
            }
            for number, items in enumerate(steps)
        ]
        return await self._advance(record, progress, [("create", row) for row in rows])

    async def fold(self, record: Record, progress: Progress) -> Record:
        """Move on to ``progress``, in which more steps are counted, and delete those. Raises Overtaken."""
        counted = range(record.progress.folded, progress.folded)
        rows = [{"PartitionKey": record.operation.id, "RowKey": _step_key(number)} for number in counted]
        return await self._advance(record, progress, [("delete", row) for row in rows])

    async def move(self, record: Record, progress: Progress) -> Record:
        """Move on to ``progress`` alone. Raises Overtaken."""
        return await self._advance(record, progress, [])

    async def end(
        self, record: Record, progress: Progress, status: str, results: Json, errors: Sequence[str]
    ) -> None:
        """Give the operation its last status. Raises Overtaken."""
        columns: Entity = {
            "Status": status,
            "Errors": json.dumps(list(errors)),
            **_packed("Results", results),
        }
        if status == "succeeded":
            columns["Percent"] = 100
        await self._advance(record, progress, [], columns)

    async def request_cancel(self, record: Record) -> None:
        """Ask the coordinator to end the operation. Raises Overtaken."""
        await self._update(record, {"CancelRequested": True, "Updated": now()})

    async def close_index(self, record: Record) -> None:
        """Move an operation that has ended from the index of those that run to that of the ended."""
        operation = record.operation
        async with _translated("close_index"):
            key = f"{operation.last_updated}-{operation.id}"
            await self._written(INDEX, {"PartitionKey": _ENDED, "RowKey": key, "Id": operation.id})
            await self._deleted(INDEX, _ACTIVE, operation.id)

    async def active(self) -> AsyncIterator[tuple[str, str]]:
        """Ids of the operations that the index believes to run, and when they were created."""
        async with _translated():
            client = await self._existing(INDEX)
            async for row in client.query_entities(f"PartitionKey eq '{_ACTIVE}'"):
                yield str(row["RowKey"]), str(row.get("Created", ""))

    async def drop_index(self, id: str) -> None:
        """Forget an operation that never came to be."""
        async with _translated("drop_index"):
            await self._deleted(INDEX, _ACTIVE, id)

    async def ended_before(self, moment: str) -> AsyncIterator[tuple[str, str]]:
        """Key of the index and id of operations that ended before ``moment``."""
        async with _translated():
            client = await self._existing(INDEX)
            rows = client.query_entities(
                f"PartitionKey eq '{_ENDED}' and RowKey lt @moment", parameters={"moment": moment}
            )
            async for row in rows:
                yield str(row["RowKey"]), str(row["Id"])

    async def remove(self, key: str, id: str) -> None:
        """Delete an ended operation and its entry in the index."""
        async with _translated("remove"):
            rows = self._client(OPERATIONS).query_entities(
                "PartitionKey eq @id", parameters={"id": id}, select=["RowKey"]
            )
            for row in [str(row["RowKey"]) async for row in rows]:
                await self._deleted(OPERATIONS, id, row)
            await self._deleted(INDEX, _ENDED, key)

    async def touch(self, id: str) -> None:
        """Say that the message of an operation's coordinator is on its way."""
        async with _translated("touch"):
            with contextlib.suppress(ResourceNotFoundError):
                await self._client(OPERATIONS).update_entity(
                    {"PartitionKey": id, "RowKey": _ROW, "Updated": now()}, UpdateMode.MERGE
                )

    # --- steps -----------------------------------------------------------------------------------------

    async def finish_step(self, id: str, number: int, tally: Tally, broken: bool = False) -> None:
        """Keep what became of a step; the first outcome stays."""
        while True:
            async with _translated("finish_step"):
                client = self._client(OPERATIONS)
                try:
                    row = await client.get_entity(
                        id, _step_key(number), select=["PartitionKey", "RowKey", "Over"]
                    )
                except ResourceNotFoundError:
                    return
                if row["Over"]:
                    return
                try:
                    await client.update_entity(
                        {
                            "PartitionKey": id,
                            "RowKey": _step_key(number),
                            "Over": True,
                            "Broken": broken,
                            **_tally_columns(tally),
                        },
                        UpdateMode.MERGE,
                        etag=row.metadata["etag"],
                        match_condition=MatchConditions.IfNotModified,
                    )
                    return
                except ResourceNotFoundError:
                    return
                except ResourceModifiedError:
                    continue

    async def touch_step(self, id: str, number: int) -> None:
        """Say that a step's message is on its way or being worked on."""
        async with _translated("touch_step"):
            with contextlib.suppress(ResourceNotFoundError):
                await self._client(OPERATIONS).update_entity(
                    {"PartitionKey": id, "RowKey": _step_key(number), "Due": now()}, UpdateMode.MERGE
                )

    # --- rows ------------------------------------------------------------------------------------------

    async def _advance(
        self,
        record: Record,
        progress: Progress,
        rows: Sequence[tuple[str, Entity]],
        columns: Mapping[str, Any] | None = None,
    ) -> Record:
        moment = now()
        entity: Entity = {
            "PartitionKey": record.operation.id,
            "RowKey": _ROW,
            "Status": RUNNING,
            **_progress_columns(progress, moment),
            **(columns or {}),
        }
        guard = {
            "mode": UpdateMode.MERGE,
            "etag": record.etag,
            "match_condition": MatchConditions.IfNotModified,
        }
        async with _translated("advance"):
            try:
                outcome = await self._client(OPERATIONS).submit_transaction(
                    [("update", entity, guard), *rows]
                )
            except (ResourceModifiedError, ResourceNotFoundError, ResourceExistsError) as error:
                raise Overtaken from error
            except TableTransactionError as error:
                if error.status_code in (404, 409, 412):
                    raise Overtaken from error
                raise
        return Record(record.operation, progress, str(outcome[0]["etag"]))

    async def _update(self, record: Record, columns: Mapping[str, Any]) -> None:
        entity = {"PartitionKey": record.operation.id, "RowKey": _ROW, **columns}
        async with _translated("update"):
            try:
                await self._client(OPERATIONS).update_entity(
                    entity,
                    UpdateMode.MERGE,
                    etag=record.etag,
                    match_condition=MatchConditions.IfNotModified,
                )
            except (ResourceModifiedError, ResourceNotFoundError) as error:
                raise Overtaken from error

    def _client(self, table: str) -> TableClient:
        return self._service.get_table_client(table)

    async def _existing(self, table: str) -> TableClient:
        """The client of a table that is made first where it is not there."""
        client = self._client(table)
        if table not in self._made:
            with contextlib.suppress(ResourceExistsError):
                await client.create_table()
            self._made.add(table)
        return client

    async def _written(self, table: str, entity: Entity) -> None:
        await (await self._existing(table)).upsert_entity(entity, UpdateMode.REPLACE)

    async def _deleted(self, table: str, partition: str, row: str) -> None:
        with contextlib.suppress(ResourceNotFoundError):
            await self._client(table).delete_entity(partition, row)


def _step_key(number: int) -> str:
    return f"step-{number:010}"


_TALLY = ("Done", "Failed", "Skipped", "Errors")


def _tally_columns(tally: Tally) -> Entity:
    tally = Tally() + tally  # sentences cut to size
    return {
        "Done": tally.done,
        "Failed": tally.failed,
        "Skipped": tally.skipped,
        "Errors": json.dumps(tally.errors),
    }


def _tally(row: Mapping[str, Any]) -> Tally:
    return Tally(
        int(row.get("Done") or 0),
        int(row.get("Failed") or 0),
        int(row.get("Skipped") or 0),
        tuple(json.loads(row.get("Errors") or "[]")),
    )


def _progress_columns(progress: Progress, moment: str) -> Entity:
    return {
        "Updated": moment,
        "Percent": progress.percent(),
        "Beat": progress.beat,
        "Idle": progress.idle,
        "Failures": progress.failures,
        "Planned": progress.planned,
        "Sent": progress.sent,
        "Folded": progress.folded,
        "ItemsPlanned": progress.items_planned,
        "ItemsOver": progress.items_over,
        "Total": progress.total,
        "Cursor": progress.cursor or "",
        "PlanEnded": progress.cursor is None,
        "Broken": progress.broken,
        **_tally_columns(progress.tally),
    }


def _record(row: Any) -> Record:
    progress = Progress(
        beat=row["Beat"],
        idle=row["Idle"],
        failures=row["Failures"],
        planned=row["Planned"],
        sent=row["Sent"],
        folded=row["Folded"],
        items_planned=row["ItemsPlanned"],
        items_over=row["ItemsOver"],
        total=row["Total"],
        cursor=None if row["PlanEnded"] else row["Cursor"],
        tally=_tally(row),
        broken=row["Broken"],
    )
    operation = Operation(
        id=row["PartitionKey"],
        type=row["Type"],
        status=row["Status"],
        input=_unpacked("Input", row),
        created=row["Created"],
        last_updated=row["Updated"],
        percent_complete=row["Percent"],
        resources=tuple(json.loads(row["Resources"])),
        results=_unpacked("Results", row),
        errors=progress.tally.errors,
        canceling=row["CancelRequested"],
        traceparent=row.get("Traceparent") or "",
    )
    return Record(operation, progress, row.metadata["etag"])


def _step(row: Mapping[str, Any]) -> Step:
    number = int(str(row["RowKey"]).removeprefix("step-"))
    tally = _tally(row) if row["Over"] else None
    return Step(number, int(row["Count"]), str(row["Due"]), tally, bool(row.get("Broken")))


def _packed(name: str, value: Json) -> Entity:
    """JSON, compressed, in as many properties as it takes."""
    data = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 6)
    if len(data) > _LARGEST:
        raise InvalidRequest("The operation's input is larger than Table Storage can keep.")
    pieces = range(0, len(data), _CHUNK)
    return {f"{name}{number}": data[start : start + _CHUNK] for number, start in enumerate(pieces)}


def _unpacked(name: str, row: Mapping[str, Any]) -> Json:
    pieces: list[bytes] = []
    while (piece := row.get(f"{name}{len(pieces)}")) is not None:
        pieces.append(piece)
    return json.loads(zlib.decompress(b"".join(pieces))) if pieces else None


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
