"""Range requests on instances, frames and bulk data (RFC 9110 §13, §14), on the running server."""

from __future__ import annotations

import random

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, generate_uid

from shared.errors import RangeNotSatisfiable
from shared.web.ranges import content_range, requested
from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, read_multipart, to_file
from tests.test_part10 import deflated

DICOM = {"Content-Type": "application/dicom"}
MPEG4 = "1.2.840.10008.1.2.4.102"
OCTETS = {"Accept": "application/octet-stream; transfer-syntax=*"}
BLOCK = 4 * 1024 * 1024


# --- which bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-", (10, 90)),
        ("bytes=-1", (99, 1)),
        ("bytes=-1000", (0, 100)),
        ("bytes=98-100000", (98, 2)),
        ("Bytes = 5 - 6", (5, 2)),
        ("bytes=0-99999999999999999999", (0, 100)),
        ("", None),
        ("bytes=-", None),
        ("bytes=5-4", None),
        ("bytes=a-b", None),
        ("bytes=0-" + "9" * 31, None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=1", None),
        ("bytes=--1", None),
    ],
)
def test_the_range_asked_for(header: str, expected: tuple[int, int] | None) -> None:
    assert requested(header, "", '"tag"', 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999-"])
def test_a_range_outside_is_not_satisfiable(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        requested(header, "", '"tag"', 100)
    assert caught.value.length == 100


@pytest.mark.parametrize(
    ("if_range", "whole"),
    [
        ("", False),
        ('"tag"', False),
        ('W/"tag"', True),
        ('"other"', True),
        ("Sat, 29 Feb 2024 00:00:00 GMT", True),
    ],
)
def test_if_range_must_be_the_strong_tag(if_range: str, whole: bool) -> None:
    assert (requested("bytes=0-1", if_range, '"tag"', 100) is None) == whole


def test_an_empty_body_has_no_ranges() -> None:
    with pytest.raises(RangeNotSatisfiable):
        requested("bytes=0-", "", '"tag"', 0)


def test_content_range() -> None:
    assert content_range(5, 2, 100) == "bytes 5-6/100"


# --- on the server -----------------------------------------------------------------------------------


def video(*fragments: bytes) -> bytes:
    """A file whose pixel data is one stream, split anywhere."""
    ds = make_dataset(frames=0, SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.1.1")
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.SamplesPerPixel = 64, 64, 50, 3
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PhotometricInterpretation = "YBR_PARTIAL_420"
    ds.PixelData = encapsulate(list(fragments), has_bot=False)
    ds["PixelData"].is_undefined_length = True
    return to_file(ds, MPEG4)


def large_frames() -> bytes:
    """Two native frames of 5 MiB."""
    ds = make_dataset()
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 2560, 2048, 8, 8, 7
    ds.NumberOfFrames = 2
    ds.PixelData = random.Random(1).randbytes(2 * 2560 * 2048)
    ds["PixelData"].VR = "OB"
    return to_file(ds)


def nested() -> Dataset:
    item = Dataset()
    item.add_new(0x00282000, "OB", bytes(range(256)) * 256)
    return item


RANDOM = random.Random(2).randbytes(6 * 1024 * 1024)

FILES = {
    "native": lambda: make_file(frames=3),
    "big endian": lambda: make_file(frames=3, transfer_syntax=ExplicitVRBigEndian),
    "deflated": lambda: deflated(make_dataset(frames=3)),
    "encapsulated": lambda: make_file(frames=3, encapsulated=True),
    "large frames": large_frames,
    "video": lambda: video(RANDOM),
    "video in fragments": lambda: video(RANDOM[:1_000_000], RANDOM[1_000_000:5_000_002], RANDOM[5_000_002:]),
    "short video": lambda: video(RANDOM[:5000], RANDOM[5000:6000]),
    "nested": lambda: make_file(OpticalPathSequence=[nested()]),
    "one bit": lambda: to_file(one_bit()),
}

CASES = [
    ("native", "", {"Accept": "application/dicom; transfer-syntax=*"}),
    ("native", "", {"Accept": "application/dicom"}),
    ("large frames", "", {"Accept": "application/dicom"}),
    ("deflated", "", {"Accept": "application/dicom; transfer-syntax=*"}),
    ("encapsulated", "", {"Accept": "application/dicom; transfer-syntax=*"}),
    ("native", "/frames/2", OCTETS),
    ("big endian", "/frames/2", OCTETS),
    ("deflated", "/frames/2", OCTETS),
    ("encapsulated", "/frames/2", OCTETS),
    ("encapsulated", "/frames/2", {"Accept": "image/jp2"}),
    ("large frames", "/frames/2", OCTETS),
    ("one bit", "/frames/2", OCTETS),
    ("native", "/frames/2", {}),
    ("encapsulated", "/frames/3", {"Accept": 'multipart/related; type="image/jp2"; transfer-syntax=*'}),
    ("large frames", "/frames/1", {"Accept": "multipart/related; type=application/octet-stream"}),
    ("native", "/bulkdata/7FE00010", OCTETS),
    ("big endian", "/bulkdata/7FE00010", OCTETS),
    ("deflated", "/bulkdata/7FE00010", OCTETS),
    ("encapsulated", "/bulkdata/7FE00010", OCTETS),
    ("video", "/bulkdata/7FE00010", OCTETS),
    ("video in fragments", "/bulkdata/7FE00010", OCTETS),
    ("short video", "/bulkdata/7FE00010", OCTETS),
    ("video", "/bulkdata/7FE00010", {"Accept": "multipart/related; type=application/octet-stream"}),
    ("nested", "/bulkdata/00480105.1.00282000", OCTETS),
]


def one_bit() -> Dataset:
    ds = make_dataset(frames=3)
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 5, 7, 1, 1, 0
    ds.PixelData = random.Random(3).randbytes(14)
    ds["PixelData"].VR = "OB"
    return ds


@pytest.fixture(scope="module")
def urls(server: Server) -> dict[str, str]:
    """The instance URL of each file."""
    found = {}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for name, make in FILES.items():
            response = client.post("/v2/studies", content=make(), headers=DICOM)
            assert response.status_code == 200, (name, response.text)
            found[name] = response.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
    return found


@pytest.mark.parametrize(("name", "path", "headers"), CASES)
def test_ranges_are_parts_of_the_whole(
    client: httpx.Client, urls: dict[str, str], name: str, path: str, headers: dict[str, str]
) -> None:
    url = urls[name] + path
    whole = client.get(url, headers=headers)
    assert whole.status_code == 200, whole.text
    body, size, tag = whole.content, len(whole.content), whole.headers["etag"]
    assert int(whole.headers["content-length"]) == size
    assert whole.headers["accept-ranges"] == "bytes"
    starts = {0, 1, size // 2, size // 2 + 1, size - 1, min(size - 1, BLOCK - 1), min(size - 1, 1_000_003)}
    for start in sorted(starts):
        for count in (1, 2, 1000, BLOCK + 3, size):
            wanted = {**headers, "Range": f"bytes={start}-{start + count - 1}", "If-Range": tag}
            part = client.get(url, headers=wanted)
            assert part.status_code == 206
            assert part.content == body[start : start + count]
            stop = min(start + count, size) - 1
            assert part.headers["content-range"] == f"bytes {start}-{stop}/{size}"
            assert int(part.headers["content-length"]) == len(part.content)
            assert part.headers["etag"] == tag
            assert part.headers["content-type"] == whole.headers["content-type"]
    assert client.get(url, headers={**headers, "Range": "bytes=-7"}).content == body[-7:]


def test_what_is_refused_ignored_and_kept(client: httpx.Client, urls: dict[str, str]) -> None:
    url = urls["native"]
    accept = {"Accept": "application/dicom; transfer-syntax=*"}
    whole = client.get(url, headers=accept)
    size = len(whole.content)
    outside = client.get(url, headers={**accept, "Range": f"bytes={size}-"})
    assert outside.status_code == 416
    assert outside.headers["content-range"] == f"bytes */{size}"
    assert outside.json()["detail"] == f"The range lies outside of the {size} bytes."
    for ignored in (
        {"Range": "bytes=0-1,4-5"},
        {"Range": "lines=1-2"},
        {"If-Range": '"x"', "Range": "bytes=0-1"},
    ):
        response = client.get(url, headers=accept | ignored)
        assert (response.status_code, response.content) == (200, whole.content)
    held = client.get(url, headers={**accept, "If-None-Match": whole.headers["etag"], "Range": "bytes=0-1"})
    assert (held.status_code, held.content) == (304, b"")
    head = client.head(url, headers={**accept, "Range": "bytes=0-1"})
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))
    exposed = whole.headers["access-control-expose-headers"]
    assert all(name in exposed for name in ("Accept-Ranges", "Content-Range", "ETag"))


def test_another_version_or_form_has_another_tag(client: httpx.Client) -> None:
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    url = f"/v2/studies/{study}/series/{series}/instances/{instance}"
    tags = set()
    for modality in ("CT", "MR"):
        data = make_file(study, series, instance, Modality=modality)
        assert client.put("/v2/studies", content=data, headers=DICOM).status_code == 200
        for accept in ("application/dicom", 'multipart/related; type="application/octet-stream"', "*/*"):
            path = url if accept == "application/dicom" else f"{url}/frames/1"
            tags.add(client.get(path, headers={"Accept": accept}).headers["etag"])
        tags.add(client.get(f"{url}/bulkdata/7FE00010").headers.get("etag"))
        tags.add(client.get(f"{url}/frames/1", headers=OCTETS).headers["etag"])
    assert len(tags) >= 8


def test_a_part_of_a_multipart_frame_is_put_together_again(
    client: httpx.Client, urls: dict[str, str]
) -> None:
    """What a progressive viewer does: the first bytes, then the rest, of the same multipart body."""
    url = urls["large frames"] + "/frames/2"
    accept = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'}
    first = client.get(url, headers={**accept, "Range": "bytes=0-65535"})
    total = int(first.headers["content-range"].rpartition("/")[2])
    rest = client.get(url, headers={**accept, "Range": f"bytes=65536-{total - 1}"})
    ((headers, frame),) = read_multipart(first.headers["content-type"], first.content + rest.content)
    assert frame == client.get(url, headers=OCTETS).content
    assert headers["content-location"] == url


def test_several_frames_are_not_ranged(client: httpx.Client, urls: dict[str, str]) -> None:
    response = client.get(urls["native"] + "/frames/1,2", headers={"Range": "bytes=0-1"})
    assert response.status_code == 200
    assert "accept-ranges" not in response.headers
