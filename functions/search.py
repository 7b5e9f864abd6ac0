"""Search (QIDO-RS, PS3.18 §10.6): ``GET`` of studies, series and instances at six paths, and of patients."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import accept

blueprint = func.Blueprint()


@http.route(blueprint, routes.PATIENTS, ["GET", "HEAD"], action=Action.READ)
async def search_patients(request: Request) -> Response:
    """Patients that have studies."""
    return await _search(request, "PATIENT")


@http.route(blueprint, routes.STUDIES, ["GET", "HEAD"], action=Action.READ)
async def search_studies(request: Request) -> Response:
    """All studies."""
    return await _search(request, "STUDY")


@http.route(blueprint, routes.STUDY_SERIES, ["GET", "HEAD"], action=Action.READ)
async def search_study_series(request: Request) -> Response:
    """The series of a study."""
    return await _search(request, "SERIES")


@http.route(blueprint, routes.STUDY_INSTANCES, ["GET", "HEAD"], action=Action.READ)
async def search_study_instances(request: Request) -> Response:
    """The instances of a study."""
    return await _search(request, "INSTANCE")


@http.route(blueprint, routes.ALL_SERIES, ["GET", "HEAD"], action=Action.READ)
async def search_series(request: Request) -> Response:
    """All series."""
    return await _search(request, "SERIES")


@http.route(blueprint, routes.SERIES_INSTANCES, ["GET", "HEAD"], action=Action.READ)
async def search_series_instances(request: Request) -> Response:
    """The instances of a series."""
    return await _search(request, "INSTANCE")


@http.route(blueprint, routes.ALL_INSTANCES, ["GET", "HEAD"], action=Action.READ)
async def search_instances(request: Request) -> Response:
    """All instances."""
    return await _search(request, "INSTANCE")


async def _search(request: Request, level: str) -> Response:
    """200 with a page of results, 204 where nothing matches (PS3.18 §10.6.3)."""
    # The first search pays for DICOM's dictionary, not the start of the app.
    import orjson

    from shared.dicom.attributes import Level
    from shared.web import query_params

    media_type = accept.accepts(http.accepted(request), "application/dicom+json", "application/json")
    if not media_type:
        raise NotAcceptable("A search answers with application/dicom+json.")
    resource = http.resource(request)
    parameters = [pair for pair in request.query_params.multi_items() if pair[0] != "accept"]
    tags = None
    if query_params.names_query_tags(parameters):
        tags = await services.query_tags.for_search()
    asked = query_params.search_request(Level[level], resource, parameters, tags)
    root = http.service_root(request, resource.partition)
    page = await services.search.search(asked.query, root, asked.count)
    if page.results:
        response = await http.json_response(request, orjson.dumps(page.results), media_type)
    else:
        response = Response(status_code=204)
    cursor = query_params.cursor(asked, page.last) if page.last is not None else ""
    http.describe_page(request, response, page.total, cursor)
    erroneous = [tag.path for tag in asked.query.query_tags if tag.erroneous]
    if erroneous:
        response.headers["erroneous-dicom-attributes"] = ",".join(erroneous)
    return response
