"""The change feed over HTTP: its entries, states, windows and what it refuses."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydicom.uid import generate_uid

from tests.conftest import Server, StartServer
from tests.dicom_files import make_file
from tests.partition import Partition, path_of, problem


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    """A server of its own: the feed covers all partitions."""
    return start_server(workers=1)


def feed(server: Server, **parameters: Any) -> list[dict[str, Any]]:
    response = httpx.get(f"{server.v2}/changefeed", params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    entries: list[dict[str, Any]] = response.json()
    return entries


def latest(server: Server) -> int:
    response = httpx.get(f"{server.v2}/changefeed/latest")
    return int(response.json()["Sequence"]) if response.status_code == 200 else 0


def test_an_empty_feed(start_server: StartServer) -> None:
    empty = start_server(workers=1)
    assert feed(empty) == []
    response = httpx.get(f"{empty.v2}/changefeed/latest")
    assert (response.status_code, response.content) == (204, b"")
    empty.close()


def test_a_store_is_an_entry_with_identity_and_metadata(server: Server) -> None:
    start = latest(server)
    archive = Partition(server)
    before = datetime.now(UTC)
    file = make_file()
    (path,) = archive.keep(file)
    (entry,) = feed(server, offset=start)
    _, study, _, series, _, instance = path.split("/")
    metadata = entry.pop("Metadata")
    stamp = entry.pop("Timestamp")
    assert entry == {
        "Sequence": start + 1,
        "StudyInstanceUid": study,
        "SeriesInstanceUid": series,
        "SopInstanceUid": instance,
        "PartitionName": archive.name,
        "Action": "create",
        "State": "current",
    }
    assert metadata == archive.get(f"{path}/metadata").json()[0]
    moment = datetime.fromisoformat(stamp)
    assert stamp.endswith("Z")
    assert before - timedelta(seconds=1) <= moment <= datetime.now(UTC) + timedelta(seconds=1)


def test_states_follow_what_happens_to_an_instance(server: Server) -> None:
    start = latest(server)
    archive = Partition(server)
    file = make_file()
    archive.keep(file)
    assert _told(server, start) == [("create", "current")]
    assert archive.store(file, method="PUT").status_code == 200
    assert _told(server, start) == [("create", "replaced"), ("update", "current")]
    assert archive.request("DELETE", path_of(file)).status_code == 204
    assert _told(server, start) == [("create", "deleted"), ("update", "deleted"), ("delete", "deleted")]
    assert all("Metadata" not in entry for entry in feed(server, offset=start))
    archive.keep(file)
    assert _told(server, start) == [
        ("create", "replaced"),
        ("update", "replaced"),
        ("delete", "replaced"),
        ("create", "current"),
    ]


def _told(server: Server, start: int) -> list[tuple[str, str]]:
    return [(entry["Action"], entry["State"]) for entry in feed(server, offset=start)]


def test_a_delete_of_a_study_names_every_instance(server: Server) -> None:
    archive = Partition(server)
    study = str(generate_uid())
    paths = archive.keep(*(make_file(study) for _ in range(3)))
    start = latest(server)
    assert archive.request("DELETE", f"studies/{study}").status_code == 204
    entries = feed(server, offset=start)
    assert {entry["Action"] for entry in entries} == {"delete"}
    assert {entry["SopInstanceUid"] for entry in entries} == {path.split("/")[5] for path in paths}
    assert [entry["Sequence"] for entry in entries] == [start + 1, start + 2, start + 3]


def test_what_is_refused_is_no_entry(server: Server) -> None:
    archive = Partition(server)
    file = make_file()
    archive.keep(file)
    start = latest(server)
    assert archive.store(file, b"nonsense").status_code == 409
    assert archive.request("DELETE", "studies/9.9.9").status_code == 404
    assert feed(server, offset=start) == []


def test_pages_follow_each_other_without_gap_or_overlap(server: Server) -> None:
    archive = Partition(server)
    start = latest(server)
    archive.keep(*(make_file() for _ in range(7)))
    seen: list[int] = []
    offset = start
    while page := feed(server, offset=offset, limit=3, includeMetadata="false"):
        assert len(page) <= 3
        assert all("Metadata" not in entry for entry in page)
        seen += [entry["Sequence"] for entry in page]
        offset = page[-1]["Sequence"]
    assert seen == list(range(start + 1, start + 8))
    assert latest(server) == start + 7


def test_a_time_window_includes_its_start_and_excludes_its_end(server: Server) -> None:
    archive = Partition(server)
    archive.keep(make_file())
    time.sleep(0.01)
    start = latest(server)
    archive.keep(make_file(), make_file(), make_file())
    time.sleep(0.01)
    archive.keep(make_file())
    stamps = [entry["Timestamp"] for entry in feed(server, offset=start)]
    assert len(set(stamps)) == 2
    window = feed(server, startTime=stamps[0], endTime=stamps[3])
    assert [entry["Sequence"] for entry in window] == [start + 1, start + 2, start + 3]
    page = feed(server, startTime=stamps[0], endTime=stamps[3], offset=1, limit=1)
    assert [entry["Sequence"] for entry in page] == [start + 2]
    assert [entry["Sequence"] for entry in feed(server, startTime=stamps[3])] == [start + 4]
    shifted = datetime.fromisoformat(stamps[3]).astimezone().isoformat()
    assert feed(server, startTime=shifted) == feed(server, startTime=stamps[3])
    assert feed(server, startTime="2999-01-01") == []
    assert len(feed(server, endTime="2999-01-01T00:00:00+02:00", limit=200)) == start + 4


@pytest.mark.parametrize("moment", ["0001-01-01", "0500-01-01T00:00:00Z", "1969-12-31T23:59:59"])
def test_a_window_from_before_all_time_is_the_whole_feed(server: Server, moment: str) -> None:
    Partition(server).keep(make_file())
    assert feed(server, startTime=moment)
    assert feed(server, endTime=moment) == []


@pytest.mark.parametrize(
    "query",
    [
        "offset=-1",
        "offset=a",
        "offset=",
        "offset=99999999999999999999",
        "offset=٣",
        "limit=0",
        "limit=201",
        "limit=1.5",
        "startTime=yesterday",
        "startTime=2024-13-01",
        "startTime=",
        "endTime=2024-01-01T25:00:00Z",
        "startTime=0001-01-01T00:00:00%2B14:00",
        "endTime=9999-12-31T23:59:59-14:00",
        "includeMetadata=maybe",
        "unknown=1",
    ],
)
def test_a_malformed_parameter_is_400_and_named(server: Server, query: str) -> None:
    detail = problem(httpx.get(f"{server.v2}/changefeed?{query}"), 400)
    assert query.partition("=")[0].lower() in detail.lower()


def test_parameter_names_in_any_case(server: Server) -> None:
    Partition(server).keep(make_file(), make_file())
    assert len(feed(server, Offset=0, LIMIT=1, IncludeMetadata="False")) == 1


def test_latest_and_its_metadata(server: Server) -> None:
    archive = Partition(server)
    (path,) = archive.keep(make_file())
    newest = httpx.get(f"{server.v2}/changefeed/latest").json()
    assert newest["SopInstanceUid"] == path.split("/")[5]
    assert newest["Metadata"]["00080018"]["Value"] == [path.split("/")[5]]
    bare = httpx.get(f"{server.v2}/changefeed/latest?includeMetadata=false").json()
    assert "Metadata" not in bare


def test_head_and_accept(server: Server) -> None:
    for path in ("changefeed", "changefeed/latest"):
        plain = {"Accept-Encoding": "identity"}
        head = httpx.head(f"{server.v2}/{path}", headers=plain)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["Content-Length"]) == len(
            httpx.get(f"{server.v2}/{path}", headers=plain).content
        )
        assert problem(httpx.get(f"{server.v2}/{path}", headers={"Accept": "text/html"}), 406)
