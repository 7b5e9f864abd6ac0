"""Export: files of instances, de-identified where asked, to a container of somebody's choice.

An operation of type ``export``. What it may not show lies elsewhere until its end: the container's secret
and the key of the pseudonyms in the secret store, the identifiers or the query in container ``operations``.
A step writes its files, overwriting what an earlier try left, then records its outcome there once; whoever
is second finds it. The end makes ``errors.log`` of the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import orjson

from shared import container, faults
from shared.blobs import destination as destinations
from shared.blobs import names
from shared.blobs.destination import Address, Destination
from shared.blobs.store import BlobNotFound
from shared.dicom import stored_terms
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.search_terms import Term
from shared.errors import Conflict, DependencyUnavailable, InvalidRequest, NotFound
from shared.operations.operation import MAX_STEPS
from shared.security.secrets import SecretNotFound
from shared.services import exported, metadata_table, operations
from shared.services.operations import Json, Operation, OperationFailed, Page, Tally
from shared.settings import settings
from shared.sql import export as index
from shared.sql.instances import StoredInstance

if TYPE_CHECKING:
    from shared.dicom.deidentify import Deidentifier

TYPE = "export"

_STEP_INSTANCES = 16  # what is exported again when a worker dies on the way
_STEP_BYTES = 1024**3
_PAGE = 1000
_PAGE_STATEMENTS = 200
_AT_ONCE = 4  # instances of a step
_AT_ONCE_IN_PROCESS = 8  # each holds a few blocks; a de-identified one its header, too
_MOVES = 3
_JSON_LINES = "application/x-ndjson"
_SOURCE = "source.json"
_STEP = "step-"
_DELETED = "The instance has been deleted."
_MISSING = "There is no such study, series or instance."
_ENDED = "The export has ended."


@dataclass(frozen=True, slots=True)
class Source:
    """What to export: either identifiers, each one to three UIDs, or what ``terms`` match in a study, a
    series or everything. Terms may be patient data."""

    partition: str
    identifiers: tuple[tuple[str, ...], ...] = ()
    study: str = ""
    series: str = ""
    terms: tuple[Term, ...] = ()

    def json(self) -> bytes:
        """What :meth:`parse` is given."""
        return orjson.dumps(
            {
                "partition": self.partition,
                "identifiers": self.identifiers,
                "study": self.study,
                "series": self.series,
                "terms": [stored_terms.dump(term) for term in self.terms],
            }
        )

    @staticmethod
    def parse(data: bytes) -> Source:
        """The source that was kept."""
        given = orjson.loads(data)
        identifiers = tuple(tuple(one) for one in given.pop("identifiers"))
        terms = tuple(stored_terms.load(term) for term in given.pop("terms"))
        return Source(**given, identifiers=identifiers, terms=terms)


@dataclass(frozen=True, slots=True)
class Form:
    """How to export: ``options`` of the profile, None where nothing is de-identified."""

    options: tuple[str, ...] | None = None
    allow_burned_in: bool = False
    parquet: bool = False


# --- starting ----------------------------------------------------------------------------------------


async def start(source: Source, where: dict[str, Any], form: Form) -> Operation:
    """Start an export to the destination ``where`` (settings of the type azureblob).

    Raises InvalidRequest where the destination is malformed, does not exist or refuses to be written to.
    """
    address = destinations.parse(where)
    if container.blob_store().is_own(address.uri):
        raise InvalidRequest("The destination is a container in which the server keeps its own data.")
    _check(form)
    id = uuid.uuid4().hex
    try:
        async with _opened(address) as destination:
            log = await destination.begin(names.exported_errors(id))
    except Conflict as error:
        raise InvalidRequest(str(error)) from None
    secret = {"connection": address.connection, "sas": address.sas, "key": secrets.token_hex(32)}
    input = {
        "partition": source.partition,
        "container": address.container,
        "uri": address.uri,
        "options": None if form.options is None else sorted(form.options),
        "allowBurnedIn": form.allow_burned_in,
        "parquet": form.parquet,
        "log": log,
    }
    await container.secret_store().save(_secret_name(id), orjson.dumps(secret).decode())
    faults.point("export.secret_saved")
    try:
        await container.blob_store().create(
            names.OPERATIONS, names.operation_blob(id, _SOURCE), source.json()
        )
        return await operations.start(TYPE, input, id=id)
    except BaseException:
        with contextlib.suppress(DependencyUnavailable):  # the timer removes what is left
            await container.secret_store().delete(_secret_name(id))
        raise


def _check(form: Form) -> None:
    if form.options is not None:
        from shared.dicom.confidentiality import options_of

        options_of(form.options)
    if form.parquet:
        metadata_table.check_available()


# --- planning ----------------------------------------------------------------------------------------


async def plan(operation: Operation, cursor: str) -> Page:
    """The next steps; ``cursor`` is the number of an identifier and a place within what it lists."""
    source = await _source(operation)
    if source is None:
        return Page([], None)
    resources = _resources(source)
    at, after = map(int, cursor.split(":")) if cursor else (0, 0)
    planned = _Planned()
    for _ in range(_PAGE_STATEMENTS):
        room = _PAGE - planned.count
        if at == len(resources) or not room:
            break
        found = await container.database().read(index.page, resources[at], source.terms, after, room)
        if not found and not after and source.identifiers:
            missing = {"missing": "/".join(source.identifiers[at])}
            if not planned.add(missing, 0):
                return Page(planned.steps, f"{at}:{after}")
        for one in found:
            if not planned.add([one.key.study, one.key.series, one.key.instance], one.size):
                return Page(planned.steps, f"{at}:{after}")
            after = one.place
        if len(found) < room:
            at, after = at + 1, 0
    return Page(planned.steps, f"{at}:{after}" if at < len(resources) else None)


class _Planned:
    """Steps of up to so many instances and bytes; a larger instance has one of its own."""

    def __init__(self) -> None:
        self.steps: list[list[Json]] = []
        self.count = 0
        self._size = 0

    def add(self, item: Json, size: int) -> bool:
        """Whether there was room for an item."""
        full = not self.steps or len(self.steps[-1]) == _STEP_INSTANCES or self._size + size > _STEP_BYTES
        if full and len(self.steps) == MAX_STEPS:
            return False
        if full:
            self.steps.append([])
            self._size = 0
        self.steps[-1].append(item)
        self._size += size
        self.count += 1
        return True


async def _source(operation: Operation) -> Source | None:
    """What to export; None: the export has ended, and this is a late message."""
    blob = names.operation_blob(operation.id, _SOURCE)
    try:
        pieces = [chunk async for chunk in container.blob_store().stream(names.OPERATIONS, blob)]
    except BlobNotFound:
        return None
    return Source.parse(b"".join(pieces))


def _resources(source: Source) -> list[Resource]:
    if source.identifiers:
        return [Resource(source.partition, *uids) for uids in source.identifiers]
    return [Resource(source.partition, source.study, source.series)]


# --- a step ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item: ``error`` is empty where it was exported."""

    identifier: str
    error: str = ""
    row: dict[str, Any] | None = None


