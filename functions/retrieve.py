"""Retrieve instances (WADO-RS, PS3.18 §10.4): ``GET`` of a study, a series or an instance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, multi_part, routes, single_part
from shared import services
from shared.dicom.identifiers import Resource
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import negotiate, urls
from shared.web.accept import MediaRange

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()


@http.route(blueprint, routes.STUDY, ["GET", "HEAD"], action=Action.READ)
async def retrieve_study(request: Request) -> Response:
    """All instances of a study."""
    return await _retrieve(request)


@http.route(blueprint, routes.SERIES, ["GET", "HEAD"], action=Action.READ)
async def retrieve_series(request: Request) -> Response:
    """All instances of a series."""
    return await _retrieve(request)


@http.route(blueprint, routes.INSTANCE, ["GET", "HEAD"], action=Action.READ)
async def retrieve_instance(request: Request) -> Response:
    """One instance, multipart or alone."""
    return await _retrieve(request)


async def _retrieve(request: Request) -> Response:
    resource = http.resource(request)
    ranges = http.accepted(request)
    found = await services.retrieve.find(resource, http.wants_original(request))
    zipped = negotiate.archive(ranges)
    if zipped:
        return await _archive(found, resource, zipped)
    choices = negotiate.instances(ranges, [s.transfer_syntax for s in found], bool(resource.instance))
    root = http.service_root(request, resource.partition)
    if len(found) > 1:
        syntaxes = choices[0].transfer_syntaxes
        return await multi_part.respond(
            _parts(found, syntaxes, _payloads(found, syntaxes), root), negotiate.DICOM
        )
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    index, payload = await services.transcoded.open_instance(found[0], targets)
    if not choices[index].multipart:
        return await respond_alone(request, found[0], payload, targets[index])
    return await multi_part.respond(_parts(found, [targets[index]], _one(payload), root), negotiate.DICOM)


async def respond_alone(
    request: Request, stored: StoredInstance, payload: Payload, transfer_syntax: str
) -> Response:
    """Answer with one instance as a body of its own."""
    content_type = _content_type(transfer_syntax)
    digest = services.retrieve.digest([stored], content_type)
    return await single_part.respond(request, payload, content_type, digest)


def _content_type(transfer_syntax: str) -> str:
    return f"{negotiate.DICOM}; transfer-syntax={transfer_syntax}"


async def _one(payload: Payload) -> AsyncIterator[Payload]:
    yield payload


async def _archive(found: Sequence[StoredInstance], resource: Resource, files: MediaRange) -> Response:
    """All the instances as one Zip archive."""
    chosen = negotiate.instances([files], [s.transfer_syntax for s in found], single_allowed=False)[0]
    name = resource.instance or resource.series or resource.study
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"', "Vary": "Accept"}
    body = services.archive.archived(found, _payloads(found, chosen.transfer_syntaxes))
    return StreamingResponse(await http.primed(body), headers=headers, media_type=negotiate.ZIP)


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
    root: str,
) -> AsyncIterator[multi_part.Part]:
    turn = iter(zip(found, transfer_syntaxes, strict=True))
    async for payload in payloads:
        stored, syntax = next(turn)
        yield multi_part.Part(_content_type(syntax), urls.instance_url(root, stored.key), payload)
