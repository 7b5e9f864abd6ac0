"""Bulk updates: originals of updated instances, versions that wait for their study, studies that are done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0003"
down_revision = "0002"

_BIN2 = "Latin1_General_100_BIN2"


def _code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mssql.VARCHAR(length, collation=_BIN2), "mssql")


def _json_text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mssql.NVARCHAR(None, collation=_BIN2), "mssql")


def _key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "original_instance",
        sa.Column("instance_key", _key(), autoincrement=False, nullable=False),
        sa.Column("version", _code(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("transfer_syntax_uid", _code(64), nullable=False),
        sa.Column("number_of_frames", sa.Integer(), nullable=False),
        sa.Column("frame_offset", sa.BigInteger(), nullable=False),
        sa.Column("frame_bits", sa.BigInteger(), nullable=False),
        *_place(),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.instance_key"], name=op.f("fk_original_instance_instance_key")
        ),
        sa.PrimaryKeyConstraint("instance_key", name=op.f("pk_original_instance")),
    )
    op.create_index("ix_original_instance_version", "original_instance", ["version"], unique=False)
    op.create_index("ix_original_instance_pack", "original_instance", ["pack"], unique=False)
    op.create_table(
        "prepared_update",
        sa.Column("version", _code(32), nullable=False),
        sa.Column("operation_id", _code(32), nullable=False),
        sa.Column("partition_name", _code(64), nullable=False),
        sa.Column("study_instance_uid", _code(64), nullable=False),
        sa.Column("series_instance_uid", _code(64), nullable=False),
        sa.Column("sop_instance_uid", _code(64), nullable=False),
        sa.Column("replaces", _code(32), nullable=False),
        *_place(),
        sa.Column("content", _json_text(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_prepared_update")),
    )
    op.create_index(
        "ix_prepared_update_operation_id", "prepared_update", ["operation_id", "replaces"], unique=False
    )
    op.create_index(
        "ix_prepared_update_study_instance_uid", "prepared_update", ["study_instance_uid"], unique=False
    )
    op.create_index("ix_prepared_update_pack", "prepared_update", ["pack"], unique=False)
    op.create_table(
        "updated_study",
        sa.Column("operation_id", _code(32), nullable=False),
        sa.Column("partition_name", _code(64), nullable=False),
        sa.Column("study_instance_uid", _code(64), nullable=False),
        sa.Column("number_of_instances", sa.Integer(), nullable=False),
        sa.Column("committed", _code(32), nullable=False),
        sa.PrimaryKeyConstraint(
            "operation_id", "partition_name", "study_instance_uid", name=op.f("pk_updated_study")
        ),
    )
    op.create_index("ix_updated_study_committed", "updated_study", ["committed"], unique=False)


def _place() -> tuple[sa.Column[str] | sa.Column[int], ...]:
    return (
        sa.Column("pack", _code(32), nullable=False),
        sa.Column("document_offset", sa.BigInteger(), nullable=False),
        sa.Column("document_length", sa.Integer(), nullable=False),
        sa.Column("bulkdata_length", sa.Integer(), nullable=False),
        sa.Column("frames_length", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    for table in ("updated_study", "prepared_update", "original_instance"):
        op.drop_table(table)
