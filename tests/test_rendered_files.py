"""Real files rendered by the running server: none fails, and dcmtk draws the same."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale

from shared.dicom.pixel_data import decode
from tests.conftest import Server
from tests.dicom_files import make_file, read_multipart, real_files
from tests.partition import Partition
from tests.tools import tool
from tests.transcoding import Source

DICOM = {"Content-Type": "application/dicom"}
PNG = {"Accept": "image/png"}
KNOWN = {200, 404, 406}
"""An image; no frames in it, or none that can be told apart; pixels this server does not render."""

GREY_TOLERANCE, COLOUR_TOLERANCE = 1, 2
"""By how much of 255 a sample may differ from dcmtk's."""

EXCEPTIONS = {
    "eCT_Supplemental.dcm": "dcmtk leaves out the supplemental palette, which colours some values",
    "rtdose_expb.dcm": "dcmtk exchanges the halves of 32-bit words that are big endian",
    "rtdose_expb_1frame.dcm": "the same; rtdose.dcm holds the same values, which it draws as the server does",
}
"""Files that dcmtk draws differently, and why."""


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


def drawn_by_dcmtk(path: Path, out: Path, *options: str) -> np.ndarray | None:
    """The first frame; None where dcmtk cannot draw it."""
    command = [tool("dcmj2pnm"), *options, "+F", "1", str(path), str(out)]
    if subprocess.run(command, capture_output=True, timeout=60).returncode:
        return None
    return np.array(Image.open(out)).astype(int)


def window_of(file: bytes) -> tuple[str, str]:
    """A window over the values of the first frame."""
    source = Source.of(file)
    pixels = decode(source.frames[0], source.image, source.syntax).pixels
    values = apply_rescale(pixels, dcmread(io.BytesIO(file), stop_before_pixels=True))
    return f"{(values.min() + values.max()) / 2:.1f}", f"{max(values.max() - values.min(), 2):.0f}"


def difference_from_dcmtk(client: httpx.Client, path: Path, folder: Path) -> int | None:
    """The most by which a sample differs from dcmtk's; None where one of us does not draw the file."""
    if drawn_by_dcmtk(path, folder / "out.pnm") is None:
        return None
    stored = client.put("/v2/partitions/drawn/studies", content=path.read_bytes(), headers=DICOM)
    if stored.status_code not in (200, 202):
        return None
    ds = dcmread(path, force=True)
    options, query = [], ""
    if ds.SamplesPerPixel == 1 and ds.PhotometricInterpretation.startswith("MONOCHROME"):
        centre, width = window_of(path.read_bytes())
        options, query = ["+Ww", centre, width], f"?window={centre},{width},linear"
    answer = client.get(f"{instance_url(stored)}/frames/1/rendered{query}", headers=PNG)
    if answer.status_code != 200:
        return None
    ours = np.array(Image.open(io.BytesIO(answer.content))).astype(int)
    theirs = drawn_by_dcmtk(path, folder / "out.pnm", *options)
    if theirs is None:
        return None
    return int(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else 255


def test_dcmtk_draws_the_same_from_every_real_file(client: httpx.Client, tmp_path: Path) -> None:
    compared, differing = 0, {}
    for path in real_files():
        found = difference_from_dcmtk(client, path, tmp_path)
        if found is None:
            continue
        compared += 1
        colour = dcmread(path, force=True, stop_before_pixels=True).SamplesPerPixel > 1
        if found > (COLOUR_TOLERANCE if colour else GREY_TOLERANCE):
            differing[path.name] = found
    assert differing.keys() == EXCEPTIONS.keys(), differing
    assert compared >= 85


def test_big_endian_words_of_32_bits_are_drawn_as_little_endian_ones(client: httpx.Client) -> None:
    pictures = []
    for name in ("rtdose.dcm", "rtdose_expb.dcm"):
        file = Path(str(get_testdata_file(name))).read_bytes()
        partition = f"/v2/partitions/drawn-{name.removesuffix('.dcm')}/studies"
        url = instance_url(client.put(partition, content=file, headers=DICOM))
        pictures.append(client.get(f"{url}/frames/1/rendered", headers=PNG).content)
    assert pictures[0] == pictures[1]
    assert np.array(Image.open(io.BytesIO(pictures[0]))).std() > 10


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
