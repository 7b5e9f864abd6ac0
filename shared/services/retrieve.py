"""Retrieve (WADO-RS, PS3.18 §10.4): instances, metadata, frames and bulk data.

One SQL statement finds what a path addresses; the bytes stream from Blob Storage. Everything that can
fail in an ordinary way fails before the first byte is handed out.
"""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import orjson

from shared import container
from shared.blobs import names
from shared.blobs.store import BLOCK, BlobNotFound
from shared.dicom import convert, frames
from shared.dicom.document import value_of
from shared.dicom.document_types import ENCAPSULATED_DOCUMENT, PIXEL_DATA, type_and_length
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.part10 import BULKDATA_PREFIX, META_LIMIT, BulkData
from shared.dicom.transfer_syntaxes import EXPLICIT_BE, EXPLICIT_LE, is_deflated, is_video, media_type
from shared.errors import NotAcceptable, NotFound
from shared.services import packs
from shared.sql import instances
from shared.sql.instances import StoredInstance

_AHEAD_BYTES = 16 * 1024 * 1024
_AHEAD_OF_ALL_BYTES = 48 * 1024 * 1024  # of all requests of this process
_AHEAD_READS = 8
_RUN_BYTES = BLOCK
_RUN_GAP = 64 * 1024
_MOVES = 3
_MOST_FRAGMENTS = 64  # whose headers are looked for one by one

_INFLATE_STEP = 1 << 20
_CONVERTIBLE_BYTES = 64 * 1024 * 1024  # elements besides pixel data are held while they are converted

_PIXEL_TAGS = ("7FE00010", "7FE00008", "7FE00009")
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a blob."""

    container: str
    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes on their way: ``length`` is None where it is not known beforehand.

    ``cut(first byte, number of bytes)`` gives a part of them instead, where it can be had by itself.
    """

    length: int | None
    chunks: AsyncIterator[bytes]
    cut: Callable[[int, int], AsyncIterator[bytes]] | None = None


async def find(resource: Resource, original: bool = False) -> list[StoredInstance]:
    """The instances a path addresses, in order of storing. Raises NotFound where there is none.

    ``original`` gives of those that a bulk update has changed the version before the first one.
    """
    found = await container.database().read(instances.find_instances, resource, original)
    if not found:
        kind = "instance" if resource.instance else "series" if resource.series else "study"
        raise NotFound(f"The {kind} does not exist.")
    return found


# --- reading ahead -----------------------------------------------------------------------------------


class _Ahead:
    """Bytes one request has read ahead. What all requests have together is bounded too: then each reads only
    what it hands out next."""

    of_all = 0

    def __init__(self) -> None:
        self.size = 0

    def add(self, size: int) -> None:
        self.size += size
        _Ahead.of_all += size

    @property
    def has_room(self) -> bool:
        return self.size < _AHEAD_BYTES and _Ahead.of_all < _AHEAD_OF_ALL_BYTES


