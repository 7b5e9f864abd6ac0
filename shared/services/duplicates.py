"""Whether a file that came again is, byte for byte, what the server keeps.

Triggers deliver at least once: a file whose first delivery was cut off after the store must not be taken
for another one with the same identifiers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from shared import container
from shared.blobs import names
from shared.blobs.store import BlobNotFound
from shared.dicom.identifiers import InstanceKey, Resource
from shared.sql import instances

_PREAMBLE = 128


async def is_stored(source: str, name: str, key: InstanceKey) -> bool:
    """Compare the blob ``name`` of container ``source`` with the stored instance, preambles left aside.

    False also where one of them does not exist (any more).
    """
    resource = Resource(key.partition, key.study, key.series, key.instance)
    found = await container.database().read(instances.find_instances, resource)
    if not found:
        return False
    blobs = container.blob_store()
    stored = names.file_name(key, found[0].version)
    try:
        if (await blobs.find(source, name)).size != found[0].size:
            return False
        return await _same(
            blobs.stream(source, name, _PREAMBLE), blobs.stream(names.DICOM, stored, _PREAMBLE)
        )
    except BlobNotFound:
        return False


async def _same(one: AsyncIterator[bytes], other: AsyncIterator[bytes]) -> bool:
    left = right = b""
    while True:
        left = left or await anext(one, b"")
        right = right or await anext(other, b"")
        common = min(len(left), len(right))
        if left[:common] != right[:common] or (common == 0 and (left or right)):
            return False
        if common == 0:
            return True
        left, right = left[common:], right[common:]
