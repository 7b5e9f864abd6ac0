"""A tiled image of 100,000 frames: it is stored in a stream, and any frame of it is found at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import chain

import orjson
import pytest

from shared.blobs import names
from tests import audit, slides
from tests.conftest import StartServer
from tests.dicom_files import read_multipart
from tests.memory import Memory, needs_proc
from tests.partition import Partition, path_of, problem

FRAMES = 100_000
SOME = [1, 2, FRAMES // 2, FRAMES - 1, FRAMES, *random.Random(7).sample(range(1, FRAMES), 20)]
ALL_TYPES = "application/octet-stream; transfer-syntax=*"
MANY_TYPES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
MOST_GROWTH = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def archive(start_server: StartServer) -> Partition:
    """A server with one worker that has stored something already."""
    archive = Partition(start_server(workers=1, own_storage=True))
    keep(archive, slides.slide(2))
    return archive


def keep(archive: Partition, pieces: Iterator[bytes]) -> str:
    """Store a slide as it is made; the path of its instance."""
    start = next(pieces)
    response = archive.request(
        "POST", "studies", slides.gathered(chain([start], pieces)), Content_Type="application/dicom"
    )
    assert response.status_code == 200, response.text
    return path_of(start)


@pytest.mark.parametrize(
    ("make", "tile"),
    [
        pytest.param(lambda: slides.native_slide(FRAMES), slides.native_tile, id="native"),
        pytest.param(lambda: slides.slide(FRAMES, "basic"), slides.tile, id="basic offset table"),
        pytest.param(lambda: slides.slide(FRAMES, "extended"), slides.tile, id="extended offset table"),
        pytest.param(lambda: slides.slide(FRAMES), slides.tile, id="no offset table"),
        pytest.param(lambda: slides.slide(FRAMES, "basic", 2), slides.tile, id="two fragments a frame"),
        pytest.param(lambda: slides.slide(FRAMES, "", 2), slides.tile, id="two fragments, no table"),
    ],
)
def test_any_of_100_000_frames(
    archive: Partition, make: Callable[[], Iterator[bytes]], tile: Callable[[int], bytes]
) -> None:
    path = keep(archive, make())
    for number in SOME:
        assert archive.get(f"{path}/frames/{number}", ALL_TYPES).content == tile(number)
    assert f"{FRAMES} frames" in problem(archive.get(f"{path}/frames/{FRAMES + 1}", ALL_TYPES), 404)
    numbers = random.Random(7).sample(range(1, FRAMES), 500)
    numbers += range(FRAMES - 499, FRAMES + 1)
    response = archive.get(f"{path}/frames/{','.join(map(str, numbers))}", MANY_TYPES)
    parts = read_multipart(response.headers["Content-Type"], response.content)
    assert [content for _, content in parts] == [tile(number) for number in numbers]


@needs_proc
def test_functional_groups_of_100_000_frames_pass_through_bounded_memory(archive: Partition) -> None:
    memory = Memory.of(archive.server)
    path = keep(archive, slides.slide(FRAMES, positions=True))
    response = archive.get(f"{path}/metadata", Accept_Encoding="identity")
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"
    (metadata,) = orjson.loads(response.content)
    groups = metadata["52009230"]["Value"]
    assert len(groups) == FRAMES
    assert groups[-1]["00209111"]["Value"][0]["00209157"]["Value"] == [FRAMES, 1]
    assert groups[-1]["0048021A"]["Value"][0]["0048021E"]["Value"] == [(FRAMES - 1) * slides.EDGE + 1]
    assert archive.get(f"{path}/frames/{FRAMES}", ALL_TYPES).content == slides.tile(FRAMES)
    (found,) = archive.get(f"instances?SOPInstanceUID={path.rpartition('/')[2]}").json()
    assert found["00280008"]["Value"] == [FRAMES]
    assert "52009230" not in found


def test_nothing_is_left_of_a_deleted_slide(archive: Partition) -> None:
    path = keep(archive, slides.slide(20_000, positions=True))  # its metadata has a blob of its own
    prefix = path.split("/")[1]
    assert [name for name in blobs(archive) if prefix in name]
    assert archive.request("DELETE", path).status_code == 204
    assert "does not exist" in problem(archive.get(f"{path}/frames/1", ALL_TYPES), 404)
    archive.server.run_function("clean_deleted_instances")
    assert not [name for name in blobs(archive) if prefix in name]


def blobs(archive: Partition) -> list[str]:
    """Names of all files and packs."""
    containers = (audit.container(archive.server, name) for name in (names.DICOM, names.METADATA))
    return [blob.name for container in containers for blob in container.list_blobs()]
