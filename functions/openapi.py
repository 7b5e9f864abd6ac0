"""What the server can do: the OpenAPI document at ``/v2/openapi.json``, and the Retrieve Capabilities
transaction (PS3.18 §8.9) at the base path. Both are made from the registered functions on the first request.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import accept

blueprint = func.Blueprint()

_CAPABILITIES = ("application/json", "application/vnd.sun.wadl+xml")


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


@http.route(
    blueprint,
    routes.CAPABILITIES,
    ["GET", "HEAD", "OPTIONS"],
    action=Action.READ,
    partitioned=False,
    any_partition=True,
)
async def retrieve_capabilities(request: Request) -> Response:
    """What the server can do, as WADL or as an OpenAPI document."""
    import orjson

    media_type = accept.accepts(http.accepted(request), *_CAPABILITIES)
    if not media_type:
        raise NotAcceptable(f"Capabilities are described in {' and '.join(_CAPABILITIES)}.")
    content = _document() | {"servers": [{"url": http.base_url(request)}]}
    if media_type == "application/json":
        body = orjson.dumps(content)
    else:
        from shared.web import wadl

        body = wadl.application(content)
    headers = {"Cache-Control": "no-cache", "Vary": "Accept", "Allow": "GET, HEAD, OPTIONS"}
    return Response(body, media_type=media_type, headers=headers)


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
