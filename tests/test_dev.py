"""dev.py: its commands, its refusals in one sentence, the loader, and a server's life from start to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from devhost import load
from devhost.azurite import Installation, free_ports
from devhost.load import File, batches, describe, find_files, read_outcomes
from devhost.setup import Environment, Problem, Screen, exclusive
from tests import dicom_files
from tests.conftest import ROOT, Server
from tests.export_target import Target
from tests.partition import Partition

DEV = str(ROOT / "dev.py")
COMMANDS = [
    "run",
    "test",
    "load",
    "import",
    "export",
    "migrate",
    "check",
    "bench",
    "dimse",
    "dimse-migrate",
    "viewer",
    "reindex",
]


def make_file(path: Path, study: str, series: str) -> Path:
    """A small CT instance."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientID, ds.PatientName, ds.Modality = "dev-1", "Dev^Loader", "CT"
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve instances of one study in two folders."""
    study = generate_uid()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        series = generate_uid()
        for number in range(6):
            make_file(tmp_path / name / f"{number}.dcm", study, series)
    return tmp_path


def dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dev.py with the standard library alone."""
    command = [sys.executable, "-S", "-E", DEV, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- commands and refusals -------------------------------------------------------------------------


def test_commands_need_the_standard_library_alone() -> None:
    ended = dev("--help")
    assert ended.returncode == 0, ended.stderr
    for command in COMMANDS:
        assert re.search(rf"^ +{command}\s", ended.stdout, re.MULTILINE), command


def test_commands_are_documented() -> None:
    text = (ROOT / "docs" / "develop.md").read_text()
    for command in COMMANDS:
        assert f"python3 dev.py {command}" in text


def assert_one_sentence(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


def test_busy_port_is_refused_in_one_sentence() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert_one_sentence(dev("run", "--port", port), port, "--port")


def test_unwritable_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    port = str(free_ports()[0])
    assert_one_sentence(dev("run", "--port", port, "--data", str(file / "data")), str(file / "data"))


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(Problem, match="in use"), exclusive(tmp_path):
        pass


def test_missing_node_that_cannot_be_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DICOM_TEST_AZURITE_JS", raising=False)
    titles: list[str] = []

    def run(title: str, command: list[str], environment: dict[str, str] | None) -> None:
        titles.append(title)
        raise Problem("Installing Node.js failed (no network).")

    with pytest.raises(Problem, match=r"Node\.js 18 or later was not found; Installing"):
        Installation(tmp_path).ensure(run, sys.executable)
    assert titles == ["Installing Node.js"]


def test_failing_step_says_why_and_where_the_log_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('ERROR: no such package'); print('bye'); sys.exit(3)"]
    with pytest.raises(Problem, match=r"Installing things failed \(ERROR: no such package\).*things\.log"):
        Screen(tmp_path).run("Installing things", command)


def test_environment_is_made_anew_when_requirements_change(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("one")
    titles: list[str] = []

    class Recorder(Screen):
        def run(self, title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
            titles.append(title)
            python = tmp_path / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    steps = ["Creating a virtual environment", "Installing packages"]
    environment = Environment(tmp_path)
    environment.ensure(Recorder(tmp_path))
    environment.ensure(Recorder(tmp_path))
    assert titles == steps
    (tmp_path / "requirements.txt").write_text("two")
    environment.ensure(Recorder(tmp_path))
    assert titles == steps * 2


# --- the loader ------------------------------------------------------------------------------------


def file(uid: str, size: int = 1) -> File:
    return File(Path(uid or "x"), size, uid)


def test_batches_hold_ten_files_or_20_megabytes() -> None:
    assert [len(batch) for batch in batches(file(str(n)) for n in range(25))] == [10, 10, 5]
    assert [len(batch) for batch in batches(file(str(n), 8 * 1024**2) for n in range(5))] == [2, 2, 1]
    assert [len(batch) for batch in batches([file("1", 10**9), file("2")])] == [1, 1]


def test_files_that_cannot_be_told_apart_travel_alone() -> None:
    uids = ["1", "2", "1", "", "3"]
    sent = [[one.uid for one in batch] for batch in batches(file(uid) for uid in uids)]
    assert sorted(sent) == [[""], ["1", "2"], ["1", "3"]]


def test_describe_reads_the_uid_of_dicom_only(folder: Path) -> None:
    path = folder / "a" / "0.dcm"
    assert describe(path).uid.startswith("1.2.826")
    assert describe(path).size == path.stat().st_size
    (folder / "text").write_text("no DICOM at all")
    assert describe(folder / "text").uid == ""
    assert len(find_files([folder])) == 13


def test_outcomes_are_read_per_file() -> None:
    failed = Dataset()
    failed.ReferencedSOPInstanceUID, failed.FailureReason = "2", 45070
    stored = Dataset()
    stored.ReferencedSOPInstanceUID, stored.WarningReason = "1", 1
    answer = Dataset()
    answer.FailedSOPSequence, answer.ReferencedSOPSequence = [failed], [stored]
    response = httpx.Response(202, content=answer.to_json())
    outcomes = read_outcomes([file("1"), file("2"), file("3")], response)
    assert [outcome.status for outcome in outcomes] == ["warned", "duplicate", "refused"]
    problem = httpx.Response(415, json={"detail": "Not this."})
    assert read_outcomes([file("1")], problem)[0].reason == "HTTP 415: Not this."


def run_load(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devhost.load", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_load_stores_a_folder_and_sums_up(server: Server, folder: Path) -> None:
    ended = run_load(str(folder), "--url", server.url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "12 files: 12 stored, 0 warned, 0 duplicate, 0 refused" in ended.stdout
    again = run_load(str(folder), "--url", server.url)
    assert "12 duplicate, 0 refused" in again.stdout
    assert again.returncode == 0


def test_load_reports_what_the_server_refuses(server: Server, folder: Path) -> None:
    (folder / "notes.txt").write_text("no DICOM at all")
    ended = run_load(str(folder), "--url", server.url)
    assert ended.returncode == 1
    assert "12 stored" in ended.stdout
    assert re.search(r"refused .*notes\.txt: 43264: ", ended.stdout)


def run_import(*arguments: str, storage: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devhost.importer", *arguments]
    environment = os.environ | ({"AzureWebJobsStorage": storage} if storage else {})
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment, check=False
    )


def test_import_of_a_folder_sums_up_and_leaves_no_container(server: Server, folder: Path) -> None:
    storage = server.environment["AzureWebJobsStorage"]
    partition = f"import-{uuid.uuid4().hex[:8]}"
    options = ("--url", server.url, "--partition", partition)
    ended = run_import(str(folder), *options, storage=storage)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "succeeded: 12 stored, 0 replaced, 0 duplicates, 0 skipped, 0 refused" in ended.stdout
    containers = BlobServiceClient.from_connection_string(storage).list_containers(name_starts_with="import-")
    assert list(containers) == []
    found = httpx.get(f"{server.v2}/partitions/{partition}/instances").json()
    assert len(found) == 12


def test_import_reports_what_the_server_refuses(server: Server, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("no DICOM at all")
    report = tmp_path / "report.jsonl"
    storage = server.environment["AzureWebJobsStorage"]
    ended = run_import(str(folder), "--url", f"{server.url}/v2", "--report", str(report), storage=storage)
    assert ended.returncode == 1
    assert re.search(r"refused notes\.txt: .*\.", ended.stdout)
    (line,) = report.read_text().splitlines()
    assert json.loads(line)["failureReason"] == 43264


def test_import_of_a_container_by_its_url(server: Server, folder: Path) -> None:
    service = BlobServiceClient.from_connection_string(server.environment["AzureWebJobsStorage"])
    container = service.create_container(f"source-{uuid.uuid4().hex[:12]}")
    for path in find_files([folder])[:3]:
        container.upload_blob(f"x/{path.name}-{path.parent.name}", path.read_bytes())
    container.upload_blob("y/junk", b"junk")
    token = generate_container_sas(
        str(service.account_name),
        container.container_name,
        account_key=service.credential.account_key,
        permission=ContainerSasPermissions(read=True, list=True, delete=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    partition = f"import-{uuid.uuid4().hex[:8]}"
    options = ("--url", server.url, "--partition", partition, "--prefix", "x/", "--delete-sources")
    ended = run_import(f"{container.url}?{token}", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 stored" in ended.stdout
    assert [blob.name for blob in container.list_blobs()] == ["y/junk"]
    assert token not in ended.stdout + ended.stderr


def test_import_says_in_one_sentence_what_is_in_the_way(server: Server, folder: Path) -> None:
    url = f"http://127.0.0.1:{free_ports()[0]}"
    storage = server.environment["AzureWebJobsStorage"]
    ended = run_import(str(folder), "--url", url, storage=storage)
    assert ended.returncode == 2
    assert ended.stderr == f"No server answers at {url}; start one with `python3 dev.py run`.\n"
    missing = f"{storage.split('BlobEndpoint=')[1].split(';')[0]}/no-such-container?sig=x&sv=2024-01-01"
    refused = run_import(missing, "--url", server.url)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stderr.startswith("HTTP 400: ")


def test_load_without_a_server_is_one_sentence(folder: Path) -> None:
    ended = run_load(str(folder), "--url", f"http://127.0.0.1:{free_ports()[0]}")
    assert ended.returncode == 2
    assert "No server answers" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sample_studies_are_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = load.demo_files(tmp_path / "a"), load.demo_files(tmp_path / "b")
    assert all(path.is_file() for path in first)
    uids = [load.describe(path).uid for path in first]
    assert uids == [load.describe(path).uid for path in second]
    assert len(set(uids)) == len(uids)


# --- export ------------------------------------------------------------------------------------------


def run_export(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devhost.export", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_export_follows_the_operation_and_sums_up(server: Server, azurite: Any) -> None:
    partition, target = Partition(server), Target(azurite.connection_string)
    patients = [dicom_files.make_file(PatientID="X-1") for _ in range(2)]
    partition.keep(*patients, dicom_files.make_file(BurnedInAnnotation="YES"))
    common = ("--url", server.url, "--partition", partition.name)
    where = ("--to", target.connection, "--container", target.name)
    ended = run_export("--query", "studies?PatientID=X-1", *where, *common, "--parquet")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "succeeded: 2 exported, 0 skipped" in ended.stdout
    uri = str(target.sas()["blobContainerUri"])
    ended = run_export("--query", "studies", "--retain", "retainUids", *common, DICOM_EXPORT_TO=uri)
    assert ended.returncode == 1
    assert "succeeded: 2 exported, 1 skipped" in ended.stdout
    assert "BurnedInAnnotation" in ended.stdout
    assert f"{target.client.url}/" in ended.stdout
    assert "sig=" not in ended.stdout + ended.stderr
    assert len([name for name in target.blobs() if name.endswith(".dcm")]) == 4


def test_export_says_in_one_sentence_why_there_is_none(server: Server) -> None:
    refused = run_export("1.2.3", "--to", "https://example.org/c?sig=1", "--url", server.url)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "DICOM_STORAGE_HOSTS" in refused.stderr
    nobody = run_export("1.2.3", "--to", "x", "--url", f"http://127.0.0.1:{free_ports()[0]}")
    assert nobody.returncode == 2
    assert "No server answers" in nobody.stderr
    assert run_export("1.2.3", "--url", server.url, DICOM_EXPORT_TO="").returncode == 2
    assert run_export("--to", "x", "--url", server.url).returncode == 2


# --- a server's life -------------------------------------------------------------------------------


class Run:
    """``dev.py run`` in the background."""

    def __init__(self, data: Path, output: Path, *arguments: str) -> None:
        self.port = free_ports()[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = output
        with output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, DEV, "run", "--port", str(self.port), "--data", str(data), *arguments],
                stdout=out,
                stderr=out,
                # a run in the background ignores the signal, and its children would inherit that
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(40)


def test_run_demo_survives_a_restart_and_stops_cleanly(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = Run(data, tmp_path / "first.log", "--demo")
    try:
        first.wait_for("Ctrl-C")
        first.wait_for(" refused")
        assert "0 refused" in first.output.read_text()
        studies = httpx.get(f"{first.url}/v2/studies?limit=200").json()
        assert len(studies) >= 5
    finally:
        code = first.interrupt()
    assert code == 0
    assert "Traceback" not in first.output.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first.url}/health/check")

    second = Run(data, tmp_path / "second.log")
    try:
        second.wait_for("Ctrl-C")
        again = httpx.get(f"{second.url}/v2/studies?limit=200").json()
        assert [s["0020000D"] for s in again] == [s["0020000D"] for s in studies]
        uid = again[0]["0020000D"]["Value"][0]
        assert httpx.get(f"{second.url}/v2/studies/{uid}", timeout=30).status_code == 200
    finally:
        assert second.interrupt() == 0
