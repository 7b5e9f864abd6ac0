"""Several bodies as one multipart/related answer (RFC 2387, PS3.18 §8.6), streamed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from azurefunctions.extensions.http.fastapi import Response, StreamingResponse

from functions import http
from shared import services
from shared.errors import DicomServerError
from shared.web import content_coding
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload


@dataclass(frozen=True, slots=True)
class Part:
    """One body and where it is by itself; or why it cannot be had, which comes in its place."""

    content_type: str
    location: str
    body: Payload | DicomServerError


async def respond(
    parts: AsyncIterator[Part], media_type: str, digest: str = "", coding: str = ""
) -> Response:
    """Answer with ``parts``; ``media_type`` is that of those that can be had.

    A ``digest`` identifies the parts and becomes the boundary, so that the body is the same every time and
    carries an entity tag; ``coding`` is its content coding. What fails before the first part is raised.
    """
    boundary = digest or secrets.token_hex(16)
    headers = http.validators(digest, coding) if digest else {}
    content_type = f'multipart/related; type="{media_type}"; boundary={boundary}'
    written = _written(parts, MultipartWriter(boundary))
    body = await http.primed(content_coding.encoded(written, coding) if coding else written)
    return StreamingResponse(body, headers=headers, media_type=content_type)


async def _written(parts: AsyncIterator[Part], writer: MultipartWriter) -> AsyncIterator[bytes]:
    async for part in parts:
        content_type, body = part.content_type, part.body
        if isinstance(body, DicomServerError):
            content_type = http.PROBLEM_JSON
            body = services.retrieve.in_memory(http.problem_part(str(body)))
        head = writer.begin(content_type, body.length, part.location)
        async for chunk in body.chunks:
            yield head + chunk if head else chunk
            head = b""
        yield head + writer.end
    yield writer.close()
