"""Fixtures: a real Azurite, and the app in the development host as its own processes.

``azurite``       the storage account of the session
``server``        the app on it, with two HTTP workers and triggers that scan fast (session)
``start_server``  starts further hosts, for tests that kill one, or need their own storage or settings
``client``        an ``httpx.Client`` of ``server``
``in_process``    the services in the test's own process, on the session's storage and a new database
``new_sql_url``   makes URLs of new databases, for one test

All of it ends with the test run, also when the run itself is killed: the children watch a pipe to it.
``DICOM_TEST_SQL_URL`` puts every database on another server (tests/databases.py);
``DICOM_TEST_AZURITE_JS`` names another Azurite.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devhost.azurite import Azurite, Installation, free_ports
from devhost.settings import local_values
from devhost.setup import Problem
from shared import container
from shared.settings import settings
from tests import databases, t_sql

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """A running development host.

    ``url`` is its base (``http://127.0.0.1:PORT``), ``v2`` the DICOMweb base, ``environment`` what it was
    started with (all of it), ``log_path`` its log.
    """

    def __init__(
        self,
        environment: dict[str, str],
        log_path: Path,
        *,
        workers: int = 2,
        root: Path = ROOT,
        storage: _Storage | None = None,
    ) -> None:
        self._storage = storage
        self.environment = environment
        self.log_path = log_path
        self.port = free_ports()[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.v2 = f"{self.url}/v2"
        self.workers = workers
        self.root = root
        self._process = self._start()

    def run_function(self, name: str, input: Any = None) -> None:
        """Run a timer, queue or blob function now and wait for its end; AssertionError when it fails."""
        response = httpx.post(f"{self.url}/admin/functions/{name}", json={"input": input}, timeout=120)
        assert response.status_code == 202, f"{name}: {response.status_code}; see {self.log_path}"

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a power failure would end them."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: only what this host started
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def close(self) -> None:
        """End it, and the storage it alone uses."""
        self.stop()
        if self._storage is not None:
            self._storage.close()

    def restart(self, **environment: str | None) -> None:
        """Start it again on the same port, with changed variables (None removes one)."""
        self.stop()
        for name, value in environment.items():
            if value is None:
                self.environment.pop(name, None)
            else:
                self.environment[name] = value
        self._process = self._start()

    @property
    def running(self) -> bool:
        """Whether the host's first process is alive."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All it has logged so far."""
        return self.log_path.read_text(errors="replace")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "devhost", "--follow-stdin", "--root", str(self.root)]
        command += ["--port", str(self.port), "--workers", str(self.workers)]
        with self.log_path.open("ab") as log:
            seen = log.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while b"Listening on" not in self.log_path.read_bytes()[seen:]:
            if process.poll() is not None or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise RuntimeError(f"The server did not start:\n{self.log[-3000:]}")
            time.sleep(0.02)
        return process


t_sql.watch()

StartServer = Callable[..., Server]
NewSqlUrl = Callable[[str], str]


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The storage account of the session."""
    with contextlib.closing(_Storage(tmp_path_factory.mktemp("azurite"))) as storage:
        yield storage.azurite


class _Storage:
    """An Azurite with the app's containers."""

    def __init__(self, folder: Path) -> None:
        try:
            self.azurite = Azurite(Installation(ROOT / ".dev"), folder)
        except Problem as error:
            pytest.exit(str(error), returncode=3)
        environment = {
            **local_values(ROOT),
            **os.environ,
            "AzureWebJobsStorage": self.azurite.connection_string,
        }
        subprocess.run([sys.executable, "-m", "devhost.prepare"], cwd=ROOT, env=environment, check=True)

    def close(self) -> None:
        self.azurite.close()


def _environment(azurite: Azurite, sql_url: str, folder: Path) -> dict[str, str]:
    """What a server under test is started with.

    Deleted bytes go at the next clean-up. Unreferenced blobs keep their grace of an hour, because a
    clean-up without it would race with stores in flight: a test of it starts its own server with
    ``DICOM_ORPHAN_GRACE_SECONDS="0"``. Other settings are those of local.settings.sample.json.
    """
    return {
        **local_values(ROOT),
        **os.environ,
        "AzureWebJobsStorage": azurite.connection_string,
        "DICOM_SQL_URL": sql_url,
        "DICOM_SECRETS_FOLDER": str(folder / "secrets"),
        "DICOM_BLOB_TRIGGER_SOURCE": "LogsAndContainerScan",
        "DICOM_CLEANUP_DELAY_SECONDS": "0",
        "DICOM_ORPHAN_GRACE_SECONDS": "3600",
        "DEVHOST_BLOB_SCAN_SECONDS": "0.3",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def server(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app on the session's storage and database, with two HTTP workers."""
    folder = tmp_path_factory.mktemp("server")
    with databases.new(folder / "dicom.db") as sql_url:
        running = Server(_environment(azurite, sql_url, folder), folder / "server.log")
        yield running
        running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of ``server``; paths are relative to its root."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture
def new_sql_url(tmp_path: Path) -> Iterator[NewSqlUrl]:
    """Factory: the URL of a new database, named for its file where it is one of SQLite."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(databases.new(tmp_path / f"{name}.db"))


@pytest.fixture
async def in_process(
    azurite: Azurite, new_sql_url: NewSqlUrl, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The services in this process; deleted bytes go at the next clean-up. The containers exist."""
    cached = (
        settings,
        container.database,
        container.blob_store,
        container.table_service,
        container.state,
    )
    monkeypatch.setenv("AzureWebJobsStorage", azurite.connection_string)
    monkeypatch.setenv("DICOM_SQL_URL", new_sql_url("in-process"))
    monkeypatch.setenv("DICOM_CLEANUP_DELAY_SECONDS", "0")
    for one in cached:
        one.cache_clear()
    await container.blob_store().prepare()
    yield
    await container.blob_store().close()
    await container.table_service().close()
    container.database().close()
    for one in cached:
        one.cache_clear()


@pytest.fixture(scope="module")
def start_server(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Factory: ``start_server(workers=2, own_storage=False, root=ROOT, **environment) -> Server``.

    ``own_storage=True`` gives the server an Azurite of its own; otherwise it shares the session's. It has
    a database of its own, unless ``DICOM_SQL_URL`` is given. All servers end with the module; a
    test that starts several calls ``close()``, which also ends a storage of its own.
    """
    with contextlib.ExitStack() as stack:

        def start(
            *, workers: int = 2, own_storage: bool = False, root: Path = ROOT, **environment: str
        ) -> Server:
            folder = tmp_path_factory.mktemp("server")
            storage = _Storage(folder / "azurite") if own_storage else None
            given = environment.get("DICOM_SQL_URL")
            sql_url = given or stack.enter_context(databases.new(folder / "dicom.db"))
            variables = _environment(storage.azurite if storage else azurite, sql_url, folder) | environment
            try:
                running = Server(
                    variables, folder / "server.log", workers=workers, root=root, storage=storage
                )
            except BaseException:
                if storage is not None:
                    storage.close()
                raise
            stack.callback(running.close)
            return running

        yield start
