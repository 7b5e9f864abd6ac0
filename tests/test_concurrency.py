"""Many clients at once, over several worker processes: nothing is lost, miscounted, or left behind."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydicom.uid import generate_uid
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import BlobStore, PackFull
from shared.dicom.identifiers import DEFAULT_PARTITION, Resource
from shared.errors import DependencyUnavailable
from shared.services import change_feed, cleanup, delete, retrieve, store
from shared.settings import settings
from shared.sql import change_feed as feed
from shared.sql import engine
from shared.sql.engine import Database
from tests.audit import (
    _MISCOUNTED,
    HTTP,
    Found,
    assert_whole,
    audit,
    clean,
    delete_everything,
    key_of,
    path_of,
    query,
    run,
    send,
)
from tests.audit import container as in_storage
from tests.conftest import NewSqlUrl, Server, StartServer
from tests.dicom_files import make_file

CLIENTS = 16
NEVER = "0 0 0 1 1 *"


@pytest.fixture(scope="module")
def busy(start_server: StartServer) -> Server:
    """A server with storage of its own, which nobody cleans but the tests."""
    return start_server(
        workers=2, own_storage=True, DICOM_CLEANUP_SCHEDULE=NEVER, DICOM_RECONCILE_SCHEDULE=NEVER
    )


@pytest.fixture(scope="module")
def janitor(busy: Server, start_server: StartServer) -> Server:
    """Another host of the same app without a grace period, for when no store is in flight."""
    shared = {name: busy.environment[name] for name in ("AzureWebJobsStorage", "DICOM_SQL_URL")}
    return start_server(
        workers=1,
        DICOM_ORPHAN_GRACE_SECONDS="0",
        DICOM_BLOB_TRIGGER_SOURCE="EventGrid",
        DICOM_CLEANUP_SCHEDULE=NEVER,
        DICOM_RECONCILE_SCHEDULE=NEVER,
        **shared,
    )


class Follower(threading.Thread):
    """Reads the change feed by Sequence while others write to it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._url = f"{server.v2}/changefeed"
        latest = HTTP.get(f"{self._url}/latest")
        self._seen = latest.json()["Sequence"] if latest.status_code == 200 else 0
        self._ends = threading.Event()
        self.entries: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        last_round = False
        with httpx.Client(timeout=60) as client:
            while True:
                page = client.get(
                    self._url, params={"offset": self._seen, "limit": 7, "includeMetadata": "false"}
                )
                entries = page.raise_for_status().json()
                self.entries += entries
                self._seen = entries[-1]["Sequence"] if entries else self._seen
                if not entries:
                    if last_round:
                        return
                    last_round = self._ends.wait(0.01)

    def finish(self) -> list[dict[str, Any]]:
        """All entries since the start."""
        self._ends.set()
        self.join()
        numbers = [entry["Sequence"] for entry in self.entries]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "missed, twice or out of order"
        return self.entries


def settle(server: Server, janitor: Server) -> Found:
    """Audit the server when nothing is in flight, and leave it empty for the next test."""
    clean(janitor)
    found = audit(server)
    delete_everything(server)
    return found


def related(server: Server, path: str) -> dict[str, Any]:
    """The counts and modalities that a search returns for the one thing under ``path``."""
    (found,) = HTTP.get(f"{server.v2}/{path}").raise_for_status().json()
    tags = {"00201208": "instances", "00201206": "series", "00201209": "instances", "00080061": "modalities"}
    return {name: found[tag]["Value"] for tag, name in tags.items() if tag in found}


