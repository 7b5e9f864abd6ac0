"""Tiled images of any number of frames, made while they are read: a slide of 100,000 tiles takes no memory.

A tile is a JPEG that says its number in a comment (``FF FE``), so that no two are alike and each decodes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from functools import cache
from typing import Literal

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from tests.dicom_files import make_dataset, to_file

OffsetTable = Literal["basic", "extended", ""]

EDGE = 3  # rows and columns of a tile
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)
_PIXEL_DATA, _OFFSETS, _LENGTHS = b"\xe0\x7f\x10\x00", b"\xe0\x7f\x01\x00", b"\xe0\x7f\x02\x00"
_NATIVE_TILE = bytes(range(EDGE * EDGE * 3 - 4))


@cache
def _jpeg() -> bytes:
    ds = dcmread(get_testdata_file("SC_rgb_small_odd_jpeg.dcm"))
    return next(generate_frames(ds.PixelData, number_of_frames=1))


def tile(number: int) -> bytes:
    """Tile ``number`` (from 1) as a JPEG of an even number of bytes."""
    jpeg = _jpeg()
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">HI", 6, number) + jpeg[2:] + bytes(len(jpeg) % 2)


def native_tile(number: int) -> bytes:
    """Tile ``number`` as 3 x 3 pixels of RGB."""
    return struct.pack("<I", number) + _NATIVE_TILE


def head(frames: int, native: bool = False, study: str | None = None, series: str | None = None) -> bytes:
    """A slide up to its functional groups."""
    ds = make_dataset(
        study,
        series,
        frames=0,
        SOPClassUID=VLWholeSlideMicroscopyImageStorage,
        Modality="SM",
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB" if native else "YBR_FULL_422",
        PlanarConfiguration=0,
        NumberOfFrames=frames,
        Rows=EDGE,
        Columns=EDGE,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        TotalPixelMatrixColumns=EDGE * frames,
        TotalPixelMatrixRows=EDGE,
        DimensionOrganizationUID=generate_uid(),
    )
    return to_file(ds) if native else to_file(ds, JPEGBaseline8Bit)


def native_slide(frames: int) -> Iterator[bytes]:
    """A file of native tiles, in pieces."""
    yield head(frames, native=True)
    yield _PIXEL_DATA + b"OB\0\0" + struct.pack("<I", frames * EDGE * EDGE * 3)
    for number in range(1, frames + 1):
        yield native_tile(number)


def slide(
    frames: int, table: OffsetTable = "", pieces: int = 1, positions: bool = False, start: bytes = b""
) -> Iterator[bytes]:
    """A file of JPEG tiles, in pieces.

    ``table`` is the offset table it has (none: an empty basic one), ``pieces`` the fragments of a tile,
    ``positions`` gives each tile functional groups as TILED_SPARSE slides have; ``start`` is :func:`head`.
    """
    yield start or head(frames)
    if positions:
        yield from functional_groups(frames)
    length = len(tile(1))
    step = length + 8 * pieces
    offsets = range(0, frames * step, step)
    if table == "extended":
        yield _OFFSETS + b"OV\0\0" + struct.pack(f"<I{frames}Q", 8 * frames, *offsets)
        yield _LENGTHS + b"OV\0\0" + struct.pack(f"<I{frames}Q", 8 * frames, *[length] * frames)
    yield _PIXEL_DATA + b"OB\0\0\xff\xff\xff\xff"
    basic = offsets if table == "basic" else range(0)
    yield _ITEM + struct.pack(f"<I{len(basic)}I", 4 * len(basic), *basic)
    cut = length // pieces // 2 * 2
    cuts = [*range(0, cut * pieces, cut), length]
    for number in range(1, frames + 1):
        data = tile(number)
        for begin, end in itertools.pairwise(cuts):
            yield _ITEM + struct.pack("<I", end - begin) + data[begin:end]
    yield _SEQUENCE_END


def functional_groups(frames: int) -> Iterator[bytes]:
    """PerFrameFunctionalGroupsSequence: dimension indices and the position of each tile on the slide."""
    yield b"\x00\x52\x30\x92SQ\0\0\xff\xff\xff\xff"
    for number in range(frames):
        indices = _element(0x0020, 0x9157, b"UL", struct.pack("<2I", number + 1, 1))
        place = _element(0x0040, 0x072A, b"DS", f"{number * 0.0015:.6f}".encode())
        place += _element(0x0040, 0x073A, b"DS", b"12.500000")
        place += _element(0x0040, 0x074A, b"DS", b"0.0 ")
        place += _element(0x0048, 0x021E, b"SL", struct.pack("<i", number * EDGE + 1))
        place += _element(0x0048, 0x021F, b"SL", struct.pack("<i", 1))
        path = _element(0x0048, 0x0106, b"SH", b"1 ")
        yield _item(
            _sequence(0x0020, 0x9111, indices)
            + _sequence(0x0048, 0x0207, path)
            + _sequence(0x0048, 0x021A, place)
        )
    yield _SEQUENCE_END


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _item(content: bytes) -> bytes:
    return _ITEM + struct.pack("<I", len(content)) + content


def _sequence(group: int, number: int, content: bytes) -> bytes:
    item = _item(content)
    return struct.pack("<HH2sHI", group, number, b"SQ", 0, len(item)) + item


def gathered(pieces: Iterator[bytes], size: int = 1 << 18) -> Iterator[bytes]:
    """The same bytes in pieces of about ``size``."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= size:
            yield b"".join(held)
            held, length = [], 0
    yield b"".join(held)
