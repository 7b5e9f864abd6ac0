"""Search (QIDO-RS, PS3.18 §10.6): ``GET`` of studies, series and instances at six paths."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import accept

blueprint = func.Blueprint()


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
    from shared.web.query_params import search_query

    media_type = accept.accepts(http.accepted(request), "application/dicom+json", "application/json")
    if not media_type:
        raise NotAcceptable("A search answers with application/dicom+json.")
    resource = http.resource(request)
    parameters = [pair for pair in request.query_params.multi_items() if pair[0] != "accept"]
    query = search_query(Level[level], resource, parameters)
    found = await services.search.search(query, http.service_root(request, resource.partition))
    if not found:
        return Response(status_code=204)
    return await http.json_response(request, orjson.dumps(found), media_type)
