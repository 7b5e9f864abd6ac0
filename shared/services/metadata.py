"""The forms of metadata: DICOM JSON objects, whole or some attributes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from shared.dicom.projection import Projection

_OWN_THREAD = 64 * 1024  # characters a millisecond's work are left to the event loop


async def projected(documents: AsyncIterator[bytes], projection: Projection) -> AsyncIterator[bytes]:
    """The documents with the attributes of ``projection`` alone."""
    async for document in documents:
        if len(document) < _OWN_THREAD:
            yield projection.cut(document)
        else:
            yield await asyncio.to_thread(projection.cut, document)
