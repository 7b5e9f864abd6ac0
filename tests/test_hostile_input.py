"""Hostile input: never a 5xx, memory bounded, the next request served."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.dicom.part10 import Part10Parser
from shared.errors import InvalidInstance
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart, real_files
from tests.memory import Memory, needs_proc
from tests.partition import Partition, path_of
from tests.test_part10 import EXPLICIT, IDENTITY, IMPLICIT, compressed, element, meta, parse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SEEDS = [path.read_bytes() for path in real_files() if path.stat().st_size < 60_000]
MOST_GROWTH = 400 * 1024 * 1024
"""Bytes a process may grow by at most: a few times the 96 MiB of metadata that one instance may have."""

SPLICES = [
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
    b"\xfe\xff\x0d\xe0\0\0\0\0",
    b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff",
    b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff",
    b"\x08\x00\x05\x00CS\x0a\0ISO_IR 192",
    b"\x08\x00\x05\x00CS\x06\0utf_16",
    b"\x28\x00\x08\x00IS\x0a\x002147483647",
    b"\x1b$B",
    b"UN",
    b"SQ",
]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with a few bytes changed, spliced in, cut out or cut off; most often near its start."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(128, max(129, min(len(result), chance.choice([600, 3000, 60_000]))))
        match chance.randrange(6):
            case 0:
                result[at : at + 1] = chance.randbytes(1)
            case 1:
                splice = chance.choice(SPLICES)
                result[at : at + len(splice)] = splice
            case 2:
                result[at:at] = chance.choice(SPLICES)
            case 3:
                del result[at : at + chance.randrange(1, 40)]
            case 4:
                source = chance.randrange(len(result))
                result[at:at] = result[source : source + chance.randrange(300)]
            case 5 if chance.random() < 0.3:
                del result[at:]
    return bytes(result)


# --- the parser ---------------------------------------------------------------------------------------


def test_mutated_files_are_read_or_refused() -> None:
    chance = random.Random(20_240_229)
    read = 0
    for _ in range(6000):
        data = mutated(chance.choice(SEEDS), chance)
        with contextlib.suppress(InvalidInstance):
            parsed = parse(data, chance.choice([0, 0, 777]))
            json.loads(parsed.document)
            read += 1
    assert read > 300


PIECES = st.sampled_from(SPLICES) | st.binary(max_size=12)


@given(st.lists(PIECES, max_size=40), st.sampled_from([IMPLICIT, EXPLICIT]))
@settings(max_examples=1500, deadline=None)
def test_any_pieces_of_a_data_set_are_read_or_refused(pieces: list[bytes], syntax: str) -> None:
    with contextlib.suppress(InvalidInstance):
        parse(meta(syntax) + IDENTITY + b"".join(pieces))


@given(st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInstance):
        parse(data)
    with pytest.raises(InvalidInstance):
        parse(bytes(128) + b"DICM" + data)


def test_any_truncation_of_a_file_is_refused_or_a_shorter_data_set() -> None:
    data = make_file(ReferencedImageSequence=[], encapsulated=True, frames=2)
    for length in range(len(data)):
        parser = Part10Parser()
        with contextlib.suppress(InvalidInstance):
            parser.feed(data[:length])
            parser.close()


# --- the server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    return start_server(workers=2)


@pytest.fixture
def archive(server: Server) -> Iterator[Partition]:
    """A partition; afterwards the server must still store and serve."""
    archive = Partition(server)
    yield archive
    file = make_file()
    (path,) = archive.keep(file)
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == file
    assert "Failure " not in server.log, "an unexpected exception"
    archive.http.close()


def post(archive: Partition, body: bytes) -> httpx.Response:
    response = archive.request("POST", "studies", body, Content_Type="application/dicom")
    assert response.status_code < 500, response.text
    return response


def test_mutated_files_are_stored_or_refused_and_what_is_stored_is_served(archive: Partition) -> None:
    chance = random.Random(7)
    statuses = set()
    for _ in range(25):
        files = [mutated(chance.choice(SEEDS), chance) for _ in range(8)]
        body, headers = multipart(files)
        response = archive.http.put(f"{archive.root}/studies", content=body, headers=headers)
        statuses.add(response.status_code)
        for item in response.json().get("00081199", {}).get("Value", []):
            url = item["00081190"]["Value"][0]
            for below in ("", "/metadata", "/frames/1", "/frames/2,1"):
                assert archive.http.get(url + below).status_code in (200, 404), url
            for accept in ("application/dicom", f"application/dicom; transfer-syntax={IMPLICIT}"):
                served = archive.http.get(url, headers={"Accept": accept})
                assert served.status_code in (200, 406), served.text
            for attribute in archive.http.get(f"{url}/metadata").json()[0].values():
                if "BulkDataURI" in attribute:
                    assert archive.http.get(attribute["BulkDataURI"]).status_code == 200
    assert statuses <= {200, 202, 409}
    assert 202 in statuses
    for level in ("studies", "series", "instances"):
        assert archive.get(f"{level}?includefield=all&limit=200").status_code == 200


def test_mutated_multipart_bodies_are_answered(archive: Partition) -> None:
    chance = random.Random(8)
    pieces = [b"\r\n", b"--b", b"--b--", b"\r\n--b\r\n", b"\n", b":", b"Content-Type: a/b\r\n", b"\0"]
    plain, _ = multipart([make_file(), make_file()])
    boundary = plain[2:34]
    for _ in range(120):
        body = bytearray(plain.replace(boundary, b"b"))
        for _ in range(chance.randint(1, 4)):
            near = chance.choice([60, len(body), len(body)])
            at = chance.randrange(near) if chance.random() < 0.7 else len(body) - chance.randrange(9)
            if chance.random() < 0.5:
                body[at:at] = chance.choice(pieces)
            else:
                del body[at : at + chance.randrange(1, 30)]
        response = archive.http.post(
            f"{archive.root}/studies",
            content=bytes(body),
            headers={"Content-Type": "multipart/related; type=application/dicom; boundary=b"},
        )
        assert response.status_code in (200, 202, 204, 400, 409, 415), response.text


def _nested(depth: int) -> bytes:
    return (element(0x00081140, "SQ", b"", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * depth


def _implicit(tag: int, value: bytes = b"") -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


IMPLICIT_IDENTITY = b"".join(
    _implicit(tag, value)
    for tag, value in (
        (0x00080016, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x00080018, b"1.2.3\0"),
        (0x00100020, b""),
        (0x0020000D, b"1.2\0"),
        (0x0020000E, b"1.2.1\0"),
    )
)


def _zeros(count: int) -> bytes:
    """A deflate stream's part that inflates to ``count`` MiB of zeros; it takes a thousandth of that."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    encoder.compress(bytes(1 << 20))
    encoder.flush(zlib.Z_FULL_FLUSH)
    return (encoder.compress(bytes(1 << 20)) + encoder.flush(zlib.Z_FULL_FLUSH)) * count


