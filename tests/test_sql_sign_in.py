"""Signing in to Azure SQL: what reaches Microsoft's driver."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import sqlalchemy as sa

from shared.errors import DependencyUnavailable
from shared.sql import tables
from shared.sql.engine import Database
from tests import tools

try:
    import pyodbc
except ImportError:  # its wheel needs the system's libodbc
    pyodbc = None

HOST = "mssql+pyodbc://@sql-dicom.database.windows.net:1433/dicom"


@pytest.fixture(autouse=True)
def driver_manager() -> None:
    if pyodbc is None:
        tools.missing("libodbc.so.2 is not installed (Debian's package unixodbc)")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the driver was asked for; it connects to nothing."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def connect(text: str, **options: Any) -> None:
        asked.append((text, options))
        raise pyodbc.OperationalError("HYT00", "[HYT00] Login timeout expired (0) (SQLDriverConnect)")

    monkeypatch.setattr(pyodbc, "connect", connect)
    return asked


def try_to_connect(url: str, **options: Any) -> None:
    database = Database(url, threads=1, **options)
    with pytest.raises(Exception, match="Login timeout"):
        database.engine.connect()
    database.close()


def test_a_url_without_a_user_signs_in_with_an_access_token(
    connections: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = iter(["first-token", "second-token"])
    for expected in ("first-token", "second-token"):
        try_to_connect(f"{HOST}?driver=ODBC+Driver+18+for+SQL+Server", access_token=lambda: next(tokens))
        text, options = connections[-1]
        packed = options["attrs_before"][1256]
        (length,) = struct.unpack_from("<I", packed)
        assert packed[4:].decode("utf-16-le") == expected
        assert length == len(packed) - 4
        assert "Trusted_Connection" not in text
        assert "UID" not in text
        assert "PWD" not in text
        assert "sql-dicom.database.windows.net,1433" in text
    assert pyodbc.pooling is False


def test_a_url_with_a_user_keeps_it(connections: list[tuple[str, dict[str, Any]]]) -> None:
    url = HOST.replace("//@", "//sa:secret@")
    try_to_connect(f"{url}?driver=x", access_token=lambda: pytest.fail("nobody asks for a token"))
    text, options = connections[-1]
    assert "UID=sa" in text
    assert "attrs_before" not in options


@pytest.mark.parametrize(
    ("here", "named", "taken"),
    [
        (["ODBC Driver 17 for SQL Server"], "ODBC+Driver+18+for+SQL+Server", "ODBC Driver 17 for SQL Server"),
        (
            ["ODBC Driver 17 for SQL Server", "ODBC Driver 18 for SQL Server"],
            "ODBC+Driver+17+for+SQL+Server",
            "ODBC Driver 17 for SQL Server",
        ),
        (["ODBC Driver 18 for SQL Server", "SQLite3"], "", "ODBC Driver 18 for SQL Server"),
        (["ODBC Driver 18 for SQL Server"], "/opt/libmsodbcsql-18.so", "/opt/libmsodbcsql-18.so"),
    ],
)
def test_the_driver_is_one_that_the_machine_has(
    connections: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    here: list[str],
    named: str,
    taken: str,
) -> None:
    monkeypatch.setattr(pyodbc, "drivers", lambda: here)
    try_to_connect(f"{HOST}?driver={named}" if named else HOST, access_token=lambda: "token")
    assert f"DRIVER={{{taken}}}" in connections[-1][0]


def test_a_driver_that_is_not_there_is_a_dependency_that_is_away() -> None:
    database = Database("mssql+pyodbc://sa:x@127.0.0.1:1/dicom?driver=/nowhere/libmsodbcsql.so", threads=1)
    with pytest.raises(DependencyUnavailable):
        database.run(False, lambda connection: None)
    database.close()


@pytest.mark.parametrize("state", ["28000", "IM002"])
def test_a_refused_sign_in_is_a_dependency_that_is_away(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    def connect(_text: str, **_options: Any) -> None:
        raise pyodbc.InterfaceError(state, f"[{state}] Login failed for user '<token>'. (18456)")

    monkeypatch.setattr(pyodbc, "connect", connect)
    database = Database(f"{HOST}?driver=x", threads=1)
    with pytest.raises(DependencyUnavailable):
        database.run(False, lambda connection: None)
    database.close()


def test_strings_reach_the_driver_in_the_type_of_their_column() -> None:
    """An NVARCHAR beside a VARCHAR column would keep the server from seeking in its index."""
    database = Database(f"{HOST}?driver=x", threads=1)
    dialect: Any = database.engine.dialect

    def sent(column: sa.Column[Any]) -> Any:
        return column.type.dialect_impl(dialect).get_dbapi_type(dialect.dbapi)

    assert sent(tables.study.c.study_instance_uid) == pyodbc.SQL_VARCHAR
    assert sent(tables.study.c.patient_name) == pyodbc.SQL_WVARCHAR
    assert sent(tables.study.c.attributes) == (pyodbc.SQL_WVARCHAR, 0, 0)
    database.close()


def test_a_missing_driver_or_identity_is_a_dependency_that_is_away() -> None:
    def no_token() -> str:
        raise DependencyUnavailable("No identity.")

    database = Database(f"{HOST}?driver=ODBC+Driver+99+for+SQL+Server", threads=1, access_token=no_token)
    with pytest.raises(DependencyUnavailable):
        database.run(False, lambda connection: None)
    database.close()
