"""Clean-up: after it no byte of a deleted instance is left, and none that nothing refers to.

Files are deleted; a pack of metadata that holds dead documents is copied without them. Stores may append
to the pack meanwhile, so it is sealed first: from then on no commit can refer to it (see PackMoved).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import APPEND_LIMIT, BlobItem, BlobNotFound, PackFull, PackMissing
from shared.errors import DependencyUnavailable
from shared.services import frame_cache, packs
from shared.settings import settings
from shared.sql import instances
from shared.sql.change_feed import timestamp
from shared.sql.instances import Deleted, PackRecord, Place

log = logging.getLogger(__name__)

_BATCH = 500
_RETRY_AFTER = timedelta(minutes=5)
_COMPACTIONS = 5
_DELETES_AT_ONCE = 8


async def clean_deleted(seconds: float = 240.0) -> int:
    """Remove the bytes of deleted and replaced versions whose time has come; how many versions.

    What fails is tried again later; a crash anywhere leaves work that the next call finds again.
    """
    deadline = time.monotonic() + seconds
    cleaned = 0
    while time.monotonic() < deadline:
        now = timestamp(datetime.now(UTC))
        due = await container.database().read(instances.due_deletions, now, _BATCH)
        if not due:
            break
        done = await _clean_batch(due)
        cleaned += done
        if not done:
            break
    return cleaned


async def _clean_batch(due: Sequence[Deleted]) -> int:
    slots = asyncio.Semaphore(_DELETES_AT_ONCE)

    async def remove_file(deleted: Deleted) -> None:
        async with slots:
            await container.blob_store().delete(names.DICOM, names.file_name(deleted.key, deleted.version))

    by_pack: dict[tuple[str, str, str, str], list[Deleted]] = {}
    for deleted in due:
        key = deleted.key
        by_pack.setdefault((key.partition, key.study, key.series, deleted.pack), []).append(deleted)
    done = 0
    for pack, members in by_pack.items():
        versions = [deleted.version for deleted in members]
        try:
            await asyncio.gather(*map(remove_file, members))
            await frame_cache.remove(members)
            faults.point("cleanup.files_deleted")
            await compact(*pack)
            await container.database().write(instances.finish_deletions, versions)
            done += len(versions)
        except DependencyUnavailable as error:
            log.warning("Clean-up of %d versions failed, to be tried again: %s", len(versions), error)
            later = timestamp(datetime.now(UTC) + _RETRY_AFTER)
            await container.database().write(instances.postpone_deletions, versions, later)
    return done


async def compact(partition: str, study: str, series: str, pack: str) -> None:
    """Leave no dead byte in a pack: delete it, or copy its living documents to the series' current one.

    Any number of these and of stores may run at once. What holds: only the current pack of a series gets
    new references, be it by a store or by a copy, and a pack is deleted when it is not current and nothing
    refers to it. Raises DependencyUnavailable when others keep moving what this one moves.
    """
    of_series = partition, study, series
    for _ in range(_COMPACTIONS):
        name = names.pack_name(*of_series, pack)
        live = await _live(*of_series, pack)
        try:
            size = (await container.blob_store().find(names.METADATA, name)).size
        except BlobNotFound:
            return
        if live and sum(_length(s) for s in live) == size:
            return
        target = await _seal(*of_series, pack)
        faults.point("cleanup.pack_sealed")
        live = await _live(*of_series, pack)
        moved = await _move(live, *of_series, pack, target) if live and target else len(live)
        faults.point("cleanup.pack_copied")
        if await _live(*of_series, pack):
            continue  # the target was sealed meanwhile
        await container.blob_store().delete(names.METADATA, name)
        faults.point("cleanup.pack_deleted")
        if moved == len(live) or not target:
            return
        pack = target  # something was deleted while it was copied
    raise DependencyUnavailable("A pack of metadata is being reorganised by others; try again later.")


async def _live(partition: str, study: str, series: str, pack: str) -> list[PackRecord]:
    return await container.database().read(instances.find_records, partition, study, series, pack)


async def _seal(partition: str, study: str, series: str, pack: str) -> str | None:
    """The pack that takes documents of the series from now on, never ``pack``; None: no such series."""
    current = await container.database().read(instances.pack_of_series, partition, study, series)
    if current == pack:
        return await packs.seal_pack(container.blob_store(), partition, study, series, pack)
    return current


async def _move(
    live: Sequence[PackRecord], partition: str, study: str, series: str, pack: str, target: str
) -> int:
    """Copy records to ``target`` and point the index there; how many instances that moved."""
    moved = 0
    batch: list[PackRecord] = []
    size = 0
    for stored in [*live, None]:
        if batch and (stored is None or size + _length(stored) > APPEND_LIMIT):
            moved += await _move_batch(batch, partition, study, series, pack, target)
            batch, size = [], 0
        if stored is not None:
            batch.append(stored)
            size += _length(stored)
    return moved


async def _move_batch(
    batch: Sequence[PackRecord], partition: str, study: str, series: str, pack: str, target: str
) -> int:
    blobs = container.blob_store()
    source = names.pack_name(partition, study, series, pack)
    try:
        records = [await blobs.read(names.METADATA, source, s.place.offset, _length(s)) for s in batch]
        offset = await blobs.append(names.pack_name(partition, study, series, target), b"".join(records))
    except BlobNotFound:
        return 0  # another clean-up was faster
    except (PackFull, PackMissing):
        await packs.seal_pack(blobs, partition, study, series, target)
        return 0
    moves = []
    for stored, record in zip(batch, records, strict=True):
        place = stored.place
        moved = Place(target, offset, place.document_length, place.bulkdata_length, place.frames_length)
        moves.append((stored.version, place.pack, moved))
        offset += len(record)
    faults.point("cleanup.pack_appended")
    return await container.database().write(instances.relocate, partition, study, series, moves)


def _length(stored: PackRecord) -> int:
    place = stored.place
    return place.document_length + place.bulkdata_length + place.frames_length


async def sweep_packs(seconds: float = 240.0) -> int:
    """Walk over container ``metadata`` and compact packs that hold bytes nobody refers to; how many.

    Goes on where the last call stopped; packs written to within the grace period are left alone.
    """
    deadline = time.monotonic() + seconds
    state = container.state()
    token = await state.cursor("sweep-packs")
    compacted = 0
    while True:
        page, token = await container.blob_store().list_page(names.METADATA, token=token)
        for item in await _with_dead_bytes(page):
            parsed = names.parse_pack_name(item.name)
            if parsed is not None:
                await compact(*parsed)
                compacted += 1
        await state.save_cursor("sweep-packs", token)
        if not token or time.monotonic() > deadline:
            return compacted


async def _with_dead_bytes(page: Sequence[BlobItem]) -> list[BlobItem]:
    before = time.time() - settings().orphan_grace_seconds
    old = [(item, names.parse_pack_name(item.name)) for item in page if item.modified.timestamp() <= before]
    wanted = sorted({parsed[3] for _, parsed in old if parsed is not None})
    used = await container.database().read(instances.referenced_bytes, wanted)
    return [item for item, parsed in old if parsed and (not item.size or used.get(parsed[3]) != item.size)]
