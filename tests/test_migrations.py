"""Schema versions: the revisions lead to ``shared/sql/tables.py``, once, and on SQL Server too."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlglot
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import mssql
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlglot import exp

from shared.errors import DependencyUnavailable
from shared.sql import migrations, tables
from shared.sql.engine import Database
from tests import databases, t_sql
from tests.conftest import NewSqlUrl

ROOT = Path(__file__).resolve().parents[1]
STARTS = 4


@pytest.fixture
def database(new_sql_url: NewSqlUrl) -> Iterator[Database]:
    database = Database(new_sql_url("dicom"))
    yield database
    database.close()


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return ScriptDirectory.from_config(config)


def revision(connection: sa.Connection) -> str:
    return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one())


def test_the_head_constant_is_the_newest_revision() -> None:
    assert scripts().get_heads() == [migrations.HEAD]


def test_revisions_are_numbered_in_a_row() -> None:
    """``migrate`` compares revisions as text."""
    found = [script.revision for script in scripts().walk_revisions()]
    assert sorted(found, reverse=True) == found
    assert {len(revision) for revision in found} == {len(migrations.HEAD)}


def test_an_empty_database_is_upgraded_to_the_tables_of_the_code(database: Database) -> None:
    migrations.migrate(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        assert revision(connection) == migrations.HEAD
        assert connection.execute(sa.select(tables.change_feed_head.c.sequence)).scalars().all() == [0]


def test_a_database_that_cannot_be_made_is_a_failing_dependency(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    impossible = Database(f"sqlite:///{tmp_path / 'file' / 'dicom.db'}")
    with pytest.raises(DependencyUnavailable, match="unavailable"):
        impossible.run(False, lambda connection: None)
    impossible.close()


def test_a_second_start_changes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migrations.migrate(database)

    def upgrade(_connection: sa.Connection) -> None:
        raise AssertionError("upgraded twice")

    monkeypatch.setattr(migrations, "_upgrade", upgrade)
    migrations.migrate(database)


def test_a_database_newer_than_the_code_is_used_as_it_is(database: Database) -> None:
    migrations.migrate(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    migrations.migrate(database)
    with database.engine.connect() as connection:
        assert revision(connection) == "9999"


START = """
import sys
import sqlalchemy as sa
from shared.sql import migrations
from shared.sql.engine import Database
from tests.conftest import NewSqlUrl

upgrade = migrations._upgrade
migrations._upgrade = lambda connection: (upgrade(connection), print("upgraded"))
database = Database(sys.argv[1])
sys.stdin.readline()
database.run(False, lambda connection: connection.execute(sa.text("SELECT count(*) FROM study")).scalar())
print("started")
"""


def upgrade_to(url: str, revision: str) -> None:
    """Leave a database as a former version of the code would."""
    with closing(Database(url, threads=1)) as former, former.engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()


def one_behind() -> str:
    return f"{int(migrations.HEAD) - 1:04d}"


@pytest.mark.parametrize("former", ["", one_behind()])
def test_processes_that_start_at_once_migrate_once(new_sql_url: NewSqlUrl, former: str) -> None:
    url = new_sql_url("dicom")
    if former:
        upgrade_to(url, former)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(STARTS)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * STARTS
    assert all("started" in text for text in said)
    assert sum("upgraded" in text for text in said) == 1


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from shared.sql import migrations
from shared.sql.engine import Database

created = []

def count(connection, cursor, statement, *rest):
    if statement.lstrip().startswith("CREATE"):
        created.append(statement)
        if len(created) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

database = Database(sys.argv[1])
sa.event.listen(database.engine, "after_cursor_execute", count)
migrations.migrate(database)
"""


