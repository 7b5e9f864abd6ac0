"""Extended query tags over the wire: what is stored already and what is stored later is found by them.

The tags are of the whole server, so these tests have one of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from shared.dicom.query_tags import MOST_TAGS
from tests.audit import query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, make_file, to_file
from tests.operations_harness import Json, wait_for_end
from tests.partition import Partition, path_of, problem

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tagged(start_server: StartServer) -> Server:
    return start_server(own_storage=True)


class Tags:
    """The extended query tags of a server, and a partition of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.root = f"{server.v2}/extendedquerytags"
        self.partition = Partition(server)

    def post(self, *entries: Any) -> httpx.Response:
        return httpx.post(self.root, json=list(entries), timeout=60)

    def add(self, *entries: Any) -> Json:
        """Add tags and wait until what is stored is indexed."""
        response = self.post(*entries)
        assert response.status_code == 202, response.text
        body = response.json()
        assert body["href"] == response.headers["location"] == f"{self.server.v2}/operations/{body['id']}"
        ended = wait_for_end(body["href"])
        assert (ended["status"], ended["percentComplete"]) == ("succeeded", 100)
        return ended

    def get(self, path: str = "", **parameters: str) -> httpx.Response:
        return httpx.get(f"{self.root}{path}", params=parameters, timeout=60)

    def patch(self, path: str, status: str) -> httpx.Response:
        return httpx.patch(f"{self.root}/{path}", json={"queryStatus": status}, timeout=60)

    def delete(self, *paths: str) -> None:
        """Delete tags and wait until their values are gone."""
        for path in paths:
            assert httpx.delete(f"{self.root}/{path}", timeout=60).status_code == 204
        deadline = time.monotonic() + 90
        for path in paths:
            while (response := self.get(f"/{path}")).status_code == 200:
                assert response.json()["status"] == "Deleting"
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert response.status_code == 404

    def search(self, level: str, **parameters: str) -> list[Json]:
        """Results of a search that must be allowed."""
        response = httpx.get(f"{self.partition.root}/{level}", params=parameters, timeout=60)
        assert response.status_code in (200, 204), response.text
        found: list[Json] = response.json() if response.status_code == 200 else []
        return found

    def instances(self, **parameters: str) -> set[str]:
        """SOP Instance UIDs that a search finds."""
        return {found["00080018"]["Value"][0] for found in self.search("instances", **parameters)}


@pytest.fixture
def tags(tagged: Server) -> Iterator[Tags]:
    tags = Tags(tagged)
    yield tags
    tags.delete(*(tag["path"] for tag in tags.get(limit="200").json()))


def uid_of(file: bytes) -> str:
    return path_of(file).rpartition("/")[2]


def private(value: Any, vr: str = "SS", block: int = 0x11, creator: str = "ACME") -> Dataset:
    """A data set with a private attribute (0401,xx01) of ``creator``, and another's beside it."""
    ds = make_dataset()
    ds.private_block(0x0401, "OTHER", create=True).add_new(0x01, "LO", "not ours")
    ds.add_new(0x04010000 | block, "LO", creator)
    ds.add_new(0x04010001 | block << 8, vr, value)
    return ds


# --- what is indexed ---------------------------------------------------------------------------------

VALUES: dict[str, tuple[str, Any, str, str]] = {
    # VR: keyword, value, a query that finds it, one that does not
    "AE": ("StationAETitle", "ROOM1", "room1", "ROOM2"),
    "CS": ("ConversionType", "WSD", "wsd", "DV"),
    "DA": ("AcquisitionDate", "20240305", "20240301-20240331", "20240306-"),
    "DS": ("SliceThickness", "2.50", "2.5", "2.4"),
    "DT": ("FrameAcquisitionDateTime", "20240305120000+0100", "20240305110000+0000", "20240306"),
    "FD": ("AcquisitionDuration", 1.25, "1.25", "1.5"),
    "FL": ("B1rms", 0.1, "0.1", "0.2"),
    "IS": ("AcquisitionNumber", "7", "7", "8"),
    "LO": ("DeviceSerialNumber", "Serial 12", "serial*", "serial"),
    "PN": ("OperatorsName", "M\u00fcller^Eva", "muller*", "Meier*"),
    "SH": ("SequenceName", "tfl3d1", "TFL*", "tse*"),
    "SL": ("ReferencePixelX0", -70_000, "-70000", "70000"),
    "SS": ("TagAngleSecondAxis", -7, "-7", "7"),
    "TM": ("AcquisitionTime", "101530.5", "1015", "1016"),
    "UI": ("ConcatenationUID", "1.2.840.5", "1.2.840.5", "1.2.840.6"),
    "UL": ("RegionFlags", 4_000_000_000, "4000000000", "6"),
    "US": ("AcquisitionMatrix", [0, 256, 192, 0], "192", "193"),
}


