"""The DIMSE adapter as a process of its own, and what talks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from devhost.azurite import free_ports
from tests.conftest import ROOT
from tests.tools import tool

_config.STORE_SEND_CHUNKED_DATASET = True  # files leave as they are

TITLE = "DICOMWEB"


class Adapter:
    """A running adapter. ``extra`` is appended to its configuration, ``listener`` to that of the listener;
    ``routes`` replaces the only one."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        routes: str = "",
        extra: str = "",
        listener: str = "",
        spool_bytes: int = 10**9,
        command: tuple[str, ...] = ("-m", "adapters.dimse", "serve"),
    ):
        self._command = command
        self.folder = folder
        self.port, self.metrics_port = free_ports()[:2]
        self.spool = folder / "spool"
        self.log_path = folder / "adapter.log"
        self.configuration = folder / "adapter.toml"
        routes = routes or f'[[routes]]\nae_title = "{TITLE}"\ncalling = ["*"]\nhosts = ["127.0.0.1"]\n'
        self.configuration.write_text(
            f'[server]\nurl = "{url}"\n'
            f"[listener]\nport = {self.port}\n{listener}"
            f"[metrics]\nport = {self.metrics_port}\n"
            f'[spool]\nfolder = "spool"\nmaximum_bytes = {spool_bytes}\n'
            "[forward]\nfirst_pause_seconds = 0.1\nlongest_pause_seconds = 0.5\nattempts = 3\n"
            f"{routes}{extra}"
        )
        self._process = self._start()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def start(self) -> None:
        """Start it again."""
        self._process = self._start()

    def metrics(self) -> dict[str, float]:
        """What /metrics says."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text
        lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def wait_until_empty(self, seconds: float = 30) -> None:
        """Until nothing waits for the server any more."""
        deadline = time.monotonic() + seconds
        while self.metrics()["dimse_spool_objects"]:
            assert time.monotonic() < deadline, (self.metrics(), self.log)
            time.sleep(0.05)

    @property
    def log(self) -> str:
        """What it logged."""
        return self.log_path.read_text()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, *self._command, "--config", str(self.configuration)]
        with self.log_path.open("ab") as log:
            seen = log.tell()
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        deadline = time.monotonic() + 60
        while b"Listening on" not in self.log_path.read_bytes()[seen:]:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(self.log[-3000:])
            time.sleep(0.05)
        return process


@contextlib.contextmanager
def running(folder: Path, url: str, **options: Any) -> Iterator[Adapter]:
    """An adapter until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = Adapter(folder, url, **options)
    try:
        yield adapter
    finally:
        adapter.stop()


@contextlib.contextmanager
def associated(
    port: int,
    contexts: Iterable[tuple[str, str]] = (),
    *,
    calling: str = "TEST",
    called: str = TITLE,
    **options: Any,
) -> Iterator[Association]:
    """An association with contexts for storage (class and syntax) and for queries."""
    ae = AE(ae_title=calling)
    for sop_class in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        PatientRootQueryRetrieveInformationModelFind,
        ModalityWorklistInformationFind,
    ):
        ae.add_requested_context(sop_class, ImplicitVRLittleEndian)
    for sop_class, syntax in dict.fromkeys(contexts):
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate("127.0.0.1", port, ae_title=called, **options)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(port: int, files: Iterable[Path], **options: Any) -> list[int]:
    """C-STORE files as they are; the statuses, 0x0122 where there is no context or answer."""
    listed = list(files)
    metas = [split_dataset(path)[0] for path in listed]
    wanted = [(str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)) for meta in metas]
    statuses = []
    with associated(port, wanted, **options) as association:
        for path in listed:
            answer = association.send_c_store(path)
            statuses.append(int(answer.Status) if "Status" in answer else 0x0122)
    return statuses


def find(port: int, model: str, **options: Any) -> tuple[list[Dataset], list[int]]:
    """The answers and all statuses of a C-FIND; ``options`` are keys by keyword."""
    query = Dataset()
    for keyword, value in options.items():
        setattr(query, keyword, value)
    with associated(port) as association:
        answers = [(s, ds) for s, ds in association.send_c_find(query, model)]
    return [ds for _, ds in answers if ds is not None], [int(status.Status) for status, _ in answers]


def dataset_bytes(path: Path) -> bytes:
    """The data set of a Part 10 file, encoded."""
    _, start = split_dataset(path)
    return path.read_bytes()[start:]


def run_tool(name: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run one of dcmtk's programs; what it says. AssertionError when it fails."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        errors="replace",
    )
    assert done.returncode == 0, (name, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout + done.stderr
