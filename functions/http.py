"""What every HTTP function shares: registration, errors as responses, headers.

Handlers are ``async def handler(request) -> Response`` with the streaming types. :func:`route`
registers one, and turns what it raises into ``application/problem+json`` (RFC 9457).
"""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from functions import authorization, routes
from functions.authorization import Access
from shared import errors, services, telemetry
from shared.dicom.identifiers import (
    DEFAULT_PARTITION,
    Resource,
    check_partition,
    check_uid,
    is_partition,
    is_uid,
)
from shared.services.access import Action
from shared.settings import settings
from shared.web import content_coding, urls
from shared.web.accept import MediaRange, parse_accept

if TYPE_CHECKING:
    from shared.services import audit

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registered HTTP function: its unique name, its route, what it calls and who may call it."""

    name: str
    template: str
    methods: tuple[str, ...]
    handler: Handler
    access: Access


ENDPOINTS: list[Endpoint] = []
"""Every HTTP function of the app, as registered by :func:`route`; the OpenAPI document lists them."""

_STATUS: dict[type[errors.DicomServerError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "Bad Request"),
    errors.Unauthenticated: (401, "Unauthorized"),
    errors.Forbidden: (403, "Forbidden"),
    errors.NotFound: (404, "Not Found"),
    errors.NotAcceptable: (406, "Not Acceptable"),
    errors.Conflict: (409, "Conflict"),
    errors.PayloadTooLarge: (413, "Content Too Large"),
    errors.UnsupportedMediaType: (415, "Unsupported Media Type"),
    errors.RangeNotSatisfiable: (416, "Range Not Satisfiable"),
    errors.DependencyUnavailable: (503, "Service Unavailable"),
}

_MORE_RESULTS = "There are additional results that can be requested."
"""The Warning of a page that is not the last (PS3.18 §8.3.4.4)."""

REQUEST_ORIGINAL = "msdicom-request-original"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_DRAIN_LIMIT = 8 * 1024 * 1024
_EXPOSED = (
    "Accept-Ranges, Content-Location, Content-Range, Content-Type, ETag, Link, Location, Retry-After, "
    "Warning, WWW-Authenticate, X-Total-Count, erroneous-dicom-attributes"
)


def route(
    blueprint: func.Blueprint,
    template: str,
    methods: list[str],
    *,
    action: Action | None,
    partitioned: bool = True,
    any_partition: bool = False,
) -> Callable[[Handler], Handler]:
    """Register a handler for ``template`` and, where ``partitioned``, for the same path in a partition.

    A partitioned template is relative to the base path; others are whole. The function's name is the
    handler's. ``action`` is the data action a caller needs, None where everybody may call; of a route that
    has no partition it is needed in all of them, or with ``any_partition`` in one.
    """

    def register(handler: Handler) -> Handler:
        name = handler.__name__
        if not partitioned:
            access = Access(action, "any" if any_partition else "all")
            _register(blueprint, Endpoint(name, template, tuple(methods), handler, access))
            return handler
        access = Access(action, "partition")
        for suffix, base in (("", routes.BASE), ("_in_partition", routes.PARTITION_BASE)):
            endpoint = Endpoint(f"{name}{suffix}", f"{base}/{template}", tuple(methods), handler, access)
            _register(blueprint, endpoint)
        return handler

    return register


def _register(blueprint: func.Blueprint, endpoint: Endpoint) -> None:
    ENDPOINTS.append(endpoint)
    answer = _answering(endpoint)

    @blueprint.function_name(endpoint.name)
    @blueprint.route(route=endpoint.template, methods=endpoint.methods, auth_level=func.AuthLevel.ANONYMOUS)
    async def main(req: Request) -> Response:
        return await answer(req)


def _answering(endpoint: Endpoint) -> Handler:
    handler = endpoint.handler

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        started = time.monotonic()
        traceparent = request.headers.get("traceparent", "")
        with telemetry.request(handler.__name__, request.method, endpoint.template, traceparent) as measured:
            response = await _recorded(await respond(request), request, endpoint, started)
            response.headers.setdefault("Access-Control-Expose-Headers", _EXPOSED)
            response.headers.setdefault("Cross-Origin-Resource-Policy", "cross-origin")
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
            if request.method == "HEAD":
                response = await _without_body(response)
            if measured.measured:
                _measure(response, measured)
            return response

    async def respond(request: Request) -> Response:
        try:
            await authorization.check(request, endpoint.access)
            return await handler(request)
        except errors.DicomServerError as error:
            response = problem(error)
            await _drain(request)
        except ClientDisconnect:
            log.info("The client went away during %s.", handler.__name__)
            response = Response(status_code=499)
        except Exception as error:
            incident = uuid.uuid4().hex
            log.error("Failure %s in %s: %s", incident, handler.__name__, errors.without_message(error))
            response = _problem(500, "Internal Server Error", f"Unexpected failure; incident {incident}.")
            await _drain(request)
        return response

    return answer


async def _recorded(response: Response, request: Request, endpoint: Endpoint, started: float) -> Response:
    """The response, whose request is in the audit trail now; where it cannot be, 503 in its place."""
    config = settings()
    if endpoint.access.action is None or not (config.audit or config.audit_container):
        return response
    try:
        await services.audit.record(_event(request, endpoint, response.status_code, started))
        return response
    except errors.DependencyUnavailable as error:
        await _discard_body(response)
        return problem(error)


def _measure(response: Response, measured: telemetry.Request) -> None:
    """Count a response; a body that is streamed is counted while it goes out."""
    if isinstance(response, StreamingResponse):
        measured.answered(response.status_code)
        response.body_iterator = measured.streamed(response.body_iterator)
    else:
        measured.answered(response.status_code, len(response.body))


def _event(request: Request, endpoint: Endpoint, status: int, started: float) -> audit.Event:
    """What the audit trail says of a request; its body may still be on the way."""
    caller = getattr(request.state, "caller", None)
    given = request.path_params | getattr(request.state, "resource", {})
    partition = given.pop("partition", DEFAULT_PARTITION)
    return services.audit.Event(
        caller=caller.id if caller else "",
        client=caller.client if caller else "",
        transaction=endpoint.handler.__name__,
        method=request.method,
        partition=partition if is_partition(partition) else "",
        resource={name: value for name, value in given.items() if is_uid(value)},
        instances=getattr(request.state, "instances", ()),
        status=status,
        milliseconds=round(1000 * (time.monotonic() - started)),
    )


def problem(error: errors.DicomServerError) -> Response:
    """The response for an error raised on purpose."""
    status, title = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    response = _problem(status, title, str(error))
    if isinstance(error, errors.DependencyUnavailable):
        response.headers["Retry-After"] = str(error.retry_after)
    if error.warning:
        response.headers["Warning"] = warning(error.warning)
    if isinstance(error, errors.Unauthenticated):
        response.headers["WWW-Authenticate"] = authorization.challenge(error)
    if isinstance(error, errors.RangeNotSatisfiable):
        response.headers["Content-Range"] = f"bytes */{error.length}"
    return response


def warning(sentence: str) -> str:
    """A Warning header of a sentence (RFC 7234 §5.5; PS3.18 writes 299 for what is persistent)."""
    return f'299 - "{sentence}"'


PROBLEM_JSON = "application/problem+json"


def problem_part(detail: str) -> bytes:
    """What stands in a multipart body for a part that cannot be had: the body a 406 would have."""
    status, title = _STATUS[errors.NotAcceptable]
    return _problem_body(status, title, detail).encode()


def _problem(status: int, title: str, detail: str) -> Response:
    return Response(_problem_body(status, title, detail), status_code=status, media_type=PROBLEM_JSON)


def _problem_body(status: int, title: str, detail: str) -> str:
    return json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail})


async def _drain(request: Request) -> None:
    """Read what is left of a small body, so that the client sees the response and not a reset."""
    left = _DRAIN_LIMIT
    try:
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return
    except (ClientDisconnect, RuntimeError):
        return


async def _discard_body(response: Response) -> None:
    """End a stream that nobody will read."""
    close = getattr(getattr(response, "body_iterator", None), "aclose", None)
    if close is not None:
        await close()


async def _without_body(response: Response) -> Response:
    """The same status and headers without a body, as HEAD asks for (RFC 9110 §9.3.2)."""
    await _discard_body(response)
    answer = Response(status_code=response.status_code, headers=dict(response.headers))
    if "content-length" not in response.headers:
        del answer.headers["content-length"]  # Starlette's 0 would be untrue (RFC 9110 §8.6)
    return answer


def resource(request: Request) -> Resource:
    """The study, series or instance the path addresses. Raises InvalidRequest on malformed identifiers."""
    path = request.path_params
    return Resource(
        partition=check_partition(path.get("partition", DEFAULT_PARTITION)),
        study=check_uid(path["study"], "StudyInstanceUID") if "study" in path else "",
        series=check_uid(path["series"], "SeriesInstanceUID") if "series" in path else "",
        instance=check_uid(path["instance"], "SOPInstanceUID") if "instance" in path else "",
    )


def identifiers(resource: Resource) -> dict[str, str]:
    """A resource that is not addressed by the path, for the audit trail."""
    return {"study": resource.study, "series": resource.series, "instance": resource.instance}


def accepted(request: Request) -> list[MediaRange]:
    """The media ranges the client takes, best first; several Accept headers count as one (RFC 9110 §5.3).

    The query parameter ``accept`` stands in for the header where a client cannot set it (PS3.18 §8.3.3.1).
    """
    given = request.query_params.getlist("accept") or request.headers.getlist("accept")
    return parse_accept(", ".join(given))


def wants_original(request: Request) -> bool:
    """Whether the client asks for instances as they were before their first update (the ancestor's header).

    Raises InvalidRequest where the header says neither yes nor no.
    """
    given: str = request.headers.get(REQUEST_ORIGINAL, "false").strip().lower()
    if given not in ("true", "false"):
        raise errors.InvalidRequest(f"The header {REQUEST_ORIGINAL} must be true or false.")
    return given == "true"


async def body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises PayloadTooLarge."""
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise errors.PayloadTooLarge(f"The body is larger than {limit} bytes.")
    return bytes(read)


def integer(query: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    """A query parameter that is an integer from ``least`` to ``most``. Raises InvalidRequest."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise errors.InvalidRequest(f"{name} must be an integer from {least} to {most}.")
    return int(text)


async def json_body(request: Request, limit: int) -> bytes:
    """The body of a request that takes JSON. Raises UnsupportedMediaType and PayloadTooLarge."""
    given = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if given != "application/json":
        raise errors.UnsupportedMediaType("The body must be application/json.")
    return await body(request, limit)


def content_length(length: int | None) -> dict[str, str]:
    """The header of a body whose length may be known."""
    return {} if length is None else {"Content-Length": str(length)}


def service_root(request: Request, partition: str) -> str:
    """The absolute URL below which the partition's studies are, as the client sees it."""
    return urls.service_root(base_url(request), partition)


def base_url(request: Request) -> str:
    """The URL of the server's root as the client sees it, without a trailing slash."""
    return urls.base_url(request.headers, request.url.scheme, _host(request), settings().public_base_url)


def describe_page(request: Request, response: Response, total: int | None, cursor: str) -> None:
    """Say in the headers of a page how many results there are, where that is known, and where the next page
    is; ``cursor`` is empty on the last one."""
    if total is not None:
        response.headers["X-Total-Count"] = str(total)
    if cursor:
        response.headers["Link"] = f'<{_next_page(request, cursor)}>; rel="next"'
        response.headers["Warning"] = warning(_MORE_RESULTS)


def _next_page(request: Request, cursor: str) -> str:
    """The URL of this search with its next page; what else the client asked for stays as it is."""
    kept = [pair for pair in request.query_params.multi_items() if pair[0] not in ("cursor", "offset")]
    query = urlencode([*kept, ("cursor", cursor)], quote_via=quote)
    return f"{base_url(request)}{request.url.path}?{query}"


def _host(request: Request) -> str:
    """The Host header, with the port that dicomweb-client leaves out, which matters on one's own machine."""
    host = request.headers.get("host", "")
    _, port = request.scope.get("server") or ("", None)
    return f"{host}:{port}" if host in _LOOPBACK and port not in (None, 80, 443) else host


async def primed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks, the first of which has been made already.

    A status goes out before a stream starts, so what can fail must fail before (``await primed(...)``).
    """
    first = await anext(chunks, None)

    async def replay() -> AsyncIterator[bytes]:
        try:
            if first is not None:
                yield first
                async for chunk in chunks:
                    yield chunk
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    return replay()


_GATHERED = 64 * 1024


async def json_array(objects: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """JSON objects as one array, in chunks of a size worth sending."""
    pieces: list[bytes] = [b"["]
    size = 0
    async for item in objects:
        if size or len(pieces) > 1 or pieces == [b""]:
            pieces.append(b",")
        pieces.append(item)
        size += len(item)
        if size >= _GATHERED:
            yield b"".join(pieces)
            pieces, size = [b""], 0
    pieces.append(b"]")
    yield b"".join(pieces)


async def json_response(request: Request, body: bytes, media_type: str) -> Response:
    """A JSON body with an entity tag, compressed where the client takes it; 304 where it has it already."""
    coding = content_coding_of(request, len(body) > content_coding.WORTH_COMPRESSING)
    headers = validators(sha256(body).hexdigest()[:32], coding)
    if not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await content_coding.encode(body, coding), headers=headers, media_type=media_type)


def content_coding_of(request: Request, worthwhile: bool = True) -> str:
    """The content coding to answer with, empty for none. Raises NotAcceptable."""
    return content_coding.choose(", ".join(request.headers.getlist("accept-encoding")), worthwhile)


def validators(digest: str, coding: str) -> dict[str, str]:
    """Headers of a body in a content coding, by which a client may keep it; another coding is other bytes
    and has a tag of its own (RFC 9110 §8.8.1)."""
    tag = f'"{digest}-{coding}"' if coding else f'"{digest}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "Vary": f"Accept, Accept-Encoding, {REQUEST_ORIGINAL}",
    }
    return headers | {"Content-Encoding": coding} if coding else headers


def not_modified(request: Request, etag: str) -> bool:
    """Whether If-None-Match names ``etag`` (weak comparison, RFC 9110 §13.1.2)."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in given.split(",")]
