"""Delete (the ancestor's extension): ``DELETE`` of a study, a series or an instance."""

from __future__ import annotations

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.services.access import Action

blueprint = func.Blueprint()


@http.route(blueprint, routes.STUDY, ["DELETE"], action=Action.DELETE)
async def delete_study(request: Request) -> Response:
    """Delete a study."""
    return await _delete(request)


@http.route(blueprint, routes.SERIES, ["DELETE"], action=Action.DELETE)
async def delete_series(request: Request) -> Response:
    """Delete a series."""
    return await _delete(request)


@http.route(blueprint, routes.INSTANCE, ["DELETE"], action=Action.DELETE)
async def delete_instance(request: Request) -> Response:
    """Delete an instance."""
    return await _delete(request)


async def _delete(request: Request) -> Response:
    await services.delete.delete(http.resource(request))
    return Response(status_code=204)
