"""What is measured: this server, plain Blob Storage through the SDK, and Orthanc where it is installed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from devhost.azurite import Azurite, Installation, free_ports, is_listening

ROOT = Path(__file__).resolve().parents[1]
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[Azurite]:
    """A new Azurite."""
    azurite = Azurite(Installation(ROOT / ".dev"), folder)
    try:
        yield azurite
    finally:
        azurite.close()


@contextlib.contextmanager
def server(
    azurite: Azurite, folder: Path, workers: int, asked: bool = True
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """This server on ``azurite`` and a new SQLite database: its DICOMweb base and its process.

    It is asked for its health first, or with ``asked`` False nothing: it listens.
    """
    port = free_ports()[0]
    sample = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]
    environment = {
        **sample,
        **os.environ,
        "AzureWebJobsStorage": azurite.connection_string,
        "DICOM_SQL_URL": f"sqlite:///{folder}/dicom.db",
    }
    subprocess.run([sys.executable, "-m", "devhost.prepare"], cwd=ROOT, env=environment, check=True)
    command = [sys.executable, "-m", "devhost", "--port", str(port), "--workers", str(workers)]
    with (folder / "host.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        if asked:
            _wait(f"http://127.0.0.1:{port}/health/check")
        else:
            _wait_for_word(folder / "host.log")
        yield f"http://127.0.0.1:{port}/v2", process
    finally:
        process.terminate()
        process.wait(20)


def _wait_for_word(log: Path) -> None:
    """Until the host has said that it listens; its port is open before its workers are there."""
    deadline = time.monotonic() + 60
    while b"Listening on" not in log.read_bytes():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[str | None]:
    """Orthanc with its DICOMweb plugin: its base, or None where it is not installed."""
    executable = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not (Path(executable).exists() and ORTHANC_PLUGIN.exists()):
        yield None
        return
    port, dicom_port, _ = free_ports()
    folder.mkdir(parents=True)
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "HttpPort": port,
                "DicomPort": dicom_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "HttpThreadsCount": 16,
                "Plugins": [str(ORTHANC_PLUGIN)],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
        )
    )
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([executable, str(configuration)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not is_listening(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        _wait(f"http://127.0.0.1:{port}/system")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
