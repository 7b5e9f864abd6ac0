"""The database under load and with text of any script: bounded waits, no value too long for its column."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from shared.dicom import normalise
from shared.dicom.attributes import Level, Matching, indexed
from shared.dicom.indexed_values import indexed_values
from shared.errors import DependencyUnavailable
from shared.sql import engine, instances
from shared.sql.engine import Database
from shared.sql.tables import metadata
from tests.conftest import NewSqlUrl

ASTRAL = "\U00020bb7"
"""A character of a Japanese name that takes two UTF-16 code units."""


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize(
    ("text", "length", "kept"),
    [
        ("abc", 2, "ab"),
        ("abc", 3, "abc"),
        ("äöü", 2, "äö"),
        (ASTRAL * 3, 4, ASTRAL * 2),
        (ASTRAL * 3, 5, ASTRAL * 2),
        ("a" + ASTRAL, 2, "a"),
        (ASTRAL, 1, ""),
        ("", 5, ""),
    ],
)
def test_text_is_cut_by_utf_16_units_between_characters(text: str, length: int, kept: str) -> None:
    assert normalise.cut(text, length) == kept


@pytest.mark.parametrize("level", [Level.STUDY, Level.SERIES, Level.INSTANCE])
def test_columns_hold_no_more_than_sql_server_takes(level: Level) -> None:
    texts = {attribute.keyword: ASTRAL * 400 for attribute in indexed(level)}
    table = {Level.STUDY: "study", Level.SERIES: "series", Level.INSTANCE: "instance"}[level]
    columns = columns_of(table)
    for name, value in instances._columns(level, texts).items():
        if isinstance(value, str) and isinstance(columns[name].type, sa.Unicode):
            assert units(value) <= columns[name].type.length, name
            assert set(value) <= {ASTRAL, " "}, name


def columns_of(table: str) -> dict[str, sa.Column[object]]:
    return {column.name: column for column in metadata.tables[table].columns}


def test_rows_of_values_hold_no_more_than_sql_server_takes() -> None:
    columns = columns_of("attribute_value")
    name = next(
        a
        for level in (Level.STUDY, Level.SERIES, Level.INSTANCE)
        for a in indexed(level)
        if a.matching is Matching.PERSON_NAME
    )
    dataset = {name.tag: {"vr": "PN", "Value": [{"Alphabetic": ASTRAL * 400}]}}
    (row,) = indexed_values(dataset, [name])
    for column, value in (("text", row.text), ("words", row.words)):
        assert value is not None
        assert 0 < units(value) <= columns[column].type.length  # type: ignore[attr-defined]


@pytest.fixture
def one_thread(new_sql_url: NewSqlUrl) -> Iterator[Database]:
    database = Database(new_sql_url("dicom"), threads=1)
    yield database
    database.close()


async def test_work_behind_busy_threads_is_refused_in_time_and_never_done(
    one_thread: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_QUEUE_SECONDS", 0.3)
    busy, release, ran = threading.Event(), threading.Event(), []

    def hold(connection: sa.Connection) -> str:
        busy.set()
        release.wait(30)
        return "held"

    holding = asyncio.create_task(one_thread.write(hold))
    await asyncio.to_thread(busy.wait, 30)
    started = time.monotonic()
    with pytest.raises(DependencyUnavailable, match="busy"):
        await one_thread.write(lambda connection: ran.append(1))
    assert time.monotonic() - started < 5
    release.set()
    assert await holding == "held"  # what a thread has begun is waited for, however long it takes
    assert await one_thread.read(lambda connection: connection.execute(sa.select(1)).scalar()) == 1
    assert ran == []


async def test_work_that_nobody_waits_for_any_more_is_not_begun(one_thread: Database) -> None:
    busy, release, ran = threading.Event(), threading.Event(), []

    def hold(connection: sa.Connection) -> None:
        busy.set()
        release.wait(30)

    holding = asyncio.create_task(one_thread.write(hold))
    await asyncio.to_thread(busy.wait, 30)
    waiting = asyncio.create_task(one_thread.write(lambda connection: ran.append(1)))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await holding
    await one_thread.ping()
    assert ran == []


def test_statements_on_sql_server_have_a_time_limit() -> None:
    pytest.importorskip("pyodbc")
    database = Database("mssql+pyodbc://user:x@127.0.0.1/dicom?driver=ODBC+Driver+18+for+SQL+Server")
    connection = SimpleNamespace()
    database.engine.pool.dispatch.checkout(connection, None, None)  # type: ignore[attr-defined]
    assert connection.timeout == engine._STATEMENT_SECONDS
    database.close()
