"""The Worklist Service (UPS-RS, PS3.18 §11): workitems, who may change them, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from shared import container
from shared.dicom import data_set, event_reports, workitem_attributes, workitem_states
from shared.dicom.event_reports import UPS_PUSH
from shared.dicom.identifiers import check_uid
from shared.dicom.workitem_query import WorkitemQuery
from shared.dicom.workitem_requirements import conditional_tags, default_tags
from shared.errors import InvalidRequest
from shared.services import workitem_events
from shared.services.search import Page
from shared.sql import workitems as index
from shared.sql.workitems import Change, Workitem

Json = dict[str, Any]

_TRANSACTION_UID = "00081195"
_CHARACTER_SET = "00080005"
_STATE = "00741000"
_MODIFIED = "00404010"
_WORKLIST_LABEL = "00741202"
_REQUESTING_AE = "00741236"
_DEFAULT_LABEL = "Default"
_ANONYMOUS = "ANONYMOUS"


@dataclass(frozen=True)
class Created:
    """A new workitem; ``coerced`` says that the server gave an attribute a value it did not have."""

    uid: str
    coerced: bool


async def create(partition: str, uid: str, given: Json) -> Created:
    """Add a workitem (PS3.18 §11.4); ``uid`` is that of the URL, empty where the data set says it.

    Raises InvalidRequest naming what is wrong, Conflict where there is a workitem of this UID.
    """
    uid = _uid_of_new(uid, given)
    workitem_attributes.check_new(given)
    coerced = not _values(given, _WORKLIST_LABEL)
    workitem = {tag: value for tag, value in given.items() if tag != _TRANSACTION_UID} | {
        "00080016": {"vr": "UI", "Value": [UPS_PUSH]},
        "00080018": {"vr": "UI", "Value": [uid]},
        _MODIFIED: {"vr": "DT", "Value": [now()]},
    }
    if coerced:
        workitem[_WORKLIST_LABEL] = {"vr": "LO", "Value": [_DEFAULT_LABEL]}
    if await container.database().write(index.create, partition, uid, _sorted(workitem)):
        await workitem_events.announce()
    return Created(uid, coerced)


def _uid_of_new(uid: str, given: Mapping[str, Any]) -> str:
    stated = _values(given, "00080018")
    if uid and stated and stated != [uid]:
        raise InvalidRequest("SOPInstanceUID is not the UID of the URL.")
    if not uid and not stated:
        raise InvalidRequest("Neither the URL nor SOPInstanceUID has the UID of the workitem.")
    return check_uid(uid or str(stated[0]), "SOPInstanceUID")


async def retrieve(partition: str, uid: str) -> Json:
    """A workitem (PS3.18 §11.5), without its Transaction UID. Raises NotFound."""
    found = await container.database().read(index.find, partition, uid)
    return found.data_set


async def update(partition: str, uid: str, transaction: str, given: Json) -> None:
    """Change attributes of a workitem (PS3.18 §11.6), sequences as a whole.

    ``transaction`` is the Transaction UID of the URL; the data set may have it instead. Raises NotFound,
    InvalidRequest, and what :func:`workitem_states.check_update` raises.
    """
    transaction = _transaction(transaction, given)
    changes = {tag: value for tag, value in given.items() if tag != _TRANSACTION_UID}
    workitem_attributes.check_changes(changes)
    modified = {_MODIFIED: {"vr": "DT", "Value": [now()]}}

    def work(workitem: Workitem) -> Change:
        workitem_states.check_update(workitem.data_set, workitem.owner, transaction)
        return Change(workitem.owner, _sorted(workitem.data_set | changes | modified))

    await _change(partition, uid, work)


def _transaction(of_url: str, given: Mapping[str, Any]) -> str:
    stated = _values(given, _TRANSACTION_UID)
    if of_url and stated and stated != [of_url]:
        raise InvalidRequest("The Transaction UIDs of the URL and of the data set differ.")
    transaction = of_url or (str(stated[0]) if stated else "")
    return check_uid(transaction, "TransactionUID") if transaction else ""


async def change_state(partition: str, uid: str, given: Json) -> str:
    """Claim, complete or cancel a workitem (PS3.18 §11.7): a warning where it is in that state already.

    Raises NotFound, InvalidRequest, and what :func:`workitem_states.change` raises.
    """
    unknown = sorted(set(given) - {_STATE, _TRANSACTION_UID})
    if unknown:
        raise InvalidRequest(f"{workitem_attributes.shown(unknown[0])} is no part of a change of state.")
    target = str((_values(given, _STATE) or [""])[0])
    states = (
        workitem_states.SCHEDULED,
        workitem_states.IN_PROGRESS,
        workitem_states.COMPLETED,
        workitem_states.CANCELED,
    )
    if target not in states:
        raise InvalidRequest("ProcedureStepState must be IN PROGRESS, COMPLETED or CANCELED.")
    transaction = _transaction("", given)

    def work(workitem: Workitem) -> Change:
        after, warning = workitem_states.change(workitem.data_set, workitem.owner, transaction, target, now())
        claimed = target == workitem_states.IN_PROGRESS
        return Change(transaction if claimed else workitem.owner, after, warning=warning)

    return await _change(partition, uid, work)


async def request_cancellation(partition: str, uid: str, given: Json) -> str:
    """Cancel a workitem nobody has claimed, or ask who has to do so (PS3.18 §11.8).

    A warning where it is canceled already. Raises NotFound; AlreadyCompleted, and NoPerformer
    where it is IN PROGRESS and nobody is subscribed to it, so that nobody would hear of the request.
    """
    requester = str((_values(given, _REQUESTING_AE) or [_ANONYMOUS])[0])

    def work(workitem: Workitem) -> Change:
        state = workitem_states.state_of(workitem.data_set)
        if state == workitem_states.SCHEDULED:
            return Change("", _sorted(workitem_states.cancel(workitem.data_set, given, now())))
        if state == workitem_states.IN_PROGRESS:
            report = event_reports.cancel_requested(requester, given)
            return Change(workitem.owner, workitem.data_set, (report,))
        if state == workitem_states.CANCELED:
            return Change("", workitem.data_set, warning=workitem_states.ALREADY.format(state))
        raise workitem_states.AlreadyCompleted("The workitem is COMPLETED and cannot be canceled.")

    return await _change(partition, uid, work, heard=True)


async def _change(partition: str, uid: str, work: Callable[[Workitem], Change], heard: bool = False) -> str:
    """Change a workitem in one transaction: a warning. ``heard``: its reports must reach somebody."""

    def transaction(connection: Any) -> tuple[Change, int]:
        after, reported = index.change(connection, partition, uid, work)
        if heard and after.reports and not reported:
            raise workitem_states.NoPerformer(
                "The workitem is IN PROGRESS, and nobody is subscribed to it who would hear of the request."
            )
        return after, reported

    after, reported = await container.database().write(transaction)
    if reported:
        await workitem_events.announce()
    return after.warning


async def search(query: WorkitemQuery, count: bool = False) -> Page:
    """A page of workitems as they are at one moment. ``count`` counts all results."""
    database = container.database()
    rows = await database.read(index.search, replace(query, limit=query.limit + 1))
    results = [_result(orjson.loads(row.data_set), query) for row in rows[: query.limit]]
    total = await database.read(index.count, query) if count else None
    last = rows[query.limit - 1].position if len(rows) > query.limit else None
    return Page(results, last, total)


def _result(workitem: Json, query: WorkitemQuery) -> Json:
    """What of a workitem is returned: attributes returned unasked are empty where it has none."""
    if query.include_all:
        return workitem
    empty = {tag: {"vr": vr} for tag, vr in default_tags()}
    wanted = {*empty, *conditional_tags(), *query.requested}
    return {tag: workitem.get(tag) or empty[tag] for tag in sorted(wanted) if tag in workitem or tag in empty}


def now() -> str:
    """This moment as a DT in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def read_body(body: bytes, in_xml: bool) -> Json:
    """The data set of a request's body. Raises InvalidRequest."""
    return data_set.from_xml(body) if in_xml else data_set.from_json(body)


def _values(given: Mapping[str, Any], tag: str) -> list[Any]:
    return [value for value in given.get(tag, {}).get("Value", []) if value not in (None, "")]


def _sorted(given: Json) -> Json:
    """In order of tag; with the character set that JSON has where it matters."""
    given = {tag: value for tag, value in given.items() if tag != _CHARACTER_SET}
    if not str(given).isascii():
        given[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return {tag: given[tag] for tag in sorted(given)}
