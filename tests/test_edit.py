"""Changing elements of a file: what changes says so everywhere, and every other byte is as it was."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from shared.dicom import changes, convert, edit
from shared.dicom.changes import Element
from shared.dicom.json_model import CharacterSet
from shared.dicom.part10 import ParsedInstance, Part10Parser
from shared.dicom.transfer_syntaxes import is_deflated
from shared.errors import InvalidInstance
from tests.dicom_files import make_dataset, real_files, to_file

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
PLAIN = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]},
    "00100020": {"vr": "LO", "Value": ["NEW-ID"]},
    "00081030": {"vr": "LO"},
}
FOREIGN = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg", "Ideographic": "山田^太郎"}]}}


def elements(change_set: dict[str, Any]) -> tuple[Element, ...]:
    body = json.dumps({"studyInstanceUids": ["1.2"], "changeDataset": change_set})
    return changes.parse_update(body.encode()).changes


def parse(file: bytes) -> ParsedInstance:
    parser = Part10Parser()
    parser.feed(file)
    return parser.close()


def edited(file: bytes, change_set: dict[str, Any]) -> bytes:
    start = convert.meta_length(file)
    syntax = parse(file).transfer_syntax
    return file[:start] + edit.edit_whole(file[start:], syntax, elements(change_set))


def documents(file: bytes, new: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads(parse(file).document), json.loads(parse(new).document)


def changeable() -> list[Path]:
    """Real files that the server takes and whose data set is not deflated."""
    found = []
    for path in real_files():
        try:
            parsed = parse(path.read_bytes())
        except InvalidInstance:
            continue
        if not is_deflated(parsed.transfer_syntax):
            found.append(path)
    return found


@pytest.mark.parametrize("change_set", [PLAIN, FOREIGN], ids=["plain", "foreign"])
@pytest.mark.parametrize("path", changeable(), ids=lambda path: path.name)
def test_a_real_file_differs_in_what_changes_alone(path: Path, change_set: dict[str, Any]) -> None:
    file = path.read_bytes()
    new = edited(file, change_set)
    before, after = documents(file, new)
    for tag, attribute in change_set.items():
        assert after.pop(tag) == attribute
        before.pop(tag, None)
    characters = before.pop("00080005", None), after.pop("00080005", None)
    if characters[0] != characters[1]:
        assert characters[1] == {"vr": "CS", "Value": [edit.UTF_8]}
        assert change_set is FOREIGN
    assert after == before
    old, now = parse(file), parse(new)
    assert now.frames.number_of_frames == old.frames.number_of_frames
    assert now.frames.bits == old.frames.bits
    for one, other in zip(old.bulkdata, now.bulkdata, strict=True):
        assert (one.path, one.length) == (other.path, other.length)
        assert file[one.offset : one.offset + one.length] == new[other.offset : other.offset + other.length]
    if now.frames.table:
        assert len(now.frames.table) == len(old.frames.table)
    assert dcmread(io.BytesIO(new), force=True).get("PatientName") is not None


CODE = {
    "00080100": {"vr": "SH", "Value": ["X1"]},
    "00080104": {"vr": "LO", "Value": ["Röntgen"]},
}
EVERY_KIND: dict[str, Any] = {
    "00080020": {"vr": "DA", "Value": ["20260102"]},
    "00080050": {"vr": "SH", "Value": ["A-17"]},
    "00080090": {"vr": "PN", "Value": [{"Alphabetic": "Ref^A"}]},
    "00081032": {"vr": "SQ", "Value": [CODE, {}]},
    "00081110": {"vr": "SQ"},
    "00081048": {"vr": "PN", "Value": [{"Alphabetic": "One^A"}, {"Alphabetic": "Two^B"}]},
    "00101000": {"vr": "LO", "Value": ["A", "B"]},
    "00101020": {"vr": "DS", "Value": [1.70]},
    "00101010": {"vr": "AS", "Value": ["042Y"]},
    "001021C0": {"vr": "US", "Value": [4]},
    "00104000": {"vr": "LT", "Value": ["Several\r\nlines\\ here"]},
    "00120052": {"vr": "FD", "Value": [1.5]},
    "00180015": {"vr": "CS", "Value": ["HEAD"]},
    "00200011": {"vr": "IS", "Value": [7]},
    "00400275": {
        "vr": "SQ",
        "Value": [
            {
                "00400009": {"vr": "SH", "Value": ["Step"]},
                "00400008": {"vr": "SQ", "Value": [CODE]},
                "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
                "00081195": {"vr": "UI", "Value": ["1.2.34"]},
                "00189004": {"vr": "CS", "Value": ["RESEARCH"]},
                "00720050": {"vr": "CS"},
                "00720026": {"vr": "AT", "Value": ["00100010"]},
            }
        ],
    },
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_of_every_kind_are_encoded_in_every_native_syntax(syntax: str) -> None:
    file = to_file(make_dataset(SpecificCharacterSet="ISO_IR 100", PatientComments="x"), syntax)
    new = edited(file, EVERY_KIND)
    _, after = documents(file, new)
    for tag, attribute in EVERY_KIND.items():
        assert after[tag] == attribute
    ds = dcmread(io.BytesIO(new))
    assert ds.ProcedureCodeSequence[0].CodeMeaning == "Röntgen"
    assert ds.RequestAttributesSequence[0].SelectorAttribute == 0x00100010
    assert ds.PregnancyStatus == 4
    assert ds.LongitudinalTemporalOffsetFromEvent == 1.5
    assert ds.PatientSize == 1.7
    assert ds.SpecificCharacterSet == "ISO_IR 100"
    assert ds.PixelData == dcmread(io.BytesIO(file)).PixelData


def test_a_number_keeps_its_digits() -> None:
    body = b'{"studyInstanceUids":["1.2"],"changeDataset":{"00101020":{"vr":"DS","Value":[1.70]}}}'
    (element,) = changes.parse_update(body).changes
    assert element.value == "1.70"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_texts_of_the_whole_file_become_utf_8_where_a_new_one_does_not_fit(syntax: str) -> None:
    inner = Dataset()
    inner.CodeMeaning = "Höhe"
    own = Dataset()
    own.SpecificCharacterSet = "ISO_IR 144"
    own.CodeMeaning = "Привет"
    ds = make_dataset(
        SpecificCharacterSet="ISO_IR 100",
        StudyDescription="Schädel",
        ProcedureCodeSequence=Sequence([inner, own]),
    )
    ds["ProcedureCodeSequence"].is_undefined_length = True
    file = to_file(ds, syntax)
    new = edited(file, FOREIGN)
    before, after = documents(file, new)
    assert after["00080005"]["Value"] == [edit.UTF_8]
    assert after["00100010"] == FOREIGN["00100010"]
    assert after["00081030"] == before["00081030"]
    assert after["00081032"] == before["00081032"]
    read = dcmread(io.BytesIO(new))
    assert read.StudyDescription == "Schädel"
    assert read.ProcedureCodeSequence[0].CodeMeaning == "Höhe"
    assert read.ProcedureCodeSequence[1].CodeMeaning == "Привет"
    assert str(read.PatientName) == "Müller^Jörg=山田^太郎"
    assert read.PixelData == dcmread(io.BytesIO(file)).PixelData


def test_a_text_that_fits_leaves_the_character_set_alone() -> None:
    file = to_file(make_dataset(SpecificCharacterSet="ISO_IR 100"))
    new = edited(file, {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg"}]}})
    assert "Müller^Jörg".encode("latin-1") in new
    assert parse(new).document.count(b"ISO_IR 100") == 1


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("change_set", [PLAIN, FOREIGN], ids=["plain", "foreign"])
def test_a_sequence_is_replaced_whatever_its_length_says(undefined: bool, change_set: dict[str, Any]) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    ds = make_dataset(ReferencedStudySequence=Sequence([item, item]))
    ds["ReferencedStudySequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    new = edited(to_file(ds), change_set | {"00081110": {"vr": "SQ", "Value": [CODE]}})
    document = json.loads(parse(new).document)
    assert document["00081110"]["Value"] == [CODE]


def test_group_lengths_of_changed_groups_go() -> None:
    file = to_file(make_dataset())
    lengths = [struct.pack("<HH2sHI", group, 0, b"UL", 4, 999) for group in (0x0010, 0x0028)]
    for length, first in zip(lengths, ((0x0010, 0x0010, b"PN"), (0x0028, 0x0002, b"US")), strict=True):
        at = file.index(struct.pack("<HH2s", *first))
        file = file[:at] + length + file[at:]
    new = edited(file, PLAIN)
    assert [length in new for length in lengths] == [False, True]


def test_elements_out_of_order_are_found_by_a_thorough_look() -> None:
    name = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 8) + b"Old^Name"
    file = to_file(make_dataset(frames=0, PatientName=None))
    file += struct.pack("<HH2sH", 0x0040, 0x0241, b"AE", 2) + b"XX" + name
    syntax, start = parse(file).transfer_syntax, convert.meta_length(file)
    change = elements({"00100010": PLAIN["00100010"]})
    parser = Part10Parser()
    parser.feed(file[:start] + edit.edit_whole(file[start:], syntax, change))
    parser.close()
    assert parser.repeated == {0x00100010}
    new = file[:start] + edit.edit_whole(file[start:], syntax, change, thorough=True)
    assert b"Old^Name" not in new
    assert json.loads(parse(new).document)["00100010"] == PLAIN["00100010"]


def test_a_part_of_a_file_is_edited_as_the_whole_is() -> None:
    file = to_file(make_dataset(PatientComments="x" * 5000))
    start = convert.meta_length(file)
    data, change = file[start:], elements(PLAIN)
    whole = edit.edit_whole(data, ExplicitVRLittleEndian, change)
    found = 0
    for size in range(0, len(data), 7):
        try:
            part = edit.edit(data[:size], False, ExplicitVRLittleEndian, change, False)
        except edit.Incomplete:
            continue
        assert part.data + data[part.consumed :] == whole
        found += 1
    assert found


def test_what_a_character_set_cannot_express_is_known() -> None:
    latin, utf, japanese = (CharacterSet([term]) for term in ("ISO_IR 100", "ISO_IR 192", "ISO_IR 13"))
    assert latin.encode("LO", "ä") == b"\xe4"
    assert latin.encode("LO", "山") is None
    assert utf.encode("LO", "山") == "山".encode()
    assert japanese.encode("LO", "plain") == b"plain"
    assert CharacterSet([]).encode("LO", "ä") is None
    assert CharacterSet(["", "ISO 2022 IR 87"]).encode("PN", "山") is None
