"""Extended query tags, what could not be indexed by them, and their values as they are."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0004"
down_revision = "0003"

_BIN2 = "Latin1_General_100_BIN2"


def _code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mssql.VARCHAR(length, collation=_BIN2), "mssql")


def _shadow(length: int) -> sa.types.TypeEngine[str]:
    return sa.Unicode(length).with_variant(mssql.NVARCHAR(length, collation=_BIN2), "mssql")


def _json_text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mssql.NVARCHAR(None, collation=_BIN2), "mssql")


def _key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "query_tag_set",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("last_key", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_query_tag_set")),
    )
    # Versions of a newer database are greater than those of an older one on the same storage.
    version = int(time.time() * 1000)
    op.execute(f"INSERT INTO query_tag_set (id, version, last_key) VALUES (1, {version}, 0)")
    op.create_table(
        "query_tag",
        sa.Column("tag_key", _key(), autoincrement=False, nullable=False),
        sa.Column("path", _code(64), nullable=False),
        sa.Column("vr", _code(2), nullable=False),
        sa.Column("private_creator", _shadow(64), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("status", _code(16), nullable=False),
        sa.Column("enabled", sa.Integer(), nullable=False),
        sa.Column("changed_version", sa.BigInteger(), nullable=False),
        sa.Column("operation", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("tag_key", name=op.f("pk_query_tag")),
        sa.UniqueConstraint("path", name=op.f("uq_query_tag_path")),
    )
    op.create_table(
        "query_tag_error",
        sa.Column("tag_key", _key(), autoincrement=False, nullable=False),
        sa.Column("instance_key", _key(), autoincrement=False, nullable=False),
        sa.Column("series_key", _key(), nullable=False),
        sa.Column("study_key", _key(), nullable=False),
        sa.Column("created", _code(32), nullable=False),
        sa.Column("message", _shadow(200), nullable=False),
        sa.PrimaryKeyConstraint("tag_key", "instance_key", name=op.f("pk_query_tag_error")),
    )
    op.create_index(
        "ix_query_tag_error_study_key",
        "query_tag_error",
        ["study_key", "series_key", "instance_key"],
        unique=False,
    )
    for table in ("study", "series", "instance"):
        op.add_column(table, sa.Column("tag_attributes", _json_text(), nullable=True))
    op.add_column("prepared_update", sa.Column("tag_version", sa.BigInteger(), nullable=True))
    op.add_column("prepared_update", sa.Column("tag_values", _json_text(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("Tags and their values would be lost.")
