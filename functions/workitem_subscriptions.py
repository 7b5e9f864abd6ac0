"""Subscriptions to workitems and worklists (PS3.18 §11.10 to §11.12), and what subscribers get by them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import azure.functions as func
import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.dicom.identifiers import check_ae_title, check_uid
from shared.errors import InvalidRequest, NotAcceptable
from shared.services.access import Action
from shared.web import accept, negotiate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shared.dicom.search_terms import Term

blueprint = func.Blueprint()

_MOST_EVENTS = 1000


@http.route(blueprint, routes.SUBSCRIPTION, ["POST"], action=Action.READ)
async def subscribe(request: Request) -> Response:
    """Subscribe to a workitem or a worklist (§11.10): 201 with the URL of the notification connection."""
    partition, subscriber = _subscriber(request)
    uid = _workitem(request)
    deletion_lock, terms = _subscription(request, partition, uid)
    url = await services.workitem_subscriptions.subscribe(partition, uid, subscriber, deletion_lock, terms)
    headers = {"Cache-Control": "no-store"} | ({"Content-Location": url} if url else {})
    return Response(status_code=201, headers=headers)


@http.route(blueprint, routes.SUBSCRIPTION, ["DELETE"], action=Action.READ)
async def unsubscribe(request: Request) -> Response:
    """End a subscription (§11.11)."""
    partition, subscriber = _subscriber(request)
    await services.workitem_subscriptions.unsubscribe(partition, _workitem(request), subscriber)
    return Response(status_code=200)


@http.route(blueprint, routes.SUSPENSION, ["POST"], action=Action.READ)
async def suspend_subscription(request: Request) -> Response:
    """Let new workitems make no subscriptions any more (§11.12)."""
    partition, subscriber = _subscriber(request)
    uid = _workitem(request)
    known = services.workitem_subscriptions
    if uid not in (known.WORKLIST, known.FILTERED_WORKLIST):
        raise InvalidRequest("A subscription to a worklist can be suspended, one to a workitem cannot.")
    await known.suspend(partition, uid, subscriber)
    return Response(status_code=200)


@http.route(blueprint, routes.SUBSCRIBER, ["GET", "HEAD"], action=Action.READ)
async def read_subscriber(request: Request) -> Response:
    """Where a subscriber connects (PS3.18 §8.10.4), with a token that is good for it alone."""
    if not accept.accepts(http.accepted(request), "application/json"):
        raise NotAcceptable("A subscriber is application/json.")
    partition, subscriber = _subscriber(request)
    body = {
        "subscriber": subscriber,
        "webSocketUrl": await services.workitem_events.connection_url(partition, subscriber),
        "lastEventId": await services.workitem_events.last_event_id(partition, subscriber),
    }
    headers = {"Cache-Control": "no-store"}
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


@http.route(blueprint, routes.SUBSCRIBER_EVENTS, ["GET", "HEAD"], action=Action.READ)
async def read_events(request: Request) -> Response:
    """Event reports of a subscriber after the Event ID ``after``, in order; 204 where there is none."""
    negotiate.json(http.accepted(request))
    partition, subscriber = _subscriber(request)
    query = {name: value for name, value in request.query_params.items() if name != "accept"}
    unknown = sorted(set(query) - {"after", "limit"})
    if unknown:
        raise InvalidRequest(f"Unknown query parameter {unknown[0]}.")
    found = await services.workitem_events.missed(
        partition,
        subscriber,
        http.integer(query, "after", 0, 0, 2**63 - 1),
        http.integer(query, "limit", _MOST_EVENTS, 1, _MOST_EVENTS),
    )
    headers = {"Cache-Control": "no-store"}
    if found.lost:
        text = f"{found.lost} earlier event reports are no longer kept."
        headers["Warning"] = f'299 {http.service_root(request, partition)} "{text}"'
    if not found.payloads:
        return Response(status_code=204, headers=headers)
    body = b"[" + b",".join(found.payloads) + b"]"
    return Response(body, media_type="application/dicom+json", headers=headers)


def _subscriber(request: Request) -> tuple[str, str]:
    """The partition and the AE title of the path. Raises InvalidRequest."""
    return http.resource(request).partition, check_ae_title(request.path_params["subscriber"])


def _workitem(request: Request) -> str:
    return check_uid(request.path_params["workitem"], "The workitem's UID")


def _subscription(request: Request, partition: str, uid: str) -> tuple[bool, Sequence[Term] | None]:
    """Whether a deletion lock is asked for, and the terms of the filtered worklist.

    Matching keys are query parameters, as of a search, or the list of the parameter ``filter``:
    ``filter=ScheduledStationAETitle=CT1,WorklistLabel=Chest`` (§11.10.1.2). Raises InvalidRequest.
    """
    lock, keys = "false", list[tuple[str, str]]()
    for name, value in request.query_params.multi_items():
        if name == "deletionlock":
            lock = value.lower()
        elif name == "filter":
            keys += [_pair(pair) for pair in re.split(r",(?=[0-9A-Za-z.]+=)", value)]
        elif name != "accept":
            keys.append((name, value))
    if lock not in ("true", "false"):
        raise InvalidRequest("deletionlock must be true or false.")
    if uid != services.workitem_subscriptions.FILTERED_WORKLIST:
        if keys:
            raise InvalidRequest(f"Only the filtered worklist takes the query parameter {keys[0][0][:64]}.")
        return lock == "true", None
    if not keys:
        raise InvalidRequest("A subscription to the filtered worklist needs a matching key.")
    from shared.web import query_params

    return lock == "true", query_params.workitem_request(partition, keys).query.terms


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest("filter must be a list of attribute=value, with commas between them.")
    return name, value
