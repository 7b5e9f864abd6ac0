"""Import: every DICOM file of a container, or of the inbox, stored as by STOW-RS; and what was refused.

An operation of type ``import``. Planning lists the container page by page; a step stores a few files with
one commit, records once in container ``operations`` what became of them, and only then deletes sources
where that is asked for. A step that comes again finds its record, or, in the blobs of what it had stored
already, that it was this step which stored them. Names of blobs may be patient data: they are in the record
and in the plan, never in a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from shared import container, faults
from shared.blobs import destination as addresses
from shared.blobs import names
from shared.blobs import source as sources
from shared.blobs.destination import Address
from shared.blobs.source import Source, SourceBlob, SourceBlobChanged
from shared.blobs.store import BlobItem, BlobNotFound
from shared.dicom import failure_reasons
from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey
from shared.errors import Conflict, DependencyUnavailable, InvalidRequest, NotFound
from shared.security.secrets import SecretNotFound
from shared.services import duplicates, operations, store
from shared.services.operations import Json, Operation, Page, Tally
from shared.settings import settings
from shared.sql import instances

TYPE = "import"

_PAGE = 250  # blobs of a listing: however long their names, they fit the steps of one page
_STEP_FILES = 50
_STEP_BYTES = 64 * 1024 * 1024
_STEP_JSON = 40 * 1024
_STEPS_IN_PROCESS = 4  # each holds a few blocks, and files that wait for their turn
_COMPARED_AT_ONCE = 8
_ROUNDS = 4
_DELETES_AT_ONCE = 8

STORED, REPLACED, DUPLICATE, SKIPPED, REFUSED = "stored", "replaced", "duplicates", "skipped", "refused"
_STATUSES = (STORED, REPLACED, DUPLICATE, SKIPPED, REFUSED)

_TAKEN = (failure_reasons.ALREADY_EXISTS, failure_reasons.BEING_CREATED)
_OTHER_CONTENT = "An instance with the same identifiers and other content is stored already."
_OTHER_FILE = "Another file of this import has the same identifiers and other content."
_CHANGED = "The blob was deleted or written anew while the import ran."
_ARCHIVE = "It is a Zip archive; its files are to be unpacked first."
_DIRECTORY = "It is a DICOMDIR, which lists files and is no instance."
_EMPTY = "It is empty."
_MEDIA_STORAGE_DIRECTORY = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![0-9.])")
_ENDED = "The import has ended."


# --- starting ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """``replace`` puts a file in the place of a stored instance with the same identifiers and other content;
    ``delete_sources`` removes the files that are stored now, once they are."""

    replace: bool = False
    delete_sources: bool = False


async def start(partition: str, where: dict[str, Any] | None, prefix: str, options: Options) -> Operation:
    """Start an import of the blobs whose names begin with ``prefix`` into ``partition``.

    ``where`` are the settings of a source of type azureblob; None is the inbox, whose files go to the
    default partition and are removed. Raises InvalidRequest where the source is malformed, does not exist or
    refuses to be read.
    """
    address = None if where is None else addresses.parse(where)
    if address is None and partition != DEFAULT_PARTITION:
        raise InvalidRequest(f"The inbox belongs to the partition {DEFAULT_PARTITION}.")
    if address is not None and container.blob_store().is_own(address.uri):
        raise InvalidRequest("The source is a container in which the server keeps its own data.")
    try:
        async with _opened(address) as source:
            await source.list_page(prefix, "", 1)
    except Conflict as error:
        raise InvalidRequest(str(error)) from None
    id = uuid.uuid4().hex
    input: dict[str, Any] = {
        "partition": partition,
        "prefix": prefix,
        "replace": options.replace,
        "deleteSources": options.delete_sources or address is None,
        "source": None,
    }
    if address is not None:
        secret = {"connection": address.connection, "sas": address.sas}
        input["source"] = {"uri": address.uri, "container": address.container}
        await container.secret_store().save(_secret_name(id), orjson.dumps(secret).decode())
        faults.point("import.secret_saved")
    try:
        return await operations.start(TYPE, input, [_report_path(partition, id)], id)
    except BaseException:
        with contextlib.suppress(DependencyUnavailable):  # the timer removes what is left
            await _forget(id)
        raise


def _report_path(partition: str, id: str) -> str:
    """Where the report is, below the base path."""
    path = f"import/{id}/report"
    return path if partition == DEFAULT_PARTITION else f"partitions/{partition}/{path}"


# --- planning ----------------------------------------------------------------------------------------


async def plan(operation: Operation, cursor: str) -> Page:
    """The next steps; ``cursor`` continues the listing."""
    address = await _address(operation)
    if address is _GONE:
        return Page([], None)
    async with _opened(address) as source:
        blobs, token = await source.list_page(operation.input["prefix"], cursor, _PAGE)
    return Page(_steps(blobs), token or None)


def _steps(blobs: Sequence[SourceBlob]) -> list[list[Json]]:
    """Steps of so many files and bytes; a larger file has one of its own."""
    steps: list[list[Json]] = []
    size = length = 0
    for blob in blobs:
        item = [blob.name, blob.etag, blob.size]
        needed = 6 * len(blob.name) + 100  # as JSON, all of it escaped
        full = steps and len(steps[-1]) == _STEP_FILES
        if not steps or full or size + blob.size > _STEP_BYTES or length + needed > _STEP_JSON:
            steps.append([])
            size = length = 0
        steps[-1].append(item)
        size += blob.size
        length += needed
    return steps


# --- a step ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a file: one of the statuses, and why it is not stored."""

    status: str
    reason: int | None = None
    message: str = ""


