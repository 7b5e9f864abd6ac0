"""Subscriptions to workitems, and the event reports their subscribers get."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0005"
down_revision = "0004"

_BIN2 = "Latin1_General_100_BIN2"


def _code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mssql.VARCHAR(length, collation=_BIN2), "mssql")


def _json_text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mssql.NVARCHAR(None, collation=_BIN2), "mssql")


def _key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "workitem_subscription",
        sa.Column("partition_key", _key(), autoincrement=False, nullable=False),
        sa.Column("workitem_uid", _code(64), nullable=False),
        sa.Column("subscriber", _code(16), nullable=False),
        sa.Column("deletion_lock", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "partition_key", "workitem_uid", "subscriber", name=op.f("pk_workitem_subscription")
        ),
    )
    op.create_index(
        "ix_workitem_subscription_subscriber",
        "workitem_subscription",
        ["partition_key", "subscriber"],
        unique=False,
    )
    op.create_table(
        "worklist_subscription",
        sa.Column("partition_key", _key(), autoincrement=False, nullable=False),
        sa.Column("subscriber", _code(16), nullable=False),
        sa.Column("filtered", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deletion_lock", sa.Integer(), nullable=False),
        sa.Column("filter", _json_text(), nullable=False),
        sa.PrimaryKeyConstraint(
            "partition_key", "subscriber", "filtered", name=op.f("pk_worklist_subscription")
        ),
    )
    op.create_table(
        "workitem_subscriber",
        sa.Column("partition_key", _key(), autoincrement=False, nullable=False),
        sa.Column("subscriber", _code(16), nullable=False),
        sa.Column("last_event_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition_key", "subscriber", name=op.f("pk_workitem_subscriber")),
    )
    op.create_table(
        "workitem_event",
        sa.Column("sequence", _key(), autoincrement=False, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("subscriber", _code(16), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("workitem_uid", _code(64), nullable=False),
        sa.Column("type", sa.Integer(), nullable=False),
        sa.Column("content", _json_text(), nullable=False),
        sa.Column("created", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_workitem_event")),
        sa.UniqueConstraint(
            "partition_key",
            "subscriber",
            "event_id",
            name=op.f("uq_workitem_event_partition_key_subscriber_event_id"),
        ),
    )
    op.create_index("ix_workitem_event_created", "workitem_event", ["created"], unique=False)
    op.create_table(
        "workitem_event_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_event_head")),
    )
    op.execute("INSERT INTO workitem_event_head (id, sequence) VALUES (1, 0)")
    op.create_table(
        "workitem_event_delivery",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("owner", _code(32), nullable=False),
        sa.Column("until", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workitem_event_delivery")),
    )
    op.execute("INSERT INTO workitem_event_delivery (id, sequence, owner, until) VALUES (1, 0, '', '')")


def downgrade() -> None:
    raise NotImplementedError("Subscriptions and their events would be lost.")
