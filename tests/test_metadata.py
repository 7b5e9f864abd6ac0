"""Metadata over HTTP (PS3.18 §10.4.1.1.2): three levels, what is inline, ETag, gzip, HEAD."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from shared.dicom.part10 import INLINE_BINARY
from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, to_file
from tests.partition import DICOM_JSON, Partition, path_of, problem


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


@pytest.fixture(scope="module")
def study(archive: Partition) -> list[str]:
    """The instances of a study with two series, stored in three requests."""
    uid, first, second = (str(generate_uid()) for _ in range(3))
    paths = archive.keep(make_file(uid, first), make_file(uid, second))
    paths += archive.keep(make_file(uid, first))
    return paths + archive.keep(*(make_file(uid, second) for _ in range(3)))


def instances(documents: list[dict[str, Any]]) -> set[str]:
    return {document["00080018"]["Value"][0] for document in documents}


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_level_answers_with_its_instances(archive: Partition, study: list[str], levels: int) -> None:
    path = "/".join(study[0].split("/")[: 2 * levels])
    response = archive.get(f"{path}/metadata", DICOM_JSON)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == DICOM_JSON
    expected = {p.rpartition("/")[2] for p in study if p.startswith(path)}
    assert instances(response.json()) == expected
    assert len(response.json()) == len(expected)
    for document in response.json():
        assert list(document) == sorted(document)
        assert document["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
        uri = document["7FE00010"]["BulkDataURI"]
        assert uri.startswith(f"{archive.root}/{path}/")
        assert uri.endswith(f"/instances/{document['00080018']['Value'][0]}/bulkdata/7FE00010")


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_an_etag_saves_the_second_transfer(archive: Partition, study: list[str], levels: int) -> None:
    path = "/".join(study[0].split("/")[: 2 * levels]) + "/metadata"
    first = archive.get(path)
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = archive.get(path, If_None_Match=condition)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == etag
    assert archive.get(path, If_None_Match='"other"').status_code == 200
    assert archive.request("HEAD", path, If_None_Match=etag).status_code == 304


def test_the_etag_changes_with_the_instances_and_the_urls(archive: Partition) -> None:
    study, series = str(generate_uid()), str(generate_uid())
    first = make_file(study, series)
    archive.keep(first)
    path = f"studies/{study}/metadata"
    seen = [archive.get(path).headers["ETag"]]
    seen.append(archive.get(path, Forwarded="host=pacs.example;proto=https").headers["ETag"])
    archive.keep(make_file(study, series))
    seen.append(archive.get(path).headers["ETag"])
    assert archive.store(first, method="PUT").status_code == 200
    seen.append(archive.get(path).headers["ETag"])
    assert archive.request("DELETE", path_of(first)).status_code == 204
    seen.append(archive.get(path).headers["ETag"])
    assert len(set(seen)) == 5


def test_urls_are_those_the_client_sees(archive: Partition, study: list[str]) -> None:
    response = archive.get(f"{study[0]}/metadata", Forwarded="host=pacs.example;proto=https")
    expected = f"https://pacs.example/v2/partitions/{archive.name}/{study[0]}/bulkdata/7FE00010"
    assert response.json()[0]["7FE00010"]["BulkDataURI"] == expected


def test_it_is_compressed_where_the_client_takes_gzip(archive: Partition, study: list[str]) -> None:
    url = f"{archive.root}/{'/'.join(study[0].split('/')[:2])}/metadata"
    plain = archive.http.get(url, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    for coding, compressed in (
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("br", False),
    ):
        with archive.http.stream("GET", url, headers={"Accept-Encoding": coding}) as response:
            raw = b"".join(response.iter_raw())
        assert (response.headers.get("Content-Encoding") == "gzip") is compressed
        assert (gzip.decompress(raw) if compressed else raw) == plain.content
        assert "Accept-Encoding" in response.headers["Vary"]


def test_head_has_the_headers_of_get(archive: Partition, study: list[str]) -> None:
    for levels in (2, 4, 6):
        path = "/".join(study[0].split("/")[:levels]) + "/metadata"
        get, head = archive.get(path), archive.request("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("ETag", "Content-Type", "Vary", "Cache-Control"):
            assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize("path", ["studies", "series", "instances", "instances?limit=2&includefield=all"])
def test_searches_too_have_an_etag_and_are_compressed(
    archive: Partition, study: list[str], path: str
) -> None:
    plain = archive.get(path, Accept_Encoding="identity")
    compressed = archive.get(path, Accept_Encoding="gzip")
    assert "Content-Encoding" not in plain.headers
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.json() == plain.json()
    again = archive.get(path, If_None_Match=plain.headers["ETag"], Accept_Encoding="identity")
    assert (again.status_code, again.content) == (304, b"")
    archive.keep(make_file())
    assert archive.get(path).headers["ETag"] != plain.headers["ETag"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", DICOM_JSON),
        ("*/*", DICOM_JSON),
        ("application/json", "application/json"),
        ("text/html, */*;q=0.1", DICOM_JSON),
    ],
)
def test_the_media_type_is_negotiated(
    archive: Partition, study: list[str], accept: str, media_type: str
) -> None:
    assert archive.get(f"{study[0]}/metadata", accept).headers["Content-Type"] == media_type


@pytest.mark.parametrize("accept", ["application/dicom+xml; q=0", "application/dicom", "text/html"])
def test_another_media_type_is_406(archive: Partition, study: list[str], accept: str) -> None:
    assert problem(archive.get(f"{study[0]}/metadata", accept), 406)


def test_small_binary_values_are_inline_and_large_ones_bulk_data(archive: Partition) -> None:
    """Private scalars as bulk data break SUV, overlays as bulk data delay the first image."""
    ds = make_dataset(frames=0)
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.5")
    block.add_new(0x01, "UN", b"\1\2\3\4")
    ds.add_new(0x60003000, "OW", b"\xaa" * INLINE_BINARY)
    ds.add_new(0x00281201, "OW", b"\xbb" * (INLINE_BINARY + 2))
    (path,) = archive.keep(to_file(ds))
    (document,) = archive.get(f"{path}/metadata").json()
    assert document["70531000"] == {"vr": "DS", "Value": [0.5]}
    assert document["70531001"]["InlineBinary"] == "AQIDBA=="
    assert base64.b64decode(document["60003000"]["InlineBinary"]) == b"\xaa" * INLINE_BINARY
    assert document["00281201"].keys() == {"vr", "BulkDataURI"}


def test_functional_groups_and_empty_items_survive(archive: Partition) -> None:
    group, position = Dataset(), Dataset()
    position.ImagePositionPatient = [1.5, -2, 0]
    group.PlanePositionSequence = [position]
    ds = make_dataset(
        frames=2, PerFrameFunctionalGroupsSequence=[group, Dataset()], ReferencedImageSequence=[]
    )
    (path,) = archive.keep(to_file(ds))
    (document,) = archive.get(f"{path}/metadata").json()
    assert document["52009230"]["Value"] == [
        {"00209113": {"vr": "SQ", "Value": [{"00200032": {"vr": "DS", "Value": [1.5, -2, 0]}}]}},
        {},
    ]
    assert document["00081140"] == {"vr": "SQ"}


def test_text_that_looks_like_a_reference_is_left_alone(archive: Partition) -> None:
    text = '"BulkDataURI":"/7FE00010" \\ </script>'
    (path,) = archive.keep(make_file(frames=0, ImageComments=text))
    response = archive.get(f"{path}/metadata")
    assert response.json()[0]["00204000"]["Value"] == [text]


def test_metadata_of_more_than_one_pack_block(archive: Partition) -> None:
    """Documents larger than one append to a pack have a blob of their own, and still come in one answer."""
    study, series = str(generate_uid()), str(generate_uid())
    large = Dataset()
    large.add_new(0x0040A160, "UT", "x" * 200_000)
    files = [make_file(study, series), make_file(study, series, ReferencedImageSequence=[large] * 30)]
    files += [make_file(study, series, ImageComments="c" * 9000) for _ in range(5)]
    paths = archive.keep(*files)
    response = archive.get(f"studies/{study}/series/{series}/metadata")
    assert instances(response.json()) == {path.rpartition("/")[2] for path in paths}
    assert json.loads(response.content) == response.json()
