"""Patients: a row for each that has studies, kept in the transactions that write and delete studies.

A patient is what PatientID and IssuerOfPatientID name, character by character; a study without a PatientID
belongs to none. What else is known of a patient is what the last instance stored says.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from shared.dicom import normalise
from shared.dicom.attributes import Level, at_level
from shared.sql.tables import patient, study


def patient_key(
    connection: sa.Connection,
    partition_key: int,
    texts: dict[str, str],
    attributes: str,
    columns: dict[str, Any],
) -> int | None:
    """The key of the patient of a study that is being written, whose row is brought up to date or made.

    ``texts`` are values by keyword; ``attributes`` and ``columns`` those of the study. None where it has no
    PatientID.
    """
    identifier = normalise.cut(texts.get("PatientID", ""), 64)
    issuer = normalise.cut(texts.get("IssuerOfPatientID", ""), 64)
    if not identifier:
        return None
    written = {name: value for name, value in columns.items() if name in patient.c}
    written["attributes"] = _of_patient(attributes)
    current = connection.execute(
        sa.select(patient)
        .with_hint(patient, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
        .where(
            patient.c.partition_key == partition_key,
            patient.c.identifier == identifier,
            patient.c.issuer == issuer,
        )
    ).first()
    if current is not None:
        key = int(current.patient_key)
        if any(current._mapping[name] != value for name, value in written.items()):
            connection.execute(sa.update(patient).where(patient.c.patient_key == key).values(written))
        return key
    written |= {"partition_key": partition_key, "identifier": identifier, "issuer": issuer}
    return int(connection.execute(sa.insert(patient), written).inserted_primary_key[0])  # type: ignore[index]


def _of_patient(attributes: str) -> str:
    """The patient's part of a study's attributes."""
    found = json.loads(attributes)
    tags = sorted(a.tag for a in at_level(Level.STUDY) if a.patient and a.tag in found)
    return json.dumps({tag: found[tag] for tag in tags}, ensure_ascii=False, separators=(",", ":"))


def of_study(connection: sa.Connection, study_key: int) -> int | None:
    """The key of the patient of a study."""
    return connection.execute(sa.select(study.c.patient_key).where(study.c.study_key == study_key)).scalar()


def forget(connection: sa.Connection, key: int | None) -> None:
    """Remove a patient that has no study any more.

    Where another transaction is adding one, the foreign key makes either of the two run again.
    """
    if key is None:
        return
    left = sa.select(study.c.study_key).where(study.c.patient_key == key).exists()
    connection.execute(sa.delete(patient).where(patient.c.patient_key == key, ~left))
