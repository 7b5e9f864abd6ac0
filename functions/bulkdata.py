"""Retrieve bulk data (PS3.18 §10.4.1.1.5): ``GET .../bulkdata/{path}`` for every BulkDataURI given out."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, routes
from shared import services
from shared.web import negotiate, urls
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload

blueprint = func.Blueprint()


@http.route(blueprint, routes.BULKDATA, ["GET", "HEAD"])
async def retrieve_bulkdata(request: Request) -> Response:
    """One value, multipart or alone."""
    resource = http.resource(request)
    chosen = negotiate.bulkdata(http.accepted(request))
    (stored,) = await services.retrieve.find(resource)
    path = request.path_params["path"]
    payload = await services.retrieve.read_bulkdata(stored, path)
    if not chosen.multipart:
        headers = http.content_length(payload.length)
        return StreamingResponse(
            await http.primed(payload.chunks), headers=headers, media_type=chosen.media_type
        )
    boundary = secrets.token_hex(16)
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/bulkdata/{path}"
    parts = _part(payload, MultipartWriter(boundary), chosen.media_type, url)
    return StreamingResponse(
        await http.primed(parts),
        media_type=f'multipart/related; type="{chosen.media_type}"; boundary={boundary}',
    )


async def _part(payload: Payload, writer: MultipartWriter, media_type: str, url: str) -> AsyncIterator[bytes]:
    yield writer.begin(media_type, payload.length, url)
    async for chunk in payload.chunks:
        yield chunk
    yield writer.end + writer.close()
