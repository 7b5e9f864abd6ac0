"""Search over HTTP: sequences, several values, time zones, patients, pages, what the index does not hold."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.conftest import Server
from tests.dicom_files import make_file
from tests.partition import Partition, problem


def code(value: str, scheme: str, meaning: str = "") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def request(step: str, procedure: str, *codes: Dataset) -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = step, procedure
    if codes:
        item.RequestedProcedureCodeSequence = list(codes)
    return item


class Archive(Partition):
    """A partition whose studies are called by letters."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.letters: dict[str, str] = {}

    def add(self, letter: str, **values: Any) -> str:
        """A study of one instance; its UID."""
        uid = str(generate_uid())
        self.letters[uid] = letter
        self.keep(make_file(study=uid, frames=0, **values))
        return uid

    def find(self, path: str) -> list[dict[str, Any]]:
        response = self.get(path)
        assert response.status_code in (200, 204), response.text
        return response.json() if response.status_code == 200 else []

    def found(self, path: str) -> str:
        """The letters of the studies of the results."""
        return "".join(self.letters[result["0020000D"]["Value"][0]] for result in self.find(path))


@pytest.fixture(scope="module")
def archive(server: Server) -> Archive:
    made = Archive(server)
    made.add(
        "a",
        ProcedureCodeSequence=[code("P1", "LN", "Thorax"), code("P2", "SCT")],
        RequestAttributesSequence=[
            request("S1", "R1", code("C1", "LN")),
            request("S2", "R2", code("C2", "SCT"), code("C3", "LN")),
        ],
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        SpecificCharacterSet="ISO_IR 192",
        OtherPatientNames=["Smith^Ann", "Müller^Anna=山田^花子"],
        PatientWeight="71.50",
        AcquisitionDateTime="20200101120000+0100",
    )
    made.add(
        "b",
        ProcedureCodeSequence=[code("P1", "SCT")],
        ImageType=["DERIVED", "SECONDARY"],
        ConceptNameCodeSequence=[code("11528-7", "LN")],
        AcquisitionDateTime="20200101120000",
        TimezoneOffsetFromUTC="-0500",
        PatientID="P-2",
        PatientName="Roe^Jane",
    )
    made.add("c", AcquisitionDateTime="20200101120000", PatientID="P-2", IssuerOfPatientID="Elsewhere")
    return made


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("studies?ProcedureCodeSequence.CodeValue=p1", "ba"),
        ("studies?00081032.00080100=P2", "a"),
        ("studies?ProcedureCodeSequence.00080104=Thor*", "a"),
        ("studies?ProcedureCodeSequence.CodeValue=P1&ProcedureCodeSequence.CodingSchemeDesignator=SCT", "b"),
        ("studies?ProcedureCodeSequence.CodeValue=P2&ProcedureCodeSequence.CodingSchemeDesignator=LN", ""),
        ("studies?ProcedureCodeSequence.CodeValue=*", "cba"),
        ("series?RequestAttributesSequence.ScheduledProcedureStepID=S1", "a"),
        ("series?00400275.00400009=S2&00400275.00401001=R2", "a"),
        ("series?00400275.00400009=S2&00400275.00401001=R1", ""),
        ("series?00400275.00321064.00080100=C3&00400275.00400009=S2", "a"),
        ("series?00400275.00321064.00080100=C3&00400275.00400009=S1", ""),
        ("series?00400275.00321064.00080100=C2&00400275.00321064.00080102=LN", ""),
        ("instances?00400275.00321064.00080100=C3&00400275.00321064.00080102=LN&ImageType=AXIAL", "a"),
        ("instances?ConceptNameCodeSequence.CodeValue=11528-7", "b"),
        ("instances?ImageType=primary", "a"),
        ("instances?ImageType=*ARY", "ba"),
        ("instances?ImageType=AXIAL,DERIVED", "ba"),
        ("studies?OtherPatientNames=smith*", "a"),
        ("studies?OtherPatientNames=muller^anna", "a"),
        ("studies?OtherPatientNames=" + quote("山田*"), "a"),
        ("studies?OtherPatientNames=ann smi&fuzzymatching=true", "a"),
        ("studies?OtherPatientNames=smith anna&fuzzymatching=true", ""),
        ("studies?PatientWeight=71.5", "a"),
        ("studies?PatientWeight=71", ""),
        ("instances?AcquisitionDateTime=202001011200", "cba"),
        ("instances?AcquisitionDateTime=202001011100%2B0000", "a"),
        ("instances?AcquisitionDateTime=202001011700%2B0000", "b"),
        ("instances?AcquisitionDateTime=202001011200%2B0000", "c"),
        ("instances?AcquisitionDateTime=202001011200&TimezoneOffsetFromUTC=-0500", "cb"),
        ("instances?AcquisitionDateTime=20200101115959-20200101120100&00080201=%2B0100", "ca"),
    ],
)
def test_matching(archive: Archive, query: str, found: str) -> None:
    assert archive.found(query) == found


