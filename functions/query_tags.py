"""Extended query tags (the ancestor's extension): ``/v2/extendedquerytags``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, operations, routes
from shared import services
from shared.errors import InvalidRequest
from shared.services.access import Action

if TYPE_CHECKING:
    from shared.services.query_tags import Described, TagError

blueprint = func.Blueprint()

MOST_LISTED = 200
MOST_BYTES = 4 * 1024 * 1024


@http.route(blueprint, routes.QUERY_TAGS, ["POST"], action=Action.MANAGE, partitioned=False)
async def add_query_tags(request: Request) -> Response:
    """Add tags: 202 with the operation that indexes what is stored already."""
    operation = await services.query_tags.add(await _body(request))
    return operations.accepted(request, operation)


@http.route(
    blueprint, routes.QUERY_TAGS, ["GET", "HEAD"], action=Action.READ, partitioned=False, any_partition=True
)
async def list_query_tags(request: Request) -> Response:
    """The tags, in the order in which they were added."""
    described = await services.query_tags.listed(*_page(request))
    return await _json(request, [_tag(request, one) for one in described])


@http.route(
    blueprint, routes.QUERY_TAG, ["GET", "HEAD"], action=Action.READ, partitioned=False, any_partition=True
)
async def read_query_tag(request: Request) -> Response:
    """One tag."""
    described = await services.query_tags.get(request.path_params["tag"])
    return await _json(request, _tag(request, described))


@http.route(blueprint, routes.QUERY_TAG, ["PATCH"], action=Action.MANAGE, partitioned=False)
async def update_query_tag(request: Request) -> Response:
    """Allow or forbid queries by a tag."""
    enabled = _query_status(await _body(request))
    described = await services.query_tags.enable(request.path_params["tag"], enabled)
    return await _json(request, _tag(request, described))


@http.route(blueprint, routes.QUERY_TAG, ["DELETE"], action=Action.MANAGE, partitioned=False)
async def delete_query_tag(request: Request) -> Response:
    """Delete a tag; its values are removed by an operation that the tag names meanwhile."""
    await services.query_tags.delete(request.path_params["tag"])
    return Response(status_code=204)


@http.route(blueprint, routes.QUERY_TAG_ERRORS, ["GET", "HEAD"], action=Action.READ, partitioned=False)
async def list_query_tag_errors(request: Request) -> Response:
    """The instances whose values a tag lacks."""
    found = await services.query_tags.errors(request.path_params["tag"], *_page(request))
    return await _json(request, [_error(error) for error in found])


async def _body(request: Request) -> Any:
    """The body as JSON."""
    try:
        return json.loads(await http.json_body(request, MOST_BYTES))
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is no JSON.") from None


def _page(request: Request) -> tuple[int, int]:
    """limit and offset."""
    query = {name: value for name, value in request.query_params.items() if name != "accept"}
    limit = _integer("limit", query.pop("limit", "100"), 1, MOST_LISTED)
    offset = _integer("offset", query.pop("offset", "0"), 0, 2**31 - 1)
    if query:
        raise InvalidRequest(f"Unknown query parameter {min(query)[:64]!r}.")
    return limit, offset


def _integer(name: str, text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise InvalidRequest(f"{name} must be a number from {least} to {most}.")
    return int(text)


def _query_status(body: Any) -> bool:
    """What a body ``{"queryStatus": "Enabled"}`` asks for."""
    fields = {name.lower(): value for name, value in body.items()} if isinstance(body, dict) else {}
    status = fields.get("querystatus")
    if set(fields) != {"querystatus"} or str(status).lower() not in ("enabled", "disabled"):
        raise InvalidRequest("The body must be an object with queryStatus alone, Enabled or Disabled.")
    return str(status).lower() == "enabled"


def _tag(request: Request, described: Described) -> dict[str, Any]:
    tag = described.tag
    href = f"{http.base_url(request)}/{routes.QUERY_TAGS}/{tag.path}"
    body: dict[str, Any] = {"path": tag.path, "vr": tag.definition.vr}
    if tag.definition.creator:
        body["privateCreator"] = tag.definition.creator
    body |= {
        "level": tag.level.name.title(),
        "status": tag.status,
        "queryStatus": "Enabled" if tag.enabled else "Disabled",
        "version": tag.version,
    }
    if described.errors:
        body["errors"] = {"count": described.errors, "href": f"{href}/errors"}
    if tag.status != "Ready":
        body["operation"] = operations.reference(request, tag.operation)
    return body


def _error(error: TagError) -> dict[str, str]:
    return {
        "partitionName": error.key.partition,
        "studyInstanceUid": error.key.study,
        "seriesInstanceUid": error.key.series,
        "sopInstanceUid": error.key.instance,
        "createdTime": error.created,
        "errorMessage": error.message,
    }


async def _json(request: Request, body: Any) -> Response:
    import orjson

    return await http.json_response(request, orjson.dumps(body), "application/json")
