"""``python3 dev.py bench``: this server beside its peers, in one run, as ratios.

Machines differ and are noisy, so absolute numbers mean little: every subject does the same work in turns,
several rounds, and the medians are compared. ``--write`` puts the result into ``docs/benchmarks.md``.
``--scale`` measures searches on a large index instead, ``--cold`` what the first request waits for.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from azure.storage.blob.aio import ContainerClient
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import cold, peers, scale
from benchmarks.data import ct_series
from benchmarks.report import write_table
from benchmarks.retrieval import Retrieval

OURS, PLAIN, ORTHANC = "this server", "plain blobs", "Orthanc"
FILES, PER_REQUEST, CLIENTS, READERS = 200, 10, 4, 4


@dataclass
class Measure:
    """One thing measured: a rate (more is better) or a time (less is better), by subject."""

    name: str
    unit: str
    aim: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, subject: str, value: float) -> None:
        """One round's result."""
        self.values.setdefault(subject, []).append(value)

    def median(self, subject: str) -> float | None:
        """The median over the rounds."""
        return statistics.median(self.values[subject]) if subject in self.values else None

    def ratio(self, other: str) -> str:
        """Ours over another subject's."""
        ours, theirs = self.median(OURS), self.median(other)
        return f"{ours / theirs:.2f}" if ours and theirs else ""


async def timed(work: Awaitable[object]) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


async def spread(jobs: Sequence[Callable[[], Awaitable[object]]], clients: int) -> None:
    """Do all jobs, ``clients`` at a time."""
    queue = iter(jobs)

    async def client() -> None:
        for job in queue:
            await job()

    await asyncio.gather(*(client() for _ in range(clients)))


