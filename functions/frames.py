"""Retrieve frames (PS3.18 §10.4.1.1.6): ``GET .../frames/{list}``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, routes, single_part
from shared import services
from shared.errors import InvalidRequest
from shared.web import negotiate, urls
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload

blueprint = func.Blueprint()

MOST_FRAMES = 10_000


@http.route(blueprint, routes.FRAMES, ["GET", "HEAD"])
async def retrieve_frames(request: Request) -> Response:
    """Frames of an instance, in the order of the list."""
    resource = http.resource(request)
    wanted = numbers(request.path_params["frames"])
    ranges = http.accepted(request)
    (stored,) = await services.retrieve.find(resource)
    chosen = negotiate.frames(ranges, stored.transfer_syntax, len(wanted))
    (syntax,) = chosen.transfer_syntaxes
    payloads = services.retrieve.read_frames(stored, wanted, syntax)
    content_type = f"{chosen.media_type}; transfer-syntax={syntax}"
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/frames"
    if len(wanted) == 1:
        digest = services.retrieve.digest([stored], f"{url}/{wanted[0]} {content_type}")
        location = f"{url}/{wanted[0]}" if chosen.multipart else ""
        return await single_part.respond(request, await anext(payloads), content_type, digest, location)
    boundary = secrets.token_hex(16)
    parts = _parts(wanted, payloads, MultipartWriter(boundary), content_type, url)
    return StreamingResponse(
        await http.primed(parts),
        media_type=f'multipart/related; type="{chosen.media_type}"; boundary={boundary}',
    )


def numbers(text: str) -> list[int]:
    """The frame list of the path (§10.4.1.1.6: integers from 1, separated by commas)."""
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(
        piece.isascii() and piece.isdigit() and len(piece) < 10 and int(piece) > 0 for piece in pieces
    ):
        raise InvalidRequest("The frame list must be integers from 1 on, separated by commas.")
    if len(pieces) > MOST_FRAMES:
        raise InvalidRequest(f"The frame list names more than {MOST_FRAMES} frames.")
    return [int(piece) for piece in pieces]


async def _parts(
    wanted: list[int], payloads: AsyncIterator[Payload], writer: MultipartWriter, content_type: str, url: str
) -> AsyncIterator[bytes]:
    turn = iter(wanted)
    async for payload in payloads:
        head = writer.begin(content_type, payload.length, f"{url}/{next(turn)}")
        async for chunk in payload.chunks:
            yield head + chunk
            head = b""
        yield head + writer.end
    yield writer.close()
