"""Store (STOW-RS, PS3.18 §10.5): ``POST`` and ``PUT`` of ``studies`` and ``studies/{study}``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.errors import InvalidRequest, NotAcceptable, PayloadTooLarge, UnsupportedMediaType
from shared.services.access import Action
from shared.settings import settings
from shared.web import accept, store_response
from shared.web.multipart import MultipartReader, parse_content_type

blueprint = func.Blueprint()

_DICOM = "application/dicom"
MOST_PARTS = 10_000  # the outcome of each is held until the response


@http.route(blueprint, routes.STUDIES, ["POST"], action=Action.WRITE)
async def store_instances(request: Request) -> Response:
    """Store instances of any studies."""
    return await _store(request, replace=False)


@http.route(blueprint, routes.STUDY, ["POST"], action=Action.WRITE)
async def store_study_instances(request: Request) -> Response:
    """Store instances of one study."""
    return await _store(request, replace=False)


@http.route(blueprint, routes.STUDIES, ["PUT"], action=Action.WRITE)
async def upsert_instances(request: Request) -> Response:
    """Store instances, replacing those with the same identifiers."""
    return await _store(request, replace=True)


@http.route(blueprint, routes.STUDY, ["PUT"], action=Action.WRITE)
async def upsert_study_instances(request: Request) -> Response:
    """Store instances of one study, replacing those with the same identifiers."""
    return await _store(request, replace=True)


async def _store(request: Request, replace: bool) -> Response:
    resource = http.resource(request)
    if not accept.accepts(http.accepted(request), "application/dicom+json", "application/json"):
        raise NotAcceptable("A store answers with application/dicom+json.")
    outcomes = await services.store.store(_files(request), resource.partition, resource.study, replace)
    request.state.instances = [outcome.key.instance for outcome in outcomes if outcome.key]  # for the audit
    status = store_response.status(outcomes)
    if status == 204:
        return Response(status_code=204)
    body = store_response.body(outcomes, http.service_root(request, resource.partition))
    return Response(body, status_code=status, media_type="application/dicom+json")


def _files(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    """The files of a body, each as a stream of bytes. Raises UnsupportedMediaType, InvalidRequest."""
    content_type = parse_content_type(request.headers.get("content-type"))
    stream = _limited(request)
    if content_type.media_type == _DICOM:
        return _single(stream)
    if content_type.media_type != "multipart/related":
        raise UnsupportedMediaType(
            'The body must be multipart/related; type="application/dicom" or application/dicom.'
        )
    if content_type.parameters.get("type", _DICOM).lower() != _DICOM:
        raise UnsupportedMediaType("The parts of a multipart body must be of type application/dicom.")
    boundary = content_type.parameters.get("boundary", "")
    if not boundary:
        raise InvalidRequest("Content-Type names no boundary.")
    return _parts(MultipartReader(stream, boundary))


async def _single(stream: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    first = await anext(stream, b"")
    if first:
        yield _chained(first, stream)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _parts(reader: MultipartReader) -> AsyncIterator[AsyncIterator[bytes]]:
    count = 0
    async for part in reader.parts():
        count += 1
        if count > MOST_PARTS:
            raise PayloadTooLarge(f"The body has more than {MOST_PARTS} parts; send several requests.")
        if part.content_type.media_type not in ("", _DICOM, "application/octet-stream"):
            raise UnsupportedMediaType("A part is not of type application/dicom.")
        yield part.chunks


async def _limited(request: Request) -> AsyncIterator[bytes]:
    """The body's bytes; refuses more than the configured number. Raises PayloadTooLarge."""
    limit = settings().max_request_bytes
    sentence = f"The body is larger than the {limit} bytes this server takes."
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise PayloadTooLarge(sentence)
    async for chunk in request.stream():
        if chunk:
            limit -= len(chunk)
            if limit < 0:
                raise PayloadTooLarge(sentence)
            yield chunk
