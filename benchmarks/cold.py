"""``python3 dev.py bench --cold``: what the first request to a new process of the app waits for.

Every number is from hosts of their own with one HTTP worker: their first request is the one measured. Beside
it: the time until the host listens, and what a second request of the same kind takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.data import ct_series
from benchmarks.report import write_table
from devhost.azurite import Azurite

HEADINGS = ["first request", "until the host listens (s)", "its answer (ms)", "the next one (ms)"]


def _store(http: httpx.Client) -> httpx.Response:
    head = b"--cold\r\nContent-Type: application/dicom\r\n\r\n"
    body = head + ct_series(1)[0] + b"\r\n--cold--\r\n"
    content_type = 'multipart/related; type="application/dicom"; boundary=cold'
    headers = {"Content-Type": content_type, "Accept": "application/dicom+json"}
    return http.post("/v2/studies", content=body, headers=headers)


REQUESTS: dict[str, Callable[[httpx.Client], httpx.Response]] = {
    "Health check": lambda http: http.get("/health/check"),
    "Study search": lambda http: http.get("/v2/studies", params={"PatientID": "none"}),
    "Store of one CT image of 0.5 MB": _store,
}


def measure(azurite: Azurite, folder: Path, request: Callable[[httpx.Client], httpx.Response]) -> list[float]:
    """Seconds until a new host listens, of its first answer, and of the next."""
    started = time.perf_counter()
    with peers.server(azurite, folder, 1, asked=False) as (base, _):
        times = [time.perf_counter() - started]
        with httpx.Client(base_url=base.removesuffix("/v2"), timeout=120) as http:
            for _ in range(2):
                started = time.perf_counter()
                response = request(http)
                times.append(time.perf_counter() - started)
                assert response.status_code in (200, 204), response.text
    return times


def main(arguments: list[str]) -> None:
    """Print the table, or with ``--write`` put it into the document."""
    parser = argparse.ArgumentParser(prog="dev.py bench --cold", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args(arguments)
    rows = []
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicom-cold-")))
        azurite = stack.enter_context(peers.storage(top / "azurite"))
        for what, request in REQUESTS.items():
            runs = []
            for number in range(options.rounds):
                folder = top / f"{len(rows)}-{number}"
                folder.mkdir()
                runs.append(measure(azurite, folder, request))
            listens, first, later = (statistics.median(values) for values in zip(*runs, strict=True))
            rows.append([what, f"{listens:.1f}", f"{1000 * first:.0f}", f"{1000 * later:.0f}"])
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.write:
        write_table("cold", HEADINGS, rows)
    raise SystemExit(0)
