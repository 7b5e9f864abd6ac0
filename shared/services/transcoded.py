"""Retrieval in another transfer syntax: frame by frame, as a stream, whatever the number of frames.

A few frames are in memory at a time. Codecs work in threads of their own, as many as there are processors,
so that they hold up neither the event loop nor each other.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cache, partial
from typing import Any, TypeVar, TypeVarTuple

from shared.dicom import convert, transcode
from shared.dicom.document import values_of
from shared.dicom.pixel_data import LARGEST_FRAME, CorruptFrame, ImagePixel
from shared.dicom.transcode import JPEG_QUALITY, EncodedFrame
from shared.dicom.transfer_syntaxes import JPEG_BASELINE, NATIVE
from shared.errors import NotAcceptable
from shared.services import frame_cache, retrieve
from shared.services.retrieve import Payload
from shared.sql.instances import StoredInstance

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

_AHEAD = 2
_AHEAD_BYTES = 8 * 1024 * 1024
_HELD_BYTES = 8 * 1024 * 1024
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_LONGEST = 0xFFFFFFFE
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 0x00280004, 0x00280006
_LOSSY, _LOSSY_RATIO, _LOSSY_METHOD = 0x00282110, 0x00282112, 0x00282114
_JPEG_METHOD = "ISO_10918_1"
_ADVICE = "ask with transfer-syntax=*"


@cache
def _codecs() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="codec")


async def in_codec_thread(work: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """``work(*arguments)``, which computes with a frame, when one of the few threads for that is free."""
    return await asyncio.get_running_loop().run_in_executor(_codecs(), work, *arguments)


async def _first_possible(
    stored: StoredInstance, targets: Sequence[str]
) -> tuple[int, dict[str, Any] | None]:
    """Index of the first of ``targets`` that the frames can be had in, as far as attributes tell; and the
    metadata, where it had to be read for that.

    Raises NotAcceptable where there is none.
    """
    reason = ""
    document = None
    for index, target in enumerate(targets):
        if target in NATIVE or not transcode.transcodable(stored.transfer_syntax, target):
            return index, document
        document = document or await retrieve.read_document(stored)
        reason = transcode.refusal(_described(document), target)
        if not reason:
            return index, document
    raise NotAcceptable(f"No transfer syntax of Accept can be served: {reason} ({_ADVICE})")


def _as_stored(stored: StoredInstance) -> str:
    return f"(It is stored in transfer syntax {stored.transfer_syntax}; {_ADVICE}.)"


def _described(document: dict[str, Any]) -> ImagePixel:
    try:
        return ImagePixel.from_document(document)
    except ValueError as error:
        raise NotAcceptable(f"The frames cannot be transcoded: {error} ({_ADVICE})") from error


# --- frames ------------------------------------------------------------------------------------------


async def open_frame(stored: StoredInstance, number: int, targets: Sequence[str]) -> tuple[int, Payload]:
    """One frame in the first of ``targets`` it can be had in, whose index comes first.

    What takes long to make is kept. Raises NotFound, and NotAcceptable where it cannot be had.
    """
    retrieve.check_frames(stored, [number])
    reason = ""
    for index, target in enumerate(targets):
        if not transcode.transcodable(stored.transfer_syntax, target):
            return index, await anext(retrieve.read_frames(stored, [number], target))
        try:
            data = await frame_cache.obtain(
                stored,
                _content(number, target),
                partial(_make_frame, stored, number, target),
                keep=transcode.is_slow(stored.transfer_syntax, target),
            )
        except _Refused as refused:
            reason = str(refused)
        else:
            return index, retrieve.in_memory(data)
    raise NotAcceptable(f"No transfer syntax of Accept can be served: {reason} ({_ADVICE})")


def _content(number: int, target: str) -> str:
    """What the frame is in the cache; a lossy one is of a quality."""
    return f"{number}/{target}-q{JPEG_QUALITY}" if target == JPEG_BASELINE else f"{number}/{target}"


class _Refused(Exception):
    """The frames of an instance cannot be encoded in a syntax; the message is why."""


async def _make_frame(stored: StoredInstance, number: int, target: str) -> bytes:
    image = _described(await retrieve.read_document(stored))
    reason = transcode.refusal(image, target)
    if reason:
        raise _Refused(reason)
    async with aclosing(_transcoded(stored, image, [number], target)) as results:
        result = await anext(results)
    if isinstance(result, CorruptFrame):
        raise NotAcceptable(f"{result} {_as_stored(stored)}")
    return result.data


async def open_frames(
    stored: StoredInstance, numbers: Sequence[int], targets: Sequence[str]
) -> tuple[int, AsyncIterator[Payload | NotAcceptable]]:
    """Frames by number (from 1) in the order asked for, in the first of ``targets`` they can be had in; its
    index comes first. They come out of one stream, and none of them is kept.

    In the place of a frame that cannot be decoded is why; the others come all the same. The frames raise
    NotFound as reading them does. Raises NotAcceptable where no frame of the instance can be had.
    """
    index, document = await _first_possible(stored, targets)
    target = targets[index]
    if transcode.transcodable(stored.transfer_syntax, target):
        return index, _read_frames(stored, numbers, target, document)
    return index, retrieve.read_frames(stored, numbers, target)


async def _read_frames(
    stored: StoredInstance, numbers: Sequence[int], target: str, document: dict[str, Any] | None
) -> AsyncIterator[Payload | NotAcceptable]:
    image = _described(document or await retrieve.read_document(stored))
    reason = transcode.refusal(image, target)
    if reason:
        raise NotAcceptable(f"The frames cannot be had in transfer syntax {target}: {reason} ({_ADVICE})")
    async with aclosing(_transcoded(stored, image, numbers, target)) as results:
        async for result in results:
            if isinstance(result, CorruptFrame):
                yield NotAcceptable(f"{result} {_as_stored(stored)}")
            else:
                yield retrieve.in_memory(result.data)


async def _transcoded(
    stored: StoredInstance, image: ImagePixel, numbers: Sequence[int], target: str
) -> AsyncGenerator[EncodedFrame | CorruptFrame, None]:
    """Each frame in turn; a few are worked on ahead of their turn unless they are large."""
    source = retrieve.little_endian(stored)
    ahead = min(_AHEAD, _AHEAD_BYTES // image.frame_length)
    waiting: deque[asyncio.Task[EncodedFrame | CorruptFrame]] = deque()
    try:
        async for payload in retrieve.read_frames(stored, numbers, source):
            frame = await retrieve.held(payload, LARGEST_FRAME)
            waiting.append(asyncio.create_task(_work(frame, image, source, target)))
            if len(waiting) > ahead:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _work(
    frame: bytes | None, image: ImagePixel, source: str, target: str
) -> EncodedFrame | CorruptFrame:
    if frame is None:
        return CorruptFrame("A frame is too large to be decoded.")
    try:
        return await in_codec_thread(transcode.transcode, frame, image, source, target)
    except CorruptFrame as error:
        return error
    except ValueError as error:
        return CorruptFrame(str(error))


# --- instances ---------------------------------------------------------------------------------------


async def open_instance(stored: StoredInstance, targets: Sequence[str]) -> tuple[int, Payload]:
    """A file in the first of ``targets`` it can be had in, whose index comes first; see read_instance."""
    index, document = await _first_possible(stored, targets)
    return index, await read_instance(stored, targets[index], document)


async def read_instance(
    stored: StoredInstance, target: str, document: dict[str, Any] | None = None
) -> Payload:
    """A file in the syntax ``target``: its own, a native one, or one frames are encoded in.

    The length of native pixel data is known beforehand. Raises NotAcceptable, before the first byte, where
    the instance cannot be had in ``target``: a frame among the first 8 MiB included, for these are made
    beforehand. A later frame that cannot be decoded ends the chunks with NotAcceptable.
    """
    if stored.transfer_syntax == target:
        return await anext(retrieve.read_instances([stored]))
    native = target in NATIVE
    if native and (stored.transfer_syntax in NATIVE or not stored.number_of_frames):
        return await retrieve.in_native_syntax(stored, target)
    if not stored.number_of_frames:
        raise NotAcceptable(
            f"The instance has no pixel data to be encoded in transfer syntax {target} ({_ADVICE})."
        )
    document = document or await retrieve.read_document(stored)
    image = _described(document)
    reason = transcode.refusal(image, target)
    if reason:
        raise NotAcceptable(f"The instance cannot be had in transfer syntax {target}: {reason} ({_ADVICE})")
    around = await retrieve.around_pixel_data(stored)
    if around is None or around.pixels.encapsulated == (stored.transfer_syntax in NATIVE):
        raise NotAcceptable(f"The instance's pixel data does not fit its transfer syntax ({_ADVICE}).")
    length = stored.number_of_frames * image.frame_length if native else _UNDEFINED
    if not (stored.frame_bits or stored.place.frames_length):
        raise NotAcceptable(f"The frames cannot be told apart in the pixel data ({_ADVICE}).")
    if native and length > _LONGEST:
        raise NotAcceptable(f"The decoded pixel data would be longer than 4 GiB ({_ADVICE}).")
    results = _transcoded(stored, image, range(1, stored.number_of_frames + 1), target)
    made = _described_alike(stored, results)
    begun = await _begun(made)
    first = begun[0]
    edits = _edits(document, image, first, stored.transfer_syntax, target)
    start, end = await retrieve.convert_elements(stored, target, around.before, around.after, edits)
    start = convert.with_transfer_syntax(around.header, target) + start
    length += length % 2 if native else 0
    vr = "OW" if native and image.bits_allocated > 8 else "OB"
    start += convert.element_header(_PIXEL_DATA, vr, length, target)
    frames = _native(begun, made) if native else _items(begun, made)

    async def chunks() -> AsyncIterator[bytes]:
        yield start
        async with aclosing(made), aclosing(frames):
            async for chunk in frames:
                yield chunk
        if end:
            yield end

    return Payload(len(start) + length + len(end) if native else None, chunks())


async def _begun(frames: AsyncGenerator[EncodedFrame, None]) -> deque[EncodedFrame]:
    """The first frames: all of them where they are few, so that one that cannot be had is known in time."""
    begun: deque[EncodedFrame] = deque()
    size = 0
    async for frame in frames:
        begun.append(frame)
        size += len(frame.data)
        if size >= _HELD_BYTES:
            break
    return begun


async def _all(begun: deque[EncodedFrame], rest: AsyncIterator[EncodedFrame]) -> AsyncIterator[bytes]:
    while begun:
        yield begun.popleft().data
    async for frame in rest:
        yield frame.data


async def _native(
    begun: deque[EncodedFrame], rest: AsyncIterator[EncodedFrame]
) -> AsyncGenerator[bytes, None]:
    """Native pixel data, padded to an even length."""
    size = 0
    async for frame in _all(begun, rest):
        size += len(frame)
        yield frame
    if size % 2:
        yield b"\0"


async def _items(
    begun: deque[EncodedFrame], rest: AsyncIterator[EncodedFrame]
) -> AsyncGenerator[bytes, None]:
    """Encapsulated pixel data: an empty basic offset table, a fragment a frame (PS3.5 §A.4)."""
    yield _ITEM + bytes(4)
    async for frame in _all(begun, rest):
        padding = len(frame) % 2
        yield _ITEM + struct.pack("<I", len(frame) + padding)
        yield frame + b"\0" if padding else frame
    yield _SEQUENCE_END


async def _described_alike(
    stored: StoredInstance, results: AsyncGenerator[EncodedFrame | CorruptFrame, None]
) -> AsyncGenerator[EncodedFrame, None]:
    """All frames, which the data set's attributes describe if they describe the first. Raises NotAcceptable
    in the place of one that cannot be had."""
    first: EncodedFrame | None = None
    number = 0
    async with aclosing(results):
        async for frame in results:
            number += 1
            which = f"Frame {number}: " if stored.number_of_frames > 1 else ""
            if isinstance(frame, CorruptFrame):
                raise NotAcceptable(f"{which}{frame} {_as_stored(stored)}")
            first = first or frame
            if frame.image != first.image:
                why = "It is not in the colour space of the first."
                raise NotAcceptable(f"{which}{why} {_as_stored(stored)}")
            yield frame


def _edits(
    document: dict[str, Any], image: ImagePixel, first: EncodedFrame, source: str, target: str
) -> dict[int, bytes]:
    """What changes in the data set: offset tables go, attributes say what pixels are now (PS3.5 §8.2)."""
    edits = dict.fromkeys(_OFFSET_TABLES, b"")
    colour = first.image.photometric_interpretation
    if colour != image.photometric_interpretation:
        edits[_PHOTOMETRIC_INTERPRETATION] = _text(_PHOTOMETRIC_INTERPRETATION, "CS", [colour], target)
    if image.samples_per_pixel > 1:
        value = struct.pack("<H", first.image.planar_configuration)
        edits[_PLANAR_CONFIGURATION] = convert.element(_PLANAR_CONFIGURATION, "US", value, target)
    if transcode.is_lossy(source, target):
        edits[_LOSSY] = _text(_LOSSY, "CS", ["01"], target)
    if target == JPEG_BASELINE:
        ratio = f"{image.frame_length / len(first.data):.2f}"
        edits[_LOSSY_RATIO] = _text(_LOSSY_RATIO, "DS", [*_values(document, _LOSSY_RATIO), ratio], target)
        methods = [*_values(document, _LOSSY_METHOD), _JPEG_METHOD]
        edits[_LOSSY_METHOD] = _text(_LOSSY_METHOD, "CS", methods, target)
    return edits


def _values(document: dict[str, Any], tag: int) -> Iterator[str]:
    return (str(value) for value in values_of(document, f"{tag:08X}") if value is not None)


def _text(tag: int, vr: str, values: Sequence[str], target: str) -> bytes:
    value = "\\".join(values).encode("ascii", "replace")
    return convert.element(tag, vr, value + b" " * (len(value) % 2), target)
