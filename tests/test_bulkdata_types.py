"""Bulk data in its own media type: encapsulated documents and videos, on the running server."""

from __future__ import annotations

import pytest
from pydicom.encaps import encapsulate

from shared.dicom.document_types import document_media_type
from tests.conftest import Server
from tests.dicom_files import make_dataset, to_file
from tests.partition import Partition, problem

OCTETS = "application/octet-stream"
DOCUMENT = bytes(range(251)) * 4001  # of odd length


def document(archive: Partition, stated: str, length: int | None = len(DOCUMENT)) -> str:
    ds = make_dataset(frames=0, MIMETypeOfEncapsulatedDocument=stated, EncapsulatedDocumentLength=length)
    ds.add_new(0x00420011, "OB", DOCUMENT + b"\0")
    return archive.keep(to_file(ds))[0] + "/bulkdata/00420011"


@pytest.mark.parametrize("stated", ["application/pdf", "text/xml", "model/stl", "model/obj", "model/mtl"])
def test_a_document_has_its_own_media_type(server: Server, stated: str) -> None:
    archive = Partition(server)
    path = document(archive, stated)
    whole = archive.get(path)
    assert (whole.headers["Content-Type"].partition(";")[0], whole.content) == (stated, DOCUMENT)
    assert ("sandbox" in whole.headers.get("Content-Security-Policy", "")) == (stated == "text/xml")
    part = archive.get(path, Range="bytes=-2")
    assert (part.status_code, part.content) == (206, DOCUMENT[-2:])
    octets = archive.get(path, OCTETS)
    assert (octets.headers["Content-Type"], octets.content) == (OCTETS, DOCUMENT + b"\0")
    assert octets.headers["ETag"] != whole.headers["ETag"]
    ((headers, content),) = archive.parts(path, f'multipart/related; type="{stated}"')
    assert content == DOCUMENT
    assert stated in str(headers)
    problem(archive.get(path, "image/png"), 406)


@pytest.mark.parametrize("stated", ["text/html", "image/svg+xml"])
def test_a_document_of_another_type_is_octets(server: Server, stated: str) -> None:
    archive = Partition(server)
    path = document(archive, stated)
    assert archive.get(path).headers["Content-Type"] == OCTETS
    problem(archive.get(path, stated), 406)


@pytest.mark.parametrize("length", [None, 1, len(DOCUMENT) + 1, 2**32 - 1])
def test_a_length_that_fits_no_padding_cuts_nothing(server: Server, length: int | None) -> None:
    archive = Partition(server)
    assert archive.get(document(archive, "application/pdf", length)).content == DOCUMENT + b"\0"


def test_a_video_has_its_own_media_type(server: Server) -> None:
    archive = Partition(server)
    ds = make_dataset(PixelData=encapsulate([DOCUMENT + b"\0"], has_bot=False))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    path = archive.keep(to_file(ds, "1.2.840.10008.1.2.4.102"))[0] + "/bulkdata/7FE00010"
    part = archive.get(path, "video/*", Range="bytes=5-9")
    assert (part.status_code, part.headers["Content-Type"]) == (206, "video/mp4")
    assert part.content == DOCUMENT[5:10]
    assert archive.get(path, OCTETS).headers["Content-Type"] == OCTETS


def test_the_types_that_are_served_as_they_are() -> None:
    assert document_media_type("Application/PDF ; a=b") == "application/pdf"
    assert [document_media_type(x) for x in ("text/html", "", None, 3, "a/b\r\nc: d")] == [""] * 5
