"""Adding and deleting extended query tags, cut off at every point: timer and messages bring it to its end.

In this process, on real storage and a real database; ``tests/test_operations_killed.py`` kills servers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import sqlglot
from sqlalchemy.dialects import mssql

from shared import container, faults
from shared.dicom.identifiers import DEFAULT_PARTITION
from shared.errors import DependencyUnavailable
from shared.services import operations, query_tags, reindex, store, tag_deletion, tag_reindex
from shared.settings import settings
from shared.sql import tables as t
from tests.conftest import NewSqlUrl, _Storage
from tests.dicom_files import make_file
from tests.operations_harness import TAG_POINTS, Worker
from tests.test_operations import CACHED

TAG = [{"path": "SliceThickness", "level": "Instance"}, {"path": "MilitaryRank", "level": "Study"}]
COUNT = 5


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Storage]:
    with contextlib.closing(_Storage(tmp_path_factory.mktemp("tags"))) as own:
        yield own


@pytest.fixture
async def worker(
    storage: _Storage, monkeypatch: pytest.MonkeyPatch, new_sql_url: NewSqlUrl
) -> AsyncIterator[Worker]:
    monkeypatch.setenv("AzureWebJobsStorage", storage.azurite.connection_string)
    monkeypatch.setenv("DICOM_SQL_URL", new_sql_url("dicom"))
    monkeypatch.setattr(operations, "_LONGEST_DELAY", 0)
    monkeypatch.setattr(operations, "_BEAT_SECONDS", 0)
    monkeypatch.setattr(operations, "_STALLED_SECONDS", -1)
    for cached in CACHED:
        cached.cache_clear()
    await _store(COUNT)
    worker = Worker(storage.azurite.connection_string)
    yield worker
    await worker.lose()
    await worker.close()
    await container.blob_store().close()
    await container.table_service().close()
    await container.operation_queue().close()
    container.database().close()
    for cached in CACHED:
        cached.cache_clear()


async def _store(count: int) -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def files() -> AsyncIterator[AsyncIterator[bytes]]:
        for number in range(count):
            yield chunks(make_file(SliceThickness=str(number), MilitaryRank="Major"))

    outcomes = await store.store(files(), DEFAULT_PARTITION)
    assert all(outcome.failure is None for outcome in outcomes)


async def _values() -> tuple[list[float], list[str]]:
    """What the tags have: numbers of instances and texts of studies."""
    v = t.attribute_value
    rows = await container.database().read(
        lambda connection: connection.execute(
            sa.select(v.c.number, v.c.text).where(v.c.attribute.like("tag%"))
        ).all()
    )
    numbers = sorted(row.number for row in rows if row.number is not None)
    return numbers, [row.text for row in rows if row.text is not None]


@pytest.mark.parametrize("point", TAG_POINTS)
async def test_adding_and_deleting_tags_come_to_their_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(faults, "_armed", {point: "fail"})
    if point == "query_tags.announced":
        monkeypatch.setattr(tag_reindex, "_MADE_WITHIN", 0)
        with pytest.raises(DependencyUnavailable):
            await query_tags.add(TAG)
        assert await query_tags.listed(100, 0) == []
        await operations.revive()
        await worker.run()
    if point == "query_tags.added":
        with pytest.raises(DependencyUnavailable):
            await query_tags.add(TAG)
        await operations.revive()
    else:
        await query_tags.add(TAG)
    await worker.run()
    described = await query_tags.listed(100, 0)
    assert [(one.tag.status, one.tag.enabled, one.errors) for one in described] == [("Ready", True, 0)] * 2
    assert await _values() == ([float(n) for n in range(COUNT)], ["major"] * COUNT)
    if point == "query_tags.deleting":
        with pytest.raises(DependencyUnavailable):
            await query_tags.delete("SliceThickness")
        await operations.revive()
    else:
        await query_tags.delete("SliceThickness")
    await query_tags.delete("MilitaryRank")
    await worker.run()
    assert not faults._armed
    assert await query_tags.listed(100, 0) == []
    assert await _values() == ([], [])


async def test_a_canceled_reindexing_leaves_tags_that_can_be_deleted(worker: Worker) -> None:
    operation = await query_tags.add(TAG)
    await operations.cancel(operation.id)
    await worker.run()
    assert (await operations.get(operation.id)).status == "canceled"
    assert {one.tag.status for one in await query_tags.listed(100, 0)} == {"Adding"}
    await query_tags.delete("SliceThickness")
    await query_tags.delete("MilitaryRank")
    await worker.run()
    assert await query_tags.listed(100, 0) == []


async def test_a_deletion_that_was_canceled_can_be_asked_for_again(worker: Worker) -> None:
    await query_tags.add(TAG)
    await worker.run()
    await query_tags.delete("SliceThickness")
    tag = (await query_tags.get("SliceThickness")).tag
    await operations.cancel(tag.operation)
    await worker.run()
    assert (await query_tags.get("SliceThickness")).tag.status == "Deleting"
    await query_tags.delete("SliceThickness")
    await worker.run()
    assert [one.tag.path for one in await query_tags.listed(100, 0)] == ["00101080"]


async def test_a_tag_deleted_while_it_is_added_goes(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_deletion, "_MADE_WITHIN", 0)
    await query_tags.add(TAG)
    await query_tags.delete("SliceThickness")
    await worker.run()
    assert [one.tag.path for one in await query_tags.listed(100, 0)] == ["00101080"]
    assert await _values() == ([], ["major"] * COUNT)


async def test_a_rebuilt_index_has_the_tags_and_their_values(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, new_sql_url: NewSqlUrl
) -> None:
    await query_tags.add(TAG)
    await worker.run()
    await query_tags.enable("MilitaryRank", False)
    container.database().close()
    monkeypatch.setenv("DICOM_SQL_URL", new_sql_url("rebuilt"))
    settings.cache_clear()
    container.database.cache_clear()
    assert await reindex.reindex() >= COUNT
    described = await query_tags.listed(100, 0)
    assert [(one.tag.path, one.tag.status, one.tag.enabled) for one in described] == [
        ("00180050", "Ready", True),
        ("00101080", "Ready", False),
    ]
    numbers, texts = await _values()
    assert set(numbers) == {float(n) for n in range(COUNT)}
    assert len(numbers) == len(texts) >= COUNT


async def test_every_statement_of_a_tags_life_is_t_sql(worker: Worker) -> None:
    statements: set[str] = set()

    def executed(_connection: Any, statement: Any, many: Any, one: Any, _options: Any) -> None:
        if isinstance(statement, sa.ClauseElement):
            names = list((many or [one])[0])
            dialect = mssql.dialect()  # type: ignore[no-untyped-call]
            dialect._supports_offset_fetch = True  # SQL Server 2012 and later
            options = {"render_postcompile": True}
            compiled = statement.compile(dialect=dialect, column_keys=names or None, compile_kwargs=options)
            statements.add(str(compiled))

    sa.event.listen(container.database().engine, "before_execute", executed)
    await query_tags.add([*TAG, {"path": "AcquisitionProtocolName", "level": "Series"}])
    await worker.run()
    await query_tags.enable("MilitaryRank", False)
    await query_tags.errors("MilitaryRank", 10, 10)
    await _store(1)
    await query_tags.delete("SliceThickness")
    await worker.run()
    text = " ".join(statements)
    for expected in (
        "UPDATE query_tag_set",
        "INSERT INTO query_tag ",
        "DELETE FROM query_tag ",
        "WITH (HOLDLOCK)",
    ):
        assert expected in text, expected
    for sql in statements:
        (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
        assert parsed is not None
        assert parsed.find(sqlglot.exp.Command) is None, sql
