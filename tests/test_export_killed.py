"""An export whose workers die on the way: the files are exact, and each failure is logged once.

``DICOM_TEST_KILLED_INSTANCES=20000`` runs it on 20,000 instances.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
from azure.storage.blob import BlobServiceClient

from tests.conftest import StartServer
from tests.export_target import Target
from tests.operations_harness import MOST, TwoServers, store_many, wait_for_end

POINTS = (
    "operations.planned",
    "operations.steps_sent",
    "export.files_written",
    "operations.step_worked",
    "operations.step_finished",
    "operations.folded",
    "export.log_written",
    "operations.work_finished",
)
"""Where a worker dies, one after the other."""


def test_an_export_survives_deaths_at_every_point(start_server: StartServer, tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    fault.touch()
    server = start_server(
        own_storage=True, workers=1, DICOM_FAULT_FILE=str(fault), DEVHOST_QUEUE_LEASE_SECONDS="3"
    )
    connection = server.environment["AzureWebJobsStorage"]
    studies = store_many(server, MOST)
    target = Target(connection)
    missing = [f"1.2.3.{number}" for number in range(5)]
    body = {
        "source": {"type": "identifiers", "settings": {"values": [*missing, *studies]}},
        "destination": {"type": "azureblob", "settings": target.sas(hours=12)},
    }
    fault.write_text(f"{POINTS[0]}:kill")
    response = httpx.post(f"{server.v2}/export", json=body, timeout=60)
    assert response.status_code == 202, response.text
    id, href = response.json()["id"], response.json()["href"]
    fired = [point for point in POINTS if _dies_at(point, fault, href)]
    ended = wait_for_end(href, 120 + MOST / 10)
    assert len(fired) >= 5, fired
    assert (ended["status"], ended["percentComplete"]) == ("succeeded", 100)
    assert (ended["results"]["exported"], ended["results"]["skipped"]) == (MOST, len(missing))
    assert_exact(connection, target, id, missing)
    assert not list(Path(server.environment["DICOM_SECRETS_FOLDER"]).glob(f"*{id}*"))
    server.close()


def test_an_export_survives_kills_of_its_hosts(start_server: StartServer, tmp_path: Path) -> None:
    hosts = TwoServers(start_server, DICOM_SECRETS_FOLDER=str(tmp_path / "secrets"))
    connection = hosts.servers[0].environment["AzureWebJobsStorage"]
    studies = store_many(hosts.servers[0], MOST)
    target = Target(connection)
    missing = [f"1.2.3.{number}" for number in range(5)]
    body = {
        "source": {"type": "identifiers", "settings": {"values": [*missing, *studies]}},
        "destination": {"type": "azureblob", "settings": target.sas(hours=12)},
    }
    response = hosts.request("POST", "/v2/export", json=body)
    assert response.status_code == 202, response.text
    id = response.json()["id"]
    began = time.monotonic()
    with hosts.killing():
        ended = hosts.wait_for_end(id, 180 + MOST / 5)
    print(f"{MOST} instances exported in {time.monotonic() - began:.0f} s and {hosts.kills} kills")
    assert (ended["status"], ended["percentComplete"]) == ("succeeded", 100), ended
    assert (ended["results"]["exported"], ended["results"]["skipped"]) == (MOST, len(missing))
    assert_exact(connection, target, id, missing)
    assert not list((tmp_path / "secrets").glob(f"*{id}*"))
    for host in hosts.servers:
        host.close()


def assert_exact(connection: str, target: Target, id: str, missing: list[str]) -> None:
    """Every file of the server is at the target, equal by its MD5, and the log names what is missing."""
    log = target.client.download_blob(f"{id}/errors.log").readall()
    assert sorted(json.loads(line)["identifier"] for line in log.splitlines()) == missing
    files = BlobServiceClient.from_connection_string(connection).get_container_client("dicom")
    stored = {}
    for blob in files.list_blobs():
        _, _, study, series, instance, _ = blob.name.split("/")
        stored[f"{id}/results/{study}/{series}/{instance}.dcm"] = blob.content_settings.content_md5
    found = {
        blob.name: blob.content_settings.content_md5
        for blob in target.client.list_blobs(name_starts_with=f"{id}/results/")
    }
    assert len(found) == MOST
    assert None not in found.values()
    assert found == stored


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
