"""Rebuild an empty SQL database from the blobs alone: ``python3 dev.py reindex``.

The files in container ``dicom`` are the truth. Of several versions of an instance the newest is indexed;
metadata packs are written anew and the old ones are left to the clean-up. The change feed gets a
``create`` for every instance. What was deleted or replaced so shortly before that its bytes are still there
cannot be told from what was not; files that were never indexed are left to the reconciliation.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from shared import container
from shared.blobs import names
from shared.errors import Conflict
from shared.services import ingest, store
from shared.services.packs import SeriesPacks
from shared.sql import instances

_BATCH = 50


async def reindex(progress: Callable[[int], None] = lambda done: None) -> int:
    """Index every file; the number of instances. Raises Conflict unless the database is empty.

    A run that was cut off is repeated on a new, empty database. ``progress`` is called with the number
    of instances so far.
    """
    if await container.database().read(instances.any_stored):
        raise Conflict("The SQL database is not empty; point DICOM_SQL_URL to a new one.")
    done = 0
    files = await _newest_versions()
    for start in range(0, len(files), _BATCH):
        done += await _index(files[start : start + _BATCH])
        progress(done)
    return done


async def _newest_versions() -> list[str]:
    """Names of files, of each instance the newest, in the order in which they were stored.

    In that order the last instance stored wins for the attributes of its study and series, as it did
    before. All names are held in memory, some 300 bytes an instance.
    """
    newest: list[str] = []
    token = ""
    while True:
        page, token = await container.blob_store().list_page(names.DICOM, token=token)
        for item in page:  # listings are in order of names, so versions of an instance come together
            if newest and _instance(newest[-1]) == _instance(item.name):
                newest[-1] = item.name
            else:
                newest.append(item.name)
        if not token:
            return sorted(newest, key=lambda name: name.rpartition("/")[2])


def _instance(name: str) -> str:
    return name.rpartition("/")[0]


async def _index(blobs: list[str]) -> int:
    by_partition: dict[str, list[ingest.ParsedFile]] = {}
    for file in await ingest.parse_files(blobs):
        by_partition.setdefault(file[0].partition, []).append(file)
    for partition, files in by_partition.items():
        existing = await container.database().read(
            instances.find_existing, partition, [key for key, _, _ in files]
        )
        await store.commit(
            container.blob_store(), files, partition, SeriesPacks(dict(existing.packs)), replace=False
        )
    return sum(map(len, by_partition.values()))


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