def _bomb(start: bytes, mebibytes: int) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = encoder.compress(IDENTITY + start) + encoder.flush(zlib.Z_FULL_FLUSH)
    return meta("1.2.840.10008.1.2.1.99") + head + _zeros(mebibytes) + compressed(b"")


START = meta(EXPLICIT) + IDENTITY

HOSTILE = {
    "four gigabytes declared": lambda: START + element(0x7FE00010, "OW", b"x", 0xFFFFFFFE),
    "four gigabytes of text": lambda: START + element(0x0040A160, "UT", b"x", 0xFFFFFFFE),
    "nesting of ten thousand": lambda: START + _nested(10_000),
    "millions of empty items": lambda: (
        START + element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * 2_000_000, 16_000_000)
    ),
    "millions of attributes": lambda: (
        meta(IMPLICIT)
        + IMPLICIT_IDENTITY
        + b"".join(_implicit((0x31 + n // 0xE000 * 2) << 16 | 0x1000 + n % 0xE000) for n in range(1_500_000))
    ),
    "millions of fragments": lambda: (
        meta("1.2.840.10008.1.2.4.90")
        + IDENTITY
        + element(0x7FE00010, "OB", b"\xfe\xff\x00\xe0\x04\0\0\0abcd" * 1_000_000, 0xFFFFFFFF)
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    ),
    "much text of control characters": lambda: (
        START + b"".join(element(0x31 << 16 | n, "UT", b"\1" * 250_000) for n in range(0x1000, 0x1080))
    ),
    "empty values by the hundred thousand": lambda: (
        START
        + b"".join(
            element(0x31 << 16 | n % 0x8000 + 0x1000, "OB", b"\xfe\xff\xdd\xe0\0\0\0\0", 0xFFFFFFFF)
            for n in range(500_000)
        )
    ),
    "identifiers that come late": lambda: (
        meta(EXPLICIT) + element(0x00080001, "OB", bytes(40 << 20)) + IDENTITY
    ),
    "meta information without end": lambda: meta(EXPLICIT) + element(0x00020102, "OB", bytes(60_000)) * 500,
    "exploding text": lambda: _bomb(element(0x0040A160, "UT", b"", 0xFFFFFFF0), 500),
    "garbage after a deflated data set": lambda: (
        meta("1.2.840.10008.1.2.1.99") + compressed(IDENTITY) + random.Random(1).randbytes(40 << 20)
    ),
    "zeros without end": lambda: make_file() + bytes(60 << 20),
}


@pytest.fixture(scope="module")
def memory(server: Server) -> Memory:
    """The memory of the server from before the first hostile request on."""
    Partition(server).keep(make_file())
    return Memory.of(server)


@needs_proc
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_answered_in_bounded_memory(memory: Memory, archive: Partition, name: str) -> None:
    response = post(archive, HOSTILE[name]())
    assert response.status_code in (200, 202, 409)
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"


@needs_proc
def test_a_data_set_that_inflates_beyond_the_limit_is_refused(memory: Memory, archive: Partition) -> None:
    response = post(archive, _bomb(element(0x7FE00010, "OW", b"", 0xFFFFFFF0), 2100))
    assert response.status_code == 409
    assert "The deflated data set is larger than the 2 GiB the server takes." in response.text
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"


@needs_proc
def test_a_small_file_that_inflates_to_a_large_one_is_served_in_bounded_memory(
    memory: Memory, archive: Partition
) -> None:
    pixels = 600 << 20
    image = b"".join(
        element(tag, "US", struct.pack("<H", value))
        for tag, value in ((0x00280002, 1), (0x00280010, 20_480), (0x00280011, 15_360), (0x00280100, 16))
    )
    body = _bomb(image + element(0x7FE00010, "OW", b"", pixels), 600)
    assert len(body) < 1 << 20
    assert post(archive, body).status_code == 200
    path = "studies/1.2/series/1.2.1/instances/1.2.3"
    for below, accept, least in (
        ("/frames/1", "application/octet-stream", pixels),
        ("/bulkdata/7FE00010", "*/*", pixels),
        ("", f"application/dicom; transfer-syntax={EXPLICIT}", pixels),
    ):
        size = 0
        url = f"{archive.root}/{path}{below}"
        with archive.http.stream("GET", url, headers={"Accept": accept}) as response:
            assert response.status_code == 200
            for chunk in response.iter_raw():
                size += len(chunk)
        assert size >= least
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"


@needs_proc
def test_many_tiny_parts_and_huge_headers_are_refused_in_bounded_memory(
    memory: Memory, archive: Partition
) -> None:
    kind = {"Content-Type": "multipart/related; type=application/dicom; boundary=b"}
    for body, statuses in (
        (b"--b\r\n\r\nx\r\n" * 9_999 + b"--b--", {409}),
        (b"--b\r\n\r\nx\r\n" * 200_000 + b"--b--", {413}),
        (b"--b\r\n" + b"X" * (20 << 20), {400}),
        (b"--b\r\nX: " + b"y" * (20 << 20), {400}),
        (b"--b\r\n" + b"X: y\r\n" * 1_000_000, {400}),
        (b"-" * (20 << 20), {400}),
        (b"\r\n" * (5 << 20), {204, 400}),
        (b"--b\r\n\r\n" + b"\r\n--b" * 500_000, {400}),
    ):
        response = archive.http.post(f"{archive.root}/studies", content=body, headers=kind)
        assert response.status_code in statuses, response.text
    assert memory.growth < MOST_GROWTH, f"{memory.growth >> 20} MiB"


def test_a_client_that_goes_away_in_the_middle_is_forgotten(archive: Partition) -> None:
    host, port = urlsplit(archive.root).netloc.split(":")
    for body in (b"", make_file()[:500], meta(EXPLICIT) + IDENTITY + bytes(100_000)):
        head = (
            f"POST {urlsplit(archive.root).path}/studies HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/dicom\r\nContent-Length: 100000000\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(head.encode() + body)
    assert archive.get("studies").status_code == 204


def raw(url: str, request: bytes) -> int:
    """The status of a request that no HTTP library would send; 0 where the connection was closed."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), 10) as connection:
        connection.settimeout(10)
        connection.sendall(request)
        with contextlib.suppress(OSError):
            answer = connection.recv(1 << 16)
            return int(answer.split(b" ", 2)[1]) if answer else 0
    return 0


@pytest.mark.parametrize(
    "path",
    [
        "studies/..",
        "studies/../../../etc/passwd",
        "studies/%2e%2e",
        "studies/..%2f..%2fetc%2fpasswd",
        "studies/1/series/%2e%2e%2f/instances/1",
        "studies/%00",
        "studies/1.2%00.dcm",
        "studies/1.",
        "studies/" + "1" * 65,
        "studies/" + "1" * 8000,
        "studies/%ff%fe",
        "studies/%ed%a0%80",
        "studies/1/series/2/instances/3/frames/1%00",
        "studies/1/series/2/instances/3/bulkdata/..%2f..",
        "studies/1/series/2/instances/3/bulkdata/" + "0" * 5000,
        "studies/1~/series/2",
        "studies//series",
        "studies/%",
        "studies/%zz",
        "studies?" + "x" * 60_000,
        "studies?PatientName=" + "%00" * 1000,
        "studies?PatientName=%ff%fe",
        "studies?PatientName=%ed%a0%80*",
        "studies?PatientName=" + "*" * 5000,
        "studies?PatientID=" + "?" * 5000,
        "studies?StudyInstanceUID=" + "1,2%5c" * 3000,
        "studies?StudyDate=-",
        "studies?StudyDate=99999999-00000000",
        "studies?&&&===;",
        "studies?" + "&".join(f"includefield=0010{n:04x}" for n in range(3000)),
        "studies?limit=9999999999999999999&offset=-1",
        "studies?PatientName=%27%3b%20DROP%20TABLE%20study%3b--",
        "studies?StudyTime=%E2%82%AC",
        "instances?InstanceNumber=" + "9" * 4000,
        "instances?InstanceNumber=-1e5",
    ],
)
def test_weird_urls_are_no_server_errors(archive: Partition, path: str) -> None:
    base = urlsplit(archive.root).path
    rest = "HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    for method in ("GET", "HEAD", "DELETE", "POST", "PUT", "OPTIONS"):
        request = f"{method} {base}/{path} {rest}"
        assert raw(archive.root, request.encode()) < 500, method


@pytest.mark.parametrize(
    "header",
    [
        "Accept: " + "a/b;q=0.5," * 6000,
        "Accept: " + '"' * 20_000,
        "Accept: multipart/related" + "; transfer-syntax=1.2" * 3000,
        "Accept: \xff\xfe/\x80",
        "Accept: application/dicom; transfer-syntax=" + "9" * 8000,
        "Accept-Encoding: " + "gzip;q=," * 2000,
        "If-None-Match: " + '"' * 20_000,
        "Range: bytes=9999999999999999999-",
        "Forwarded: " + "for=x;" * 3000,
        "X-Forwarded-Host: \xff",
        "X-Forwarded-Prefix: /" + "a/" * 5000,
        "Host: \xff",
        'Host: a"b\\c',
        "Content-Type: multipart/related; boundary=" + "x" * 9000,
        "Content-Type: \xff\xfe; \x80",
        "Content-Type: multipart/related; type=application/dicom; boundary=\xff",
        "Content-Length: -1",
        "Content-Length: 1e5",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "Origin: \xff",
    ],
    ids=lambda header: header[:40].encode("ascii", "replace").decode(),
)
def test_weird_headers_are_no_server_errors(archive: Partition, header: str) -> None:
    (path,) = archive.keep(make_file())
    base = urlsplit(archive.root).path
    for target in ("studies", path, f"{path}/metadata", f"{path}/frames/1", f"{path}/bulkdata/7FE00010"):
        for method in ("GET", "HEAD", "PUT"):
            lines = [f"{method} {base}/{target} HTTP/1.1", "Connection: close", header]
            if not header.startswith("Host"):
                lines.append("Host: x")
            if not header.startswith(("Content-Length", "Transfer")):
                lines.append("Content-Length: 0")
            request = "\r\n".join([*lines, "", ""]).encode("latin-1")
            if header.startswith("Transfer"):
                request += b"zz\r\nnonsense"
            assert raw(archive.root, request) < 500, (method, target)


def test_identifiers_that_look_like_paths_stay_identifiers(archive: Partition) -> None:
    """``..`` is a valid identifier here; it must not lead out of its folder in storage."""
    for uids in (("..", "..", ".."), (".", ".", "."), ("...", "1..", "-.")):
        file = make_file(*uids)
        assert archive.store(file).status_code in (200, 202)
        found = archive.get(f"instances?SOPInstanceUID={uids[2]}&StudyInstanceUID={uids[0]}").json()
        assert [item["00080018"]["Value"][0] for item in found] == [uids[2]]
        base = urlsplit(archive.root).path
        target = f"{base}/{path_of(file)}/metadata".replace("/.", "/%2E")
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert raw(archive.root, request.encode()) in (200, 404)
