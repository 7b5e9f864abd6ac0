"""Metadata as DICOM XML (PS3.18 §8.7.2, PS3.19 §A.1): read back it is the JSON, and dcmtk writes the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag
from pydicom.uid import generate_uid

from shared.dicom import native_model as writer
from shared.dicom.part10 import Part10Parser
from shared.errors import InvalidInstance
from tests import native_model as reader
from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, real_files, to_file
from tests.partition import DICOM_JSON, Partition, problem
from tests.tools import tool

DICOM_XML = "application/dicom+xml"
MULTIPART = f'multipart/related; type="{DICOM_XML}"'


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def loaded(text: bytes | str) -> Any:
    return json.loads(text, parse_float=str, parse_int=str)


def in_xml(archive: Partition, path: str) -> list[dict[str, Any]]:
    """The parts of the metadata of ``path`` in XML, read."""
    parts = archive.parts(f"{path}/metadata", MULTIPART)
    assert {headers["content-type"] for headers, _ in parts} == {DICOM_XML}
    return [reader.read(body) for _, body in parts]


def in_json(archive: Partition, path: str) -> list[dict[str, Any]]:
    return [reader.expected(d) for d in loaded(archive.get(f"{path}/metadata", DICOM_JSON).content)]


def strange() -> Dataset:
    """An instance with everything that is hard to write as XML."""
    ds = make_dataset(SliceThickness="1.500", ImageComments='a<b & "c"\r\n\t]]>\x0c\x1b end')
    ds.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.OtherPatientNames = ["A^B^C^Dr.^Jr.", "^Only Given"]
    ds.ImageType = ["ORIGINAL", "", "AXIAL", ""]
    ds.add_new(0x00280051, "CS", [])
    ds.add_new(0x00181041, "DS", "")
    block = ds.private_block(0x0019, "ACME <1>", create=True)
    block.add_new(0x10, "FD", [1.5, float("inf")])
    block.add_new(0x11, "OB", b"\1\2\3\4")
    inner = Dataset()
    inner.private_block(0x0019, "OTHER", create=True).add_new(0x10, "LO", "x")
    block.add_new(0x12, "SQ", [inner, Dataset()])
    ds.add_new(0x60003000, "OW", b"\xaa" * 40_000)
    ds.RequestAttributesSequence = []
    return ds


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_level_answers_in_xml_what_it_answers_in_json(archive: Partition, levels: int) -> None:
    study, series = str(generate_uid()), str(generate_uid())
    odd = strange()
    odd.StudyInstanceUID, odd.SeriesInstanceUID = study, series
    files = [make_file(study, series), to_file(odd), make_file(study), make_file(study, series)]
    first = archive.keep(*files)[1]
    path = "/".join(first.split("/")[: 2 * levels])
    assert in_xml(archive, path) == in_json(archive, path)


def test_one_instance_comes_alone_where_it_is_asked_for_alone(archive: Partition) -> None:
    (path,) = archive.keep(to_file(strange()))
    alone = archive.get(f"{path}/metadata", f"{DICOM_JSON};q=0.5, {DICOM_XML}")
    assert (alone.status_code, alone.headers["Content-Type"]) == (200, DICOM_XML)
    (part,) = archive.parts(f"{path}/metadata", MULTIPART)
    assert part[1] == alone.content
    assert reader.read(alone.content)["00100010"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    ]


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (f"{MULTIPART}, {DICOM_JSON};q=0.9", "multipart/related"),
        (f"{MULTIPART};q=0.1, {DICOM_JSON}", DICOM_JSON),
        ("multipart/related", "multipart/related"),
        ("multipart/related; type=application/dicom+xml", "multipart/related"),
        ("*/*", DICOM_JSON),
        ("application/*", DICOM_JSON),
    ],
)
def test_the_form_is_negotiated(archive: Partition, accept: str, answered: str) -> None:
    (path,) = archive.keep(make_file())
    response = archive.get(f"{path}/metadata", accept)
    assert response.headers["Content-Type"].partition(";")[0] == answered
    by_query = archive.request("GET", f"{path}/metadata", Accept="text/html")
    assert by_query.status_code == 406


def test_what_cannot_be_sent_is_406(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    series = path.rpartition("/instances")[0]
    assert "multipart/related" in problem(archive.get(f"{series}/metadata", DICOM_XML), 406)
    wrong = 'multipart/related; type="application/dicom+json"'
    assert problem(archive.get(f"{path}/metadata", wrong), 406)
    assert problem(archive.get(f"{path}/metadata?nothing=1", MULTIPART), 400)
    assert problem(archive.get("studies/1.2.3/metadata", MULTIPART), 404)


@pytest.mark.parametrize("accept", [MULTIPART, DICOM_XML])
def test_it_has_an_etag_and_is_compressed_and_head_has_the_headers(archive: Partition, accept: str) -> None:
    (path,) = archive.keep(make_file())
    path += "/metadata"
    first = archive.get(path, accept, Accept_Encoding="identity")
    compressed = archive.get(path, accept, Accept_Encoding="gzip")
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.content == first.content == archive.get(path, accept).content
    etags = {first.headers["ETag"], compressed.headers["ETag"], archive.get(path).headers["ETag"]}
    assert len(etags) == 3
    again = archive.get(path, accept, Accept_Encoding="identity", If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    head = archive.request("HEAD", path, Accept=accept, Accept_Encoding="identity")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("ETag", "Content-Type", "Vary"):
        assert head.headers[name] == first.headers[name]


def test_a_projection_leaves_the_attributes_asked_for_and_the_creators_of_private_ones(
    archive: Partition,
) -> None:
    (path,) = archive.keep(to_file(strange()))
    path += "/metadata?includefield=PatientName,00191010"
    (part,) = archive.parts(path, MULTIPART)
    assert sorted(reader.read(part[1])) == [
        "00080016",
        "00080018",
        "00100010",
        "00190010",
        "00190010 ACME <1>",
        "0020000D",
        "0020000E",
    ]


def test_bulk_data_is_where_the_uri_says(archive: Partition) -> None:
    (path,) = archive.keep(to_file(strange()))
    (document,) = in_xml(archive, path)
    for tag in ("60003000", "7FE00010"):
        uri = document[tag]["BulkDataURI"]
        assert uri == f"{archive.root}/{path}/bulkdata/{tag}"
        assert archive.http.get(uri).status_code == 200


def test_every_real_file_reads_back_as_its_json() -> None:
    checked = 0
    for path in real_files():
        parser = Part10Parser()
        try:
            parser.feed(path.read_bytes())
            document = parser.close().document.decode()
        except InvalidInstance:
            continue
        checked += 1
        xml = "".join(writer.pieces(document))
        assert reader.read(xml.encode()) == reader.expected(loaded(document)), path.name
        for key in reader.keywordless(xml.encode()):
            assert not dictionary_has_tag(int(key, 16)), (path.name, key)
    assert checked > 200


@given(st.text())
def test_any_text_is_a_well_formed_document(text: str) -> None:
    private = {"vr": "LO", "Value": [text]}
    document = {
        "00091000": private,
        "00104000": {"vr": "LT", "Value": [text, None]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": text}, {"Ideographic": text}]},
    }
    document = {"00090010": private} | document
    tags = dict(sorted(document.items()))
    xml = "".join(writer.pieces(json.dumps(tags, separators=(",", ":"), ensure_ascii=False)))
    assert reader.read(xml.encode()).keys() == reader.expected(tags).keys()


def test_many_functional_groups_become_xml_in_pieces(archive: Partition) -> None:
    group, position = Dataset(), Dataset()
    position.ImagePositionPatient = [1.5, -2, 0]
    group.PlanePositionSequence = [position]
    (path,) = archive.keep(make_file(frames=2, PerFrameFunctionalGroupsSequence=[group] * 3000))
    assert in_xml(archive, path) == in_json(archive, path)


COMPARED = ("CT_small.dcm", "reportsi.dcm", "rtplan.dcm", "emri_small.dcm", "MR_small.dcm", "test-SR.dcm")


@pytest.mark.parametrize("name", COMPARED)
def test_dcmtk_writes_the_same(archive: Partition, name: str, tmp_path: Path) -> None:
    path = Path(str(get_testdata_file(name)))
    out = tmp_path / "out.xml"
    subprocess.run([tool("dcm2xml"), "-nat", "+Xn", "+Eb", "+M", str(path), str(out)], check=True)
    (ours,) = in_xml(archive, archive.keep(path.read_bytes())[0])
    theirs = _of_dcmtk(ElementTree.parse(out).getroot())
    assert ours.keys() == theirs.keys()
    for key, element in theirs.items():
        assert _comparable(ours[key]) == _comparable(element), key


def _of_dcmtk(root: ElementTree.Element) -> dict[str, Any]:
    for element in root.iter():
        if not (element.text or "").strip() and element.tag != f"{reader.NAMESPACE}Value":
            element.text = None
    return reader._data_set(root)


def _comparable(element: dict[str, Any]) -> Any:
    """VR and values; dcmtk prints numbers with other digits, and has everything in place."""
    if element["vr"] == "SQ":
        return [{key: _comparable(e) for key, e in item.items()} for item in element.get("Value", [])]
    if element["vr"] in ("OB", "OW", "UN") or "Value" not in element:
        return element["vr"]
    values = [v.strip() if isinstance(v, str) else v for v in element["Value"]]
    if element["vr"] in ("DS", "FL", "FD", "IS"):
        return [pytest.approx(float(v), rel=1e-5) for v in values if v]
    return element["vr"], [v or None for v in values]
