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

PREAMBLE = 128
"""Bytes at the beginning of a file that say nothing (PS3.10 §7.1)."""


async def is_stored(source: str, name: str, key: InstanceKey) -> bool:
    """Compare the blob ``name`` of container ``source`` with the stored instance, preambles left aside.

    False also where one of them does not exist (any more).
    """
    resource = Resource(key.partition, key.study, key.series, key.instance)
    found = await container.database().read(instances.find_instances, resource)
    if not found:
        return False
    try:
        size = (await container.blob_store().find(source, name)).size
        file = names.file_name(key, found[0].version)
        stream = container.blob_store().stream(source, name, PREAMBLE)
        return size == found[0].size and await has_content(file, stream)
    except BlobNotFound:
        return False


async def has_content(file: str, content: AsyncIterator[bytes]) -> bool:
    """Whether a stored file is ``content``, both from the end of the preamble on. Raises BlobNotFound."""
    return await _same(content, container.blob_store().stream(names.DICOM, file, PREAMBLE))


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
