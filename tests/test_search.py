"""Search over HTTP: what is stored is found, on the wire (PS3.18 §10.6)."""

from __future__ import annotations

import io
import uuid
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.conftest import Server

JSON = "application/dicom+json"


def part10(**values: Any) -> bytes:
    """A Part 10 file with the attributes given by keyword."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Archive:
    """A partition of the running server with two studies.

    Study ``a`` has a CT series of two instances and an SEG series of one, study ``b`` an MR series of one.
    """

    def __init__(self, server: Server) -> None:
        self.partition = f"search-{uuid.uuid4().hex[:12]}"
        self.root = f"{server.v2}/partitions/{self.partition}"
        self.a, self.b, self.ct, self.seg, self.mr = (str(generate_uid()) for _ in range(5))
        doe = {
            "StudyInstanceUID": self.a,
            "PatientID": "Doe-1",
            "PatientName": "Doe^John",
            "PatientBirthDate": "19700102",
            "PatientAge": "050Y",
            "StudyDate": "20200115",
            "StudyTime": "101530",
            "AccessionNumber": "ACC%1",
            "StudyDescription": "Thorax [native]",
            "ReferringPhysicianName": "Müller^Anna",
        }
        ct = {"SeriesInstanceUID": self.ct, "Modality": "CT", "SeriesNumber": 1, "SeriesDescription": "Axial"}
        seg = {"SeriesInstanceUID": self.seg, "Modality": "SEG", "SeriesNumber": 2}
        self.store(**doe, **ct, InstanceNumber=1, Rows=512, AcquisitionDateTime="20200115101500+0100")
        self.store(**doe, **ct, InstanceNumber=2, Rows=512)
        self.store(**doe, **seg, InstanceNumber=1)
        self.store(
            StudyInstanceUID=self.b,
            SeriesInstanceUID=self.mr,
            Modality="MR",
            PatientID="Yamada-1",
            PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
            StudyDate="20210301",
        )

    def store(self, **values: Any) -> None:
        response = httpx.post(
            f"{self.root}/studies",
            content=part10(**values),
            headers={"Content-Type": "application/dicom"},
            timeout=60,
        )
        assert response.status_code == 200, response.text

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.root}/{path}", headers=headers, timeout=60)

    def find(self, path: str) -> list[dict[str, Any]]:
        """The results of a search; an empty list for 204."""
        response = self.get(path)
        if response.status_code == 204:
            assert response.content == b""
            return []
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == JSON
        results: list[dict[str, Any]] = response.json()
        return results

    def studies(self, query: str) -> str:
        """The studies found, by their letters."""
        names = {self.a: "a", self.b: "b"}
        return "".join(names[result["0020000D"]["Value"][0]] for result in self.find(f"studies?{query}"))


@pytest.fixture(scope="module")
def archive(server: Server) -> Archive:
    return Archive(server)


def value(result: dict[str, Any], tag: str) -> Any:
    """The first value of an attribute."""
    return result[tag]["Value"][0]


def test_a_study_has_what_viewers_read(archive: Archive) -> None:
    newest, study = archive.find("studies")
    assert value(newest, "0020000D") == archive.b
    assert list(study) == sorted(study)
    assert value(study, "0020000D") == archive.a
    assert study["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^John"}]}
    assert study["00080090"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^Anna"}]}
    assert [value(study, tag) for tag in ("00100020", "00080050", "00081030")] == [
        "Doe-1",
        "ACC%1",
        "Thorax [native]",
    ]
    assert [value(study, tag) for tag in ("00080020", "00080030", "00100030")] == [
        "20200115",
        "101530",
        "19700102",
    ]
    assert study["00080061"] == {"vr": "CS", "Value": ["CT", "SEG"]}
    assert study["00201206"] == {"vr": "IS", "Value": [2]}
    assert study["00201208"] == {"vr": "IS", "Value": [3]}
    assert study["00080056"] == {"vr": "CS", "Value": ["ONLINE"]}
    assert study["00081190"] == {"vr": "UR", "Value": [f"{archive.root}/studies/{archive.a}"]}
    assert newest["00100010"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    ]
    assert newest["00080050"] == {"vr": "SH"}, "absent attributes are empty"
    assert "00101010" not in study


def test_a_series_has_what_viewers_read(archive: Archive) -> None:
    seg, ct = archive.find(f"studies/{archive.a}/series")
    assert value(seg, "0020000E") == archive.seg
    assert ct["0020000D"]["Value"] == [archive.a]
    assert ct["0020000E"]["Value"] == [archive.ct]
    assert [value(ct, tag) for tag in ("00080060", "00200011", "0008103E", "00201209")] == [
        "CT",
        1,
        "Axial",
        2,
    ]
    assert value(ct, "00081190") == f"{archive.root}/studies/{archive.a}/series/{archive.ct}"
    assert "00100010" not in ct
    assert value(archive.find("series?Modality=MR")[0], "00100020") == "Yamada-1"


def test_an_instance_has_what_viewers_read(archive: Archive) -> None:
    second, first = archive.find(f"studies/{archive.a}/series/{archive.ct}/instances")
    assert [value(second, "00200013"), value(first, "00200013")] == [2, 1]
    assert [value(first, tag) for tag in ("0020000D", "0020000E", "00080016", "00280010", "00083002")] == [
        archive.a,
        archive.ct,
        CTImageStorage,
        512,
        ExplicitVRLittleEndian,
    ]
    uid = value(first, "00080018")
    url = f"{archive.root}/studies/{archive.a}/series/{archive.ct}/instances/{uid}"
    assert value(first, "00081190") == url
    assert httpx.get(url, headers={"Accept": "*/*"}).status_code == 200
    assert "00080060" not in first
    of_study = archive.find(f"studies/{archive.a}/instances")
    assert [value(result, "00080060") for result in of_study] == ["SEG", "CT", "CT"]
    assert "00100010" not in of_study[0]
    assert {value(result, "00100020") for result in archive.find("instances")} == {"Doe-1", "Yamada-1"}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("PatientID=doe-1", "a"),
        ("00100020=Doe-1", "a"),
        ("PatientID=*-1", "ba"),
        ("PatientID=Doe-?", "a"),
        ("PatientID=", "ba"),
        ("PatientID=Doe", ""),
        ("PatientName=doe*", "a"),
        ("PatientName=*ohn*", "a"),
        ("PatientName=%E5%B1%B1*", "b"),
        ("PatientName=jo+do&fuzzymatching=true", "a"),
        ("PatientName=ohn&fuzzymatching=true", ""),
        ("ReferringPhysicianName=muller*", "a"),
        ("ReferringPhysicianName=M%C3%BCller%5EAnna", "a"),
        ("AccessionNumber=ACC%251", "a"),
        ("AccessionNumber=*%25*", "a"),
        ("StudyDescription=*[native]", "a"),
        ("StudyDate=20200115", "a"),
        ("StudyDate=20200101-20201231", "a"),
        ("StudyDate=20200601-", "b"),
        ("StudyDate=-20200601", "a"),
        ("StudyTime=1015", "a"),
        ("StudyTime=10-11", "a"),
        ("StudyTime=11-", ""),
        ("ModalitiesInStudy=SEG", "a"),
        ("ModalitiesInStudy=CT%5CMR", "ba"),
        ("Modality=MR", "b"),
        ("00080060=CT", "a"),
        ("StudyDate=20200101-&ModalitiesInStudy=CT&PatientName=D*", "a"),
        ("limit=1", "b"),
        ("limit=1&offset=1", "a"),
        ("offset=2", ""),
    ],
)
def test_matching(archive: Archive, query: str, found: str) -> None:
    assert archive.studies(query) == found


def test_lists_of_uids(archive: Archive) -> None:
    for separator in (",", "%2C", "%5C"):
        assert archive.studies(f"StudyInstanceUID={archive.a}{separator}{archive.b}{separator}1.2.3") == "ba"
    results = archive.find(f"instances?SeriesInstanceUID={archive.seg},{archive.mr}")
    assert [value(result, "0020000E") for result in results] == [archive.mr, archive.seg]


def test_parents_attributes_are_matched_and_returned(archive: Archive) -> None:
    (result,) = archive.find(
        f"studies/{archive.a}/series?PatientID=Doe-1&Modality=CT&includefield=PatientAge"
    )
    assert [value(result, tag) for tag in ("00100020", "00080060", "00101010")] == ["Doe-1", "CT", "050Y"]
    (result,) = archive.find("instances?PatientID=Doe-1&Modality=CT&InstanceNumber=2")
    assert value(result, "0020000E") == archive.ct
    for moment in ("20200115101500-20200115101501", "20200115091500%2B0000"):
        (result,) = archive.find(f"instances?AcquisitionDateTime={moment}")
        assert value(result, "0008002A") == "20200115101500+0100"


def test_includefield(archive: Archive) -> None:
    viewer = "includefield=00081030%2C00080060&includefield=PatientAge,00100030,00091001&limit=25&offset=0"
    (result,) = archive.find(f"studies?PatientID=Doe-1&{viewer}")
    assert value(result, "00101010") == "050Y"
    (result,) = archive.find("studies?PatientID=Doe-1&includefield=all")
    assert value(result, "00101010") == "050Y"
    assert "00102180" not in result, "what a file lacks is not listed by includefield=all"
    (result,) = archive.find("studies?PatientID=Doe-1&includefield=Occupation")
    assert result["00102180"] == {"vr": "SH"}


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("studies?colour=red", "colour"),
        ("studies?AdditionalPatientHistory=x", "AdditionalPatientHistory"),
        ("studies?SeriesNumber=1", "SeriesNumber"),
        ("studies?PatientID=1&00100020=2", "PatientID"),
        ("studies?StudyDate=yesterday", "StudyDate"),
        ("studies?StudyTime=-", "StudyTime"),
        ("series?SeriesNumber=one", "SeriesNumber"),
        ("studies?limit=0", "limit"),
        ("studies?limit=201", "limit"),
        ("studies?offset=-1", "offset"),
        ("studies?fuzzymatching=perhaps", "fuzzymatching"),
        ("studies?includefield=nonsense", "includefield"),
        ("studies?RequestAttributesSequence.AccessionNumber=1", "RequestAttributesSequence.AccessionNumber"),
        ("studies?RequestAttributesSequence=1", "RequestAttributesSequence"),
        ("studies/1.2.3*/series", "StudyInstanceUID"),
    ],
)
def test_a_bad_search_says_what_is_wrong(archive: Archive, path: str, named: str) -> None:
    response = archive.get(path)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    assert named in response.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/dicom+json", JSON),
        ("application/json", "application/json"),
        ("*/*", JSON),
        ("application/*", JSON),
        ("", JSON),
        ("text/html, application/json;q=0.5, */*;q=0.1", "application/json"),
        ('multipart/related; type="application/dicom+xml", application/dicom+json;q=0.9', JSON),
        ("application/dicom+xml", None),
        ('multipart/related; type="application/dicom+xml"', None),
        ("text/html", None),
        ("application/dicom+json;q=0", None),
    ],
)
def test_accept_is_obeyed(archive: Archive, accept: str, media_type: str | None) -> None:
    response = archive.get("studies?limit=1", Accept=accept)
    if media_type is None:
        assert response.status_code == 406
    else:
        assert response.status_code == 200
        assert response.headers["Content-Type"] == media_type


@pytest.mark.parametrize(
    "path", ["studies", "series", "instances", "studies/{a}/series", "studies/{a}/instances"]
)
def test_head_answers_as_get_does(archive: Archive, path: str) -> None:
    path = path.format(a=archive.a)
    get = archive.get(path)
    head = httpx.head(f"{archive.root}/{path}")
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_retrieve_urls_are_those_the_client_sees(archive: Archive) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pacs.example.org"}
    (result,) = archive.get("studies?limit=1", **headers).json()
    expected = f"https://pacs.example.org/v2/partitions/{archive.partition}/studies/{archive.b}"
    assert value(result, "00081190") == expected


def test_another_partition_finds_nothing(archive: Archive, server: Server) -> None:
    for root in (server.v2, f"{server.v2}/partitions/nobody"):
        assert httpx.get(f"{root}/studies?StudyInstanceUID={archive.a}").status_code == 204
        assert httpx.get(f"{root}/studies/{archive.a}/series").status_code == 204


def test_the_default_partition_is_searched_without_a_name(server: Server) -> None:
    study = str(generate_uid())
    content = part10(StudyInstanceUID=study, SeriesInstanceUID=str(generate_uid()), PatientID="")
    headers = {"Content-Type": "application/dicom"}
    assert httpx.post(f"{server.v2}/studies", content=content, headers=headers).status_code == 200
    (result,) = httpx.get(f"{server.v2}/studies?StudyInstanceUID={study}").json()
    assert value(result, "00081190") == f"{server.v2}/studies/{study}"
    assert result["00100020"] == {"vr": "LO"}
    assert result["00080061"] == {"vr": "CS"}
