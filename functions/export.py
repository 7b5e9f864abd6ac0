"""Export (the ancestor's extension): ``POST /v2/export`` copies instances to a container of Blob Storage."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from functions.operations import accepted
from shared import services
from shared.services.access import Action

blueprint = func.Blueprint()


@http.route(blueprint, routes.EXPORT, ["POST"], action=Action.MANAGE)
async def export_instances(request: Request) -> Response:
    """Start an export: 202 and where to follow it."""
    from shared.web import export_request

    body = await http.json_body(request, export_request.MAX_BYTES)
    tags = await services.query_tags.for_search()
    asked = export_request.parse(body, http.resource(request).partition, tags)
    query = asked.query
    source = services.export.Source(
        asked.partition,
        asked.identifiers,
        query.resource.study if query else "",
        query.resource.series if query else "",
        query.terms if query else (),
    )
    form = services.export.Form(asked.profile_options, asked.allow_burned_in, asked.parquet)
    return accepted(request, await services.export.start(source, asked.destination, form))
