"""Rendered frames and thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): one image at a time, in a thread."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

from shared.dicom import render
from shared.dicom.document_types import ENCAPSULATED_DOCUMENT, PIXEL_DATA, type_and_length
from shared.dicom.pixel_data import DECODABLE, LARGEST_FRAME
from shared.dicom.transfer_syntaxes import is_video, media_type
from shared.errors import DicomServerError, InvalidRequest, NotAcceptable
from shared.services import retrieve, transcoded
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
    if is_video(stored.transfer_syntax):
        return media_type(stored.transfer_syntax), await retrieve.read_bulkdata(stored, PIXEL_DATA)
    if stored.number_of_frames:
        return None
    document = await retrieve.read_document(stored)
    own_type, length = type_and_length(document)
    if not own_type:
        return None
    inline = document.get(ENCAPSULATED_DOCUMENT, {}).get("InlineBinary")
    if inline is None:
        payload = await retrieve.read_bulkdata(stored, ENCAPSULATED_DOCUMENT)
    else:
        payload = retrieve.in_memory(base64.b64decode(inline))
    return own_type, retrieve.without_padding(payload, length)


async def render_frames(
    stored: StoredInstance, numbers: Sequence[int], media_type: str, options: render.Options
) -> AsyncIterator[Payload | DicomServerError]:
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
            image = await _rendered(payload, document, number, stored, media_type, options)
        except (InvalidRequest, NotAcceptable) as error:
            yield error
        else:
            yield retrieve.in_memory(image)


async def _rendered(
    payload: Payload,
    document: dict[str, Any],
    number: int,
    stored: StoredInstance,
    media_type: str,
    options: render.Options,
) -> bytes:
    frame = await retrieve.held(payload, LARGEST_FRAME)
    if frame is None:
        raise NotAcceptable(f"A frame has more than {LARGEST_FRAME} bytes and is not rendered.")
    return await transcoded.in_codec_thread(_image, frame, document, number, stored, media_type, options)


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
