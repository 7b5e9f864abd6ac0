"""All SQL tables. Columns of searchable attributes are made from the attribute table.

UIDs and names are compared byte by byte on every engine (``BIN2`` collation on SQL Server); the
shadow columns of searchable attributes hold the forms of ``shared/dicom/normalise.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Unicode,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import mssql
from sqlalchemy.types import TypeEngine

from shared.dicom.attributes import Attribute, Level, Matching, indexed

_BIN2 = "Latin1_General_100_BIN2"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)


def code(length: int) -> TypeEngine[str]:
    """An ASCII string compared byte by byte."""
    return String(length).with_variant(mssql.VARCHAR(length, collation=_BIN2), "mssql")


def shadow(length: int) -> TypeEngine[str]:
    """A normalised Unicode string compared code point by code point."""
    return Unicode(length).with_variant(mssql.NVARCHAR(length, collation=_BIN2), "mssql")


def json_text() -> TypeEngine[str]:
    """DICOM JSON as text; read and written whole, never queried into."""
    return Text().with_variant(mssql.NVARCHAR(None, collation=_BIN2), "mssql")


def key() -> TypeEngine[int]:
    """A surrogate key: 64 bits, and SQLite's rowid there."""
    return BigInteger().with_variant(Integer(), "sqlite")


def _attribute_columns(
    level: Level, table: str, within: tuple[str, ...], patient: bool = False
) -> Iterator[Column[Any] | Index]:
    """Shadow columns of a level's searchable attributes and the indexes that serve them.

    ``patient`` leaves those of the patient.
    """
    for attribute in indexed(level):
        if patient and not attribute.patient:
            continue
        if attribute.matching is Matching.UID and attribute.keyword != "SOPClassUID":
            continue  # part of the table's identity
        yield _attribute_column(attribute)
        if attribute.matching is Matching.DATETIME:
            yield Column(f"{attribute.column}_utc", code(32))
        yield Index(f"ix_{table}_{attribute.column}", *within, attribute.column)
        if attribute.matching is Matching.PERSON_NAME:
            yield Column(f"{attribute.column}_words", shadow(attribute.length + 8))


def _attribute_column(attribute: Attribute) -> Column[Any]:
    return Column(attribute.column, _attribute_type(attribute))


def _attribute_type(attribute: Attribute) -> TypeEngine[Any]:
    if attribute.matching is Matching.NUMBER:
        return Integer()
    if attribute.matching in (Matching.UID, Matching.DATE, Matching.TIME, Matching.DATETIME):
        return code(attribute.column_length)
    return shadow(attribute.column_length)


partition = Table(
    "partition",
    metadata,
    Column("partition_key", key(), primary_key=True, autoincrement=True),
    Column("partition_name", code(64), nullable=False, unique=True),
    Column("created", code(32), nullable=False),
)

patient = Table(
    "patient",
    metadata,
    Column("patient_key", key(), primary_key=True, autoincrement=True),
    Column("partition_key", key(), ForeignKey("partition.partition_key"), nullable=False),
    Column("identifier", shadow(64), nullable=False),
    Column("issuer", shadow(64), nullable=False),
    Column("attributes", json_text(), nullable=False),
    *_attribute_columns(Level.STUDY, "patient", ("partition_key",), patient=True),
    UniqueConstraint("partition_key", "identifier", "issuer"),
    Index("ix_patient_partition_key", "partition_key"),
)
"""Patients that have studies, told apart by PatientID and IssuerOfPatientID as they were stored."""

study = Table(
    "study",
    metadata,
    Column("study_key", key(), primary_key=True, autoincrement=True),
    Column("partition_key", key(), ForeignKey("partition.partition_key"), nullable=False),
    Column("patient_key", key(), ForeignKey("patient.patient_key"), nullable=True),
    Column("study_instance_uid", code(64), nullable=False),
    Column("number_of_series", Integer, nullable=False),
    Column("number_of_instances", Integer, nullable=False),
    Column("modalities_in_study", shadow(1024), nullable=False),
    Column("attributes", json_text(), nullable=False),
    Column("tag_attributes", json_text(), nullable=True),
    *_attribute_columns(Level.STUDY, "study", ("partition_key",)),
    UniqueConstraint("partition_key", "study_instance_uid"),
    Index("ix_study_partition_key", "partition_key"),
    Index("ix_study_patient_key", "patient_key"),
)

