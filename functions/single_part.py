"""One body with a length and an entity tag: whole, in part (206) or not at all (304, 416)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http
from shared import services
from shared.dicom import report
from shared.web import ranges
from shared.web.multipart import MultipartWriter

if TYPE_CHECKING:
    from shared.services.retrieve import Payload


_NO_SCRIPTS = "sandbox; default-src 'none'"  # a browser would run the scripts of a stored document
_POLICIES = {"text/xml": _NO_SCRIPTS, report.MEDIA_TYPE: f"{_NO_SCRIPTS}; style-src '{report.STYLE_HASH}'"}


async def respond(
    request: Request, payload: Payload, content_type: str, digest: str, location: str = ""
) -> Response:
    """Answer with ``payload``, or with the range of it that is asked for (RFC 9110 §13, §14).

    ``digest`` identifies the bytes: equal digests, equal bodies. With a ``location`` the body is
    multipart/related with that one part; a range then counts in the multipart body, which is the same
    every time. Raises RangeNotSatisfiable.
    """
    unmodified = unchanged(request, digest, location)
    if unmodified is not None:
        return unmodified
    if location:
        digest = _of_multipart(digest)
        payload = _multipart(payload, MultipartWriter(digest), content_type, location)
        content_type = f'multipart/related; type="{content_type.partition(";")[0]}"; boundary={digest}'
    headers = validators(digest)
    etag = headers["ETag"]
    policy = _POLICIES.get(content_type.partition(";")[0])
    if policy:
        headers["Content-Security-Policy"] = policy
    headers |= {"Content-Type": content_type, **http.content_length(payload.length)}
    if payload.cut is not None and payload.length is not None:
        headers["Accept-Ranges"] = "bytes"
    if request.method == "HEAD" and payload.length is not None:
        return Response(headers=headers)
    if payload.cut is None or payload.length is None:
        return StreamingResponse(await http.primed(payload.chunks), headers=headers)
    given = request.headers.get("range", ""), request.headers.get("if-range", "")
    wanted = ranges.requested(*given, etag, payload.length)
    if wanted is None:
        return StreamingResponse(await http.primed(payload.chunks), headers=headers)
    headers["Content-Range"] = ranges.content_range(*wanted, payload.length)
    headers["Content-Length"] = str(wanted[1])
    return StreamingResponse(await http.primed(payload.cut(*wanted)), status_code=206, headers=headers)


def unchanged(request: Request, digest: str, location: str = "") -> Response | None:
    """304 where the client has the body that :func:`respond` would answer with, before that is made."""
    headers = validators(_of_multipart(digest) if location else digest)
    return Response(status_code=304, headers=headers) if http.not_modified(request, headers["ETag"]) else None


def _of_multipart(digest: str) -> str:
    return sha256(f"multipart {digest}".encode()).hexdigest()[:32]


def validators(digest: str) -> dict[str, str]:
    """Headers by which a client may keep the body that ``digest`` identifies."""
    return {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, no-cache",
        "Vary": f"Accept, {http.REQUEST_ORIGINAL}",
    }


def _multipart(payload: Payload, writer: MultipartWriter, content_type: str, location: str) -> Payload:
    head = writer.begin(content_type, payload.length, location)
    return services.retrieve.enclosed(head, payload, writer.end + writer.close())
