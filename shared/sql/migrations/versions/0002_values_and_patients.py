"""Values of sequences, of several values and of query tags; patients; date-times with their instant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0002"
down_revision = "0001"

_BIN2 = "Latin1_General_100_BIN2"


def _code(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(mssql.VARCHAR(length, collation=_BIN2), "mssql")


def _shadow(length: int) -> sa.types.TypeEngine[str]:
    return sa.Unicode(length).with_variant(mssql.NVARCHAR(length, collation=_BIN2), "mssql")


def _json_text() -> sa.types.TypeEngine[str]:
    return sa.Text().with_variant(mssql.NVARCHAR(None, collation=_BIN2), "mssql")


def _key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _index_of_values(column: str) -> None:
    given = sa.text(f"{column} IS NOT NULL")
    op.create_index(
        f"ix_attribute_value_{column}",
        "attribute_value",
        ["partition_key", "attribute", column, "owner_key"],
        unique=False,
        sqlite_where=given,
        mssql_where=given,
    )


def upgrade() -> None:
    op.create_table(
        "attribute_value",
        sa.Column("value_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("study_key", _key(), nullable=False),
        sa.Column("series_key", _key(), nullable=False),
        sa.Column("owner_key", _key(), nullable=False),
        sa.Column("attribute", _code(64), nullable=False),
        sa.Column("item", _code(32), nullable=False),
        sa.Column("text", _shadow(324), nullable=True),
        sa.Column("words", _shadow(332), nullable=True),
        sa.Column("utc", _code(32), nullable=True),
        sa.Column("number", sa.Float(53), nullable=True),
        sa.PrimaryKeyConstraint("value_key", name=op.f("pk_attribute_value")),
    )
    for column in ("text", "number"):
        _index_of_values(column)
    op.create_index(
        "ix_attribute_value_owner",
        "attribute_value",
        ["study_key", "level", "series_key", "owner_key"],
        unique=False,
    )
    op.create_table(
        "patient",
        sa.Column("patient_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("identifier", _shadow(64), nullable=False),
        sa.Column("issuer", _shadow(64), nullable=False),
        sa.Column("attributes", _json_text(), nullable=False),
        sa.Column("patient_name", _shadow(324), nullable=True),
        sa.Column("patient_name_words", _shadow(332), nullable=True),
        sa.Column("patient_id", _shadow(64), nullable=True),
        sa.Column("patient_birth_date", _code(32), nullable=True),
        sa.Column("patient_sex", _shadow(16), nullable=True),
        sa.Column("issuer_of_patient_id", _shadow(64), nullable=True),
        sa.ForeignKeyConstraint(
            ["partition_key"], ["partition.partition_key"], name=op.f("fk_patient_partition_key")
        ),
        sa.PrimaryKeyConstraint("patient_key", name=op.f("pk_patient")),
        sa.UniqueConstraint(
            "partition_key", "identifier", "issuer", name=op.f("uq_patient_partition_key_identifier_issuer")
        ),
    )
    op.create_index("ix_patient_partition_key", "patient", ["partition_key"], unique=False)
    for column in ("patient_name", "patient_id", "patient_birth_date", "patient_sex", "issuer_of_patient_id"):
        op.create_index(f"ix_patient_{column}", "patient", ["partition_key", column], unique=False)
    _add_patient_key()
    op.create_index("ix_study_patient_key", "study", ["patient_key"], unique=False)
    op.add_column("instance", sa.Column("acquisition_date_time_utc", _code(32), nullable=True))
    op.create_index("ix_instance_series_key", "instance", ["series_key"], unique=False)


def _add_patient_key() -> None:
    if op.get_context().dialect.name == "sqlite":  # its ALTER TABLE takes a constraint with the column alone
        op.execute(
            "ALTER TABLE study ADD COLUMN patient_key INTEGER "
            "CONSTRAINT fk_study_patient_key REFERENCES patient (patient_key)"
        )
        return
    op.add_column("study", sa.Column("patient_key", _key(), nullable=True))
    op.create_foreign_key(op.f("fk_study_patient_key"), "study", "patient", ["patient_key"], ["patient_key"])


def downgrade() -> None:
    raise NotImplementedError("Rows of the newer tables would be lost.")
