"""Bulk update (the ancestor's extension): attributes of whole studies change, pixel data does not.

A step is a study. Each of its instances gets a new version, a few at a time; what is written is noted in
SQL, so that a step which is cut off goes on where it was. When there is one of every instance, a single
transaction makes them visible: nobody sees a study of which a part is changed, and one that cannot be
changed in every instance stays as it is. The version before the first update is kept as the original.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache

import orjson

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import BlobNotFound
from shared.dicom.attributes import Level
from shared.dicom.changes import Element, parse_update
from shared.dicom.identifiers import DEFAULT_PARTITION, check_partition
from shared.dicom.part10 import ParsedInstance
from shared.dicom.query_tags import TagSet, TagValues, all_values_of
from shared.errors import DependencyUnavailable, NotFound
from shared.operations.operation import SUCCEEDED, Unfinished
from shared.services import operations, packs, query_tags, retrieve, rewrite
from shared.services.operations import Json, Operation, OperationFailed, Page, Tally
from shared.services.packs import SeriesPacks
from shared.services.rewrite import NotChanged
from shared.services.store import cleanup_time, new_instance
from shared.sql import updates
from shared.sql.change_feed import timestamp
from shared.sql.engine import SnapshotConflict
from shared.sql.instances import PackMoved
from shared.sql.updates import Prepared, Waiting

ORIGIN, ORIGINAL = "update", "original"
"""``origin`` in the metadata of the blobs an update writes, and what beside it names the version that was
there before the first update."""

_BATCH = 16
_STUDIES_AT_ONCE = 2
_FILES_AT_ONCE = 8
_TURN_SECONDS = 2
_ROUNDS = 8
_PACK_ATTEMPTS = 6
_RUN_SECONDS = 2
_FORGOTTEN_AFTER = timedelta(days=30)


async def start(body: bytes, partition: str) -> Operation:
    """Start the update that the request's body asks for. Raises InvalidRequest that says what is wrong."""
    check_partition(partition)
    update = parse_update(body)
    id = uuid.uuid4().hex
    # Names of patients do not belong in Table Storage or messages, where the engine keeps its input.
    await container.blob_store().upload(names.OPERATIONS, names.changes_name(id), body, {})
    faults.point("update.requested")
    base = "" if partition == DEFAULT_PARTITION else f"partitions/{partition}/"
    input = {"partition": partition, "studies": list(update.studies)}
    return await operations.start("update", input, [f"{base}studies/{uid}" for uid in update.studies], id)


async def plan(operation: Operation, cursor: str) -> Page:
    """A step a study."""
    studies = operation.input["studies"]
    first = int(cursor or 0)
    stop = min(first + _STUDIES_A_PAGE, len(studies))
    steps = [[study] for study in studies[first:stop]]
    return Page(steps, str(stop) if stop < len(studies) else None, total=len(studies))


_STUDIES_A_PAGE = 25


async def step(operation: Operation, number: int, items: list[Json]) -> Tally:
    """Update studies; those that cannot be are named, with the reason."""
    changes = await _changes(operation)
    if changes is None:
        return Tally(skipped=len(items))  # this run comes after the end of the operation
    tally = Tally()
    for study in items:
        try:
            async with _turn():
                await _update(operation.id, operation.input["partition"], study, changes)
            tally += Tally(done=1)
        except NotChanged as error:
            await container.database().write(
                updates.abandon, operation.id, operation.input["partition"], study, cleanup_time()
            )
            tally += Tally(failed=1, errors=(f"Study {study} is unchanged: {error}",))
    return tally


async def finish(operation: Operation, tally: Tally) -> Json:
    """How many studies and instances were updated. From here on this operation updates nothing."""
    studies, instances = await container.database().write(updates.end, operation.id, cleanup_time())
    faults.point("update.ended")
    await container.blob_store().delete(names.OPERATIONS, names.changes_name(operation.id))
    results: dict[str, Json] = {"studyUpdated": studies, "instanceUpdated": instances}
    failed = len(operation.input["studies"]) - studies
    if operation.status == SUCCEEDED and failed:
        results |= {"studyFailed": failed, "errors": list(tally.errors)}
        raise OperationFailed(f"{failed} of {failed + studies} studies could not be updated.", results)
    if tally.failed:
        results |= {"studyFailed": tally.failed, "errors": list(tally.errors)}
    return results


async def _changes(operation: Operation) -> Sequence[Element] | None:
    """What the operation changes; None after its end."""
    name = names.changes_name(operation.id)
    try:
        chunks = [chunk async for chunk in container.blob_store().stream(names.OPERATIONS, name)]
    except BlobNotFound:
        return None
    return parse_update(b"".join(chunks)).changes


async def forget() -> None:
    """Forget what is left of updates of long ago: which studies they were done with, and requests whose
    operation never began."""
    before = datetime.now(UTC) - _FORGOTTEN_AFTER
    await container.database().write(updates.forget, timestamp(before))
    token = ""
    while True:
        page, token = await container.blob_store().list_page(names.OPERATIONS, token=token)
        for item in page:
            if item.modified < before and names.is_changes_name(item.name):
                await container.blob_store().delete(names.OPERATIONS, item.name)
        if not token:
            return


# --- a study -----------------------------------------------------------------------------------------


