"""Bulk update (the ancestor's extension): ``POST /v2/studies/$bulkUpdate``."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from functions.operations import accepted
from shared import services
from shared.errors import UnsupportedMediaType
from shared.services.access import Action
from shared.web.multipart import parse_content_type

blueprint = func.Blueprint()

_LARGEST_BODY = 1024 * 1024
_JSON = "application/json"


@http.route(blueprint, routes.BULK_UPDATE, ["POST"], action=Action.WRITE)
async def bulk_update(request: Request) -> Response:
    """Change attributes of up to 50 studies in every instance."""
    content_type = request.headers.get("content-type")
    if content_type and parse_content_type(content_type).media_type != _JSON:
        raise UnsupportedMediaType("The body must be application/json.")
    body = await http.body(request, _LARGEST_BODY)
    partition = http.resource(request).partition
    return accepted(request, await services.update.start(body, partition))
