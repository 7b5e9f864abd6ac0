"""Rendered frames, reports and thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): one at a time, in a thread."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from hashlib import sha256
from typing import Any

from shared.dicom import animation, render, report
from shared.dicom.document import value_of
from shared.dicom.document_types import ENCAPSULATED_DOCUMENT, PIXEL_DATA, type_and_length
from shared.dicom.pixel_data import DECODABLE, LARGEST_FRAME
from shared.dicom.transfer_syntaxes import is_video, media_type
from shared.errors import DicomServerError, InvalidRequest, NotAcceptable
from shared.services import frame_cache, retrieve, transcoded
from shared.services.retrieve import Payload
from shared.sql.instances import StoredInstance

THUMBNAIL_SIDE = 128
_LARGEST_TABLE = 16 * 1024 * 1024
_DERIVED = frozenset({"SEG", "PR", "KO", "SR", "REG", "FID", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "PLAN"})


def is_renderable(stored: StoredInstance) -> bool:
    """Whether it has frames this server decodes."""
    return bool(stored.number_of_frames) and stored.transfer_syntax in DECODABLE


def is_report(stored: StoredInstance) -> bool:
    """Whether it is a structured report, which is rendered as a page of text."""
    return report.is_report(stored.sop_class) and not stored.number_of_frames


def renderable(found: Sequence[StoredInstance], reports: bool = False) -> list[StoredInstance]:
    """Those that have frames this server decodes, and the ``reports``. Raises NotAcceptable without any."""
    usable = [s for s in found if is_renderable(s) or (reports and is_report(s))]
    if not usable:
        raise NotAcceptable("There is no image here that can be rendered.")
    return usable


def representative(found: Sequence[StoredInstance]) -> tuple[StoredInstance, int]:
    """The instance and frame a thumbnail shows: the middle one of the middle instance, by InstanceNumber, of
    the series with the most frames. Series of what was derived from images count where there are no others.
    """
    series: dict[str, list[StoredInstance]] = {}
    for stored in renderable(found):
        series.setdefault(stored.key.series, []).append(stored)
    instances = max(series.values(), key=_weight)
    by_number = sorted(instances, key=lambda s: (s.instance_number is None, s.instance_number))
    stored = by_number[len(by_number) // 2]
    return stored, (stored.number_of_frames + 1) // 2


def _weight(series: Sequence[StoredInstance]) -> tuple[bool, int]:
    derived = series[0].modality.upper() in _DERIVED
    return not derived, sum(stored.number_of_frames for stored in series)


async def read_document(stored: StoredInstance) -> tuple[str, Payload] | None:
    """An encapsulated document or a video and its own media type; None where the instance is neither."""
    if is_video(stored.transfer_syntax):
        return media_type(stored.transfer_syntax), await retrieve.read_bulkdata(stored, PIXEL_DATA)
    if stored.number_of_frames or is_report(stored):
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


async def render_report(stored: StoredInstance, links: report.Links) -> Payload:
    """The page for a structured report. Raises NotAcceptable."""
    if stored.place.document_length > report.LARGEST:
        raise NotAcceptable(f"The report has more than {report.LARGEST >> 20} MiB and is not rendered.")
    document = await retrieve.read_document_text(stored)
    try:
        page = await transcoded.in_codec_thread(report.render, document, links)
    except ValueError as error:
        raise NotAcceptable(str(error)) from error
    return retrieve.in_memory(page.encode())


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
    encode = _encoder(media_type, options)
    async for payload in retrieve.read_frames(stored, numbers, retrieve.little_endian(stored)):
        number = next(turn)
        try:
            image = await _rendered(payload, document, number, stored, options, encode)
        except (InvalidRequest, NotAcceptable) as error:
            yield error
        else:
            yield retrieve.in_memory(image)


async def render_frame(
    stored: StoredInstance,
    number: int,
    media_type: str,
    options: render.Options,
    region: render.Region | None = None,
) -> Payload:
    """The image of one frame, or of a region of it; kept, unless it has a window that somebody tries out.

    Raises what :func:`render_frames` raises and yields.
    """
    renderable([stored])
    retrieve.check_frames(stored, [number])

    async def make() -> bytes:
        document = await _document(stored)
        payload = await anext(retrieve.read_frames(stored, [number], retrieve.little_endian(stored)))
        wanted = render.within(region, options, document) if region else options
        return await _rendered(payload, document, number, stored, wanted, _encoder(media_type, options))

    digest = sha256(f"{media_type} {options} {region}".encode()).hexdigest()[:32]
    keep = options.window is None
    return retrieve.in_memory(
        await frame_cache.obtain(stored, f"{number}/rendered/{digest}", make, keep=keep)
    )


def _encoder(media_type: str, options: render.Options) -> Callable[[Any], bytes]:
    return lambda pixels: render.encode(pixels, media_type, options.quality)


async def render_animation(
    stored: StoredInstance, numbers: Sequence[int], options: render.Options
) -> Payload:
    """The frames as one animated GIF, of which the first frame has been made when this returns.

    Raises as :func:`render_frames` does; what fails later cuts the image off.
    """
    renderable([stored])
    if len(numbers) > animation.MOST_FRAMES:
        raise NotAcceptable(f"A GIF has at most {animation.MOST_FRAMES} frames; ask for fewer of them.")
    document = await _document(stored)
    rows, columns = value_of(document, "00280010", 0), value_of(document, "00280011", 0)
    if isinstance(rows, int) and isinstance(columns, int):
        most = animation.MOST_PIXELS // max(1, rows * columns)
        if len(numbers) > most:
            raise NotAcceptable(f"A GIF of frames of this size has at most {most}; ask for fewer of them.")
    chunks = _animated(stored, numbers, document, options)
    first = await anext(chunks)

    async def joined() -> AsyncIterator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return Payload(None, joined())


async def _animated(
    stored: StoredInstance, numbers: Sequence[int], document: dict[str, Any], options: render.Options
) -> AsyncGenerator[bytes, None]:
    turn = zip(numbers, animation.times(document, numbers), strict=True)
    start: Callable[[Any], bytes] | None = animation.start
    async for payload in retrieve.read_frames(stored, numbers, retrieve.little_endian(stored)):
        number, time = next(turn)
        yield await _rendered(payload, document, number, stored, options, _frame_of(start, time))
        start = None
    yield animation.END


def _frame_of(start: Callable[[Any], bytes] | None, time: int) -> Callable[[Any], bytes]:
    return lambda pixels: (start(pixels) if start else b"") + animation.frame(pixels, time)


async def _rendered(
    payload: Payload,
    document: dict[str, Any],
    number: int,
    stored: StoredInstance,
    options: render.Options,
    encode: Callable[[Any], bytes],
) -> bytes:
    frame = await retrieve.held(payload, LARGEST_FRAME)
    if frame is None:
        raise NotAcceptable(f"A frame has more than {LARGEST_FRAME} bytes and is not rendered.")
    return await transcoded.in_codec_thread(_image, frame, document, number, stored, options, encode)


def _image(
    frame: bytes,
    document: dict[str, Any],
    number: int,
    stored: StoredInstance,
    options: render.Options,
    encode: Callable[[Any], bytes],
) -> bytes:
    try:
        pixels = render.render(frame, document, number, stored.transfer_syntax, options)
    except render.EmptyRegion as error:
        raise InvalidRequest(str(error)) from error
    except ValueError as error:
        reason = str(error) if str(error).endswith(".") else "The image cannot be rendered."
        raise NotAcceptable(reason) from error
    return encode(pixels)


async def _document(stored: StoredInstance) -> dict[str, Any]:
    document = await retrieve.read_document(stored)
    for element in render.binary_elements(document):
        payload = await retrieve.read_bulkdata(stored, element["BulkDataURI"].lstrip("/"))
        if payload.length is None or payload.length > _LARGEST_TABLE:
            raise NotAcceptable("A lookup table or an overlay of the image is too large to be rendered.")
        element["Bytes"] = b"".join([chunk async for chunk in payload.chunks])
    return document
