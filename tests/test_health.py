"""The health check: what it says when all is well, and when a dependency is down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from azurefunctions.extensions.http.fastapi import Request

from devhost.azurite import connection_string, free_ports
from functions.health import check_health
from shared import container, services
from shared.sql.engine import Database
from shared.sql.migrations import READERS_WAIT
from tests import databases
from tests.conftest import NewSqlUrl, Server, StartServer

LIMIT_SECONDS = 15
"""Ten for the slowest answer of a dependency, and some for a busy machine."""


def check(server: Server) -> tuple[httpx.Response, dict[str, dict[str, Any]]]:
    """The response, within the time limit, and the dependencies by name."""
    started = time.monotonic()
    response = httpx.get(f"{server.url}/health/check", timeout=60)
    assert time.monotonic() - started < LIMIT_SECONDS
    return response, {d["name"]: d for d in response.json()["dependencies"]}


def test_all_dependencies_are_healthy(server: Server) -> None:
    response, dependencies = check(server)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["overallStatus"] == "Healthy"
    assert {name: d["status"] for name, d in dependencies.items()} == dict.fromkeys(
        ("BlobStorage", "TableStorage", "QueueStorage", "Sql"), "Healthy"
    )
    assert all(d["description"] == "" for d in dependencies.values())


def test_head_answers_without_a_body(client: httpx.Client) -> None:
    response = client.head("/health/check")
    assert response.status_code == 200
    assert not response.content


def test_storage_that_does_not_answer_is_named(start_server: StartServer) -> None:
    nobody_listens = connection_string(free_ports())
    server = start_server(workers=1, AzureWebJobsStorage=nobody_listens)
    response, dependencies = check(server)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["overallStatus"] == "Unhealthy"
    assert dependencies["Sql"]["status"] == "Healthy"
    for name in ("BlobStorage", "TableStorage", "QueueStorage"):
        assert dependencies[name]["status"] == "Unhealthy"
        assert dependencies[name]["description"].endswith(".")
    assert "AccountKey" not in response.text
    server.kill()  # its triggers would go on trying for a while


def test_a_database_that_does_not_answer_is_named(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_bytes(b"this is no database")
    server = start_server(workers=1, DICOM_SQL_URL=f"sqlite:///{file}")
    response, dependencies = check(server)
    assert response.status_code == 503
    assert dependencies["Sql"]["status"] == "Unhealthy"
    assert dependencies["Sql"]["description"]
    assert dependencies["BlobStorage"]["status"] == "Healthy"
    server.close()


async def test_a_malformed_setting_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, new_sql_url: NewSqlUrl
) -> None:
    def malformed() -> None:
        raise ValueError("Connection string is malformed; it holds a key.")

    monkeypatch.setattr(container, "blob_store", malformed)
    monkeypatch.setattr(container, "table_service", malformed)
    monkeypatch.setattr(container, "operation_queue", malformed)
    database = Database(new_sql_url("dicom"))
    monkeypatch.setattr(container, "database", lambda: database)
    report = await services.health.check()
    assert not report.healthy
    assert [d.healthy for d in report.dependencies] == [False, False, False, True]
    assert all("ValueError" in d.description for d in report.dependencies if not d.healthy)
    assert all("key" not in d.description for d in report.dependencies)


@pytest.mark.skipif(databases.NOT_SQLITE, reason="a server answers for itself")
@pytest.mark.parametrize(("snapshot", "status"), [(1, "Healthy"), (0, "Degraded")])
async def test_a_database_whose_readers_wait_answers_and_is_degraded(
    in_process: None, snapshot: int, status: str
) -> None:
    await container.database().ping()
    databases.pretend_sql_server(container.database(), snapshot)
    response = await check_health(Request({"type": "http", "method": "GET", "headers": []}))
    body = json.loads(response.body)
    assert (response.status_code, body["overallStatus"]) == (200, status)
    sql = next(found for found in body["dependencies"] if found["name"] == "Sql")
    assert sql == {"name": "Sql", "status": status, "description": "" if snapshot else READERS_WAIT}
