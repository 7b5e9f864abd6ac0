"""The states of a workitem and who may change them (PS3.4 §CC.1.1, Tables CC.1.1-1 and CC.1.1-2).

Whoever claims a workitem brings a Transaction UID, which is the key to it from then on. Errors carry the
sentence that PS3.18 §11.6.3 and §11.7.3 want in a Warning header.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shared.dicom.workitem_requirements import check_final
from shared.errors import Conflict, InvalidRequest

Json = dict[str, Any]

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
FINAL = (COMPLETED, CANCELED)

INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
INCONSISTENT_WORKITEM = "The submitted request is inconsistent with the current state of the Workitem."
NOT_CLAIMED = "The target URI did not reference a claimed Workitem."
MISSING = "The Transaction UID is missing."
INCORRECT = "The Transaction UID is incorrect."
ALREADY = "The UPS is already in the requested state of {}."
ALREADY_COMPLETED = "The UPS is already COMPLETED."
NO_PERFORMER = "The performer cannot be contacted."
"""Sentences of PS3.18 §11.6-11.8."""

_STATE = "00741000"
_PROGRESS = "00741002"
_CANCELLATION_TIME = "00404052"
_REASON = "0074100E"
_UNSPECIFIED = {
    "00080100": {"vr": "SH", "Value": ["110513"]},
    "00080102": {"vr": "SH", "Value": ["DCM"]},
    "00080104": {"vr": "LO", "Value": ["Discontinued for unspecified reason"]},
}
_REASONS = ("00741238", _REASON)
_CONTACT_URI = "0074100A"
_CONTACT = (_CONTACT_URI, "0074100C")
_COMMUNICATIONS = "00741008"


class InconsistentState(Conflict):
    """The workitem's state does not allow the request."""

    warning = INCONSISTENT


class FinalState(InvalidRequest):
    """The workitem is COMPLETED or CANCELED and does not change any more."""

    warning = INCONSISTENT_WORKITEM


class NotClaimed(InvalidRequest):
    """An update does not fit who has claimed the workitem, if anybody has."""

    warning = NOT_CLAIMED


class AlreadyCompleted(Conflict):
    """The workitem is COMPLETED and cannot be canceled."""

    warning = ALREADY_COMPLETED


class NoPerformer(Conflict):
    """Nobody would hear of a request to cancel the workitem."""

    warning = NO_PERFORMER


class MissingTransactionUID(InvalidRequest):
    """The workitem is somebody's, and the request does not say that it is the caller's."""

    warning = MISSING


class IncorrectTransactionUID(InvalidRequest):
    """The workitem is somebody else's."""

    warning = INCORRECT


def state_of(workitem: Mapping[str, Any]) -> str:
    """Procedure Step State."""
    return str(workitem[_STATE]["Value"][0])


def check_update(workitem: Mapping[str, Any], owner: str, transaction: str) -> None:
    """Whether a workitem with the Transaction UID ``owner`` may be updated with ``transaction`` (§CC.2.6.3).

    Raises FinalState, NotClaimed.
    """
    state = state_of(workitem)
    if state in FINAL:
        raise FinalState(f"The workitem is {state} and cannot be updated.")
    if state == SCHEDULED and transaction:
        raise NotClaimed("The workitem is SCHEDULED: nobody has a Transaction UID for it yet.")
    if state == IN_PROGRESS and not transaction:
        raise NotClaimed("The workitem is IN PROGRESS: the request needs its Transaction UID.")
    if state == IN_PROGRESS and transaction != owner:
        raise NotClaimed("The Transaction UID is not that of the workitem.")


def change(workitem: Json, owner: str, transaction: str, target: str, now: str) -> tuple[Json, str]:
    """A workitem in the state ``target``, and a warning where it is in that state already (Table CC.1.1-2).

    ``now`` is a DT. Raises InconsistentState, which names an attribute that a final state lacks,
    MissingTransactionUID and IncorrectTransactionUID.
    """
    state = state_of(workitem)
    if not transaction:
        raise MissingTransactionUID("A change of state needs a Transaction UID.")
    if target == SCHEDULED:
        raise InconsistentState("A workitem cannot become SCHEDULED again.")
    if state != SCHEDULED and transaction != owner:
        raise IncorrectTransactionUID("The Transaction UID is not that of the workitem.")
    if target == IN_PROGRESS:
        if state != SCHEDULED:
            raise InconsistentState(f"The workitem is {state} and cannot be claimed.")
        return in_state(workitem, IN_PROGRESS), ""
    if state == SCHEDULED:
        raise InconsistentState(f"The workitem is SCHEDULED: it must be IN PROGRESS before it is {target}.")
    if state == target:
        return workitem, ALREADY.format(target)
    if state in FINAL:
        raise InconsistentState(f"The workitem is {state} and cannot become {target}.")
    ended = in_state(workitem, target)
    if target == CANCELED:
        ended = with_cancellation(ended, {}, now)
    try:
        check_final(ended, target)
    except Conflict as error:
        raise InconsistentState(str(error)) from None
    return ended, ""


def cancel(workitem: Json, request: Mapping[str, Any], now: str) -> Json:
    """A SCHEDULED workitem canceled by the server on request (§CC.2.2.3): what ``request`` says of the reason
    goes into it."""
    return with_cancellation(in_state(workitem, CANCELED), request, now)


def in_state(workitem: Json, state: str) -> Json:
    """The workitem in another state."""
    return workitem | {_STATE: {"vr": "CS", "Value": [state]}}


def with_cancellation(workitem: Json, request: Mapping[str, Any], now: str) -> Json:
    """The workitem with when and why it was canceled, which its final state must have: where nobody said
    why, the reason is that nobody did."""
    items = workitem.get(_PROGRESS, {}).get("Value") or [{}]
    progress = {
        _CANCELLATION_TIME: {"vr": "DT", "Value": [now]},
        _REASON: {"vr": "SQ", "Value": [_UNSPECIFIED]},
        **_filled(items[0], items[0]),
        **_filled(request, _REASONS),
    }
    contact = _filled(request, _CONTACT)
    if _CONTACT_URI in contact:
        progress.setdefault(_COMMUNICATIONS, {"vr": "SQ", "Value": [contact]})
    return workitem | {_PROGRESS: {"vr": "SQ", "Value": [dict(sorted(progress.items())), *items[1:]]}}


def _filled(data_set: Mapping[str, Any], tags: Iterable[str]) -> Json:
    """Those of ``tags`` that have a value."""
    return {tag: data_set[tag] for tag in tags if data_set.get(tag, {}).get("Value")}
