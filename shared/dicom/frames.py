"""Where frames lie in a file, and how their bytes are cut out of it.

Native frames have one length and need no table. Encapsulated ones (PS3.5 §A.4) have a table of
``(offset, length)`` pairs of 64-bit little-endian numbers: the range of the file that holds the items
of the frame, item headers included, so that any frame is one ranged read. A single frame needs no table.
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.dicom.part10 import Fragments

ENTRY = struct.Struct("<QQ")
"""One entry of a frame table."""

_ITEM_HEADER = 8
_JPEG, _JPEG_2000, _JPEG_XL = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a"


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """How to find frames.

    ``number_of_frames`` is 0 without pixel data. Native: frame ``n`` (from 1) begins at bit
    ``(n - 1) * bits`` after byte ``offset``. Encapsulated: ``bits`` is 0 and ``table`` has an entry a
    frame, or is empty where the frames could not be told apart.
    """

    number_of_frames: int = 0
    offset: int = 0
    bits: int = 0
    table: bytes = b""


def index_native(image: dict[str, str], offset: int, length: int) -> tuple[FrameIndex, str]:
    """The index of native pixel data of ``length`` bytes, and what is wrong with it."""
    count = _integer(image, "number_of_frames", 1) or 1
    rows, columns = _integer(image, "rows"), _integer(image, "columns")
    samples = _integer(image, "samples_per_pixel", 1)
    if image.get("photometric_interpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"):
        samples = 2
    bits = rows * columns * samples * _integer(image, "bits_allocated")
    if bits == 0:
        return FrameIndex(count, offset), "has no frames: Rows, Columns or BitsAllocated is missing or zero"
    if count * bits > length * 8:
        return FrameIndex(count, offset), "holds fewer bytes than its frames need"
    return FrameIndex(count, offset, bits), ""


def index_encapsulated(
    image: dict[str, str], fragments: Fragments, extended: list[bytes]
) -> tuple[FrameIndex, str]:
    """The index of encapsulated pixel data, and what is wrong with it.

    Tried in turn: one frame; as many fragments as frames; the extended offset table (PS3.3 §C.7.6.3.1.8);
    the basic offset table; the start of a codestream in each frame's first fragment. Nothing is believed
    that begins a frame within a codestream.
    """
    count = _integer(image, "number_of_frames", 1) or 1
    offsets, lengths = fragments.offsets, fragments.lengths
    if not offsets:
        return FrameIndex(count), "holds no fragments"
    first = offsets[0] - _ITEM_HEADER
    starts = _frame_starts(count, fragments, extended)
    if not starts:
        return FrameIndex(count, first), "holds fragments that cannot be assigned to its frames"
    table = array("Q")
    for start, stop in zip(starts, [*starts[1:], len(offsets)], strict=True):
        begin = offsets[start] - _ITEM_HEADER
        table.append(begin)
        table.append(offsets[stop - 1] + lengths[stop - 1] - begin)
    return FrameIndex(count, first, 0, _little_endian(table)), ""


def _frame_starts(count: int, fragments: Fragments, extended: list[bytes]) -> Sequence[int]:
    """Indexes of the fragments that begin a frame; none where the frames cannot be told apart."""
    if count == 1:
        return [0]
    for found in (
        lambda: range(len(fragments.offsets)),
        lambda: _starts_from_offsets(_unpack("<Q", extended[0]), fragments),
        lambda: _starts_from_offsets(_unpack("<I", fragments.basic_offsets), fragments),
        lambda: _starts_from_codestreams(fragments),
    ):
        starts = found()
        if len(starts) == count and _within_none(starts, fragments):
            return starts
    return []


def _within_none(starts: Sequence[int], fragments: Fragments) -> bool:
    """Whether no frame begins within a codestream. Where none was recognised, there is nothing to tell."""
    begins, lengths = fragments.begins, fragments.lengths
    return not any(begins) or all(begins[start] or not lengths[start] for start in starts)


def _starts_from_codestreams(fragments: Fragments) -> list[int]:
    starts = [i for i, begins in enumerate(fragments.begins) if begins]
    return starts if starts and not any(fragments.lengths[: starts[0]]) else []


def _starts_from_offsets(table: tuple[int, ...], fragments: Fragments) -> list[int]:
    """Indexes of the fragments at the table's offsets, counted from the first fragment's item."""
    first = fragments.offsets[0]
    starts = [bisect_left(fragments.offsets, first + offset) for offset in table]
    exact = all(
        i < len(fragments.offsets) and fragments.offsets[i] == first + offset
        for i, offset in zip(starts, table, strict=True)
    )
    rising = all(a < b for a, b in itertools.pairwise(starts))
    return starts if exact and rising and starts[:1] == [0] else []


def begins_codestream(head: bytes) -> bool:
    """Whether a fragment that begins with ``head`` (four bytes) is the first of a JPEG frame of any kind."""
    return head.startswith((_JPEG, _JPEG_2000, _JPEG_XL))


def _unpack(form: str, table: bytes) -> tuple[int, ...]:
    size = struct.calcsize(form)
    return struct.unpack(f"<{len(table) // size}{form[1]}", table[: len(table) // size * size])


def _little_endian(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def shifted(table: bytes, shift: int) -> bytes:
    """A frame table whose frames lie ``shift`` bytes later in the file, or earlier."""
    values = array("Q")
    values.frombytes(table)
    if sys.byteorder == "big":
        values.byteswap()
    for index in range(0, len(values), 2):
        values[index] += shift
    return _little_endian(values)


def _integer(image: dict[str, str], name: str, default: int = 0) -> int:
    try:
        value = int(image.get(name, default))
    except ValueError:
        return default
    return value if 0 <= value < 2**31 else 0


def native_range(frame: int, bits: int, word: int = 1) -> tuple[int, int, int]:
    """``(first byte, number of bytes, bits to drop at its start)`` of native frame ``frame`` (from 1).

    Frames follow each other without padding (PS3.5 §8.1.1), so one of one-bit pixels may begin within a byte.
    The range consists of whole words of ``word`` bytes, for they must be swapped before anything else.
    """
    start = (frame - 1) * bits
    first = start // (8 * word) * word
    stop = -(-(start + bits) // (8 * word)) * word
    return first, stop - first, start - first * 8


def align(data: bytes, drop: int, bits: int) -> bytes:
    """The frame of ``bits`` bits that begins ``drop`` bits into ``data``, at a byte boundary."""
    if drop:
        data = (int.from_bytes(data, "little") >> drop).to_bytes(len(data), "little")
    if bits % 8:
        data = data[: (bits + 7) // 8]
        data = data[:-1] + bytes([data[-1] & (1 << bits % 8) - 1])
    return data[: (bits + 7) // 8]
