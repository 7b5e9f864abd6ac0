"""Keeps Patient, ImagingStudy and Endpoint of a FHIR server in step with the index.

What a study's ImagingStudy should be is read from the index, not made of the changes: whatever happened, in
whatever order it is learned of, the end is what a fresh synchronisation would give. The order of reading
makes that hold with several writers: first the FHIR server's resources, then the index, then a transaction
that fails if the resources have changed since.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from shared import container, faults
from shared.dicom import fhir
from shared.dicom.fhir import PatientIdentity, Reader, SeriesToMap
from shared.neighbours.errors import NeighbourFailed, NeighbourRefused
from shared.neighbours.fhir import Change, Resource
from shared.operations.followers import GivenUp
from shared.services import follower
from shared.settings import settings
from shared.sql import imaging_study
from shared.sql.change_feed import Entry
from shared.sql.imaging_study import IndexedStudy

log = logging.getLogger(__name__)

NAME = "fhir"
INVALID_TAGS = "InvalidDicomTagExceptionTable"
INVALID_STUDIES = "DicomFailToStoreExceptionTable"
REFUSED = "FhirFailToStoreExceptionTable"
RETRIED = "TransientRetryExceptionTable"
FAILED = "TransientFailureExceptionTable"

_ROUNDS = 3
_NEW_PATIENT = "urn:uuid:0f2b6d1c-6c1b-4d0e-9d43-6f2f0a8f3a01"
_NEW_ENDPOINT = "urn:uuid:0f2b6d1c-6c1b-4d0e-9d43-6f2f0a8f3a02"
_NEW_STUDY = "urn:uuid:0f2b6d1c-6c1b-4d0e-9d43-6f2f0a8f3a03"
_OFFSET = "00080201"


class InvalidStudy(NeighbourRefused):
    """A study cannot be what FHIR wants."""


class UnreadableStudy(InvalidStudy):
    """What the index has of a study is no DICOM JSON: a damaged row, or one that somebody else wrote."""


def configured() -> bool:
    """Whether a FHIR server is kept in step at all."""
    return bool(settings().fhir_url)


async def follow(seconds: float = 50.0) -> int:
    """Bring the FHIR server in step with what has changed; how many changes."""
    return await follower.follow(_consumer(), seconds) if configured() else 0


async def synchronise(partition: str, study: str) -> list[str]:
    """Make the FHIR server say of a study what the index says now; sentences on values it cannot be told.

    Raises InvalidStudy, NeighbourUnavailable, NeighbourFailed, NeighbourRefused or DependencyUnavailable.
    """
    for _ in range(_ROUNDS):
        attributes = await container.database().read(imaging_study.find_patient, partition, study)
        identity = None if attributes is None else _identity(attributes)
        plan = _Plan(study, identity)
        await plan.read()
        indexed = await container.database().read(imaging_study.find, partition, study)
        if (None if indexed is None else _identity(indexed.patient)) != identity:
            continue  # it was changed meanwhile
        problems = plan.decide(indexed)
        faults.point("fhir.read")
        if await plan.do():
            faults.point("fhir.written")
            if indexed is not None and identity is None:
                raise InvalidStudy("PatientID is missing.")
            return problems
    raise NeighbourFailed("The study or its resources keep changing.")


def _identity(attributes: str) -> PatientIdentity | None:
    config = settings()
    reader = Reader(_attributes(attributes or "{}"))
    try:
        return fhir.patient_identity(reader, config.fhir_patient_system, config.fhir_use_issuer)
    except fhir.MissingPatient:
        return None


def _attributes(text: str) -> dict[str, Any]:
    """The attributes of a row. Raises UnreadableStudy."""
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    if not isinstance(read, dict) or not all(isinstance(element, dict) for element in read.values()):
        raise UnreadableStudy("The index holds something else than DICOM JSON of this study.")
    return read


class _Plan:
    """What is to be done for one study: its resources as they are, then the changes."""

    def __init__(self, study: str, identity: PatientIdentity | None) -> None:
        self._study = study
        self._identity = identity
        self._address = settings().public_base_url.rstrip("/") or f"https://{settings().host_name}"
        self._address += "/v2"
        value = f"{fhir.STUDY_SYSTEM}|{fhir.escaped(fhir.study_identifier(study))}"
        self._study_query = {"identifier": value}
        self._endpoint_query = {"identifier": f"{fhir.UID_SYSTEM}|{fhir.escaped(self._address)}"}
        self._patient_query = {"identifier": identity.query} if identity else {}
        self._found: dict[str, Resource | None] = {}
        self._changes: list[Change] = []

    async def read(self) -> None:
        """What the FHIR server has."""
        server = container.fhir_server()
        self._found["ImagingStudy"] = await server.find("ImagingStudy", self._study_query)
        if self._identity is not None:
            self._found["Patient"] = await server.find("Patient", self._patient_query)
            self._found["Endpoint"] = await server.find("Endpoint", self._endpoint_query)

    def decide(self, indexed: IndexedStudy | None) -> list[str]:
        """What it should have. Raises InvalidStudy where values must be right and are not."""
        if indexed is None or self._identity is None:
            existing = self._found["ImagingStudy"]
            self._changes = [Change(existing, delete=True)] if existing else []
            return []
        version = settings().fhir_version
        of_patient, of_study = Reader(_attributes(indexed.patient)), Reader(_attributes(indexed.attributes))
        series = _series(indexed, of_study)
        endpoint = self._reference("Endpoint", _NEW_ENDPOINT)
        subject = self._reference("Patient", _NEW_PATIENT)
        study = fhir.imaging_study(
            indexed.uid, of_study, series, subject, endpoint, version, self._found["ImagingStudy"]
        )
        patient = fhir.patient(of_patient, self._identity, self._found["Patient"])
        readers = [of_patient, of_study]
        readers += [one.reader for one in series] + [reader for one in series for _, reader in one.instances]
        problems = sorted({problem for reader in readers for problem in reader.problems})
        if problems and settings().fhir_enforce_validation:
            raise InvalidStudy(" ".join(problems))
        wanted = self._found["Endpoint"] or fhir.endpoint(self._address, version)
        self._add(wanted, self._endpoint_query, _NEW_ENDPOINT)
        self._add(patient, self._patient_query, _NEW_PATIENT)
        self._add(study, self._study_query, _NEW_STUDY)
        return problems

    async def do(self) -> bool:
        """Do it; False where something was there already that was not there before."""
        return not self._changes or all(await container.fhir_server().transact(self._changes))

    def _reference(self, type: str, new: str) -> str:
        found = self._found[type]
        return f"{type}/{found['id']}" if found else new

    def _add(self, wanted: Resource, query: dict[str, str], new: str) -> None:
        existing = self._found[wanted["resourceType"]]
        if existing is None:
            self._changes.append(Change(wanted, query, new))
        elif wanted != existing:
            self._changes.append(Change(wanted))


def _series(indexed: IndexedStudy, of_study: Reader) -> list[SeriesToMap]:
    """The series to map; their times are in the time zone of the study."""
    offset = {_OFFSET: of_study.attributes[_OFFSET]} if _OFFSET in of_study.attributes else {}
    series = []
    for one in indexed.series:
        attributes = offset | _attributes(one.attributes)
        instances = [(i.uid, Reader(_attributes(i.attributes))) for i in one.instances]
        series.append(SeriesToMap(one.uid, Reader(attributes), instances))
    return series


class _Synchronisation:
    """The consumer of the feed that keeps the FHIR server in step."""

    name = NAME
    from_start = True
    alone = False
    tables: Sequence[str] = (INVALID_STUDIES, REFUSED, FAILED)

    async def deliver(self, entries: Sequence[Entry]) -> None:
        last = entries[-1]
        if last.key.partition != settings().fhir_partition:
            return
        try:
            problems = await synchronise(last.key.partition, last.key.study)
        except UnreadableStudy as error:
            if not settings().fhir_ignore_json_parsing_errors:
                raise
            log.warning("Change %d is passed over: %s", last.sequence, error)
            return
        if problems:
            await _keep(last, " ".join(problems), INVALID_TAGS)

    def table_of(self, error: Exception) -> str:
        if isinstance(error, InvalidStudy):
            return INVALID_STUDIES
        return REFUSED if isinstance(error, NeighbourRefused) else FAILED

    async def on_retry(self, entries: Sequence[Entry], error: Exception) -> None:
        await _keep(entries[-1], str(error), RETRIED)


async def _keep(entry: Entry, error: str, table: str) -> None:
    change = GivenUp(entry.sequence, entry.action, entry.timestamp, entry.key, error, table)
    await container.followers().keep(change)


@cache
def _consumer() -> follower.Consumer:
    return _Synchronisation()
