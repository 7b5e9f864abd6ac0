"""The OpenAPI document: ``GET /v2/openapi.json``, made from the registered functions on the first request."""

from __future__ import annotations

from functools import cache
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared.services.access import Action

blueprint = func.Blueprint()


@http.route(
    blueprint, routes.OPENAPI, ["GET", "HEAD"], action=Action.READ, partitioned=False, any_partition=True
)
async def read_openapi(request: Request) -> Response:
    """This document."""
    import orjson

    content = _document() | {"servers": [{"url": http.base_url(request)}]}
    return Response(
        orjson.dumps(content), media_type="application/json", headers={"Cache-Control": "no-cache"}
    )


@cache
def _document() -> dict[str, Any]:
    # The attribute table loads DICOM's dictionary, which no cold start should pay for.
    from shared.web import openapi
    from shared.web.transactions import transaction_of

    return openapi.document(
        openapi.Route(
            endpoint.name,
            endpoint.template,
            endpoint.methods,
            transaction_of(endpoint.handler.__module__, endpoint.handler.__name__),
            (endpoint.handler.__doc__ or "").strip().partition("\n")[0],
        )
        for endpoint in http.ENDPOINTS
    )
