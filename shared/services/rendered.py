"""Rendered frames and thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): one image at a time, in a thread."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any

from shared.dicom import render
from shared.dicom.document_types import ENCAPSULATED_DOCUMENT, PIXEL_DATA
from shared.dicom.pixel_data import DECODABLE, LARGEST_FRAME
from shared.dicom.transfer_syntaxes import is_video
from shared.errors import DicomServerError, InvalidRequest, NotAcceptable
from shared.services import retrieve
from shared.services.retrieve import Payload
from shared.sql.instances import StoredInstance

THUMBNAIL_SIDE = 128
_LARGEST_TABLE = 16 * 1024 * 1024


def is_renderable(stored: StoredInstance) -> bool:
    """Whether it has frames this server decodes."""
    return bool(stored.number_of_frames) and stored.transfer_syntax in DECODABLE


def renderable(found: Sequence[StoredInstance]) -> list[StoredInstance]:
    """Those that have frames this server decodes. Raises NotAcceptable where there is none."""
    usable = [s for s in found if is_renderable(s)]
    if not usable:
        raise NotAcceptable("There is no image here that can be rendered.")
    return usable


def representative(found: Sequence[StoredInstance]) -> tuple[StoredInstance, int]:
    """The instance and frame a thumbnail shows: the middle one of the middle instance that has frames."""
    usable = renderable(found)
    stored = usable[len(usable) // 2]
    return stored, (stored.number_of_frames + 1) // 2


async def read_document(stored: StoredInstance) -> tuple[str, Payload] | None:
    """An encapsulated document or a video and its own media type; None where the instance is neither."""
    video = is_video(stored.transfer_syntax)
    if stored.number_of_frames and not video:
        return None
    path = PIXEL_DATA if video else ENCAPSULATED_DOCUMENT
    media_type, length = await retrieve.own_media_type(stored, path)
    if not media_type:
        return None
    inline = {} if video else (await retrieve.read_document(stored)).get(path, {})
    if "InlineBinary" in inline:
        payload = retrieve.in_memory(base64.b64decode(inline["InlineBinary"]))
    else:
        payload = await retrieve.read_bulkdata(stored, path)
    return media_type, retrieve.without_padding(payload, length)


async def render_frames(
    stored: StoredInstance, numbers: Sequence[int], media_type: str, options: render.Options
) -> AsyncIterator[bytes | DicomServerError]:
    """Images of the frames, in the order asked for; the metadata is read once.

    In the place of a frame that cannot be rendered is why: NotAcceptable, or InvalidRequest for a region
    outside the image. Raises NotFound for frames that are not there, and NotAcceptable where nothing of the
    instance can be rendered.
    """
    renderable([stored])
    document = await _document(stored)
    turn = iter(numbers)
    async for payload in retrieve.read_frames(stored, numbers, retrieve.little_endian(stored)):
        number = next(turn)
        try:
            frame = await _held(payload)
            async with _turns():
                image = await asyncio.to_thread(_image, frame, document, number, stored, media_type, options)
        except (InvalidRequest, NotAcceptable) as error:
            yield error
        else:
            yield image


@cache
def _turns() -> asyncio.Semaphore:
    """A frame takes several times its size while it is rendered, so only so many are at once."""
    return asyncio.Semaphore(os.cpu_count() or 1)


def _image(
    frame: bytes,
    document: dict[str, Any],
    number: int,
    stored: StoredInstance,
    media_type: str,
    options: render.Options,
) -> bytes:
    try:
        pixels = render.render(frame, document, number, stored.transfer_syntax, options)
    except render.EmptyRegion as error:
        raise InvalidRequest(str(error)) from error
    except ValueError as error:
        reason = str(error) if str(error).endswith(".") else "The image cannot be rendered."
        raise NotAcceptable(reason) from error
    return render.encode(pixels, media_type, options.quality)


async def _document(stored: StoredInstance) -> dict[str, Any]:
    document = await retrieve.read_document(stored)
    for element in render.binary_elements(document):
        payload = await retrieve.read_bulkdata(stored, element["BulkDataURI"].lstrip("/"))
        if payload.length is None or payload.length > _LARGEST_TABLE:
            raise NotAcceptable("A lookup table or an overlay of the image is too large to be rendered.")
        element["Bytes"] = b"".join([chunk async for chunk in payload.chunks])
    return document


async def _held(payload: Payload) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for chunk in payload.chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > LARGEST_FRAME:
            raise NotAcceptable(f"A frame has more than {LARGEST_FRAME} bytes and is not rendered.")
    return b"".join(pieces)
