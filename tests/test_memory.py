"""A large file passes through a worker that hardly grows, in and out.

1 GiB by default; ``DICOM_TEST_LARGE_GIB=4`` takes the largest file that DICOM's 32-bit lengths allow, which
needs 12 GB of disk and a minute or two.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, to_file
from tests.memory import Memory, needs_proc
from tests.partition import Partition, path_of
from tests.tools import missing

GIB = int(os.environ.get("DICOM_TEST_LARGE_GIB", "1"))
EDGE = 1024
FRAME_BYTES = EDGE * EDGE * 2
FRAMES = GIB * 512 - 1
MOST_GROWTH = 256 * 1024 * 1024

pytestmark = needs_proc


def frame(number: int) -> bytes:
    """Frame ``number`` (from 1): its number, then noise."""
    return number.to_bytes(4, "little") + NOISE[4:]


NOISE = os.urandom(FRAME_BYTES)


def header() -> bytes:
    """The file up to its pixel data."""
    ds = make_dataset(frames=0, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    ds.NumberOfFrames, ds.Rows, ds.Columns = FRAMES, EDGE, EDGE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    length = FRAMES * FRAME_BYTES
    assert length < 2**32 - 1
    return to_file(ds) + b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little")


@pytest.fixture(scope="module")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, and a storage that is deleted afterwards."""
    needed = GIB * 3 * 1024**3
    free = shutil.disk_usage(tmp_path_factory.getbasetemp()).free
    if free < needed:
        missing(f"THE LARGE FILE IS NOT TESTED: {needed >> 30} GiB of disk are needed, {free >> 30} are free")
    server = start_server(workers=1, own_storage=True)
    Partition(server).keep(to_file(make_dataset()))
    yield server
    server.close()
    shutil.rmtree(Path(server.log_path).parent)


def test_a_file_of_gigabytes_goes_in_and_comes_out_through_a_worker_that_hardly_grows(
    server: Server, record_property: pytest.RecordProperty
) -> None:
    archive = Partition(server)
    start = header()
    digest = hashlib.sha256()
    memory = Memory.of(server)

    def body() -> Iterator[bytes]:
        yield b"--b\r\nContent-Type: application/dicom\r\n\r\n"
        digest.update(start)
        yield start
        for number in range(1, FRAMES + 1):
            content = frame(number)
            digest.update(content)
            yield content
        yield b"\r\n--b--\r\n"

    began = time.monotonic()
    response = archive.http.post(
        f"{archive.root}/studies",
        content=body(),
        headers={"Content-Type": "multipart/related; type=application/dicom; boundary=b"},
        timeout=600,
    )
    stored_in = time.monotonic() - began
    assert response.status_code == 200, response.text
    grown_in = memory.growth
    assert grown_in < MOST_GROWTH, f"{grown_in >> 20} MiB"

    began = time.monotonic()
    path = path_of(start)
    came = hashlib.sha256()
    as_stored = {"Accept": "application/dicom; transfer-syntax=*"}
    with archive.http.stream("GET", f"{archive.root}/{path}", headers=as_stored) as download:
        assert download.headers["Content-Length"] == str(len(start) + FRAMES * FRAME_BYTES)
        for chunk in download.iter_raw():
            came.update(chunk)
    read_in = time.monotonic() - began
    assert came.hexdigest() == digest.hexdigest()

    middle = FRAMES // 2
    single = "application/octet-stream"
    for number in (1, middle, FRAMES):
        assert archive.get(f"{path}/frames/{number}", single).content == frame(number)
    grown = memory.growth
    assert grown < MOST_GROWTH, f"{grown >> 20} MiB"
    record_property("growth_storing_mib", grown_in >> 20)
    record_property("growth_mib", grown >> 20)
    print(
        f"{GIB} GiB: stored in {stored_in:.0f} s, read in {read_in:.0f} s; "
        f"grown by {grown_in >> 20} MiB storing, {grown >> 20} MiB in all"
    )


def test_the_refusal_of_a_large_file_at_its_end_costs_no_memory_either(server: Server) -> None:
    archive = Partition(server)
    memory = Memory.of(server)
    start = header()

    def body() -> Iterator[bytes]:
        yield start
        for _ in range(100):
            yield NOISE

    response = archive.request("POST", "studies", body(), Content_Type="application/dicom")
    assert response.status_code == 409
    assert "The file ends before the value of its last element." in response.text
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"
    assert archive.get("studies").status_code == 204
