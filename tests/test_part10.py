"""The Part 10 parser against pydicom, on every real file and on files made to be awkward."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.charset import convert_encodings, encode_string
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from shared.dicom import part10
from shared.dicom.json_model import little_endian
from shared.dicom.part10 import INLINE_BINARY, ParsedInstance, Part10Parser
from shared.errors import InvalidInstance
from tests.dicom_files import make_dataset, make_file, real_files, to_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

IMPLICIT, EXPLICIT, BIG = ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian

PYDICOM_LEAVES_OUT = {
    "bad_sequence.dcm": {"00080018", "0020000D", "0020000E", "00200010"},
    "badVR.dcm": {"00280008", "300C0002"},
    "rtdose.dcm": {"300C0002"},
    "rtdose_1frame.dcm": {"300C0002"},
    "rtdose_expb.dcm": {"300C0002"},
    "rtdose_expb_1frame.dcm": {"300C0002"},
    "rtdose_rle.dcm": {"300C0002"},
    "rtdose_rle_1frame.dcm": {"300C0002"},
}
"""Attributes with a value that pydicom cannot bring into JSON (a UID that is none, an IS of 1A): it leaves
them out, the server keeps them as they are."""


def parse(data: bytes, step: int = 0) -> ParsedInstance:
    """What the parser makes of a file that comes ``step`` bytes at a time (0: all at once)."""
    parser = Part10Parser()
    for start in range(0, len(data), step or len(data) or 1):
        parser.feed(data[start : start + (step or len(data))])
    return parser.close()


def document(data: bytes) -> dict[str, Any]:
    """The metadata as the server serves it."""
    result: dict[str, Any] = json.loads(parse(data).document)
    return result


def refusal(data: bytes) -> str:
    """The sentence a file is refused with."""
    with pytest.raises(InvalidInstance) as caught:
        parse(data)
    assert caught.value.failure_reason in (272, 43264)
    return str(caught.value)


def meta(transfer_syntax: str) -> bytes:
    """Preamble and the least of file meta information."""
    uid = transfer_syntax.encode() + b"\0" * (len(transfer_syntax) % 2)
    return bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid


def element(tag: int, vr: str, value: bytes, length: int | None = None, order: str = "<") -> bytes:
    """One element in Explicit VR, with any ``length`` in its header."""
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    size = len(value) if length is None else length
    if vr in ("OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC", "UR"):
        return head + struct.pack(order + "HI", 0, size) + value
    return head + struct.pack(order + "H", size) + value


IDENTITY = (
    element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.2\0")
    + element(0x00080018, "UI", b"1.2.3\0")
    + element(0x00100020, "LO", b"")
    + element(0x0020000D, "UI", b"1.2\0")
    + element(0x0020000E, "UI", b"1.2.1\0")
)


# --- real files ---------------------------------------------------------------------------------------


def _parsable() -> list[Path]:
    found = []
    for path in real_files():
        try:
            parse(path.read_bytes())
        except InvalidInstance:
            continue  # tests/test_real_files.py lists them
        found.append(path)
    return found


PARSABLE = _parsable()


def test_most_real_files_are_instances() -> None:
    assert len(PARSABLE) == 220


@pytest.mark.parametrize("path", PARSABLE, ids=lambda path: path.name)
def test_metadata_of_a_real_file_is_what_pydicom_reads(path: Path) -> None:
    data = path.read_bytes()
    parsed = parse(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(io.BytesIO(data))
        theirs = ds.to_json_dict(bulk_data_threshold=1 << 40, suppress_invalid_tags=True)
    ours = json.loads(parsed.document)
    missing = PYDICOM_LEAVES_OUT.get(path.name, set())
    assert missing <= ours.keys()
    big = ds.original_encoding == (False, False)
    assert _comparable(ours, missing) == _comparable(theirs, set(), ours, big)
    _assert_bulk_data(parsed, ds, data)


def _comparable(
    dataset: dict[str, Any], missing: set[str], other: dict[str, Any] | None = None, big: bool = False
) -> dict[str, Any]:
    """A data set in the form in which both must be equal.

    Left out: group lengths, which are retired and say nothing about the data, and what is in ``missing``.
    Of bulk data the VR remains. Values are compared without padding, and empty ones as null, which PS3.18
    §F.2.5 asks for; ``big`` tells that pydicom's binary values are big endian.
    """
    result: dict[str, Any] = {}
    for tag, attribute in dataset.items():
        if tag.endswith("0000") or tag in missing:
            continue
        counterpart = (other or {}).get(tag, {})
        vr = attribute["vr"]
        if "BulkDataURI" in attribute or "BulkDataURI" in counterpart:
            # Encapsulated pixel data is OB (PS3.5 §A.4), some files and pydicom say OW.
            result[tag] = {"vr": "OB/OW" if vr in ("OB", "OW") else vr}
        elif vr == "SQ":
            items = [item or {} for item in attribute.get("Value", [])]
            others = [item or {} for item in counterpart.get("Value", [])] or [{}] * len(items)
            result[tag] = [_comparable(i, missing, o, big) for i, o in zip(items, others, strict=True)]
        elif "InlineBinary" in attribute:
            value = base64.b64decode(attribute["InlineBinary"])
            result[tag] = {"vr": vr, "InlineBinary": little_endian(vr, value, ">" if big else "<")}
        else:
            result[tag] = {"vr": vr, "Value": [_unpadded(value) for value in attribute.get("Value", [])]}
    return result


def _unpadded(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip() or None
    return value


def _assert_bulk_data(parsed: ParsedInstance, ds: Dataset, data: bytes) -> None:
    """What lies where the bulk data is said to be is the value that pydicom reads."""
    if parsed.transfer_syntax == DeflatedExplicitVRLittleEndian:
        return
    for bulk in parsed.bulkdata:
        where: Any = ds
        *steps, tag = bulk.path.split(".")
        for sequence, item in zip(steps[::2], steps[1::2], strict=True):
            where = where[int(sequence, 16)].value[int(item) - 1]
        value = where[int(tag, 16)].value
        there = data[bulk.offset : bulk.offset + bulk.length]
        if bulk.encapsulated:
            there = there.removesuffix(b"\xfe\xff\xdd\xe0\0\0\0\0")
        assert isinstance(value, bytes), bulk.path
        assert there == value, bulk.path


SMALL = [path for path in PARSABLE if path.stat().st_size < 40_000]


@pytest.mark.parametrize("step", [1, 2, 7, 131, 1000])
def test_the_result_does_not_depend_on_how_the_bytes_arrive(step: int) -> None:
    for path in SMALL[:: 1 if step > 100 else 12]:
        data = path.read_bytes()
        assert parse(data, step) == parse(data), path.name


# --- structure ----------------------------------------------------------------------------------------


def test_the_four_encodings_of_a_data_set_give_the_same_metadata() -> None:
    item = make_dataset(frames=0)
    ds = make_dataset(instance="1.2.3", study="1.2", series="1.2.1")
    ds.ReferencedImageSequence = [item, Dataset()]
    ds.SmallestImagePixelValue, ds.PixelRepresentation = -5, 1
    ds.ImagePositionPatient = [1.5, -2, 0]
    ds.FrameIncrementPointer = 0x00181063
    ds.DiffusionBValue = 0.1
    documents = []
    for syntax in (IMPLICIT, EXPLICIT, BIG):
        documents.append(document(to_file(ds, syntax)))
    documents.append(document(deflated(ds)))
    for other in documents[1:]:
        assert {**other, "7FE00010": None} == {**documents[0], "7FE00010": None}


def deflated(ds: Dataset) -> bytes:
    """A data set in Deflated Explicit VR Little Endian."""
    explicit = to_file(ds, EXPLICIT)
    start = explicit.index(b"\x08\x00\x16\x00UI")
    return meta(DeflatedExplicitVRLittleEndian) + compressed(explicit[start:])


def compressed(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


def test_a_data_set_that_is_not_in_the_declared_vr_encoding_is_read() -> None:
    explicit, implicit = make_file(transfer_syntax=EXPLICIT), make_file(transfer_syntax=IMPLICIT)
    lying = explicit.replace(EXPLICIT.encode() + b"\0", IMPLICIT.encode() + b"\0\0\0")
    assert document(lying)["00080060"]["Value"] == ["CT"]
    assert parse(implicit.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0"[:18])).document


@pytest.mark.parametrize("padding", [1, 2, 7, 8, 11, 12, 13, 511, 100_000])
def test_zeros_after_the_data_set_are_padding(padding: int) -> None:
    data = make_file()
    assert parse(data + bytes(padding), 1000).document == parse(data).document


def test_bytes_after_the_data_set_that_are_no_padding_are_refused() -> None:
    assert "header" in refusal(make_file() + b"\0\0\1")
    assert "no element" in refusal(make_file() + bytes(100) + b"x")


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
def test_a_missing_or_malformed_uid_is_refused_by_name(keyword: str) -> None:
    assert refusal(make_file(**{keyword: ""})) == f"{keyword} is missing."
    ds = make_dataset()
    del ds[keyword]
    assert refusal(to_file(ds)) == f"{keyword} is missing."
    for wrong in ("1_2", "1" * 65, "1/2"):
        ds[keyword] = DataElement(keyword, "UI", wrong, validation_mode=0)
        assert refusal(to_file(ds)) == f"{keyword} is not 1 to 64 letters, digits, '.' or '-'."


def test_a_patient_id_may_be_empty_but_not_missing_or_malformed() -> None:
    assert parse(make_file(PatientID="")).patient_id == ""
    assert refusal(make_file(PatientID=None)) == "PatientID is missing."
    long = meta(EXPLICIT) + IDENTITY.replace(
        element(0x00100020, "LO", b""), element(0x00100020, "LO", b"x" * 66)
    )
    assert refusal(long) == "PatientID (0010,0020) is longer than 64 characters."


def test_an_identifier_given_twice_with_different_values_is_refused() -> None:
    twice = IDENTITY + element(0x0020000D, "UI", b"1.9\0")
    assert refusal(meta(EXPLICIT) + twice) == "StudyInstanceUID occurs twice with different values."
    same = IDENTITY + element(0x0020000D, "UI", b"1.2\0")
    assert parse(meta(EXPLICIT) + same).identity["StudyInstanceUID"] == "1.2"


def test_identifiers_within_sequences_do_not_count() -> None:
    item = Dataset()
    item.StudyInstanceUID, item.SOPInstanceUID, item.PatientID = "9.9", "9.8", "other"
    parsed = parse(make_file(study="1.2", ReferencedStudySequence=[item]))
    assert (parsed.identity["StudyInstanceUID"], parsed.patient_id) == ("1.2", "P-1")


@pytest.mark.parametrize("cut", [0, 1, 127, 131, 132, 140, 200, 400, -1, -20])
def test_a_truncated_file_is_refused(cut: int) -> None:
    assert refusal(make_file()[:cut])


def test_lengths_that_lie_are_refused() -> None:
    start = meta(EXPLICIT) + IDENTITY
    for lie in (
        element(0x00280010, "US", b"\1\0", 60_000),
        element(0x7FE00010, "OW", b"\1\0", 0xFFFFFFFE),
        element(0x00091001, "UN", b"\1\0", 0x7FFFFFFF),
        element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\x7f"),
        element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\x08\0\0\0" + element(0x00080060, "CS", b"CT")),
        element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\x64\0\0\0" + element(0x00080060, "CS", b"CT"))
        + bytes(100),
        element(0x00081140, "SQ", b"garbage!"),
        element(0x00081140, "CS", b"\1\0", 60_000),
        element(0x7FE00010, "OB", b"garbage!", 0xFFFFFFFF),
        element(0x7FE00010, "OB", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 0xFFFFFFFF),
        element(0x00181000, "UT", b"\1\0", 0xFFFFFFFF),
        struct.pack("<HHI", 0xFFFE, 0xE00D, 0),
    ):
        assert refusal(start + lie)


def test_deep_nesting_is_read_up_to_a_limit_and_refused_beyond() -> None:
    def nested(depth: int) -> bytes:
        item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        opened = (element(0x00081140, "SQ", b"", 0xFFFFFFFF) + item) * depth
        closed = (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth
        return meta(EXPLICIT) + IDENTITY + opened + closed

    assert parse(nested(part10.DEPTH_LIMIT), 7).document
    assert refusal(nested(part10.DEPTH_LIMIT + 1)) == "Sequences are nested more than 64 deep."
    assert refusal(nested(10_000)) == "Sequences are nested more than 64 deep."


def test_an_unknown_vr_is_read_with_a_long_length() -> None:
    data = meta(EXPLICIT) + IDENTITY + struct.pack("<HH2sHI", 0x0028, 0x9999, b"ZZ", 0, 4) + b"abcd"
    assert document(data)["00289999"] == {"vr": "UN", "InlineBinary": "YWJjZA=="}


def test_an_element_written_as_un_gets_the_dictionarys_vr() -> None:
    data = meta(EXPLICIT) + IDENTITY + element(0x00280010, "UN", b"\2\0")
    assert document(data)["00280010"] == {"vr": "US", "Value": [2]}


def test_a_un_of_undefined_length_is_a_sequence_in_implicit_vr() -> None:
    inner = struct.pack("<HHI", 0x0008, 0x0060, 2) + b"CT"
    value = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner + b"\xfe\xff\xdd\xe0\0\0\0\0"
    after = element(0x00280010, "US", b"\2\0")
    data = meta(EXPLICIT) + IDENTITY + element(0x00211001, "UN", value, 0xFFFFFFFF) + after
    assert document(data)["00211001"] == {
        "vr": "SQ",
        "Value": [{"00080060": {"vr": "CS", "Value": ["CT"]}}],
    }
    assert document(data)["00280010"]["Value"] == [2]


def test_private_elements_get_the_vr_of_their_creator() -> None:
    ds = make_dataset(frames=0)
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    ds.private_block(0x0029, "NOBODY KNOWS", create=True).add_new(0x01, "DS", "1.5")
    implicit = document(to_file(ds, IMPLICIT))
    assert implicit["00190010"] == {"vr": "LO", "Value": ["SIEMENS MR HEADER"]}
    assert implicit["0019100C"] == {"vr": "IS", "Value": [1000]}
    assert implicit["00291001"]["vr"] == "UN"
    assert document(to_file(ds, EXPLICIT))["00291001"] == {"vr": "DS", "Value": [1.5]}


def test_words_are_signed_where_pixels_are() -> None:
    ds = make_dataset(PixelRepresentation=1)
    ds.add_new(0x00280106, "SS", -7)
    assert document(to_file(ds, IMPLICIT))["00280106"] == {"vr": "SS", "Value": [-7]}


def test_small_binary_values_are_inline_and_large_ones_bulk_data_also_in_sequences() -> None:
    item = Dataset()
    item.add_new(0x00281201, "OW", bytes(INLINE_BINARY))
    item.add_new(0x00281202, "OW", b"\1\2" * (INLINE_BINARY // 2 + 1))
    data = make_file(ReferencedImageSequence=[Dataset(), item])
    inner = document(data)["00081140"]["Value"][1]
    assert "InlineBinary" in inner["00281201"]
    assert inner["00281202"] == {"vr": "OW", "BulkDataURI": "/00081140.2.00281202"}
    bulk = next(b for b in parse(data).bulkdata if b.path == "00081140.2.00281202")
    assert data[bulk.offset : bulk.offset + bulk.length] == item[0x00281202].value


def test_a_preamble_that_is_not_zero_is_noticed() -> None:
    data = make_file()
    assert parse(data).preamble_is_zero
    assert not parse(b"MZ" + data[2:]).preamble_is_zero


# --- deflated -----------------------------------------------------------------------------------------


def test_a_corrupt_or_truncated_deflated_data_set_is_refused() -> None:
    data = deflated(make_dataset())
    assert parse(data, 10).document
    assert refusal(data[:-10]) == "The deflated data set is truncated."
    no_such_block_type = b"\x07"
    assert refusal(meta(DeflatedExplicitVRLittleEndian) + no_such_block_type * 50) == (
        "The deflated data set is corrupt."
    )


def test_bytes_after_a_deflated_data_set_are_not_collected() -> None:
    data = deflated(make_dataset())
    parser = Part10Parser()
    parser.feed(data)
    for _ in range(100):
        parser.feed(bytes(100_000))
    assert parser.close().document == parse(data).document
    assert len(parser._inflate.unused_data) < 100_000


def test_a_deflated_data_set_that_explodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part10, "INFLATED_LIMIT", 64 * 1024 * 1024)
    pixels = element(0x7FE00010, "OW", b"", 0xFFFFFFF0)
    bomb = meta(DeflatedExplicitVRLittleEndian) + compressed(IDENTITY + pixels + bytes(256 * 1024 * 1024))
    assert len(bomb) < 1024 * 1024
    assert "The deflated data set is larger than" in refusal(bomb)


def test_more_metadata_than_the_server_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part10, "METADATA_LIMIT", 1024 * 1024)
    items = Sequence([Dataset()] * 20_000)
    assert "The metadata is larger" in refusal(make_file(ReferencedImageSequence=items))
    long = b"".join(element(0x00090000 | i, "UT", b"x" * 200_000) for i in range(0x1000, 0x1006))
    assert "The metadata is larger" in refusal(meta(EXPLICIT) + IDENTITY + long)
    fragments = b"\xfe\xff\x00\xe0\0\0\0\0" * 50_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert "The metadata is larger" in refusal(
        meta("1.2.840.10008.1.2.4.90") + IDENTITY + element(0x7FE00010, "OB", fragments, 0xFFFFFFFF)
    )


# --- warnings -----------------------------------------------------------------------------------------


def test_values_that_break_their_vr_are_named_once_and_kept() -> None:
    data = (
        meta(EXPLICIT)
        + element(0x00080020, "DA", b"20230231")
        + IDENTITY
        + element(0x00280010, "US", b"\1\0\2")
        + element(0x00280030, "DS", b"wide\\1.5")
    )
    parsed = parse(data)
    assert [(w.tag, w.message) for w in parsed.warnings] == [
        ("00080020", "(0008,0020) is not a date YYYYMMDD."),
        ("00280010", "(0028,0010) has a length that is no multiple of its VR's."),
        ("00280030", "(0028,0030) is not a decimal number."),
    ]
    assert "StudyDate" not in parsed.values
    assert json.loads(parsed.document)["00080020"] == {"vr": "DA", "Value": ["20230231"]}
    assert json.loads(parsed.document)["00280030"] == {"vr": "DS", "Value": ["wide", 1.5]}


def test_a_warning_within_a_sequence_names_both_attributes() -> None:
    inner = element(0x00080020, "DA", b"nonsense")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    parsed = parse(meta(EXPLICIT) + element(0x00081115, "SQ", item) + IDENTITY)
    assert [w.message for w in parsed.warnings] == ["(0008,0020) within (0008,1115) is not a date YYYYMMDD."]


# --- character sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        (["ISO_IR 192"], "Wang^XiaoDong=王^小东"),
        (["GB18030"], "Wang^XiaoDong=王^小东"),
        (["GBK"], "Wang^XiaoDong=王^小东"),
        (["ISO_IR 100"], "Buc^Jérôme"),
        (["ISO_IR 144"], "Люкceмбypг"),
        (["ISO_IR 13"], "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_in_every_character_set(terms: list[str], name: str) -> None:
    raw = b"=".join(
        b"^".join(encode_string(part, convert_encodings(terms)) for part in group.split("^"))
        for group in name.split("=")
    )
    data = meta(EXPLICIT) + element(0x00080005, "CS", _even("\\".join(terms).encode()))
    data += IDENTITY + element(0x00100010, "PN", _even(raw))
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False))
    assert document(data)["00100010"] == {"vr": "PN", "Value": [groups]}
    assert parse(data).warnings == []


def test_the_chinese_example_of_the_standard() -> None:
    """PS3.5 §K.2, which pydicom cannot encode."""
    raw = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
    data = meta(EXPLICIT) + element(0x00080005, "CS", b"\\ISO 2022 IR 58 ") + IDENTITY
    names = [{"Alphabetic": "Zhang^XiaoDong", "Ideographic": "张^小东"}]
    assert document(data + element(0x00100010, "PN", _even(raw)))["00100010"]["Value"] == names


def _even(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


def test_a_backslash_byte_within_a_character_separates_nothing() -> None:
    text = "表示"  # in GB18030 some characters end in the byte of a backslash
    text = next(c for c in map(chr, range(0x4E00, 0x9FFF)) if c.encode("gb18030").endswith(b"\\")) + text
    data = meta(EXPLICIT) + element(0x00080005, "CS", b"GB18030 ") + IDENTITY
    data += element(0x00081030, "LO", _even(text.encode("gb18030") + b"\\second"))
    assert document(data)["00081030"]["Value"] == [text, "second"]


def test_a_delimiter_ends_the_character_set_of_an_escape_sequence() -> None:
    """After a caret the first character set holds again (PS3.5 §6.1.2.5.3), here Latin-1 after Greek."""
    raw = b"\x1b-F" + "Διονυσιος".encode("iso8859_7") + b"^" + "Jérôme".encode("latin-1")
    data = meta(EXPLICIT) + element(0x00080005, "CS", b"ISO 2022 IR 100\\ISO 2022 IR 126 ") + IDENTITY
    data += element(0x00100010, "PN", _even(raw))
    assert document(data)["00100010"]["Value"] == [{"Alphabetic": "Διονυσιος^Jérôme"}]


@pytest.mark.parametrize(
    "terms", [b"", b"ISO_IR 192", b"ISO 2022 IR 87", b"\\ISO 2022 IR 87", b"NONSENSE", b"ISO 20\0\x08 87"]
)
@pytest.mark.parametrize("text", [b"M\xfcller", b"\xff\xfe", b"\x1b$B\x21", b"\x1b%/I\xf0"])
def test_bytes_outside_the_character_set_are_kept_and_named(terms: bytes, text: bytes) -> None:
    data = meta(EXPLICIT) + element(0x00080005, "CS", _even(terms)) + IDENTITY
    parsed = parse(data + element(0x00081030, "LO", _even(text)))
    assert "00081030" in [w.tag for w in parsed.warnings]
    assert len(json.loads(parsed.document)["00081030"]["Value"]) == 1


@pytest.mark.parametrize("codec", [b"unicode_escape", b"utf_7", b"idna", b"rot13", b"undefined", b"utf_16"])
def test_pythons_own_codecs_are_no_character_sets(codec: bytes) -> None:
    data = meta(EXPLICIT) + element(0x00080005, "CS", _even(codec)) + IDENTITY
    data += element(0x00081030, "LO", b"\\ud800+2AA-\xe9 ")
    assert document(data)


def test_a_character_set_within_an_item_holds_there_alone() -> None:
    inner = element(0x00080005, "CS", b"ISO_IR 192") + element(0x00081030, "LO", "é".encode())
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    data = meta(EXPLICIT) + element(0x00080005, "CS", b"ISO_IR 100") + element(0x00081115, "SQ", item)
    parsed = json.loads(parse(data + IDENTITY + element(0x00200010, "SH", b"\xe9 ")).document)
    assert parsed["00081115"]["Value"][0]["00081030"]["Value"] == ["é"]
    assert parsed["00200010"]["Value"] == ["é"]