def test_values_follow_the_last_instance_stored_and_go_with_a_delete(server: Server) -> None:
    archive = Archive(server)
    study, series, first = (str(generate_uid()) for _ in range(3))
    archive.letters[study] = "x"
    same = {"study": study, "series": series, "frames": 0}
    archive.keep(make_file(instance=first, ImageType="ONE", ProcedureCodeSequence=[code("P1", "LN")], **same))
    (second,) = archive.keep(make_file(ImageType="TWO", ProcedureCodeSequence=[code("P2", "LN")], **same))
    assert archive.found("studies?ProcedureCodeSequence.CodeValue=P1") == ""
    assert archive.found("studies?ProcedureCodeSequence.CodeValue=P2") == "x"
    assert archive.found("instances?ImageType=ONE,TWO") == "xx"
    replaced = make_file(instance=first, ImageType="THREE", **same)
    assert archive.store(replaced, method="PUT").status_code == 200
    assert archive.found("instances?ImageType=ONE") == ""
    assert archive.found("instances?ImageType=THREE") == "x"
    assert archive.found("studies?ProcedureCodeSequence.CodeValue=P2") == ""
    assert archive.request("DELETE", second).status_code == 204
    assert archive.found("instances?ImageType=TWO") == ""
    assert archive.request("DELETE", f"studies/{study}").status_code == 204
    assert archive.find("instances?ImageType=THREE") == []
    assert archive.find("patients") == []


# --- patients --------------------------------------------------------------------------------------------


def test_patients_are_told_apart_by_identifier_and_issuer(archive: Archive) -> None:
    elsewhere, second, first = archive.find("patients")
    assert elsewhere["00100021"]["Value"] == ["Elsewhere"]
    assert [p["00100020"]["Value"] for p in (elsewhere, second, first)] == [["P-2"], ["P-2"], ["P-1"]]
    assert second["00100010"]["Value"] == [{"Alphabetic": "Roe^Jane"}]
    assert [second[tag]["Value"] for tag in ("00201200", "00201202", "00201204")] == [[1], [1], [1]]
    assert "00081190" not in first
    assert list(first) == sorted(first)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("PatientID=p-2", 2),
        ("PatientName=roe*", 1),
        ("PatientName=jane&fuzzymatching=true", 3),
        ("IssuerOfPatientID=Elsewhere", 1),
        ("OtherPatientNames=Smith*", 1),
        ("orderby=PatientName&limit=2", 2),
        ("PatientID=nobody", 0),
    ],
)
def test_patients_are_matched_by_their_attributes(archive: Archive, query: str, count: int) -> None:
    assert len(archive.find(f"patients?{query}")) == count


def test_patients_are_not_matched_by_attributes_of_studies(archive: Archive) -> None:
    assert "patient level" in problem(archive.get("patients?StudyDate=20200101"), 400)
    assert "AccessionNumber" in problem(archive.get("patients?orderby=AccessionNumber"), 400)


