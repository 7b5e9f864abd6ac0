"""A study as a FHIR server is told of it: attributes of patient, study and series, and its instances."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from shared.sql import tables as t


@dataclass(frozen=True, slots=True)
class IndexedInstance:
    """An instance of a series; ``attributes`` are DICOM JSON."""

    uid: str
    attributes: str


@dataclass(frozen=True, slots=True)
class IndexedSeries:
    """A series and its instances, in order of their UIDs."""

    uid: str
    attributes: str
    instances: tuple[IndexedInstance, ...]


@dataclass(frozen=True, slots=True)
class IndexedStudy:
    """A study; ``patient`` are the attributes of its patient, empty where it names none."""

    partition: str
    uid: str
    patient: str
    attributes: str
    series: tuple[IndexedSeries, ...]


def find(connection: sa.Connection, partition: str, study: str) -> IndexedStudy | None:
    """What the index holds of a study now, or None: three statements, however large it is."""
    found = connection.execute(study_statement(partition, study)).first()
    if found is None:
        return None
    instances: dict[int, list[IndexedInstance]] = {}
    for row in connection.execute(instances_statement(found.study_key)):
        instances.setdefault(row.series_key, []).append(IndexedInstance(row.sop_instance_uid, row.attributes))
    series = [
        IndexedSeries(row.series_instance_uid, row.attributes, tuple(instances.get(row.series_key, ())))
        for row in connection.execute(series_statement(found.study_key))
    ]
    return IndexedStudy(partition, study, found.patient or "", found.attributes, tuple(series))


def find_patient(connection: sa.Connection, partition: str, study: str) -> str | None:
    """The attributes of a study's patient, empty where it names none; None where there is no such study."""
    found = connection.execute(study_statement(partition, study)).first()
    return None if found is None else found.patient or ""


def study_statement(partition: str, study: str) -> sa.Select[tuple[object, ...]]:
    """The study and its patient."""
    return (
        sa.select(t.study.c.study_key, t.study.c.attributes, t.patient.c.attributes.label("patient"))
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        .outerjoin(t.patient, t.patient.c.patient_key == t.study.c.patient_key)
        .where(t.partition.c.partition_name == partition, t.study.c.study_instance_uid == study)
    )


def series_statement(study_key: int) -> sa.Select[tuple[object, ...]]:
    """Its series."""
    return (
        sa.select(t.series.c.series_key, t.series.c.series_instance_uid, t.series.c.attributes)
        .where(t.series.c.study_key == study_key)
        .order_by(t.series.c.series_instance_uid)
    )


def instances_statement(study_key: int) -> sa.Select[tuple[object, ...]]:
    """Its instances."""
    return (
        sa.select(t.instance.c.series_key, t.instance.c.sop_instance_uid, t.instance.c.attributes)
        .where(t.instance.c.study_key == study_key)
        .order_by(t.instance.c.sop_instance_uid)
    )
