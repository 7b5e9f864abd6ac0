"""Where frames lie: native ones by arithmetic, encapsulated ones by their tables (PS3.5 §8, §A.4)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.dicom.frames import (
    ENTRY,
    align,
    begins_codestream,
    index_encapsulated,
    index_native,
    native_range,
)
from shared.dicom.part10 import Fragments

IMAGE = {"rows": "4", "columns": "6", "bits_allocated": "16", "samples_per_pixel": "1"}
PLAIN, CODESTREAM = b"abcd", b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ({}, 384),
        ({"samples_per_pixel": "3", "bits_allocated": "8"}, 576),
        ({"bits_allocated": "1"}, 24),
        ({"photometric_interpretation": "YBR_FULL_422", "samples_per_pixel": "3"}, 768),
        ({"number_of_frames": "0"}, 384),
        ({"number_of_frames": ""}, 384),
        ({"number_of_frames": "nonsense"}, 384),
    ],
)
def test_the_length_of_a_native_frame(changes: dict[str, str], bits: int) -> None:
    index, problem = index_native(IMAGE | changes, 1000, 10_000)
    assert (index.number_of_frames, index.offset, index.bits, problem) == (1, 1000, bits, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": "0"}, "is missing or zero"),
        ({"rows": "-4"}, "is missing or zero"),
        ({"columns": "wide"}, "is missing or zero"),
        ({"number_of_frames": "300"}, "fewer bytes"),
        ({"number_of_frames": "2147483647"}, "fewer bytes"),
    ],
)
def test_native_frames_that_cannot_be_right(changes: dict[str, str], words: str) -> None:
    index, problem = index_native(IMAGE | changes, 0, 10_000)
    assert index.bits == 0
    assert words in problem


@given(
    bits=st.integers(1, 70),
    count=st.integers(1, 9),
    word=st.sampled_from([1, 2, 4]),
    number=st.integers(1, 9),
    seed=st.binary(min_size=96, max_size=96),
)
def test_a_frame_is_cut_out_at_any_bit(bits: int, count: int, word: int, number: int, seed: bytes) -> None:
    number = min(number, count)
    start, length, drop = native_range(number, bits, word)
    assert start % word == length % word == 0
    assert 0 <= start * 8 + drop == (number - 1) * bits
    expected = int.from_bytes(seed, "little") >> (number - 1) * bits & (1 << bits) - 1
    got = align(seed[start : start + length], drop, bits)
    assert got == expected.to_bytes((bits + 7) // 8, "little")


def fragments(*contents: bytes, offsets: tuple[int, ...] = ()) -> Fragments:
    """Fragments that follow each other from byte 1008 on, with a basic offset table."""
    found = Fragments()
    position = 1000
    for content in contents:
        found.offsets.append(position + 8)
        found.lengths.append(len(content))
        found.begins.append(begins_codestream(content[:4]))
        position += 8 + len(content)
    found.basic_offsets = struct.pack(f"<{len(offsets)}I", *offsets)
    return found


def table(index: bytes) -> list[tuple[int, int]]:
    return [ENTRY.unpack_from(index, i) for i in range(0, len(index), ENTRY.size)]


def frames_of(count: int, found: Fragments, extended: bytes = b"") -> tuple[list[tuple[int, int]], str]:
    index, problem = index_encapsulated({"number_of_frames": str(count)}, found, [extended, b""])
    assert index.number_of_frames == count
    assert index.bits == 0
    return table(index.table), problem


def test_one_frame_has_all_fragments() -> None:
    assert frames_of(1, fragments(PLAIN, PLAIN, PLAIN)) == ([(1000, 36)], "")


def test_a_fragment_each() -> None:
    assert frames_of(3, fragments(PLAIN, b"", PLAIN)) == ([(1000, 12), (1012, 8), (1020, 12)], "")


def test_the_basic_offset_table() -> None:
    found = fragments(PLAIN, PLAIN, PLAIN, offsets=(0, 24))
    assert frames_of(2, found) == ([(1000, 24), (1024, 12)], "")


def test_the_extended_offset_table_goes_before_the_basic_one() -> None:
    found = fragments(PLAIN, PLAIN, PLAIN, offsets=(0, 24))
    assert frames_of(2, found, struct.pack("<2Q", 0, 12)) == ([(1000, 12), (1012, 24)], "")


def test_without_a_table_codestreams_tell() -> None:
    found = fragments(CODESTREAM, PLAIN, CODESTREAM, PLAIN, PLAIN)
    assert frames_of(2, found) == ([(1000, 24), (1024, 36)], "")


@pytest.mark.parametrize(
    "offsets", [(0, 25), (12, 24), (24, 0), (0, 0), (0, 4_000_000_000), (0,), (0, 12, 24, 36), ()]
)
def test_a_table_that_lies_is_not_believed(offsets: tuple[int, ...]) -> None:
    entries, problem = frames_of(2, fragments(PLAIN, PLAIN, PLAIN, offsets=offsets))
    assert entries == []
    assert "cannot be assigned" in problem
    entries, problem = frames_of(2, fragments(CODESTREAM, PLAIN, CODESTREAM, offsets=offsets))
    assert (entries, problem) == ([(1000, 24), (1024, 12)], "")


@pytest.mark.parametrize(
    ("contents", "offsets", "expected"),
    [
        ((CODESTREAM, PLAIN, CODESTREAM), (0, 12, 24), []),  # three fragments, yet not three frames
        ((CODESTREAM, b"", CODESTREAM), (), [(1000, 12), (1012, 8), (1020, 12)]),
        ((PLAIN, CODESTREAM, CODESTREAM, CODESTREAM), (), []),  # what does the first belong to?
        ((b"", CODESTREAM, CODESTREAM, CODESTREAM), (), [(1008, 12), (1020, 12), (1032, 12)]),
        ((CODESTREAM, CODESTREAM, CODESTREAM, PLAIN), (0, 12, 36), [(1000, 12), (1012, 12), (1024, 24)]),
        ((CODESTREAM, PLAIN, CODESTREAM, CODESTREAM), (0, 12, 36), [(1000, 24), (1024, 12), (1036, 12)]),
        ((CODESTREAM,) * 4, (0, 12, 36), [(1000, 12), (1012, 24), (1036, 12)]),
        ((CODESTREAM,) * 4, (), []),
    ],
)
def test_no_frame_begins_within_a_codestream(
    contents: tuple[bytes, ...], offsets: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    entries, problem = frames_of(3, fragments(*contents, offsets=offsets))
    assert entries == expected
    assert bool(problem) is not bool(expected)


def test_a_wrong_extended_offset_table_leaves_the_basic_one() -> None:
    found = fragments(PLAIN, PLAIN, PLAIN, offsets=(0, 24))
    assert frames_of(2, found, struct.pack("<2Q", 0, 13)) == ([(1000, 24), (1024, 12)], "")


def test_no_fragments_at_all() -> None:
    entries, problem = frames_of(1, fragments())
    assert (entries, problem) == ([], "holds no fragments")