async def step(operation: Operation, number: int, items: list[Json]) -> Tally:
    """Export the instances of a step. The first outcome that is recorded counts."""
    recorded = await _recorded(operation, number)
    if recorded is not None:
        return recorded
    try:
        secret = await _secret(operation)
    except SecretNotFound:
        return Tally(skipped=len(items), errors=(_ENDED,))
    async with _opened(_address(operation, secret)) as destination:
        outcomes = await _export(operation, items, destination, _deidentifier(operation, secret))
        rows = [outcome.row for outcome in outcomes if outcome.row is not None]
        if operation.input["parquet"] and rows:
            table = await asyncio.to_thread(metadata_table.table, rows)
            part = names.exported_metadata(operation.id, number)
            await destination.upload(part, _once(table), "application/vnd.apache.parquet")
    faults.point("export.files_written")
    return await _record(operation, number, outcomes)


async def _export(
    operation: Operation, items: list[Json], destination: Destination, deidentifier: Deidentifier | None
) -> list[Outcome]:
    keys = [InstanceKey(operation.input["partition"], *item) for item in items if isinstance(item, list)]
    found = await container.database().read(index.find_listed, keys) if keys else {}
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(item: Json) -> Outcome:
        if isinstance(item, dict):
            return Outcome(item["missing"], _MISSING)
        key = InstanceKey(operation.input["partition"], *item)
        async with turns:
            return await _export_one(operation, key, found.get(key), destination, deidentifier)

    async with _room(min(_AT_ONCE, len(items))):
        tasks = [asyncio.create_task(one(item)) for item in items]
        try:
            return await asyncio.gather(*tasks)
        finally:  # none of them goes on writing when another one has failed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _export_one(
    operation: Operation,
    key: InstanceKey,
    stored: StoredInstance | None,
    destination: Destination,
    deidentifier: Deidentifier | None,
) -> Outcome:
    identifier = f"{key.study}/{key.series}/{key.instance}"
    for _ in range(_MOVES):
        if stored is None:
            return Outcome(identifier, _DELETED)
        try:
            row = await _write(operation, stored, destination, deidentifier)
            return Outcome(identifier, row=row)
        except NotFound:  # deleted, or replaced, since it was found
            before = stored.version
            stored = (await container.database().read(index.find_listed, [key])).get(key)
            if stored is not None and stored.version == before:
                return Outcome(identifier, "The file of the instance is missing in Blob Storage.")
        except (exported.CannotExport, Conflict) as error:
            return Outcome(identifier, str(error))
    raise DependencyUnavailable("An instance is being replaced again and again; try again later.")


