"""Where events go to the container ``audit``, no answer leaves before its event is durable there."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient
from pydicom.uid import generate_uid

from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, to_file

CLIENTS = 6


@pytest.fixture(scope="module")
def audited(start_server: StartServer) -> Server:
    return start_server(workers=2, own_storage=True, DICOM_AUDIT_CONTAINER="true")


def trail(server: Server) -> ContainerClient:
    service = BlobServiceClient.from_connection_string(server.environment["AzureWebJobsStorage"])
    return service.get_container_client("audit")


def events(server: Server) -> list[dict[str, Any]]:
    """All that is in the container; every line is whole."""
    container = trail(server)
    blobs = [container.download_blob(name).readall() for name in container.list_blob_names()]
    assert all(data.endswith(b"\n") for data in blobs if data)
    return [json.loads(line) for data in blobs for line in data.splitlines()]


def test_of_processes_that_are_killed_no_answered_request_is_missing(audited: Server) -> None:
    answered: list[str] = []
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"{audited.v2}/", timeout=30) as http:
            while True:
                study = generate_uid()
                try:
                    response = http.get(f"studies/{study}/metadata")
                except httpx.HTTPError:
                    return
                assert response.status_code == 404
                answered.append(study)
                if len(answered) >= 40:
                    enough.set()

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    audited.kill()
    for thread in threads:
        thread.join()
    found = events(audited)
    assert set(answered) - {event["study"] for event in found} == set()
    names = list(trail(audited).list_blob_names())
    assert len({name.rpartition("/")[2] for name in names}) == 2, "each process has a blob of its own"
    assert len({event["id"] for event in found}) == len(found)
    audited.restart()


def test_nobody_is_answered_while_the_container_cannot_be_written(audited: Server) -> None:
    key = generate_uid(), generate_uid(), generate_uid()
    body = to_file(make_dataset(*key))
    with httpx.Client(base_url=f"{audited.v2}/", timeout=60) as http:
        form = {"Content-Type": "application/dicom"}
        assert http.post("studies", content=body, headers=form).status_code == 200
        accept = {"Accept": 'multipart/related; type="application/dicom"'}
        assert http.get(f"studies/{key[0]}", headers=accept).status_code == 200
        trail(audited).delete_container()
        for path in (f"studies/{key[0]}", "studies", f"studies/{generate_uid()}/metadata"):
            refused = http.get(path, headers=accept if path.count("/") == 1 else {})
            assert refused.status_code == 503, path
            assert refused.headers["Retry-After"]
            assert b"audit trail" in refused.content or b"container" in refused.content
        assert httpx.get(f"{audited.url}/health/check", timeout=60).status_code == 200
        trail(audited).create_container()
        assert http.get(f"studies/{key[0]}", headers=accept).status_code == 200
    assert [event["transaction"] for event in events(audited)] == ["retrieve_study"]
