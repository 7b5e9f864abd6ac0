"""``python -m devhost``: runs the app in the current folder, as ``func start`` would.

The host binds the port and keeps its processes alive: HTTP workers that share the listening socket, and
one process for the triggers. It ends on SIGINT or SIGTERM, or (``--follow-stdin``) when its standard input
closes, which happens however the process that started it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from devhost import events, worker
from devhost import settings as host_settings

log = logging.getLogger("devhost")

_GRACE_SECONDS = 10


@dataclass
class _Child:
    name: str
    start: Callable[[], BaseProcess]
    process: BaseProcess


class Host:
    """Starts the processes, restarts one that dies, stops all."""

    def __init__(self, settings: host_settings.HostSettings, listener: socket.socket, workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._settings = settings
        self._listener = listener
        self._workers = workers
        self._events = events.listen()
        self._children: list[_Child] = []
        self.stopping = threading.Event()

    def run(self) -> int:
        """Serve until told to stop; the exit code is 1 when a process could not start at all."""
        ready = [self._context.Event() for _ in range(self._workers + 1)]
        for number in range(self._workers):
            self._add(f"http worker {number + 1}", worker.serve_http, self._listener, ready[number])
        self._add("triggers", worker.serve_triggers, self._events, ready[-1])
        try:
            while not all(event.is_set() for event in ready):
                if self.stopping.wait(0.02):
                    return 0
                if any(child.process.exitcode is not None for child in self._children):
                    log.error("The app could not be started; see above.")
                    return 1
            host, port = self._listener.getsockname()
            print(f"Listening on http://{host}:{port} ({self._workers} workers)", flush=True)
            while not self.stopping.is_set():
                wait([child.process.sentinel for child in self._children], timeout=0.2)
                self._restart_dead()
            return 0
        finally:
            self._stop()

    def _add(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        def start() -> BaseProcess:
            process = self._context.Process(target=target, args=(self._settings, *arguments), name=name)
            process.start()
            return process

        self._children.append(_Child(name, start, start()))

    def _restart_dead(self) -> None:
        for child in self._children:
            if child.process.exitcode is not None and not self.stopping.is_set():
                log.error(
                    "The %s ended (exit code %s); starting it anew.", child.name, child.process.exitcode
                )
                time.sleep(0.2)
                child.process = child.start()

    def _stop(self) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in self._children:
            child.process.join(max(0, deadline - time.monotonic()))
            if child.process.is_alive():
                log.warning("The %s does not stop; killing it.", child.name)
                child.process.kill()
                child.process.join()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m devhost", description="A small local Functions host.")
    parser.add_argument(
        "--port", type=int, help="default: Host.LocalHttpPort of local.settings.json, or 7071"
    )
    parser.add_argument("--workers", type=int, default=1, help="HTTP worker processes (default 1)")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="folder of function_app.py (default .)")
    parser.add_argument("--follow-stdin", action="store_true", help="stop when standard input closes")
    options = parser.parse_args()
    try:
        settings = host_settings.load(options.root.resolve())
        listener = _listen(options.port if options.port is not None else settings.port)
    except (OSError, ValueError) as error:
        print(f"devhost: {error}", file=sys.stderr)
        return 2
    os.chdir(settings.root)
    worker.configure_logging(settings)
    host = Host(settings, listener, max(1, options.workers))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: host.stopping.set())
    if options.follow_stdin:
        threading.Thread(target=_follow_stdin, args=(host,), daemon=True).start()
    return host.run()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    if os.name == "posix":  # a port in TIME_WAIT is free; on Windows the option means something else
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise OSError(f"Port {port} cannot be used: {error.strerror}.") from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _follow_stdin(host: Host) -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    host.stopping.set()


if __name__ == "__main__":
    sys.exit(main())
