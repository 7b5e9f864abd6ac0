"""New, empty databases for tests: files of SQLite, or databases on the server of ``DICOM_TEST_SQL_URL``.

There its user may create databases (``dbcreator``); each is dropped when its fixture ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from shared.sql.engine import Database

SERVER = os.environ.get("DICOM_TEST_SQL_URL", "")

NOT_SQLITE = bool(SERVER) and not SERVER.startswith("sqlite")
"""Whether what only SQLite does has nothing to run on."""


@contextlib.contextmanager
def new(file: Path, server: str = SERVER) -> Iterator[str]:
    """The URL of a database that does not exist before and, on a server, afterwards.

    ``file`` is that of SQLite where no server is named. A server may itself be a URL of SQLite: files are
    then made beside the one it names.
    """
    if not server:
        yield f"sqlite:///{file}"
        return
    url, name = sa.make_url(server), f"dicom_test_{uuid4().hex}"
    if url.get_backend_name() == "sqlite":
        yield str(url.set(database=str(Path(url.database or "").with_name(f"{name}.db"))))
        return
    _administer(
        url,
        f"CREATE DATABASE {name}",
        f"ALTER DATABASE {name} SET READ_COMMITTED_SNAPSHOT ON",
    )
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(
            url,
            f"ALTER DATABASE {name} SET SINGLE_USER WITH ROLLBACK IMMEDIATE",
            f"DROP DATABASE {name}",
        )


def pretend_sql_server(database: Database, snapshot: int | None) -> None:
    """Have a migrated database of SQLite taken for one of SQL Server, where its setting is asked for: on (1),
    off (0) or not told (None)."""

    @sa.event.listens_for(database.engine, "connect")
    def _answer(connection: Any, _record: Any) -> None:
        connection.create_function("db_name", 0, lambda: "dicom")
        connection.execute("ATTACH ':memory:' AS sys")
        connection.execute("CREATE TABLE sys.databases (name, is_read_committed_snapshot_on)")
        connection.execute("INSERT INTO sys.databases VALUES ('master', 0)")
        if snapshot is not None:
            connection.execute("INSERT INTO sys.databases VALUES ('dicom', ?)", (snapshot,))

    database.engine.dispose()  # connections made before know nothing of it
    database.engine.dialect.name = "mssql"


def _administer(url: sa.URL, *statements: str) -> None:
    with contextlib.closing(
        Database(url.set(database="master").render_as_string(False), threads=1)
    ) as master:
        engine = master.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
