"""The change feed (the ancestor's extension): ``GET /v2/changefeed`` and ``/v2/changefeed/latest``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import azure.functions as func
import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.errors import InvalidRequest
from shared.services.access import Action
from shared.web import negotiate

if TYPE_CHECKING:
    from shared.services.change_feed import Change

blueprint = func.Blueprint()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PARAMETERS = {"offset", "limit", "starttime", "endtime", "includemetadata"}


@http.route(blueprint, routes.CHANGE_FEED, ["GET", "HEAD"], action=Action.READ, partitioned=False)
async def read_change_feed(request: Request) -> Response:
    """Entries in order of Sequence, of all partitions."""
    negotiate.json(http.accepted(request))
    query = _query(request)
    changes = await services.change_feed.read(
        http.integer(query, "offset", 0, 0, 2**63 - 1),
        http.integer(query, "limit", 100, 1, 200),
        _moment(query, "starttime"),
        _moment(query, "endtime"),
        _boolean(query, "includemetadata", True),
    )
    body = orjson.dumps([_entry(change, request) for change in changes])
    return await http.json_response(request, body, "application/json")


@http.route(blueprint, routes.CHANGE_FEED_LATEST, ["GET", "HEAD"], action=Action.READ, partitioned=False)
async def read_latest_change(request: Request) -> Response:
    """The newest entry; 204 while there is none."""
    negotiate.json(http.accepted(request))
    change = await services.change_feed.latest(_boolean(_query(request), "includemetadata", True))
    if change is None:
        return Response(status_code=204)
    return await http.json_response(request, orjson.dumps(_entry(change, request)), "application/json")


def _query(request: Request) -> dict[str, str]:
    """Query parameters by lower-case name, which is how the ancestor's users write them in any case."""
    query = {name.lower(): value for name, value in request.query_params.items() if name != "accept"}
    unknown = sorted(set(query) - _PARAMETERS)
    if unknown:
        raise InvalidRequest(f"Unknown query parameter {unknown[0]}.")
    return query


def _boolean(query: dict[str, str], name: str, default: bool) -> bool:
    text = query.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false.")
    return text == "true"


def _moment(query: dict[str, str], name: str) -> datetime | None:
    """A time window's bound: ISO 8601; without an offset UTC is meant."""
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} must be a date and time in ISO 8601.") from None
    return max(moment, _EPOCH)  # timestamps are compared as text, which needs years of four digits


def _entry(change: Change, request: Request) -> dict[str, object]:
    entry = change.entry
    result: dict[str, object] = {
        "Sequence": entry.sequence,
        "StudyInstanceUid": entry.key.study,
        "SeriesInstanceUid": entry.key.series,
        "SopInstanceUid": entry.key.instance,
        "PartitionName": entry.key.partition,
        "Action": entry.action,
        "Timestamp": entry.timestamp,
        "State": entry.state,
    }
    if change.metadata is not None:
        root = http.service_root(request, entry.key.partition)
        result["Metadata"] = orjson.Fragment(services.retrieve.with_urls(change.metadata, entry.key, root))
    return result
