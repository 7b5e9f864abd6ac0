"""Speed as ratios within one run: what is asserted here holds on a slow and busy machine, too.

The aims and their measurements are in docs/benchmarks.md; these tests have wide margins and find what makes
retrieval several times slower.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import pytest
from azure.storage.blob.aio import ContainerClient

from shared.blobs import names
from shared.blobs.store import connect
from tests import audit
from tests.audit import key_of, path_of
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file

SIDE = 512
FRAME = SIDE * SIDE * 2
OCTETS = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


def image(frames: int) -> bytes:
    pixels = bytes(range(256)) * (FRAME * frames // 256)
    return make_file(frames=frames, Rows=SIDE, Columns=SIDE, PixelData=pixels)


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    return start_server(own_storage=True)


async def spread(jobs: Sequence[Callable[[], Awaitable[object]]], clients: int) -> float:
    """Seconds that all jobs take, ``clients`` at a time."""
    queue = iter(jobs)

    async def client() -> None:
        for job in queue:
            await job()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started


async def test_frames_singly_keep_up_with_plain_reads_and_with_one_list_of_them(server: Server) -> None:
    """Eight clients. The aims are 0.6 of plain ranged reads, and three times the time of one list."""
    count = 32
    file = image(count)
    audit.send(server, file).raise_for_status()
    url = f"{server.v2}{path_of(key_of(file))}/frames"
    (name,) = [blob.name for blob in audit.container(server, names.DICOM).list_blobs()]
    connection = server.environment["AzureWebJobsStorage"]
    async with (
        ContainerClient.from_connection_string(connection, names.DICOM) as blobs,
        aiohttp.ClientSession() as http,
    ):

        async def get(numbers: str) -> None:
            async with http.get(f"{url}/{numbers}", headers=OCTETS) as response:
                assert response.status == 200
                assert len(await response.read()) > FRAME

        async def read(number: int) -> None:
            download = await blobs.download_blob(name, offset=1000 + number * FRAME, length=FRAME)
            assert len(await download.readall()) == FRAME

        jobs = [lambda n=n: get(str(n)) for n in range(1, count + 1)]
        reads = [lambda n=n: read(n) for n in range(count - 1)]
        together = [lambda: get(",".join(map(str, range(1, count + 1))))]
        to_plain, to_list = [], []
        for number in range(5):
            singly = await spread(jobs, 8)
            plain, one_list = await spread(reads, 8), await spread(together, 1)
            if number:
                to_plain.append(plain / singly)
                to_list.append(singly / one_list)
    assert statistics.median(to_plain) > 0.35, to_plain
    assert statistics.median(to_list) < 6, to_list


async def test_a_ranged_read_takes_less_of_a_processor_than_the_librarys_own(server: Server) -> None:
    connection = server.environment["AzureWebJobsStorage"]
    store = connect(connection, "", None)
    async with ContainerClient.from_connection_string(connection, names.INBOX_FAILED) as library:
        await store.upload(names.INBOX_FAILED, "range", bytes(FRAME), {})
        ours, theirs = [], []
        for _ in range(6):
            started = time.process_time()
            for _ in range(20):
                assert len(await store.read(names.INBOX_FAILED, "range", 100, 1000)) == 1000
            middle = time.process_time()
            for _ in range(20):
                download = await library.download_blob("range", offset=100, length=1000)
                assert len(await download.readall()) == 1000
            ours.append(middle - started)
            theirs.append(time.process_time() - middle)
    await store.close()
    assert statistics.median(ours) < 0.75 * statistics.median(theirs), (ours, theirs)
