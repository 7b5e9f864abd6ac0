"""Real files rendered by the running server: none fails, and dcmtk draws the same."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.conftest import Server
from tests.dicom_files import make_file, read_multipart, real_files
from tests.partition import Partition
from tests.tools import tool

DICOM = {"Content-Type": "application/dicom"}
PNG = {"Accept": "image/png"}
KNOWN = {200, 404, 406}
"""An image; no frames in it, or none that can be told apart; pixels this server does not render."""

DRAWN = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "JPEG-LL.dcm",
    "emri_small.dcm",
)
COLOURS = (
    "examples_palette.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_ybr_full_uncompressed.dcm",
    "US1_UNCR.dcm",
)
"""Syntaxes that dcmtk decodes: JPEG 2000 is none of them."""


def instance_url(response: httpx.Response) -> str:
    return response.json()["00081199"]["Value"][0]["00081190"]["Value"][0]


def test_every_real_file_is_rendered_or_refused_with_a_reason(server: Server) -> None:
    drawn = 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path in real_files():
            stored = client.put("/v2/partitions/rendered/studies", content=path.read_bytes(), headers=DICOM)
            if stored.status_code not in (200, 202):
                continue
            url = instance_url(stored)
            response = client.get(f"{url}/frames/1/rendered", headers=PNG)
            assert response.status_code in KNOWN, (path.name, response.text)
            small = client.get(f"{url}/thumbnail")
            assert small.status_code in KNOWN, (path.name, small.text)
            if response.status_code == 200:
                picture = np.array(Image.open(io.BytesIO(response.content)))
                (document,) = client.get(f"{url}/metadata").json()
                size = document["00280010"]["Value"][0], document["00280011"]["Value"][0]
                assert picture.shape[:2] == size, path.name
                drawn += 1
            else:
                assert response.json()["detail"].endswith("."), (path.name, response.text)
    assert drawn > 60


def drawn_by_dcmtk(path: str, out: Path, *options: str) -> np.ndarray:
    subprocess.run([tool("dcmj2pnm"), *options, "+F", "1", path, out], check=True, capture_output=True)
    return np.array(Image.open(out)).astype(int)


def drawn_by_us(client: httpx.Client, path: str, query: str) -> np.ndarray:
    stored = client.put("/v2/partitions/drawn/studies", content=Path(path).read_bytes(), headers=DICOM)
    answer = client.get(f"{instance_url(stored)}/frames/1/rendered{query}", headers=PNG)
    assert answer.status_code == 200, answer.text
    return np.array(Image.open(io.BytesIO(answer.content))).astype(int)


@pytest.mark.parametrize("name", DRAWN)
def test_dcmtk_draws_the_same_window(client: httpx.Client, tmp_path: Path, name: str) -> None:
    path = str(get_testdata_file(name))
    centre, width = ("200", "900") if "CT" in name else ("600", "1100")
    theirs = drawn_by_dcmtk(path, tmp_path / "out.pgm", "+Ww", centre, width)
    ours = drawn_by_us(client, path, f"?window={centre},{width},linear")
    assert ours.min() < ours.max()
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("name", COLOURS)
def test_dcmtk_draws_the_same_colours(client: httpx.Client, tmp_path: Path, name: str) -> None:
    path = str(get_testdata_file(name))
    theirs = drawn_by_dcmtk(path, tmp_path / "out.ppm")
    ours = drawn_by_us(client, path, "")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2


def test_a_frame_that_cannot_be_rendered_is_a_problem_among_others(server: Server) -> None:
    archive = Partition(server)
    study = "1.2.3.4.5"
    archive.keep(make_file(study), make_file(study, encapsulated=True), make_file(study))
    answer = archive.get(f"studies/{study}/rendered")
    assert answer.status_code == 200
    parts = read_multipart(answer.headers["content-type"], answer.content)
    assert sorted(headers["content-type"] for headers, _ in parts) == [
        "application/problem+json",
        "image/jpeg",
        "image/jpeg",
    ]
    assert archive.get(f"studies/{study}/thumbnail").status_code in (200, 406)
