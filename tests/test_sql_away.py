"""A database that is away: 503 in time with Retry-After, and nothing lost once it is back.

SQL Server by Microsoft's own driver, which meets something that never answers, refuses or hangs up; the
database that the tests run on, which goes in the middle of stores and comes back.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import mssql_python_odbc
import pytest
import sqlalchemy as sa

from shared.sql.engine import Database
from tests import databases, tools
from tests.audit import HTTP, assert_whole, send
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file
from tests.tcp_proxy import Proxy

LIMIT_SECONDS = 45


def driver() -> str:
    """Microsoft's driver as the package brings it."""
    folder = Path(mssql_python_odbc.__file__).parent / "libs" / "linux" / "debian_ubuntu" / "x86_64" / "lib"
    found = sorted(folder.glob("libmsodbcsql-*"))
    if not found:
        tools.missing("no ODBC driver for this machine")
    return str(found[0])


def refused(server: Server, seconds: float) -> None:
    """A search and the health check, asked at once, say in time that the database is away."""
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(httpx.get, url, timeout=120)
            for url in (f"{server.v2}/studies", f"{server.url}/health/check")
        ]
        search, health = (one.result() for one in asked)
    assert time.monotonic() - started < seconds
    for response in (search, health):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
    (found,) = [d for d in health.json()["dependencies"] if d["name"] == "Sql"]
    assert found["status"] == "Unhealthy"
    assert found["description"]


def test_a_database_that_hangs_up_refuses_or_never_answers_gives_503_in_time(
    start_server: StartServer,
) -> None:
    pytest.importorskip("pyodbc")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"mssql+pyodbc://sa:x@127.0.0.1:{port}/dicom?driver={driver()}&Encrypt=no"
        hang_up = threading.Event()
        hang_up.set()

        def accept() -> None:
            kept = []
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    if hang_up.is_set():
                        connection.close()
                    else:
                        kept.append(connection)

        threading.Thread(target=accept, daemon=True).start()
        server = start_server(workers=1, DICOM_SQL_URL=url)
        refused(server, LIMIT_SECONDS)
        hang_up.clear()
        refused(server, LIMIT_SECONDS)
        listener.shutdown(socket.SHUT_RDWR)
    refused(server, LIMIT_SECONDS)
    server.kill()


class Away:
    """The database of a server under test, and how to take it away."""

    def __init__(self, url: str, take: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self.url = url
        self.taken = take


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Away]:
    """SQLite is locked by somebody who writes; to a server connections break and new ones are refused."""
    with databases.new(tmp_path / "dicom.db") as url:
        if url.startswith("sqlite"):

            @contextlib.contextmanager
            def lock() -> Iterator[None]:
                with contextlib.closing(Database(url, threads=1)) as other, other.engine.connect() as held:
                    held.exec_driver_sql("BEGIN EXCLUSIVE")
                    yield

            yield Away(f"{url}?timeout=0.2", lock)
            return
        parts = sa.make_url(url)
        with Proxy(parts.port or 1433, parts.host or "127.0.0.1") as proxy:

            @contextlib.contextmanager
            def cut() -> Iterator[None]:
                proxy.mode = "refuse"
                yield
                proxy.mode = "pass"

            through = parts.set(host="127.0.0.1", port=proxy.port)
            yield Away(through.render_as_string(hide_password=False), cut)


def test_a_database_that_goes_in_the_middle_of_stores_and_comes_back_loses_nothing(
    start_server: StartServer, away: Away
) -> None:
    server = start_server(workers=1, DICOM_SQL_URL=away.url)
    send(server, make_file()).raise_for_status()
    stop, stored, failed = threading.Event(), [], []

    def store() -> None:
        while not stop.is_set():
            file = make_file()
            response = send(server, file)
            if response.status_code == 200:
                stored.append(file)
                time.sleep(0.2)
            else:
                assert response.status_code == 503, response.text
                assert int(response.headers["retry-after"]) > 0
                failed.append(file)

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(store) for _ in range(3)]
        until(lambda: len(stored) >= 3)
        with away.taken():
            until(lambda: len(failed) >= 3)
            health = HTTP.get(f"{server.url}/health/check")
        before = len(stored)
        until(lambda: len(stored) >= before + 3)  # nobody has to do anything for it to go on
        stop.set()
        for client in clients:
            client.result()
    assert health.status_code == 503 or away.url.startswith("sqlite")
    for file in stored:
        assert_whole(server, file)
    for file in failed:
        send(server, file).raise_for_status()
        assert_whole(server, file)
    server.close()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
