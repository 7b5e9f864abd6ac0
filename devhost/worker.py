"""The processes of the host: HTTP workers, and one for the triggers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from typing import Any

from devhost.settings import HostSettings

log = logging.getLogger("devhost")


def configure_logging(settings: HostSettings) -> None:
    """One line a record on standard error; chatter of libraries left out."""
    logging.basicConfig(
        level=settings.log_level,
        format="%(asctime)s %(levelname)-7s [%(process)d] %(name)s: %(message)s",
        force=True,
    )
    for name in ("azure", "uvicorn", "asyncio", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve_http(settings: HostSettings, listener: socket.socket, ready: Event) -> None:
    """Run one HTTP worker until it is told to stop or the host is gone."""
    import uvicorn

    from devhost.app import load_functions
    from devhost.http import HttpApp

    _begin(settings)
    app = HttpApp(load_functions(settings.root), settings)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
        backlog=2048,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Stop on SIGTERM alone: Ctrl-C reaches the host, which stops its processes in order."""
            signal.signal(signal.SIGTERM, self.handle_exit)
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    Server(config).run(sockets=[listener])
    _end()


def serve_triggers(settings: HostSettings, events: socket.socket | None, ready: Event) -> None:
    """Run the blob, queue and timer triggers until told to stop or the host is gone.

    ``events`` is where subscribers of events connect.
    """
    from devhost.app import load_functions
    from devhost.events import serve
    from devhost.triggers import create_triggers, run_triggers

    _begin(settings)
    functions = load_functions(settings.root)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stop.set))
        try:
            triggers = create_triggers(functions, settings)
        except ValueError as error:
            log.error("%s", error)
            raise SystemExit(1) from error
        hub = asyncio.create_task(serve(events)) if events is not None else None
        ready.set()
        await run_triggers(triggers, stop)
        if hub is not None:
            hub.cancel()

    asyncio.run(main())
    _end()


def _begin(settings: HostSettings) -> None:
    configure_logging(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def _end() -> None:
    """Leave without the complaints of clients that the app, as on the platform, never closes."""
    logging.shutdown()
    os._exit(0)
