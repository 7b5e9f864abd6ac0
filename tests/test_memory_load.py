"""Eight clients at once retrieve a large study, a large instance, and transcoded multi-frame instances: no
process of the server grows by more than a bound over what it takes when idle, whatever their size.

Study and instance have 96 MiB by default, the transcoded instances half of that once decoded.
``DICOM_TEST_LOAD_MIB=2048`` makes them 2 GiB and 1 GiB: it needs 12 GB of disk and several minutes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom.uid import generate_uid

from shared.dicom import transcode
from shared.dicom.pixel_data import DecodedFrame, ImagePixel
from shared.dicom.transfer_syntaxes import EXPLICIT_LE, JPEG_LS_LOSSLESS, RLE
from tests.conftest import StartServer
from tests.dicom_files import make_dataset, multipart, to_file
from tests.memory import Memory, needs_proc
from tests.partition import Partition, path_of
from tests.tools import missing

MIB = 1024 * 1024
SIZE = int(os.environ.get("DICOM_TEST_LOAD_MIB", "96")) * MIB
MOST_GROWTH = 256 * MIB
CLIENTS = 8
EDGE = 512
IMAGE = ImagePixel(EDGE, EDGE, 1, "MONOCHROME2", 0, 16, 16, 15, 0)
FRAME_BYTES = EDGE * EDGE * 2
DIFFERENT = 7
"""Frames repeat after so many: a number that is no multiple of how many are worked on at once."""
TIMEOUT = 1800
NATIVE_OUT = f"application/dicom; transfer-syntax={EXPLICIT_LE}"
JPEG_LS_OUT = f"application/dicom; transfer-syntax={JPEG_LS_LOSSLESS}"
AS_STORED = "application/dicom; transfer-syntax=*"

pytestmark = needs_proc


def different_frames() -> list[DecodedFrame]:
    """Slopes with noise, which codecs compress about as well as images."""
    rng = np.random.default_rng(1)
    slope = np.add.outer(np.arange(EDGE), np.arange(EDGE)) * 30
    frames = (slope + number * 999 + rng.integers(0, 64, (EDGE, EDGE)) for number in range(DIFFERENT))
    return [DecodedFrame(frame.astype("<u2"), IMAGE) for frame in frames]


FRAMES = different_frames()


def as_items(frames: list[bytes], count: int) -> Iterator[bytes]:
    """Encapsulated pixel data without an offset table, a fragment a frame."""
    yield b"\xfe\xff\x00\xe0" + bytes(4)
    for frame in itertools.islice(itertools.cycle(frames), count):
        padding = len(frame) % 2
        yield b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame) + padding) + frame + b"\0" * padding
    yield b"\xfe\xff\xdd\xe0" + bytes(4)


def encoded(syntax: str) -> list[bytes]:
    return [transcode.encode(frame, syntax).data for frame in FRAMES]


def native(count: int) -> Iterator[bytes]:
    frames = [frame.pixels.tobytes() for frame in FRAMES]
    return itertools.islice(itertools.cycle(frames), count)


def sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


@dataclass
class Stored:
    """What the server holds, by path; and its memory since before anything was stored."""

    archive: Partition
    memory: Memory
    frames: int
    half: int
    study: str
    study_bytes: int
    instance: str
    rle: str
    plain: str


@pytest.fixture(scope="module")
def stored(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """The data on a server of one worker, which thus serves all clients; its storage is deleted afterwards.

    Idle is a process that has the codecs loaded.
    """
    needed = SIZE * 6
    free = shutil.disk_usage(tmp_path_factory.getbasetemp()).free
    if free < needed:
        missing(f"MEMORY UNDER LOAD IS NOT TESTED: {needed // MIB} MiB of disk are needed, not {free // MIB}")
    server = start_server(workers=1, own_storage=True)
    archive = Partition(server)
    first = store_instance(archive, 2, RLE, as_items(encoded(RLE), 2), b"OB")
    assert {archive.get(first, accept).status_code for accept in (NATIVE_OUT, JPEG_LS_OUT)} == {200}
    memory = Memory.of(server)
    count, half = SIZE // FRAME_BYTES, SIZE // FRAME_BYTES // 2
    study, study_bytes = store_study(archive, count)
    instance = store_instance(archive, count, EXPLICIT_LE, native(count), b"OW")
    rle = store_instance(archive, half, RLE, as_items(encoded(RLE), half), b"OB")
    plain = store_instance(archive, half, EXPLICIT_LE, native(half), b"OW")
    yield Stored(archive, memory, count, half, study, study_bytes, instance, rle, plain)
    server.close()
    shutil.rmtree(Path(server.log_path).parent)


def store_study(archive: Partition, count: int) -> tuple[str, int]:
    """A study of ``count`` instances of one frame each; its path and the bytes of its files."""
    study, series = generate_uid(), generate_uid()
    total = 0
    for first in range(0, count, 32):
        numbers = range(first, min(first + 32, count))
        files = [image_file(study, series, FRAMES[number % DIFFERENT]) for number in numbers]
        total += sum(map(len, files))
        body, headers = multipart(files)
        answer = archive.http.post(f"{archive.root}/studies", content=body, headers=headers, timeout=TIMEOUT)
        assert answer.status_code == 200, answer.text
    return f"studies/{study}", total


def image_file(study: str, series: str, frame: DecodedFrame) -> bytes:
    return to_file(make_dataset(study, series, Rows=EDGE, Columns=EDGE, PixelData=frame.pixels.tobytes()))


def store_instance(archive: Partition, count: int, syntax: str, value: Iterator[bytes], vr: bytes) -> str:
    """One instance of ``count`` frames, whose pixel data streams into the request; its path."""
    ds = make_dataset(frames=0, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    ds.NumberOfFrames, ds.Rows, ds.Columns = count, EDGE, EDGE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    start = to_file(ds, syntax)
    length = count * FRAME_BYTES if syntax == EXPLICIT_LE else 0xFFFFFFFF

    def body() -> Iterator[bytes]:
        yield start + b"\xe0\x7f\x10\x00" + vr + b"\0\0" + length.to_bytes(4, "little")
        yield from value

    headers = {"Content-Type": "application/dicom"}
    answer = archive.http.post(f"{archive.root}/studies", content=body(), headers=headers, timeout=TIMEOUT)
    assert answer.status_code == 200, answer.text
    return path_of(start)


# --- clients -----------------------------------------------------------------------------------------


def download(
    stored: Stored, path: str, accept: str, patience: threading.Event | None = None
) -> Iterator[bytes]:
    """The body; a client with ``patience`` reads a little, and the rest when that is over."""
    with (
        httpx.Client(timeout=TIMEOUT) as http,
        http.stream("GET", f"{stored.archive.root}/{path}", headers={"Accept": accept}) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        for number, chunk in enumerate(answer.iter_raw()):
            if number == 1 and patience is not None:
                patience.wait(TIMEOUT)
            yield chunk


def pixels_of(chunks: Iterator[bytes], mark: bytes) -> Iterator[bytes]:
    """What follows the first ``mark`` in a file, mark included."""
    head = b""
    for chunk in chunks:
        head += chunk
        if mark in head:
            yield head[head.index(mark) :]
            break
    yield from chunks


def read_study(stored: Stored) -> None:
    size, end = 0, b""
    for chunk in download(
        stored, stored.study, 'multipart/related; type="application/dicom"; transfer-syntax=*'
    ):
        size += len(chunk)
        end = (end + chunk)[-100:]
    assert stored.study_bytes < size < stored.study_bytes * 1.01
    assert end.endswith(b"--\r\n")


def read_instance(stored: Stored, patience: threading.Event | None = None) -> None:
    mark = b"\xe0\x7f\x10\x00OW\0\0" + (stored.frames * FRAME_BYTES).to_bytes(4, "little")
    chunks = pixels_of(download(stored, stored.instance, AS_STORED, patience), mark)
    assert sha256(chunks) == sha256(iter([mark, *native(stored.frames)]))


def read_decoded(stored: Stored) -> None:
    mark = b"\xe0\x7f\x10\x00OW\0\0" + (stored.half * FRAME_BYTES).to_bytes(4, "little")
    chunks = pixels_of(download(stored, stored.rle, NATIVE_OUT), mark)
    assert sha256(chunks) == sha256(iter([mark, *native(stored.half)]))


def read_encoded(stored: Stored) -> None:
    mark = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
    chunks = pixels_of(download(stored, stored.plain, JPEG_LS_OUT), mark)
    expected = as_items(encoded(JPEG_LS_LOSSLESS), stored.half)
    assert sha256(chunks) == sha256(itertools.chain([mark], expected))


def at_once(stored: Stored, *reads: Callable[[Stored], None]) -> tuple[int, float]:
    """How much larger than idle the largest process has been up to the end of ``reads``, which run at once;
    and the seconds they took."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(reads)) as clients:
        for done in [clients.submit(read, stored) for read in reads]:
            done.result()
    return stored.memory.growth, time.monotonic() - began


@pytest.mark.parametrize(
    "reads",
    [
        (read_study,) * CLIENTS,
        (read_instance,) * CLIENTS,
        (read_decoded,) * CLIENTS,
        (read_encoded,) * CLIENTS,
        (read_study, read_instance, read_decoded, read_encoded) * 2,
    ],
    ids=["study", "instance", "decoded", "encoded", "all of them"],
)
def test_eight_clients_at_once_cost_little_memory(
    stored: Stored, reads: tuple[Callable[[Stored], None], ...]
) -> None:
    grown, took = at_once(stored, *reads)
    print(f"{SIZE // MIB} MiB: grown by {grown // MIB} MiB in {took:.0f} s")
    assert grown < MOST_GROWTH, f"{grown // MIB} MiB"


def test_clients_that_read_slowly_cost_little_memory(stored: Stored) -> None:
    patience = threading.Event()

    def wait_and_release(stored: Stored) -> None:
        time.sleep(5)
        patience.set()

    reads = [lambda stored: read_instance(stored, patience)] * CLIENTS
    grown, _ = at_once(stored, *reads, wait_and_release)
    assert grown < MOST_GROWTH, f"{grown // MIB} MiB"
