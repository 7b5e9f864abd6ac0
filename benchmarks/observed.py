"""``python -m benchmarks.observed``: what telemetry and the audit container cost a request, as ratios.

Hosts with one worker each, on one Azurite: without either, with telemetry to a collector on this machine, and
with the audit container. They are asked in turns, one request after the other, and medians are compared.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import httpx
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from benchmarks import peers
from benchmarks.data import ct_series

ROUNDS = int(os.environ.get("ROUNDS", "150"))


class _Collector(BaseHTTPRequestHandler):
    received = 0

    def do_POST(self) -> None:
        type(self).received += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def _collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def main() -> None:
    """Measure and print."""
    file = ct_series(1)[0]
    ds = dcmread(DicomBytesIO(file), stop_before_pixels=True)
    study = f"studies/{ds.StudyInstanceUID}"
    instance = f"{study}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    paths = {"Frame of 0.5 MB": f"{instance}/frames/1", "Search": "studies", "Metadata": f"{study}/metadata"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        azurite = stack.enter_context(peers.storage(folder / "azurite"))
        collector = stack.enter_context(_collector())
        clients = {}
        for name, settings in {
            "neither": {},
            "telemetry": {"OTEL_EXPORTER_OTLP_ENDPOINT": collector},
            "audit container": {"DICOM_AUDIT_CONTAINER": "true"},
        }.items():
            (folder / name).mkdir()
            with mock.patch.dict(os.environ, settings):
                url, _ = stack.enter_context(peers.server(azurite, folder / name, 1))
            http = stack.enter_context(httpx.Client(base_url=url, timeout=60))
            stored = http.post("studies", content=file, headers={"Content-Type": "application/dicom"})
            stored.raise_for_status()
            clients[name] = http
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(ROUNDS + 10):
            for what, path in paths.items():
                for name, http in clients.items():
                    started = time.perf_counter()
                    http.get(path).raise_for_status()
                    if number >= 10:
                        seconds.setdefault((what, name), []).append(time.perf_counter() - started)
    if not _Collector.received:
        raise RuntimeError("No telemetry was sent.")
    for what in paths:
        medians = {name: statistics.median(seconds[what, name]) for name in clients}
        ratios = {name: value / medians["neither"] for name, value in medians.items()}
        print(what, " ".join(f"{n}: {1000 * medians[n]:.1f} ms ({ratios[n]:.2f})" for n in medians))


if __name__ == "__main__":
    main()
