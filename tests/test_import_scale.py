"""Many files by the inbox and by a bulk import: each is stored once, at a rate that is compared with Store's.

``DICOM_TEST_IMPORT_FILES=5000`` runs it at full size; ``-s`` shows the rates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
from azure.storage.blob import ContainerClient
from pydicom.uid import generate_uid

from tests.audit import container, query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart
from tests.operations_harness import wait_for_end

FILES = int(os.environ.get("DICOM_TEST_IMPORT_FILES", "60"))
A_SERIES = 30


def test_many_files_are_stored_once_by_inbox_and_by_import(start_server: StartServer) -> None:
    server = start_server(
        own_storage=True,
        **{f"AzureWebJobs.{name}.Disabled": "true" for name in ("index_dicom_blob", "reconcile_blobs")},
    )
    rates = {
        "Store, 4 clients, 10 a request": _rate(_store, server),
        "bulk import": _rate(_import, server),
        "inbox": _rate(_inbox, server),
    }
    assert query(server, "SELECT count(*) FROM instance") == [(3 * FILES,)]
    assert query(server, "SELECT action, count(*) FROM change_feed GROUP BY action") == [
        ("create", 3 * FILES)
    ]
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} files a second, {rate / rates['Store, 4 clients, 10 a request']:.2f}")
    server.close()


def _rate(way: Callable[[Server, Sequence[bytes]], None], server: Server) -> float:
    """Files a second, of fresh series."""
    uids = [(generate_uid(), generate_uid()) for _ in range(-(-FILES // A_SERIES))]
    files = [make_file(*uids[number // A_SERIES], frames=0) for number in range(FILES)]
    started = time.monotonic()
    way(server, files)
    return FILES / (time.monotonic() - started)


def _store(server: Server, files: Sequence[bytes]) -> None:
    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(4) as pool:

        def send(first: int) -> None:
            body, headers = multipart(files[first : first + 10])
            client.post(f"{server.v2}/studies", content=body, headers=headers).raise_for_status()

        list(pool.map(send, range(0, len(files), 10)))


def _import(server: Server, files: Sequence[bytes]) -> None:
    with container(server, "source") as source:
        source.create_container()
        _upload(source, files)
        settings = {
            "connectionString": server.environment["AzureWebJobsStorage"],
            "blobContainerName": "source",
        }
        body = {"source": {"type": "azureblob", "settings": settings}}
        response = httpx.post(f"{server.v2}/import", json=body, timeout=60)
        assert response.status_code == 202, response.text
        ended = wait_for_end(response.json()["href"], 60 + FILES / 5)
        assert (ended["status"], ended["results"]["stored"]) == ("succeeded", FILES)


def _inbox(server: Server, files: Sequence[bytes]) -> None:
    with container(server, "inbox") as inbox:
        _upload(inbox, files)
        deadline = time.monotonic() + 60 + FILES / 2
        while next(iter(inbox.list_blobs(results_per_page=1)), None):
            assert time.monotonic() < deadline, "the inbox is not emptied"
            time.sleep(0.5)


def _upload(target: ContainerClient, files: Sequence[bytes]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: target.upload_blob(generate_uid(), file), files))
