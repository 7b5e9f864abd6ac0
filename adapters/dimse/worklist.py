"""Modality Worklist (PS3.4 Annex K) from the server's workitems (UPS-RS, PS3.18 §11).

A scheduled workitem is one item of the Scheduled Procedure Step Sequence. The server narrows down what is
read; every key is then matched here, so that answers are exact whatever the server matches.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from adapters.dimse.dicomweb import DicomWeb, Json, Refused, Unavailable
from adapters.dimse.find import (
    CANCELED,
    OUT_OF_RESOURCES,
    PENDING,
    PENDING_UNMATCHED,
    UNABLE,
    failure,
    tags_of,
    value_of,
    with_character_set,
)
from adapters.dimse.matching import Known, has_unknown_keys, matches

_STEP = "ScheduledProcedureStepSequence"
_STATION, _CLASS = "ScheduledStationNameCodeSequence", "ScheduledStationClassCodeSequence"
_COPIED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientComments",
    "EthnicGroup",
    "MedicalAlerts",
    "Allergies",
    "PregnancyStatus",
    "LastMenstrualDate",
    "SmokingStatus",
    "AdditionalPatientHistory",
    "SpecialNeeds",
    "PatientState",
    "ConfidentialityConstraintOnPatientDataDescription",
    "CurrentPatientLocation",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "StudyInstanceUID",
)
_OF_REQUEST = (
    "StudyInstanceUID",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "PlacerOrderNumberImagingServiceRequest",
    "OrderPlacerIdentifierSequence",
    "FillerOrderNumberImagingServiceRequest",
    "OrderFillerIdentifierSequence",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "RequestedProcedureComments",
    "ReasonForTheRequestedProcedure",
    "ReasonForRequestedProcedureCodeSequence",
    "ReferringPhysicianName",
    "RequestingPhysician",
    "RequestingService",
    "ImagingServiceRequestComments",
)
_OF_STEP = (
    "ScheduledStationAETitle",
    "ScheduledStationName",
    "ScheduledProcedureStepLocation",
    "ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepStartTime",
    "ScheduledPerformingPhysicianName",
    "ScheduledProcedureStepDescription",
    "ScheduledProcedureStepID",
    "ScheduledProcedureStepStatus",
    "ScheduledProtocolCodeSequence",
    "CommentsOnTheScheduledProcedureStep",
    "Modality",
)
_KNOWN: Known = {
    **dict.fromkeys((*_COPIED, *_OF_REQUEST, "RequestedProcedurePriority")),
    _STEP: dict.fromkeys(_OF_STEP),
}
_DATE_TIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\.\d{1,6})?([+-]\d{4})?")
_DATE_RANGE = re.compile(r"(\d{8})?(-?)(\d{8})?")
_FARTHEST_ZONE = dt.timedelta(days=2)  # two ways to write an instant are at most 26 hours apart


def find(
    server: DicomWeb, partition: str, identifier: Dataset, limit: int, event: Any, time_zone: str = ""
) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """The answers to a worklist query; ``time_zone`` is where starts are shown if the identifier has none."""
    zone = _zone(identifier, time_zone)
    status = PENDING_UNMATCHED if has_unknown_keys(identifier, _KNOWN) else PENDING
    count = 0
    try:
        for workitem in server.search(partition, "workitems", _query(identifier, zone)):
            if event.is_cancelled:
                yield CANCELED, None
                return
            entry = worklist_entry(_data_set(workitem), zone)
            if not matches(entry, identifier, _KNOWN):
                continue
            if count >= limit:
                yield failure(OUT_OF_RESOURCES, "More matches than this service returns"), None
                return
            count += 1
            yield status, with_character_set(answer(entry, identifier))
    except (Unavailable, Refused):
        yield failure(UNABLE, "The server does not answer the search for workitems"), None


# --- what is asked for -------------------------------------------------------------------------------


def _zone(identifier: Dataset, time_zone: str) -> dt.tzinfo | None:
    """The time zone of an identifier (PS3.3 §C.12.1.1.8), or the one that is configured."""
    asked = _offset(value_of(identifier, "TimezoneOffsetFromUTC"))
    return asked or (ZoneInfo(time_zone) if time_zone else None)


def _query(identifier: Dataset, zone: dt.tzinfo | None) -> list[tuple[str, str]]:
    """What the server can narrow by without leaving out a match."""
    step = next(iter(identifier.get(_STEP) or []), Dataset())
    keys = [
        ("PatientID", value_of(identifier, "PatientID")),
        ("PatientName", value_of(identifier, "PatientName")),
        *(
            (f"ReferencedRequestSequence.{keyword}", value_of(identifier, keyword))
            for keyword in ("AccessionNumber", "RequestedProcedureID")
        ),
        (f"{_STATION}.CodeValue", value_of(step, "ScheduledStationAETitle")),
        (f"{_CLASS}.CodeValue", value_of(step, "Modality")),
        (
            "ScheduledProcedureStepStartDateTime",
            _dates(value_of(step, "ScheduledProcedureStepStartDate"), zone),
        ),
    ]
    query = [("ProcedureStepState", "SCHEDULED"), ("includefield", "all")]
    return query + [(name, value) for name, value in keys if value and "\\" not in value]


def _dates(key: str, zone: dt.tzinfo | None) -> str:
    """The days in which a match can lie as the server compares: as its date and time are written."""
    match = _DATE_RANGE.fullmatch(key)
    if match is None or not (match[1] or match[3]):
        return ""
    first, last = match[1] or "", (match[3] or "") if match[2] else match[1]
    if zone is None:
        return f"{first}-{last}"
    try:
        return f"{_moved(first, -_FARTHEST_ZONE)}-{_moved(last, _FARTHEST_ZONE)}"
    except (ValueError, OverflowError):
        return ""


def _moved(date: str, by: dt.timedelta) -> str:
    return f"{dt.datetime.strptime(date, '%Y%m%d') + by:%Y%m%d}" if date else ""


# --- an entry ----------------------------------------------------------------------------------------


def _data_set(workitem: Json) -> Dataset:
    """The workitem, without an attribute whose value breaks its VR: one workitem must not end the list."""
    found = Dataset()
    for tag, element in workitem.items():
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.update(Dataset.from_json({tag: element}))
    return found


def worklist_entry(workitem: Dataset, zone: dt.tzinfo | None = None) -> Dataset:
    """A workitem as a worklist shows it."""
    entry = Dataset()
    for keyword in _COPIED:
        if keyword in workitem:
            entry[keyword] = workitem[keyword]
    for request in list(workitem.get("ReferencedRequestSequence") or [])[:1]:
        for keyword in _OF_REQUEST:
            if keyword in request and not entry.get(keyword):
                entry[keyword] = request[keyword]
    entry.RequestedProcedurePriority = workitem.get("ScheduledProcedureStepPriority")
    date, time, offset = _start(workitem, zone)
    entry.TimezoneOffsetFromUTC = offset
    entry.ScheduledProcedureStepSequence = [_step(workitem, date, time)]
    return entry


def _step(workitem: Dataset, date: str, time: str) -> Dataset:
    step = Dataset()
    step.ScheduledProcedureStepStartDate = date
    step.ScheduledProcedureStepStartTime = time
    step.ScheduledStationAETitle = _codes(workitem, _STATION)
    step.ScheduledStationName = [name[:16] for name in _codes(workitem, _STATION, "CodeMeaning")]
    step.Modality = next(iter(_codes(workitem, _CLASS)), "")
    places = _codes(workitem, "ScheduledStationGeographicLocationCodeSequence", "CodeMeaning")
    step.ScheduledProcedureStepLocation = next(iter(places), "")[:16]
    step.ScheduledProcedureStepDescription = str(workitem.get("ProcedureStepLabel") or "")
    step.ScheduledProcedureStepID = str(workitem.get("ScheduledProcedureStepID") or _identifier(workitem))
    step.ScheduledProcedureStepStatus = "SCHEDULED"
    step.CommentsOnTheScheduledProcedureStep = workitem.get("CommentsOnTheScheduledProcedureStep")
    for performer in list(workitem.get("ScheduledHumanPerformersSequence") or [])[:1]:
        step.ScheduledPerformingPhysicianName = performer.get("HumanPerformerName")
    step.ScheduledProtocolCodeSequence = workitem.get("ScheduledWorkitemCodeSequence") or []
    return step


def _identifier(workitem: Dataset) -> str:
    """An SH that is always the same for a workitem and another one for any other."""
    digest = hashlib.sha256(str(workitem.get("SOPInstanceUID") or "").encode()).digest()
    return base64.b32encode(digest)[:16].decode()


def _start(workitem: Dataset, zone: dt.tzinfo | None) -> tuple[str, str, str]:
    """Date, time and zone of the start: in ``zone`` where the workitem says its own, else as written."""
    text = str(workitem.get("ScheduledProcedureStepStartDateTime") or "")
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return "", "", ""
    year, month, day, hour, minute, second, fraction, own = match.groups()
    date = year + (month or "01") + (day or "01")
    time = (hour or "00") + (minute or "00") + (second or "00") + (fraction or "")
    own = own or str(workitem.get("TimezoneOffsetFromUTC") or "")
    of_workitem = _offset(own)
    if zone is None or of_workitem is None:
        return date, time, own
    try:
        moment = dt.datetime.strptime(date + time[:6], "%Y%m%d%H%M%S").replace(tzinfo=of_workitem)
        shown = moment.astimezone(zone)
    except (ValueError, OverflowError):
        return date, time, own
    return f"{shown:%Y%m%d}", f"{shown:%H%M%S}{fraction or ''}", f"{shown:%z}"


def _offset(text: str) -> dt.tzinfo | None:
    """The time zone ``+HHMM``, None where it is none."""
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text)
    if match is None or int(match[2]) > 14:
        return None
    shift = dt.timedelta(hours=int(match[2]), minutes=int(match[3]))
    return dt.timezone(shift if match[1] == "+" else -shift)


def _codes(workitem: Dataset, keyword: str, part: str = "CodeValue") -> list[str]:
    return [str(item.get(part) or "") for item in workitem.get(keyword) or [] if item.get(part)]


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
