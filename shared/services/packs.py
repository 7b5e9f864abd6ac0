"""Metadata packs: where the metadata documents of a series live.

A record in a pack is the document (DICOM JSON), followed by the index of its bulk data (a JSON object
``path -> [vr, offset, length, encapsulated]``) and the table of its frames (see ``shared/dicom/frames.py``).
The documents of a series share one append blob, so that its metadata reads in one or two requests however
the instances arrived; a record too large for one append has a blob of its own, named after its version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import APPEND_LIMIT, BLOCK, BlobStore, PackFull, PackMissing
from shared.dicom.identifiers import InstanceKey
from shared.dicom.part10 import BulkData, ParsedInstance
from shared.errors import DependencyUnavailable
from shared.sql import instances
from shared.sql.instances import Place

_APPEND_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class Record:
    """What a pack keeps of one instance."""

    key: InstanceKey
    version: str
    document: bytes
    bulkdata: bytes
    frames: bytes

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return len(self.document) + len(self.bulkdata) + len(self.frames)


def record_of(key: InstanceKey, version: str, parsed: ParsedInstance) -> Record:
    """The record of a parsed file."""
    table = parsed.frames.table
    return Record(key, version, parsed.document, _bulkdata_index(parsed.bulkdata), table)


def _bulkdata_index(bulkdata: Sequence[BulkData]) -> bytes:
    return orjson.dumps({b.path: [b.vr, b.offset, b.length, b.encapsulated] for b in bulkdata})


def bulkdata_entry(index: bytes, path: str) -> BulkData | None:
    """The entry of ``path`` in an index read from a pack."""
    entry = orjson.loads(index).get(path)
    return BulkData(path, *entry) if entry is not None else None


@dataclass
class SeriesPacks:
    """The packs a request writes to: ``current`` by (study, series), ``fresh`` those it made itself."""

    current: dict[tuple[str, str], str]
    fresh: set[str] = field(default_factory=set)

    def moved(self, packs: dict[tuple[str, str], str | None]) -> None:
        """Take note of what PackMoved says."""
        for series, pack in packs.items():
            if pack is None:
                self.current.pop(series, None)
            else:
                self.current[series] = pack


async def write_records(blobs: BlobStore, records: Sequence[Record], packs: SeriesPacks) -> dict[str, Place]:
    """Append ``records`` to the packs of their series; the place of each, by version.

    Series that have no pack get one. One append a series where the records fit.
    """
    by_series: dict[tuple[str, str], list[Record]] = {}
    places: dict[str, Place] = {}
    alone: list[Record] = []
    for record in records:
        if record.size > APPEND_LIMIT:
            alone.append(record)
        else:
            by_series.setdefault((record.key.study, record.key.series), []).append(record)
    written = await asyncio.gather(
        *(_write_alone(blobs, record) for record in alone),
        *(_write_series(blobs, group, packs) for group in by_series.values()),
    )
    for places_of_one in written:
        places |= places_of_one
    return places


async def _write_alone(blobs: BlobStore, record: Record) -> dict[str, Place]:
    key = record.key
    name = names.pack_name(key.partition, key.study, key.series, record.version)
    data = record.document + record.bulkdata + record.frames
    count = 0
    for start in range(0, len(data), BLOCK):
        await blobs.stage_block(names.METADATA, name, count, data[start : start + BLOCK])
        count += 1
    await blobs.commit_blocks(names.METADATA, name, count, {})
    return {record.version: _place(record, record.version, 0)}


async def _write_series(blobs: BlobStore, records: Sequence[Record], packs: SeriesPacks) -> dict[str, Place]:
    places: dict[str, Place] = {}
    batch: list[Record] = []
    size = 0
    for record in records:
        if size + record.size > APPEND_LIMIT:
            places |= await _append(blobs, batch, packs)
            batch, size = [], 0
        batch.append(record)
        size += record.size
    return places | await _append(blobs, batch, packs)


async def _append(blobs: BlobStore, records: Sequence[Record], packs: SeriesPacks) -> dict[str, Place]:
    key = records[0].key
    series = key.study, key.series
    data = b"".join(part for r in records for part in (r.document, r.bulkdata, r.frames))
    for _ in range(_APPEND_ATTEMPTS):
        if series not in packs.current:
            packs.current[series] = names.new_version()
            packs.fresh.add(packs.current[series])
            await blobs.create_pack(names.pack_name(key.partition, *series, packs.current[series]))
            faults.point("store.pack_created")
        pack = packs.current[series]
        try:
            offset = await blobs.append(names.pack_name(key.partition, *series, pack), data)
        except (PackFull, PackMissing):
            packs.moved({series: await seal_pack(blobs, key.partition, *series, pack)})
            continue
        places: dict[str, Place] = {}
        for record in records:
            places[record.version] = _place(record, pack, offset)
            offset += record.size
        return places
    raise DependencyUnavailable("The metadata of a series is being reorganised; try again later.")


async def seal_pack(blobs: BlobStore, partition: str, study: str, series: str, pack: str) -> str | None:
    """Give the series another pack in the place of ``pack``, if it still has that; the pack that takes
    documents from now on, or None where there is no such series.

    Stores that appended to the old pack find out when they commit, and append again. The new one is made
    before the index names it, so a pack that is missing is one that was sealed and deleted: it must never
    be made again, or a reader that found its place before would read other bytes there.
    """
    new = names.new_version()
    name = names.pack_name(partition, study, series, new)
    await blobs.create_pack(name)
    current = await container.database().write(instances.move_pack, partition, study, series, pack, new)
    if current != new:
        await blobs.delete(names.METADATA, name)
    return current


def _place(record: Record, pack: str, offset: int) -> Place:
    return Place(pack, offset, len(record.document), len(record.bulkdata), len(record.frames))