async def step(operation: Operation, number: int, items: list[Json]) -> Tally:
    """Store the files of a step. The first outcome that is recorded counts."""
    address = await _address(operation)
    if address is _GONE:
        return Tally(skipped=len(items), errors=(_ENDED,))
    blobs = [SourceBlob(*item) for item in items]
    async with _opened(address) as source, _turn():
        record = await _recorded(operation.id, number)
        if record is None:
            verdicts = await _Step(operation, number, blobs, source).run()
            faults.point("import.stored")
            record = await _record(operation.id, number, blobs, verdicts)
        faults.point("import.recorded")
        errors: tuple[str, ...] = ()
        if operation.input["deleteSources"]:
            errors = await _delete_sources(source, blobs, record)
    counts = record.counts
    return Tally(
        done=counts[STORED] + counts[REPLACED],
        failed=counts[REFUSED],
        skipped=counts[DUPLICATE] + counts[SKIPPED],
        errors=errors,
    )


class _Unreadable(Exception):
    """A file cannot be read to its end."""

    def __init__(self, index: int, verdict: Verdict) -> None:
        super().__init__("unreadable")
        self.index = index
        self.verdict = verdict


class _Step:
    """The files of one step, by index, on their way to a verdict each."""

    def __init__(
        self, operation: Operation, number: int, blobs: Sequence[SourceBlob], source: Source
    ) -> None:
        self._partition: str = operation.input["partition"]
        self._replace: bool = operation.input["replace"]
        self._import = f"import {operation.id}"
        self._cause = f"{self._import} {number}"
        self._blobs = blobs
        self._source = source
        self._verdicts: dict[int, Verdict] = {}
        self._claimed: set[InstanceKey] = set()

    async def run(self) -> list[Verdict]:
        """The verdict of each file, in order. Raises DependencyUnavailable; then the step comes again."""
        every = range(len(self._blobs))
        taken = await self._store(every, replace=False)
        for _ in range(_ROUNDS):
            wanted = await self._compare(taken)
            if not wanted:
                return [self._verdicts[index] for index in every]
            taken = await self._store(wanted, replace=self._replace)
        raise DependencyUnavailable("Instances are stored and deleted by others again and again.")

    # --- storing -----------------------------------------------------------------------------------

    async def _store(self, wanted: Sequence[int], replace: bool) -> dict[int, InstanceKey]:
        """Store files with one commit; those whose identifiers are taken are left without a verdict."""
        cause = f"{self._cause} {REPLACED}" if replace else self._cause
        while True:
            given: list[int] = []
            try:
                outcomes = await store.store(
                    self._files(wanted, given), self._partition, replace=replace, cause=cause
                )
                break
            except _Unreadable as error:
                self._verdicts[error.index] = error.verdict
        taken: dict[int, InstanceKey] = {}
        for index, outcome in zip(given, outcomes, strict=True):
            if outcome.failure is None:
                assert outcome.key is not None
                self._claimed.add(outcome.key)
                self._verdicts[index] = Verdict(REPLACED if replace else STORED)
            elif outcome.failure in _TAKEN and outcome.key is not None:
                taken[index] = outcome.key
            else:
                self._verdicts[index] = Verdict(REFUSED, outcome.failure, outcome.message)
        return taken

    async def _files(self, wanted: Sequence[int], given: list[int]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The files that can be opened and may be instances; the others get their verdict."""
        for index in wanted:
            if index in self._verdicts:
                continue
            chunks = self._chunks(index)
            first = await anext(chunks, b"")
            skipped = _no_instance(first)
            if skipped:
                self._verdicts[index] = Verdict(SKIPPED, message=skipped)
            else:
                given.append(index)
                async with contextlib.aclosing(_chained(first, chunks)) as chained:
                    yield chained
            await chunks.aclose()

    async def _chunks(self, index: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(self._source.stream(self._blobs[index], offset)) as stream:
                async for chunk in stream:
                    yield chunk
        except SourceBlobChanged:
            raise _Unreadable(index, Verdict(REFUSED, message=_CHANGED)) from None
        except Conflict as error:
            raise _Unreadable(index, Verdict(REFUSED, message=str(error))) from None

    # --- what is there already ---------------------------------------------------------------------

    async def _compare(self, taken: dict[int, InstanceKey]) -> list[int]:
        """Find out what holds the identifiers; those files that are to be stored nevertheless."""
        if not taken:
            return []
        known = await container.database().read(
            instances.find_existing, self._partition, list(taken.values())
        )
        causes = await self._causes(known.versions)
        for index, key in taken.items():  # what this step stored before it was cut off
            cause = causes.get(key, "")
            if key not in self._claimed and cause in (self._cause, f"{self._cause} {REPLACED}"):
                self._claimed.add(key)
                self._verdicts[index] = Verdict(REPLACED if cause.endswith(REPLACED) else STORED)
        slots = asyncio.Semaphore(_COMPARED_AT_ONCE)

        async def judge(index: int, key: InstanceKey) -> int | None:
            async with slots:
                version = known.versions.get(key)
                if version is None or key not in causes:
                    return index  # it has been deleted meanwhile
                return await self._judge(index, key, version, causes[key])

        open_ones = [(index, key) for index, key in taken.items() if index not in self._verdicts]
        wanted = await asyncio.gather(*(judge(index, key) for index, key in open_ones))
        return [index for index in wanted if index is not None]

    async def _causes(self, versions: dict[InstanceKey, str]) -> dict[InstanceKey, str]:
        """What stored each instance, empty where it was no import; those whose file is gone are left out."""
        slots = asyncio.Semaphore(_COMPARED_AT_ONCE)

        async def cause(key: InstanceKey, version: str) -> str | None:
            async with slots:
                try:
                    item = await container.blob_store().find(names.DICOM, names.file_name(key, version))
                except BlobNotFound:
                    return None
                return item.metadata.get("cause", "")

        found = await asyncio.gather(*(cause(key, version) for key, version in versions.items()))
        return {key: one for key, one in zip(versions, found, strict=True) if one is not None}

    async def _judge(self, index: int, key: InstanceKey, version: str, cause: str) -> int | None:
        """A verdict on a file whose identifiers another one has; None, or ``index`` if it replaces it."""
        try:
            same = await duplicates.has_content(
                names.file_name(key, version), self._chunks(index, duplicates.PREAMBLE)
            )
        except BlobNotFound:
            return index
        except _Unreadable as error:
            self._verdicts[index] = error.verdict
            return None
        if same:
            self._verdicts[index] = Verdict(DUPLICATE)
        elif key in self._claimed or cause.startswith(self._import):
            self._verdicts[index] = Verdict(REFUSED, failure_reasons.ALREADY_EXISTS, _OTHER_FILE)
        elif not self._replace:
            self._verdicts[index] = Verdict(REFUSED, failure_reasons.ALREADY_EXISTS, _OTHER_CONTENT)
        else:
            return index
        return None


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for chunk in rest:
        yield chunk


def _no_instance(first: bytes) -> str:
    """Why a file that begins with ``first`` is none to store, though nothing is wrong with it; or nothing."""
    if not first:
        return _EMPTY
    if first.startswith((b"PK\3\4", b"PK\5\6")):
        return _ARCHIVE
    if first[128:132] == b"DICM" and _MEDIA_STORAGE_DIRECTORY.search(first, 132, 512):
        return _DIRECTORY
    return ""


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


def _turn() -> asyncio.Semaphore:
    """Steps of this process take turns: many messages may come to it at once."""
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        _turns[loop] = asyncio.Semaphore(_STEPS_IN_PROCESS)
    return _turns[loop]


# --- what became of a step ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Record:
    """``counts`` by status; ``kept`` are the indexes of files that are not stored."""

    counts: dict[str, int]
    kept: frozenset[int]


async def _record(id: str, number: int, blobs: Sequence[SourceBlob], verdicts: Sequence[Verdict]) -> _Record:
    """Keep the outcome of a step unless another try was faster, and return what is kept.

    The blob's lines are those of the report, its metadata the counts.
    """
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in _STATUSES}
    kept = [index for index, verdict in enumerate(verdicts) if verdict.status in (SKIPPED, REFUSED)]
    lines = [_line(blobs[index], verdicts[index]) for index in kept]
    metadata = {status: str(count) for status, count in counts.items()}
    metadata["kept"] = ",".join(map(str, kept))
    blob = names.import_record(id, number)
    if await container.blob_store().create(names.OPERATIONS, blob, b"".join(lines), metadata):
        return _Record(counts, frozenset(kept))
    record = await _recorded(id, number)
    if record is None:
        raise DependencyUnavailable("The record of a step is gone.")
    return record


def _line(blob: SourceBlob, verdict: Verdict) -> bytes:
    line: dict[str, Any] = {"name": blob.name, "size": blob.size, "status": verdict.status}
    if verdict.reason is not None:
        line["failureReason"] = verdict.reason
    return orjson.dumps(line | {"message": verdict.message}) + b"\n"


async def _recorded(id: str, number: int) -> _Record | None:
    try:
        item = await container.blob_store().find(names.OPERATIONS, names.import_record(id, number))
    except BlobNotFound:
        return None
    kept = frozenset(int(index) for index in item.metadata.get("kept", "").split(",") if index)
    return _Record(_counts(item.metadata), kept)


def _counts(metadata: dict[str, str]) -> dict[str, int]:
    return {status: int(metadata.get(status, "0")) for status in _STATUSES}


async def _delete_sources(source: Source, blobs: Sequence[SourceBlob], record: _Record) -> tuple[str, ...]:
    """Delete the files of a step that are stored; a sentence where the source does not allow it."""
    slots = asyncio.Semaphore(_DELETES_AT_ONCE)

    async def delete(blob: SourceBlob) -> None:
        async with slots:
            await source.delete(blob)

    stored = [blob for index, blob in enumerate(blobs) if index not in record.kept]
    results = await asyncio.gather(*map(delete, stored), return_exceptions=True)
    faults.point("import.sources_deleted")
    for result in results:
        if isinstance(result, Conflict):
            return ("Sources that are stored could not be deleted: the source refuses.",)
        if isinstance(result, BaseException):
            raise result
    return ()


# --- the end, and the report -------------------------------------------------------------------------


async def finish(operation: Operation, tally: Tally) -> Json:
    """Add up the records and forget the source's secret."""
    totals = dict.fromkeys(_STATUSES, 0)
    async for item in _records(operation.id):
        for status, count in _counts(item.metadata).items():
            totals[status] += count
    await _forget(operation.id)
    # of steps that could not be brought to an end nothing is known
    totals["failed"] = max(0, tally.failed - totals[REFUSED])
    return totals


async def report(partition: str, id: str) -> AsyncIterator[bytes]:
    """Lines of JSON: every file that was not stored, and why, as far as the import has come.

    Raises NotFound where the partition has no such import.
    """
    operation = await operations.get(id)
    if operation.type != TYPE or operation.input["partition"] != partition:
        raise NotFound("There is no such import.")
    return _lines(operation.id)


async def _lines(id: str) -> AsyncIterator[bytes]:
    async for item in _records(id):
        if item.size:
            yield await container.blob_store().read(names.OPERATIONS, item.name, 0, item.size)


async def _records(id: str) -> AsyncIterator[BlobItem]:
    """The records of an operation, in the order of its steps."""
    token = ""
    while True:
        page, token = await container.blob_store().list_page(
            names.OPERATIONS, names.import_records(id), token
        )
        for item in page:
            yield item
        if not token:
            return


async def sweep(seconds: float = 60.0) -> int:
    """Remove reports of operations that are forgotten, and secrets of those that have ended or were never
    started; how many of both."""
    return await _sweep_secrets() + await _sweep_records(time.monotonic() + seconds)


async def _sweep_secrets() -> int:
    before = datetime.now(UTC) - timedelta(seconds=settings().orphan_grace_seconds)
    swept = 0
    async for name, saved in container.secret_store().names():
        id = name.removeprefix(_secret_name(""))
        if id == name or saved >= before or not await _is_over(id):
            continue
        await _forget(id)
        swept += 1
    return swept


async def _is_over(id: str) -> bool:
    try:
        return (await operations.get(id)).ended
    except NotFound:
        return True


async def _sweep_records(deadline: float) -> int:
    before = datetime.now(UTC) - timedelta(days=settings().operation_days + 1)
    state = container.state()
    token = await state.cursor("sweep-imports")
    swept = 0
    while True:
        page, token = await container.blob_store().list_page(names.OPERATIONS, token=token)
        for item in page:
            if names.is_import_record(item.name) and item.modified < before:
                await container.blob_store().delete(names.OPERATIONS, item.name)
                swept += 1
        await state.save_cursor("sweep-imports", token)
        if not token or time.monotonic() > deadline:
            return swept


# --- the source --------------------------------------------------------------------------------------


def _secret_name(id: str) -> str:
    return f"import-{id}"


async def _forget(id: str) -> None:
    await container.secret_store().delete(_secret_name(id))


_GONE = Address("", "")
"""Stands for the source of an import that has ended."""


async def _address(operation: Operation) -> Address | None:
    """The container of the source; None: the inbox."""
    given = operation.input["source"]
    if given is None:
        return None
    try:
        secret = orjson.loads(await container.secret_store().read(_secret_name(operation.id)))
    except SecretNotFound:
        return _GONE
    return Address(given["uri"], given["container"], secret["connection"], secret["sas"])


@contextlib.asynccontextmanager
async def _opened(address: Address | None) -> AsyncIterator[Source]:
    if address is None:
        yield Source(container.blob_store().client_of(names.INBOX))
        return
    source = sources.open_source(address, container.credential() if address.uses_identity else None)
    try:
        yield source
    finally:
        await source.close()
