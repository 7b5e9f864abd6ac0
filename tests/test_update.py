"""Bulk update over the wire: what changes, what stays, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from tests.conftest import Server
from tests.dicom_files import codestream, frame, make_dataset, make_file, read_multipart, to_file
from tests.operations_harness import wait_for_end
from tests.partition import Partition, problem

Json = dict[str, Any]

WHOLE = "application/dicom; transfer-syntax=*"
ORIGINAL = {"msdicom_request_original": "true"}
NEW_NAME: Json = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]}}


@pytest.fixture
def partition(server: Server) -> Partition:
    return Partition(server)


def request_update(partition: Partition, studies: list[str], changes: Json) -> httpx.Response:
    body = json.dumps({"studyInstanceUids": studies, "changeDataset": changes})
    return partition.request("POST", "studies/$bulkUpdate", body, Content_Type="application/json")


def update(partition: Partition, studies: list[str], changes: Json) -> Json:
    """Update studies and wait for the end; the operation."""
    response = request_update(partition, studies, changes)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == response.json()["href"]
    return wait_for_end(response.json()["href"])


def data_set(partition: Partition, path: str, **headers: str) -> Dataset:
    response = partition.get(path, WHOLE, **headers)
    assert response.status_code == 200, response.text
    return dcmread(io.BytesIO(response.content))


def metadata(partition: Partition, path: str, **headers: str) -> list[Json]:
    response = partition.get(f"{path}/metadata", **headers)
    assert response.status_code == 200, response.text
    found: list[Json] = response.json()
    return found


def test_an_update_changes_every_instance_and_keeps_the_originals(partition: Partition) -> None:
    study, first, second = (generate_uid() for _ in range(3))
    files = [make_file(study, series) for series in (first, first, second)]
    paths = partition.keep(*files)
    other = partition.keep(make_file())[0]
    before = partition.get(f"studies/{study}/metadata").headers["ETag"]
    operation = update(partition, [study], NEW_NAME)
    assert operation["type"] == "update"
    assert operation["status"] == "succeeded"
    assert operation["results"] == {"studyUpdated": 1, "instanceUpdated": 3}
    assert operation["resources"] == [f"{partition.root}/studies/{study}"]
    for path, file in zip(paths, files, strict=True):
        changed, original = data_set(partition, path), data_set(partition, path, **ORIGINAL)
        assert changed.PatientName == "Roe^Richard"
        assert original.PatientName == "Doe^Jane"
        assert partition.get(path, WHOLE, **ORIGINAL).content == file
        original.PatientName = "Roe^Richard"
        assert changed == original
        assert changed.file_meta == original.file_meta
        (document,) = metadata(partition, path)
        assert document["00100010"]["Value"] == [{"Alphabetic": "Roe^Richard"}]
        (document,) = metadata(partition, path, **ORIGINAL)
        assert document["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
        for headers in ({}, ORIGINAL):
            response = partition.get(f"{path}/frames/1", "application/octet-stream", **headers)
            assert response.content == frame(1)
    assert len(metadata(partition, f"studies/{study}", **ORIGINAL)) == 3
    assert partition.get(f"studies/{study}/metadata").headers["ETag"] != before
    assert data_set(partition, other).PatientName == "Doe^Jane"
    assert [s["0020000D"]["Value"] for s in partition.get("studies?PatientName=Roe*").json()] == [[study]]
    assert len(partition.get("studies?PatientName=Doe*").json()) == 1
    (found,) = partition.get(f"studies?StudyInstanceUID={study}").json()
    assert found["00201208"]["Value"] == [3]


def test_a_second_update_keeps_the_first_original(partition: Partition) -> None:
    study = generate_uid()
    file = make_file(study)
    (path,) = partition.keep(file)
    update(partition, [study], NEW_NAME)
    update(partition, [study], {"00100020": {"vr": "LO", "Value": ["P-2"]}})
    changed = data_set(partition, path)
    assert (changed.PatientName, changed.PatientID) == ("Roe^Richard", "P-2")
    assert partition.get(path, WHOLE, **ORIGINAL).content == file
    actions = changes_of(partition, path)
    assert [(entry["Action"], entry["State"]) for entry in actions] == [
        ("create", "replaced"),
        ("update", "replaced"),
        ("update", "current"),
    ]


def changes_of(partition: Partition, path: str) -> list[Json]:
    """The entries of the change feed about an instance."""
    entries: list[Json] = []
    found: list[Json] = []
    while True:
        url = f"{partition.server.v2}/changefeed"
        query = {"offset": len(entries), "limit": 200, "includemetadata": "false"}
        page = partition.http.get(url, params=query).json()
        entries += page
        found += [entry for entry in page if path.endswith(entry["SopInstanceUid"])]
        if len(page) < 200:
            return found


def test_a_study_that_was_not_updated_is_its_own_original(partition: Partition) -> None:
    file = make_file()
    (path,) = partition.keep(file)
    assert partition.get(path, WHOLE, **ORIGINAL).content == file


def test_a_new_version_is_made_even_where_nothing_differs(partition: Partition) -> None:
    study = generate_uid()
    (path,) = partition.keep(make_file(study))
    before = partition.get(path, WHOLE)
    update(partition, [study], {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}})
    after = partition.get(path, WHOLE)
    assert after.content == before.content
    assert after.headers["ETag"] != before.headers["ETag"]
    assert changes_of(partition, path)[-1]["Action"] == "update"


def test_put_of_an_updated_instance_is_a_new_beginning(partition: Partition) -> None:
    study = generate_uid()
    ds = make_dataset(study)
    (path,) = partition.keep(to_file(ds))
    update(partition, [study], NEW_NAME)
    ds.PatientName = "Third^Person"
    other = to_file(ds)
    assert partition.store(other, method="PUT").status_code == 200
    for headers in ({}, ORIGINAL):
        assert partition.get(path, WHOLE, **headers).content == other


def test_delete_removes_the_original_too(partition: Partition) -> None:
    study = generate_uid()
    (path,) = partition.keep(make_file(study))
    update(partition, [study], NEW_NAME)
    assert partition.request("DELETE", f"studies/{study}").status_code == 204
    for headers in ({}, ORIGINAL):
        assert partition.get(path, WHOLE, **headers).status_code == 404


def test_series_attributes_and_sequences_change_and_empty_values_clear(partition: Partition) -> None:
    study = generate_uid()
    code = {"00080100": {"vr": "SH", "Value": ["C1"]}, "00080104": {"vr": "LO", "Value": ["Chest"]}}
    (path,) = partition.keep(make_file(study, AccessionNumber="A-1", StudyDescription="Old"))
    operation = update(
        partition,
        [study],
        {
            "00080060": {"vr": "CS", "Value": ["MR"]},
            "0008103E": {"vr": "LO", "Value": ["Axial"]},
            "00081032": {"vr": "SQ", "Value": [code]},
            "00080050": {"vr": "SH"},
            "00081030": {"vr": "LO", "Value": []},
        },
    )
    assert operation["status"] == "succeeded"
    changed = data_set(partition, path)
    assert (changed.Modality, changed.SeriesDescription) == ("MR", "Axial")
    assert (changed.AccessionNumber, changed.StudyDescription) == ("", "")
    assert changed.ProcedureCodeSequence[0].CodeMeaning == "Chest"
    (found,) = partition.get("studies?ModalitiesInStudy=MR").json()
    assert found["00080050"] == {"vr": "SH"}
    (series,) = partition.get("series?Modality=MR").json()
    assert series["0008103E"]["Value"] == ["Axial"]
    assert partition.get("studies?AccessionNumber=A-1").status_code == 204
    assert partition.get("series?Modality=CT").status_code == 204


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
@pytest.mark.parametrize("name", ["Roe^Richard", "山田^太郎"])
def test_large_and_small_files_of_every_encoding_change(partition: Partition, syntax: str, name: str) -> None:
    study = generate_uid()
    new_name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}
    small = make_dataset(study, frames=2, SpecificCharacterSet="ISO_IR 100", StudyDescription="Knöchel")
    pixels = bytes(range(256)) * (2 * 1024 * 1024 // 256)
    large = make_dataset(
        study,
        frames=3,
        SpecificCharacterSet="ISO_IR 100",
        StudyDescription="Knöchel",
        Rows=1024,
        Columns=1024,
        PixelData=pixels * 3,
    )
    files = [to_file(ds, syntax) for ds in (small, large)]
    paths = partition.keep(*files)
    accept = f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
    frames = [partition.get(f"{path}/frames/2", accept).content for path in paths]
    operation = update(partition, [study], new_name)
    assert operation["status"] == "succeeded", operation
    for path, file, second in zip(paths, files, frames, strict=True):
        changed = data_set(partition, path)
        assert str(changed.PatientName) == name
        assert changed.StudyDescription == "Knöchel"
        original = dcmread(io.BytesIO(file))
        assert changed.PixelData == original.PixelData
        assert changed.file_meta == original.file_meta
        assert partition.get(path, WHOLE, **ORIGINAL).content == file
        (document,) = metadata(partition, path)
        assert document["00100010"] == new_name["00100010"]
        assert document["00081030"]["Value"] == ["Knöchel"]
        for headers in ({}, ORIGINAL):
            response = partition.get(f"{path}/frames/2", accept, **headers)
            assert response.content == second
            bulk = partition.get(f"{path}/bulkdata/7FE00010", "application/octet-stream", **headers)
            assert second in bulk.content


def test_frames_of_a_large_encapsulated_file_are_found_after_an_update(partition: Partition) -> None:
    study = generate_uid()
    frames = [codestream(n) + bytes([n]) * 2_000_000 for n in range(1, 5)]
    ds = make_dataset(study, frames=4)
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    ds.PixelData = encapsulate([f + b"\0" * (len(f) % 2) for f in frames])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    file = to_file(ds, JPEG2000Lossless)
    (path,) = partition.keep(file)
    changes = {"00104000": {"vr": "LT", "Value": ["longer than before " * 50]}}
    assert update(partition, [study], changes)["status"] == "succeeded"
    assert data_set(partition, path).PixelData == dcmread(io.BytesIO(file)).PixelData
    for headers in ({}, ORIGINAL):
        response = partition.get(
            f"{path}/frames/3,1", "multipart/related; type=image/jp2; transfer-syntax=*", **headers
        )
        assert response.status_code == 200, response.text
        parts = read_multipart(response.headers["Content-Type"], response.content)
        assert [body.rstrip(b"\0") for _, body in parts] == [frames[2], frames[0]]


def test_a_large_file_without_pixel_data_changes(partition: Partition) -> None:
    study = generate_uid()
    document = b"%PDF-1.4" + bytes(9_000_000)
    ds = make_dataset(
        study, frames=0, EncapsulatedDocument=document, MIMETypeOfEncapsulatedDocument="application/pdf"
    )
    (path,) = partition.keep(to_file(ds))
    assert update(partition, [study], NEW_NAME)["status"] == "succeeded"
    changed = data_set(partition, path)
    assert (changed.PatientName, changed.EncapsulatedDocument) == ("Roe^Richard", document)
    response = partition.get(f"{path}/bulkdata/00420011", "application/octet-stream")
    assert response.content == document


def test_a_study_that_does_not_exist_fails_and_the_others_change(partition: Partition) -> None:
    study, absent = generate_uid(), generate_uid()
    (path,) = partition.keep(make_file(study))
    operation = update(partition, [absent, study], NEW_NAME)
    assert operation["status"] == "failed"
    sentence = f"Study {absent} is unchanged: It does not exist."
    assert operation["results"] == {
        "studyUpdated": 1,
        "instanceUpdated": 1,
        "studyFailed": 1,
        "errors": [sentence],
    }
    assert sentence in operation["errors"]
    assert data_set(partition, path).PatientName == "Roe^Richard"


def test_an_update_stays_in_its_partition(server: Server) -> None:
    one, other = Partition(server), Partition(server)
    file = make_file()
    (path,) = one.keep(file)
    other.keep(file)
    update(one, [path.split("/")[1]], NEW_NAME)
    assert data_set(one, path).PatientName == "Roe^Richard"
    assert other.get(path, WHOLE).content == file
    assert other.get(path, WHOLE, **ORIGINAL).content == file


def test_zip_archives_and_images_of_originals(partition: Partition) -> None:
    study = generate_uid()
    (path,) = partition.keep(make_file(study))
    update(partition, [study], NEW_NAME)
    for suffix, accept in (("", "application/zip"), ("/rendered", "image/png"), ("/thumbnail", "image/png")):
        now = partition.get(path + suffix, accept)
        original = partition.get(path + suffix, accept, **ORIGINAL)
        assert (now.status_code, original.status_code) == (200, 200)
        assert "msdicom-request-original" in original.headers["Vary"] or not suffix


def test_the_header_must_say_yes_or_no(partition: Partition) -> None:
    (path,) = partition.keep(make_file())
    response = partition.get(path, WHOLE, msdicom_request_original="maybe")
    assert "msdicom-request-original" in problem(response, 400)


# --- requests that are refused -----------------------------------------------------------------------

UID = "1.2.3"
REFUSED: list[tuple[Any, str]] = [
    (b"", "not JSON"),
    (b"[]", "must be a JSON object"),
    (b'{"studyInstanceUids":["1.2"],"changeDataset":{"00101020":{"vr":"DS","Value":[NaN]}}}', "not JSON"),
    ({"studyInstanceUids": [UID]}, "changeDataset must be"),
    ({"changeDataset": NEW_NAME}, "studyInstanceUids must be"),
    ({"studyInstanceUids": [], "changeDataset": NEW_NAME}, "at least one"),
    ({"studyInstanceUids": "1.2", "changeDataset": NEW_NAME}, "studyInstanceUids must be"),
    ({"studyInstanceUids": ["not a uid"], "changeDataset": NEW_NAME}, "A value of studyInstanceUids"),
    ({"studyInstanceUids": [3], "changeDataset": NEW_NAME}, "A value of studyInstanceUids"),
    ({"studyInstanceUids": [f"1.{n}" for n in range(51)], "changeDataset": NEW_NAME}, "50 studies"),
    ({"studyInstanceUids": [UID], "changeDataset": {}}, "at least one attribute"),
    ({"studyInstanceUids": [UID], "changeDataset": NEW_NAME, "extra": 1}, "'extra' is unknown"),
]
REFUSED_CHANGES: list[tuple[Json, str]] = [
    ({"PatientName": NEW_NAME["00100010"]}, "no tag of eight hexadecimal digits"),
    ({"00101111": {"vr": "LO"}}, "not in the DICOM dictionary"),
    ({"00091001": {"vr": "LO"}}, "private"),
    ({"0020000D": {"vr": "UI", "Value": ["1.2"]}}, "StudyInstanceUID (0020,000D) is a UID"),
    ({"00080018": {"vr": "UI", "Value": ["1.2"]}}, "SOPInstanceUID (0008,0018) is a UID"),
    ({"00200013": {"vr": "IS", "Value": [1]}}, "InstanceNumber (0020,0013) is none of"),
    ({"00280010": {"vr": "US", "Value": [1]}}, "Rows (0028,0010) is none of"),
    ({"7FE00010": {"vr": "OW", "InlineBinary": "AAAA"}}, "PixelData (7FE0,0010) is none of"),
    ({"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}, "SpecificCharacterSet (0008,0005) is none of"),
    ({"00020010": {"vr": "UI", "Value": ["1.2"]}}, "TransferSyntaxUID (0002,0010) is a UID"),
    ({"00100010": {"vr": "LO", "Value": ["x"]}}, "PatientName (0010,0010) has the VR PN"),
    ({"00100010": {"Value": ["x"]}}, "has the VR PN"),
    ({"00100010": {"vr": "PN", "Value": ["Doe^Jane"]}}, "must be an object of Alphabetic"),
    ({"00100010": {"vr": "PN", "Value": "Doe"}}, "must be an array"),
    ({"00100010": {"vr": "PN", "BulkDataURI": "http://x"}}, "must be an object of vr and Value"),
    ({"00100010": "Doe"}, "must be an object of vr and Value"),
    ({"00100010": {"vr": "PN", "Value": [{"Alphabetic": "a=b"}]}}, "without '='"),
    (
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A"}, {"Alphabetic": "B"}]}},
        "takes 1 value at most",
    ),
    ({"00100030": {"vr": "DA", "Value": ["2024-01-01"]}}, "PatientBirthDate (0010,0030) is not a date"),
    ({"00100040": {"vr": "CS", "Value": ["male"]}}, "PatientSex (0010,0040) is not up to 16"),
    ({"00100020": {"vr": "LO", "Value": ["x" * 65]}}, "longer than 64 characters"),
    ({"00100020": {"vr": "LO", "Value": ["a\\b"]}}, "backslash"),
    ({"00100020": {"vr": "LO", "Value": [5]}}, "is no string"),
    ({"00101010": {"vr": "AS", "Value": ["4Y"]}}, "three digits"),
    ({"00101010": {"vr": "AS", "Value": ["٠٤٢Y"]}}, "does not allow"),
    ({"00101030": {"vr": "DS", "Value": ["heavy"]}}, "not a decimal number"),
    ({"00101030": {"vr": "DS", "Value": [1.23456789012345678]}}, "longer than 16"),
    ({"00200011": {"vr": "IS", "Value": [1.5]}}, "not an integer"),
    ({"001021C0": {"vr": "US", "Value": [70000]}}, "is no US"),
    ({"001021C0": {"vr": "US", "Value": ["4"]}}, "is no US"),
    ({"001021C0": {"vr": "US", "InlineBinary": "AAAA"}}, "not base64 of a binary VR"),
    ({"00120052": {"vr": "FD", "Value": ["1.5"]}}, "is no FD"),
    ({"00081032": {"vr": "SQ", "Value": ["x"]}}, "is no object"),
    ({"00081032": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["x" * 17]}}]}}, "16 characters"),
    ({"00081032": {"vr": "SQ", "Value": [{"00080005": {"vr": "CS"}}]}}, "has no place in an item"),
    ({"00081032": {"vr": "SQ", "Value": [{"7FE00010": {"vr": "OW"}}]}}, "has no place in an item"),
    ({"00081032": {"vr": "SQ", "Value": [{"00091001": {"vr": "LO"}}]}}, "private"),
]


@pytest.mark.parametrize(("body", "sentence"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_malformed_request_is_refused(partition: Partition, body: Any, sentence: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = partition.request("POST", "studies/$bulkUpdate", content, Content_Type="application/json")
    assert sentence in problem(response, 400)


@pytest.mark.parametrize(("changes", "sentence"), REFUSED_CHANGES, ids=lambda value: str(value)[:30])
def test_a_change_that_cannot_be_is_refused(partition: Partition, changes: Json, sentence: str) -> None:
    assert sentence in problem(request_update(partition, [UID], changes), 400)


def test_other_bodies_are_refused(partition: Partition) -> None:
    response = partition.request("POST", "studies/$bulkUpdate", b"{}", Content_Type="text/plain")
    problem(response, 415)
    response = partition.request("POST", "studies/$bulkUpdate", b" " * (2 * 1024 * 1024))
    problem(response, 413)


def test_the_default_partition_has_the_route_too(server: Server) -> None:
    response = httpx.post(f"{server.v2}/studies/$bulkUpdate", content=b"{}")
    problem(response, 400)
