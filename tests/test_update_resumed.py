"""An update that is cut off, comes twice or meets others: the outcome is exact, and no byte is left over.

Steps run in this process, on real storage and a database of their own, so that each test decides where they
end and what happens meanwhile. After each the timers run, and the audit counts every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import sqlglot
from azure.core.exceptions import HttpResponseError
from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy.dialects import mssql

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import BlobNotFound, BlobRange, BlobStore
from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey, Resource
from shared.operations.operation import SUCCEEDED, Operation, Tally, Unfinished
from shared.services import cleanup, delete, ingest, retrieve, store, update
from shared.settings import settings
from tests.audit import Found, audit, key_of, query
from tests.conftest import NewSqlUrl, _Storage
from tests.dicom_files import make_file
from tests.operations_harness import UPDATE_POINTS

CACHED = (
    settings,
    container.database,
    container.blob_store,
    container.table_service,
    container.state,
    update._slots,
    update._studies,
)


class Archive:
    """A server's data without a server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    async def clean(self) -> Found:
        """Run the timers, then compare everything."""
        await ingest.reconcile()
        query(self, "UPDATE deleted_instance SET cleanup_after = ''")
        await cleanup.clean_deleted()
        await ingest.reconcile()
        await cleanup.sweep_packs()
        return await asyncio.to_thread(audit, self)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Storage]:
    with contextlib.closing(_Storage(tmp_path_factory.mktemp("updates"))) as own:
        yield own


@pytest.fixture
async def archive(
    storage: _Storage, new_sql_url: NewSqlUrl, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Archive]:
    environment = {
        "AzureWebJobsStorage": storage.azurite.connection_string,
        "DICOM_SQL_URL": new_sql_url("dicom"),
        "DICOM_ORPHAN_GRACE_SECONDS": "0",
        "DICOM_CLEANUP_DELAY_SECONDS": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for cached in CACHED:
        cached.cache_clear()
    archive = Archive(environment)
    await container.database().ping()
    yield archive
    for (study,) in query(archive, "SELECT study_instance_uid FROM study"):
        await delete.delete(Resource(DEFAULT_PARTITION, study))
    await archive.clean()
    container.database().close()
    await container.blob_store().close()
    await container.table_service().close()
    for cached in CACHED:
        cached.cache_clear()


class Crash(BaseException):
    """What ends a step as if its process had died."""


async def one(file: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        yield file

    yield chunks()


async def keep(*files: bytes, replace: bool = False) -> None:
    for file in files:
        (outcome,) = await store.store(one(file), DEFAULT_PARTITION, replace=replace)
        assert outcome.failure is None, outcome.message


async def begin(study: str, name: str) -> Operation:
    """What an update's request leaves behind for its steps."""
    id = uuid.uuid4().hex
    changes = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}
    body = json.dumps({"studyInstanceUids": [study], "changeDataset": changes}).encode()
    await container.blob_store().upload(names.OPERATIONS, names.changes_name(id), body, {})
    input = {"partition": DEFAULT_PARTITION, "studies": [study]}
    return Operation(id, "update", SUCCEEDED, input, "", "")


async def work(operation: Operation) -> Tally:
    return await update.step(operation, 0, operation.input["studies"])


def crash_at(monkeypatch: pytest.MonkeyPatch, point: str, times: int) -> list[str]:
    """Make the step end at ``point``, the first ``times`` times it comes there; the crashes there were."""
    crashes: list[str] = []

    def reached(name: str) -> None:
        if name == point and len(crashes) < times:
            crashes.append(name)
            raise Crash

    monkeypatch.setattr(faults, "point", reached)
    return crashes


def name_in(file: bytes) -> str:
    return str(dcmread(io.BytesIO(file), stop_before_pixels=True).PatientName)


def updates_in_feed(archive: Archive) -> int:
    return len(query(archive, "SELECT 1 FROM change_feed WHERE action = 'update'"))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", UPDATE_POINTS[1:-1])
async def test_a_step_that_is_cut_off_goes_on(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, point: str, times: int
) -> None:
    monkeypatch.setattr(update, "_BATCH", 2)
    study, series = generate_uid(), generate_uid()
    files = [make_file(study, series) for _ in range(4)] + [make_file(study)]
    await keep(*files)
    operation = await begin(study, "Roe^Richard")
    crashes = crash_at(monkeypatch, point, times)
    while True:
        try:
            tally = await work(operation)
            break
        except Crash:
            found = await retrieve.find(Resource(DEFAULT_PARTITION, study))
            assert len({s.version for s in found}) == len(files)
            await ingest.reconcile()
    assert crashes
    assert tally == Tally(done=1)
    assert await work(operation) == Tally(done=1)
    assert await update.finish(operation, tally) == {"studyUpdated": 1, "instanceUpdated": 5}
    assert await update.finish(operation, tally) == {"studyUpdated": 1, "instanceUpdated": 5}
    assert await work(operation) == Tally(skipped=1)
    found_now = await archive.clean()
    assert [name_in(found_now.files[key_of(file)]) for file in files] == ["Roe^Richard"] * 5
    assert {key: found_now.originals[key] for key in map(key_of, files)} == {key_of(f): f for f in files}
    assert updates_in_feed(archive) == 5


async def test_the_same_step_twice_at_once_updates_once(archive: Archive) -> None:
    study = generate_uid()
    files = [make_file(study) for _ in range(6)]
    await keep(*files)
    operation = await begin(study, "Roe^Richard")
    await asyncio.gather(*(work(operation) for _ in range(3)))
    found = await archive.clean()
    assert {name_in(file) for file in found.files.values()} == {"Roe^Richard"}
    assert found.originals == {key_of(file): file for file in files}
    assert updates_in_feed(archive) == 6


async def test_two_updates_of_a_study_take_turns(archive: Archive) -> None:
    study = generate_uid()
    files = [make_file(study) for _ in range(6)]
    await keep(*files)
    operations = [await begin(study, name) for name in ("First^Name", "Second^Name")]
    await asyncio.gather(*map(work, operations))
    found = await archive.clean()
    assert len({name_in(file) for file in found.files.values()}) == 1
    assert found.originals == {key_of(file): file for file in files}
    assert updates_in_feed(archive) == 12


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Awaitable[object]]) -> None:
    """Do something once, between the preparation and the commit."""
    prepare = update._Run.prepare
    todo = [action]

    async def prepared(run: Any, waiting: Any) -> None:
        await prepare(run, waiting)
        if todo:
            await todo.pop()()

    monkeypatch.setattr(update._Run, "prepare", prepared)


