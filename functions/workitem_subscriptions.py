"""Subscribers of workitems: where they connect, and the event reports they missed."""

from __future__ import annotations

import azure.functions as func
import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.dicom.identifiers import DEFAULT_PARTITION, check_ae_title, check_partition
from shared.errors import InvalidRequest, NotAcceptable
from shared.services.access import Action
from shared.web import accept, negotiate

blueprint = func.Blueprint()

_MOST_EVENTS = 1000


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
        _integer(query, "after", 0, 0, 2**63 - 1),
        _integer(query, "limit", _MOST_EVENTS, 1, _MOST_EVENTS),
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
    path = request.path_params
    partition = check_partition(path.get("partition", DEFAULT_PARTITION))
    return partition, check_ae_title(path["subscriber"])


def _integer(query: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}.")
    return int(text)