def test_a_patient_is_known_by_what_its_last_instance_says_while_it_has_studies(server: Server) -> None:
    archive = Archive(server)
    one = archive.add("a", PatientID="A", PatientName="Old")
    two = archive.add("b", PatientID="A", PatientName="New")
    (patient,) = archive.find("patients")
    assert patient["00100010"]["Value"] == [{"Alphabetic": "New"}]
    assert patient["00201200"]["Value"] == [2]
    archive.keep(make_file(study=one, frames=0, PatientID="B"))  # the study turns out to be another patient's
    b, a = archive.find("patients")
    assert [p["00100020"]["Value"][0] for p in (b, a)] == ["B", "A"]
    assert [p["00201204"]["Value"] for p in (b, a)] == [[2], [1]]
    assert archive.request("DELETE", f"studies/{two}").status_code == 204
    (patient,) = archive.find("patients")
    assert patient["00100020"]["Value"] == ["B"]
    archive.keep(make_file(study=one, frames=0, PatientID=""))
    assert archive.find("patients") == []


# --- order and pages -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dated(server: Server) -> Archive:
    """Studies a to e: some of one date, one without any."""
    made = Archive(server)
    dates = {"a": "20200103", "b": "20200101", "c": "20200102", "d": None, "e": "20200102"}
    for letter, date in dates.items():
        made.add(letter, StudyDate=date, PatientName=f"N^{letter.upper()}", AccessionNumber=letter)
    return made


ORDERS = [
    ("", "edcba"),
    ("orderby=StudyDate", "dbcea"),
    ("orderby=%2BStudyDate", "dbcea"),
    ("orderby=-StudyDate", "aecbd"),
    ("orderby=-00080020,-PatientName", "aecbd"),
    ("orderby=-StudyDate,PatientName", "acebd"),
    ("orderby=StudyDate,-AccessionNumber", "dbeca"),
    ("orderby=PatientName&AccessionNumber=*", "abcde"),
    ("orderby=-PatientName&StudyDate=20200102-", "eca"),
]


@pytest.mark.parametrize(("query", "found"), ORDERS)
def test_results_are_sorted(dated: Archive, query: str, found: str) -> None:
    assert dated.found(f"studies?{query}") == found


def pages(archive: Archive, path: str) -> list[httpx.Response]:
    """All pages, each by the Link of the one before."""
    found = [archive.get(path)]
    while "Link" in found[-1].headers:
        assert found[-1].headers["Warning"].startswith("299 ")
        url, _, relation = found[-1].headers["Link"].partition(";")
        assert relation.strip() == 'rel="next"'
        found.append(archive.http.get(url.strip("<>")))
        assert found[-1].status_code == 200, found[-1].text
    assert "Warning" not in found[-1].headers
    return found


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize(("query", "found"), ORDERS)
def test_cursors_lead_through_all_pages(dated: Archive, query: str, found: str, limit: int) -> None:
    read = pages(dated, f"studies?{query}&limit={limit}")
    letters = [dated.letters[result["0020000D"]["Value"][0]] for page in read for result in page.json()]
    assert "".join(letters) == found
    assert {len(page.json()) for page in read[:-1]} <= {limit}


def test_pages_neither_repeat_nor_skip_while_others_store_and_delete(server: Server) -> None:
    archive = Archive(server)
    uids = [archive.add(letter, StudyDate=f"2020010{n}") for n, letter in enumerate("abcdef", 1)]
    for query, rest in (("", "dba"), ("&orderby=-StudyDate", "dba")):
        first = archive.get(f"studies?limit=2{query}")
        archive.add("x", StudyDate="20210101")
        if not query:
            assert archive.request("DELETE", f"studies/{uids[2]}").status_code == 204
        url = first.headers["Link"].partition(";")[0].strip("<>")
        letters = [archive.letters[r["0020000D"]["Value"][0]] for r in archive.http.get(url).json()]
        following = "".join(letters)
        if query:
            assert "x" not in following[1:]
        else:
            assert following == rest[:2]


