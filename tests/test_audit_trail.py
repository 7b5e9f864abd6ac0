"""The audit trail says who did what to which resources; neither it nor any log tells of patients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydicom.uid import generate_uid

from tests import oidc_issuer
from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, multipart, to_file
from tests.oidc_issuer import AUDIENCE, Issuer

STUDY, SERIES = generate_uid(), generate_uid()
SECRETS = {
    "PatientName": "Quokka^Marsupia",
    "PatientID": "QK-4711-X",
    "PatientBirthDate": "19030417",
    "AccessionNumber": "ACQK99817",
    "StudyDescription": "Quokkalitis acuta",
}
NEVER = ("quokka", "marsupia", "qk-4711-x", "19030417", "acqk99817")


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with oidc_issuer.running() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def audited(start_server: StartServer, issuer: Issuer) -> Server:
    return start_server(
        workers=1,
        own_storage=True,
        DICOM_AUTH_AUTHORITY=issuer.url,
        DICOM_AUTH_AUDIENCE=AUDIENCE,
        DICOM_AUDIT="true",
    )


def events(server: Server) -> list[dict[str, Any]]:
    """The events so far."""
    lines = [line for line in server.log.splitlines() if '"transaction"' in line]
    return [json.loads(line[line.index("{") :]) for line in lines]


def file(**changes: Any) -> bytes:
    return to_file(make_dataset(STUDY, SERIES, generate_uid(), **(SECRETS | changes)))


def test_every_request_leaves_an_event_and_no_log_tells_of_a_patient(audited: Server, issuer: Issuer) -> None:
    headers = {"Authorization": f"Bearer {issuer.token('DICOM Data Owner')}"}
    files = [file(), file(), file(PatientBirthDate="19030417 or so"), b"Quokka^Marsupia is no DICOM file"]
    body, form = multipart(files)
    with httpx.Client(base_url=f"{audited.v2}/", headers=headers, timeout=60) as http:
        stored = http.post("studies", content=body, headers=form)
        assert stored.status_code == 202, stored.text
        again = http.post("studies", content=files[0], headers={"Content-Type": "application/dicom"})
        assert again.status_code == 409
        series = f"studies/{STUDY}/series/{SERIES}"
        assert http.get("studies", params={"PatientName": "Quokka*"}).json()
        assert http.get("studies", params={"Quokka": "Marsupia"}).status_code == 400
        assert http.get("studies", params={"PatientBirthDate": "19030417-19030417-"}).status_code == 400
        assert http.get("studies/Quokka^Marsupia/metadata").status_code == 400
        assert http.get(f"{series}/metadata").status_code == 200
        assert http.get(f"{series}/rendered").status_code in (200, 406)
        assert http.get(f"studies/{STUDY}", headers={"Accept": "application/zip"}).status_code == 200
        assert http.get("changefeed").status_code == 200
        assert http.delete(f"studies/{STUDY}").status_code == 204
        assert http.get(f"{series}/metadata").status_code == 404
    assert httpx.get(f"{audited.v2}/studies?PatientID=QK-4711-X").status_code == 401
    audited.run_function("clean_deleted_instances")
    audited.run_function("reconcile_blobs")

    found = events(audited)
    assert [(e["transaction"], e["status"]) for e in found[:2]] == [
        ("store_instances", 202),
        ("store_instances", 409),
    ]
    store = found[0]
    assert store["numberOfInstances"] == 3
    assert len(set(store["instances"])) == 3
    assert {e["caller"] for e in found[:-1]} == {"0e0c7e3e-0000-4000-8000-000000000001"}
    assert {e["client"] for e in found[:-1]} == {"0e0c7e3e-0000-4000-8000-000000000002"}
    delete = next(e for e in found if e["transaction"] == "delete_study")
    assert (delete["study"], delete["outcome"], delete["partition"]) == (
        STUDY,
        "success",
        "Microsoft.Default",
    )
    assert (found[-1]["caller"], found[-1]["outcome"], found[-1]["status"]) == ("", "denied", 401)
    assert [e["outcome"] for e in found if e["status"] in (400, 404, 409)] == ["failure"] * 5
    log = audited.log.lower()
    assert [secret for secret in NEVER if secret in log] == []
