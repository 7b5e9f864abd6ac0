"""Retrieve bulk data (PS3.18 §10.4.1.1.5): ``GET .../bulkdata/{path}`` for every BulkDataURI given out."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes, single_part
from shared import services
from shared.services.access import Action
from shared.web import negotiate, urls

blueprint = func.Blueprint()


@http.route(blueprint, routes.BULKDATA, ["GET", "HEAD"], action=Action.READ)
async def retrieve_bulkdata(request: Request) -> Response:
    """One value, multipart or alone."""
    resource = http.resource(request)
    (stored,) = await services.retrieve.find(resource, http.wants_original(request))
    path = request.path_params["path"]
    own_type, length = await services.retrieve.own_media_type(stored, path)
    chosen = negotiate.bulkdata(http.accepted(request), own_type)
    payload = await services.retrieve.read_bulkdata(stored, path)
    if chosen.media_type == own_type:
        payload = services.retrieve.without_padding(payload, length)
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/bulkdata/{path}"
    digest = services.retrieve.digest([stored], f"{url} {chosen.media_type}")
    location = url if chosen.multipart else ""
    return await single_part.respond(request, payload, chosen.media_type, digest, location)
