"""A bulk update on two hosts, one of them killed every few seconds: it ends exactly, its status is honest.

``DICOM_TEST_KILLED_INSTANCES=20000`` runs it on 20,000 instances.
"""

from __future__ import annotations

import io
import time

import httpx
from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.audit import audit, clean, key_of, query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart
from tests.operations_harness import MOST, TwoServers

STUDIES = 50 if MOST > 5000 else 20
NAME = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]}}


def test_an_update_survives_kills_of_its_workers(start_server: StartServer) -> None:
    hosts = TwoServers(start_server, **{"AzureWebJobs.index_dicom_blob.Disabled": "true"})
    first, second = hosts.servers
    files = stored(first)
    studies = [row[0] for row in query(first, "SELECT study_instance_uid FROM study")]
    body = {"studyInstanceUids": studies, "changeDataset": NAME}
    response = hosts.request("POST", "/v2/studies/$bulkUpdate", json=body)
    assert response.status_code == 202, response.text
    started = time.monotonic()
    with hosts.killing():
        ended = hosts.wait_for_end(response.json()["id"], 120 + MOST / 5)
    took = time.monotonic() - started
    assert ended["status"] == "succeeded", ended
    assert ended["results"] == {"studyUpdated": STUDIES, "instanceUpdated": MOST}
    assert hosts.kills >= 2
    second.stop()
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
    assert actions == [("create", MOST), ("update", MOST)]
    print(f"{MOST} instances updated in {took:.0f} s and {hosts.kills} kills")


def stored(server: Server) -> list[bytes]:
    """The files of the studies, stored."""
    files: list[bytes] = []
    with httpx.Client(timeout=300) as client:
        for _ in range(STUDIES):
            study, series = generate_uid(), generate_uid()
            of_study = [make_file(study, series, frames=0) for _ in range(MOST // STUDIES)]
            content, headers = multipart(of_study)
            client.post(f"{server.v2}/studies", content=content, headers=headers).raise_for_status()
            files += of_study
    return files