async def _update(operation: str, partition: str, study: str, changes: Sequence[Element]) -> None:
    """Update a study, unless it is done. Raises NotChanged where it cannot be."""
    run = _Run(operation, partition, study, changes)
    for _ in range(_ROUNDS):
        progress = await container.database().read(updates.progress, operation, partition, study)
        if progress.committed:
            return
        if not progress.instances:
            raise NotChanged("It does not exist.")
        await run.prepare(progress.waiting)
        faults.point("update.prepared")
        tags = await query_tags.refreshed()
        if tags.active:
            await _give_tags(operation, partition, study, tags)
        try:
            committed = await container.database().write(
                updates.commit, operation, partition, study, cleanup_time(), tags
            )
        except SnapshotConflict:
            continue  # something was stored, or replaced, meanwhile
        faults.point("update.committed")
        if not committed:
            raise NotChanged("It was deleted, or the update canceled.")
        return
    if run.missing:
        raise NotChanged(f"{run.missing}: Its file is missing.")
    raise DependencyUnavailable("The study keeps changing; try again later.")


async def _give_tags(operation: str, partition: str, study: str, tags: TagSet) -> None:
    """Note what the query tags have in the prepared versions of a study."""
    waiting = await container.database().read(updates.without_tags, operation, partition, study, tags.version)
    versions = {stored.key: stored.version for stored in waiting}
    found: dict[str, dict[Level, TagValues]] = {}
    try:
        async for key, document in retrieve.read_documents(waiting):
            found[versions[key]] = all_values_of(orjson.loads(document), tags)
    except NotFound:
        raise DependencyUnavailable(
            "The metadata of a series is being reorganised; try again later."
        ) from None
    await container.database().write(updates.give_tags, tags.version, found)


@asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    """Wait until few enough studies are worked on in this process; Unfinished where that takes long."""
    try:
        await asyncio.wait_for(_studies().acquire(), _TURN_SECONDS)
    except TimeoutError:
        raise Unfinished(_TURN_SECONDS) from None
    try:
        yield
    finally:
        _studies().release()


@cache
def _studies() -> asyncio.Semaphore:
    """A few at a time get on, where many at once would each lose what it has begun when the process dies."""
    return asyncio.Semaphore(_STUDIES_AT_ONCE)


@cache
def _slots() -> asyncio.Semaphore:
    """Files that steps of this process work on at once: each may hold some megabytes."""
    return asyncio.Semaphore(_FILES_AT_ONCE)


class _Run:
    """One run of the step of a study; its packs are its own, so that nobody reorganises them."""

    def __init__(self, operation: str, partition: str, study: str, changes: Sequence[Element]) -> None:
        self._operation = operation
        self._partition = partition
        self._study = study
        self._changes = changes
        self._packs = SeriesPacks({})
        self._deadline = time.monotonic() + _RUN_SECONDS
        self._last_version = ""
        self.missing = ""

    async def prepare(self, waiting: Sequence[Waiting]) -> None:
        """Write a version of each and note it.

        Raises NotChanged, and Unfinished where there is more to do than one run should: the next goes on.
        """
        for begin in range(0, len(waiting), _BATCH):
            if begin and time.monotonic() > self._deadline:
                raise Unfinished
            batch = [(one, self._version()) for one in waiting[begin : begin + _BATCH]]
            results = await asyncio.gather(
                *(self._rewrite(one, version) for one, version in batch), return_exceptions=True
            )
            faults.point("update.rewritten")
            done: list[tuple[Waiting, str, ParsedInstance]] = []
            for (one, version), result in zip(batch, results, strict=True):
                if isinstance(result, (BlobNotFound, NotFound)):
                    self.missing = f"Instance {one.stored.key.instance}"  # or it has just been deleted
                elif isinstance(result, BaseException):
                    raise result
                else:
                    done.append((one, version, result))
            if done:
                await self._note(done)

    def _version(self) -> str:
        """Versions sort as those they replace do: the last instance stored stays the last one."""
        while (version := names.new_version()) <= self._last_version:
            pass
        self._last_version = version
        return version

    async def _rewrite(self, one: Waiting, version: str) -> ParsedInstance:
        metadata = {"origin": ORIGIN, ORIGINAL: one.original}
        async with _slots():
            try:
                return await rewrite.rewrite(one.stored, version, self._changes, metadata)
            except NotChanged as error:
                raise NotChanged(f"Instance {one.stored.key.instance}: {error}") from error

    async def _note(self, done: Sequence[tuple[Waiting, str, ParsedInstance]]) -> None:
        blobs = container.blob_store()
        records = [packs.record_of(one.stored.key, version, parsed) for one, version, parsed in done]
        for _ in range(_PACK_ATTEMPTS):
            places = await packs.write_records(blobs, records, self._packs)
            faults.point("update.appended")
            prepared = [
                Prepared(new_instance(one.stored.key, version, parsed, places[version]), one.stored.version)
                for one, version, parsed in done
            ]
            try:
                await container.database().write(
                    updates.prepare,
                    self._operation,
                    self._partition,
                    self._study,
                    prepared,
                    frozenset(self._packs.fresh),
                    cleanup_time(),
                )
                return
            except PackMoved as moved:
                self._packs.moved(moved.packs)
        raise DependencyUnavailable("The metadata of a series is being reorganised; try again later.")
