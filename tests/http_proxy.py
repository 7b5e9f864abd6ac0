"""An HTTP proxy on loopback that lets a server fail now and then, as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

CUT = -1
"""A fault: half of the answer, then the connection breaks."""
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host"}

Fault = Callable[[str, str], int]
"""Of a request, its method and path: 0 for none, a status to answer with, or CUT."""


class HttpProxy:
    """Forwards requests to ``target``, a base URL; ``fault`` is asked about each. ``requests`` are all
    that came: method, path and Authorization."""

    def __init__(self, target: str, fault: Fault = lambda _method, _path: 0) -> None:
        self.fault = fault
        self.requests: list[tuple[str, str, str]] = []
        self._client = httpx.Client(timeout=60)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                proxy.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
                fault = proxy.fault(self.command, self.path)
                if fault > 0:
                    self.send_response(fault)
                    self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                response = proxy._client.request(
                    self.command, target + self.path, content=body, headers=headers
                )
                self.send_response(response.status_code)
                for name, value in response.headers.items():
                    if name not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.content)))
                self.end_headers()
                content = response.content
                self.wfile.write(content[: len(content) // 2] if fault == CUT else content)
                self.close_connection = self.close_connection or fault == CUT

            do_GET = do_POST = do_PUT = forward

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()
