"""A SQL Server that is away, by Microsoft's own driver: 503 in time, with Retry-After."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx
import mssql_python_odbc
import pytest

from tests import tools
from tests.conftest import StartServer

LIMIT_SECONDS = 45


def driver() -> str:
    """Microsoft's driver as the package brings it."""
    folder = Path(mssql_python_odbc.__file__).parent / "libs" / "linux" / "debian_ubuntu" / "x86_64" / "lib"
    found = sorted(folder.glob("libmsodbcsql-*"))
    if not found:
        tools.missing("no ODBC driver for this machine")
    return str(found[0])


def test_a_database_that_takes_connections_and_never_answers_gives_503_in_time(
    start_server: StartServer,
) -> None:
    pytest.importorskip("pyodbc")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mssql+pyodbc://sa:x@127.0.0.1:{silent.getsockname()[1]}/dicom?driver={driver()}&Encrypt=no"
        server = start_server(workers=1, DICOM_SQL_URL=url)
        started = time.monotonic()
        response = httpx.get(f"{server.v2}/studies", timeout=120)
        assert time.monotonic() - started < LIMIT_SECONDS
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        server.kill()
