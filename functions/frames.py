"""Retrieve frames (PS3.18 §10.4.1.1.6): ``GET .../frames/{list}``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, multi_part, routes, single_part
from shared import services, telemetry
from shared.errors import InvalidRequest, NotAcceptable
from shared.services.access import Action
from shared.web import negotiate, urls
from shared.web.negotiate import Representation

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()

MOST_FRAMES = 10_000


@http.route(blueprint, routes.FRAMES, ["GET", "HEAD"], action=Action.READ)
async def retrieve_frames(request: Request) -> Response:
    """Frames of an instance, in the order of the list."""
    resource = http.resource(request)
    wanted = numbers(request.path_params["frames"])
    ranges = http.accepted(request)
    (stored,) = await services.retrieve.find(resource, http.wants_original(request))
    choices = negotiate.frames(ranges, stored.transfer_syntax, len(wanted))
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/frames"
    if len(wanted) == 1:
        return await _one(request, stored, wanted[0], choices, f"{url}/{wanted[0]}")
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    index, payloads = await services.transcoded.open_frames(stored, wanted, targets)
    telemetry.add(telemetry.FRAMES_SERVED, len(wanted))
    parts = _parts(wanted, payloads, _content_type(choices[index]), url)
    return await multi_part.respond(parts, choices[index].media_type)


async def _one(
    request: Request, stored: StoredInstance, number: int, choices: Sequence[Representation], url: str
) -> Response:
    services.retrieve.check_frames(stored, [number])
    had = _identity(stored, choices[0], url)
    unchanged = single_part.unchanged(request, *had)  # a client that has the first choice could get it
    if unchanged is not None:
        return unchanged
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    index, payload = await services.transcoded.open_frame(stored, number, targets)
    chosen = choices[index]
    telemetry.add(telemetry.FRAMES_SERVED)
    return await single_part.respond(request, payload, _content_type(chosen), *_identity(stored, chosen, url))


def _content_type(choice: Representation) -> str:
    return f"{choice.media_type}; transfer-syntax={choice.transfer_syntaxes[0]}"


def _identity(stored: StoredInstance, choice: Representation, url: str) -> tuple[str, str]:
    """Digest and location of a frame, see :func:`single_part.respond`."""
    digest = services.retrieve.digest([stored], f"{url} {_content_type(choice)}")
    return digest, url if choice.multipart else ""


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
