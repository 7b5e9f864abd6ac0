"""What depends on how one asks: one thing in two ways, in one run, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import numpy as np
from azure.storage.blob.aio import ContainerClient
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from benchmarks.data import ct_image, written
from shared.dicom import transcode
from shared.dicom.pixel_data import DecodedFrame, ImagePixel

SIDE, FRAMES, CLIENTS = 512, 2000, 8
OCTETS = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
NATIVE = {"Accept": "application/octet-stream"}
AS_STORED = {"Accept": "application/dicom; transfer-syntax=*"}

Spread = Callable[[list[Callable[[], Awaitable[object]]], int], Awaitable[None]]


@dataclass
class Comparison:
    """Seconds of the same work in two ways."""

    name: str
    first: str
    second: str
    aim: str = ""
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def add(self, first: float, second: float) -> None:
        """One round's result."""
        self.times[0].append(first)
        self.times[1].append(second)

    def row(self) -> list[str]:
        """What, both medians in milliseconds, and the first over the second."""
        a, b = (statistics.median(times) for times in self.times)
        number = [f"{1000 * value:,.0f}" if value >= 0.01 else f"{1000 * value:.1f}" for value in (a, b)]
        return [
            self.name,
            f"{self.first}: {number[0]}",
            f"{self.second}: {number[1]}",
            f"{a / b:.2f}",
            self.aim,
        ]


class Retrieval:
    """Comparisons on two studies of this server, which :meth:`prepare` stores."""

    def __init__(
        self, http: aiohttp.ClientSession, base: str, blobs: ContainerClient, spread: Spread
    ) -> None:
        self.http, self.base, self.blobs, self.spread = http, base, blobs, spread
        self.singly = Comparison(
            f"{FRAMES:,} frames of 0.5 MB of one instance",
            f"singly, {CLIENTS} clients",
            "one list",
            "≤ 3",
        )
        self.whole = Comparison("The same instance, 1 GB", "this server", "plain download")
        self.kept = Comparison("Frame of 8 MB, JPEG 2000 to native", "made", "kept")
        self.thumbnail = Comparison("Thumbnail of a frame of 8 MB of JPEG 2000", "made", "kept")
        self.unchanged = Comparison("Frame of 0.5 MB", "sent", "unchanged (304)")

    async def prepare(self) -> None:
        """Store what is asked for."""
        self.large = await self._store(_native())
        self.compressed = await self._store(_compressed(8))

    async def round(self, number: int) -> None:
        """Everything once; ``number`` counts from 1."""
        frames = f"{self.large}/frames"
        jobs = [lambda n=n: self.get(f"{frames}/{n}", OCTETS) for n in range(1, FRAMES + 1)]
        alone = await _timed(self.spread(jobs, CLIENTS))
        together = f"{frames}/{','.join(map(str, range(1, FRAMES + 1)))}"
        self.singly.add(alone, await _timed(self.get(together, OCTETS)))
        whole = await _timed(self.get(self.large, AS_STORED))
        self.whole.add(whole, await _timed(self._download()))
        url = f"{self.compressed}/frames/{number}"
        made = await _timed(self.get(url, NATIVE))
        small = await _timed(self.get(f"{url}/thumbnail", {"Accept": "image/jpeg"}))
        await self._settled(url)
        self.kept.add(made, await self._median(url, NATIVE))
        self.thumbnail.add(small, await self._median(f"{url}/thumbnail", {"Accept": "image/jpeg"}))
        tag = await self.get(f"{frames}/1", OCTETS)
        sent = await self._median(f"{frames}/1", OCTETS)
        self.unchanged.add(sent, await self._median(f"{frames}/1", OCTETS | {"If-None-Match": tag}, 304))

    async def get(self, url: str, headers: dict[str, str], status: int = 200) -> str:
        """Read all of an answer; its entity tag."""
        async with self.http.get(url, headers=headers) as response:
            assert response.status == status, (url, response.status, await response.text())
            async for _ in response.content.iter_any():
                pass
            return response.headers.get("ETag", "")

    async def _median(self, url: str, headers: dict[str, str], status: int = 200) -> float:
        return statistics.median([await _timed(self.get(url, headers, status)) for _ in range(9)])

    async def _settled(self, url: str) -> None:
        """Ask until what is kept has been written, for every worker."""
        for _ in range(6):
            await self.get(url, NATIVE)

    async def _download(self) -> None:
        download = await self.blobs.download_blob("large.dcm")
        async for _ in download.chunks():
            pass

    async def _store(self, file: bytes) -> str:
        if len(file) > 500_000_000:
            await self.blobs.upload_blob("large.dcm", file)
        headers = {"Content-Type": "application/dicom", "Accept": "application/dicom+json"}
        async with self.http.post(f"{self.base}/studies", data=file, headers=headers) as response:
            assert response.status == 200, (response.status, await response.text())
        ds = dcmread(DicomBytesIO(file), stop_before_pixels=True)
        series = f"studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
        return f"{self.base}/{series}/instances/{ds.SOPInstanceUID}"

    def rows(self) -> list[list[str]]:
        """One a comparison."""
        return [c.row() for c in (self.singly, self.whole, self.kept, self.thumbnail, self.unchanged)]


def _native() -> bytes:
    ds = ct_image(SIDE, FRAMES)
    frames = np.random.default_rng(2).integers(0, 4096, (50, SIDE, SIDE), dtype=np.uint16).tobytes()
    ds.PixelData = frames * (FRAMES // 50)
    return written(ds, ExplicitVRLittleEndian)


def _compressed(count: int) -> bytes:
    """Frames of 2048 x 2048 pixels of 12 bits, smooth with some noise, as a mammogram is."""
    image = ImagePixel(2048, 2048, 1, "MONOCHROME2", 0, 16, 12, 11, 0)
    slope = np.add.outer(np.arange(2048), np.arange(2048)) // 2
    random = np.random.default_rng(3)
    streams = []
    for _ in range(count):
        pixels = (slope + random.integers(0, 32, slope.shape)).astype(np.uint16)
        streams.append(transcode.encode(DecodedFrame(pixels, image), JPEG2000Lossless).data)
    ds = ct_image(2048, count)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].is_undefined_length = True
    return written(ds, JPEG2000Lossless)


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started