async def test_what_is_stored_meanwhile_changes_with_the_study(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, series = generate_uid(), generate_uid()
    before, same_series, new_series = make_file(study, series), make_file(study, series), make_file(study)
    await keep(before)
    meanwhile(monkeypatch, lambda: keep(same_series, new_series))
    operation = await begin(study, "Roe^Richard")
    assert await work(operation) == Tally(done=1)
    found = await archive.clean()
    assert [name_in(file) for file in found.files.values()] == ["Roe^Richard"] * 3
    assert found.originals == {key_of(file): file for file in (before, same_series, new_series)}


async def test_what_is_replaced_meanwhile_changes_as_it_is_now(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = generate_uid()
    before = make_file(study)
    key = key_of(before)
    after = make_file(study, key.series, key.instance, PatientID="OTHER")
    await keep(before)
    meanwhile(monkeypatch, lambda: keep(after, replace=True))
    assert await work(await begin(study, "Roe^Richard")) == Tally(done=1)
    found = await archive.clean()
    assert dcmread(io.BytesIO(found.files[key])).PatientID == "OTHER"
    assert name_in(found.files[key]) == "Roe^Richard"
    assert found.originals == {key: after}


async def test_what_is_deleted_meanwhile_stays_deleted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = generate_uid()
    gone, stays = make_file(study), make_file(study)
    await keep(gone, stays)
    meanwhile(monkeypatch, lambda: delete.delete(resource(key_of(gone))))
    assert await work(await begin(study, "Roe^Richard")) == Tally(done=1)
    found = await archive.clean()
    assert list(found.files) == [key_of(stays)]


def resource(key: InstanceKey) -> Resource:
    return Resource(key.partition, key.study, key.series, key.instance)


async def test_a_study_deleted_meanwhile_stays_deleted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = generate_uid()
    await keep(make_file(study), make_file(study))
    meanwhile(monkeypatch, lambda: delete.delete(Resource(DEFAULT_PARTITION, study)))
    operation = await begin(study, "Roe^Richard")
    tally = await work(operation)
    assert (tally.done, tally.failed) == (0, 1)
    assert "deleted" in tally.errors[0]
    found = await archive.clean()
    assert found.files == {}
    assert query(archive, "SELECT count(*) FROM deleted_instance") == [(0,)]


async def test_an_instance_that_cannot_change_leaves_its_study_as_it_is(archive: Archive) -> None:
    study = generate_uid()
    files = [make_file(study) for _ in range(3)]
    await keep(*files)
    broken = key_of(files[1])
    ((version,),) = query(archive, "SELECT version FROM instance WHERE sop_instance_uid = ?", broken.instance)
    name = names.file_name(broken, version)
    broken_file = files[1][:500] + b"\xff" * (len(files[1]) - 500)
    await container.blob_store().upload(names.DICOM, name, broken_file, store.OURS)
    operation = await begin(study, "Roe^Richard")
    tally = await work(operation)
    assert (tally.done, tally.failed) == (0, 1)
    assert broken.instance in tally.errors[0]
    assert updates_in_feed(archive) == 0
    await container.blob_store().upload(names.DICOM, name, files[1], store.OURS)
    found = await archive.clean()
    assert sorted(found.files.values()) == sorted(files)
    assert found.originals == {}


async def test_a_large_study_takes_several_runs(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_BATCH", 2)
    monkeypatch.setattr(update, "_RUN_SECONDS", -1)
    study = generate_uid()
    await keep(*(make_file(study) for _ in range(7)))
    operation = await begin(study, "Roe^Richard")
    runs = 0
    versions: set[str] = set()
    while True:
        try:
            tally = await work(operation)
            break
        except Unfinished:
            runs += 1
            prepared = {row[0] for row in query(archive, "SELECT version FROM prepared_update")}
            assert versions < prepared
            versions = prepared
            assert updates_in_feed(archive) == 0
    assert runs == 3
    assert tally == Tally(done=1)
    assert updates_in_feed(archive) == 7


async def test_an_update_that_ends_early_leaves_nothing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = generate_uid()
    files = [make_file(study) for _ in range(3)]
    await keep(*files)
    operation = await begin(study, "Roe^Richard")
    crash_at(monkeypatch, "update.prepared", 1)
    with pytest.raises(Crash):
        await work(operation)
    canceled = Operation(operation.id, "update", "canceled", operation.input, "", "")
    assert await update.finish(canceled, Tally(skipped=1)) == {"studyUpdated": 0, "instanceUpdated": 0}
    found = await archive.clean()
    assert sorted(found.files.values()) == sorted(files)
    assert updates_in_feed(archive) == 0


async def test_every_statement_of_an_updates_life_is_t_sql(archive: Archive) -> None:
    statements: dict[str, sa.ClauseElement] = {}

    def executed(_connection: Any, statement: Any, many: Any, one: Any, _options: Any) -> None:
        if not isinstance(statement, sa.ClauseElement):
            return
        names = list((many or [one])[0])
        dialect = mssql.dialect()  # type: ignore[no-untyped-call]
        dialect._supports_offset_fetch = True  # SQL Server 2012 and later
        options = {"render_postcompile": True}
        compiled = statement.compile(dialect=dialect, column_keys=names or None, compile_kwargs=options)
        statements[str(compiled)] = statement

    study, series = generate_uid(), generate_uid()
    gone, replaced, kept = (make_file(study, series) for _ in range(3))
    await keep(gone, replaced, kept)
    sa.event.listen(container.database().engine, "before_execute", executed)
    first = await begin(study, "First^Name")
    await work(first)
    await update.finish(first, Tally(done=1))
    await work(await begin(study, "Second^Name"))
    await retrieve.find(Resource(DEFAULT_PARTITION, study), original=True)
    await update.forget()
    key = key_of(replaced)
    await keep(make_file(study, series, key.instance, PatientID="OTHER"), replace=True)
    await delete.delete(resource(key_of(gone)))
    found = await archive.clean()
    assert set(found.originals) == {key_of(kept)}
    text = " ".join(statements)
    for table in ("original_instance", "prepared_update", "updated_study"):
        for verb in ("INSERT INTO", "DELETE FROM", "FROM"):
            assert f"{verb} {table}" in text, (verb, table)
    assert "WITH (HOLDLOCK)" in text
    for sql in statements:
        (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
        assert parsed is not None
        assert parsed.find(sqlglot.exp.Command) is None, sql


async def composes(blobs: BlobStore) -> bool:
    """Whether the storage has Put Block From URL; Azurite has from 3.37 on."""
    await blobs.upload(names.INBOX, "probe", b"probe", {})
    url, _ = await blobs._readable(names.INBOX, "probe")
    try:
        client = blobs._container(names.INBOX).get_blob_client("probe")
        await client.stage_block_from_url("MDAwMDAwMDA=", url, 0, 5)
    except HttpResponseError as error:
        if error.status_code != 501:
            raise
        return False
    finally:
        await blobs.delete(names.INBOX, "probe")
    return True


@pytest.mark.parametrize("refused", [False, True])
async def test_storage_composes_a_blob_and_where_it_refuses_the_server_does(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    blobs = container.blob_store()
    source = bytes(range(256)) * 40_000  # 10 MB
    await blobs.upload(names.INBOX, "source", source, {})
    if refused:  # by a URL that nothing authorises

        async def unauthorised(_container: str, name: str) -> tuple[str, dict[str, str]]:
            return blobs._container(names.INBOX).get_blob_client(name).url, {}

        monkeypatch.setattr(blobs, "_readable", unauthorised)
    read = 0
    stream = blobs.stream

    async def counted(*arguments: Any) -> AsyncIterator[bytes]:
        nonlocal read
        async for chunk in stream(*arguments):
            read += len(chunk)
            yield chunk

    monkeypatch.setattr(blobs, "stream", counted)
    ranged = blobs._ranged_reads.read

    async def counted_range(*arguments: Any) -> bytes:
        nonlocal read
        data = await ranged(*arguments)
        read += len(data)
        return data

    monkeypatch.setattr(blobs._ranged_reads, "read", counted_range)
    pieces: list[bytes | BlobRange] = [
        b"head",
        BlobRange("source", 1000, 9_000_000),
        b"tail",
        BlobRange("source", 0, 5),
    ]
    if not refused and not await composes(blobs):
        pytest.skip("this Azurite composes nothing")
    await blobs.compose(names.INBOX, "target", pieces, {"some": "metadata"})
    assert read == (9_000_005 if refused else 0)
    expected = b"head" + source[1000:9_001_000] + b"tail" + source[:5]
    assert await blobs.read(names.INBOX, "target", 0, len(expected)) == expected
    item = await blobs.find(names.INBOX, "target")
    assert (item.size, item.metadata) == (len(expected), {"some": "metadata"})
    with pytest.raises(BlobNotFound):
        await blobs.compose(names.INBOX, "other", [BlobRange("no such blob", 0, 10)], {})
    for name in ("source", "target"):
        await blobs.delete(names.INBOX, name)


async def test_pixel_data_of_a_large_file_does_not_come_through_the_server(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(Rows=2048, Columns=2048, PixelData=bytes(range(256)) * (2048 * 8 * 4))
    assert len(file) > 8_000_000
    await keep(file)
    sent = 0
    stage = container.blob_store().stage_block

    async def staged(container: str, name: str, number: int, data: bytes) -> None:
        nonlocal sent
        sent += len(data)
        await stage(container, name, number, data)

    monkeypatch.setattr(container.blob_store(), "stage_block", staged)
    key = key_of(file)
    assert await work(await begin(key.study, "Roe^Richard")) == Tally(done=1)
    assert sent < 2000 if await composes(container.blob_store()) else sent > 8_000_000
    found = await archive.clean()
    changed = dcmread(io.BytesIO(found.files[key]))
    assert changed.PixelData == dcmread(io.BytesIO(file)).PixelData
    assert changed.PatientName == "Roe^Richard"
    assert found.originals == {key: file}
