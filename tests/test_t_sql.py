"""What the tests themselves ask databases, and what every part of ``shared/sql`` does, is T-SQL too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import sqlglot

from tests import audit

TESTS = Path(__file__).parent
_STATEMENT = re.compile(r"\s*(SELECT [^@]|INSERT INTO \w+ VALUES|UPDATE \w+ SET|DELETE FROM \w+ WHERE)")
_OTHERS = {"audit.py", "test_t_sql.py"}


def statements_of_tests() -> list[str]:
    """Every statement given to ``audit.query`` as a literal, and those it has itself."""
    found = [audit._INSTANCES, audit._MISCOUNTED]
    for file in sorted(TESTS.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and _STATEMENT.match(text) and file.name not in _OTHERS:
                found.append(text)
    return found


def parse(sql: str) -> None:
    """Hold ``sql`` to be T-SQL as far as sqlglot knows it."""
    (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
    assert parsed is not None
    assert parsed.find(sqlglot.exp.Command) is None, sql
    assert not re.search(r"\b(LIMIT|USING|RETURNING|REPLACE INTO)\b", sql), sql


def test_statements_of_tests_are_t_sql() -> None:
    found = statements_of_tests()
    assert len(found) > 20
    for sql in found:
        parse(sql)
