"""Modality Worklist (PS3.4 Annex K) from the server's workitems (UPS-RS, PS3.18 §11).

A scheduled workitem is one item of the Scheduled Procedure Step Sequence. The server narrows by state,
patient and time; every key is then matched here, so that answers are exact whatever the server matches.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from adapters.dimse.dicomweb import DicomWeb, Json, Refused, Unavailable
from adapters.dimse.find import (
    CANCELED,
    OUT_OF_RESOURCES,
    PENDING,
    UNABLE,
    failure,
    tags_of,
    value_of,
    with_character_set,
)

_STEP = "ScheduledProcedureStepSequence"
_COPIED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientSize",
    "PatientWeight",
    "OtherPatientIDsSequence",
    "MedicalAlerts",
    "Allergies",
    "PregnancyStatus",
    "SpecialNeeds",
    "PatientState",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "StudyInstanceUID",
)
_OF_REQUEST = (
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "ReferringPhysicianName",
    "RequestingPhysician",
    "RequestingService",
    "ReasonForTheRequestedProcedure",
    "StudyInstanceUID",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
)


def find(
    server: DicomWeb, partition: str, identifier: Dataset, limit: int, event: Any
) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """The answers to a worklist query."""
    count = 0
    try:
        for workitem in server.search(partition, "workitems", _query(identifier)):
            if event.is_cancelled:
                yield CANCELED, None
                return
            entry = worklist_entry(Dataset.from_json(_without_bulk_data(workitem)))
            if not matches(entry, identifier):
                continue
            if count >= limit:
                yield failure(OUT_OF_RESOURCES, "More matches than this service returns"), None
                return
            count += 1
            yield PENDING, with_character_set(answer(entry, identifier))
    except (Unavailable, Refused):
        yield failure(UNABLE, "The server does not answer the search for workitems"), None


def _query(identifier: Dataset) -> list[tuple[str, str]]:
    """What the server can narrow by without leaving out a match."""
    query = [("ProcedureStepState", "SCHEDULED"), ("includefield", "all")]
    query += [(key, value) for key in ("PatientID", "PatientName") if (value := value_of(identifier, key))]
    steps = identifier.get(_STEP) or []
    dates = value_of(steps[0], "ScheduledProcedureStepStartDate") if steps else ""
    if re.fullmatch(r"\d{8}(-(\d{8})?)?|-\d{8}", dates):
        query.append(("ScheduledProcedureStepStartDateTime", dates))
    return query


def worklist_entry(workitem: Dataset) -> Dataset:
    """A workitem as a worklist shows it."""
    entry = Dataset()
    for keyword in _COPIED:
        if keyword in workitem:
            entry[keyword] = workitem[keyword]
    for request in list(workitem.get("ReferencedRequestSequence") or [])[:1]:
        for keyword in _OF_REQUEST:
            if keyword in request and (keyword not in entry or request[keyword].value):
                entry[keyword] = request[keyword]
    step = Dataset()
    moment = str(workitem.get("ScheduledProcedureStepStartDateTime") or "")
    digits = re.match(r"[0-9.]*", moment)[0]  # type: ignore[index]
    step.ScheduledProcedureStepStartDate = digits[:8]
    step.ScheduledProcedureStepStartTime = digits[8:]
    step.ScheduledStationAETitle = _code(workitem, "ScheduledStationNameCodeSequence")
    step.ScheduledStationName = _code(workitem, "ScheduledStationNameCodeSequence", "CodeMeaning")[:16]
    step.Modality = _code(workitem, "ScheduledStationClassCodeSequence")
    step.ScheduledProcedureStepLocation = _code(
        workitem, "ScheduledStationGeographicLocationCodeSequence", "CodeMeaning"
    )[:16]
    step.ScheduledProcedureStepDescription = str(workitem.get("ProcedureStepLabel") or "")
    step.ScheduledProcedureStepID = str(
        workitem.get("ScheduledProcedureStepID") or workitem.get("WorklistLabel") or ""
    )[:16]
    step.ScheduledProcedureStepStatus = "SCHEDULED"
    for performer in list(workitem.get("ScheduledHumanPerformersSequence") or [])[:1]:
        step.ScheduledPerformingPhysicianName = str(performer.get("HumanPerformerName") or "")
    if workitem.get("ScheduledWorkitemCodeSequence"):
        step.ScheduledProtocolCodeSequence = workitem.ScheduledWorkitemCodeSequence
    entry.ScheduledProcedureStepSequence = [step]
    return entry


def _code(workitem: Dataset, keyword: str, part: str = "CodeValue") -> str:
    items = workitem.get(keyword) or []
    return str(items[0].get(part) or "") if items else ""


def matches(entry: Dataset, identifier: Dataset) -> bool:
    """Whether every key of a worklist query matches (PS3.4 §C.2.2.2)."""
    for tag in tags_of(identifier):
        keyword = keyword_for_tag(tag)
        if not keyword or keyword == "SpecificCharacterSet":
            continue
        if dictionary_VR(tag) == "SQ":
            wanted = list(identifier.get(keyword) or [])[:1]
            found = list(entry.get(keyword) or [])
            if (
                wanted
                and len(wanted[0])
                and not any(matches(item, wanted[0]) for item in found or [Dataset()])
            ):
                return False
            continue
        value = value_of(identifier, keyword)
        if value and not _matches(value_of(entry, keyword), value, dictionary_VR(tag)):
            return False
    return True


def _matches(value: str, key: str, vr: str) -> bool:
    if vr in ("DA", "TM"):
        begin, hyphen, end = key.partition("-")
        if not hyphen:
            return value == key or (vr == "TM" and value.startswith(key))
        return bool(value) and value >= begin and (not end or value <= end or value.startswith(end))
    if vr == "UI":
        return value in key.split("\\")
    if vr == "PN":
        value, key = value.rstrip("^=").casefold(), key.rstrip("^=").casefold()
    pattern = re.sub(r"\[", "[[]", key)
    return any(fnmatch.fnmatchcase(one, pattern) for one in {value, value.split("=")[0]})


def answer(entry: Dataset, identifier: Dataset) -> Dataset:
    """Every key that was asked for, empty where the entry has none."""
    ds = Dataset()
    for tag in tags_of(identifier):
        keyword = keyword_for_tag(tag)
        if not keyword or keyword == "SpecificCharacterSet" or tag.element == 0:
            continue
        vr = dictionary_VR(tag)
        if vr == "SQ":
            wanted = list(identifier.get(keyword) or [])[:1]
            items = list(entry.get(keyword) or [])
            ds.add(
                DataElement(
                    tag, "SQ", [answer(i, wanted[0]) if wanted and len(wanted[0]) else i for i in items]
                )
            )
        else:
            ds.add(DataElement(tag, vr.split(" ")[0], entry[Tag(tag)].value if tag in entry else None))
    return ds


def _without_bulk_data(workitem: Json) -> Json:
    return {tag: element for tag, element in workitem.items() if "BulkDataURI" not in element}
