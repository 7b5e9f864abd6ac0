"""What stands in for Azure Web PubSub: WebSockets of subscribers, and the request that sends to one.

The paths and tokens are those of its data-plane REST API, as far as the app uses it, so that the app talks to
both by the same client. It listens on loopback, in the process of the triggers. When that ends, subscribers
connect anew, as they must when the service cuts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

log = logging.getLogger("devhost.events")

SETTING = "DICOM_WEB_PUBSUB_CONNECTION"
_WAITING = 10_000
"""Messages that wait for a slow subscriber before it is cut off."""


def listen() -> socket.socket | None:
    """A socket for subscribers, told to the app by its setting; None where the app has a service already."""
    if os.environ.get(SETTING) or os.environ.get("DICOM_WEB_PUBSUB_ENDPOINT"):
        return None
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    os.environ[SETTING] = f"Endpoint=http://127.0.0.1:{port};AccessKey={secrets.token_hex(32)};Version=1.0;"
    return listener


class EventHub:
    """The connections by user, and the routes of hubs."""

    def __init__(self, connection: str) -> None:
        values = dict(part.split("=", 1) for part in connection.rstrip(";").split(";"))
        self._endpoint, self._key = values["Endpoint"], values["AccessKey"]
        self._waiting: dict[tuple[str, str], set[asyncio.Queue[str | None]]] = defaultdict(set)
        self.app = Starlette(
            routes=[
                Route("/api/hubs/{hub}/users/{user}/:send", self._send, methods=["POST"]),
                WebSocketRoute("/client/hubs/{hub}", self._connect),
            ]
        )

    async def _send(self, request: Request) -> Response:
        """``POST /api/hubs/{hub}/users/{user}/:send``."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        path: str = request.scope["path"]
        claims = self._claims(token, f"{self._endpoint}{path}?{request.url.query}", f"{self._endpoint}{path}")
        if claims is None:
            return Response(status_code=401)
        text = (await request.body()).decode()
        hub_and_user = (request.path_params["hub"], request.path_params["user"])
        for queue in list(self._waiting[hub_and_user]):
            if queue.full():
                queue.get_nowait()
                queue.put_nowait(None)
                self._waiting[hub_and_user].discard(queue)
            else:
                queue.put_nowait(text)
        return Response(status_code=202)

    async def _connect(self, websocket: WebSocket) -> None:
        """``GET /client/hubs/{hub}``: a subscriber, who only listens."""
        hub = websocket.path_params["hub"]
        token = websocket.query_params.get("access_token", "")
        claims = self._claims(token, f"{self._endpoint}/client/hubs/{hub}")
        if claims is None or not claims.get("sub"):
            await websocket.send_denial_response(Response(status_code=401))
            return
        await websocket.accept()
        queue: asyncio.Queue[str | None] = asyncio.Queue(_WAITING)
        waiting = self._waiting[hub, claims["sub"]]
        waiting.add(queue)
        sender = asyncio.create_task(_forward(queue, websocket))
        try:
            while not sender.done():
                receiver = asyncio.create_task(websocket.receive_text())
                await asyncio.wait([sender, receiver], return_when=asyncio.FIRST_COMPLETED)
                if not receiver.done():
                    receiver.cancel()
                elif isinstance(receiver.exception(), WebSocketDisconnect | KeyError | RuntimeError):
                    break
        finally:
            waiting.discard(queue)
            sender.cancel()
            await asyncio.wait([sender])
            with contextlib.suppress(RuntimeError):
                await websocket.close()

    def _claims(self, token: str, *audiences: str) -> dict[str, Any] | None:
        try:
            return jwt.decode(token, self._key, algorithms=["HS256"], audience=audiences)
        except jwt.InvalidTokenError:
            return None


async def _forward(queue: asyncio.Queue[str | None], websocket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (text := await queue.get()) is not None:
            await websocket.send_text(text)


async def serve(listener: socket.socket) -> None:
    """Serve subscribers until cancelled."""

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are the business of the process."""
            yield

    config = uvicorn.Config(
        EventHub(os.environ[SETTING]).app,
        lifespan="off",
        access_log=False,
        log_config=None,
        ws_ping_interval=20,
        timeout_graceful_shutdown=1,
    )
    await Server(config).serve(sockets=[listener])
