"""Retrieve frames (PS3.18 §10.4.1.1.6): ``GET .../frames/{list}``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, multi_part, routes, single_part
from shared import services
from shared.errors import InvalidRequest, NotAcceptable
from shared.services.access import Action
from shared.web import negotiate, urls

if TYPE_CHECKING:
    from shared.services.retrieve import Payload

blueprint = func.Blueprint()

MOST_FRAMES = 10_000


@http.route(blueprint, routes.FRAMES, ["GET", "HEAD"], action=Action.READ)
async def retrieve_frames(request: Request) -> Response:
    """Frames of an instance, in the order of the list."""
    resource = http.resource(request)
    wanted = numbers(request.path_params["frames"])
    ranges = http.accepted(request)
    (stored,) = await services.retrieve.find(resource)
    choices = negotiate.frames(ranges, stored.transfer_syntax, len(wanted))
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    index, payloads = await services.transcoded.open_frames(stored, wanted, targets)
    chosen = choices[index]
    content_type = f"{chosen.media_type}; transfer-syntax={targets[index]}"
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/frames"
    if len(wanted) == 1:
        digest = services.retrieve.digest([stored], f"{url}/{wanted[0]} {content_type}")
        location = f"{url}/{wanted[0]}" if chosen.multipart else ""
        payload = await anext(payloads)
        if isinstance(payload, NotAcceptable):
            raise payload
        return await single_part.respond(request, payload, content_type, digest, location)
    return await multi_part.respond(_parts(wanted, payloads, content_type, url), chosen.media_type)


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
    wanted: list[int], payloads: AsyncIterator[Payload | NotAcceptable], content_type: str, url: str
) -> AsyncIterator[multi_part.Part]:
    turn = iter(wanted)
    async for payload in payloads:
        yield multi_part.Part(content_type, f"{url}/{next(turn)}", payload)
