"""Retrieve metadata (PS3.18 §10.4.1.1.2): ``GET .../metadata`` of a study, a series or an instance."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, routes
from shared import services
from shared.web import negotiate

blueprint = func.Blueprint()


@http.route(blueprint, routes.STUDY_METADATA, ["GET", "HEAD"])
async def retrieve_study_metadata(request: Request) -> Response:
    """Metadata of all instances of a study."""
    return await _retrieve(request)


@http.route(blueprint, routes.SERIES_METADATA, ["GET", "HEAD"])
async def retrieve_series_metadata(request: Request) -> Response:
    """Metadata of all instances of a series."""
    return await _retrieve(request)


@http.route(blueprint, routes.INSTANCE_METADATA, ["GET", "HEAD"])
async def retrieve_instance_metadata(request: Request) -> Response:
    """Metadata of one instance."""
    return await _retrieve(request)


async def _retrieve(request: Request) -> Response:
    resource = http.resource(request)
    media_type = negotiate.metadata(http.accepted(request))
    found = await services.retrieve.find(resource)
    root = http.service_root(request, resource.partition)
    compress = http.accepts_gzip(request)
    headers = http.validators(services.retrieve.digest(found, root), compress)
    if http.not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    body = await http.primed(http.json_array(services.retrieve.read_metadata(found, root)))
    if compress:
        headers["Content-Encoding"] = "gzip"
        body = http.gzipped(body)
    return StreamingResponse(body, headers=headers, media_type=media_type)
