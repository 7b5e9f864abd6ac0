"""Which attributes of workitems are matched, sorted by and returned, and what values some may have.

What a workitem must hold is in ``workitem_requirements``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from shared.dicom.attributes import LENGTH_OF_VR, MATCHING_OF_VR, Attribute, Level, Matching
from shared.dicom.workitem_requirements import check_create, check_update, requirements
from shared.errors import InvalidRequest

_ENUMERATED = {
    "ScheduledProcedureStepPriority": ("HIGH", "MEDIUM", "LOW"),
    "InputReadinessState": ("READY", "UNAVAILABLE", "INCOMPLETE"),
}
_TRANSACTION_UID = "00081195"


def check_new(dataset: dict[str, Any]) -> None:
    """Check the data set of a Create. Raises InvalidRequest naming the attribute that is wrong."""
    check_create(dataset)
    _check_enumerated(dataset)
    if dataset["00741000"]["Value"] != ["SCHEDULED"]:
        raise InvalidRequest("ProcedureStepState of a new workitem must be SCHEDULED.")


def check_changes(dataset: dict[str, Any]) -> None:
    """Check the data set of an Update. Raises InvalidRequest naming the attribute that is wrong."""
    if not dataset:
        raise InvalidRequest("The data set has no attribute to change.")
    check_update(dataset)
    _check_enumerated(dataset)


def _check_enumerated(dataset: Mapping[str, Any]) -> None:
    for keyword, terms in _ENUMERATED.items():
        given = dataset.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [])
        if any(value not in terms for value in given):
            raise InvalidRequest(f"{keyword} must be one of {', '.join(terms)}.")


@cache
def by_path() -> dict[str, Attribute]:
    """All that is matched, by tag or by tags with dots between them."""
    found = {}
    for row in requirements():
        matching = MATCHING_OF_VR.get(row.vr)
        if row.match == "-" or matching in (None, Matching.NUMBER) or row.tags[-1] == _TRANSACTION_UID:
            continue
        length = LENGTH_OF_VR.get(row.vr, 64)
        found[".".join(row.tags)] = Attribute(
            row.path, Level.INSTANCE, matching, length=length, in_values=True
        )
    return found


def searchable(path: str) -> Attribute:
    """The attribute that ``path`` matches. Raises InvalidRequest where it matches none."""
    found = by_path().get(path)
    if found is None:
        raise InvalidRequest(f"{shown(path)} cannot be searched for among workitems.")
    return found


def sortable(path: str) -> Attribute:
    """The attribute by which workitems are sorted. Raises InvalidRequest where they cannot be."""
    found = by_path().get(path)
    if found is None or len(found.tags) > 1:
        raise InvalidRequest(f"Workitems cannot be sorted by {shown(path)}.")
    return found


def shown(path: str) -> str:
    """A path of tags in keywords."""
    return ".".join(keyword_for_tag(int(tag, 16)) or tag for tag in path.split("."))
