"""The SQL database: connections, transactions and retries, once for every module of ``shared/sql``.

Work is a plain function that takes a ``Connection``; :meth:`Database.read` and :meth:`Database.write`
run it on a thread, because drivers block and the app's handlers share one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions

from shared import telemetry
from shared.errors import DependencyUnavailable

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_ATTEMPTS = 8
_GIVE_UP_SECONDS = 15.0
_LOGIN_SECONDS = 8
_STATEMENT_SECONDS = 60
"""How long SQL Server may take over one statement; those of an upgrade have no limit."""
_QUEUE_SECONDS = 30.0
"""How long work waits for a thread while all of them are busy."""
# Azure SQL errors worth another try: "Troubleshoot transient connection errors" and deadlocks (1205).
_TRANSIENT = frozenset(
    {926, 1204, 1205, 1222, 233, 4060, 4221, 615, 10928, 10929, 40197, 40501, 40613, 49918, 49919, 49920}
)
_SQLSTATE_NO_LOGIN = ("28000", "IM002", "IM003", "01000")
_SQLSTATE_LOST = ("08001", "08S01", "08003", "08007", "HYT00", "HYT01")


class SnapshotConflict(Exception):
    """What a write read before its transaction is no longer so; the service decides anew."""


class Database:
    """One SQL database behind a SQLAlchemy URL.

    ``sqlite:///path`` is the embedded default (WAL, one writer at a time; ``?timeout=`` seconds to wait for
    the others, 20 without it); ``mssql+pyodbc://`` is Azure SQL or SQL Server.
    """

    def __init__(self, url: str, threads: int = 16, access_token: Callable[[], str] | None = None) -> None:
        """``access_token`` gives one for Azure SQL; each connection of a URL without a user asks for it."""
        self.url = sa.engine.make_url(url)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sql")
        self.engine = _create_engine(self.url, threads, access_token)
        self._migrated = False

    async def read(
        self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work`` on a connection whose changes are discarded.

        Raises DependencyUnavailable when the database cannot be reached in time.
        """
        return await self._run(False, work, *args, **kwargs)

    async def write(
        self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``work`` in one transaction and commit it; the whole of it runs again after a deadlock,
        a unique-key race or a lost connection, a bounded number of times. ``work`` must therefore decide
        everything from what it reads on the connection.
        """
        return await self._run(True, work, *args, **kwargs)

    async def _run(self, write: bool, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        name = getattr(work, "__name__", "").strip("<>")
        with telemetry.dependency(f"sql {name}", **{"db.system.name": self.url.get_backend_name()}):
            future = self._threads.submit(lambda: self.run(write, work, *args, **kwargs))
            return await _begun_in_time(future)

    async def ping(self) -> None:
        """Raise DependencyUnavailable unless the database answers."""
        await self.read(lambda connection: connection.execute(sa.select(1)))

    def run(self, write: bool, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The blocking form of :meth:`read` and :meth:`write`, for commands and tests."""
        started = time.monotonic()
        for attempt in range(_ATTEMPTS):
            try:
                self._migrate_once()
                with self._transaction() if write else self.engine.connect() as connection:
                    return work(connection, *args, **kwargs)
            except (SQLAlchemyError, OSError) as error:
                last = attempt == _ATTEMPTS - 1 or time.monotonic() - started > _GIVE_UP_SECONDS
                if not is_transient(error) and not isinstance(error, IntegrityError):
                    if not _is_away(error):
                        raise
                    last = True
                log.warning("SQL attempt %d failed: %s", attempt + 1, _describe(error))
                if last:
                    raise DependencyUnavailable(
                        "The SQL database is unavailable; try again later."
                    ) from error
                time.sleep(min(2.0, 0.02 * 2**attempt) * (0.5 + random.random()))
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            if self.url.get_backend_name() == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def _migrate_once(self) -> None:
        if not self._migrated:
            from shared.sql.migrations import migrate

            self._make_folder()
            migrate(self)
            self._migrated = True

    def _make_folder(self) -> None:
        path = self.url.database if self.url.get_backend_name() == "sqlite" else None
        if path and path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self._threads.shutdown(wait=False)


async def _begun_in_time(future: Future[T]) -> T:
    """The result of work on a thread; DependencyUnavailable where no thread begins it in time, nor ever."""
    result = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait({result}, timeout=_QUEUE_SECONDS)
    except asyncio.CancelledError:
        result.cancel()  # of no effect where a thread has begun
        raise
    if not done and future.cancel():
        raise DependencyUnavailable("The SQL database is busy; try again later.")
    return await result


def _create_engine(url: sa.URL, threads: int, access_token: Callable[[], str] | None) -> sa.Engine:
    if url.get_backend_name() == "mssql":
        url = _with_driver(url)
    if url.get_backend_name() != "sqlite":
        engine = sa.create_engine(
            url,
            pool_pre_ping=True,
            pool_size=threads,
            max_overflow=0,
            pool_timeout=10,
            hide_parameters=True,
            connect_args={"timeout": _LOGIN_SECONDS},
        )
        sa.event.listen(engine, "checkout", _limit_statements)
        if access_token is not None and not url.username:
            _sign_in_with_tokens(engine, access_token)
        return engine
    engine = sa.create_engine(
        url,
        pool_size=threads,
        max_overflow=0,
        pool_timeout=10,
        hide_parameters=True,
        connect_args={"isolation_level": None} | ({} if "timeout" in url.query else {"timeout": 20}),
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "case_sensitive_like=ON",
            "cache_size=-16000",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


def _limit_statements(connection: Any, _record: Any, _proxy: Any) -> None:
    connection.timeout = _STATEMENT_SECONDS  # an attribute of pyodbc's connections, kept by each cursor


_ACCESS_TOKEN = 1256
"""SQL_COPT_SS_ACCESS_TOKEN of Microsoft's driver ("Using Microsoft Entra ID with the ODBC driver")."""


def _sign_in_with_tokens(engine: sa.Engine, access_token: Callable[[], str]) -> None:
    """Give each new connection an access token, as SQLAlchemy's page on pyodbc says.

    The driver takes it as UTF-16 with its length in front, and no other way of signing in beside it.
    """
    import pyodbc

    pyodbc.pooling = False  # the driver's own pool would hand out connections of expired tokens

    @sa.event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        arguments[0] = arguments[0].replace(";Trusted_Connection=Yes", "")
        token = access_token().encode("utf-16-le")
        options["attrs_before"] = {_ACCESS_TOKEN: struct.pack(f"<I{len(token)}s", len(token), token)}


def _with_driver(url: sa.URL) -> sa.URL:
    """``url`` with a driver this machine has, where it names another: images have version 17 or 18."""
    import pyodbc

    here = sorted(name for name in pyodbc.drivers() if re.fullmatch(r"ODBC Driver \d+ for SQL Server", name))
    named = url.query.get("driver", "")
    if not here or named in here or (isinstance(named, str) and "/" in named):  # "/": a path to a driver
        return url
    return url.update_query_dict({"driver": here[-1]})


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed when tried again."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    text = str(error.orig)
    if "database is locked" in text or "database table is locked" in text:
        return True
    if error.orig is not None and error.orig.args and error.orig.args[0] in _SQLSTATE_LOST:
        return True
    return any(int(number) in _TRANSIENT for number in re.findall(r"\((\d{3,5})\)", text))


def _is_away(error: BaseException) -> bool:
    """Whether a failure that another try does not mend is the database's and not a statement's."""
    if not isinstance(error, DBAPIError) or isinstance(error, sa.exc.OperationalError):
        return True
    arguments = error.orig.args if error.orig is not None else ()
    return bool(arguments) and arguments[0] in _SQLSTATE_NO_LOGIN


def _describe(error: BaseException) -> str:
    """The kind of a failure without statement or parameters, which hold patient data."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return type(error).__name__
    text = str(error.orig)
    kind = text if text.startswith("database ") else " ".join(re.findall(r"\((\d{3,5})\)", text))
    return f"{type(error.orig).__name__} {kind}".rstrip()


class json_values(functions.GenericFunction[Any]):
    """A JSON array given as one parameter, as rows of one column ``value``: an IN list that never grows.

    Compiles to ``json_each`` on SQLite and to ``OPENJSON`` on SQL Server, there with the type and the
    collation of the UID columns, so that their indexes serve the join.
    """

    inherit_cache = True
    name = "json_values"


@compiles(json_values, "sqlite")
def _json_values_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(json_values, "mssql")
def _json_values_mssql(element: Any, compiler: Any, **kw: Any) -> str:
    parameter = compiler.process(element.clauses, **kw)
    # 65: what is longer than every column must not be cut to what one holds. A parameter of more than 4,000
    # characters may arrive as NTEXT, which OPENJSON does not take.
    value = "CAST([value] AS VARCHAR(65)) COLLATE Latin1_General_100_BIN2"
    return f"(SELECT {value} AS [value] FROM OPENJSON(CAST({parameter} AS NVARCHAR(MAX))))"


def uid_table(values: list[str], name: str = "given") -> sa.TableValuedAlias:
    """``values`` (UIDs) as a table of one column, ``value``; one bound parameter however many there are."""
    return json_values(sa.bindparam(None, json.dumps(values), sa.UnicodeText())).table_valued(
        sa.column("value", sa.Text()), name=name
    )
