"""Initial schema: studies, series, instances, the change feed and the deletions to clean up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mssql

revision = "0001"
down_revision = None

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
        "change_feed",
        sa.Column("sequence", _key(), autoincrement=False, nullable=False),
        sa.Column("timestamp", _code(32), nullable=False),
        sa.Column("action", _code(16), nullable=False),
        sa.Column("partition_name", _code(64), nullable=False),
        sa.Column("study_instance_uid", _code(64), nullable=False),
        sa.Column("series_instance_uid", _code(64), nullable=False),
        sa.Column("sop_instance_uid", _code(64), nullable=False),
        sa.Column("version", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_change_feed")),
    )
    op.create_index("ix_change_feed_timestamp", "change_feed", ["timestamp"], unique=False)
    op.create_index("ix_change_feed_version", "change_feed", ["version"], unique=False)
    op.create_table(
        "change_feed_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_feed_head")),
    )
    op.create_table(
        "deleted_instance",
        sa.Column("version", _code(32), nullable=False),
        sa.Column("partition_name", _code(64), nullable=False),
        sa.Column("study_instance_uid", _code(64), nullable=False),
        sa.Column("series_instance_uid", _code(64), nullable=False),
        sa.Column("sop_instance_uid", _code(64), nullable=False),
        sa.Column("pack", _code(32), nullable=False),
        sa.Column("cleanup_after", _code(32), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_deleted_instance")),
    )
    op.create_index("ix_deleted_instance_cleanup_after", "deleted_instance", ["cleanup_after"], unique=False)
    op.create_table(
        "partition",
        sa.Column("partition_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_name", _code(64), nullable=False),
        sa.Column("created", _code(32), nullable=False),
        sa.PrimaryKeyConstraint("partition_key", name=op.f("pk_partition")),
        sa.UniqueConstraint("partition_name", name=op.f("uq_partition_partition_name")),
    )
    op.create_table(
        "study",
        sa.Column("study_key", _key(), autoincrement=True, nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("study_instance_uid", _code(64), nullable=False),
        sa.Column("number_of_series", sa.Integer(), nullable=False),
        sa.Column("number_of_instances", sa.Integer(), nullable=False),
        sa.Column("modalities_in_study", _shadow(1024), nullable=False),
        sa.Column("attributes", _json_text(), nullable=False),
        sa.Column("patient_name", _shadow(324), nullable=True),
        sa.Column("patient_name_words", _shadow(332), nullable=True),
        sa.Column("patient_id", _shadow(64), nullable=True),
        sa.Column("patient_birth_date", _code(32), nullable=True),
        sa.Column("patient_sex", _shadow(16), nullable=True),
        sa.Column("accession_number", _shadow(64), nullable=True),
        sa.Column("referring_physician_name", _shadow(324), nullable=True),
        sa.Column("referring_physician_name_words", _shadow(332), nullable=True),
        sa.Column("study_date", _code(32), nullable=True),
        sa.Column("study_time", _code(32), nullable=True),
        sa.Column("study_description", _shadow(64), nullable=True),
        sa.Column("study_id", _shadow(64), nullable=True),
        sa.Column("issuer_of_patient_id", _shadow(64), nullable=True),
        sa.ForeignKeyConstraint(
            ["partition_key"], ["partition.partition_key"], name=op.f("fk_study_partition_key")
        ),
        sa.PrimaryKeyConstraint("study_key", name=op.f("pk_study")),
        sa.UniqueConstraint(
            "partition_key", "study_instance_uid", name=op.f("uq_study_partition_key_study_instance_uid")
        ),
    )
    op.create_index("ix_study_accession_number", "study", ["partition_key", "accession_number"], unique=False)
    op.create_index(
        "ix_study_issuer_of_patient_id", "study", ["partition_key", "issuer_of_patient_id"], unique=False
    )
    op.create_index(
        "ix_study_patient_birth_date", "study", ["partition_key", "patient_birth_date"], unique=False
    )
    op.create_index("ix_study_patient_id", "study", ["partition_key", "patient_id"], unique=False)
    op.create_index("ix_study_patient_name", "study", ["partition_key", "patient_name"], unique=False)
    op.create_index("ix_study_patient_sex", "study", ["partition_key", "patient_sex"], unique=False)
    op.create_index(
        "ix_study_referring_physician_name",
        "study",
        ["partition_key", "referring_physician_name"],
        unique=False,
    )
    op.create_index("ix_study_study_date", "study", ["partition_key", "study_date"], unique=False)
    op.create_index(
        "ix_study_study_description", "study", ["partition_key", "study_description"], unique=False
    )
    op.create_index("ix_study_study_id", "study", ["partition_key", "study_id"], unique=False)
    op.create_index("ix_study_study_time", "study", ["partition_key", "study_time"], unique=False)
    op.create_table(
        "series",
        sa.Column("series_key", _key(), autoincrement=True, nullable=False),
        sa.Column("study_key", _key(), nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("series_instance_uid", _code(64), nullable=False),
        sa.Column("number_of_instances", sa.Integer(), nullable=False),
        sa.Column("metadata_pack", _code(32), nullable=False),
        sa.Column("attributes", _json_text(), nullable=False),
        sa.Column("modality", _shadow(16), nullable=True),
        sa.Column("series_number", sa.Integer(), nullable=True),
        sa.Column("series_date", _code(32), nullable=True),
        sa.Column("series_time", _code(32), nullable=True),
        sa.Column("series_description", _shadow(64), nullable=True),
        sa.Column("manufacturer_model_name", _shadow(64), nullable=True),
        sa.Column("performed_procedure_step_start_date", _code(32), nullable=True),
        sa.Column("performed_procedure_step_start_time", _code(32), nullable=True),
        sa.Column("body_part_examined", _shadow(16), nullable=True),
        sa.ForeignKeyConstraint(["study_key"], ["study.study_key"], name=op.f("fk_series_study_key")),
        sa.PrimaryKeyConstraint("series_key", name=op.f("pk_series")),
        sa.UniqueConstraint(
            "study_key", "series_instance_uid", name=op.f("uq_series_study_key_series_instance_uid")
        ),
    )
    op.create_index(
        "ix_series_body_part_examined", "series", ["partition_key", "body_part_examined"], unique=False
    )
    op.create_index(
        "ix_series_manufacturer_model_name",
        "series",
        ["partition_key", "manufacturer_model_name"],
        unique=False,
    )
    op.create_index("ix_series_modality", "series", ["partition_key", "modality"], unique=False)
    op.create_index(
        "ix_series_performed_procedure_step_start_date",
        "series",
        ["partition_key", "performed_procedure_step_start_date"],
        unique=False,
    )
    op.create_index(
        "ix_series_performed_procedure_step_start_time",
        "series",
        ["partition_key", "performed_procedure_step_start_time"],
        unique=False,
    )
    op.create_index("ix_series_series_date", "series", ["partition_key", "series_date"], unique=False)
    op.create_index(
        "ix_series_series_description", "series", ["partition_key", "series_description"], unique=False
    )
    op.create_index(
        "ix_series_series_instance_uid", "series", ["partition_key", "series_instance_uid"], unique=False
    )
    op.create_index("ix_series_series_number", "series", ["partition_key", "series_number"], unique=False)
    op.create_index("ix_series_series_time", "series", ["partition_key", "series_time"], unique=False)
    op.create_index("ix_series_study_key_modality", "series", ["study_key", "modality"], unique=False)
    op.create_table(
        "instance",
        sa.Column("instance_key", _key(), autoincrement=True, nullable=False),
        sa.Column("series_key", _key(), nullable=False),
        sa.Column("study_key", _key(), nullable=False),
        sa.Column("partition_key", _key(), nullable=False),
        sa.Column("sop_instance_uid", _code(64), nullable=False),
        sa.Column("version", _code(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("transfer_syntax_uid", _code(64), nullable=False),
        sa.Column("number_of_frames", sa.Integer(), nullable=False),
        sa.Column("frame_offset", sa.BigInteger(), nullable=False),
        sa.Column("frame_bits", sa.BigInteger(), nullable=False),
        sa.Column("pack", _code(32), nullable=False),
        sa.Column("document_offset", sa.BigInteger(), nullable=False),
        sa.Column("document_length", sa.Integer(), nullable=False),
        sa.Column("bulkdata_length", sa.Integer(), nullable=False),
        sa.Column("frames_length", sa.BigInteger(), nullable=False),
        sa.Column("attributes", _json_text(), nullable=False),
        sa.Column("sop_class_uid", _code(64), nullable=True),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("content_date", _code(32), nullable=True),
        sa.Column("content_time", _code(32), nullable=True),
        sa.Column("acquisition_date_time", _code(32), nullable=True),
        sa.ForeignKeyConstraint(["series_key"], ["series.series_key"], name=op.f("fk_instance_series_key")),
        sa.PrimaryKeyConstraint("instance_key", name=op.f("pk_instance")),
        sa.UniqueConstraint(
            "series_key", "sop_instance_uid", name=op.f("uq_instance_series_key_sop_instance_uid")
        ),
    )
    op.create_index(
        "ix_instance_acquisition_date_time",
        "instance",
        ["partition_key", "acquisition_date_time"],
        unique=False,
    )
    op.create_index("ix_instance_content_date", "instance", ["partition_key", "content_date"], unique=False)
    op.create_index("ix_instance_content_time", "instance", ["partition_key", "content_time"], unique=False)
    op.create_index(
        "ix_instance_instance_number", "instance", ["partition_key", "instance_number"], unique=False
    )
    op.create_index("ix_instance_sop_class_uid", "instance", ["partition_key", "sop_class_uid"], unique=False)
    op.create_index(
        "ix_instance_sop_instance_uid", "instance", ["partition_key", "sop_instance_uid"], unique=False
    )
    op.create_index("ix_study_partition_key", "study", ["partition_key"], unique=False)
    op.create_index("ix_series_partition_key", "series", ["partition_key"], unique=False)
    op.create_index("ix_instance_partition_key", "instance", ["partition_key"], unique=False)
    op.create_index("ix_instance_pack", "instance", ["pack"], unique=False)
    op.create_index("ix_instance_version", "instance", ["version"], unique=False)
    op.create_index("ix_instance_study_key", "instance", ["study_key"], unique=False)
    op.execute("INSERT INTO change_feed_head (id, sequence, timestamp) VALUES (1, 0, '')")


def downgrade() -> None:
    raise NotImplementedError("The first revision has nothing below it.")
