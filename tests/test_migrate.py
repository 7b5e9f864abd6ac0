"""``dev.py migrate``: everything of one server comes to another, also when either is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom.uid import generate_uid

from benchmarks import peers
from tests.conftest import ROOT, Server, StartServer
from tests.dicom_files import make_file, multipart
from tests.partition import Partition
from tests.tools import missing


@pytest.fixture
def source(server: Server) -> Partition:
    return Partition(server)


@pytest.fixture
def target(server: Server) -> Partition:
    return Partition(server)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "devhost.migrate", *map(str, arguments)]


def migrate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=240)


def studies(count: int, instances: int = 3) -> list[bytes]:
    files = []
    for _ in range(count):
        study, series = generate_uid(), generate_uid()
        files += [make_file(study, series, frames=1) for _ in range(instances)]
    return files


def between(source: Partition, target: Partition, journal: Path) -> list[str | Path]:
    url = source.server.v2
    return [
        *("--from", url, "--from-partition", source.name),
        *("--to", url, "--partition", target.name, "--journal", journal),
    ]


def files_of(partition: Partition, paths: list[str]) -> list[bytes]:
    return [partition.get(path, "application/dicom; transfer-syntax=*").content for path in paths]


def test_everything_is_moved_byte_for_byte(source: Partition, target: Partition, tmp_path: Path) -> None:
    files = studies(4)
    paths = source.keep(*files)
    ended = migrate(*between(source, target, tmp_path / "journal.db"), "--verify")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 studies to move, by the source's change feed" in ended.stdout
    assert "4 studies moved, 0 to be tried again" in ended.stdout
    assert files_of(target, paths) == files


def test_another_run_moves_what_was_added(source: Partition, target: Partition, tmp_path: Path) -> None:
    first = studies(2)
    source.keep(*first)
    arguments = between(source, target, tmp_path / "journal.db")
    assert migrate(*arguments).returncode == 0
    study = httpx.get(f"{source.root}/studies").json()[0]["0020000D"]["Value"][0]
    added = [make_file(study, generate_uid(), frames=0), *studies(1)]
    paths = source.keep(*added)
    ended = migrate(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert "2 studies to move" in ended.stdout
    assert files_of(target, paths) == added
    assert "0 studies to move" in migrate(*arguments).stdout


def test_what_is_refused_is_reported(source: Partition, target: Partition, tmp_path: Path) -> None:
    study, series, uid = generate_uid(), generate_uid(), generate_uid()
    target.keep(make_file(study, series, uid, frames=0, PatientName="Other^Content"))
    source.keep(make_file(study, series, uid, frames=0))
    report = tmp_path / "report.jsonl"
    ended = migrate(*between(source, target, tmp_path / "j.db"), "--verify", "--report", report)
    assert ended.returncode == 1, ended.stdout
    (line,) = map(json.loads, report.read_text().splitlines())
    assert (line["study"], line["instance"]) == (study, uid)


def test_a_source_that_is_no_dicomweb_server_is_one_sentence(server: Server, tmp_path: Path) -> None:
    ended = migrate("--from", f"{server.url}/nothing", "--to", server.v2, "--journal", tmp_path / "j.db")
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_kills_of_migration_and_server_lose_nothing(
    start_server: StartServer, source: Partition, tmp_path: Path
) -> None:
    files = studies(20, 5)
    source.keep(*files)
    server = start_server(own_storage=True, workers=1)
    arguments = ["--from", source.server.v2, "--from-partition", source.name]
    arguments += ["--to", server.v2, "--journal", tmp_path / "journal.db"]
    for _ in range(2):
        process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(2.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    server.kill()
    time.sleep(1)
    server.restart()
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    found = httpx.get(f"{server.v2}/instances?limit=1&count=true", timeout=60)
    assert found.headers["X-Total-Count"] == "100"
    feed = httpx.get(f"{server.v2}/changefeed?limit=200", timeout=60).json()
    assert len({entry["SopInstanceUid"] for entry in feed}) == len(feed) == 100
    server.close()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with peers.orthanc(tmp_path_factory.mktemp("migrate") / "orthanc") as url:
        if url is None:
            missing("Orthanc with its DICOMweb plugin comes from Debian's package orthanc-dicomweb")
        yield url


def test_orthanc_is_a_source_by_search(orthanc: str, target: Partition, tmp_path: Path) -> None:
    files = studies(3, 2)
    body, headers = multipart(files)
    httpx.post(f"{orthanc}/studies", content=body, headers=headers, timeout=60).raise_for_status()
    ended = migrate(
        *("--from", orthanc, "--to", target.server.v2, "--partition", target.name),
        *("--journal", tmp_path / f"{uuid.uuid4().hex}.db", "--verify"),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 studies to move, by the source's search" in ended.stdout
    found = httpx.get(f"{target.root}/instances?count=true", timeout=60)
    assert found.headers["X-Total-Count"] == "6"