async def _write(
    operation: Operation,
    stored: StoredInstance,
    destination: Destination,
    deidentifier: Deidentifier | None,
) -> dict[str, Any] | None:
    """Write the file of an instance; its row of the table of metadata where there is to be one."""
    wanted = tuple(metadata_table.columns()) if operation.input["parquet"] else ()
    if deidentifier is None:
        made = await exported.as_stored(stored, wanted)
    else:
        made = await exported.deidentified(stored, deidentifier, wanted)
    key = made.key
    name = names.exported_file(operation.id, key.study, key.series, key.instance)
    await destination.upload(name, made.chunks, "application/dicom")
    if not operation.input["parquet"]:
        return None
    return {"path": name, "transferSyntaxUid": stored.transfer_syntax, "attributes": made.attributes}


class _Places:
    """Places for instances in this process, in which many steps may run at once.

    A step gets all it can use before the next one gets any: steps end one after the other, and what a process
    has done when it dies is recorded but for the last few, where steps that share would all be unfinished.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE_IN_PROCESS)
        self._next = asyncio.Lock()

    async def take(self, count: int) -> None:
        """Wait for ``count`` places."""
        taken = 0
        try:
            async with self._next:
                while taken < count:
                    await self._places.acquire()
                    taken += 1
        except BaseException:
            self.leave(taken)
            raise

    def leave(self, count: int) -> None:
        """Give places back."""
        for _ in range(count):
            self._places.release()


_places: WeakKeyDictionary[asyncio.AbstractEventLoop, _Places] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def _room(count: int) -> AsyncIterator[None]:
    """``count`` places of this process."""
    places = _places.setdefault(asyncio.get_running_loop(), _Places())
    await places.take(count)
    try:
        yield
    finally:
        places.leave(count)


async def _recorded(operation: Operation, number: int) -> Tally | None:
    try:
        return _tally((await _read_record(operation.id, _step_name(number)))[0])
    except BlobNotFound:
        return None


async def _record(operation: Operation, number: int, outcomes: Sequence[Outcome]) -> Tally:
    """Keep the outcome of a step unless another try was faster, and return what is kept.

    A line of counts, and one for each failure as ``errors.log`` will have it.
    """
    failures = [outcome for outcome in outcomes if outcome.error]
    counts = {
        "exported": len(outcomes) - len(failures),
        "failed": len(failures),
        "reasons": sorted({failure.error for failure in failures}),
    }
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    lines = [
        orjson.dumps({"timestamp": moment, "identifier": failure.identifier, "error": failure.error})
        for failure in failures
    ]
    body = b"\n".join([orjson.dumps(counts), *lines]) + b"\n"
    name = names.operation_blob(operation.id, _step_name(number))
    if await container.blob_store().create(names.OPERATIONS, name, body):
        return _tally(orjson.dumps(counts))
    return await _recorded(operation, number) or _tally(orjson.dumps(counts))


async def _read_record(id: str, what: str) -> tuple[bytes, bytes]:
    """The line of counts, and the lines of failures."""
    blob = names.operation_blob(id, what)
    pieces = [chunk async for chunk in container.blob_store().stream(names.OPERATIONS, blob)]
    counts, _, lines = b"".join(pieces).partition(b"\n")
    return counts, lines


def _tally(counts: bytes) -> Tally:
    given = orjson.loads(counts)
    return Tally(given["exported"], given["failed"], errors=tuple(given["reasons"]))


def _step_name(number: int) -> str:
    return f"{_STEP}{number:08d}"


# --- the end -----------------------------------------------------------------------------------------


async def finish(operation: Operation, tally: Tally) -> Json:
    """Write ``errors.log``, then forget what the operation alone needed; the secret last, so that a finish
    that was cut off is repeated. The log replaces the empty one of the start alone: a repetition, which may
    find fewer records, changes nothing."""
    results: dict[str, Any] = {"exported": tally.done, "skipped": tally.failed + tally.skipped}
    log = names.exported_errors(operation.id)
    try:
        secret = await _secret(operation)
    except SecretNotFound:
        return results | {"errorHref": _href(operation, log)}
    problem = ""
    try:
        async with _opened(_address(operation, secret)) as destination:
            await destination.upload(log, _failures(operation.id), _JSON_LINES, operation.input["log"])
    except Conflict as error:
        problem = str(error)
    faults.point("export.log_written")
    await _forget(operation.id)
    if problem:
        raise OperationFailed(f"errors.log could not be written. {problem}", results)
    return results | {"errorHref": _href(operation, log)}


def _href(operation: Operation, name: str) -> str:
    return f"{operation.input['uri']}/{name}"


async def _failures(id: str) -> AsyncIterator[bytes]:
    """The lines of all steps, in their order."""
    prefix = names.operation_blob(id, _STEP)
    token = ""
    while True:
        page, token = await container.blob_store().list_page(names.OPERATIONS, prefix, token)
        for item in page:
            with contextlib.suppress(BlobNotFound):  # another try has written the log and tidies up
                _, lines = await _read_record(id, item.name.rpartition("/")[2])
                if lines:
                    yield lines
        if not token:
            return


async def _forget(id: str) -> None:
    """Delete everything that is kept for an operation; its secret last."""
    prefix = names.operation_prefix(id)
    while True:
        page, _ = await container.blob_store().list_page(names.OPERATIONS, prefix)
        if not page:
            break
        for start_number in range(0, len(page), 16):
            batch = page[start_number : start_number + 16]
            await asyncio.gather(
                *(container.blob_store().delete(names.OPERATIONS, item.name) for item in batch)
            )
    await container.secret_store().delete(_secret_name(id))


async def sweep(seconds: float = 60.0) -> int:
    """Forget exports whose end never came to it: the secrets of those that have ended, or were never
    started, and are older than the grace period; how many."""
    deadline = time.monotonic() + seconds
    before = datetime.now(UTC) - timedelta(seconds=settings().orphan_grace_seconds)
    swept = 0
    async for name, saved in container.secret_store().names():
        id = name.removeprefix(_secret_name(""))
        if id == name or saved >= before:
            continue
        try:
            over = (await operations.get(id)).ended
        except NotFound:
            over = True
        if over:
            await _forget(id)
            swept += 1
        if time.monotonic() > deadline:
            break
    return swept


# --- what all of it needs ----------------------------------------------------------------------------


def _secret_name(id: str) -> str:
    return f"export-{id}"


async def _secret(operation: Operation) -> dict[str, str]:
    secret: dict[str, str] = orjson.loads(await container.secret_store().read(_secret_name(operation.id)))
    return secret


def _address(operation: Operation, secret: dict[str, str]) -> Address:
    given = operation.input
    return Address(given["uri"], given["container"], secret["connection"], secret["sas"])


def _deidentifier(operation: Operation, secret: dict[str, str]) -> Deidentifier | None:
    given = operation.input
    if given["options"] is None:
        return None
    from shared.dicom.confidentiality import options_of
    from shared.dicom.deidentify import Deidentifier, Pseudonyms

    key = bytes.fromhex(secret["key"])
    return Deidentifier(options_of(given["options"]), Pseudonyms(key), allow_burned_in=given["allowBurnedIn"])


@contextlib.asynccontextmanager
async def _opened(address: Address) -> AsyncIterator[Destination]:
    identity = container.credential() if address.uses_identity else None
    destination = destinations.open_destination(address, identity)
    try:
        yield destination
    finally:
        await destination.close()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
