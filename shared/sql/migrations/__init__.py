"""Schema versions by Alembic; the database is brought up to date when a process first uses it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from shared.errors import DependencyUnavailable

if TYPE_CHECKING:
    from shared.sql.engine import Database

HEAD = "0006"
"""The revision the code expects; a test holds it equal to the newest in ``versions/``."""

LOCK = (
    "SET NOCOUNT ON; DECLARE @granted INT; "
    "EXEC @granted = sp_getapplock @Resource = 'dicom-migrate', @LockMode = 'Exclusive', "
    "@LockOwner = 'Transaction', @LockTimeout = 20000; SELECT @granted"
)
"""The lock of whoever upgrades, held by the transaction; a refusal is a negative number, no error."""


def migrate(database: Database) -> None:
    """Upgrade to :data:`HEAD`; concurrent callers upgrade once.

    A database that is newer than the code is used as it is (a rolling deployment).
    """
    with database.engine.connect() as connection:
        if _revision(connection) >= HEAD:
            return
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.connection.timeout = 0  # type: ignore[attr-defined]  # an index may take its time
            if connection.exec_driver_sql(LOCK).scalar_one() < 0:
                raise DependencyUnavailable("The SQL database is being upgraded; try again later.")
        if _revision(connection) < HEAD:
            _upgrade(connection)
        connection.commit()


def _revision(connection: sa.Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or ""


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
