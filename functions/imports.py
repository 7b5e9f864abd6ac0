"""Bulk import (an extension): ``POST /v2/import``, and the report of what was not stored."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, operations, routes
from shared import services
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import accept, import_request

blueprint = func.Blueprint()

_REPORT = "application/x-ndjson"


@http.route(blueprint, routes.IMPORT, ["POST"], action=Action.MANAGE)
async def import_instances(request: Request) -> Response:
    """Start an import of the files of a container, or of the inbox, into the partition."""
    partition = http.resource(request).partition
    given = import_request.parse(await http.json_body(request, import_request.MAX_BYTES))
    options = services.imports.Options(given.replace, given.delete_sources)
    where = None if given.where is None else dict(given.where)
    return operations.accepted(request, await services.imports.start(partition, where, given.prefix, options))


@http.route(blueprint, routes.IMPORT_REPORT, ["GET", "HEAD"], action=Action.READ)
async def read_import_report(request: Request) -> Response:
    """A line of JSON for every file that was not stored; of an import that runs, as far as it has come."""
    if not accept.accepts(http.accepted(request), _REPORT, "application/json"):
        raise NotAcceptable(f"The report is {_REPORT}.")
    partition = http.resource(request).partition
    lines = await services.imports.report(partition, request.path_params["operation"])
    return StreamingResponse(
        await http.primed(lines), media_type=_REPORT, headers={"Cache-Control": "no-store"}
    )