def test_a_cursor_is_good_for_its_search_alone(dated: Archive) -> None:
    link = dated.get("studies?limit=1&orderby=StudyDate").headers["Link"]
    cursor = link.partition("cursor=")[2].partition(">")[0]
    assert dated.get(f"studies?limit=1&orderby=StudyDate&cursor={cursor}").status_code == 200
    for query in ("", "orderby=-StudyDate&", "orderby=StudyDate&PatientID=P-1&"):
        assert "cursor" in problem(dated.get(f"studies?{query}cursor={cursor}"), 400)
    assert "cursor" in problem(dated.get(f"series?orderby=StudyDate&cursor={cursor}"), 400)
    assert "offset" in problem(dated.get(f"studies?orderby=StudyDate&offset=1&cursor={cursor}"), 400)


def test_totals_are_told_when_asked_for(dated: Archive) -> None:
    page = dated.get("studies?limit=2&count=true")
    assert (len(page.json()), page.headers["X-Total-Count"]) == (2, "5")
    assert dated.get("studies?StudyDate=20200102&count=true&offset=1").headers["X-Total-Count"] == "2"
    nothing = dated.get("instances?PatientID=nobody&count=true")
    assert (nothing.status_code, nothing.headers["X-Total-Count"]) == (204, "0")
    assert dated.get("patients?count=true").headers["X-Total-Count"] == "1"
    assert "X-Total-Count" not in dated.get("studies").headers
    next_page = dated.http.get(page.headers["Link"].partition(";")[0].strip("<>"))
    assert next_page.headers["X-Total-Count"] == "5"


# --- what the index does not hold -------------------------------------------------------------------------


def test_attributes_beyond_the_index_come_from_the_metadata(server: Server) -> None:
    archive = Archive(server)
    study, series = str(generate_uid()), str(generate_uid())
    same = {"study": study, "series": series}
    old, new = archive.keep(
        make_file(KVP="80", BodyPartThickness="1", **same), make_file(KVP="120", PatientComments="x", **same)
    )
    uid = new.rpartition("/")[2]
    fields = "includefield=KVP,PatientComments,PixelData,00091001,ContrastBolusAgent"
    for path in ("studies", "series"):
        (result,) = archive.find(f"{path}?{fields}")
        assert result["00180060"] == {"vr": "DS", "Value": [120]}, "of the instance that was added last"
        assert result["00104000"]["Value"] == ["x"]
        assert result["7FE00010"]["BulkDataURI"] == f"{archive.root}/{new}/bulkdata/7FE00010"
        assert "00091001" not in result
        assert list(result) == sorted(result)
    found = {
        r["00080018"]["Value"][0]: r["00180060"]["Value"] for r in archive.find("instances?includefield=KVP")
    }
    assert found == {uid: [120], old.rpartition("/")[2]: [80]}
    (result,) = archive.find("studies?includefield=Modality")
    assert "00080060" not in result, "kept at the series"


# --- capabilities ----------------------------------------------------------------------------------------


def test_capabilities_are_described_at_the_base_path(client: httpx.Client) -> None:
    for method in ("GET", "OPTIONS"):
        answer = client.request(method, "/v2", headers={"Accept": "application/vnd.sun.wadl+xml"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/vnd.sun.wadl+xml"
        assert b'<resource path="v2/studies">' in answer.content
        assert b'<method name="GET" id="search_studies">' in answer.content
        assert b'mediaType="application/dicom+json"' in answer.content
        described = client.request(method, "/v2", headers={"Accept": "application/json"})
        assert described.json() == client.get("/v2/openapi.json").json()
        assert client.request(method, "/v2").headers["Content-Type"] == "application/json"
        problem(client.request(method, "/v2", headers={"Accept": "text/html"}), 406)
