"""A bulk update on two hosts, one of them killed every few seconds: it ends exactly, its status is honest.

``DICOM_TEST_KILLED_INSTANCES=20000`` runs it on 20,000 instances.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.audit import audit, clean, key_of, query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart

INSTANCES = int(os.environ.get("DICOM_TEST_KILLED_INSTANCES", "1000"))
STUDIES = 50 if INSTANCES > 5000 else 20
NAME = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]}}
OPTIONS = {
    "DEVHOST_QUEUE_LEASE_SECONDS": "5",
    "DICOM_OPERATIONS_SCHEDULE": "*/5 * * * * *",
    "AzureWebJobs.index_dicom_blob.Disabled": "true",
}


def test_an_update_survives_kills_of_its_workers(start_server: StartServer) -> None:
    first = start_server(own_storage=True, workers=1, **OPTIONS)
    shared = {name: first.environment[name] for name in ("AzureWebJobsStorage", "DICOM_SQL_URL")}
    servers = [first, start_server(workers=1, **shared, **OPTIONS)]
    files = stored(first)
    studies = [row[0] for row in query(first, "SELECT study_instance_uid FROM study")]
    body = {"studyInstanceUids": studies, "changeDataset": NAME}
    response = httpx.post(f"{first.v2}/studies/$bulkUpdate", json=body, timeout=60)
    assert response.status_code == 202, response.text
    started = time.monotonic()
    with killing(servers) as kills:
        ended = wait_for_end(servers, response.json()["id"], 120 + INSTANCES / 5)
    took = time.monotonic() - started
    assert ended["status"] == "succeeded", ended
    assert ended["results"] == {"studyUpdated": STUDIES, "instanceUpdated": INSTANCES}
    assert len(kills) >= 2
    servers[1].stop()
    first.restart(DICOM_ORPHAN_GRACE_SECONDS="0")
    clean(first)
    found = audit(first)
    assert found.originals == {key_of(file): file for file in files}
    assert found.files.keys() == found.originals.keys()
    for file in found.files.values():
        assert dcmread(io.BytesIO(file)).PatientName == "Roe^Richard"
    for document in found.documents.values():
        assert document["00100010"] == NAME["00100010"]
    actions = query(first, "SELECT action, count(*) FROM change_feed GROUP BY action ORDER BY action")
    assert actions == [("create", INSTANCES), ("update", INSTANCES)]
    print(f"{INSTANCES} instances updated in {took:.0f} s and {len(kills)} kills")


def stored(server: Server) -> list[bytes]:
    """The files of the studies, stored."""
    files: list[bytes] = []
    with httpx.Client(timeout=300) as client:
        for _ in range(STUDIES):
            study, series = generate_uid(), generate_uid()
            of_study = [make_file(study, series, frames=0) for _ in range(INSTANCES // STUDIES)]
            content, headers = multipart(of_study)
            client.post(f"{server.v2}/studies", content=content, headers=headers).raise_for_status()
            files += of_study
    return files


@contextlib.contextmanager
def killing(servers: list[Server], longest: float = 4.0) -> Iterator[list[int]]:
    """Kill the hosts in turn: SIGKILL to all their processes, and start them again. The kills so far."""
    over = threading.Event()
    kills: list[int] = []

    def kill() -> None:
        chance = random.Random(1)
        while not over.wait(chance.uniform(0.5, longest)):
            victim = servers[len(kills) % 2]
            victim.kill()
            kills.append(victim.port)
            victim.restart()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield kills
    finally:
        over.set()
        killer.join()


def wait_for_end(servers: list[Server], id: str, seconds: float) -> dict[str, Any]:
    """The operation once it has ended, from whichever host answers; its progress never goes back."""
    deadline = time.monotonic() + seconds
    percent = 0
    while True:
        assert time.monotonic() < deadline, "the operation has not ended"
        time.sleep(0.2)
        for server in servers:
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(f"{server.v2}/operations/{id}", timeout=60)
                body: dict[str, Any] = response.json()
                if response.status_code == 200:
                    return body
                if response.status_code == 202:
                    assert percent <= body["percentComplete"] < 100
                    percent = body["percentComplete"]
                    break
