"""dev.py migrate: everything arrives as it was, whatever fails on the way, and what does not is reported."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from benchmarks import peers
from devhost.migrate import __main__ as command
from devhost.migrate import source as enumeration
from devhost.migrate.journal import Journal
from devhost.migrate.peer import Peer
from tests.conftest import ROOT, Server, StartServer
from tests.dicom_files import make_dataset, make_file, to_file
from tests.http_proxy import CUT, HttpProxy
from tests.partition import Partition, path_of
from tests.tools import missing

EXACT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture
def migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process: its exit code and the lines of its report."""

    def run(source: str, target: str, *arguments: str) -> tuple[int, list[dict[str, str]]]:
        report = tmp_path / "report"
        report.unlink(missing_ok=True)
        line = ["migrate", "--from", source, "--to", target, "--journal", str(tmp_path / "journal")]
        monkeypatch.setattr(sys, "argv", [*line, "--report", str(report), *arguments])
        code = command.main()
        lines = report.read_text().splitlines() if report.exists() else []
        return code, [json.loads(line) for line in lines]

    return run


def studies(count: int, series: int, instances: int) -> list[bytes]:
    """Small files, in an order of their own for each study."""
    return [
        make_file(study, one, frames=number % 2)
        for study in (generate_uid() for _ in range(count))
        for one in (generate_uid() for _ in range(series))
        for number in range(instances)
    ]


def assert_same(source: Partition, target: Partition, paths: list[str]) -> None:
    """The target has these instances and no others, byte for byte behind the file meta information."""
    found = target.get("instances?limit=200").json()
    assert sorted(one["00080018"]["Value"][0] for one in found) == sorted(p.split("/")[-1] for p in paths)
    for path in paths:
        ((_, sent),) = source.parts(path, EXACT)
        ((_, received),) = target.parts(path, EXACT)
        assert received == sent


def test_everything_but_what_was_deleted_arrives_byte_for_byte(server: Server, migrate: Any) -> None:
    source, target = Partition(server), Partition(server)
    study, series = generate_uid(), generate_uid()
    files = [
        *studies(2, 2, 3),
        make_file(study, series, encapsulated=True, frames=3),
        *(
            to_file(make_dataset(study, series), syntax)
            for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
        ),
    ]
    paths = source.keep(*files)
    gone = source.keep(make_file(study, series), *studies(1, 1, 1))
    for path in gone:
        assert source.request("DELETE", path).status_code == 204
    assert migrate(source.root, server.url, "--partition", target.name, "--verify", "full") == (0, [])
    assert_same(source, target, paths)

    more = source.keep(make_file(study, series))
    assert source.request("DELETE", paths[0]).status_code == 204
    assert migrate(source.root, target.root) == (0, [])
    assert target.get(more[0]).status_code == 200
    assert target.get(paths[0]).status_code == 200, "a migration deletes nothing"


