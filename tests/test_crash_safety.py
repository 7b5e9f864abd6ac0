"""What was acknowledged survives, and nothing half-done is left: at every point where a crash can hit.

A fault point is armed in a server that runs (``DICOM_FAULT_FILE``). ``kill`` is SIGKILL to the worker, whose
place another one takes; ``fail`` is a dependency that does not answer. After each the timers run and the
audit counts every byte. Triggers are fired by hand here, so that the tests decide what comes twice.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.uid import generate_uid

from devhost.azurite import connection_string
from shared.blobs import names
from shared.sql.engine import Database
from tests import databases, operations_harness
from tests.audit import (
    HTTP,
    assert_whole,
    audit,
    clean,
    container,
    delete_everything,
    is_stored,
    key_of,
    path_of,
    run,
    send,
)
from tests.conftest import ROOT, Server, StartServer
from tests.dicom_files import make_file
from tests.images import compressed
from tests.tcp_proxy import Proxy

LARGE: dict[str, Any] = {"Rows": 3000, "Columns": 1500, "PixelData": b"\7" * 9_000_000}
"""Attributes of a file that is larger than what goes to storage in one request."""

STORE_POINTS = (
    "store.received",
    "store.uploaded",
    "store.pack_created",
    "store.appended",
    "store.in_transaction",
    "store.committed",
)
REPLACE_POINTS = tuple(point for point in STORE_POINTS if point != "store.pack_created")
DELETE_POINTS = ("delete.started", "delete.in_transaction", "delete.committed")
CLEANUP_POINTS = (
    "cleanup.files_deleted",
    "cleanup.pack_sealed",
    "cleanup.pack_appended",
    "cleanup.pack_copied",
    "cleanup.pack_deleted",
)
CACHE_POINTS = ("cache.writing", "cache.written")
INBOX_POINTS = ("store.committed", "inbox.stored", "inbox.recorded")
INGEST_POINTS = ("store.in_transaction", "ingest.stored_anew", "ingest.recorded")
COMMITTED = ("store.committed", "delete.committed")
TESTED = {
    *STORE_POINTS,
    *DELETE_POINTS,
    *CLEANUP_POINTS,
    *CACHE_POINTS,
    *INBOX_POINTS,
    *INGEST_POINTS,
    "store.blocks_committed",
    *operations_harness.POINTS,  # by the tests of operations
    *operations_harness.UPDATE_POINTS,  # by the tests of updates
    "workitem_events.committed",  # by the tests of subscriptions
    "export.secret_saved",  # these by the tests of exports and imports
    "export.files_written",
    "export.log_written",
    "import.secret_saved",
    "import.stored",
    "import.recorded",
    "import.sources_deleted",
    # tests/test_events.py
    "events.published",
    "follower.delivered",
    "follower.saved",
    # tests/test_fhir.py
    "fhir.read",
    "fhir.written",
}


class FaultyServer:
    """A server with storage of its own, and the file that arms its fault points."""

    def __init__(self, server: Server, faults: Path) -> None:
        self.server = server
        self._faults = faults

    def arm(self, point: str, mode: str) -> None:
        self._faults.write_text(f"{point}:{mode}")

    def assert_fired(self) -> None:
        assert self._faults.read_text() == "", "the fault point was not reached"

    def wait_until_fired(self) -> None:
        """For a point that is reached after the answer."""
        deadline = time.monotonic() + 20
        while self._faults.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assert_fired()

    def call(self, function: str, blob: str = "") -> int:
        """The status of running a timer or a blob function; 0 when the worker died of it."""
        try:
            return run(self.server, function, blob)
        except httpx.TransportError:
            return 0


@pytest.fixture(scope="module")
def faulty(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    folder = tmp_path_factory.mktemp("faults")
    with databases.new(folder / "dicom.db") as sql_url:
        if sql_url.startswith("sqlite"):
            sql_url += "?timeout=0.3"
        yield _faulty(start_server, folder, sql_url)


def _faulty(start_server: StartServer, folder: Path, sql_url: str) -> FaultyServer:
    faults = folder / "armed"
    faults.write_text("")
    server = start_server(
        workers=2,
        own_storage=True,
        DICOM_FAULT_FILE=str(faults),
        DICOM_SQL_URL=sql_url,
        DICOM_ORPHAN_GRACE_SECONDS="0",
        DICOM_BLOB_TRIGGER_SOURCE="EventGrid",
        DICOM_CLEANUP_SCHEDULE="0 0 0 1 1 *",
        DICOM_RECONCILE_SCHEDULE="0 0 0 1 1 *",
    )
    return FaultyServer(server, faults)


@pytest.fixture(autouse=True)
def _everything_adds_up_afterwards(faulty: FaultyServer) -> Iterator[None]:
    yield
    clean(faulty.server)
    audit(faulty.server)
    delete_everything(faulty.server)


def attempt(request: Callable[[], httpx.Response]) -> httpx.Response | None:
    """The response, None where the worker died; a failure must be a 503 that says when to try again."""
    try:
        response = request()
    except httpx.TransportError:
        return None
    if response.status_code >= 500:
        assert response.status_code == 503, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
        assert int(response.headers["Retry-After"]) > 0
    return response


def test_every_fault_point_is_tested() -> None:
    sources = [path.read_text() for path in (ROOT / "shared").rglob("*.py")]
    points = {point for source in sources for point in re.findall(r'faults\.point\("(.+?)"\)', source)}
    assert points == TESTED


# --- store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", STORE_POINTS)
def test_a_store_that_is_cut_off_leaves_whole_instances_or_none(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    study, series = generate_uid(), generate_uid()
    before = make_file(study, series)
    send(faulty.server, before).raise_for_status()
    conflicting = make_file(study, series, key_of(before).instance, PatientName="Other^Name")
    same_series, new_series = make_file(study, series), make_file(study)
    faulty.arm(point, mode)
    response = attempt(lambda: send(faulty.server, conflicting, same_series, new_series))
    faulty.assert_fired()
    assert (response is None) == (mode == "kill")
    clean(faulty.server)
    assert_whole(faulty.server, before)
    outcomes = [is_stored(faulty.server, file) for file in (same_series, new_series)]
    if point == "store.received":
        assert outcomes == [False, False]
    elif point in COMMITTED or (mode == "kill" and point != "store.uploaded"):
        assert outcomes == [True, True]


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", REPLACE_POINTS)
def test_a_replacement_that_is_cut_off_leaves_the_old_instance_or_the_new_one(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    study, series = generate_uid(), generate_uid()
    before = make_file(study, series)
    send(faulty.server, before).raise_for_status()
    after = make_file(study, series, key_of(before).instance, PatientName="Other^Name")
    added = make_file(study, series)
    faulty.arm(point, mode)
    attempt(lambda: send(faulty.server, after, added, method="PUT"))
    faulty.assert_fired()
    clean(faulty.server)
    assert_whole(faulty.server, after if point in COMMITTED else before)
    is_stored(faulty.server, added)


@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_a_large_file_cut_off_after_its_blocks_is_stored_or_not(faulty: FaultyServer, mode: str) -> None:
    small = make_file()
    send(faulty.server, small).raise_for_status()
    key = key_of(small)
    conflicting = make_file(key.study, key.series, key.instance, **LARGE)
    faulty.arm("store.blocks_committed", mode)
    attempt(lambda: send(faulty.server, conflicting))
    faulty.assert_fired()
    new = make_file(key.study, key.series, **LARGE)
    faulty.arm("store.blocks_committed", mode)
    attempt(lambda: send(faulty.server, new))
    faulty.assert_fired()
    clean(faulty.server)
    assert_whole(faulty.server, small)
    assert is_stored(faulty.server, new) or mode == "fail"


def test_what_a_client_stored_again_and_deleted_is_not_brought_back_by_the_first_attempt(
    faulty: FaultyServer,
) -> None:
    file = make_file()
    faulty.arm("store.appended", "kill")
    assert attempt(lambda: send(faulty.server, file)) is None
    send(faulty.server, file).raise_for_status()
    HTTP.delete(f"{faulty.server.v2}/studies/{key_of(file).study}").raise_for_status()
    clean(faulty.server)
    assert not is_stored(faulty.server, file)


def test_a_client_that_tries_again_after_a_crash_stores_one_copy(faulty: FaultyServer) -> None:
    file = make_file()
    for point in ("store.uploaded", "store.in_transaction"):
        faulty.arm(point, "kill")
        assert attempt(lambda: send(faulty.server, file)) is None
    assert send(faulty.server, file).status_code == 200
    faulty.call("reconcile_blobs")
    assert send(faulty.server, file).status_code == 409
    assert_whole(faulty.server, file)


# --- delete and clean-up -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", DELETE_POINTS)
def test_a_delete_that_is_cut_off_deletes_all_or_nothing(faulty: FaultyServer, point: str, mode: str) -> None:
    study, series = generate_uid(), generate_uid()
    doomed = [make_file(study, series), make_file(study, series)]
    spared = make_file(study)
    send(faulty.server, *doomed, spared).raise_for_status()
    faulty.arm(point, mode)
    attempt(lambda: HTTP.delete(f"{faulty.server.v2}/studies/{study}/series/{series}"))
    faulty.assert_fired()
    clean(faulty.server)
    assert [is_stored(faulty.server, file) for file in doomed] == [point not in COMMITTED] * 2
    assert_whole(faulty.server, spared)


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", CLEANUP_POINTS)
def test_a_clean_up_that_is_cut_off_is_finished_by_the_next(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    study, series = generate_uid(), generate_uid()
    first, doomed, last = (make_file(study, series) for _ in range(3))
    send(faulty.server, first, doomed).raise_for_status()
    send(faulty.server, last).raise_for_status()
    HTTP.delete(faulty.server.v2 + path_of(key_of(doomed))).raise_for_status()
    faulty.arm(point, mode)
    assert faulty.call("clean_deleted_instances") == (0 if mode == "kill" else 202)
    faulty.assert_fired()
    assert_whole(faulty.server, first)
    later = make_file(study, series)
    send(faulty.server, later).raise_for_status()
    clean(faulty.server)
    for file in (first, last, later):
        assert_whole(faulty.server, file)
    assert not is_stored(faulty.server, doomed)


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", CACHE_POINTS)
def test_a_frame_whose_keeping_is_cut_off_is_served_and_leaves_no_byte_after_a_delete(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    file, pixels = compressed()
    send(faulty.server, file).raise_for_status()
    url = f"{faulty.server.v2}{path_of(key_of(file))}"

    def frame() -> httpx.Response:
        return HTTP.get(f"{url}/frames/1", headers={"Accept": "application/octet-stream"})

    faulty.arm(point, mode)
    first = attempt(frame)  # the frame goes out before it is kept, so the kill may come before or after
    assert first is None or first.content == pixels[0].tobytes()
    faulty.wait_until_fired()
    for _ in range(2):
        answer = attempt(frame) or frame()  # the dead worker may have taken the connection
        assert answer.raise_for_status().content == pixels[0].tobytes()
    HTTP.delete(url).raise_for_status()
    clean(faulty.server)
    assert not is_stored(faulty.server, file)


# --- triggers ----------------------------------------------------------------------------------------


def upload(server: Server, where: str, name: str, data: bytes) -> None:
    """Put a blob into storage, as a user of the storage account does."""
    with container(server, where) as client:
        client.upload_blob(name, data)


def blobs(server: Server, where: str) -> set[str]:
    with container(server, where) as client:
        return {blob.name for blob in client.list_blobs()}


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", INBOX_POINTS)
def test_a_file_of_the_inbox_is_stored_once_or_refused_once_when_its_first_delivery_is_cut_off(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    file = make_file()
    name = f"drop/{point}-{mode}"
    refused = point == "inbox.recorded"
    upload(faulty.server, names.INBOX, name, b"no DICOM file" if refused else file)
    faulty.arm(point, mode)
    assert faulty.call("store_inbox_blob", f"inbox/{name}") == (0 if mode == "kill" else 500)
    faulty.assert_fired()
    assert faulty.call("store_inbox_blob", f"inbox/{name}") == 202
    assert name not in blobs(faulty.server, names.INBOX)
    assert (name in blobs(faulty.server, names.INBOX_FAILED)) == refused
    assert is_stored(faulty.server, file) != refused


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("point", INGEST_POINTS)
def test_a_file_in_dicom_is_indexed_or_refused_when_its_first_delivery_is_cut_off(
    faulty: FaultyServer, point: str, mode: str
) -> None:
    file = make_file()
    name = names.file_name(key_of(file), names.new_version())
    if point == "ingest.recorded":
        name = f"no/proper/name-{mode}"
    preamble = b"MZ".ljust(128) if point == "ingest.stored_anew" else bytes(128)
    upload(faulty.server, names.DICOM, name, preamble + file[128:])
    faulty.arm(point, mode)
    assert faulty.call("index_dicom_blob", f"dicom/{name}") == (0 if mode == "kill" else 500)
    faulty.assert_fired()
    assert faulty.call("index_dicom_blob", f"dicom/{name}") == 202
    clean(faulty.server)
    refused = point == "ingest.recorded"
    assert (name in blobs(faulty.server, names.INBOX_FAILED)) == refused
    assert is_stored(faulty.server, file) != refused


def test_the_inbox_is_emptied_by_the_timer_when_the_trigger_has_given_up(faulty: FaultyServer) -> None:
    file = make_file()
    upload(faulty.server, names.INBOX, "left behind", file)
    upload(faulty.server, names.INBOX, "left behind too", b"no DICOM file")
    faulty.server.run_function("reconcile_blobs")
    assert blobs(faulty.server, names.INBOX) == set()
    assert "left behind too" in blobs(faulty.server, names.INBOX_FAILED)
    assert_whole(faulty.server, file)


# --- everything at once ------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_the_death_of_the_whole_server(faulty: FaultyServer) -> None:
    acknowledged: list[bytes] = []
    deleted: list[bytes] = []
    study = generate_uid()

    def store_until_it_dies() -> None:
        series = generate_uid()
        try:
            while True:
                files = [make_file(study, series) for _ in range(3)]
                if send(faulty.server, *files).status_code == 200:
                    acknowledged.extend(files[1:])
                HTTP.delete(faulty.server.v2 + path_of(key_of(files[0]))).raise_for_status()
                deleted.append(files[0])
        except httpx.TransportError:
            return

    clients = [threading.Thread(target=store_until_it_dies) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(1.5)
    faulty.server.kill()
    for client in clients:
        client.join()
    faulty.server.restart()
    clean(faulty.server)
    found = audit(faulty.server)
    assert len(acknowledged) >= 8
    for file in acknowledged:
        assert found.files[key_of(file)] == file
    assert not {key_of(file) for file in deleted} & found.files.keys()
    assert_whole(faulty.server, acknowledged[-1])


# --- dependencies that are away ----------------------------------------------------------------------


@pytest.fixture
def proxy(faulty: FaultyServer) -> Iterator[Proxy]:
    """Blob Storage behind a proxy that can be switched off."""
    direct = faulty.server.environment["AzureWebJobsStorage"]
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", direct)]
    with Proxy(ports[0]) as running:
        faulty.server.restart(AzureWebJobsStorage=connection_string((running.port, ports[1], ports[2])))
        yield running
    faulty.server.restart(AzureWebJobsStorage=direct)


def test_without_blob_storage_nothing_is_lost_and_the_service_resumes(
    faulty: FaultyServer, proxy: Proxy
) -> None:
    study, series = generate_uid(), generate_uid()
    before, *during, after = (make_file(study, series) for _ in range(4))
    send(faulty.server, before).raise_for_status()
    for file, mode in zip(during, ("refuse", "lose_answers"), strict=True):
        proxy.mode = mode
        statuses = at_once(
            lambda file=file: send(faulty.server, file),
            lambda: HTTP.get(f"{faulty.server.v2}{path_of(key_of(before))}"),
            lambda: HTTP.get(f"{faulty.server.v2}/studies/{study}/metadata"),
        )
        assert statuses == [503] * 3
    assert HTTP.get(f"{faulty.server.v2}/studies", params={"StudyInstanceUID": study}).status_code == 200
    proxy.mode = "pass"
    assert send(faulty.server, after).status_code == 200
    clean(faulty.server)
    assert_whole(faulty.server, before)
    assert_whole(faulty.server, after)
    for file in during:
        is_stored(faulty.server, file)


def test_without_sql_nothing_is_lost_and_the_service_resumes(faulty: FaultyServer) -> None:
    if databases.NOT_SQLITE:
        pytest.skip("locks a whole database, which SQLite alone does; test_sql_away.py cuts the connection")
    before, during = make_file(), make_file()
    send(faulty.server, before).raise_for_status()
    with Database(faulty.server.environment["DICOM_SQL_URL"]).engine.connect() as lock:
        lock.exec_driver_sql("BEGIN EXCLUSIVE")
        statuses = at_once(
            lambda: send(faulty.server, during),
            lambda: HTTP.delete(f"{faulty.server.v2}/studies/{key_of(before).study}"),
        )
        assert statuses == [503] * 2
    assert send(faulty.server, during).status_code == 200
    clean(faulty.server)
    assert_whole(faulty.server, before)
    assert_whole(faulty.server, during)


def at_once(*requests: Callable[[], httpx.Response]) -> list[int]:
    """The statuses of requests sent at the same time."""
    with ThreadPoolExecutor(len(requests)) as pool:
        responses = list(pool.map(attempt, requests))
    return [response.status_code for response in responses if response is not None]


def test_a_database_that_cannot_be_opened_gives_503(start_server: StartServer, tmp_path: Path) -> None:
    with_folder = start_server(workers=1, DICOM_SQL_URL=f"sqlite:///{tmp_path}")
    response = attempt(lambda: HTTP.get(f"{with_folder.v2}/studies"))
    assert response is not None
    assert response.status_code == 503
    with_folder.close()
