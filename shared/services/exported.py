"""One instance as it is exported: the file as stored, or de-identified, streamed; and its row of the table
of metadata."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.dicom import convert
from shared.dicom.identifiers import InstanceKey
from shared.dicom.transfer_syntaxes import is_deflated
from shared.errors import NotAcceptable
from shared.services import retrieve
from shared.sql.instances import StoredInstance

if TYPE_CHECKING:
    from shared.dicom.deidentify import Deidentifier

_UNDEFINED = 0xFFFFFFFF


class CannotExport(Exception):
    """The instance cannot be exported as asked; the message says why, without any value."""


@dataclass(frozen=True, slots=True)
class Exported:
    """``key`` has the UIDs it is exported under, ``attributes`` is DICOM JSON of the tags asked for."""

    key: InstanceKey
    chunks: AsyncIterator[bytes]
    attributes: dict[str, Any]


async def as_stored(stored: StoredInstance, wanted: tuple[str, ...]) -> Exported:
    """The file as it is. Raises NotFound where it is deleted, now or while its chunks are read."""
    payload = await anext(retrieve.read_instances([stored]))
    attributes: dict[str, Any] = {}
    if wanted:
        document = await retrieve.read_document(stored)
        attributes = {tag: document[tag] for tag in wanted if tag in document}
    return Exported(stored.key, payload.chunks, attributes)


async def deidentified(
    stored: StoredInstance, deidentifier: Deidentifier, wanted: tuple[str, ...]
) -> Exported:
    """The file with its data set de-identified, in its transfer syntax.

    What precedes pixel data is held, pixel data streams by untouched, what follows it is left out. Raises
    CannotExport, and NotFound as above.
    """
    from shared.dicom.deidentify import CannotDeidentify

    key, syntax = stored.key, stored.transfer_syntax
    try:
        around = await retrieve.around_pixel_data(stored)
        elements = around.before if around else await retrieve.all_elements(stored)
        result = await asyncio.to_thread(
            deidentifier.deidentify, elements, syntax, key.partition, ("00080018", *wanted)
        )
    except NotAcceptable:
        raise CannotExport("The data set is too large to be de-identified.") from None
    except CannotDeidentify as error:
        raise CannotExport(str(error)) from None
    start = result.elements
    pixels = None
    if around is not None:
        entry = around.pixels
        length = _UNDEFINED if entry.encapsulated else entry.length
        start += convert.element_header(int(entry.path, 16), entry.vr, length, syntax)
        pixels = retrieve.value_bytes(stored, entry)
    chunks = _joined(start, pixels)
    if is_deflated(syntax):
        chunks = _deflated(chunks)
    new = InstanceKey(
        key.partition,
        deidentifier.uid(key.study),
        deidentifier.uid(key.series),
        deidentifier.uid(key.instance),
    )
    return Exported(new, _joined(result.header, chunks), result.attributes)


async def _joined(first: bytes, rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    yield first
    if rest is not None:
        async for chunk in rest:
            yield chunk


async def _deflated(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The deflated form of a data set (PS3.5 §A.5), padded to an even length."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    size = 0
    async for chunk in chunks:
        data = await asyncio.to_thread(deflate.compress, chunk)
        size += len(data)
        yield data
    data = deflate.flush()
    yield data + b"\0" * ((size + len(data)) % 2)