def test_a_source_without_change_feed_is_searched_page_by_page(
    server: Server, migrate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devhost.migrate.peer.PAGE", 2)
    source, target = Partition(server), Partition(server)
    paths = source.keep(*studies(5, 1, 3))

    def fault(_method: str, path: str) -> int:
        return 404 if "changefeed" in path else 0

    with HttpProxy(server.url, fault) as proxy:
        assert migrate(f"{proxy.url}/v2/partitions/{source.name}", target.root) == (0, [])
        assert any("offset=2" in path for _, path, _ in proxy.requests)
    assert_same(source, target, paths)


@pytest.mark.parametrize("offset_counts", [True, False])
async def test_a_change_feed_is_read_whatever_offset_means(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset_counts: bool
) -> None:
    monkeypatch.setattr(enumeration, "PAGE", 4)
    source = Partition(server)
    paths = source.keep(*studies(3, 1, 5))
    entries = [
        {
            "Sequence": number * 3,
            "StudyInstanceUid": path.split("/")[1],
            "SeriesInstanceUid": path.split("/")[3],
            "SopInstanceUid": path.split("/")[5],
            "Action": "create",
            "State": "current",
        }
        for number, path in enumerate(paths, 5)
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        query = dict(urllib.parse.parse_qsl(request.url.query.decode()))
        offset = int(query["offset"])
        rest = entries[offset:] if offset_counts else [e for e in entries if e["Sequence"] > offset]
        return httpx.Response(200, json=rest[: int(query["limit"])])

    feed = Peer("http://source/v2", None, 1)
    feed._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal")
    found: list[int] = []
    await enumeration.read_change_feed(feed, feed, journal, found.append)
    assert sum(found) == journal.counts()["pending"] == 15
    entries.append(entries[0] | {"Sequence": 99, "Action": "delete", "State": "deleted"})
    await enumeration.read_change_feed(feed, feed, journal, found.append)
    assert journal.counts() == {"pending": 14, "gone": 1}
    journal.close()
    await feed.close()


@pytest.mark.parametrize("arguments", [(), ("--search",)], ids=["change feed", "search"])
def test_servers_that_fail_now_and_then_lose_nothing(
    server: Server, migrate: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("devhost.migrate.peer._DELAYS", (0.02,) * 12)
    source, target = Partition(server), Partition(server)
    paths = source.keep(*studies(3, 2, 3))
    chance = random.Random(7)

    def fault(_method: str, _path: str) -> int:
        return chance.choice((429, 500, 503, CUT)) if chance.random() < 0.3 else 0

    with HttpProxy(server.url, fault) as one, HttpProxy(server.url, fault) as other:
        where = f"{other.url}/v2/partitions/{target.name}"
        assert migrate(f"{one.url}/v2/partitions/{source.name}", where, *arguments) == (0, [])
    assert_same(source, target, paths)


def test_a_killed_migration_goes_on_where_it_was(server: Server, migrate: Any, tmp_path: Path) -> None:
    source, target = Partition(server), Partition(server)
    paths = source.keep(*studies(8, 2, 5))

    def slow(method: str, _path: str) -> int:
        time.sleep(0.15 if method == "POST" else 0)
        return 0

    with HttpProxy(server.url, slow) as proxy:
        where = f"{proxy.url}/v2/partitions/{target.name}"
        journal = tmp_path / "journal"
        options = ["--from", source.root, "--to", where, "--journal", str(journal), "--concurrency", "2"]
        process = subprocess.Popen([sys.executable, "-m", "devhost.migrate", *options], cwd=ROOT)
        while stored_in(journal) < 20:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert 20 <= stored_in(journal) < len(paths)
        stores = sum(method == "POST" for method, _, _ in proxy.requests)
        assert migrate(source.root, where, "--concurrency", "2") == (0, [])
        assert sum(method == "POST" for method, _, _ in proxy.requests) < stores + 8
    assert not (journal / "spool").exists()
    assert_same(source, target, paths)


def stored_in(journal: Path) -> int:
    """Instances that the journal says are at the target."""
    try:
        with sqlite3.connect(f"file:{journal / 'journal.db'}?mode=ro", uri=True) as connection:
            statement = "SELECT count(*) FROM instance WHERE state = 'stored'"
            return int(connection.execute(statement).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_what_the_target_refuses_is_reported_and_the_rest_arrives(
    server: Server, migrate: Any, start_server: StartServer
) -> None:
    source = Partition(server)
    study, series = generate_uid(), generate_uid()
    large = make_file(study, series, frames=4000)
    path, *others = source.keep(large, *(make_file(study, series) for _ in range(5)))
    narrow = start_server(workers=1, FUNCTIONS_REQUEST_BODY_SIZE_LIMIT="100000")
    code, (line,) = migrate(source.root, narrow.url)
    assert code == 1
    assert path == "studies/{study}/series/{series}/instances/{instance}".format(**line)
    assert "413" in line["reason"]
    for other in others:
        assert httpx.get(f"{narrow.v2}/{other}/metadata").status_code == 200
    narrow.close()


def test_other_content_at_the_target_is_reported_and_replaced_only_when_asked(
    server: Server, migrate: Any
) -> None:
    source, target = Partition(server), Partition(server)
    files = studies(1, 1, 3)
    paths = source.keep(*files)
    study, series, instance = paths[0].split("/")[1::2]
    target.keep(make_file(study, series, instance, PatientID="other"), files[1])
    code, (line,) = migrate(source.root, target.root)
    assert (code, line["instance"]) == (1, instance)
    assert "other content" in line["reason"]
    assert target.get(f"{paths[0]}/metadata").json()[0]["00100020"]["Value"] == ["other"]
    assert migrate(source.root, target.root, "--replace") == (0, [])
    assert_same(source, target, paths)


def test_what_vanishes_from_the_target_is_found_missing(server: Server, migrate: Any) -> None:
    source, target = Partition(server), Partition(server)
    paths = source.keep(*studies(1, 1, 3))
    assert migrate(source.root, target.root, "--verify", "none") == (0, [])
    assert target.request("DELETE", paths[1]).status_code == 204
    code, (line,) = migrate(source.root, target.root)
    assert (code, line["instance"]) == (1, paths[1].split("/")[-1])
    assert migrate(source.root, target.root) == (0, [])
    assert_same(source, target, paths)


def test_a_server_that_is_away_or_refuses_access_ends_the_run(
    server: Server, migrate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr("devhost.migrate.peer._DELAYS", (0.01,))
    source, target = Partition(server), Partition(server)
    paths = source.keep(*studies(1, 1, 2))
    answers = [0]
    with HttpProxy(server.url, lambda method, _path: 0 if method == "GET" else answers[-1]) as proxy:
        where = f"{proxy.url}/v2/partitions/{target.name}"
        for status, said in ((403, "refuses access"), (401, "HTTP 401")):
            answers.append(status)
            code, lines = migrate(source.root, where)
            assert (code, len(lines)) == (2, 2)
            assert said in capsys.readouterr().err
        answers.append(0)
        assert migrate(source.root, where) == (0, [])
    assert_same(source, target, paths)
    source.keep(*studies(1, 1, 1))
    assert migrate(source.root, where)[0] == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_tokens_are_sent_to_their_own_server_and_read_anew(
    server: Server, migrate: Any, tmp_path: Path
) -> None:
    source, target = Partition(server), Partition(server)
    source.keep(*studies(2, 1, 2))
    token = tmp_path / "token"
    token.write_text("first\n")

    def fault(_method: str, path: str) -> int:
        if "changefeed" in path:
            token.write_text("Basic second")
        return 0

    with HttpProxy(server.url, fault) as one, HttpProxy(server.url) as other:
        where = f"{other.url}/v2/partitions/{target.name}"
        options = ("--from-token-file", str(token))
        assert migrate(f"{one.url}/v2/partitions/{source.name}", where, *options) == (0, [])
        sent = [authorization for _, _, authorization in one.requests]
        assert sent[0] == "Bearer first"
        assert set(sent[1:]) == {"Basic second"}
        assert {authorization for _, _, authorization in other.requests} == {""}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "http://127.0.0.1:7071"), "the same"),
        (("--from", "ftp://host/x"), "not the URL"),
        (("--from", "https://me:secret@host/x"), "must not hold a password"),
        (("--from", "http://host/x", "--from-token-file", "f"), "not encrypted"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["migrate", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    said = capsys.readouterr().err
    assert words in said
    assert "secret" not in said.splitlines()[-1]


def test_a_journal_is_of_one_migration(server: Server, migrate: Any, capsys: Any) -> None:
    source, target = Partition(server), Partition(server)
    source.keep(*studies(1, 1, 1))
    assert migrate(source.root, target.root)[0] == 0
    assert migrate(source.root, Partition(server).root) == (2, [])
    assert "is of another migration" in capsys.readouterr().err


def test_orthanc_is_migrated(server: Server, migrate: Any, tmp_path: Path) -> None:
    target = Partition(server)
    files = studies(3, 2, 2)
    with peers.orthanc(tmp_path / "orthanc") as base:
        if base is None:
            missing("Orthanc with its DICOMweb plugin comes from Debian's package orthanc-dicomweb")
        root = base.removesuffix("/dicom-web")
        for file in files:
            assert httpx.post(f"{root}/instances", content=file).status_code == 200
        assert migrate(base, target.root, "--verify", "full") == (0, [])
    found = target.get("instances?limit=200").json()
    assert sorted(one["00080018"]["Value"][0] for one in found) == sorted(
        path_of(file).split("/")[-1] for file in files
    )
