"""Rebuild an empty SQL database from the blobs alone: ``python3 dev.py reindex``.

The files in container ``dicom`` are the truth. Of several versions of an instance the newest is indexed, and
the one that its blob's metadata name as the original is its original; metadata packs are written anew and the
old ones are left to the clean-up. The change feed gets a ``create`` for every instance. What was deleted or
replaced so shortly before that its bytes are still there cannot be told from what was not; files that were
never indexed are left to the reconciliation.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from shared import container
from shared.blobs import names
from shared.blobs.store import BlobItem
from shared.errors import Conflict
from shared.services import ingest, packs, query_tags, store, update
from shared.services.packs import SeriesPacks
from shared.sql import instances, updates

_BATCH = 50


async def reindex(progress: Callable[[int], None] = lambda done: None) -> int:
    """Index every file; the number of instances. Raises Conflict unless the database is empty.

    A run that was cut off is repeated on a new, empty database. ``progress`` is called with the number
    of instances so far.
    """
    if await container.database().read(instances.any_stored):
        raise Conflict("The SQL database is not empty; point DICOM_SQL_URL to a new one.")
    await query_tags.restore_definitions()
    done = 0
    files = await _newest_versions()
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        done += await _index([file.name for file in batch])
        await _index_originals([file.original for file in batch if file.original])
        progress(done)
    return done


@dataclass(frozen=True, slots=True)
class _File:
    """The blob of an instance's newest version, and of its original where it has been updated."""

    name: str
    original: str


async def _newest_versions() -> list[_File]:
    """Files, of each instance the newest, in the order in which they were stored.

    In that order the last instance stored wins for the attributes of its study and series, as it did
    before. All names are held in memory, some 300 bytes an instance.
    """
    newest: list[_File] = []
    of_instance: list[BlobItem] = []
    async for item in _all_files():  # in order of names, so versions of an instance come together
        if of_instance and _instance(of_instance[-1].name) != _instance(item.name):
            newest.append(_newest(of_instance))
            of_instance = []
        of_instance.append(item)
    if of_instance:
        newest.append(_newest(of_instance))
    return sorted(newest, key=lambda file: file.name.rpartition("/")[2])


async def _all_files() -> AsyncIterator[BlobItem]:
    token = ""
    while True:
        page, token = await container.blob_store().list_page(names.DICOM, token=token)
        for item in page:
            yield item
        if not token:
            return


def _newest(versions: list[BlobItem]) -> _File:
    """Of the versions of an instance, in their order."""
    *others, last = versions
    original = last.metadata.get(update.ORIGINAL, "")
    parsed = names.parse_file_name(last.name)
    name = names.file_name(parsed[0], original) if original and parsed else ""
    return _File(last.name, name if any(item.name == name for item in others) else "")


def _instance(name: str) -> str:
    return name.rpartition("/")[0]


async def _index(blobs: list[str]) -> int:
    by_partition = _by_partition(await ingest.parse_files(blobs))
    for partition, files in by_partition.items():
        existing = await container.database().read(
            instances.find_existing, partition, [key for key, _, _ in files]
        )
        await store.commit(
            container.blob_store(), files, partition, SeriesPacks(dict(existing.packs)), replace=False
        )
    return sum(map(len, by_partition.values()))


async def _index_originals(blobs: list[str]) -> None:
    for partition, files in _by_partition(await ingest.parse_files(blobs)).items():
        existing = await container.database().read(
            instances.find_existing, partition, [key for key, _, _ in files]
        )
        records = [packs.record_of(key, version, parsed) for key, version, parsed in files]
        series_packs = SeriesPacks(dict(existing.packs))
        places = await packs.write_records(container.blob_store(), records, series_packs)
        found = [store.new_instance(key, version, parsed, places[version]) for key, version, parsed in files]
        await container.database().write(updates.add_originals, found)


def _by_partition(files: Sequence[ingest.ParsedFile]) -> dict[str, list[ingest.ParsedFile]]:
    by_partition: dict[str, list[ingest.ParsedFile]] = {}
    for file in files:
        by_partition.setdefault(file[0].partition, []).append(file)
    return by_partition


async def _main() -> None:
    try:
        count = await reindex(lambda done: print(f"\r{done} instances", end="", flush=True))
        print(f"\r{count} instances indexed.")
    except Conflict as error:
        sys.exit(str(error))
    finally:
        await container.blob_store().close()
        container.database().close()


if __name__ == "__main__":
    asyncio.run(_main())