def test_every_vr_is_found_before_and_after_the_tag_was_added(tags: Tags) -> None:
    attributes = {keyword: value for keyword, value, _, _ in VALUES.values()}
    before = make_file(SpecificCharacterSet="ISO_IR 192", **attributes)
    other = make_file()
    tags.partition.keep(before, other)
    tags.add(*({"path": keyword, "level": "Instance"} for keyword, *_ in VALUES.values()))
    after = make_file(SpecificCharacterSet="ISO_IR 192", **attributes)
    tags.partition.keep(after)
    for vr, (keyword, _, matching, other_value) in VALUES.items():
        assert tags.instances(**{keyword: matching}) == {uid_of(before), uid_of(after)}, vr
        assert tags.instances(**{keyword: other_value}) == set(), vr


def test_a_tag_is_returned_where_it_is_queried_or_included(tags: Tags) -> None:
    file = make_file(SliceThickness="2.50", AcquisitionMatrix=[0, 256, 192, 0])
    tags.partition.keep(file, make_file())
    tags.add({"path": "SliceThickness", "level": "Instance"}, {"path": "00181310", "level": "Series"})
    (found,) = tags.search("instances", SliceThickness="2.5")
    assert found["00180050"] == {"vr": "DS", "Value": [2.5]}
    assert "00181310" not in found
    by_uid = {f["00080018"]["Value"][0]: f for f in tags.search("instances", includefield="00181310")}
    assert by_uid[uid_of(file)]["00181310"] == {"vr": "US", "Value": [0, 256, 192, 0]}
    assert sorted(f["00181310"] == {"vr": "US"} for f in by_uid.values()) == [False, True]
    (found,) = tags.search("series", AcquisitionMatrix="256", includefield="all")
    assert found["00181310"]["Value"] == [0, 256, 192, 0]
    assert "00180050" not in found


def test_values_of_a_study_and_a_series_are_those_of_the_last_instance_stored(tags: Tags) -> None:
    study, series = generate_uid(), generate_uid()
    tags.partition.keep(make_file(study, series, MilitaryRank="Old"))
    last = make_file(study, series, MilitaryRank="New", AcquisitionProtocolName="Head")
    tags.partition.keep(last)
    tags.add(
        {"path": "MilitaryRank", "level": "Study"}, {"path": "AcquisitionProtocolName", "level": "Series"}
    )
    assert len(tags.search("studies", MilitaryRank="New")) == 1
    assert tags.search("studies", MilitaryRank="Old") == []
    assert len(tags.instances(MilitaryRank="New", AcquisitionProtocolName="head")) == 2
    tags.partition.keep(make_file(study, series, MilitaryRank="Newest"))
    assert len(tags.search("studies", MilitaryRank="Newest")) == 1
    assert tags.search("studies", MilitaryRank="New") == []
    assert tags.search("series", AcquisitionProtocolName="Head") == []


def test_a_private_tag_is_found_by_its_creator_in_whichever_block(tags: Tags) -> None:
    before = to_file(private(7))
    elsewhere = to_file(private(7, block=0x77))
    tags.partition.keep(before, elsewhere)
    entry = {"path": "04011001", "vr": "SS", "privateCreator": "ACME", "level": "Instance"}
    tags.add(entry)
    after = to_file(private(7), ImplicitVRLittleEndian)
    tags.partition.keep(after)
    assert tags.instances(**{"04011001": "7"}) == {uid_of(f) for f in (before, elsewhere, after)}
    (found, *_) = tags.search("instances", **{"04011001": "7"})
    assert found["04011001"] == {"vr": "SS", "Value": [7]}
    (shown,) = tags.get().json()
    assert shown["privateCreator"] == "ACME"


