"""Values as DICOM JSON (PS3.18 Annex F) and what breaks a VR (PS3.5 Table 6.2-1)."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.dicom.json_model import BINARY_VRS, TEXT_VRS, CharacterSet, Encoded, encode, little_endian
from shared.dicom.validation import CHECKS

UTF8 = CharacterSet(["ISO_IR 192"])
NUMBERS = ("US", "SS", "UL", "SL", "FL", "FD", "UV", "SV", "AT")


def encoded(vr: str, raw: bytes, order: str = "<") -> tuple[dict[str, Any], Encoded]:
    value = encode(vr, raw, order, UTF8)
    return json.loads(f'{{"vr":"{vr}"{value.json}}}'), value


@pytest.mark.parametrize(
    ("vr", "raw", "expected"),
    [
        ("LO", b"", []),
        ("LO", b"    ", []),
        ("LO", b" a ", [" a"]),
        ("CS", b" A \\ B", ["A", "B"]),
        ("LO", b"a\\\\b\\", ["a", None, "b", None]),
        ("UI", b"1.2\0", ["1.2"]),
        ("UI", b"1.2\0\\1.3", ["1.2", "1.3"]),
        ("ST", b"a\\b ", ["a\\b"]),
        ("UT", b" a\r\n\tb", [" a\r\n\tb"]),
        ("UR", b"http://x/\\y", ["http://x/\\y"]),
        ("LO", b'"\\/\x1f', ['"', "/\x1f"]),
        ("DS", b"1.50\\-2 \\ 3e2\\+4\\.5\\007", [1.50, -2, 300.0, 4.0, 0.5, 7.0]),
        ("DS", b"wide\\1_0\\nan\\inf\\1e999", ["wide", "1_0", "nan", "inf", "1e999"]),
        ("DS", b"1" * 5000, ["1" * 5000]),
        ("IS", b"12\\-0\\x\\1.5", [12, 0, "x", 1.5]),
        ("PN", b"Doe^John", [{"Alphabetic": "Doe^John"}]),
        ("PN", "D=山=や".encode(), [{"Alphabetic": "D", "Ideographic": "山", "Phonetic": "や"}]),
        ("PN", "=山".encode(), [{"Ideographic": "山"}]),
        ("PN", b"A\\\\B=", [{"Alphabetic": "A"}, None, {"Alphabetic": "B"}]),
        ("AT", b"\x10\x00\x20\x00\xe0\x7f\x10\x00", ["00100020", "7FE00010"]),
        ("US", b"\1\0\xff\xff", [1, 65535]),
        ("SS", b"\xff\xff", [-1]),
        ("SV", b"\xff" * 8, [-1]),
        ("UV", b"\xff" * 8, [2**64 - 1]),
        ("FL", struct.pack("<2f", 0.5, math.nan), [0.5, "NaN"]),
        ("FD", struct.pack("<3d", 0.1, math.inf, -math.inf), [0.1, "Infinity", "-Infinity"]),
        ("US", b"", []),
    ],
)
def test_values(vr: str, raw: bytes, expected: list[Any]) -> None:
    attribute, _ = encoded(vr, raw)
    assert attribute == ({"vr": vr, "Value": expected} if expected else {"vr": vr})


@pytest.mark.parametrize(
    ("vr", "raw", "little"),
    [
        ("US", b"\0\1", b"\1\0"),
        ("SL", b"\0\0\0\1", b"\1\0\0\0"),
        ("FD", struct.pack(">d", 1.5), struct.pack("<d", 1.5)),
        ("AT", b"\x00\x10\x00\x20", b"\x10\x00\x20\x00"),
        ("OW", b"\1\2\3\4\5", b"\2\1\4\3\5"),
        ("OL", b"\1\2\3\4", b"\4\3\2\1"),
        ("OB", b"\1\2", b"\1\2"),
        ("UN", b"\1\2", b"\1\2"),
    ],
)
def test_big_endian_values_are_those_of_little_endian(vr: str, raw: bytes, little: bytes) -> None:
    assert encoded(vr, raw, ">")[0] == encoded(vr, little)[0]
    if vr in BINARY_VRS:
        assert little_endian(vr, raw, ">") == little


@given(
    st.sampled_from(sorted(TEXT_VRS | BINARY_VRS | set(NUMBERS))),
    st.binary(max_size=80),
    st.sampled_from("<>"),
)
def test_any_bytes_are_valid_json_with_at_most_a_problem(vr: str, raw: bytes, order: str) -> None:
    for terms in (
        [""],
        ["ISO_IR 192"],
        ["", "ISO 2022 IR 87"],
        ["GB18030"],
        ["ISO 2022 IR 13", "ISO 2022 IR 149"],
    ):
        value = encode(vr, raw, order, CharacterSet(terms))
        text = f'{{"vr":"{vr}"{value.json}}}'
        assert json.loads(text.encode().decode())["vr"] == vr
        value.text.encode()


GOOD_AND_BAD = {
    "AE": (["", "STORE_SCP", "A" * 16], ["A" * 17, "é", "A\nB"]),
    "AS": (["045Y", "006M"], ["45Y", "045y", "045"]),
    "CS": (["", "A_B 1", "A" * 16], ["a", "A-B", "A" * 17]),
    "DA": (["20240229"], ["20230229", "2024022", "2024.02.29", "202402291", "٢٠٢٤٠١٠١"]),
    "DS": (["1", "-1.5E+10", "+.5", "1."], ["", "1,5", "1" * 17, "e5", "NaN"]),
    "DT": (["2024", "20240229101530.123456+0100", "202402"], ["20241301", "2024022910153", "20240229+1500"]),
    "IS": (["0", "-2147483648", "+5"], ["2147483648", "1.5", "", "1 000"]),
    "LO": (["x" * 64, "é" * 64], ["x" * 65, "a\nb", "a\tb"]),
    "LT": (["a\r\n\fb", "x" * 10240], ["x" * 10241, "a\0b"]),
    "PN": (["A^B^C^D^E=F=G", "x" * 64 + "=" + "y" * 64], ["A^B^C^D^E^F", "a=b=c=d", "x" * 65, "A\nB"]),
    "SH": (["x" * 16], ["x" * 17]),
    "ST": (["x" * 1024, "a\nb"], ["x" * 1025]),
    "TM": (["10", "1015", "101560", "101530.1"], ["24", "10:15", "101561", "101530.1234567", "1"]),
    "UC": (["x" * 100_000], ["a\nb"]),
    "UI": (["1.2.0.3", "0"], ["1..2", "01.2", "1.2.", "x", "1" * 65, ""]),
    "UR": (["http://x"], ["a\nb"]),
    "UT": (["x" * 100_000 + "\n"], ["\0"]),
}


@pytest.mark.parametrize("vr", sorted(CHECKS))
def test_every_text_vr_is_checked(vr: str) -> None:
    good, bad = GOOD_AND_BAD[vr]
    for value in good:
        assert CHECKS[vr](value) == "", value
    for value in bad:
        sentence = CHECKS[vr](value)
        assert sentence, value
        assert len(value) < 3 or value not in sentence, "patient data is never quoted"


@pytest.mark.parametrize("vr", NUMBERS)
def test_a_number_of_the_wrong_length_is_named_and_the_whole_ones_kept(vr: str) -> None:
    attribute, value = encoded(vr, bytes(9))
    assert value.problem == "has a length that is no multiple of its VR's"
    assert attribute["Value"]
