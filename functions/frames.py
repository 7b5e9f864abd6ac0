"""Retrieve frames (PS3.18 §10.4.1.1.6): ``GET .../frames/{list}``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, routes, single_part
from shared import services
from shared.dicom.transcode import transcodable
from shared.errors import InvalidRequest, NotAcceptable
from shared.web import negotiate, urls
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()

MOST_FRAMES = 10_000


@http.route(blueprint, routes.FRAMES, ["GET", "HEAD"])
async def retrieve_frames(request: Request) -> Response:
    """Frames of an instance, in the order of the list."""
    resource = http.resource(request)
    wanted = numbers(request.path_params["frames"])
    ranges = http.accepted(request)
    (stored,) = await services.retrieve.find(resource)
    choices = negotiate.frames(ranges, stored.transfer_syntax, len(wanted))
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    chosen = choices[await services.transcoded.first_possible(stored, targets)]
    (syntax,) = chosen.transfer_syntaxes
    if transcodable(stored.transfer_syntax, syntax):
        payloads = _transcoded(stored, wanted, syntax)
    else:
        payloads = services.retrieve.read_frames(stored, wanted, syntax)
    content_type = f"{chosen.media_type}; transfer-syntax={syntax}"
    url = f"{urls.instance_url(http.service_root(request, resource.partition), stored.key)}/frames"
    if len(wanted) == 1:
        digest = services.retrieve.digest([stored], f"{url}/{wanted[0]} {content_type}")
        location = f"{url}/{wanted[0]}" if chosen.multipart else ""
        payload = await anext(payloads)
        assert not isinstance(payload, NotAcceptable)
        return await single_part.respond(request, payload, content_type, digest, location)
    boundary = secrets.token_hex(16)
    parts = _parts(wanted, payloads, MultipartWriter(boundary), content_type, url)
    return StreamingResponse(
        await http.primed(parts),
        media_type=f'multipart/related; type="{chosen.media_type}"; boundary={boundary}',
    )


async def _transcoded(
    stored: StoredInstance, wanted: list[int], syntax: str
) -> AsyncIterator[Payload | NotAcceptable]:
    """Each frame, or why it cannot be had where others can; of one alone that is raised."""
    async for result in services.transcoded.read_frames(stored, wanted, syntax):
        if result.problem:
            error = NotAcceptable(result.problem)
            if len(wanted) == 1:
                raise error
            yield error
        else:
            yield services.retrieve.in_memory(result.data)


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
    wanted: list[int],
    payloads: AsyncIterator[Payload | NotAcceptable] | AsyncIterator[Payload],
    writer: MultipartWriter,
    content_type: str,
    url: str,
) -> AsyncIterator[bytes]:
    turn = iter(wanted)
    async for payload in payloads:
        location = f"{url}/{next(turn)}"
        if isinstance(payload, NotAcceptable):
            problem = http.problem_part(str(payload))
            yield writer.begin(http.PROBLEM_JSON, len(problem), location) + problem + writer.end
            continue
        head = writer.begin(content_type, payload.length, location)
        async for chunk in payload.chunks:
            yield head + chunk
            head = b""
        yield head + writer.end
    yield writer.close()
