"""Reading the change feed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared import container
from shared.blobs import names
from shared.blobs.store import BlobNotFound
from shared.sql import change_feed
from shared.sql.change_feed import Entry

_READS_AT_ONCE = 8
_MOVES = 3


@dataclass(frozen=True, slots=True)
class Change:
    """An entry and, where asked for and existing, the metadata document with unresolved BulkDataURI."""

    entry: Entry
    metadata: bytes | None


async def read(
    offset: int, limit: int, start_time: datetime | None, end_time: datetime | None, include_metadata: bool
) -> list[Change]:
    """Entries in order of Sequence; see ``shared.sql.change_feed.read`` for offset and window."""
    start = change_feed.timestamp(start_time) if start_time else None
    end = change_feed.timestamp(end_time) if end_time else None
    entries = await container.database().read(change_feed.read, offset, limit, start, end)
    return await _with_metadata(entries, include_metadata)


async def latest(include_metadata: bool) -> Change | None:
    """The newest entry, or None in an empty feed."""
    entry = await container.database().read(change_feed.latest)
    return (await _with_metadata([entry], include_metadata))[0] if entry else None


async def _with_metadata(entries: Sequence[Entry], include: bool) -> list[Change]:
    slots = asyncio.Semaphore(_READS_AT_ONCE)

    async def complete(entry: Entry) -> Change:
        if not include or not entry.pack:
            return Change(entry, None)
        async with slots:
            return Change(entry, await _document(entry))

    return list(await asyncio.gather(*(complete(entry) for entry in entries)))


async def _document(entry: Entry) -> bytes | None:
    """The document of the instance that has the entry's identifiers, from wherever a clean-up moved it."""
    for _ in range(_MOVES):
        key = entry.key
        name = names.pack_name(key.partition, key.study, key.series, entry.pack)
        try:
            return await container.blob_store().read(
                names.METADATA, name, entry.document_offset, entry.document_length
            )
        except BlobNotFound:
            (entry,) = await container.database().read(change_feed.read, entry.sequence - 1, 1, None, None)
            if not entry.pack:
                break
    return None
