"""Indexing of files that are in container ``dicom`` already: for the blob trigger and the reconciliation.

Idempotent on the blob name: a version that is indexed, waits for clean-up or was ever committed is left
alone, so the trigger and the HTTP path may come in any order and any number of times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import BlobItem, BlobNotFound
from shared.dicom import failure_reasons
from shared.dicom.identifiers import InstanceKey
from shared.dicom.part10 import ParsedInstance, Part10Parser
from shared.errors import DependencyUnavailable, InvalidInstance, without_message
from shared.services import duplicates, store, update
from shared.services.packs import SeriesPacks
from shared.settings import settings
from shared.sql import instances
from shared.sql.change_feed import timestamp

log = logging.getLogger(__name__)

_READS_AT_ONCE = 8
_CLOCKS_DIFFER = timedelta(minutes=1)

ParsedFile = tuple[InstanceKey, str, ParsedInstance]
"""Key, version and content of a file in container ``dicom``."""


class Ingested(Enum):
    """What became of a file."""

    INDEXED = "it is in the index and the change feed now"
    KNOWN = "it was there before"
    IN_FLIGHT = "a store that may still be running has just uploaded it"
    DUPLICATE = "another version has its identifiers"
    OVERTAKEN = "its store was never committed, and the instance has been stored or deleted since"
    REFUSED = "it is no instance that could be stored; it is in inbox-failed"
    FAILED = "an unexpected failure, see the log"
    GONE = "there is no such blob (any more)"


async def ingest(name: str) -> Ingested:
    """Index the blob ``name`` of container ``dicom`` unless there is a reason not to.

    A file dropped by somebody else under a proper name is indexed; a fresh upload of the store itself
    is left to the request that made it, and after the grace period healed or removed by
    :func:`reconcile`. A file whose name or content is wrong moves to ``inbox-failed``.
    """
    parsed_name = names.parse_file_name(name)
    if parsed_name is None:
        return await _refuse(name, "The blob's name is not that of an instance.")
    key, version = parsed_name
    with_version = await container.database().read(instances.known_files, [version])
    if (key, version) in with_version:
        return Ingested.KNOWN
    try:
        item = await container.blob_store().find(names.DICOM, name)
    except BlobNotFound:
        return Ingested.GONE
    if _is_ours(item) and _age(item) < settings().orphan_grace_seconds:
        return Ingested.IN_FLIGHT
    if (key, version) in await container.database().read(instances.committed_files, [version]):
        return Ingested.KNOWN
    existing = await container.database().read(instances.find_existing, key.partition, [key])
    if key in existing.versions:
        return Ingested.KNOWN if existing.versions[key] == version else Ingested.DUPLICATE
    if _is_ours(item) and (_is_of_update(item) or await _is_overtaken(key, version)):
        return Ingested.OVERTAKEN
    try:
        parsed = await parse_file(name, key)
    except BlobNotFound:
        return Ingested.GONE
    except InvalidInstance as error:
        return await _refuse(name, str(error))
    if with_version or not _fit_as_they_are(version, parsed):
        return await _store_anew(name, key)
    series_packs = SeriesPacks(dict(existing.packs))
    stored = await store.commit(
        container.blob_store(), [(key, version, parsed)], key.partition, series_packs, False
    )
    return Ingested.INDEXED if stored[key] else Ingested.DUPLICATE


async def _is_overtaken(key: InstanceKey, version: str) -> bool:
    """Whether the instance has a history since a store of it was cut off.

    Its client was told to try again, did so, and deleted the instance afterwards: then what the first
    attempt left must not bring it back. Clocks may differ by a minute; a store that was never
    acknowledged may be dropped, a deleted instance may not return.
    """
    moment = datetime.fromtimestamp(names.version_time(version), UTC) - _CLOCKS_DIFFER
    return await container.database().read(instances.changed_since, key, timestamp(moment))


def _fit_as_they_are(version: str, parsed: ParsedInstance) -> bool:
    """Whether a file can stay under its name: others may give every file the version ``1``, and a preamble
    that is not zero may hide an executable (PS3.10 §7.5)."""
    return parsed.preamble_is_zero and names.version_time(version) > 0


async def parse_file(name: str, key: InstanceKey) -> ParsedInstance:
    """Parse a file in ``dicom``. Raises BlobNotFound, and InvalidInstance also where it is not ``key``."""
    parser = Part10Parser()
    async for chunk in container.blob_store().stream(names.DICOM, name):
        parser.feed(chunk)
    parsed = parser.close()
    if store.key_of(parsed, key.partition) != key:
        raise InvalidInstance(
            "The file's identifiers are not those of its blob name.", failure_reasons.VALIDATION_FAILURE
        )
    return parsed


async def _store_anew(name: str, key: InstanceKey) -> Ingested:
    """Store a copy under a version of our own and without a preamble, and delete the original."""
    (outcome,) = await store.store(_one_file(name), key.partition)
    if outcome.failure in (failure_reasons.ALREADY_EXISTS, failure_reasons.BEING_CREATED):
        return Ingested.DUPLICATE
    if outcome.failure is not None:
        return await _refuse(name, outcome.message)
    faults.point("ingest.stored_anew")
    await container.blob_store().delete(names.DICOM, name)
    return Ingested.INDEXED


async def _one_file(name: str) -> AsyncIterator[AsyncIterator[bytes]]:
    yield container.blob_store().stream(names.DICOM, name)


async def _refuse(name: str, reason: str) -> Ingested:
    """Move a file from ``dicom`` to ``inbox-failed``: REFUSED, or GONE."""
    now = timestamp(datetime.now(UTC))
    try:
        await container.blob_store().find(names.DICOM, name)
        await container.state().record_inbox_failure(name, failure_reasons.VALIDATION_FAILURE, reason, now)
        faults.point("ingest.recorded")
        await container.blob_store().move_to(
            name, names.DICOM, names.INBOX_FAILED, {"reason": reason, "time": now}
        )
    except BlobNotFound:
        return Ingested.GONE
    return Ingested.REFUSED


def _is_ours(item: BlobItem) -> bool:
    return item.metadata.get("origin") == store.OURS["origin"] or _is_of_update(item)


def _is_of_update(item: BlobItem) -> bool:
    """Whether an update has written it: what that has not committed itself must not come into the index."""
    return item.metadata.get("origin") == update.ORIGIN


def _age(item: BlobItem) -> float:
    return time.time() - item.modified.timestamp()


# --- reconciliation ----------------------------------------------------------------------------------


async def reconcile(seconds: float = 240.0) -> dict[Ingested, int]:
    """Walk over container ``dicom``: index what no trigger indexed, remove what nothing refers to.

    Goes on where the last call stopped and for about ``seconds``; blobs younger than the grace period
    are left alone. Returns how many files met which end.
    """
    deadline = time.monotonic() + seconds
    state = container.state()
    token = await state.cursor("reconcile")
    counts = dict.fromkeys(Ingested, 0)
    while True:
        page, token = await container.blob_store().list_page(names.DICOM, token=token)
        for result in await _reconcile_page(page):
            counts[result] += 1
        await state.save_cursor("reconcile", token)
        if not token or time.monotonic() > deadline:
            return counts


async def _reconcile_page(page: Sequence[BlobItem]) -> list[Ingested]:
    grace = settings().orphan_grace_seconds
    old = [(item, names.parse_file_name(item.name)) for item in page if _age(item) >= grace]
    versions = {file[1] for _, file in old if file is not None}
    known = await container.database().read(instances.known_files, versions)
    results = []
    for item, file in old:
        if file in known:
            continue
        try:
            results.append(await _reconcile_one(item))
        except DependencyUnavailable:
            raise
        except Exception as error:  # a bug that one file shows must not keep the rest from being looked at
            log.error("A blob in dicom could not be handled: %s", without_message(error))
            results.append(Ingested.FAILED)
    return results


async def _reconcile_one(item: BlobItem) -> Ingested:
    """An old blob that the index does not know: index it, or remove it where it must not come back."""
    result = await ingest(item.name)
    file = names.parse_file_name(item.name)
    if file is None or result not in (Ingested.KNOWN, Ingested.DUPLICATE, Ingested.OVERTAKEN):
        return result
    if file in await container.database().read(instances.known_files, [file[1]]):
        return Ingested.KNOWN  # committed since the page was looked up
    # What is KNOWN and yet not in the index was committed once: its clean-up was cut off. What is ours is of
    # a store that was refused or is over. Of others' files only a copy of the stored one may go.
    if (
        result is not Ingested.DUPLICATE
        or _is_ours(item)
        or await duplicates.is_stored(names.DICOM, item.name, file[0])
    ):
        await container.blob_store().delete(names.DICOM, item.name)
        return result
    return await _refuse(item.name, "Another version of the instance is stored already.")


async def parse_files(blobs: Sequence[str]) -> list[ParsedFile]:
    """Parse several files at once; those that could not be indexed as they are are left out."""
    slots = asyncio.Semaphore(_READS_AT_ONCE)

    async def parse(name: str) -> ParsedFile | None:
        parsed_name = names.parse_file_name(name)
        if parsed_name is None:
            return None
        key, version = parsed_name
        async with slots:
            with suppress(BlobNotFound, InvalidInstance):
                parsed = await parse_file(name, key)
                return (key, version, parsed) if _fit_as_they_are(version, parsed) else None
        return None

    return [file for file in await asyncio.gather(*map(parse, blobs)) if file is not None]
