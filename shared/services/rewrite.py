"""A new version of one file, with some elements changed: written, parsed, and not yet in the index.

A small file is read and written whole. Of a large one the part up to the last changed element is written,
and storage copies the rest; only what lies between that and the pixel data is read, for the metadata.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from shared import container
from shared.blobs import names
from shared.blobs.store import BLOCK, BlobRange
from shared.dicom import convert, edit
from shared.dicom.changes import Element, Unencodable
from shared.dicom.edit import Incomplete
from shared.dicom.frames import FrameIndex, shifted
from shared.dicom.part10 import BulkData, ParsedInstance, Part10Parser
from shared.dicom.transfer_syntaxes import is_deflated
from shared.errors import InvalidInstance
from shared.services import retrieve
from shared.services.store import BlockUpload, key_of
from shared.sql.instances import StoredInstance

_WHOLE = BLOCK
_HELD = 64 * 1024 * 1024
_AHEAD = 4  # bytes of a value that the parser sees with a header of 8


class NotChanged(Exception):
    """A file that cannot be changed; the message says why in one sentence, without patient data."""


class _OutOfOrder(Exception):
    """A changed element occurs again behind the part of the data set that was looked at."""


async def rewrite(
    stored: StoredInstance, version: str, changes: Sequence[Element], metadata: dict[str, str]
) -> ParsedInstance:
    """Write ``stored`` with ``changes`` as ``version``, whose blob gets ``metadata``.

    Raises NotChanged, and BlobNotFound or NotFound where the file is gone.
    """
    try:
        try:
            parsed = await _rewrite(stored, version, changes, metadata, thorough=False)
        except _OutOfOrder:
            parsed = await _rewrite(stored, version, changes, metadata, thorough=True)
    except _OutOfOrder:
        raise NotChanged("An element that changes occurs twice in the file.") from None
    except (ValueError, zlib.error, struct.error) as error:
        raise NotChanged("The elements of the file cannot be told apart.") from error
    except InvalidInstance as error:
        raise NotChanged(f"The changed file would be invalid: {error}") from error
    if key_of(parsed, stored.key.partition) != stored.key:
        raise NotChanged("The file's identifiers are not those it is stored under.")
    return parsed


async def _rewrite(
    stored: StoredInstance,
    version: str,
    changes: Sequence[Element],
    metadata: dict[str, str],
    thorough: bool,
) -> ParsedInstance:
    if is_deflated(stored.transfer_syntax):
        return await _streamed(stored, version, changes, metadata, thorough)
    if stored.size <= _WHOLE:
        return await _whole(stored, version, changes, metadata, thorough)
    pixels = await retrieve.pixel_data_of(stored)
    if pixels is None or pixels.length < _AHEAD:
        return await _streamed(stored, version, changes, metadata, thorough)
    return await _composed(stored, version, changes, metadata, thorough, pixels)


def _checked(parser: Part10Parser, changes: Sequence[Element]) -> ParsedInstance:
    parsed = parser.close()
    if any(change.tag in parser.repeated for change in changes):
        raise _OutOfOrder
    return parsed


# --- small files -------------------------------------------------------------------------------------


async def _whole(
    stored: StoredInstance,
    version: str,
    changes: Sequence[Element],
    metadata: dict[str, str],
    thorough: bool,
) -> ParsedInstance:
    blobs = container.blob_store()
    data = await blobs.read(names.DICOM, names.file_name(stored.key, stored.version), 0, stored.size)

    def changed() -> tuple[bytes, ParsedInstance]:
        start = convert.meta_length(data)
        new = data[:start] + edit.edit_whole(data[start:], stored.transfer_syntax, changes, thorough)
        parser = Part10Parser()
        parser.feed(new)
        return new, _checked(parser, changes)

    new, parsed = await asyncio.to_thread(changed)
    await blobs.upload(names.DICOM, names.file_name(stored.key, version), new, metadata)
    return parsed


# --- large files with pixel data ---------------------------------------------------------------------


async def _composed(
    stored: StoredInstance,
    version: str,
    changes: Sequence[Element],
    metadata: dict[str, str],
    thorough: bool,
    pixels: BulkData,
) -> ParsedInstance:
    """Storage copies what is behind the last changed element."""
    name = names.file_name(stored.key, stored.version)
    header = await retrieve.meta_information(stored)
    begin = len(header)
    of_pixels = await _begin_of_pixels(name, pixels)
    element = pixels.offset + _AHEAD - len(of_pixels)
    end = pixels.offset + pixels.length
    before = container.blob_store().stream(names.DICOM, name, begin, element - begin)
    after: AsyncIterator[bytes]
    try:
        head, rest = await _head(before, stored.transfer_syntax, changes, thorough)
        copied = begin + head.consumed
        after = container.blob_store().stream(names.DICOM, name, end, stored.size - end)
        data, tail = header + head.data, None
    except Unencodable:
        before = container.blob_store().stream(names.DICOM, name, begin, element - begin)
        held = await _all_of(before)
        trailing = await _all_of(
            container.blob_store().stream(names.DICOM, name, end, stored.size - end)
            if end < stored.size
            else _once(b"")
        )
        syntax = stored.transfer_syntax
        first, tail = await asyncio.to_thread(edit.in_utf_8, held, trailing, syntax, changes)
        data, copied, rest, after = header + first, element, _once(b""), _once(tail)
    shift = len(data) - copied
    table = shifted(await retrieve.whole_frame_table(stored), shift)
    frames = FrameIndex(stored.number_of_frames, stored.frame_offset + shift, stored.frame_bits, table)
    parser = Part10Parser()
    parser.expect_pixel_data(pixels, frames)
    parser.feed(data)
    async for chunk in rest:
        parser.feed(chunk)
    parser.feed(of_pixels)
    parser.pass_over()
    if end < stored.size:
        async for chunk in after:
            parser.feed(chunk)
    parsed = _checked(parser, changes)
    pieces: list[bytes | BlobRange] = [data, BlobRange(name, copied, stored.size - copied)]
    if tail is not None:
        pieces = [data, BlobRange(name, copied, end - copied), tail]
    target = names.file_name(stored.key, version)
    await container.blob_store().compose(names.DICOM, target, pieces, metadata)
    return parsed


async def _begin_of_pixels(name: str, pixels: BulkData) -> bytes:
    """The header of the pixel data element, 8 or 12 bytes, and the first of its value."""
    head = await container.blob_store().read(names.DICOM, name, pixels.offset - 12, 12 + _AHEAD)
    tag = int(pixels.path, 16)
    explicit = head[:4] in (struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) for order in "<>")
    return head if explicit else head[4:]


async def _head(
    chunks: AsyncIterator[bytes], syntax: str, changes: Sequence[Element], thorough: bool
) -> tuple[edit.Edited, AsyncIterator[bytes]]:
    """The changed beginning of a data set, and the rest of ``chunks`` as it is.

    Raises Unencodable, and NotChanged where too much precedes what changes.
    """
    held = b""
    async for chunk in chunks:
        held = held + chunk if held else chunk
        try:
            edited = await asyncio.to_thread(edit.edit, held, False, syntax, changes, thorough)
        except Incomplete:
            _check_held(held)
            continue
        return edited, _chained(held[edited.consumed :], chunks)
    edited = await asyncio.to_thread(edit.edit, held, True, syntax, changes, thorough)
    return edited, _once(held[edited.consumed :])


def _check_held(held: bytes | bytearray) -> None:
    if len(held) > _HELD:
        raise NotChanged(f"More than {_HELD >> 20} MiB of elements would have to be held in memory.")


async def _all_of(chunks: AsyncIterator[bytes]) -> bytes:
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        _check_held(held)
    return bytes(held)


# --- large files without pixel data, and deflated ones -----------------------------------------------


async def _streamed(
    stored: StoredInstance,
    version: str,
    changes: Sequence[Element],
    metadata: dict[str, str],
    thorough: bool,
) -> ParsedInstance:
    """The file goes through this process, a few blocks at a time."""
    parser = Part10Parser()
    upload = BlockUpload(container.blob_store(), stored.key.partition, version, metadata)
    try:
        async with aclosing(_changed_file(stored, changes, thorough)) as chunks:
            async for chunk in chunks:
                parser.feed(chunk)
                await upload.add(chunk, parser)
        parsed = _checked(parser, changes)
        body = await upload.finish()
    except BaseException:
        await upload.abandon()
        raise
    if body is not None:
        name = names.file_name(stored.key, version)
        await container.blob_store().upload(names.DICOM, name, body, metadata)
    return parsed


async def _changed_file(
    stored: StoredInstance, changes: Sequence[Element], thorough: bool
) -> AsyncGenerator[bytes, None]:
    header = await retrieve.meta_information(stored)
    yield header
    syntax = stored.transfer_syntax
    try:
        head, rest = await _head(_dataset(stored, len(header)), syntax, changes, thorough)
        changed = _chained(head.data, rest)
    except Unencodable:
        held = await _all_of(_dataset(stored, len(header)))
        changed = _once(await asyncio.to_thread(edit.edit_whole, held, syntax, changes, thorough))
    if not is_deflated(syntax):
        async for chunk in changed:
            yield chunk
        return
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    size = len(header)
    async for chunk in changed:
        piece = await asyncio.to_thread(deflate.compress, chunk)
        size += len(piece)
        if piece:
            yield piece
    last = deflate.flush()
    yield last + b"\0" * ((size + len(last)) % 2)  # PS3.5 §A.5


def _dataset(stored: StoredInstance, begin: int) -> AsyncIterator[bytes]:
    if is_deflated(stored.transfer_syntax):
        return retrieve.inflated(stored)
    name = names.file_name(stored.key, stored.version)
    return container.blob_store().stream(names.DICOM, name, begin, stored.size - begin)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk
