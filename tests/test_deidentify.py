"""De-identification, checked apart from the code that does it: no value of a protected attribute is left in
the bytes, wherever it stood, for every attribute of PS3.15 Table E.1-1; and options retain what they say."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from shared.dicom.confidentiality import Action, Option, Rules, options_of
from shared.dicom.convert import meta_length
from shared.dicom.deidentify import CannotDeidentify, Deidentifier, Pseudonyms
from shared.errors import InvalidRequest
from tests.dicom_files import make_dataset, real_files

KEY = bytes(range(32))
BASIC: frozenset[Option] = frozenset()
TABLE = Rules(BASIC).basic
DOCUMENT = 0x00420011  # instances that have it are refused
IDENTITY = {0x00080018, 0x0020000D, 0x0020000E}

# A part of Table E.1-1 as the standard prints it, by an eye and not by the library: attribute and actions.
PRINTED = {
    "AccessionNumber": "Z",
    "AcquisitionDate": "XZ",
    "AcquisitionDateTime": "XZD",
    "AdditionalPatientHistory": "X",
    "AdmittingDiagnosesDescription": "X",
    "BranchOfService": "X",
    "ContentDate": "ZD",
    "ContentSequence": "D",
    "ContrastBolusAgent": "ZD",
    "DeviceSerialNumber": "XZD",
    "DeviceUID": "U",
    "EthnicGroup": "X",
    "FrameOfReferenceUID": "U",
    "ImageComments": "X",
    "InstitutionAddress": "X",
    "InstitutionName": "XZD",
    "IssuerOfPatientID": "X",
    "MedicalRecordLocator": "X",
    "MilitaryRank": "X",
    "NameOfPhysiciansReadingStudy": "X",
    "Occupation": "X",
    "OperatorsName": "XZD",
    "OtherPatientIDs": "X",
    "OtherPatientIDsSequence": "X",
    "OtherPatientNames": "X",
    "PatientAddress": "X",
    "PatientAge": "X",
    "PatientBirthDate": "Z",
    "PatientBirthTime": "X",
    "PatientComments": "X",
    "PatientID": "ZD",
    "PatientMotherBirthName": "X",
    "PatientName": "Z",
    "PatientSex": "Z",
    "PatientSize": "X",
    "PatientTelephoneNumbers": "X",
    "PatientWeight": "X",
    "PerformingPhysicianName": "X",
    "ProtocolName": "XD",
    "ReferencedSOPInstanceUID": "U",
    "ReferringPhysicianName": "Z",
    "RequestAttributesSequence": "X",
    "RequestingPhysician": "X",
    "SOPInstanceUID": "U",
    "SeriesDate": "XD",
    "SeriesDescription": "X",
    "SeriesInstanceUID": "U",
    "SourceImageSequence": "XZU",
    "StationName": "XZD",
    "StudyDate": "Z",
    "StudyDescription": "X",
    "StudyID": "Z",
    "StudyInstanceUID": "U",
    "StudyTime": "Z",
    "TimezoneOffsetFromUTC": "X",
    "VerifyingObserverName": "D",
}

DUMMIES = ("ANONYMIZED", "00010101", "0001-01-01", "000000.00", "0")
SHORT = {"AE": 16, "CS": 16, "SH": 16}
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}


def sample(tag: int, vr: str) -> tuple[Any, list[bytes]]:
    """A value that can be told from all others, and the bytes that must not be found afterwards."""
    mark = f"{tag:08X}"
    match vr:
        case "DA":
            return f"19{tag % 80 + 10:02d}{tag % 11 + 2:02d}{tag % 25 + 2:02d}", []
        case "TM":
            return f"{tag % 23:02d}{tag % 57 + 2:02d}{tag % 53 + 4:02d}.{tag % 899999 + 100000}", []
        case "DT":
            return f"1983{tag % 11 + 2:02d}11{tag % 23:02d}3107.{tag % 899999 + 100000}", [
                f".{tag % 899999 + 100000}".encode()
            ]
        case "UI":
            return f"1.2.826.0.1.{tag}", [f"1.2.826.0.1.{tag}".encode()]
        case "AS":
            return f"{tag % 98 + 1:03d}W", []
        case "IS" | "DS":
            return f"{tag % 899999999 + 100000000}", [f"{tag % 899999999 + 100000000}".encode()]
        case "AT":
            return 0x00100010, []
        case "UR":
            return f"http://secret/{mark}", [mark.encode()]
        case "OB" | "OW" | "UN" | "OD" | "OF" | "OL" | "OV":
            return f"SECRET{mark}SECRET{mark}    ".encode(), [mark.encode()]
        case _ if vr in NUMBERS:
            return 9001, [struct.pack("<" + NUMBERS[vr], 9001) * 1] if NUMBERS[vr] in "qQd" else []
        case _:
            text = f"S{mark}"[: SHORT.get(vr, 64)]
            return text, [text.encode()]


def element(tag: int) -> tuple[DataElement, list[bytes]]:
    vr = str(dictionary_VR(tag)).split(" or ")[0]
    if vr == "SQ":
        item = Dataset()
        item.CodeValue = f"C{tag:08X}"
        item.CodeMeaning = f"M{tag:08X}"
        item.PatientName = f"N{tag:08X}"
        item.ReferencedSOPInstanceUID = f"1.2.826.0.2.{tag}"
        letters = "N" if TABLE[tag] is Action.KEEP else "CMN"  # of what is kept, protected attributes
        marks = [f"{letter}{tag:08X}".encode() for letter in letters]
        return DataElement(tag, "SQ", Sequence([item])), [*marks, f"1.2.826.0.2.{tag}".encode()]
    value, marks = sample(tag, vr)
    return DataElement(tag, vr, value), marks


def known() -> Iterator[int]:
    for tag in TABLE:
        if dictionary_has_tag(tag) and tag >> 16 not in (0, 2, 4) and tag != DOCUMENT:
            yield tag


def encoded(ds: Dataset, syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def deidentified(
    ds: Dataset,
    *names: str,
    syntax: str = ExplicitVRLittleEndian,
    key: bytes = KEY,
    partition: str = "p",
    allow: bool = False,
) -> tuple[Dataset, bytes]:
    deidentifier = Deidentifier(options_of(names), Pseudonyms(key), allow_burned_in=allow)
    result = deidentifier.deidentify(encoded(ds, syntax), syntax, partition)
    data = result.header + result.elements
    return dcmread(io.BytesIO(data)), data


def full(depth: int) -> tuple[Dataset, dict[int, list[bytes]]]:
    """Every attribute of the table, ``depth`` sequences below a data set, within ones that are kept."""
    ds = make_dataset(frames=0)
    item, marks = Dataset(), {}
    for tag in known():
        if depth == 0 and tag in IDENTITY:
            continue
        item[tag], marks[tag] = element(tag)
    if depth == 0:
        ds.update(item)
        return ds, marks
    for _ in range(depth - 1):
        outer = Dataset()
        outer.AnatomicRegionSequence = [item]
        item = outer
    ds.PerFrameFunctionalGroupsSequence = [Dataset(), item]
    return ds, marks


def leaves(ds: Dataset) -> Iterator[DataElement]:
    for one in ds:
        if one.VR == "SQ":
            for item in one.value:
                yield from leaves(item)
        else:
            yield one


# --- the profile ---------------------------------------------------------------------------------------


def test_the_actions_are_those_the_standard_prints() -> None:
    letters = {
        "X": Action.REMOVE,
        "Z": Action.EMPTY,
        "D": Action.DUMMY,
        "U": Action.UID,
        "ZD": Action.DUMMY,
        "XZ": Action.EMPTY,
        "XD": Action.DUMMY,
        "XZD": Action.DUMMY,
        "XZU": Action.KEEP,
    }
    for keyword, printed in PRINTED.items():
        assert TABLE[tag_for_keyword(keyword) or 0] is letters[printed], keyword


def test_the_table_is_a_whole_one() -> None:
    assert len(TABLE) > 640
    assert {0x00100010, 0x00100020, 0x00080018} <= TABLE.keys()


@pytest.mark.parametrize(
    ("depth", "syntax"),
    [
        (0, ExplicitVRLittleEndian),
        (3, ExplicitVRLittleEndian),
        (1, ImplicitVRLittleEndian),
        (1, ExplicitVRBigEndian),
    ],
)
def test_no_value_of_any_attribute_of_the_table_is_left_at_any_depth(depth: int, syntax: str) -> None:
    ds, marks = full(depth)
    assert len(marks) > 550
    before = encoded(ds, syntax)
    out, data = deidentified(ds, syntax=syntax)
    for tag, forbidden in marks.items():
        for mark in forbidden:
            if syntax != ExplicitVRBigEndian or mark.isascii():
                assert mark in before or mark[::-1] in before, f"{tag:08X} was not there"
            assert mark not in data, f"({tag:08X}) {keyword_for_tag(tag)}"
    originals = {tag: ds_value(ds, tag) for tag in marks}
    for leaf in leaves(out):
        if leaf.tag in originals and leaf.tag not in (0x00080005,) and leaf.value not in (None, "", b"", []):
            assert str(leaf.value) != originals[leaf.tag], f"{leaf.tag} {leaf.keyword}"
            assert TABLE[leaf.tag] in (Action.DUMMY, Action.UID), leaf.keyword
    assert out.file_meta.TransferSyntaxUID == syntax


def ds_value(ds: Dataset, tag: int) -> str:
    for leaf in leaves(ds):
        if leaf.tag == tag:
            return str(leaf.value)
    return ""


def test_what_must_have_a_value_has_one_and_what_may_be_empty_is() -> None:
    ds, _ = full(0)
    out, _ = deidentified(ds)
    for tag, action in TABLE.items():
        if not dictionary_has_tag(tag) or tag >> 16 in (0, 2, 4) or tag == DOCUMENT:
            continue
        if action is Action.REMOVE:
            assert tag not in out, keyword_for_tag(tag)
            continue
        assert tag in out, keyword_for_tag(tag)
        value = out[tag].value
        if action is Action.EMPTY:
            assert not value, keyword_for_tag(tag)
        elif action in (Action.DUMMY, Action.UID):
            assert value not in (None, "", b"", []), keyword_for_tag(tag)


def test_values_are_valid_ones_of_their_vr() -> None:
    ds, _ = full(0)
    _, data = deidentified(ds)
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.RAISE
    try:
        for leaf in leaves(dcmread(io.BytesIO(data))):
            assert leaf.VR
    finally:
        config.settings.reading_validation_mode = before


def test_private_attributes_go_with_their_creators_at_any_depth() -> None:
    ds = make_dataset(frames=0)
    block = ds.private_block(0x0029, "VENDOR", create=True)
    block.add_new(0x10, "LO", "PRIVATESECRET")
    item = Dataset()
    item.private_block(0x0011, "VENDOR", create=True).add_new(0x01, "PN", "PRIVATESECRET")
    item.CodeMeaning = "kept"
    ds.AnatomicRegionSequence = [item]
    out, data = deidentified(ds)
    assert b"PRIVATESECRET" not in data
    assert b"VENDOR" not in data
    assert out.AnatomicRegionSequence[0].CodeMeaning == "kept"


def test_what_the_dictionary_does_not_know_or_what_is_in_a_wrong_vr_is_not_kept() -> None:
    ds = make_dataset(frames=0)
    ds.add_new(0x00180001, "LO", "UNKNOWNSECRET")  # no attribute of the standard
    ds.add_new(0x00100044, "SQ", [make_dataset(frames=0)])  # gender identity: newer than the dictionary
    nested = Dataset()
    nested.PatientName = "HIDDENSECRET"
    raw = encoded(nested, ExplicitVRLittleEndian)
    ds.add_new(0x00082218, "OB", raw)  # AnatomicRegionSequence, said to be octets
    out, data = deidentified(ds)
    for tag in (0x00180001, 0x00100044, 0x00082218):
        assert tag not in out
    for secret in (b"UNKNOWNSECRET", b"HIDDENSECRET"):
        assert secret not in data


def test_a_sequence_in_vr_un_is_cleaned_like_any_other() -> None:
    item = Dataset()
    item.PatientName, item.CodeMeaning = "HIDDENSECRET", "kept"
    inner = encoded(item, ImplicitVRLittleEndian)
    value = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    tail = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    element_bytes = struct.pack("<HH2sHI", 0x0008, 0x2218, b"UN", 0, 0xFFFFFFFF) + value + tail
    ds = make_dataset(frames=0)
    data = encoded(ds, ExplicitVRLittleEndian)
    at = data.index(struct.pack("<HH", 0x0010, 0x0010))
    deidentifier = Deidentifier(BASIC, Pseudonyms(KEY))
    result = deidentifier.deidentify(data[:at] + element_bytes + data[at:], ExplicitVRLittleEndian)
    assert b"HIDDENSECRET" not in result.elements
    assert b"kept" in result.elements


def test_overlays_curves_signatures_and_group_lengths_are_gone() -> None:
    ds = make_dataset(frames=0)
    ds.add_new(0x60003000, "OW", b"OVERLAYSECRET!")
    ds.add_new(0x60024000, "LT", "OVERLAYSECRET!")
    ds.add_new(0x60000022, "LO", "kept label")
    ds.add_new(0x50003000, "OW", b"CURVESECRET!")
    ds.add_new(0xFFFAFFFA, "SQ", [Dataset()])
    out, data = deidentified(ds)
    assert not [e.tag for e in out if e.tag.group in (0x5000, 0xFFFA)]
    assert b"SECRET" not in data


def test_preamble_and_file_meta_information_say_nothing_of_the_source() -> None:
    out, data = deidentified(make_dataset(instance="1.2.3.4", frames=0))
    assert data[:128] == bytes(128)
    assert out.file_meta.MediaStorageSOPInstanceUID == out.SOPInstanceUID != "1.2.3.4"
    assert {e.keyword for e in out.file_meta} == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    } - ({"ImplementationVersionName"} if "ImplementationVersionName" not in out.file_meta else set())
    assert meta_length(data) < len(data)


def test_the_data_set_says_that_and_how_it_was_deidentified() -> None:
    out, _ = deidentified(make_dataset(frames=0), "retainUids", "retainLongitudinalModifiedDates")
    assert out.PatientIdentityRemoved == "YES"
    assert out.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [
        (i.CodeValue, i.CodingSchemeDesignator, i.CodeMeaning) for i in out.DeidentificationMethodCodeSequence
    ]
    assert codes == [
        ("113100", "DCM", "Basic Application Confidentiality Profile"),
        ("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option"),
        ("113110", "DCM", "Retain UIDs Option"),
    ]
    assert "2026c" in out.DeidentificationMethod[0]
    assert all(len(text) <= 64 for text in out.DeidentificationMethod)


# --- UIDs ------------------------------------------------------------------------------------------------


def test_a_uid_becomes_the_same_everywhere_under_a_key_and_another_under_another() -> None:
    one = make_dataset(study="1.2.3", series="1.2.3.4", instance="1.2.3.4.5", frames=0)
    other = make_dataset(study="1.2.3", series="1.2.3.9", frames=0)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, "1.2.3.4.5"
    other.ReferencedImageSequence = [reference]
    first, _ = deidentified(one)
    second, _ = deidentified(other)
    elsewhere, _ = deidentified(one, key=b"another key")
    assert first.StudyInstanceUID == second.StudyInstanceUID != elsewhere.StudyInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    item = second.ReferencedImageSequence[0]
    assert item.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert item.ReferencedSOPClassUID == one.SOPClassUID
    for uid in (first.StudyInstanceUID, first.SeriesInstanceUID, first.SOPInstanceUID):
        assert uid.is_valid
        assert uid.startswith("2.25.")
        assert len(uid) <= 64


def test_the_deidentifier_names_the_uids_that_the_file_has() -> None:
    deidentifier = Deidentifier(BASIC, Pseudonyms(KEY))
    out, _ = deidentified(make_dataset(study="1.2.3", frames=0))
    assert deidentifier.uid("1.2.3") == out.StudyInstanceUID
    assert Deidentifier(options_of(["retainUids"]), Pseudonyms(KEY)).uid("1.2.3") == "1.2.3"


def test_several_uids_of_one_attribute_and_uids_of_the_standard() -> None:
    ds = make_dataset(frames=0)
    ds.IrradiationEventUID = ["1.2.3", "1.2.4"]
    ds.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"  # Talairach, a well-known frame of reference
    out, _ = deidentified(ds)
    assert len(set(out.IrradiationEventUID)) == 2
    assert not {"1.2.3", "1.2.4"} & set(out.IrradiationEventUID)
    assert out.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"


# --- patients --------------------------------------------------------------------------------------------


def test_patients_have_pseudonyms_that_keep_them_apart() -> None:
    def pseudonym(partition: str = "p", **attributes: Any) -> str:
        return str(deidentified(make_dataset(frames=0, **attributes), partition=partition)[0].PatientID)

    same = pseudonym(PatientID="P-1")
    assert same == pseudonym(PatientID="P-1") == pseudonym(PatientID="P-1 ", PatientName="Other")
    assert same not in ("P-1", "", "ANONYMIZED")
    assert len({same, pseudonym(PatientID="P-2"), pseudonym(PatientID="P-1", IssuerOfPatientID="X")}) == 3
    assert pseudonym("other", PatientID="P-1") != same
    assert pseudonym(PatientID="") == ""


# --- options ---------------------------------------------------------------------------------------------


def retained(*names: str) -> set[str]:
    """Keywords of the attributes of the table that stay as they are under options."""
    ds, _ = full(0)
    out, _ = deidentified(ds, *names)
    kept = set()
    for tag in known():
        if tag not in IDENTITY and tag in out and out[tag].VR != "SQ" and out[tag] == ds[tag]:
            kept.add(keyword_for_tag(tag))
    return kept


def test_nothing_of_the_table_is_retained_without_options() -> None:
    assert retained() == set()


def test_patient_characteristics() -> None:
    kept = retained("retainPatientCharacteristics")
    assert kept >= {"PatientAge", "PatientSex", "PatientSize", "PatientWeight", "SmokingStatus"}
    assert not kept & {"PatientName", "PatientID", "PatientBirthDate", "Allergies", "PatientState"}
    assert len(kept) == 9  # the tenth is a sequence


def test_device_identity() -> None:
    kept = retained("retainDeviceIdentity")
    assert kept >= {"DeviceSerialNumber", "StationName", "DeviceUID", "GantryID", "DateOfLastCalibration"}
    assert not kept & {"StationAETitle", "InstitutionName", "StudyDate"}


def test_institution_identity() -> None:
    kept = retained("retainInstitutionIdentity")
    assert kept >= {"InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"}
    assert not kept & {"StationName", "ReferringPhysicianName", "PatientID"}


def test_uids() -> None:
    ds = make_dataset(study="1.2.3", series="1.2.4", instance="1.2.5", frames=0)
    out, _ = deidentified(ds, "retainUids")
    assert (out.StudyInstanceUID, out.SeriesInstanceUID, out.SOPInstanceUID) == ("1.2.3", "1.2.4", "1.2.5")
    assert out.file_meta.MediaStorageSOPInstanceUID == "1.2.5"
    kept = retained("retainUids")
    assert all(dictionary_VR(tag_for_keyword(keyword) or 0) == "UI" for keyword in kept)
    assert {"FrameOfReferenceUID", "DeviceUID", "ReferencedSOPInstanceUID"} <= kept


def test_full_dates() -> None:
    kept = retained("retainLongitudinalFullDates")
    dates = {keyword_for_tag(tag) for tag in known() if str(dictionary_VR(tag)) in ("DA", "TM", "DT")} - {
        "PatientBirthDate",
        "PatientBirthTime",
        "GPSTimeStamp",
    }
    assert kept == dates | {"TimezoneOffsetFromUTC", "CertifiedTimestamp", "FrameOriginTimestamp"}
    out, _ = deidentified(make_dataset(frames=0), "retainLongitudinalFullDates")
    assert out.LongitudinalTemporalInformationModified == "UNMODIFIED"


def test_modified_dates_move_by_the_same_days_within_a_patient_and_keep_the_time_of_day() -> None:
    from datetime import date

    def dates(**attributes: Any) -> Dataset:
        ds = make_dataset(frames=0, StudyDate="20240229", SeriesDate="20240301", StudyTime="101112.5")
        ds.AcquisitionDateTime = "20240229235959.123456+0100"
        ds.PatientBirthDate, ds.TimezoneOffsetFromUTC = "19700101", "+0100"
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        return deidentified(ds, "retainLongitudinalModifiedDates")[0]

    def day(text: str) -> date:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))

    out = dates()
    moved = date(2024, 2, 29) - day(out.StudyDate)
    assert 1 <= moved.days <= 3650
    assert (day(out.SeriesDate) - day(out.StudyDate)).days == 1
    assert out.AcquisitionDateTime == out.StudyDate + "235959.123456+0100"
    assert out.StudyTime == "101112.5"
    assert not out.PatientBirthDate
    assert "TimezoneOffsetFromUTC" not in out
    assert dates(StudyDescription="x").StudyDate == out.StudyDate
    assert dates(PatientID="P-2").StudyDate != out.StudyDate
    odd = dates(StudyDate="NODATE", SeriesDate="2024")
    assert not odd.StudyDate
    assert odd.SeriesDate == "00010101"
    assert "NODATE" not in str(odd)


@pytest.mark.parametrize(
    "names",
    [
        ("retainEverything",),
        ("cleanDescriptors",),
        ("RETAINUIDS",),
        ("retainLongitudinalFullDates", "retainLongitudinalModifiedDates"),
    ],
)
def test_options_that_are_unknown_or_exclude_each_other_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        options_of(names)


# --- what is refused -----------------------------------------------------------------------------------


def test_burned_in_annotation_is_refused_unless_allowed() -> None:
    ds = make_dataset(frames=0, BurnedInAnnotation="YES")
    with pytest.raises(CannotDeidentify, match="BurnedInAnnotation"):
        deidentified(ds)
    out, _ = deidentified(ds, allow=True)
    assert out.BurnedInAnnotation == "YES"
    assert deidentified(make_dataset(frames=0, BurnedInAnnotation="NO"))[0].BurnedInAnnotation == "NO"


def test_an_encapsulated_document_is_refused() -> None:
    with pytest.raises(CannotDeidentify, match="encapsulated document"):
        deidentified(make_dataset(frames=0, EncapsulatedDocument=b"%PDF"))


def test_a_damaged_data_set_is_refused_in_a_sentence_without_values() -> None:
    data = encoded(make_dataset(frames=0, PatientName="SECRET"), ExplicitVRLittleEndian)
    with pytest.raises(CannotDeidentify) as raised:
        Deidentifier(BASIC, Pseudonyms(KEY)).deidentify(data[:-3], ExplicitVRLittleEndian)
    assert "SECRET" not in str(raised.value)


# --- reports and real files ----------------------------------------------------------------------------


def test_a_report_keeps_its_form_and_loses_its_text() -> None:
    ds = make_dataset(frames=0, Modality="SR", SOPClassUID=ComprehensiveSRStorage)
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121106", "DCM", "Comment"
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [name]
    item.TextValue = "Mr Secret has a finding"
    person = Dataset()
    person.RelationshipType, person.ValueType = "HAS OBS CONTEXT", "PNAME"
    person.PersonName = "Secret^Doctor"
    ds.ContentSequence = [item, person]
    out, data = deidentified(ds)
    assert b"Secret" not in data
    text, observer = out.ContentSequence
    assert (text.ValueType, text.RelationshipType, text.TextValue) == ("TEXT", "CONTAINS", "ANONYMIZED")
    assert observer.PersonName == "ANONYMIZED"


def test_no_identifying_value_of_a_real_file_is_left() -> None:
    checked = 0
    for path in real_files():
        data = path.read_bytes()
        if data[128:132] != b"DICM":
            continue
        try:
            file = io.BytesIO(data)
            ds = dcmread(file, stop_before_pixels=True)
            syntax = ds.file_meta.TransferSyntaxUID
            elements = data[meta_length(data) : file.tell()]
            if syntax == DeflatedExplicitVRLittleEndian or "SOPInstanceUID" not in ds:
                continue
            result = Deidentifier(BASIC, Pseudonyms(KEY), allow_burned_in=True).deidentify(elements, syntax)
        except (CannotDeidentify, AttributeError, NotImplementedError, EOFError):
            continue
        out = dcmread(io.BytesIO(result.header + result.elements))
        originals = {(leaf.tag, str(leaf.value)) for leaf in leaves(ds)}
        for leaf in leaves(out):
            if TABLE.get(leaf.tag) not in (None, Action.KEEP) and leaf.value not in (None, "", b"", []):
                text = str(leaf.value)
                registered = leaf.VR == "UI" and text.startswith("1.2.840.10008.")
                assert (leaf.tag, text) not in originals or registered or text in DUMMIES, (
                    path.name,
                    leaf.tag,
                )
        assert not [e.tag for e in out if e.tag.is_private]
        checked += 1
    assert checked > 150


def test_tags_wanted_for_the_table_are_those_of_the_result() -> None:
    ds = make_dataset(frames=0, StudyDescription="SECRET")
    deidentifier = Deidentifier(BASIC, Pseudonyms(KEY))
    result = deidentifier.deidentify(
        encoded(ds, ExplicitVRLittleEndian),
        ExplicitVRLittleEndian,
        wanted=["0020000D", "00081030", "00080060", "00100010"],
    )
    assert result.attributes.keys() == {"0020000D", "00080060", "00100010"}
    assert result.attributes["0020000D"]["Value"] == [deidentifier.uid(str(ds.StudyInstanceUID))]
    assert "Value" not in result.attributes["00100010"]
    assert Tag(0x00081030) not in dcmread(io.BytesIO(result.header + result.elements))
