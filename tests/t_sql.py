"""Holds every statement that the tests run in their own process to be T-SQL, as far as sqlglot knows it.

What is executed on SQLite is compiled for SQL Server, once for each form, and parsed; a test that runs one
that is not T-SQL fails there.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
import sqlglot
from sqlalchemy.dialects import mssql

_DIALECT = mssql.dialect()  # type: ignore[no-untyped-call]
_DIALECT._supports_offset_fetch = True  # SQL Server 2012 and later
_ELSEWHERE = re.compile(r"\b(LIMIT|USING|RETURNING|ON CONFLICT|REPLACE INTO|json_each)\b")

CHECKED = (sa.Select, sa.CompoundSelect, sa.Insert, sa.Update, sa.Delete)
"""What is looked at: not text, and no definitions of tables."""

_seen: set[Any] = set()


def watch() -> None:
    """Look at every statement of every engine from now on."""
    sa.event.listen(sa.Engine, "before_execute", _look)


def _look(_connection: Any, statement: Any, several: Any, parameters: Any, _options: Any) -> None:
    if not isinstance(statement, CHECKED):
        return
    given = parameters or (several[0] if several else {})
    names = list(given[0] if isinstance(given, list | tuple) else given)
    cached = statement._generate_cache_key()
    form = (cached.key, tuple(names)) if cached else None
    if form is None or form not in _seen:
        check(compiled(statement, names))
        _seen.add(form)


def compiled(statement: Any, names: list[str] | None = None) -> str:
    """A statement as SQL Server gets it."""
    options = {"render_postcompile": True}
    return str(statement.compile(dialect=_DIALECT, column_keys=names or None, compile_kwargs=options))


def check(sql: str) -> None:
    """AssertionError where ``sql`` is no T-SQL."""
    (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
    assert parsed is not None, sql
    assert parsed.find(sqlglot.exp.Command) is None, sql
    assert not _ELSEWHERE.search(sql), sql