def test_attributes_inside_sequences_are_found(tags: Tags) -> None:
    def with_view(code: str, scheme: str) -> bytes:
        item, modifier = Dataset(), Dataset()
        item.CodeValue, item.CodingSchemeDesignator = code, scheme
        modifier.CodeValue = f"{code}-m"
        item.ViewModifierCodeSequence = [Dataset(), modifier]
        return make_file(ViewCodeSequence=[item])

    before, other = with_view("R-10242", "SRT"), with_view("R-10226", "SRT")
    tags.partition.keep(before, other)
    tags.add(
        {"path": "ViewCodeSequence.CodeValue", "level": "Instance"},
        {"path": "ViewCodeSequence.ViewModifierCodeSequence.00080100", "level": "Instance"},
    )
    after = with_view("R-10242", "99X")
    tags.partition.keep(after)
    both = {uid_of(before), uid_of(after)}
    assert tags.instances(**{"ViewCodeSequence.CodeValue": "R-10242"}) == both
    nested = "ViewCodeSequence.ViewModifierCodeSequence.CodeValue"
    assert tags.instances(**{nested: "R-10226-M"}) == {uid_of(other)}
    (found,) = tags.search("instances", **{"00540220.00080100": "R-10226", nested: "R-10226-m"})
    (item,) = found["00540220"]["Value"]
    assert item["00080100"]["Value"] == ["R-10226"]
    assert item["00540222"]["Value"][1]["00080100"]["Value"] == ["R-10226-m"]
    (shown, *_) = tags.get().json()
    assert (shown["path"], shown["vr"]) == ("00540220.00080100", "SH")


def test_what_is_replaced_or_deleted_is_found_no_more(tags: Tags) -> None:
    tags.add({"path": "SliceThickness", "level": "Instance"})
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    first = make_file(study, series, instance, SliceThickness="1")
    kept = make_file(study, series, SliceThickness="1")
    tags.partition.keep(first, kept)
    second = make_file(study, series, instance, SliceThickness="2")
    assert tags.partition.store(second, method="PUT").status_code == 200
    assert tags.instances(SliceThickness="1") == {uid_of(kept)}
    assert tags.instances(SliceThickness="2") == {instance}
    tags.partition.request("DELETE", path_of(second)).raise_for_status()
    assert tags.instances(SliceThickness="2") == set()
    tags.partition.request("DELETE", f"studies/{study}").raise_for_status()
    left = (
        "SELECT attribute FROM attribute_value v JOIN partition p ON p.partition_key = v.partition_key "
        "WHERE attribute LIKE 'tag%' AND partition_name = ?"
    )
    assert query(tags.server, left, tags.partition.name) == []


