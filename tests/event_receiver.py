"""What takes events over HTTP: a server on loopback that notes what it accepts and fails as it is told to.

It speaks as an Event Grid topic and as a webhook do: batches by POST, and by OPTIONS whether they are wanted.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Fault = str | int | None
"""None: take it. A status. ``cut``: drop the connection. ``lost``: take it, then drop the connection."""


@dataclass
class Receiver:
    """``events`` in the order of arrival; ``fault`` decides what becomes of a batch."""

    events: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    allowed_origin: str = "*"
    fault: Callable[[list[dict[str, Any]]], Fault] = lambda batch: None
    url: str = ""

    async def post(self, request: web.Request) -> web.StreamResponse:
        batch: list[dict[str, Any]] = json.loads(await request.read())
        fault = self.fault(batch)
        if fault in (None, "lost"):
            self.events += batch
            self.headers.append(dict(request.headers))
        if fault in ("cut", "lost"):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(fault, int):
            return web.Response(status=fault, headers={"Retry-After": "1"} if fault == 429 else {})
        return web.Response()

    async def options(self, request: web.Request) -> web.Response:
        self.origins.append(request.headers["WebHook-Request-Origin"])
        return web.Response(headers={"WebHook-Allowed-Origin": self.allowed_origin})


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a thread of its own."""
    state = Receiver()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/api/events", state.post)
    app.router.add_route("OPTIONS", "/api/events", state.options)
    with serving(app) as port:
        state.url = f"http://127.0.0.1:{port}/api/events"
        yield state


@contextmanager
def serving(app: web.Application) -> Iterator[int]:
    """Serves ``app`` on a thread of its own; the port."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
