"""A FHIR server is kept in step: the end is what a fresh synchronisation would give, whatever fails.

``DICOM_TEST_FHIR_STUDIES`` sets how many studies the long test makes; 1000 is the full proof.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.data.tables import TableClient, UpdateMode
from pydicom.uid import generate_uid

from tests.audit import query
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart
from tests.event_receiver import Fault
from tests.fhir_server import Fhir, Resource, fhir_server

NEVER = "0 0 0 1 1 *"
SYSTEM = "urn:oid:1.2.826.0.1.9"
STUDIES = int(os.environ.get("DICOM_TEST_FHIR_STUDIES", "25"))


@pytest.fixture(scope="module")
def running() -> Iterator[Fhir]:
    with fhir_server() as state:
        yield state


@pytest.fixture(scope="module")
def synchronising(
    start_server: StartServer, running: Fhir, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server that keeps the FHIR server in step when its function is run."""
    armed = tmp_path_factory.mktemp("faults") / "armed"
    armed.write_text("")
    return start_server(
        workers=1,
        own_storage=True,
        DICOM_FHIR_URL=running.url,
        DICOM_FHIR_PATIENT_SYSTEM=SYSTEM,
        DICOM_PUBLIC_BASE_URL="https://imaging.example.org",
        DICOM_FOLLOWER_SCHEDULE=NEVER,
        DICOM_FOLLOWER_HOLD_SECONDS="1" if STUDIES <= 100 else "5",
        DICOM_FAULT_FILE=str(armed),
    )


@pytest.fixture
def fhir(running: Fhir) -> Fhir:
    """The FHIR server, empty."""
    running.clear()
    return running


@pytest.fixture
def server(synchronising: Server, fhir: Fhir) -> Iterator[Server]:
    """``synchronising``, with nothing left to follow and an empty FHIR server."""
    synchronise(synchronising)
    fhir.clear()
    yield synchronising
    assert fhir.invalid == [], "what is sent is FHIR"


def store(server: Server, *files: bytes, partition: str = "", method: str = "POST") -> None:
    body, headers = multipart(files)
    base = f"{server.v2}/partitions/{partition}" if partition else server.v2
    response = httpx.request(method, f"{base}/studies", content=body, headers=headers, timeout=60)
    response.raise_for_status()


def delete(server: Server, path: str) -> None:
    httpx.delete(f"{server.v2}/{path}", timeout=60).raise_for_status()


def in_step(server: Server) -> bool:
    """Run the follower; whether it is up to date then."""
    try:
        server.run_function("synchronise_fhir")
        dependencies = httpx.get(f"{server.url}/health/check", timeout=60).json()["dependencies"]
        return {d["name"]: d for d in dependencies}["Fhir"]["description"] == "Up to date."
    except (httpx.TransportError, AssertionError):
        time.sleep(0.2)
        return False


def synchronise(server: Server, seconds: float = 60) -> None:
    wait_for(lambda: in_step(server), seconds)


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def rows(server: Server, table: str) -> list[dict[str, Any]]:
    with TableClient.from_connection_string(server.environment["AzureWebJobsStorage"], table) as client:
        try:
            return [dict(row) for row in client.list_entities()]
        except ResourceNotFoundError:
            return []


def start_again(server: Server) -> None:
    """Forget how far the follower is: the next run is a fresh synchronisation."""
    with TableClient.from_connection_string(server.environment["AzureWebJobsStorage"], "followers") as client:
        client.delete_entity("fhir", "cursor")


def state(fhir: Fhir) -> dict[str, Resource]:
    """All ImagingStudies by UID with their Patients, without ids and versions."""
    patients = {f"Patient/{p['id']}": p for p in fhir.all("Patient")}
    endpoints = {f"Endpoint/{e['id']}" for e in fhir.all("Endpoint")}
    found = {}
    for study in fhir.all("ImagingStudy"):
        assert {e["reference"] for e in study["endpoint"]} <= endpoints
        subject = plain(patients[study["subject"]["reference"]])
        uid = study["identifier"][0]["value"]
        assert uid not in found, "one ImagingStudy a study"
        found[uid] = plain(study) | {"subject": subject, "endpoint": len(study["endpoint"])}
    return found


