"""Figures and health for whoever watches the adapter, in Prometheus' text format, by HTTP."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from adapters.dimse.spool import Spool

_COUNTERS = {
    "dimse_objects_received_total": "objects acknowledged by C-STORE",
    "dimse_objects_forwarded_total": "objects the server has",
    "dimse_objects_duplicate_total": "objects the server had already",
    "dimse_objects_refused_total": "objects put into quarantine",
    "dimse_stores_failed_total": "C-STORE requests answered with a failure",
    "dimse_forward_requests_failed_total": "requests to the server that are to be tried again",
    "dimse_associations_rejected_total": "associations refused by the allow-list",
    "dimse_finds_total": "C-FIND requests",
    "dimse_retrieves_total": "C-MOVE and C-GET requests",
}


class Metrics:
    """Counters of this process, and what the spool says of itself."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str) -> None:
        """One more."""
        assert name in _COUNTERS, name
        with self._lock:
            self._counts[name] += 1

    def text(self) -> str:
        """All of it."""
        with self._lock:
            counts = dict(self._counts)
        gauges = {
            "dimse_spool_bytes": ("bytes in the spool, quarantine included", self._spool.bytes),
            "dimse_spool_maximum_bytes": ("bytes it may hold", self._spool.maximum_bytes),
            "dimse_spool_objects": ("objects that wait for the server", self._spool.objects),
            "dimse_spool_oldest_seconds": ("age of the oldest of them", round(self._spool.oldest_seconds, 3)),
            "dimse_quarantine_objects": ("objects in quarantine", self._spool.quarantined),
        }
        lines = []
        for name, help_text in _COUNTERS.items():
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter", f"{name} {counts.get(name, 0)}"]
        for name, (help_text, value) in gauges.items():
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"

    def health(self) -> tuple[int, str]:
        """Status and body: 503 when no further object is taken."""
        full = self._spool.bytes >= self._spool.maximum_bytes
        said = {"status": "Unhealthy" if full else "Healthy", "waiting": self._spool.objects}
        return (503 if full else 200), json.dumps(said)


def serve(metrics: Metrics, host: str, port: int) -> ThreadingHTTPServer:
    """Start the endpoint; end it with ``shutdown`` and ``server_close``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", metrics.text())
            elif self.path == "/health":
                self._answer(*_health(metrics))
            else:
                self._answer(404, "text/plain", "not found\n")

        def _answer(self, status: int, media_type: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: scrapes are no events."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _health(metrics: Metrics) -> tuple[int, str, str]:
    status, body = metrics.health()
    return status, "application/json", body
