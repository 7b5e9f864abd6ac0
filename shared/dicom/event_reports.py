"""Event reports of workitems (PS3.4 §CC.2.4): what happened, as DICOM JSON.

The Transaction UID of a workitem is no attribute of any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
"""Affected SOP Class UID of every event report (PS3.4 §CC.2.4.3)."""

PRIVATE_CREATOR = "DICOM SERVER EVENT"
EVENT_ID = "00091001"
"""Where the number of an event report is: private, since Message ID has 16 bits."""

_STATE = "00741000"
_READINESS = "00404041"
_PROGRESS = "00741002"
_CANCELLATION = ("00741238", "0074100E")
_CONTACT = ("0074100A", "0074100C")
_REQUESTING_AE = "00741236"
_ASSIGNMENT = ("00404025", "00404034")

Document = Mapping[str, Any]


class EventType(IntEnum):
    """Event Type ID of PS3.4 Table CC.2.4-1; 4 is about the SCP itself, which does not send it."""

    STATE = 1
    CANCEL_REQUESTED = 2
    PROGRESS = 3
    ASSIGNED = 5


@dataclass(frozen=True, slots=True)
class EventReport:
    """What is reported: the type and its attributes (DICOM JSON)."""

    type: EventType
    attributes: Document


def state(workitem: Document) -> EventReport:
    """UPS State Report: the current state and readiness, and why the workitem was canceled if it says so."""
    items = workitem.get(_PROGRESS, {}).get("Value") or [{}]
    attributes = {
        _STATE: workitem.get(_STATE, {"vr": "CS"}),
        _READINESS: workitem.get(_READINESS, {"vr": "CS"}),
    }
    return EventReport(EventType.STATE, attributes | _given(items[0], _CANCELLATION))


def of_change(before: Document | None, after: Document) -> list[EventReport]:
    """What a change of a workitem causes (PS3.4 §CC.2.4.3); ``before`` is None for a new one."""
    former: Document = before or {}
    reports = []
    if any(former.get(tag) != after.get(tag) for tag in (_STATE, _READINESS)):
        reports.append(state(after))
    if before is not None and former.get(_PROGRESS) != after.get(_PROGRESS):
        progress = after.get(_PROGRESS, {"vr": "SQ"})
        reports.append(EventReport(EventType.PROGRESS, {_PROGRESS: progress}))
    if any(_values(former, tag) != _values(after, tag) for tag in _ASSIGNMENT):
        reports.append(EventReport(EventType.ASSIGNED, _given(after, _ASSIGNMENT)))
    return reports


def cancel_requested(requesting_ae: str, request: Document) -> EventReport:
    """UPS Cancel Requested: who asks, and what the request says of reason and contact."""
    requester = {_REQUESTING_AE: {"vr": "AE", "Value": [requesting_ae]}}
    return EventReport(EventType.CANCEL_REQUESTED, requester | _given(request, (*_CANCELLATION, *_CONTACT)))


def payload(report: EventReport, workitem_uid: str, event_id: int) -> dict[str, Any]:
    """The dataset that is sent (PS3.18 §11.13): fields of N-EVENT-REPORT-RQ and the attributes.

    ``event_id`` counts the event reports of a subscriber from 1 without gaps; Message ID (0000,0110) is its
    remainder, from 1 to 65535.
    """
    header: dict[str, Any] = {
        "00000002": {"vr": "UI", "Value": [UPS_PUSH]},
        "00000110": {"vr": "US", "Value": [(event_id - 1) % 65535 + 1]},
        "00001000": {"vr": "UI", "Value": [workitem_uid]},
        "00001002": {"vr": "US", "Value": [int(report.type)]},
        "00090010": {"vr": "LO", "Value": [PRIVATE_CREATOR]},
        EVENT_ID: {"vr": "UV", "Value": [event_id]},
    }
    return header | {tag: report.attributes[tag] for tag in sorted(report.attributes)}


def _given(document: Document, tags: tuple[str, ...]) -> dict[str, Any]:
    return {tag: document[tag] for tag in tags if tag in document}


def _values(document: Document, tag: str) -> Any:
    return document.get(tag, {}).get("Value") or []
