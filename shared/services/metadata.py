"""The forms of metadata: DICOM JSON objects, whole or some attributes of them, and DICOM XML."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from shared.dicom import native_model
from shared.dicom.projection import Projection
from shared.services import retrieve
from shared.services.retrieve import Payload

_OWN_THREAD = 64 * 1024  # characters a millisecond's work are left to the event loop


async def projected(documents: AsyncIterator[bytes], projection: Projection) -> AsyncIterator[bytes]:
    """The documents with the attributes of ``projection`` alone."""
    async for document in documents:
        if len(document) < _OWN_THREAD:
            yield projection.cut(document)
        else:
            yield await asyncio.to_thread(projection.cut, document)


async def in_xml(documents: AsyncIterator[bytes]) -> AsyncIterator[Payload]:
    """The documents as XML (PS3.19 §A.1), one after the other, large ones in pieces."""
    async for document in documents:
        if len(document) < _OWN_THREAD:
            text = "".join(native_model.pieces(document.decode()))
            yield retrieve.in_memory(text.encode())
        else:
            yield Payload(None, _pieces(document))


async def _pieces(document: bytes) -> AsyncIterator[bytes]:
    pieces = native_model.pieces(document.decode())
    while piece := await asyncio.to_thread(next, pieces, ""):
        yield piece.encode()
