"""An import whose worker dies at every step of the way stores each file once and counts it once."""

from __future__ import annotations

import json
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from azure.storage.blob import BlobServiceClient
from pydicom.uid import generate_uid

from shared.blobs import names
from shared.dicom.identifiers import InstanceKey
from tests.audit import _INSTANCES, container, query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file
from tests.operations_harness import wait_for_end

FILES = 1000
COPIES, JUNK = 10, 10
POINTS = (
    "operations.planned",
    "operations.steps_sent",
    "store.uploaded",
    "store.appended",
    "store.committed",
    "import.stored",
    "import.recorded",
    "import.sources_deleted",
    "operations.step_finished",
    "operations.folded",
)
"""Where a worker dies, one after the other."""


def test_an_import_survives_deaths_at_every_point(start_server: StartServer, tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    fault.touch()
    server = start_server(
        own_storage=True,
        workers=1,
        DICOM_FAULT_FILE=str(fault),
        DEVHOST_QUEUE_LEASE_SECONDS="3",
        DICOM_ORPHAN_GRACE_SECONDS="0",
        **{f"AzureWebJobs.{name}.Disabled": "true" for name in ("index_dicom_blob", "reconcile_blobs")},
    )
    settings, files = _source(server)
    body = {"source": {"type": "azureblob", "settings": settings}, "deleteSources": True}
    fault.write_text(f"{POINTS[0]}:kill")
    response = httpx.post(f"{server.v2}/import", json=body, timeout=60)
    assert response.status_code == 202, response.text
    href = response.json()["href"]
    fired = [point for point in POINTS if _dies_at(point, fault, href)]
    operation = wait_for_end(href, 120)
    assert len(fired) >= 8, fired
    assert operation["status"] == "succeeded", operation
    assert operation["results"] == {
        "stored": FILES,
        "replaced": 0,
        "duplicates": COPIES,
        "skipped": 0,
        "refused": JUNK,
        "failed": 0,
    }
    report = httpx.get(operation["resources"][0]).text.splitlines()
    assert sorted(json.loads(line)["name"] for line in report) == [f"junk-{n:04d}" for n in range(JUNK)]
    storage = BlobServiceClient.from_connection_string(settings["connectionString"])
    left = storage.get_container_client(settings["blobContainerName"]).list_blobs()
    assert sorted(blob.name for blob in left) == [f"junk-{n:04d}" for n in range(JUNK)]
    assert sorted(_stored(server)) == sorted(files)
    assert query(server, "SELECT count(*), min(action), max(action) FROM change_feed") == [
        (FILES, "create", "create")
    ]
    server.close()


def _source(server: Server) -> tuple[dict[str, str], list[bytes]]:
    """A container with instances, copies of a few of them, and junk; its settings and the instances."""
    connection = server.environment["AzureWebJobsStorage"]
    service = BlobServiceClient.from_connection_string(connection)
    source = service.create_container(f"source-{uuid.uuid4().hex[:8]}")
    serieses = [(generate_uid(), generate_uid()) for _ in range(4)]
    files = [make_file(*random.choice(serieses), frames=0) for _ in range(FILES)]
    blobs = [(f"file-{number:04d}", data) for number, data in enumerate(files)]
    blobs += [(f"copy-{number:04d}", data) for number, data in enumerate(random.sample(files, COPIES))]
    blobs += [(f"junk-{number:04d}", b"junk" * number) for number in range(1, JUNK)] + [("junk-0000", b"x")]
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda blob: source.upload_blob(*blob), blobs):
            pass
    return {"connectionString": connection, "blobContainerName": source.container_name}, files


def _stored(server: Server) -> list[bytes]:
    """The bytes of every instance in the index."""
    rows = query(server, _INSTANCES)
    with container(server, names.DICOM) as dicom, ThreadPoolExecutor(8) as pool:
        blobs = [names.file_name(InstanceKey(*row[:4]), row[4]) for row in rows]
        return list(pool.map(lambda name: dicom.download_blob(name).readall(), blobs))


def _dies_at(point: str, fault: Path, href: str) -> bool:
    """Let the worker die at a point; whether it came to it before the operation ended."""
    if point != POINTS[0]:
        fault.write_text(f"{point}:kill")
    deadline = time.monotonic() + 40
    while fault.read_text():
        response = httpx.get(href, timeout=60)
        if response.status_code == 200 or time.monotonic() > deadline:
            fault.write_text("")
            return False
        time.sleep(0.2)
    return True