series = Table(
    "series",
    metadata,
    Column("series_key", key(), primary_key=True, autoincrement=True),
    Column("study_key", key(), ForeignKey("study.study_key"), nullable=False),
    Column("partition_key", key(), nullable=False),
    Column("series_instance_uid", code(64), nullable=False),
    Column("number_of_instances", Integer, nullable=False),
    Column("metadata_pack", code(32), nullable=False),
    Column("attributes", json_text(), nullable=False),
    Column("tag_attributes", json_text(), nullable=True),
    *_attribute_columns(Level.SERIES, "series", ("partition_key",)),
    UniqueConstraint("study_key", "series_instance_uid"),
    Index("ix_series_partition_key", "partition_key"),
    Index("ix_series_series_instance_uid", "partition_key", "series_instance_uid"),
    Index("ix_series_study_key_modality", "study_key", "modality"),
)

instance = Table(
    "instance",
    metadata,
    Column("instance_key", key(), primary_key=True, autoincrement=True),
    Column("series_key", key(), ForeignKey("series.series_key"), nullable=False),
    Column("study_key", key(), nullable=False),
    Column("partition_key", key(), nullable=False),
    Column("sop_instance_uid", code(64), nullable=False),
    Column("version", code(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("transfer_syntax_uid", code(64), nullable=False),
    Column("number_of_frames", Integer, nullable=False),
    Column("frame_offset", BigInteger, nullable=False),
    Column("frame_bits", BigInteger, nullable=False),
    Column("pack", code(32), nullable=False),
    Column("document_offset", BigInteger, nullable=False),
    Column("document_length", Integer, nullable=False),
    Column("bulkdata_length", Integer, nullable=False),
    Column("frames_length", BigInteger, nullable=False),
    Column("attributes", json_text(), nullable=False),
    Column("tag_attributes", json_text(), nullable=True),
    *_attribute_columns(Level.INSTANCE, "instance", ("partition_key",)),
    UniqueConstraint("series_key", "sop_instance_uid"),
    Index("ix_instance_partition_key", "partition_key"),
    Index("ix_instance_sop_instance_uid", "partition_key", "sop_instance_uid"),
    Index("ix_instance_study_key", "study_key"),
    Index("ix_instance_series_key", "series_key"),
    Index("ix_instance_version", "version"),
    Index("ix_instance_pack", "pack"),
)


def _value_index(column: str) -> Index:
    """An index of the rows that have a value in ``column``, newest owner last."""
    given = text(f"{column} IS NOT NULL")
    columns = ("partition_key", "attribute", column, "owner_key")
    return Index(f"ix_attribute_value_{column}", *columns, sqlite_where=given, mssql_where=given)


attribute_value = Table(
    "attribute_value",
    metadata,
    Column("value_key", key(), primary_key=True, autoincrement=True),
    Column("partition_key", key(), nullable=False),
    Column("level", Integer, nullable=False),
    Column("study_key", key(), nullable=False),
    Column("series_key", key(), nullable=False),
    Column("owner_key", key(), nullable=False),
    Column("attribute", code(64), nullable=False),
    Column("item", code(32), nullable=False),
    Column("text", shadow(324), nullable=True),
    Column("words", shadow(332), nullable=True),
    Column("utc", code(32), nullable=True),
    Column("number", Float(53), nullable=True),
    _value_index("text"),
    _value_index("number"),
    Index("ix_attribute_value_owner", "study_key", "level", "series_key", "owner_key"),
)
"""One row a value of what has several values, is inside a sequence or comes from an extended query tag.

``owner_key`` is the key of the study, series or instance that has it, by ``level``; ``series_key`` is 0 for
values of a study. See ``shared/dicom/indexed_values.py``.
"""

original_instance = Table(
    "original_instance",
    metadata,
    Column("instance_key", key(), ForeignKey("instance.instance_key"), primary_key=True, autoincrement=False),
    Column("version", code(32), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("transfer_syntax_uid", code(64), nullable=False),
    Column("number_of_frames", Integer, nullable=False),
    Column("frame_offset", BigInteger, nullable=False),
    Column("frame_bits", BigInteger, nullable=False),
    Column("pack", code(32), nullable=False),
    Column("document_offset", BigInteger, nullable=False),
    Column("document_length", Integer, nullable=False),
    Column("bulkdata_length", Integer, nullable=False),
    Column("frames_length", BigInteger, nullable=False),
    Index("ix_original_instance_version", "version"),
    Index("ix_original_instance_pack", "pack"),
)
"""The version an instance had before its first update."""

prepared_update = Table(
    "prepared_update",
    metadata,
    Column("version", code(32), primary_key=True),
    Column("operation_id", code(32), nullable=False),
    Column("partition_name", code(64), nullable=False),
    Column("study_instance_uid", code(64), nullable=False),
    Column("series_instance_uid", code(64), nullable=False),
    Column("sop_instance_uid", code(64), nullable=False),
    Column("replaces", code(32), nullable=False),
    Column("pack", code(32), nullable=False),
    Column("document_offset", BigInteger, nullable=False),
    Column("document_length", Integer, nullable=False),
    Column("bulkdata_length", Integer, nullable=False),
    Column("frames_length", BigInteger, nullable=False),
    Column("content", json_text(), nullable=False),
    Column("tag_version", BigInteger, nullable=True),
    Column("tag_values", json_text(), nullable=True),
    Index("ix_prepared_update_operation_id", "operation_id", "replaces"),
    Index("ix_prepared_update_study_instance_uid", "study_instance_uid"),
    Index("ix_prepared_update_pack", "pack"),
)
"""Versions an update has written, which nobody sees before those of the whole study are there."""

updated_study = Table(
    "updated_study",
    metadata,
    Column("operation_id", code(32), primary_key=True),
    Column("partition_name", code(64), primary_key=True),
    Column("study_instance_uid", code(64), primary_key=True),
    Column("number_of_instances", Integer, nullable=False),
    Column("committed", code(32), nullable=False),
    Index("ix_updated_study_committed", "committed"),
)
"""Studies an update is done with, so that a step that runs again does nothing again."""

change_feed = Table(
    "change_feed",
    metadata,
    Column("sequence", key(), primary_key=True, autoincrement=False),
    Column("timestamp", code(32), nullable=False),
    Column("action", code(16), nullable=False),
    Column("partition_name", code(64), nullable=False),
    Column("study_instance_uid", code(64), nullable=False),
    Column("series_instance_uid", code(64), nullable=False),
    Column("sop_instance_uid", code(64), nullable=False),
    Column("version", code(32), nullable=False),
    Index("ix_change_feed_timestamp", "timestamp"),
    Index("ix_change_feed_version", "version"),
)

change_feed_head = Table(
    "change_feed_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("timestamp", code(32), nullable=False),
)

deleted_instance = Table(
    "deleted_instance",
    metadata,
    Column("version", code(32), primary_key=True),
    Column("partition_name", code(64), nullable=False),
    Column("study_instance_uid", code(64), nullable=False),
    Column("series_instance_uid", code(64), nullable=False),
    Column("sop_instance_uid", code(64), nullable=False),
    Column("pack", code(32), nullable=False),
    Column("cleanup_after", code(32), nullable=False),
    Column("retries", Integer, nullable=False),
    Index("ix_deleted_instance_cleanup_after", "cleanup_after"),
)

query_tag_set = Table(
    "query_tag_set",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("last_key", BigInteger, nullable=False),
)
"""One row, which every transaction that writes values of tags holds: see ``shared/sql/query_tags.py``."""

query_tag = Table(
    "query_tag",
    metadata,
    Column("tag_key", key(), primary_key=True, autoincrement=False),
    Column("path", code(64), nullable=False, unique=True),
    Column("vr", code(2), nullable=False),
    Column("private_creator", shadow(64), nullable=False),
    Column("level", Integer, nullable=False),
    Column("status", code(16), nullable=False),
    Column("enabled", Integer, nullable=False),
    Column("changed_version", BigInteger, nullable=False),
    Column("operation", code(32), nullable=False),
)

query_tag_error = Table(
    "query_tag_error",
    metadata,
    Column("tag_key", key(), primary_key=True, autoincrement=False),
    Column("instance_key", key(), primary_key=True, autoincrement=False),
    Column("series_key", key(), nullable=False),
    Column("study_key", key(), nullable=False),
    Column("created", code(32), nullable=False),
    Column("message", shadow(200), nullable=False),
    Index("ix_query_tag_error_study_key", "study_key", "series_key", "instance_key"),
)
"""An instance whose values a tag does not have, and why."""


workitem = Table(
    "workitem",
    metadata,
    Column("workitem_key", key(), primary_key=True, autoincrement=True),
    Column("partition_key", key(), ForeignKey("partition.partition_key"), nullable=False),
    Column("workitem_uid", code(64), nullable=False),
    Column("state", code(16), nullable=False),
    Column("transaction_uid", code(64), nullable=False),
    Column("changed", code(32), nullable=False),
    Column("data_set", json_text(), nullable=False),
    UniqueConstraint("partition_key", "workitem_uid"),
    Index("ix_workitem_partition_key", "partition_key", "workitem_key"),
    Index("ix_workitem_state", "state", "changed"),
)
"""Workitems (PS3.4 Annex CC). The Transaction UID of who has claimed one is no part of its data set."""

workitem_value = Table(
    "workitem_value",
    metadata,
    Column("value_key", key(), primary_key=True, autoincrement=True),
    Column("partition_key", key(), nullable=False),
    Column("owner_key", key(), nullable=False),
    Column("attribute", code(64), nullable=False),
    Column("item", code(32), nullable=False),
    Column("text", shadow(324), nullable=False),
    Column("words", shadow(332), nullable=True),
    Column("utc", code(32), nullable=True),
    Index("ix_workitem_value_text", "partition_key", "attribute", "text", "owner_key"),
    Index("ix_workitem_value_owner", "partition_key", "owner_key", "attribute"),
)
"""What of workitems is matched, one row a value; see ``attribute_value``."""

workitem_subscription = Table(
    "workitem_subscription",
    metadata,
    Column("partition_key", key(), primary_key=True, autoincrement=False),
    Column("workitem_uid", code(64), primary_key=True),
    Column("subscriber", code(16), primary_key=True),
    Column("deletion_lock", Integer, nullable=False),
    Index("ix_workitem_subscription_subscriber", "partition_key", "subscriber"),
)
"""A subscriber, named by its AE title, gets the events of a workitem (PS3.4 §CC.2.3)."""

worklist_subscription = Table(
    "worklist_subscription",
    metadata,
    Column("partition_key", key(), primary_key=True, autoincrement=False),
    Column("subscriber", code(16), primary_key=True),
    Column("filtered", Integer, primary_key=True, autoincrement=False),
    Column("deletion_lock", Integer, nullable=False),
    Column("filter", json_text(), nullable=False),
)
"""A subscriber gets the events of every new workitem, or (``filtered``) of those that match ``filter``."""

workitem_subscriber = Table(
    "workitem_subscriber",
    metadata,
    Column("partition_key", key(), primary_key=True, autoincrement=False),
    Column("subscriber", code(16), primary_key=True),
    Column("last_event_id", BigInteger, nullable=False),
)
"""Who ever had an event; its events are numbered without gaps."""

workitem_event = Table(
    "workitem_event",
    metadata,
    Column("sequence", key(), primary_key=True, autoincrement=False),
    Column("partition_key", key(), nullable=False),
    Column("subscriber", code(16), nullable=False),
    Column("event_id", BigInteger, nullable=False),
    Column("workitem_uid", code(64), nullable=False),
    Column("type", Integer, nullable=False),
    Column("content", json_text(), nullable=False),
    Column("created", code(32), nullable=False),
    UniqueConstraint("partition_key", "subscriber", "event_id"),
    Index("ix_workitem_event_created", "created"),
)
"""An event report for one subscriber, which is sent once the change it reports is committed."""

workitem_event_head = Table(
    "workitem_event_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
)
"""One row, which every transaction that changes workitems or subscriptions holds to its end."""

workitem_event_delivery = Table(
    "workitem_event_delivery",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("owner", code(32), nullable=False),
    Column("until", code(32), nullable=False),
)
"""One row: the last event that was sent, and which run sends events at present."""
