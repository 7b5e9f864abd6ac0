"""Retrieve instances (WADO-RS, PS3.18 §10.4): ``GET`` of a study, a series or an instance."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, routes
from shared import services
from shared.errors import NotAcceptable
from shared.web import negotiate, urls
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()


@http.route(blueprint, routes.STUDY, ["GET", "HEAD"])
async def retrieve_study(request: Request) -> Response:
    """All instances of a study."""
    return await _retrieve(request)


@http.route(blueprint, routes.SERIES, ["GET", "HEAD"])
async def retrieve_series(request: Request) -> Response:
    """All instances of a series."""
    return await _retrieve(request)


@http.route(blueprint, routes.INSTANCE, ["GET", "HEAD"])
async def retrieve_instance(request: Request) -> Response:
    """One instance, multipart or alone."""
    return await _retrieve(request)


async def _retrieve(request: Request) -> Response:
    resource = http.resource(request)
    ranges = http.accepted(request)
    found = await services.retrieve.find(resource)
    choices = negotiate.instances(ranges, [s.transfer_syntax for s in found], bool(resource.instance))
    chosen = choices[0]
    if len(found) == 1:
        targets = [choice.transfer_syntaxes[0] for choice in choices]
        chosen = choices[await services.transcoded.first_possible(found[0], targets)]
    payloads = _payloads(found, chosen.transfer_syntaxes)
    if not chosen.multipart:
        payload = await anext(payloads)
        assert not isinstance(payload, NotAcceptable)
        headers = http.content_length(payload.length)
        content_type = f"{negotiate.DICOM}; transfer-syntax={chosen.transfer_syntaxes[0]}"
        return StreamingResponse(await http.primed(payload.chunks), headers=headers, media_type=content_type)
    root = http.service_root(request, resource.partition)
    boundary = secrets.token_hex(16)
    parts = _parts(found, chosen.transfer_syntaxes, payloads, MultipartWriter(boundary), root)
    content_type = f'multipart/related; type="{negotiate.DICOM}"; boundary={boundary}'
    return StreamingResponse(await http.primed(parts), media_type=content_type)


async def _payloads(
    found: Sequence[StoredInstance], transfer_syntaxes: Sequence[str]
) -> AsyncIterator[Payload | NotAcceptable]:
    """Each instance, or why it cannot be had where others can; of one alone that is raised."""
    if all(s.transfer_syntax == t for s, t in zip(found, transfer_syntaxes, strict=True)):
        async for payload in services.retrieve.read_instances(found):
            yield payload
        return
    for stored, target in zip(found, transfer_syntaxes, strict=True):
        try:
            yield await services.transcoded.read_instance(stored, target)
        except NotAcceptable as error:
            if len(found) == 1:
                raise
            yield error


async def _parts(
    found: Sequence[StoredInstance],
    transfer_syntaxes: Sequence[str],
    payloads: AsyncIterator[Payload | NotAcceptable],
    writer: MultipartWriter,
    root: str,
) -> AsyncIterator[bytes]:
    turn = iter(zip(found, transfer_syntaxes, strict=True))
    async for payload in payloads:
        stored, syntax = next(turn)
        url = urls.instance_url(root, stored.key)
        if isinstance(payload, NotAcceptable):
            problem = http.problem_part(str(payload))
            yield writer.begin(http.PROBLEM_JSON, len(problem), url) + problem + writer.end
            continue
        content_type = f"{negotiate.DICOM}; transfer-syntax={syntax}"
        head = writer.begin(content_type, payload.length, url)
        async for chunk in payload.chunks:
            yield head + chunk if head else chunk
            head = b""
        yield head + writer.end
    yield writer.close()
