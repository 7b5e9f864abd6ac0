"""Content codings: which one a client gets, and that the bytes are it."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import httpx
import pytest
import zstandard

from shared.errors import NotAcceptable
from shared.web import content_coding
from tests.conftest import Server
from tests.dicom_files import make_file
from tests.partition import Partition, problem


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, ""),
        ("", ""),
        ("identity", ""),
        ("br, deflate", ""),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP ; Q=0.5", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.4, gzip;q=0.5", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=0, *", "zstd"),
        ("*", "gzip"),
        ("*;q=0.1, zstd", "zstd"),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("identity;q=0, gzip;q=0.001", "gzip"),
        ("*;q=0, zstd", "zstd"),
        ("gzip;q=much", ""),
        ("gzip, identity;q=0;x=y, ,;", "gzip"),
    ],
)
def test_the_coding_is_the_one_weighed_most(header: str | None, coding: str) -> None:
    assert content_coding.choose(header) == coding


@pytest.mark.parametrize("header", ["identity;q=0", "*;q=0", "br, identity;q=0", "gzip;q=0, zstd;q=0, *;q=0"])
def test_refusing_all_of_them_is_not_acceptable(header: str) -> None:
    with pytest.raises(NotAcceptable):
        content_coding.choose(header)


def test_a_small_body_is_compressed_only_where_it_must_be() -> None:
    assert content_coding.choose("gzip", worthwhile=False) == ""
    assert content_coding.choose("gzip, identity;q=0", worthwhile=False) == "gzip"


async def chunks() -> AsyncIterator[bytes]:
    for number in range(20):
        yield bytes([number]) * (number * 50_000)


@pytest.mark.parametrize("coding", ["gzip", "zstd", ""])
async def test_streams_and_bodies_are_in_the_coding(coding: str) -> None:
    body = b"".join([chunk async for chunk in chunks()])
    stream = b"".join([chunk async for chunk in content_coding.encoded(chunks(), coding)])
    for data in (stream, await content_coding.encode(body, coding)):
        decoded = {
            "gzip": gzip.decompress,
            "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
            "": bytes,
        }[coding](data)
        assert decoded == body
        assert not coding or len(data) < len(body) / 20


def test_zstd_stays_within_the_window_of_browsers() -> None:
    """A client need not read a window of more than 8 MB (RFC 9659)."""
    data = zstandard.ZstdCompressor(level=1).compressobj().compress(b"x" * 100_000_000)
    assert zstandard.get_frame_parameters(data).window_size <= 8 * 1024 * 1024


@pytest.fixture(scope="module")
def study(server: Server) -> tuple[Partition, str]:
    archive = Partition(server)
    path, *_ = archive.keep(*(make_file(ImageComments="c" * 3000) for _ in range(5)))
    return archive, path


@pytest.mark.parametrize("path", ["/metadata", "studies", "instances"])
def test_each_coding_has_a_tag_of_its_own(study: tuple[Partition, str], path: str) -> None:
    archive, instance = study
    path = instance + path if path.startswith("/") else path
    tags = set()
    for coding in ("identity", "gzip", "zstd"):
        response = archive.get(path, Accept_Encoding=coding)
        assert response.headers.get("Content-Encoding", "identity") == coding
        assert response.json() == archive.get(path, Accept_Encoding="identity").json()
        assert "Accept-Encoding" in response.headers["Vary"]
        etag = response.headers["ETag"]
        again = archive.get(path, Accept_Encoding=coding, If_None_Match=etag)
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
        tags.add(etag)
    assert len(tags) == 3


def test_a_client_that_takes_no_coding_at_all_is_told_so(
    study: tuple[Partition, str], server: Server
) -> None:
    archive, instance = study
    for path in ("studies", f"{instance}/metadata"):
        assert "identity" in problem(archive.get(path, Accept_Encoding="br, identity;q=0"), 406)
    refused = httpx.get(f"{server.v2}/changefeed", headers={"Accept-Encoding": "*;q=0"})
    assert problem(refused, 406)