def test_instances_stored_while_a_tag_is_added_are_not_missed(tags: Tags) -> None:
    stored: list[str] = []
    stop = threading.Event()

    def keep_storing() -> None:
        partition = Partition(tags.server)
        partition.root = tags.partition.root
        while not stop.is_set():
            file = make_file(SliceThickness="3", EthnicGroup="X")
            partition.keep(file)
            stored.append(uid_of(file))

    threads = [threading.Thread(target=keep_storing) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    tags.add({"path": "SliceThickness", "level": "Instance"}, {"path": "EthnicGroup", "level": "Study"})
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    found: set[str] = set()
    while page := tags.instances(SliceThickness="3", limit="200", offset=str(len(found))):
        found |= page
    assert found == set(stored)
    studies = 0
    while page_of := tags.search("studies", EthnicGroup="x", limit="200", offset=str(studies)):
        studies += len(page_of)
    assert studies == len(stored)


# --- what cannot be indexed --------------------------------------------------------------------------


def test_what_cannot_be_indexed_is_reported_and_the_tag_is_disabled_until_told_otherwise(tags: Tags) -> None:
    good = to_file(private(7))
    bad = to_file(private("seven", "LO"))
    tags.partition.keep(good, bad)
    entry = {"path": "04011001", "vr": "SS", "privateCreator": "ACME", "level": "Instance"}
    ended = tags.add(entry)
    ((stored,),) = query(tags.server, "SELECT count(*) FROM instance")
    assert ended["results"] == {"queryTags": ["04011001"], "indexed": stored - 1, "failed": 1}
    shown = tags.get("/04011001").json()
    assert (shown["status"], shown["queryStatus"]) == ("Ready", "Disabled")
    assert shown["errors"] == {"count": 1, "href": f"{tags.root}/04011001/errors"}
    (error,) = httpx.get(shown["errors"]["href"]).json()
    assert error["sopInstanceUid"] == uid_of(bad)
    assert error["partitionName"] == tags.partition.name
    assert error["errorMessage"] == "The attribute has VR LO here, not SS."
    refused = httpx.get(f"{tags.partition.root}/instances", params={"04011001": "7"})
    assert "disabled" in problem(refused, 400)
    assert tags.patch("04011001", "Enabled").json()["queryStatus"] == "Enabled"
    answer = httpx.get(f"{tags.partition.root}/instances", params={"04011001": "7"})
    assert [f["00080018"]["Value"][0] for f in answer.json()] == [uid_of(good)]
    assert answer.headers["erroneous-dicom-attributes"] == "04011001"
    assert "erroneous-dicom-attributes" not in httpx.get(f"{tags.partition.root}/instances").headers
    tags.partition.keep(to_file(private("eight", "LO")))
    assert tags.get("/04011001").json()["errors"]["count"] == 2
    tags.partition.request("DELETE", path_of(bad)).raise_for_status()
    assert tags.get("/04011001").json()["errors"]["count"] == 1


def test_a_value_of_unknown_vr_is_read_by_the_vr_of_the_tag(tags: Tags) -> None:
    file = to_file(private((7).to_bytes(2, "little"), "UN", creator="ROADRUNNER"))
    tags.partition.keep(file)
    tags.add({"path": "04011101", "vr": "SS", "privateCreator": "ROADRUNNER", "level": "Instance"})
    assert tags.instances(**{"04011101": "7"}) == {uid_of(file)}


# --- the resources -----------------------------------------------------------------------------------


def test_tags_are_listed_in_pages_and_described(tags: Tags) -> None:
    assert tags.get().json() == []
    tags.add({"Path": "SliceThickness", "VR": "DS", "Level": "Instance"})
    tags.add({"path": "MilitaryRank", "level": "study", "vr": None})
    first, second = tags.get().json()
    assert first == {
        "path": "00180050",
        "vr": "DS",
        "level": "Instance",
        "status": "Ready",
        "queryStatus": "Enabled",
        "version": first["version"],
    }
    assert second["version"] > first["version"]
    assert tags.get(limit="1", offset="1").json() == [second]
    assert tags.get("/SliceThickness").json() == tags.get("/00180050").json() == first
    assert tags.get("/00180050/errors").json() == []
    assert "limit" in problem(tags.get(limit="0"), 400)
    assert "'foo'" in problem(tags.get(foo="1"), 400)
    problem(tags.get("/00180051"), 404)
    problem(tags.get("/nothing"), 400)
    problem(tags.get("/00180051/errors"), 404)


def test_query_status_can_be_set_and_must_be_right(tags: Tags) -> None:
    tags.add({"path": "SliceThickness", "level": "Instance"})
    assert tags.patch("SliceThickness", "Disabled").json()["queryStatus"] == "Disabled"
    assert httpx.get(f"{tags.partition.root}/instances?SliceThickness=1").status_code == 400
    assert tags.patch("00180050", "enabled").json()["queryStatus"] == "Enabled"
    for body in ([], {}, {"queryStatus": "On"}, {"queryStatus": "Enabled", "level": "Study"}):
        problem(httpx.patch(f"{tags.root}/00180050", json=body), 400)
    problem(tags.patch("00180051", "Enabled"), 404)


REFUSED = [
    ([], 400, "array"),
    ({}, 400, "array"),
    (["00180050"], 400, "object"),
    ([{"level": "Study"}], 400, "path"),
    ([{"path": "NoSuchKeyword", "level": "Study"}], 400, "NoSuchKeyword"),
    ([{"path": "0018005", "level": "Study"}], 400, "0018005"),
    ([{"path": "SliceThickness"}], 400, "level"),
    ([{"path": "SliceThickness", "level": "Frame"}], 400, "level"),
    ([{"path": "SliceThickness", "level": "Study", "vr": "LO"}], 400, "DS"),
    ([{"path": "SliceThickness", "level": "Study", "VM": "1"}], 400, "VM"),
    ([{"path": "SliceThickness", "level": 1}], 400, "level"),
    ([{"path": "SliceThickness", "level": "Study", "privateCreator": "ACME"}], 400, "creator"),
    ([{"path": "PixelData", "level": "Instance"}], 400, "VR"),
    ([{"path": "PixelData", "level": "Instance", "vr": "OW"}], 400, "OW"),
    ([{"path": "ImageComments", "level": "Instance"}], 400, "LT"),
    ([{"path": "ViewCodeSequence", "level": "Instance"}], 400, "SQ"),
    ([{"path": "SliceThickness.CodeValue", "level": "Instance"}], 400, "sequence"),
    ([{"path": "SmallestImagePixelValue", "level": "Instance"}], 400, "VR"),
    ([{"path": "00020010", "level": "Instance"}], 400, "data set"),
    ([{"path": "04011001", "level": "Instance", "privateCreator": "ACME"}], 400, "VR"),
    ([{"path": "04011001", "level": "Instance", "vr": "SS"}], 400, "creator"),
    ([{"path": "04010010", "level": "Instance", "vr": "LO", "privateCreator": "A"}], 400, "private"),
    ([{"path": "SliceThickness", "level": "Study"}, {"path": "00180050", "level": "Series"}], 400, "twice"),
    ([{"path": "PatientID", "level": "Study"}], 409, "PatientID"),
    ([{"path": "00100010", "level": "Instance"}], 409, "PatientName"),
    ([{"path": f"{0x00090000 | n:08X}", "level": "Study"} for n in range(0x1000, 0x1100)], 400, "128"),
]


@pytest.mark.parametrize(("body", "status", "named"), REFUSED, ids=range(len(REFUSED)))
def test_a_definition_that_makes_no_sense_is_refused_in_a_sentence(
    tags: Tags, body: Any, status: int, named: str
) -> None:
    assert named in problem(httpx.post(tags.root, json=body), status)
    assert tags.get().json() == []


def test_a_body_that_is_no_json_is_refused(tags: Tags) -> None:
    problem(httpx.post(tags.root, content=b"{", headers=JSON), 400)
    problem(httpx.post(tags.root, content=b"[" * 100_000, headers=JSON), 400)
    problem(httpx.post(tags.root, content=b"[]", headers={"Content-Type": "text/plain"}), 415)
    problem(httpx.post(tags.root, content=b" " * 5_000_000, headers=JSON), 413)


def test_a_tag_that_exists_is_refused_and_so_is_one_too_many(tags: Tags) -> None:
    tags.add({"path": "SliceThickness", "level": "Instance"})
    both = ({"path": "MilitaryRank", "level": "Study"}, {"path": "SliceThickness", "level": "Study"})
    assert "exists" in problem(tags.post(*both), 409)
    assert len(tags.get().json()) == 1
    for number in range(MOST_TAGS - 1):
        insert = "INSERT INTO query_tag VALUES (?, ?, 'LO', 'ACME', 3, 'Ready', 1, 1, '')"
        query(tags.server, insert, 1000 + number, f"{0x00091000 + number:08X}")
    assert "128" in problem(tags.post({"path": "MilitaryRank", "level": "Study"}), 400)
    assert len(tags.get(limit="200").json()) == MOST_TAGS
    query(tags.server, "DELETE FROM query_tag WHERE tag_key >= 1000")


def test_a_deleted_tag_can_be_added_again_and_knows_nothing_of_its_former_values(tags: Tags) -> None:
    file = make_file(SliceThickness="1", MilitaryRank="Major")
    tags.partition.keep(file)
    tags.add({"path": "SliceThickness", "level": "Instance"}, {"path": "MilitaryRank", "level": "Study"})
    tags.delete("SliceThickness")
    assert httpx.get(f"{tags.partition.root}/instances?SliceThickness=1").status_code == 400
    assert len(tags.instances(MilitaryRank="Major")) == 1
    assert query(tags.server, "SELECT count(*) FROM instance WHERE tag_attributes IS NOT NULL") == [(0,)]
    tags.add({"path": "SliceThickness", "level": "Instance"})
    assert tags.instances(SliceThickness="1") == {uid_of(file)}
    problem(httpx.delete(f"{tags.root}/00180051"), 404)


def test_a_tag_is_no_use_to_a_search_before_it_is_ready_or_at_a_higher_level(tags: Tags) -> None:
    tags.add({"path": "SliceThickness", "level": "Instance"})
    for level in ("studies", "series"):
        answer = httpx.get(f"{tags.partition.root}/{level}?SliceThickness=1")
        assert "SliceThickness" in problem(answer, 400)
    query(tags.server, "UPDATE query_tag SET status = 'Adding'")
    assert "adding" in problem(httpx.get(f"{tags.partition.root}/instances?SliceThickness=1"), 400)
    shown = tags.get("/00180050").json()
    assert shown["operation"]["href"] == f"{tags.server.v2}/operations/{shown['operation']['id']}"


def test_updated_studies_are_found_by_their_new_values(tags: Tags) -> None:
    study = generate_uid()
    file = make_file(study, SliceThickness="1", MilitaryRank="Major")
    tags.partition.keep(file)
    tags.add({"path": "SliceThickness", "level": "Instance"}, {"path": "MilitaryRank", "level": "Study"})
    change = {"studyInstanceUids": [study], "changeDataset": {"00101080": {"vr": "LO", "Value": ["Colonel"]}}}
    response = httpx.post(f"{tags.partition.root}/studies/$bulkUpdate", json=change, timeout=60)
    assert response.status_code == 202, response.text
    assert wait_for_end(response.json()["href"])["status"] == "succeeded"
    assert tags.search("studies", MilitaryRank="Major") == []
    assert len(tags.search("studies", MilitaryRank="Colonel")) == 1
    assert tags.instances(SliceThickness="1", MilitaryRank="colonel") == {uid_of(file)}