async def _read_all(spans: Sequence[Span]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of each span in turn; small ones are read several at a time, ahead of their turn."""
    waiting: deque[asyncio.Task[bytes] | None] = deque()
    ahead = _Ahead()
    upcoming = iter(spans)
    lengths: deque[Span] = deque()
    done = False
    try:
        while True:
            while not done and (not waiting or (len(waiting) < _AHEAD_READS and ahead.has_room)):
                span = next(upcoming, None)
                if span is None:
                    done = True
                    break
                small = span.length <= BLOCK and len(spans) > 1
                ahead.add(min(span.length, BLOCK))
                lengths.append(span)
                waiting.append(asyncio.create_task(_read(span)) if small else None)
            if not waiting:
                return
            task, span = waiting.popleft(), lengths.popleft()
            if task is None:
                yield _stream(span)
            else:
                yield await _done(task)
            ahead.add(-min(span.length, BLOCK))
    finally:
        ahead.add(-ahead.size)
        for task in waiting:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in waiting if task is not None), return_exceptions=True)


async def _read(span: Span) -> bytes:
    try:
        return await container.blob_store().read(span.container, span.name, span.offset, span.length)
    except BlobNotFound:
        raise NotFound("The resource has just been deleted.") from None


async def _stream(span: Span) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in container.blob_store().stream(span.container, span.name, span.offset, span.length):
            yield chunk
    except BlobNotFound:
        raise NotFound("The resource has just been deleted.") from None


async def _done(task: asyncio.Task[bytes]) -> AsyncIterator[bytes]:
    """What a task has read; NotFound is for the reader of this span alone."""
    try:
        return _once(await task)
    except NotFound as error:
        return _once(error)


def in_memory(data: bytes) -> Payload:
    """A payload that is there already."""
    return Payload(len(data), _once(data), lambda start, count: _once(data[start : start + count]))


async def held(payload: Payload, most: int) -> bytes | None:
    """All the bytes of ``payload``; None where they are more than ``most``."""
    if payload.length is not None and payload.length > most:
        return None
    pieces: list[bytes] = []
    size = 0
    async for chunk in payload.chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > most:
            return None
    return b"".join(pieces)


def enclosed(head: bytes, payload: Payload, tail: bytes) -> Payload:
    """``payload`` between ``head`` and ``tail``."""

    async def joined(middle: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield head
        async for chunk in middle:
            yield chunk
        yield tail

    if payload.length is None:
        return Payload(None, joined(payload.chunks))
    length, cut = payload.length, payload.cut

    async def part(start: int, count: int) -> AsyncIterator[bytes]:
        assert cut is not None
        stop = start + count
        yield head[start:stop]
        first, last = max(0, start - len(head)), min(length, stop - len(head))
        if first < last:
            async for chunk in cut(first, last - first):
                yield chunk
        yield tail[max(0, start - len(head) - length) : max(0, stop - len(head) - length)]

    return Payload(len(head) + length + len(tail), joined(payload.chunks), part if cut else None)


async def _once(data: bytes | NotFound) -> AsyncIterator[bytes]:
    if isinstance(data, NotFound):
        raise data
    yield data


async def _read_record(stored: StoredInstance, offset: int, length: int) -> bytes:
    """Bytes of an instance's record in its pack, out of which a clean-up may have moved it since."""
    for _ in range(_MOVES):
        with suppress(NotFound):
            return await _read(_pack_span(stored, offset, length))
        key = stored.key
        (now,) = await find(Resource(key.partition, key.study, key.series, key.instance), stored.original)
        if now.version != stored.version:
            break
        stored = now
    raise NotFound("The resource has just been deleted.")


def _file_span(stored: StoredInstance) -> Span:
    return Span(names.DICOM, names.file_name(stored.key, stored.version), 0, stored.size)


def _cut_of(span: Span) -> Callable[[int, int], AsyncIterator[bytes]]:
    return lambda start, count: _stream(replace(span, offset=span.offset + start, length=count))


def _pack_span(stored: StoredInstance, offset: int, length: int) -> Span:
    key = stored.key
    name = names.pack_name(key.partition, key.study, key.series, stored.place.pack)
    return Span(names.METADATA, name, stored.place.offset + offset, length)


# --- instances ---------------------------------------------------------------------------------------


async def read_instances(found: Sequence[StoredInstance]) -> AsyncIterator[Payload]:
    """The files of ``found`` as they are stored."""
    spans = [_file_span(stored) for stored in found]
    turn = iter(spans)
    async for chunks in _read_all(spans):
        span = next(turn)
        yield Payload(span.length, chunks, _cut_of(span))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A file without its pixel data: what precedes the element, where that is, and what follows it."""

    header: bytes
    before: bytes
    pixels: BulkData
    after: bytes


async def around_pixel_data(stored: StoredInstance) -> Surroundings | None:
    """What is around the pixel data, in the stored syntax; None where there is none.

    Raises NotAcceptable where that is too much to hold.
    """
    pixels = await pixel_data_of(stored)
    if pixels is None:
        return None
    header, before = await _head(stored, pixels.offset)
    after = await _held(_dataset(stored, pixels.offset + pixels.length))
    tag = int(pixels.path, 16)
    explicit = before[-12:-8] in (struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) for order in "<>")
    return Surroundings(header, before[: -12 if explicit else -8], pixels, after)


async def all_elements(stored: StoredInstance) -> bytes:
    """The data set of an instance without pixel data, in the stored syntax, inflated where that deflates.

    Raises NotAcceptable where that is too much to hold.
    """
    _, elements = await _head(stored, None)
    return elements


def value_bytes(stored: StoredInstance, entry: BulkData) -> AsyncIterator[bytes]:
    """The bytes of a bulk value as they are stored, inflated where the syntax deflates."""
    return _dataset(stored, entry.offset, entry.length)


async def read_document(stored: StoredInstance) -> dict[str, Any]:
    """The instance's metadata as a DICOM JSON object, its bulk data by relative names."""
    document: dict[str, Any] = orjson.loads(await read_document_text(stored))
    return document


async def read_document_text(stored: StoredInstance) -> bytes:
    """The text of that object, whose numbers have their digits as stored."""
    return await _read_record(stored, 0, stored.place.document_length)


async def in_native_syntax(stored: StoredInstance, target: str) -> Payload:
    """A native file, or one without pixel data, in another native syntax: its elements rewritten, its pixel
    data swapped where needed. Raises NotAcceptable."""
    around = await around_pixel_data(stored)
    if around is None:
        header, elements = await _head(stored, None)
        start, _ = await convert_elements(stored, target, elements, b"")
        start = convert.with_transfer_syntax(header, target) + start
        return Payload(len(start), _once(start))
    pixels = around.pixels
    if pixels.encapsulated:
        raise NotAcceptable("The instance's pixel data is encapsulated in spite of its transfer syntax.")
    start, end = await convert_elements(stored, target, around.before, around.after)
    start = convert.with_transfer_syntax(around.header, target) + start
    start += convert.element_header(int(pixels.path, 16), pixels.vr, pixels.length, target)
    swapped = EXPLICIT_BE in (stored.transfer_syntax, target)
    size = await _word_size(stored, pixels) if swapped else 1

    async def chunks() -> AsyncIterator[bytes]:
        yield start
        async for chunk in _swapped(_dataset(stored, pixels.offset, pixels.length), size):
            yield chunk
        if end:
            yield end

    return Payload(len(start) + pixels.length + len(end), chunks())


async def _head(stored: StoredInstance, stop: int | None) -> tuple[bytes, bytes]:
    """The file meta information, and the data set up to the offset ``stop``."""
    if is_deflated(stored.transfer_syntax):
        return await meta_information(stored), await _held(_dataset(stored, 0, stop))
    head = await _held(_dataset(stored, 0, stop))
    length = convert.meta_length(head)
    return head[:length], head[length:]


async def convert_elements(
    stored: StoredInstance,
    target: str,
    before: bytes,
    after: bytes,
    edits: Mapping[int, bytes] | None = None,
) -> tuple[bytes, bytes]:
    """The elements before and after pixel data in the syntax ``target``, with ``edits`` (see Converter).

    Raises NotAcceptable where they cannot be converted.
    """
    converter = convert.Converter(stored.transfer_syntax, target, edits)
    try:
        return await asyncio.to_thread(lambda: (converter.convert(before), converter.convert(after)))
    except ValueError as error:
        raise NotAcceptable(
            f"The instance cannot be converted from transfer syntax {stored.transfer_syntax} to {target}; "
            "ask with transfer-syntax=*."
        ) from error


async def _held(chunks: AsyncIterator[bytes]) -> bytes:
    """All of ``chunks``. Raises NotAcceptable where that is too much to hold."""
    data = await held(Payload(None, chunks), _CONVERTIBLE_BYTES)
    if data is None:
        raise NotAcceptable("The instance is too large to be converted; ask with transfer-syntax=*.")
    return data


async def _swapped(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        data = rest + chunk if rest else chunk
        whole = len(data) - len(data) % size
        rest = data[whole:]
        yield convert.swap(data[:whole], size)
    if rest:
        yield rest


def _cut_of_dataset(
    stored: StoredInstance, offset: int, length: int, size: int
) -> Callable[[int, int], AsyncIterator[bytes]]:
    """Parts of the value of ``length`` bytes at ``offset``, whose words of ``size`` bytes are swapped."""

    async def cut(start: int, count: int) -> AsyncIterator[bytes]:
        drop = start % size
        words = min(-(-(drop + count) // size) * size, length - start + drop)
        left = count
        async for chunk in _swapped(_dataset(stored, offset + start - drop, words), size):
            piece = chunk[drop : drop + left]
            drop = max(0, drop - len(chunk))
            left -= len(piece)
            if piece:
                yield piece

    return cut


async def _word_size(stored: StoredInstance, pixels: BulkData) -> int:
    bits = value_of(await read_document(stored), "00280100", 16)
    return convert.word_size(pixels.vr, bits if isinstance(bits, int) else 16)


async def meta_information(stored: StoredInstance) -> bytes:
    """Preamble, prefix and file meta information."""
    head = await _read(replace(_file_span(stored), length=min(META_LIMIT, stored.size)))
    return head[: convert.meta_length(head)]


async def _dataset(stored: StoredInstance, offset: int, length: int | None = None) -> AsyncIterator[bytes]:
    """A range of the stream in which offsets of frames and bulk data count: the file, or the inflated
    data set in a deflated syntax."""
    if not is_deflated(stored.transfer_syntax):
        left = stored.size - offset
        span = replace(_file_span(stored), offset=offset, length=left if length is None else length)
        async for chunk in _stream(span):
            yield chunk
        return
    end = None if length is None else offset + length
    position = 0
    async with aclosing(inflated(stored)) as pieces:
        async for piece in pieces:
            stop = position + len(piece)
            if stop > offset:
                yield piece[max(0, offset - position) : None if end is None else end - position]
            position = stop
            if end is not None and position >= end:
                return


async def inflated(stored: StoredInstance) -> AsyncGenerator[bytes, None]:
    """The data set of a deflated file in small pieces, for a small file may inflate to a large one."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    begin = len(await meta_information(stored))
    span = replace(_file_span(stored), offset=begin, length=stored.size - begin)
    async with aclosing(_stream(span)) as chunks:
        async for chunk in chunks:
            while chunk and not inflate.eof:
                yield await asyncio.to_thread(inflate.decompress, chunk, _INFLATE_STEP)
                chunk = inflate.unconsumed_tail
    yield inflate.flush()


# --- metadata ----------------------------------------------------------------------------------------


def digest(found: Sequence[StoredInstance], root: str) -> str:
    """32 hexadecimal digits that change when any instance of ``found`` does, or the URLs in its metadata."""
    hashed = sha256(root.encode())
    for version in sorted(stored.version for stored in found):
        hashed.update(version.encode())
    return hashed.hexdigest()[:32]


async def read_metadata(found: Sequence[StoredInstance], root: str) -> AsyncIterator[bytes]:
    """One DICOM JSON object an instance, pack by pack.

    ``root`` is the URL of the Studies service, for BulkDataURI.
    """
    async for key, document in read_documents(found):
        yield with_urls(document, key, root)


async def read_documents(found: Sequence[StoredInstance]) -> AsyncIterator[tuple[InstanceKey, bytes]]:
    """The metadata documents of instances as they are kept, pack by pack. Raises NotFound."""
    by_pack: dict[tuple[str, str, str], list[StoredInstance]] = {}
    for stored in found:
        by_pack.setdefault((stored.key.study, stored.key.series, stored.place.pack), []).append(stored)
    groups = [sorted(group, key=lambda s: s.place.offset) for group in by_pack.values()]
    spans = [_documents_span(group) for group in groups]
    turn = iter(groups)
    async for chunks in _read_all(spans):
        waiting = deque(next(turn))
        try:
            async for stored, document in _cut(waiting, chunks):
                yield stored.key, document
        except NotFound:  # a clean-up has moved them to another pack
            for stored in waiting:
                document = await _read_record(stored, 0, stored.place.document_length)
                yield stored.key, document


def _documents_span(group: Sequence[StoredInstance]) -> Span:
    """The range of a pack from the first document of ``group`` to the end of its last."""
    first, last = group[0], group[-1]
    length = last.place.offset + last.place.document_length - first.place.offset
    return _pack_span(first, 0, length)


async def _cut(
    waiting: deque[StoredInstance], chunks: AsyncIterator[bytes]
) -> AsyncIterator[tuple[StoredInstance, bytes]]:
    """The documents of ``waiting`` out of the bytes of their range; what is left there has none."""
    base = waiting[0].place.offset
    buffer = b""
    async for chunk in chunks:
        buffer = buffer + chunk if buffer else chunk
        used = 0
        while waiting:
            start = waiting[0].place.offset - base
            stop = start + waiting[0].place.document_length
            if stop > len(buffer):
                used = min(start, len(buffer))
                break
            yield waiting.popleft(), buffer[start:stop]
            used = stop
        buffer, base = buffer[used:], base + used
    if waiting:
        raise NotFound("The metadata has just been deleted.")


def little_endian(stored: StoredInstance) -> str:
    """The syntax in which to read frames so that words are little endian."""
    return EXPLICIT_LE if stored.transfer_syntax == EXPLICIT_BE else stored.transfer_syntax


def with_urls(document: bytes, key: InstanceKey, root: str) -> bytes:
    """A stored document with absolute BulkDataURI below ``root``, the URL of the Studies service."""
    url = f"{root}/studies/{key.study}/series/{key.series}/instances/{key.instance}/bulkdata/"
    return document.replace(BULKDATA_PREFIX.encode(), f'"BulkDataURI":{json.dumps(url)[:-1]}'.encode())


# --- frames ------------------------------------------------------------------------------------------


async def read_frames(
    stored: StoredInstance, numbers: Sequence[int], transfer_syntax: str
) -> AsyncIterator[Payload]:
    """Frames by number (from 1), in the order asked for.

    ``transfer_syntax`` is the stored one or Explicit VR Little Endian for a native instance. Raises
    NotFound for an instance without (such) frames.
    """
    check_frames(stored, numbers)
    if stored.frame_bits:
        swap = stored.transfer_syntax == EXPLICIT_BE and transfer_syntax != EXPLICIT_BE
        async for payload in _native_frames(stored, numbers, swap):
            yield payload
        return
    table = await _frame_table(stored, numbers)
    turn = iter(table)
    async for payload in _ranges(stored, table):
        yield await _unwrapped(stored, *next(turn), payload)


async def _native_frames(
    stored: StoredInstance, numbers: Sequence[int], swap: bool
) -> AsyncIterator[Payload]:
    pixels = await pixel_data_of(stored) if swap else None
    size = await _word_size(stored, pixels) if pixels else 1
    bits = stored.frame_bits
    ranges = [frames.native_range(number, bits, size) for number in numbers]
    drops = iter(ranges)
    async for payload in _ranges(
        stored, [(stored.frame_offset + start, length) for start, length, _ in ranges]
    ):
        start, length, drop = next(drops)
        chunks = _swapped(payload.chunks, size) if size > 1 else payload.chunks
        if drop == 0 and length * 8 == bits:
            yield Payload(length, chunks, _cut_of_dataset(stored, stored.frame_offset + start, length, size))
        else:
            yield in_memory(frames.align(b"".join([chunk async for chunk in chunks]), drop, bits))


def check_frames(stored: StoredInstance, numbers: Sequence[int]) -> None:
    """Raise NotFound unless the instance has these frames."""
    if stored.number_of_frames == 0:
        raise NotFound("The instance has no pixel data.")
    if max(numbers) > stored.number_of_frames:
        raise NotFound(f"The instance has {stored.number_of_frames} frames.")
    if not stored.frame_bits and not stored.place.frames_length:
        raise NotFound("The frames of this instance cannot be told apart in its pixel data.")


async def whole_frame_table(stored: StoredInstance) -> bytes:
    """The table of all frames; empty where there is none."""
    place = stored.place
    if not place.frames_length:
        return b""
    return await _read_record(stored, place.document_length + place.bulkdata_length, place.frames_length)


async def _frame_table(stored: StoredInstance, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """``(offset, length)`` of each frame's items, from the table in the pack in one read."""
    low, high = min(numbers), max(numbers)
    size = frames.ENTRY.size
    place = stored.place
    start = place.document_length + place.bulkdata_length + (low - 1) * size
    table = await _read_record(stored, start, (high - low + 1) * size)
    return [frames.ENTRY.unpack_from(table, (number - low) * size) for number in numbers]


async def _ranges(stored: StoredInstance, spans: Sequence[tuple[int, int]]) -> AsyncIterator[Payload]:
    """The bytes at each ``(offset, length)``; neighbours come with one ranged read, large ones stream."""
    runs: list[list[tuple[int, int]]] = []
    for span in spans:
        if runs and _continues(runs[-1], span):
            runs[-1].append(span)
        else:
            runs.append([span])
    turn = iter(runs)
    async for chunks in _streams(stored, [(run[0][0], _length(run)) for run in runs]):
        run = next(turn)
        if len(run) == 1:
            yield Payload(run[0][1], chunks)
            continue
        data = b"".join([chunk async for chunk in chunks])
        for offset, length in run:
            yield in_memory(data[offset - run[0][0] : offset - run[0][0] + length])


async def _streams(
    stored: StoredInstance, spans: Sequence[tuple[int, int]]
) -> AsyncIterator[AsyncIterator[bytes]]:
    if is_deflated(stored.transfer_syntax):
        for offset, length in spans:
            yield _dataset(stored, offset, length)
        return
    file = _file_span(stored)
    async for chunks in _read_all([replace(file, offset=offset, length=length) for offset, length in spans]):
        yield chunks


def _length(run: Sequence[tuple[int, int]]) -> int:
    return run[-1][0] + run[-1][1] - run[0][0]


def _continues(run: Sequence[tuple[int, int]], span: tuple[int, int]) -> bool:
    end = run[-1][0] + run[-1][1]
    near = run[-1][0] <= span[0] <= end + _RUN_GAP
    return near and span[0] + span[1] - run[0][0] <= _RUN_BYTES


# --- bulk data ---------------------------------------------------------------------------------------


async def _bulkdata_index(stored: StoredInstance) -> bytes:
    place = stored.place
    return await _read_record(stored, place.document_length, place.bulkdata_length)


async def pixel_data_of(stored: StoredInstance) -> BulkData | None:
    """The pixel data element of any kind, if there is one."""
    index = await _bulkdata_index(stored)
    entries = (packs.bulkdata_entry(index, tag) for tag in _PIXEL_TAGS)
    return next((entry for entry in entries if entry is not None), None)


async def read_bulkdata(stored: StoredInstance, path: str) -> Payload:
    """The value a BulkDataURI stands for, little endian; of encapsulated data the fragments' bytes.

    Raises NotFound where no such value was given out.
    """
    entry = packs.bulkdata_entry(await _bulkdata_index(stored), path)
    if entry is None:
        raise NotFound("The instance has no such bulk data.")
    if entry.encapsulated:
        return await _fragments_of(stored, entry)
    size = 1
    if stored.transfer_syntax == EXPLICIT_BE:
        pixels = path in _PIXEL_TAGS
        size = await _word_size(stored, entry) if pixels else convert.word_size(entry.vr, 0)
    chunks = _swapped(_dataset(stored, entry.offset, entry.length), size)
    return Payload(entry.length, chunks, _cut_of_dataset(stored, entry.offset, entry.length, size))


async def own_media_type(stored: StoredInstance, path: str) -> tuple[str, int | None]:
    """Media type that the bulk data at ``path`` has by itself, and its length without padding if stated.

    The type is empty where it is octets only: all but videos and encapsulated documents.
    """
    if path == PIXEL_DATA and is_video(stored.transfer_syntax):
        return media_type(stored.transfer_syntax), None
    if path != ENCAPSULATED_DOCUMENT:
        return "", None
    return type_and_length(await read_document(stored))


def without_padding(payload: Payload, length: int | None) -> Payload:
    """``payload`` without the byte that makes its length even, where ``length`` says that there is one."""
    if payload.cut is None or length is None or payload.length != length + 1:
        return payload
    return Payload(length, payload.cut(0, length), payload.cut)


async def _fragments_of(stored: StoredInstance, entry: BulkData) -> Payload:
    """Encapsulated pixel data without the headers of its items and the offset table."""
    chunks = _dataset(stored, entry.offset, entry.length)
    if entry.length <= BLOCK:
        return in_memory(b"".join([chunk async for chunk in _fragment_bytes(chunks, tables=1)]))
    if stored.place.frames_length and stored.number_of_frames > 1:
        return Payload(None, _fragment_bytes(chunks, tables=1))
    return await _extents(stored, entry.offset, entry.length, tables=1)


async def _unwrapped(stored: StoredInstance, offset: int, length: int, frame: Payload) -> Payload:
    """A frame without the headers of its items."""
    if length <= BLOCK:
        return in_memory(b"".join([chunk async for chunk in _fragment_bytes(frame.chunks)]))
    return await _extents(stored, offset, length)


async def _extents(stored: StoredInstance, offset: int, length: int, tables: int = 0) -> Payload:
    """The payloads of a run of items but the first ``tables``; where there are few, any part of them."""
    extents: list[tuple[int, int]] = []
    position = offset
    while position + 8 <= offset + length:
        if len(extents) == _MOST_FRAGMENTS:
            return Payload(None, _fragment_bytes(_dataset(stored, offset, length), tables))
        header = b"".join([chunk async for chunk in _dataset(stored, position, 8)])
        if header[:4] == _SEQUENCE_END:
            break
        size = int.from_bytes(header[4:], "little")
        extents.append((position + 8, size))
        position += 8 + size
    del extents[:tables]
    total = sum(size for _, size in extents)

    async def cut(start: int, count: int) -> AsyncIterator[bytes]:
        for begin, size in extents:
            taken = min(size - start, count)
            if taken > 0:
                async for chunk in _dataset(stored, begin + start, taken):
                    yield chunk
                count -= taken
            start = max(0, start - size)

    return Payload(total, cut(0, total), cut)


async def _fragment_bytes(chunks: AsyncIterator[bytes], tables: int = 0) -> AsyncIterator[bytes]:
    """The payloads of a run of items as they stream by, without those of the first ``tables``."""
    header = b""
    left = 0  # of the current item
    item = -1
    async for chunk in chunks:
        position = 0
        while position < len(chunk):
            if left:
                stop = min(position + left, len(chunk))
                left -= stop - position
                if item >= tables:
                    yield chunk[position:stop]
                position = stop
                continue
            stop = min(position + 8 - len(header), len(chunk))
            header += chunk[position:stop]
            position = stop
            if len(header) == 8:
                if header[:4] == _SEQUENCE_END:
                    return
                left = int.from_bytes(header[4:], "little")
                header = b""
                item += 1
