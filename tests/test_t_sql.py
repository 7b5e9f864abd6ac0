"""What the tests themselves ask databases, and what every part of ``shared/sql`` does, is T-SQL too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.sql import change_feed, instances, partitions, tables
from shared.sql.engine import Database
from tests import audit, t_sql
from tests.conftest import NewSqlUrl

TESTS = Path(__file__).parent
_STATEMENT = re.compile(r"\s*(SELECT [^@]|INSERT INTO \w+ VALUES|UPDATE \w+ SET|DELETE FROM \w+ WHERE)")
_OTHERS = {"audit.py", "test_t_sql.py", "t_sql.py"}


def statements_of_tests() -> list[str]:
    """Every statement given to ``audit.query`` as a literal, and those it has itself."""
    found = [audit._INSTANCES, audit._MISCOUNTED]
    for file in sorted(TESTS.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and _STATEMENT.match(text) and file.name not in _OTHERS:
                found.append(text)
    return found


def test_statements_of_tests_are_t_sql() -> None:
    found = statements_of_tests()
    assert len(found) > 20
    for sql in found:
        t_sql.check(sql)


def test_a_statement_that_is_no_t_sql_fails_where_a_test_runs_it(new_sql_url: NewSqlUrl) -> None:
    database = Database(new_sql_url("dicom"))
    odd = sa.select(sa.literal_column("x FROM y LIMIT 1"))
    with pytest.raises(AssertionError, match="LIMIT"):
        database.run(False, lambda connection: connection.execute(odd))
    database.close()


def test_reads_that_every_server_answers_are_t_sql(new_sql_url: NewSqlUrl) -> None:
    """Those of services no other test runs in its own process; running them is the test."""
    database = Database(new_sql_url("dicom"))

    def reads(connection: sa.Connection) -> None:
        partitions.key_of(connection, "p")
        assert [found.name for found in partitions.find_all(connection)] == ["p"]
        assert partitions.find(connection, "q") is None
        assert change_feed.latest(connection) is None
        assert not instances.any_stored(connection)
        assert instances.known_files(connection, ["v"]) == set()
        assert instances.indexed_files(connection, ["v"]) == set()
        assert instances.committed_files(connection, ["v"]) == set()
        assert instances.due_deletions(connection, "9", 10) == []
        instances.finish_deletions(connection, ["v"])
        instances.postpone_deletions(connection, ["v"], "9")
        assert instances.pack_of_series(connection, "p", "1", "2") is None
        assert instances.find_records(connection, "p", "1", "2", "pack") == []
        assert instances.referenced_bytes(connection, ["pack"]) == {}

    database.run(True, reads)
    database.close()


@pytest.mark.parametrize("table", tables.metadata.sorted_tables, ids=str)
def test_no_table_or_column_needs_another_name_on_sql_server(table: sa.Table) -> None:
    t_sql.check(t_sql.compiled(sa.select(table)))
    t_sql.check(t_sql.compiled(sa.delete(table)))