def multipart(files: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """A STOW-RS body and its headers."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return body, {"Content-Type": content_type, "Accept": "application/dicom+json"}


class Bench:
    """The subjects and what is measured of them."""

    def __init__(
        self, http: aiohttp.ClientSession, ours: str, orthanc: str | None, blobs: ContainerClient
    ) -> None:
        self.http = http
        self.bases = {OURS: ours} | ({ORTHANC: orthanc} if orthanc else {})
        self.blobs = blobs
        self.store = Measure(
            "Store, 200 CT of 0.5 MB, 4 clients, 10 a request", "files/s", "≥ 0.7 of plain uploads"
        )
        self.frames = Measure("Frames of 0.5 MB, one a request, 4 clients", "frames/s", "≥ 5 x Orthanc")
        self.frames_of_8 = Measure(
            "Frames of 0.5 MB, one a request, 8 clients", "frames/s", "≥ 0.6 of plain ranged reads"
        )
        self.metadata = Measure("Series metadata, 200 instances", "requests/s", "≥ 5 x Orthanc")
        self.series = Measure("Whole series of 100 MB", "MB/s", "≥ 0.7 of plain downloads")
        self.search = Measure("Study search", "ms", "≤ 1.5 x Orthanc")

    async def round(self) -> None:
        """Each subject does everything once, on new studies of its own."""
        files = ct_series(FILES)
        for subject, base in self.bases.items():
            seconds = await self._store(base, files)
            self.store.add(subject, FILES / seconds)
        names = [f"{uuid.uuid4().hex}.dcm" for _ in files]
        uploads = [lambda n=n, f=f: self.blobs.upload_blob(n, f) for n, f in zip(names, files, strict=True)]
        self.store.add(PLAIN, FILES / await timed(spread(uploads, CLIENTS)))
        sample = dcmread(DicomBytesIO(files[0]), stop_before_pixels=True)
        series = f"studies/{sample.StudyInstanceUID}/series/{sample.SeriesInstanceUID}"
        uids = [dcmread(DicomBytesIO(file), stop_before_pixels=True).SOPInstanceUID for file in files]
        await self._read(series, uids, names, sum(map(len, files)))

    async def _store(self, base: str, files: Sequence[bytes]) -> float:
        bodies = [multipart(files[i : i + PER_REQUEST]) for i in range(0, len(files), PER_REQUEST)]
        jobs = [lambda b=b, h=h: self._post(f"{base}/studies", b, h) for b, h in bodies]
        return await timed(spread(jobs, CLIENTS))

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        async with self.http.post(url, data=body, headers=headers) as response:
            assert response.status == 200, (response.status, await response.text())
            await response.read()

    async def _read(self, series: str, uids: Sequence[str], names: Sequence[str], size: int) -> None:
        octets = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
        dicom = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        json_type = {"Accept": "application/dicom+json"}
        for subject, base in self.bases.items():
            urls = [f"{base}/{series}/instances/{uid}/frames/1" for uid in uids]
            jobs = [lambda u=u: self._get(u, octets) for u in urls]
            self.frames.add(subject, FILES / await timed(spread(jobs, READERS)))
            self.frames_of_8.add(subject, FILES / await timed(spread(jobs, 2 * READERS)))
            times = [await timed(self._get(f"{base}/{series}/metadata", json_type)) for _ in range(5)]
            self.metadata.add(subject, 1 / statistics.median(times))
            self.series.add(subject, size / 1e6 / await timed(self._get(f"{base}/{series}", dicom)))
            query = f"{base}/studies?PatientID=*1CT*&limit=100&includefield=StudyDescription"
            times = [await timed(self._get(query, json_type)) for _ in range(20)]
            self.search.add(subject, 1000 * statistics.median(times))
        length = 512 * 512 * 2
        ranges = [lambda n=n: self._download(n, 4096, length) for n in names]
        self.frames.add(PLAIN, FILES / await timed(spread(ranges, READERS)))
        self.frames_of_8.add(PLAIN, FILES / await timed(spread(ranges, 2 * READERS)))
        wholes = [lambda n=n: self._download(n, 0, None) for n in names]
        self.series.add(PLAIN, size / 1e6 / await timed(spread(wholes, READERS)))

    async def _get(self, url: str, headers: dict[str, str]) -> None:
        async with self.http.get(url, headers=headers) as response:
            assert response.status == 200, (url, response.status, await response.text())
            async for _ in response.content.iter_any():
                pass

    async def _download(self, name: str, offset: int, length: int | None) -> None:
        stream = await self.blobs.download_blob(name, offset=offset, length=length)
        await stream.readall()

    def measures(self) -> list[Measure]:
        """All of them, in the order of the report."""
        return [self.store, self.frames, self.frames_of_8, self.metadata, self.series, self.search]


def import_time() -> float:
    """Seconds that a new process takes to import function_app, the median of five."""
    code = "import time; t = time.perf_counter(); import function_app; print(time.perf_counter() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=peers.ROOT, capture_output=True, check=True)
        for _ in range(5)
    ]
    return statistics.median(float(run.stdout) for run in runs)


async def run(rounds: int, workers: int) -> tuple[list[Measure], list[Sequence[str]], float]:
    """All measures, after a round that does not count, and the rows of comparisons."""
    with ExitStack() as stack, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Benchmarks", total=2 * rounds + 3)
        imported = import_time()
        progress.advance(task)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicom-bench-")))
        azurite = stack.enter_context(peers.storage(folder / "azurite"))
        ours, _ = stack.enter_context(peers.server(azurite, folder, workers))
        orthanc = stack.enter_context(peers.orthanc(folder / "orthanc"))
        blobs = ContainerClient.from_connection_string(azurite.connection_string, "plain")
        timeout = aiohttp.ClientTimeout(total=300)
        async with (
            blobs,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(keepalive_timeout=2),
                timeout=timeout,
                headers={"Accept-Encoding": "identity"},
            ) as http,
        ):
            await blobs.create_container()
            bench = Bench(http, ours, orthanc, blobs)
            await bench.round()
            for measure in bench.measures():
                measure.values.clear()
            progress.advance(task)
            for _ in range(rounds):
                await bench.round()
                progress.advance(task)
            retrieval = Retrieval(http, ours, blobs, spread)
            await retrieval.prepare()
            progress.advance(task)
            for number in range(1, rounds + 1):
                await retrieval.round(number)
                progress.advance(task)
        return bench.measures(), [COMPARED, *retrieval.rows()], imported


def report(measures: Sequence[Measure], imported: float) -> list[list[str]]:
    """Rows: measure, medians, ratios, aim."""

    def number(value: float | None) -> str:
        return f"{value:.1f}" if value is not None else "not run"

    rows = [
        [
            f"{m.name} ({m.unit})",
            *(number(m.median(subject)) for subject in (OURS, PLAIN, ORTHANC)),
            m.ratio(PLAIN),
            m.ratio(ORTHANC),
            m.aim,
        ]
        for m in measures
    ]
    return [*rows, ["Import of function_app (s)", f"{imported:.2f}", "", "", "", "", "< 1 s"]]


HEADINGS = ["", OURS, PLAIN, ORTHANC, "ratio to plain", "ratio to Orthanc", "aim"]
COMPARED = ["", "one way (ms)", "another way (ms)", "ratio", "aim"]


def main() -> None:
    if "--scale" in sys.argv:
        scale.main([argument for argument in sys.argv[1:] if argument != "--scale"])
    if "--cold" in sys.argv:
        cold.main([argument for argument in sys.argv[1:] if argument != "--cold"])
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    measures, compared, imported = asyncio.run(run(options.rounds, options.workers))
    measured = [HEADINGS, *report(measures, imported)]
    for rows in (measured, compared):
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        Console().print(table)
    if ORTHANC not in measures[0].values:
        Console().print("Orthanc was not found: apt-get install orthanc orthanc-dicomweb adds it.")
    if options.write:
        write_table("results", measured[0], measured[1:])
        write_table("comparisons", compared[0], compared[1:])


if __name__ == "__main__":
    main()
