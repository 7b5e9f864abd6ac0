"""Frames that took time to make, kept in container ``cache``: transcoded ones and rendered images.

Nothing depends on what is kept. An entry that is missing, damaged or out of reach is made again, and one
that cannot be written is not. An entry is written by one request, so it is whole or not there, and begins
with a digest of its name and its bytes: what was cut, changed or moved is not taken for it.

After a clean-up no byte of a deleted version is left, entries included. A request that found the instance
before its delete may still write one; see :func:`_keep`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha256
from posixpath import commonpath

from shared import container, faults, telemetry
from shared.blobs import names
from shared.blobs.store import BlobItem, BlobNotFound, ContainerMissing
from shared.errors import DependencyUnavailable, without_message
from shared.settings import settings
from shared.sql import instances
from shared.sql.instances import Deleted, StoredInstance

log = logging.getLogger(__name__)

_REVISION = 1
"""Part of every name; to be raised when the same request would be answered with other bytes."""

_DIGEST = 32
_LARGEST = 63 * 1024 * 1024
_UNWRITTEN = 16 * 1024 * 1024
_DELETES_AT_ONCE = 16
_FILL = 0.9

_making: dict[str, asyncio.Task[bytes]] = {}
_writing: dict[asyncio.Task[None], int] = {}


async def obtain(
    stored: StoredInstance, content: str, make: Callable[[], Awaitable[bytes]], *, keep: bool = True
) -> bytes:
    """What ``content`` names: as it is kept, or else by ``make``.

    Whoever asks while it is read, made or written gets the same bytes, or the same exception of ``make``.
    It is written after the answer, unless ``keep`` is off or it is too large.
    """
    name = names.cached_name(stored.key, stored.version, f"{_REVISION}/{content}")
    task = _making.get(name)
    if task is None:
        keep = keep and bool(settings().cache_bytes)
        task = asyncio.create_task(_obtain(stored, name, make, keep))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # none may be waiting
        _making[name] = task
    return await asyncio.shield(task)


async def _obtain(
    stored: StoredInstance, name: str, make: Callable[[], Awaitable[bytes]], keep: bool
) -> bytes:
    writes = False
    began = time.monotonic()
    try:
        kept = await _read(name) if keep else None
        telemetry.add(telemetry.CACHE_READS, int(keep), result="miss" if kept is None else "hit")
        if kept is not None:
            return kept
        data = await make()
        writes = keep and len(data) <= _LARGEST and _may_wait(len(data))
        if writes:
            writing = asyncio.create_task(_keep(stored, name, data, began))
            _writing[writing] = len(data)
            writing.add_done_callback(_writing.pop)
        return data
    finally:
        if not writes:
            del _making[name]


def _may_wait(size: int) -> bool:
    """Whether the bytes that wait to be written leave room for ``size`` more."""
    return not _writing or sum(_writing.values()) + size <= _UNWRITTEN


async def _read(name: str) -> bytes | None:
    try:
        blob = await container.blob_store().read_whole(names.CACHE, name)
    except (BlobNotFound, DependencyUnavailable):
        return None
    data = blob[_DIGEST:]
    return data if blob[:_DIGEST] == _digest(name, data) else None


def _digest(name: str, data: bytes) -> bytes:
    hashed = sha256(name.encode())
    hashed.update(b"\0")
    hashed.update(data)
    return hashed.digest()


async def _keep(stored: StoredInstance, name: str, data: bytes, began: float) -> None:
    """Write an entry, and take it back where the clean-up of its version may be over.

    A clean-up comes no sooner than the clean-up delay after the delete, and the instance was found before
    that; so an entry that is written well within the delay is there when the clean-up looks. Later ones
    ask the index afterwards: it knows of a delete before any clean-up does.
    """
    try:
        faults.point("cache.writing")
        await container.blob_store().upload(names.CACHE, name, _digest(name, data) + data, {})
        faults.point("cache.written")
        late = time.monotonic() - began >= settings().cleanup_delay_seconds / 2
        if late and not await _indexed({(stored.key, stored.version)}):
            await container.blob_store().delete(names.CACHE, name)
    except Exception as error:
        log.warning("A frame was not kept: %s", without_message(error))
    finally:
        del _making[name]


async def _indexed(files: set[instances.File]) -> set[instances.File]:
    versions = {version for _, version in files}
    return files & await container.database().read(instances.indexed_files, versions)


async def written() -> None:
    """Wait until nothing is being written."""
    await asyncio.gather(*_writing, return_exceptions=True)


# --- removal -----------------------------------------------------------------------------------------


async def remove(deleted: Sequence[Deleted]) -> None:
    """Delete what was made from deleted versions, best of one series."""
    files = {(one.key, one.version) for one in deleted}
    common = commonpath([names.cached_prefix(*file) for file in files])
    async for page in _pages(common):
        await _delete([item for item in page if names.parse_cached_name(item.name) in files])


async def evict(seconds: float = 240.0) -> int:
    """Delete entries of versions that are no more, then the oldest ones until the others are at most
    ``DICOM_CACHE_BYTES``; how many.

    Two listings, so that memory does not grow with the number of entries: one adds up their bytes by age,
    the other deletes.
    """
    deadline = time.monotonic() + seconds
    bytes_of: Counter[int] = Counter()
    count = 0
    async for page in _pages():
        gone = await _without_instance(page)
        await _delete(gone)
        count += len(gone)
        dead = {item.name for item in gone}
        for item in page:
            bytes_of[_minute(item)] += 0 if item.name in dead else item.size
        if time.monotonic() > deadline:
            break
    if bytes_of.total() <= settings().cache_bytes:
        return count
    excess = bytes_of.total() - round(settings().cache_bytes * _FILL)
    doomed: dict[int, int] = {}  # bytes to delete by age
    for minute in sorted(bytes_of):
        doomed[minute] = min(bytes_of[minute], excess)
        excess -= doomed[minute]
    async for page in _pages():
        chosen: list[BlobItem] = []
        for item in page:
            if doomed.get(_minute(item), 0) > 0:
                doomed[_minute(item)] -= item.size
                chosen.append(item)
        await _delete(chosen)
        count += len(chosen)
        if time.monotonic() > deadline:
            break
    return count


async def _without_instance(page: Sequence[BlobItem]) -> list[BlobItem]:
    files = {item.name: names.parse_cached_name(item.name) for item in page}
    indexed = await _indexed({file for file in files.values() if file})
    return [item for item in page if files[item.name] not in indexed]


def _minute(item: BlobItem) -> int:
    return int(item.modified.timestamp()) // 60


async def _pages(prefix: str = "") -> AsyncIterator[list[BlobItem]]:
    token = ""
    while True:
        try:
            page, token = await container.blob_store().list_page(names.CACHE, prefix, token)
        except ContainerMissing:  # nothing was ever kept
            return
        if page:
            yield page
        if not token:
            return


async def _delete(items: Sequence[BlobItem]) -> None:
    slots = asyncio.Semaphore(_DELETES_AT_ONCE)

    async def delete(item: BlobItem) -> None:
        async with slots:
            await container.blob_store().delete(names.CACHE, item.name)

    await asyncio.gather(*map(delete, items))
