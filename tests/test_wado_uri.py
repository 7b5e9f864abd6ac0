"""WADO-URI on the running server (PS3.18 §9)."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.conftest import Server
from tests.dicom_files import COLUMNS, ROWS, make_file
from tests.partition import Partition, problem

PDF = b"%PDF-1.4 " + b"x" * 100


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def query(path: str, **parameters: str) -> str:
    _, study, _, series, _, instance = path.split("/")
    uids = {"studyUID": study, "seriesUID": series, "objectUID": instance}
    return "wado?" + str(httpx.QueryParams({"requestType": "WADO"} | uids | parameters))


@pytest.fixture(scope="module")
def image(archive: Partition) -> str:
    (path,) = archive.keep(make_file(frames=2, transfer_syntax=ImplicitVRLittleEndian))
    return path


def pixels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content)))


def test_an_image_is_jpeg_by_default(archive: Partition, image: str) -> None:
    response = archive.get(query(image))
    assert response.headers["content-type"] == "image/jpeg"
    assert pixels(response).shape == (ROWS, COLUMNS)
    held = archive.get(query(image), If_None_Match=response.headers["etag"])
    assert held.status_code == 304


def test_an_image_is_what_rendered_gives(archive: Partition, image: str) -> None:
    window = {"windowCenter": "530", "windowWidth": "30"}
    ours = archive.get(query(image, contentType="image/png", frameNumber="2", **window))
    rendered = archive.get(f"{image}/frames/2/rendered?window=530,30,linear", accept="image/png")
    assert ours.content == rendered.content
    half = pixels(archive.get(query(image, contentType="image/png", region="0,0,0.5,1")))
    assert np.array_equal(half, pixels(archive.get(query(image, contentType="image/png")))[:, : COLUMNS // 2])
    assert pixels(archive.get(query(image, columns="60"))).shape == (40, 60)


def test_an_instance_is_explicit_little_endian_or_what_is_asked_for(archive: Partition, image: str) -> None:
    for asked, expected in (("", ExplicitVRLittleEndian), (ImplicitVRLittleEndian, ImplicitVRLittleEndian)):
        more = {"transferSyntax": asked} if asked else {}
        response = archive.get(query(image, contentType="application/dicom", **more))
        assert response.headers["content-type"] == f"application/dicom; transfer-syntax={expected}"
        assert pydicom.dcmread(io.BytesIO(response.content)).file_meta.TransferSyntaxUID == expected
    part = archive.get(query(image, contentType="application/dicom", transferSyntax="1.2.840.10008.1.2"))
    assert part.headers["accept-ranges"] == "bytes"


def test_a_document_comes_as_itself(archive: Partition) -> None:
    (path,) = archive.keep(
        make_file(
            frames=0,
            MIMETypeOfEncapsulatedDocument="application/pdf",
            EncapsulatedDocument=PDF + b"\0",
            EncapsulatedDocumentLength=len(PDF),
        )
    )
    for parameters in ({}, {"contentType": "application/pdf"}, {"contentType": "text/html, */*"}):
        response = archive.get(query(path, **parameters))
        assert (response.headers["content-type"], response.content) == ("application/pdf", PDF)
    assert "application/pdf" in problem(archive.get(query(path, contentType="image/jpeg")), 406)


@pytest.mark.parametrize(
    "wrong",
    [
        {"requestType": "WADOO"},
        {"studyUID": "a_b"},
        {"annotation": "patient"},
        {"anonymize": "yes"},
        {"nothing": "1"},
        {"frameNumber": "0"},
        {"rows": "x"},
        {"columns": "9999"},
        {"region": "0,0,1"},
        {"region": "0.5,0,0.5,1"},
        {"windowCenter": "1"},
        {"windowCenter": "1", "windowWidth": "nan"},
        {"imageQuality": "101"},
    ],
)
def test_a_wrong_parameter_is_400(archive: Partition, image: str, wrong: dict[str, str]) -> None:
    assert problem(archive.get(query(image, **wrong)), 400).endswith(".")


def test_what_is_missing_is_named_and_what_is_not_there_is_404(archive: Partition, image: str) -> None:
    assert "objectUID" in problem(archive.get("wado?requestType=WADO&studyUID=1.2&seriesUID=1.3"), 400)
    problem(archive.get(query("studies/1.2/series/1.3/instances/1.4")), 404)
    problem(archive.get(query(image, frameNumber="3")), 404)
    problem(archive.get(query(image, contentType="video/mp4")), 406)
    syntax = "1.2.840.10008.1.2.4.102"
    problem(archive.get(query(image, contentType="application/dicom", transferSyntax=syntax)), 406)