@pytest.mark.parametrize("former", ["", one_behind()])
def test_a_process_killed_in_the_middle_of_an_upgrade_leaves_it_to_the_next(
    database: Database, former: str
) -> None:
    """Table definitions are part of the transaction, on SQL Server as on SQLite."""
    url = database.url.render_as_string(hide_password=False)
    if former:
        upgrade_to(url, former)
    with database.engine.connect() as connection:
        before = sorted(sa.inspect(connection).get_table_names())
    killed = subprocess.run([sys.executable, "-c", KILLED, url], cwd=ROOT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with database.engine.connect() as connection:
        assert sorted(sa.inspect(connection).get_table_names()) == before
    migrations.migrate(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        assert revision(connection) == migrations.HEAD


# --- SQL Server --------------------------------------------------------------------------------------


def parsed(sql: str) -> exp.Expression:
    (statement,) = sqlglot.parse(sql, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    assert isinstance(statement, exp.Create)
    return statement


def ddl_of_tables() -> dict[str, exp.Expression]:
    """CREATE statements of the tables and indexes for SQL Server, by name."""
    dialect = mssql.dialect()  # type: ignore[no-untyped-call]
    found = {}
    for table in tables.metadata.sorted_tables:
        found[table.name] = parsed(str(CreateTable(table).compile(dialect=dialect)))
        for index in table.indexes:
            found[str(index.name)] = parsed(str(CreateIndex(index).compile(dialect=dialect)))
    return found


def ddl_of_revisions() -> dict[str, exp.Expression]:
    """CREATE statements the revisions run on SQL Server, by name, with what they add to tables later."""
    out = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="mssql", opts={"as_sql": True, "output_buffer": out, "mssql_batch_separator": "GO"}
    )
    with Operations.context(context):
        for script in reversed(list(scripts().walk_revisions())):
            script.module.upgrade()
    found: dict[str, Any] = {}
    for batch in out.getvalue().split("\nGO\n"):
        sql = batch.strip().rstrip(";")
        added = re.fullmatch(r"ALTER TABLE (\w+) ADD (.*)", sql, re.DOTALL)
        if added:
            found[added[1]].this.append(
                "expressions", parsed(f"CREATE TABLE x ({added[2]})").this.expressions[0]
            )
        elif sql.startswith("CREATE"):
            statement = parsed(sql)
            target = statement.this.this if isinstance(statement.this, exp.Schema) else statement.this
            found[str(target.name)] = statement
    return found


def test_every_table_is_valid_t_sql() -> None:
    found = ddl_of_tables()
    assert {table.name for table in tables.metadata.sorted_tables} <= set(found)


def test_the_lock_of_an_upgrade_is_t_sql_and_says_when_it_is_refused() -> None:
    statements = sqlglot.parse(migrations.LOCK, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    assert len(statements) == 4
    assert migrations.LOCK.endswith("SELECT @granted")


def test_the_setting_of_snapshots_is_asked_for_in_t_sql() -> None:
    sql = t_sql.compiled(migrations.SNAPSHOT)
    t_sql.check(sql)
    assert " ".join(sql.split()) == (
        "SELECT d.is_read_committed_snapshot_on FROM sys.databases AS d WHERE d.name = db_name()"
    )


def test_readers_do_not_wait_on_the_servers_that_tests_run_on(database: Database) -> None:
    assert not database.run(False, migrations.readers_wait)


@pytest.mark.skipif(databases.NOT_SQLITE, reason="a server answers for itself")
@pytest.mark.parametrize(("setting", "wait"), [(1, False), (0, True), (None, False)])
def test_a_database_whose_readers_wait_is_used_and_the_log_says_so(
    database: Database, caplog: pytest.LogCaptureFixture, setting: int | None, wait: bool
) -> None:
    migrations.migrate(database)
    caplog.clear()
    databases.pretend_sql_server(database, setting)
    migrations.migrate(database)
    assert [record.getMessage() for record in caplog.records] == [migrations.READERS_WAIT] * wait


def test_identifiers_are_compared_byte_by_byte_on_sql_server() -> None:
    for table in tables.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, sa.String):
                variant = column.type.dialect_impl(mssql.dialect())  # type: ignore[no-untyped-call]
                assert variant.collation == "Latin1_General_100_BIN2", column  # type: ignore[attr-defined]


def test_revisions_make_the_same_tables_on_sql_server() -> None:
    wanted, made = ddl_of_tables(), ddl_of_revisions()
    assert set(made) == set(wanted)
    for name, statement in wanted.items():
        assert _columns(made[name]) == _columns(statement), name


def _columns(statement: exp.Expression) -> set[str]:
    """Columns and constraints of a table, or an index as a whole."""
    schema = statement.this
    return {part.sql("tsql") for part in (schema.expressions if isinstance(schema, exp.Schema) else [schema])}
