"""HTTP: routes to functions, CORS and the body limit as the host answers them, and the admin endpoint.

An ASGI application that runs in each worker process. A function gets a FastAPI ``Request`` (the streaming
types of azurefunctions-extensions-http-fastapi) and its Starlette response is sent as it is produced.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from devhost import arguments
from devhost.app import Function
from devhost.routing import Router, decode_path
from devhost.settings import HostSettings
from devhost.viewer import Viewer

log = logging.getLogger("devhost.http")


class HttpApp:
    """Serves the HTTP functions of an app."""

    def __init__(self, functions: list[Function], settings: HostSettings) -> None:
        self._functions = {function.name: function for function in functions}
        self._settings = settings
        self._router = Router()
        self._viewer = Viewer(settings.viewer, settings.viewer_sign_in) if settings.viewer else None
        prefix = f"{settings.route_prefix}/" if settings.route_prefix else ""
        for function in functions:
            if function.trigger == "httpTrigger":
                self._router.add(function.name, function.methods, prefix + function.route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        extra = {**_cors(headers, self._settings), **self._settings.custom_headers}
        answer = _Answer(send, [(k.lower().encode(), v.encode("latin-1")) for k, v in extra.items()])
        body = _Body(receive, self._settings.body_limit)
        try:
            await self._serve(scope, headers, body, answer)
        except Exception:
            if not body.too_large:
                log.exception("Executed %s %s: failed.", scope["method"], scope["path"])
            if answer.started:
                raise  # the server closes the connection, so that the client sees a truncated response
            await Response(status_code=413 if body.too_large else 500)(scope, body.receive, answer.send)

    async def _serve(self, scope: Scope, headers: dict[str, str], body: _Body, answer: _Answer) -> None:
        method: str = scope["method"]
        path = decode_path(scope["raw_path"])
        if method == "OPTIONS" and answer.cors and "access-control-request-method" in headers:
            await _preflight(headers)(scope, body.receive, answer.send)
            return
        first, _, rest = path.partition("/")
        if first.lower() == "admin":
            response = await self._admin(method, rest, Request(scope, body.receive, answer.send))
            await response(scope, body.receive, answer.send)
            return
        found = self._router.match(method, path)
        if found is None:
            page = await asyncio.to_thread(self._viewer.answer, path, scope) if self._viewer else None
            await (page or Response(status_code=404))(scope, body.receive, answer.send)
            return
        name, values = found
        scope["path_params"] = values
        response = await self._functions[name].invoke(Request(scope, body.receive, answer.send))
        if not isinstance(response, Response):
            raise TypeError(f"{name} returned {type(response).__name__}, not a response.")
        await response(scope, body.receive, answer.send)

    async def _admin(self, method: str, path: str, request: Request) -> Response:
        """The platform's admin API, as far as tests and developers need it.

        ``POST /admin/functions/{name}`` with ``{"input": ...}`` runs a function that HTTP does not trigger.
        Unlike the platform, 202 comes after the function has ended, and 500 when it raised: a test that
        has its answer can look at the outcome.
        """
        if method == "GET" and path == "host/status":
            return JSONResponse({"state": "Running"})
        if method == "GET" and path == "functions":
            return JSONResponse(
                [{"name": f.name, "config": {"bindings": [f.binding]}} for f in self._functions.values()]
            )
        function = self._functions.get(path.removeprefix("functions/"))
        if method != "POST" or function is None or function.trigger == "httpTrigger":
            return Response(status_code=404)
        try:
            given = json.loads(await request.body() or b"{}").get("input")
        except (ValueError, AttributeError):
            return Response(status_code=400)
        await function.invoke(_argument(function, given))
        return Response(status_code=202)


def _argument(function: Function, given: Any) -> Any:
    text = given if isinstance(given, str) else json.dumps(given) if given is not None else ""
    if function.trigger == "timerTrigger":
        return arguments.timer()
    if function.trigger == "queueTrigger":
        return arguments.queue_message(text.encode(), dequeue_count=1)
    if function.trigger == "blobTrigger":
        container, _, name = text.partition("/")
        return arguments.blob(container, name, 0, "")
    raise TypeError(f"{function.name} has a {function.trigger}, which devhost does not know.")


class _Answer:
    """The way out: adds the host's headers and knows whether a response has begun."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self.cors = any(name == b"access-control-allow-origin" for name, _ in headers)
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)


class _Body:
    """The way in: counts the body.

    The function sees the chunk that crosses the limit, so that one which counts for itself (as this app
    does) answers 413 in its own words; after it the body breaks off, and the host answers 413.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self.too_large = False

    async def receive(self) -> Message:
        if self.too_large:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self.too_large = self._left < 0
        return message


def _cors(headers: dict[str, str], settings: HostSettings) -> dict[str, str]:
    """The CORS headers of every response to a request with an allowed Origin (Fetch standard §3.2)."""
    origin = headers.get("origin", "")
    origins = settings.cors_origins
    if not origin or not ("*" in origins or origin.lower() in (allowed.lower() for allowed in origins)):
        return {}
    if settings.cors_credentials:
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }
    if "*" in origins:
        return {"Access-Control-Allow-Origin": "*"}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _preflight(headers: dict[str, str]) -> Response:
    allowed = {"Access-Control-Allow-Methods": headers["access-control-request-method"]}
    if "access-control-request-headers" in headers:
        allowed["Access-Control-Allow-Headers"] = headers["access-control-request-headers"]
    return Response(status_code=204, headers=allowed)
