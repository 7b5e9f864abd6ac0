"""Schema versions by Alembic; the database is brought up to date when a process first uses it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from shared.errors import DependencyUnavailable

if TYPE_CHECKING:
    from shared.sql.engine import Database

log = logging.getLogger(__name__)

HEAD = "0006"
"""The revision the code expects; a test holds it equal to the newest in ``versions/``."""

LOCK = (
    "SET NOCOUNT ON; DECLARE @granted INT; "
    "EXEC @granted = sp_getapplock @Resource = 'dicom-migrate', @LockMode = 'Exclusive', "
    "@LockOwner = 'Transaction', @LockTimeout = 20000; SELECT @granted"
)
"""The lock of whoever upgrades, held by the transaction; a refusal is a negative number, no error."""

_databases = sa.table(
    "databases", sa.column("name"), sa.column("is_read_committed_snapshot_on"), schema="sys"
).alias("d")
SNAPSHOT = sa.select(_databases.c.is_read_committed_snapshot_on).where(_databases.c.name == sa.func.db_name())
"""The setting of this database, which sees its own row whatever its rights. Not by DB_ID(): on Azure SQL that
is another number than the view has ("sys.databases", "DB_ID")."""

READERS_WAIT = (
    "The SQL database has READ COMMITTED SNAPSHOT off: readers and writers wait for each other, and the "
    "results of a statement may be of more than one moment."
)


def migrate(database: Database) -> None:
    """Upgrade to :data:`HEAD`; concurrent callers upgrade once.

    A database that is newer than the code is used as it is (a rolling deployment). One whose readers wait is
    used, too, and the log says so.
    """
    with database.engine.connect() as connection:
        if readers_wait(connection):
            log.warning(READERS_WAIT)
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


def readers_wait(connection: sa.Connection) -> bool:
    """Whether READ COMMITTED SNAPSHOT is off, as it is in a new database of SQL Server but for Azure SQL.

    Nothing is lost then: what must not see the past is read with locks of its own, whatever the setting.
    """
    if connection.dialect.name != "mssql":
        return False
    return connection.execute(SNAPSHOT).scalar() == 0


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