def plain(resource: Resource) -> Resource:
    return {key: value for key, value in resource.items() if key not in ("id", "meta")}


def test_create_update_and_delete_of_a_study(server: Server, fhir: Fhir) -> None:
    study, series, one, two = (generate_uid() for _ in range(4))
    store(
        server,
        make_file(study, series, one, StudyDescription="first", PatientSex="F"),
        make_file(study, series, two, StudyDescription="second", PatientSex="F"),
    )
    synchronise(server)
    (made,) = fhir.all("ImagingStudy")
    (patient,) = fhir.all("Patient")
    (endpoint,) = fhir.all("Endpoint")
    assert made["identifier"] == [{"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}]
    assert made["subject"] == {"reference": f"Patient/{patient['id']}"}
    assert made["endpoint"] == [{"reference": f"Endpoint/{endpoint['id']}"}]
    assert endpoint["address"] == "https://imaging.example.org/v2"
    assert made["description"] == "second", "the last instance wins"
    assert {i["uid"] for i in made["series"][0]["instance"]} == {one, two}
    assert patient["identifier"] == [{"system": SYSTEM, "value": "P-1"}]
    assert (patient["gender"], patient["name"][0]["family"]) == ("female", "Doe")

    again = make_file(study, series, one, StudyDescription="third", PatientName="Roe^Jane")
    store(server, again, method="PUT")
    delete(server, f"studies/{study}/series/{series}/instances/{two}")
    synchronise(server)
    (updated,) = fhir.all("ImagingStudy")
    assert updated["id"] == made["id"]
    assert (updated["description"], updated["numberOfInstances"]) == ("third", 1)
    assert fhir.all("Patient")[0]["name"][0]["family"] == "Roe"

    delete(server, f"studies/{study}")
    synchronise(server)
    assert fhir.all("ImagingStudy") == []
    assert len(fhir.all("Patient")) == 1, "others may use it"
    assert "Roe" not in server.log
    assert "P-1" not in server.log


def test_what_is_in_step_is_not_written_again(server: Server, fhir: Fhir) -> None:
    store(server, make_file(), make_file())
    synchronise(server)
    before = [study["meta"]["versionId"] for study in fhir.all("ImagingStudy")]
    fhir.fault = lambda method, body: 400 if method == "POST" else None
    start_again(server)
    synchronise(server)
    assert [study["meta"]["versionId"] for study in fhir.all("ImagingStudy")] == before
    assert fhir.faults == 0, "nothing was sent"


def test_a_feed_that_was_made_anew_is_followed_from_its_start(server: Server, fhir: Fhir) -> None:
    study = generate_uid()
    store(server, make_file(study))
    with TableClient.from_connection_string(server.environment["AzureWebJobsStorage"], "followers") as client:
        client.update_entity({**client.get_entity("fhir", "cursor"), "Sequence": "1000000"}, UpdateMode.MERGE)
    synchronise(server)
    assert f"urn:oid:{study}" in state(fhir)


def test_another_partition_stays_out(server: Server, fhir: Fhir) -> None:
    store(server, make_file(), partition="north")
    synchronise(server)
    assert fhir.all("ImagingStudy") == []
    assert fhir.all("Patient") == []


def test_a_study_without_a_patient_is_kept_in_a_table_and_its_imaging_study_goes(
    server: Server, fhir: Fhir
) -> None:
    study, series, one = (generate_uid() for _ in range(3))
    store(server, make_file(study, series, one))
    synchronise(server)
    assert len(fhir.all("ImagingStudy")) == 1
    store(server, make_file(study, series, one, PatientID=""), method="PUT")
    synchronise(server)
    assert fhir.all("ImagingStudy") == []
    (row,) = [r for r in rows(server, "DicomFailToStoreExceptionTable") if r["StudyInstanceUid"] == study]
    assert row["Error"] == "PatientID is missing."


def test_a_refused_study_is_kept_and_tried_again_on_demand(server: Server, fhir: Fhir) -> None:
    bad, good = generate_uid(), generate_uid()
    fhir.fault = lambda method, body: 422 if body and bad in str(body) else None
    store(server, make_file(bad, PatientID="P-BAD"), make_file(good, PatientID="P-GOOD"))
    synchronise(server)
    assert set(state(fhir)) == {f"urn:oid:{good}"}
    table = "FhirFailToStoreExceptionTable"
    (row,) = rows(server, table)
    assert (row["StudyInstanceUid"], row["Error"]) == (bad, "The FHIR server answered with status 422.")
    assert "P-BAD" not in str(row)
    fhir.fault = lambda method, body: None
    with TableClient.from_connection_string(server.environment["AzureWebJobsStorage"], table) as client:
        client.update_entity({**row, "Retry": True}, UpdateMode.MERGE)
    synchronise(server)
    assert set(state(fhir)) == {f"urn:oid:{bad}", f"urn:oid:{good}"}
    assert rows(server, table) == []


def test_a_value_fhir_cannot_take_is_named_in_a_table(server: Server, fhir: Fhir) -> None:
    study = generate_uid()
    store(server, make_file(study, SeriesNumber=-5))
    synchronise(server)
    assert len(fhir.all("ImagingStudy")) == 1
    (row,) = [r for r in rows(server, "InvalidDicomTagExceptionTable") if r["StudyInstanceUid"] == study]
    assert row["Error"] == "SeriesNumber is no number from 0 to 2147483647."


def test_with_validation_enforced_such_a_study_stays_as_it_was_until_it_is_mended(
    start_server: StartServer, fhir: Fhir
) -> None:
    server = start_server(
        workers=1,
        own_storage=True,
        DICOM_FHIR_URL=fhir.url,
        DICOM_FOLLOWER_SCHEDULE=NEVER,
        DICOM_FHIR_ENFORCE_VALIDATION="true",
        DICOM_FHIR_IGNORE_JSON_PARSING_ERRORS="true",
    )
    study, series, one = (generate_uid() for _ in range(3))
    store(server, make_file(study, series, one, StudyDescription="first"))
    synchronise(server)
    before = state(fhir)
    store(server, make_file(study, series, one, StudyDescription="second", SeriesNumber=-5), method="PUT")
    synchronise(server)
    assert state(fhir) == before
    (row,) = rows(server, "DicomFailToStoreExceptionTable")
    assert row["Error"] == "SeriesNumber is no number from 0 to 2147483647."
    store(server, make_file(study, series, one, StudyDescription="third"), method="PUT")
    synchronise(server)
    assert state(fhir)[f"urn:oid:{study}"]["description"] == "third"

    other = generate_uid()
    damage(server, study)
    store(server, make_file(other))
    start_again(server)
    synchronise(server)
    assert f"urn:oid:{other}" in state(fhir)
    assert len(rows(server, "DicomFailToStoreExceptionTable")) == 1, "the damaged one is in no table"
    assert "is passed over: The index holds something else than DICOM JSON" in server.log
    assert fhir.invalid == []
    server.close()


def test_a_study_whose_row_is_damaged_holds_up_no_other_one(server: Server, fhir: Fhir) -> None:
    study, other = generate_uid(), generate_uid()
    store(server, make_file(study))
    damage(server, study)
    store(server, make_file(other))
    synchronise(server)
    assert set(state(fhir)) == {f"urn:oid:{other}"}
    (row,) = [r for r in rows(server, "DicomFailToStoreExceptionTable") if r["StudyInstanceUid"] == study]
    assert row["Error"] == "The index holds something else than DICOM JSON of this study."


def damage(server: Server, study: str) -> None:
    """Leave something else than DICOM JSON in a study's row."""
    query(server, "UPDATE study SET attributes = '{\"00080020\": ' WHERE study_instance_uid = ?", study)


def test_a_host_that_dies_at_any_point_leaves_nothing_out(server: Server, fhir: Fhir) -> None:
    armed = Path(server.environment["DICOM_FAULT_FILE"])
    for point in ("fhir.read", "fhir.written"):
        study = generate_uid()
        store(server, make_file(study))
        armed.write_text(f"{point}:kill")
        in_step(server)
        assert armed.read_text() == "", point
        synchronise(server)
        assert f"urn:oid:{study}" in state(fhir), point


def test_studies_changed_at_random_end_as_a_fresh_synchronisation_would(server: Server, fhir: Fhir) -> None:
    dice = random.Random(11)
    fault_dice = random.Random(12)

    def fault(method: str, body: Resource | None) -> Fault:
        if fault_dice.random() > 0.15:
            return None
        return fault_dice.choice([409, 412, 429, 500, 502, 503, "cut", "lost"])

    fhir.fault = fault
    studies = [generate_uid() for _ in range(STUDIES)]
    series = {study: [generate_uid() for _ in range(2)] for study in studies}
    instances: dict[str, list[tuple[str, str]]] = {study: [] for study in studies}
    stop = threading.Event()

    def follow() -> None:
        while not stop.is_set():
            in_step(server)
            time.sleep(0.1)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        for _ in range(3 * STUDIES):
            _change(server, dice, studies, series, instances)
    finally:
        stop.set()
        follower.join()
    synchronise(server, max(120, STUDIES))
    while failed := rows(server, "TransientFailureExceptionTable"):
        _ask_for_retry(server, failed)
        synchronise(server, max(120, STUDIES))
    assert fhir.faults > STUDIES / 4
    ended = state(fhir)
    assert set(ended) == {f"urn:oid:{study}" for study in studies if instances[study]}
    for study in studies:
        if instances[study]:
            told = ended[f"urn:oid:{study}"]["series"]
            assert sorted((s["uid"], i["uid"]) for s in told for i in s["instance"]) == sorted(
                instances[study]
            )
    fhir.clear()
    start_again(server)
    synchronise(server, max(120, STUDIES))
    fresh = state(fhir)
    ours = {uid: study for uid, study in fresh.items() if uid in ended}
    assert ours == ended
    assert len({study["subject"]["identifier"][0]["value"] for study in ended.values()}) == len(
        {p["identifier"][0]["value"] for p in fhir.all("Patient") if p["identifier"][0]["value"][:2] == "R-"}
    ), "one Patient a patient"


def _change(
    server: Server,
    dice: random.Random,
    studies: list[str],
    series: dict[str, list[str]],
    instances: dict[str, list[tuple[str, str]]],
) -> None:
    """Store, replace or delete something of a study."""
    study = dice.choice(studies)
    there = instances[study]
    action = dice.choice(["store", "store", "store", "replace", "instance", "series", "study"])
    if action == "store" or not there:
        new = [(dice.choice(series[study]), generate_uid()) for _ in range(dice.randint(1, 3))]
        store(server, *[_file(dice, study, *one) for one in new])
        there += new
    elif action == "replace":
        store(server, _file(dice, study, *dice.choice(there)), method="PUT")
    elif action == "instance":
        one = there.pop(dice.randrange(len(there)))
        delete(server, f"studies/{study}/series/{one[0]}/instances/{one[1]}")
    elif action == "series":
        gone = dice.choice(there)[0]
        instances[study] = [one for one in there if one[0] != gone]
        delete(server, f"studies/{study}/series/{gone}")
    else:
        instances[study] = []
        delete(server, f"studies/{study}")


def _file(dice: random.Random, study: str, series: str, instance: str) -> bytes:
    return make_file(
        study,
        series,
        instance,
        frames=0,
        PatientID=f"R-{hash(study) % (STUDIES // 3 + 1)}",
        PatientName=f"Family{dice.randrange(5)}^Given",
        PatientSex=dice.choice("MFO"),
        PatientBirthDate=f"19{dice.randint(10, 99)}0101",
        StudyDescription=f"description {dice.randrange(9)}",
        SeriesNumber=dice.randrange(9),
        AccessionNumber=dice.choice(["A-1", "A-2", None]),
    )


def _ask_for_retry(server: Server, failed: list[dict[str, Any]]) -> None:
    connection = server.environment["AzureWebJobsStorage"]
    with TableClient.from_connection_string(connection, "TransientFailureExceptionTable") as client:
        for row in failed:
            client.update_entity({**row, "Retry": True}, UpdateMode.MERGE)