def test_sixteen_clients_store_into_one_study_at_once(busy: Server, janitor: Server) -> None:
    study = generate_uid()
    series = {str(generate_uid()): modality for modality in ("CT", "MR", "US", "SR")}
    shared = make_file(study, next(iter(series)), Modality="CT")
    requests: list[list[list[bytes]]] = []
    for number in range(CLIENTS):
        own = [
            make_file(study, uid, Modality=modality)
            for uid, modality in random.Random(number).sample(sorted(series.items()), 3)
            for _ in range(2)
        ]
        requests.append([[*own[:2], shared], own[2:4], own[4:]])
    follower = Follower(busy)
    everybody = threading.Barrier(CLIENTS)

    def client(number: int) -> list[httpx.Response]:
        everybody.wait()
        return [send(busy, *files) for files in requests[number]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        responses = list(pool.map(client, range(CLIENTS)))
    entries = follower.finish()
    first = [answers[0] for answers in responses]
    assert sorted(response.status_code for response in first) == [200] + [202] * (CLIENTS - 1)
    for response in first:
        for failed in response.json().get("00081198", {"Value": []})["Value"]:
            assert failed["00081155"]["Value"] == [key_of(shared).instance]
            assert failed["00081197"]["Value"][0] in (45070, 45071)
    assert {response.status_code for answers in responses for response in answers[1:]} == {200}
    files = [shared, *(f for asked in requests for request in asked for f in request if f is not shared)]
    assert len(entries) == len(files) == 6 * CLIENTS + 1
    assert {entry["SopInstanceUid"] for entry in entries} == {key_of(file).instance for file in files}
    assert related(busy, f"studies?StudyInstanceUID={study}") == {
        "instances": [len(files)],
        "series": [4],
        "modalities": ["CT", "MR", "SR", "US"],
    }
    per_series = Counter(key_of(file).series for file in files)
    for uid, count in per_series.items():
        assert related(busy, f"studies/{study}/series?SeriesInstanceUID={uid}")["instances"] == [count]
    found = settle(busy, janitor)
    assert all(found.files[key_of(file)] == file for file in files)


def test_stores_replacements_deletes_and_clean_ups_of_one_series_go_together(
    busy: Server, janitor: Server
) -> None:
    study, series = generate_uid(), generate_uid()
    stable = [make_file(study, series) for _ in range(3)]
    contested = [make_file(study, series, PatientName="0") for _ in range(2)]
    send(busy, *stable, *contested).raise_for_status()
    kept: list[bytes] = []
    deleted: list[bytes] = []
    ends = time.monotonic() + 4

    def storer() -> None:
        while time.monotonic() < ends:
            files = [make_file(study, series) for _ in range(2)]
            assert patiently(partial(send, busy, *files)) in (200, 409)  # 409: an attempt answered 503 did it
            kept.append(files[0])
            url = busy.v2 + path_of(key_of(files[1]))
            assert patiently(partial(HTTP.delete, url)) in (204, 404)
            deleted.append(files[1])

    def replacer() -> None:
        number = 0
        while time.monotonic() < ends:
            number += 1
            files = [
                make_file(study, series, key_of(old).instance, PatientName=str(number)) for old in contested
            ]
            assert patiently(partial(send, busy, *files, method="PUT")) == 200

    def cleaner() -> None:
        while time.monotonic() < ends:
            assert run(busy, "clean_deleted_instances") == 202

    def reader() -> None:
        while time.monotonic() < ends:
            for file in stable:
                response = HTTP.get(f"{busy.v2}{path_of(key_of(file))}/metadata")
                assert response.status_code == 200, response.text

    follower = Follower(busy)
    with ThreadPoolExecutor(CLIENTS) as pool:
        roles = [storer] * 4 + [replacer] * 2 + [cleaner] * 2 + [reader] * 2
        for role in [pool.submit(role) for role in roles]:
            role.result()
    entries = follower.finish()
    assert len([e for e in entries if e["Action"] == "create"]) == len(kept) + len(deleted)
    assert len([e for e in entries if e["Action"] == "delete"]) == len(deleted) > 4
    assert_whole(busy, stable[0])
    found = settle(busy, janitor)
    for file in (*kept, *stable):
        assert found.files[key_of(file)] == file
    assert {key_of(file) for file in contested} < found.files.keys()
    assert not {key_of(file) for file in deleted} & found.files.keys()


def patiently(request: Callable[[], httpx.Response]) -> int:
    """The status after as many tries as 503 asks for."""
    for _ in range(20):
        response = request()
        if response.status_code != 503:
            return response.status_code
        assert response.headers["Retry-After"]
        time.sleep(0.05)
    raise AssertionError(response.text)


def test_two_hosts_that_write_at_once_keep_the_feed_whole_and_the_counts_exact(
    busy: Server, janitor: Server
) -> None:
    study = generate_uid()
    series = [generate_uid(), generate_uid()]
    files = [make_file(study, series[number % 2]) for number in range(16)]
    follower = Follower(busy)
    hosts = (busy, janitor)
    with ThreadPoolExecutor(8) as pool:
        stored = pool.map(lambda n: patiently(lambda: send(hosts[n // 2 % 2], files[n])), range(len(files)))
        assert list(stored) == [200] * len(files)
        gone = files[:6]
        urls = [f"{hosts[n % 2].v2}{path_of(key_of(file))}" for n, file in enumerate(gone)]
        deleted = pool.map(lambda url: patiently(lambda: HTTP.delete(url)), urls)
        assert list(deleted) == [204] * len(gone)
    entries = [e for e in follower.finish() if e["StudyInstanceUid"] == study]
    assert Counter(e["Action"] for e in entries) == {"create": len(files), "delete": len(gone)}
    assert query(busy, _MISCOUNTED) == []
    (counts,) = query(
        busy,
        "SELECT number_of_series, number_of_instances FROM study WHERE study_instance_uid = ?",
        study,
    )
    assert counts == (2, len(files) - len(gone))
    assert len(settle(busy, janitor).files) == len(files) - len(gone)


# --- one more worker, in this process, where races can be staged -------------------------------------

CACHED = (settings, container.database, container.blob_store, container.table_service, container.state)


@pytest.fixture
async def worker(busy: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """The services in this process, on the storage and the database of the server."""
    for name in ("AzureWebJobsStorage", "DICOM_SQL_URL", "DICOM_CLEANUP_DELAY_SECONDS"):
        monkeypatch.setenv(name, busy.environment[name])
    for cached in CACHED:
        cached.cache_clear()
    yield container.database()
    await container.blob_store().close()
    container.database().close()
    for cached in CACHED:
        cached.cache_clear()


async def put(*files: bytes, replace: bool = False) -> list[store.Outcome]:
    """Store files by the service."""

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def each() -> AsyncIterator[AsyncIterator[bytes]]:
        for data in files:
            yield chunks(data)

    return await store.store(each(), DEFAULT_PARTITION, replace=replace)


async def test_a_full_pack_is_followed_by_another(
    worker: Database, busy: Server, janitor: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    appends: Counter[str] = Counter()
    append = BlobStore.append

    async def limited(self: BlobStore, name: str, data: bytes) -> int:
        if appends[name] >= 5:  # Azure's limit is 50,000
            raise PackFull(name)
        appends[name] += 1
        return await append(self, name, data)

    monkeypatch.setattr(BlobStore, "append", limited)
    study, series = generate_uid(), generate_uid()
    files = [make_file(study, series) for _ in range(16)]
    for file in files[:12]:
        await put(file)
    outcomes = await asyncio.gather(*(put(file) for file in files[12:]))
    assert [outcome.failure for (outcome,) in outcomes] == [None] * 4
    assert len(appends) >= 4
    found = await retrieve.find(Resource(DEFAULT_PARTITION, study, series))
    assert len([d async for d in retrieve.read_metadata(found, "http://server/v2")]) == 16
    current = query(busy, "SELECT metadata_pack FROM series WHERE series_instance_uid = ?", str(series))
    full = next(name for name in appends if current[0][0] in name)
    appends[full] = 5  # the clean-up finds the pack it copies to full
    key = key_of(files[0])
    await delete.delete(Resource(DEFAULT_PARTITION, key.study, key.series, key.instance))
    await cleanup.clean_deleted()
    assert len(settle(busy, janitor).files) == 15


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """``meanwhile(point, do)``: when this process first comes to a fault point, others do something."""

    def arm(point: str, do: Callable[[], object]) -> None:
        armed = [do]

        def reached(name: str) -> None:
            if name == point and armed:
                armed.pop()()

        monkeypatch.setattr(faults, "point", reached)

    return arm


Meanwhile = Callable[[str, Callable[[], object]], None]


class Series:
    """A series of three instances in one pack, and what others do to it by way of the server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.study, self.series = generate_uid(), generate_uid()
        self.files = [self.file(encapsulated=True) for _ in range(3)]
        self.store(*self.files)

    def file(self, **attributes: Any) -> bytes:
        """A new instance, not stored."""
        return make_file(self.study, self.series, **attributes)

    def store(self, *files: bytes) -> None:
        send(self._server, *files).raise_for_status()

    def delete(self, file: bytes) -> None:
        HTTP.delete(self._server.v2 + path_of(key_of(file))).raise_for_status()

    def clean(self) -> None:
        assert run(self._server, "clean_deleted_instances") == 202

    def delete_and_clean(self, *files: bytes) -> None:
        """After it the others' records lie in another pack."""
        for file in files:
            self.delete(file)
        self.clean()


@pytest.fixture
def series(busy: Server) -> Series:
    return Series(busy)


def contents(found: Found) -> set[bytes]:
    return set(found.files.values())


@pytest.mark.parametrize("point", ["store.uploaded", "store.appended"])
async def test_a_store_whose_pack_is_copied_before_its_commit_appends_to_the_new_one(
    worker: Database, busy: Server, janitor: Server, series: Series, meanwhile: Meanwhile, point: str
) -> None:
    kept, doomed, other = series.files
    new = series.file()
    (old_pack,) = query(busy, "SELECT DISTINCT pack FROM instance")
    meanwhile(point, lambda: series.delete_and_clean(doomed))
    (outcome,) = await put(new)
    assert outcome.failure is None
    with in_storage(busy, names.METADATA) as metadata:
        assert old_pack[0] not in str([blob.name for blob in metadata.list_blobs()])
    assert contents(settle(busy, janitor)) == {kept, other, new}


async def test_a_store_whose_series_is_deleted_before_its_commit_begins_it_anew(
    worker: Database, busy: Server, janitor: Server, series: Series, meanwhile: Meanwhile
) -> None:
    new = series.file()
    meanwhile("store.appended", lambda: series.delete_and_clean(*series.files))
    (outcome,) = await put(new)
    assert outcome.failure is None
    assert contents(settle(busy, janitor)) == {new}


async def test_two_stores_that_begin_a_series_share_its_pack(
    worker: Database, busy: Server, janitor: Server, meanwhile: Meanwhile
) -> None:
    mine = make_file()
    theirs = make_file(key_of(mine).study, key_of(mine).series)
    meanwhile("store.pack_created", lambda: send(busy, theirs).raise_for_status())
    (outcome,) = await put(mine)
    assert outcome.failure is None
    (packs,) = query(busy, "SELECT count(DISTINCT pack) FROM instance")
    assert packs == (1,)
    assert contents(settle(busy, janitor)) == {mine, theirs}


@pytest.mark.parametrize("point", ["store.received", "store.uploaded", "store.appended"])
async def test_of_two_stores_of_an_instance_the_later_is_refused_and_leaves_nothing(
    worker: Database, busy: Server, janitor: Server, meanwhile: Meanwhile, point: str
) -> None:
    mine = make_file()
    key = key_of(mine)
    theirs = make_file(key.study, key.series, key.instance, PatientName="Theirs")
    meanwhile(point, lambda: send(busy, theirs).raise_for_status())
    (outcome,) = await put(mine)
    assert outcome.failure == (45070 if point == "store.received" else 45071)
    assert contents(settle(busy, janitor)) == {theirs}


async def test_a_copy_to_a_pack_that_another_clean_up_deletes_is_made_again(
    worker: Database, busy: Server, janitor: Server, series: Series, meanwhile: Meanwhile
) -> None:
    kept, doomed, other = series.files
    passing = series.file()
    series.delete(doomed)

    def others() -> None:
        series.store(passing)  # to the pack that is copied to
        query(busy, "UPDATE deleted_instance SET cleanup_after = '9'")  # leave the first to this process
        series.delete_and_clean(passing)

    meanwhile("cleanup.pack_appended", others)
    await cleanup.clean_deleted()
    assert contents(settle(busy, janitor)) == {kept, other}


@pytest.mark.parametrize("point", ["cleanup.pack_sealed", "cleanup.pack_appended", "cleanup.pack_copied"])
async def test_what_happens_to_a_series_while_its_pack_is_copied_is_not_lost(
    worker: Database, busy: Server, janitor: Server, series: Series, meanwhile: Meanwhile, point: str
) -> None:
    kept, doomed, doomed_too = series.files
    new = series.file()
    series.delete(doomed)
    meanwhile(point, lambda: (series.store(new), series.delete_and_clean(doomed_too)))
    await cleanup.clean_deleted()
    assert contents(settle(busy, janitor)) == {kept, new}


async def test_metadata_that_moves_while_it_is_read_is_read_where_it_went(
    worker: Database, busy: Server, janitor: Server, series: Series
) -> None:
    kept, doomed, other = series.files
    resource = Resource(DEFAULT_PARTITION, series.study, series.series)
    found = [stored for stored in await retrieve.find(resource) if stored.key != key_of(doomed)]
    entries = await worker.read(feed.read, 0, 10**6, None, None)
    entries = [entry for entry in entries if entry.key in (key_of(kept), key_of(other))]
    series.delete_and_clean(doomed)
    documents = [json.loads(d) async for d in retrieve.read_metadata(found, "http://server/v2")]
    assert [d["00080018"]["Value"][0] for d in documents] == [stored.key.instance for stored in found]
    frames = [frame async for frame in retrieve.read_frames(found[0], [1], found[0].transfer_syntax)]
    assert len(frames) == 1
    changes = await change_feed._with_metadata(entries, True)
    assert all(change.metadata for change in changes)
    settle(busy, janitor)


@contextmanager
def lost_answer(worker: Database, meanwhile: Callable[[], object]) -> Iterator[None]:
    """The next transaction is committed, but its answer gets lost; ``meanwhile`` is done before it is
    tried again."""
    transaction = worker._transaction
    lost = False

    @contextmanager
    def losing() -> Iterator[sa.Connection]:
        nonlocal lost
        with transaction() as connection:
            yield connection
        if not lost:
            lost = True
            meanwhile()
            raise OperationalError("COMMIT", {}, Exception("database is locked"))

    worker._transaction = losing  # type: ignore[method-assign]
    yield
    worker._transaction = transaction  # type: ignore[method-assign]
    assert lost


@pytest.mark.parametrize("replace", [False, True])
async def test_a_store_whose_commit_was_not_confirmed_is_committed_once(
    worker: Database, busy: Server, janitor: Server, replace: bool
) -> None:
    file = make_file()
    with lost_answer(worker, lambda: None):
        (outcome,) = await put(file, replace=replace)
    assert outcome.failure is None
    assert_whole(busy, file)
    settle(busy, janitor)


@pytest.mark.parametrize("replace", [False, True])
async def test_an_unconfirmed_store_does_not_bring_back_what_was_deleted_meanwhile(
    worker: Database, busy: Server, janitor: Server, replace: bool
) -> None:
    file = make_file()
    path = path_of(key_of(file))

    def delete_it() -> None:
        HTTP.delete(busy.v2 + path).raise_for_status()

    with lost_answer(worker, delete_it):
        (outcome,) = await put(file, replace=replace)
    assert outcome.failure is None  # it was stored; the delete came after
    assert HTTP.get(f"{busy.v2}{path}/metadata").status_code == 404
    assert key_of(file) not in settle(busy, janitor).files


async def test_an_unconfirmed_replacement_does_not_undo_a_later_one(
    worker: Database, busy: Server, janitor: Server
) -> None:
    key = key_of(make_file())
    first, second, third = (
        make_file(key.study, key.series, key.instance, PatientName=name) for name in ("One", "Two", "Three")
    )
    await put(first)
    with lost_answer(worker, lambda: send(busy, third, method="PUT").raise_for_status()):
        await put(second, replace=True)
    assert_whole(busy, third)
    assert settle(busy, janitor).files[key] == third


# --- retries of SQL ----------------------------------------------------------------------------------


class Deadlock(Exception):
    """As pyodbc shows SQL Server's error 1205."""

    def __init__(self) -> None:
        super().__init__(
            "40001", "[40001] Transaction was deadlocked on lock resources. (1205) (SQLExecDirectW)"
        )


@pytest.fixture
def database(new_sql_url: NewSqlUrl, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(engine.time, "sleep", lambda seconds: None)
    database = Database(new_sql_url("retries"))
    yield database
    database.close()


def failing(error: Exception, times: int) -> tuple[Callable[[sa.Connection], str], list[int]]:
    """Work that raises ``error`` so many times, and the list of its attempts."""
    attempts: list[int] = []

    def work(connection: sa.Connection) -> str:
        attempts.append(1)
        if len(attempts) <= times:
            raise error
        return "done"

    return work, attempts


PASSING = {
    "deadlock": OperationalError("UPDATE", {}, Deadlock()),
    "locked": OperationalError("UPDATE", {}, Exception("database is locked")),
    "unique key": IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed")),
    "connection": OperationalError("SELECT", {}, Exception(), connection_invalidated=True),
}


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING.keys())
def test_a_transaction_that_lost_a_race_runs_again(database: Database, error: Exception) -> None:
    work, attempts = failing(error, 3)
    assert database.run(True, work) == "done"
    assert len(attempts) == 4


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING.keys())
def test_a_transaction_is_not_tried_for_ever(database: Database, error: Exception) -> None:
    work, attempts = failing(error, 1000)
    with pytest.raises(DependencyUnavailable):
        database.run(True, work)
    assert 1 < len(attempts) <= 10


def test_a_wrong_statement_is_not_repeated(database: Database) -> None:
    work, attempts = failing(ProgrammingError("SELEC", {}, Exception("syntax")), 1)
    with pytest.raises(ProgrammingError):
        database.run(True, work)
    assert len(attempts) == 1


def test_a_failed_attempt_leaves_nothing(database: Database) -> None:
    attempts: list[int] = []

    def work(connection: sa.Connection) -> int:
        connection.exec_driver_sql("INSERT INTO partition (partition_name, created) VALUES ('one', '')")
        attempts.append(1)
        if len(attempts) == 1:
            raise PASSING["deadlock"]
        return int(connection.exec_driver_sql("SELECT count(*) FROM partition").scalar_one())

    assert database.run(True, work) == 1


def test_sixteen_workers_prepare_a_new_database_once(new_sql_url: NewSqlUrl) -> None:
    url = new_sql_url("new")
    databases = [Database(url, threads=1) for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        counts = list(
            pool.map(
                lambda d: d.run(False, lambda c: c.exec_driver_sql("SELECT * FROM change_feed").all()),
                databases,
            )
        )
    assert counts == [[]] * CLIENTS
    for database in databases:
        database.close()
