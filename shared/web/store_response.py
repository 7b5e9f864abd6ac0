"""The response of a store: status and DICOM JSON (PS3.18 §10.5.3, Annex I.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.dicom import failure_reasons
from shared.web import urls

if TYPE_CHECKING:
    from shared.services.store import Outcome


def status(outcomes: Sequence[Outcome]) -> int:
    """200 all stored; 202 some failed or have warnings; 204 nothing came; 409 nothing was stored."""
    if not outcomes:
        return 204
    failed = sum(outcome.failure is not None for outcome in outcomes)
    if failed == len(outcomes):
        return 409
    warned = any(_warning(outcome) for outcome in outcomes)
    return 202 if failed or warned else 200


def body(outcomes: Sequence[Outcome], root: str) -> bytes:
    """RetrieveURL, ReferencedSOPSequence and FailedSOPSequence."""
    stored = [outcome for outcome in outcomes if outcome.failure is None and outcome.key]
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    result: dict[str, Any] = {}
    studies = {outcome.key.study for outcome in stored if outcome.key}
    if len(studies) == 1:
        result["00081190"] = _element("UR", urls.study_url(root, studies.pop()))
    if failed:
        result["00081198"] = {"vr": "SQ", "Value": [_failed(outcome) for outcome in failed]}
    if stored:
        result["00081199"] = {"vr": "SQ", "Value": [_referenced(outcome, root) for outcome in stored]}
    return json.dumps(result).encode()


def _element(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]} if value != "" else {"vr": vr}


def _referenced(outcome: Outcome, root: str) -> dict[str, Any]:
    assert outcome.key is not None
    item = {
        "00081150": _element("UI", outcome.sop_class),
        "00081155": _element("UI", outcome.sop_instance),
        "00081190": _element("UR", urls.instance_url(root, outcome.key)),
    }
    warning = _warning(outcome)
    if warning:
        item["00081196"] = _element("US", warning)
    if outcome.warnings:
        item["00741048"] = _failed_attributes([w.message for w in outcome.warnings])
    return item


def _warning(outcome: Outcome) -> int:
    if outcome.warnings:
        return failure_reasons.WARN_VALIDATION
    return failure_reasons.WARN_SOP_CLASS_MISMATCH if outcome.mismatched_meta else 0


def _failed(outcome: Outcome) -> dict[str, Any]:
    item: dict[str, Any] = {}
    if outcome.sop_class:
        item["00081150"] = _element("UI", outcome.sop_class)
    if outcome.sop_instance:
        item["00081155"] = _element("UI", outcome.sop_instance)
    item["00081197"] = _element("US", outcome.failure or failure_reasons.PROCESSING_FAILURE)
    item["00741048"] = _failed_attributes([outcome.message])
    return item


def _failed_attributes(messages: Sequence[str]) -> dict[str, Any]:
    """One item with an Error Comment for each message; 100 is the ancestor's code for validation."""
    return {
        "vr": "SQ",
        "Value": [{"00000902": _element("LO", f"DICOM100: {message}")} for message in messages],
    }
