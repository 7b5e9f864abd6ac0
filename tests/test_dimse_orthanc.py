"""Orthanc and the adapter, both ways: storage, query, move, and the migration of Orthanc's archive."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.uid import generate_uid

from devhost.azurite import free_ports
from tests.certificates import Authority
from tests.conftest import ROOT, Server
from tests.dicom_files import make_file
from tests.dimse_adapter import TITLE, Adapter, running
from tests.tools import tool

SYNTAXES = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm")


@contextlib.contextmanager
def orthanc(
    folder: Path, port: int, http_port: int, adapter_port: int, **settings: Any
) -> Iterator[httpx.Client]:
    """A running Orthanc that knows the adapter; ``settings`` are added to its configuration."""
    folder.mkdir()
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http_port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowFind": True,
        "DicomModalities": {"adapter": [TITLE, "127.0.0.1", adapter_port]},
        "Plugins": [],
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([tool("Orthanc"), str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60, trust_env=False) as http:
            deadline = time.monotonic() + 40
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/system").status_code == 200:
                        break
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield http
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def peers(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Adapter, httpx.Client, int]]:
    """The adapter and Orthanc, which know each other, and Orthanc's port."""
    tool("Orthanc")
    folder = tmp_path_factory.mktemp("orthanc")
    port, http_port = free_ports()[:2]
    extra = f'[[destinations]]\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {port}\n'
    with (
        running(folder / "adapter", f"{server.v2}/partitions/orthanc", extra=extra) as adapter,
        orthanc(folder / "data", port, http_port, adapter.port) as http,
    ):
        yield adapter, http, port


def elements(path: Path) -> list[DataElement]:
    """All elements but group lengths and padding, which Orthanc makes anew when it sends."""
    ds = dcmread(path)
    return [element for element in ds if element.tag.element != 0 and element.tag != 0xFFFCFFFC]


def test_orthanc_sends_finds_and_moves(
    peers: tuple[Adapter, httpx.Client, int], server: Server, tmp_path: Path
) -> None:
    adapter, http, _ = peers
    studies = {}
    for name in SYNTAXES:
        path = Path(str(get_testdata_file(name, download=False)))
        answer = http.post("/instances", content=path.read_bytes())
        assert answer.status_code == 200, name
        studies[answer.json()["ID"]] = path
    answer = http.post("/modalities/adapter/store", json=list(studies))
    assert answer.status_code == 200, answer.text
    assert answer.json()["FailedInstancesCount"] == 0
    adapter.wait_until_empty()
    for path in studies.values():
        ds = dcmread(path, stop_before_pixels=True)
        url = f"studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        accept = {"Accept": "application/dicom; transfer-syntax=*"}
        got = httpx.get(f"{server.v2}/partitions/orthanc/{url}", headers=accept, timeout=60)
        (tmp_path / "got").write_bytes(got.content)
        assert dcmread(tmp_path / "got").file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID, path
        assert elements(tmp_path / "got") == elements(path), path
    ds = dcmread(studies[next(iter(studies))], stop_before_pixels=True)
    found = http.post(
        "/modalities/adapter/query", json={"Level": "Study", "Query": {"PatientID": str(ds.PatientID)}}
    ).json()
    assert len(http.get(f"/queries/{found['ID']}/answers").json()) == 1
    http.delete(f"/instances/{next(iter(studies))}")
    moved = http.post(f"/queries/{found['ID']}/answers/0/retrieve", content="ORTHANC")
    assert moved.status_code == 200, moved.text
    back = http.get(f"/instances/{next(iter(studies))}/file")
    assert back.status_code == 200
    (tmp_path / "back").write_bytes(back.content)
    assert elements(tmp_path / "back") == elements(studies[next(iter(studies))])


def test_an_archive_is_migrated_and_the_journal_remembers(
    peers: tuple[Adapter, httpx.Client, int], server: Server, tmp_path: Path
) -> None:
    adapter, http, port = peers
    studies = [generate_uid() for _ in range(7)]
    for number, study in enumerate(studies):
        date = ["20200101", "20200102", "20210630", ""][number % 4]
        for _ in range(2):
            http.post("/instances", content=make_file(study, frames=0, StudyDate=date)).raise_for_status()
    command = [sys.executable, "-m", "adapters.dimse", "migrate", "--config", str(adapter.configuration)]
    command += [
        "--from",
        f"ORTHANC@127.0.0.1:{port}",
        "--journal",
        str(tmp_path / "journal.db"),
        "--limit",
        "3",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    total = len(http.get("/studies").json())
    assert f"{total} studies with" in done.stdout
    assert f"{total} are in the server" in done.stdout
    for study in studies:
        found = httpx.get(f"{server.v2}/partitions/orthanc/studies?StudyInstanceUID={study}", timeout=60)
        assert found.json()[0]["00201208"]["Value"] == [2]
    received = adapter.metrics()["dimse_objects_received_total"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert adapter.metrics()["dimse_objects_received_total"] == received, "nothing is moved twice"


def test_an_archive_is_migrated_by_tls_alone(server: Server, tmp_path: Path) -> None:
    """Archive and adapter ask each other for certificates; with the wrong authority nothing is asked for."""
    tool("Orthanc")
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    ours, theirs = authority.issue("ours"), authority.issue("theirs")
    port, http_port = free_ports()[:2]
    tls = (
        f'[tls]\ncertificate = "{ours.certificate}"\nkey = "{ours.key}"\n'
        f'client_ca = "{authority.certificate}"\n'
    )
    with running(tmp_path / "adapter", f"{server.v2}/partitions/orthanc-tls", extra=tls) as adapter:
        known = {"AET": TITLE, "Host": "127.0.0.1", "Port": adapter.port, "UseDicomTls": True}
        settings = {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(theirs.certificate),
            "DicomTlsPrivateKey": str(theirs.key),
            "DicomTlsTrustedCertificates": str(authority.certificate),
            "DicomModalities": {"adapter": known},
        }
        with orthanc(tmp_path / "data", port, http_port, adapter.port, **settings) as http:
            study = generate_uid()
            http.post("/instances", content=make_file(study, frames=0)).raise_for_status()
            command = [sys.executable, "-m", "adapters.dimse", "migrate"]
            command += ["--config", str(adapter.configuration), "--from", f"ORTHANC@127.0.0.1:{port}"]
            command += ["--journal", str(tmp_path / "journal.db")]
            shown = ["--tls-certificate", str(ours.certificate), "--tls-key", str(ours.key)]

            def migrate(*options: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120
                )

            for options, said in (
                (["--tls-ca", str(stranger.certificate), *shown], "does not accept us"),
                ([], "does not accept us"),
                (shown, "--tls-ca is missing"),
                (["--tls-ca", str(tmp_path / "absent")], "--tls-ca: "),
            ):
                refused = migrate(*options)
                assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
            done = migrate("--tls-ca", str(authority.certificate), *shown)
            assert done.returncode == 0, done.stdout + done.stderr
    found = httpx.get(f"{server.v2}/partitions/orthanc-tls/studies?StudyInstanceUID={study}", timeout=60)
    assert len(found.json()) == 1
