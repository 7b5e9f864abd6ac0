"""Workitems, and what of them is matched."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0006"
down_revision = "0005"

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
        "workitem",
        sa.Column("workitem_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("workitem_uid", _code(64), nullable=False),
        sa.Column("state", _code(16), nullable=False),
        sa.Column("transaction_uid", _code(64), nullable=False),
        sa.Column("changed", _code(32), nullable=False),
        sa.Column("data_set", _json_text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["partition_key"], ["partition.partition_key"], name=op.f("fk_workitem_partition_key")
        ),
        sa.PrimaryKeyConstraint("workitem_key", name=op.f("pk_workitem")),
        sa.UniqueConstraint(
            "partition_key", "workitem_uid", name=op.f("uq_workitem_partition_key_workitem_uid")
        ),
    )
    op.create_index("ix_workitem_partition_key", "workitem", ["partition_key", "workitem_key"], unique=False)
    op.create_index("ix_workitem_state", "workitem", ["state", "changed"], unique=False)
    op.create_table(
        "workitem_value",
        sa.Column("value_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("owner_key", _key(), nullable=False),
        sa.Column("attribute", _code(64), nullable=False),
        sa.Column("item", _code(32), nullable=False),
        sa.Column("text", _shadow(324), nullable=False),
        sa.Column("words", _shadow(332), nullable=True),
        sa.Column("utc", _code(32), nullable=True),
        sa.PrimaryKeyConstraint("value_key", name=op.f("pk_workitem_value")),
    )
    op.create_index(
        "ix_workitem_value_text",
        "workitem_value",
        ["partition_key", "attribute", "text", "owner_key"],
        unique=False,
    )
    op.create_index(
        "ix_workitem_value_owner", "workitem_value", ["partition_key", "owner_key", "attribute"], unique=False
    )


def downgrade() -> None:
    raise NotImplementedError("Workitems would be lost.")
