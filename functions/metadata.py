"""Retrieve metadata (PS3.18 §10.4.1.1.2): ``GET .../metadata`` of a study, a series or an instance."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, multi_part, routes
from shared import services
from shared.services.access import Action
from shared.web import content_coding, negotiate

blueprint = func.Blueprint()


@http.route(blueprint, routes.STUDY_METADATA, ["GET", "HEAD"], action=Action.READ)
async def retrieve_study_metadata(request: Request) -> Response:
    """Metadata of all instances of a study."""
    return await _retrieve(request)


@http.route(blueprint, routes.SERIES_METADATA, ["GET", "HEAD"], action=Action.READ)
async def retrieve_series_metadata(request: Request) -> Response:
    """Metadata of all instances of a series."""
    return await _retrieve(request)


@http.route(blueprint, routes.INSTANCE_METADATA, ["GET", "HEAD"], action=Action.READ)
async def retrieve_instance_metadata(request: Request) -> Response:
    """Metadata of one instance."""
    return await _retrieve(request)


async def _retrieve(request: Request) -> Response:
    # The first request pays for DICOM's dictionary, not the start of the app.
    from shared.web.query_params import projection

    resource = http.resource(request)
    form = negotiate.metadata(http.accepted(request), single=bool(resource.instance))
    coding = http.content_coding_of(request)
    chosen = projection(pair for pair in request.query_params.multi_items() if pair[0] != "accept")
    found = await services.retrieve.find(resource, http.wants_original(request))
    root = http.service_root(request, resource.partition)
    in_xml = form.media_type == negotiate.DICOM_XML
    identity = f"{root} {form}" if in_xml else root
    digest = services.retrieve.digest(found, f"{identity} {chosen.key}" if chosen else identity)
    headers = http.validators(digest, coding)
    if http.not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    documents = services.retrieve.read_metadata(found, root)
    if chosen:
        documents = services.metadata.projected(documents, chosen)
    if not in_xml:
        body = await http.primed(content_coding.encoded(http.json_array(documents), coding))
        return StreamingResponse(body, headers=headers, media_type=form.media_type)
    bodies = services.metadata.in_xml(documents)
    if form.multipart:
        parts = (multi_part.Part(form.media_type, "", body) async for body in bodies)
        return await multi_part.respond(parts, form.media_type, digest, coding)
    xml = await http.primed(content_coding.encoded((await anext(bodies)).chunks, coding))
    return StreamingResponse(xml, headers=headers, media_type=form.media_type)
