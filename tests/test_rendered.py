"""Rendered images: grey values as the standard computes them, viewports, and wrong parameters."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.dicom_files import COLUMNS, ROWS, frame
from tests.test_conformance_statement import put


def pixels(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content))).astype(int)


@pytest.mark.parametrize("colour", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_maps_values_as_the_standard_says(client: httpx.Client, colour: str) -> None:
    stored = put(
        client, frames=2, PhotometricInterpretation=colour, RescaleSlope="2", RescaleIntercept="-100"
    )
    values = np.frombuffer(frame(2), "<u2").reshape(ROWS, COLUMNS) * 2.0 - 100
    expected = np.rint(np.clip((values - 949.5) / 39 + 0.5, 0, 1) * 255)
    expected = 255 - expected if colour == "MONOCHROME1" else expected
    seen = pixels(stored.get("/frames/2/rendered?window=950,40,linear", accept="image/png"))
    assert np.array_equal(seen, expected)


def test_a_viewport_scales_and_mirrors(client: httpx.Client) -> None:
    stored = put(client)
    plain = pixels(stored.get("/rendered", accept="image/png"))
    mirrored = pixels(
        stored.get(f"/rendered?viewport={COLUMNS},{ROWS},0,0,-{COLUMNS},{ROWS}", accept="image/png")
    )
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert pixels(stored.get("/rendered?viewport=60,60")).shape == (40, 60)
    assert pixels(stored.get("/thumbnail")).shape == (85, 128)


@pytest.mark.parametrize(
    "query",
    [
        "viewport=0,5",
        "viewport=5",
        "viewport=9999,1",
        "window=1,0,linear",
        "window=1,2",
        "quality=101",
        "annotation=patient",
        "iccprofile=srgb",
        "nothing=1",
        "viewport=5,5,99,99,1,1",
    ],
)
def test_a_wrong_parameter_is_400(client: httpx.Client, query: str) -> None:
    assert put(client).get(f"/rendered?{query}").status_code == 400


def test_a_corrupt_codestream_is_406(client: httpx.Client) -> None:
    assert put(client, encapsulated=True).get("/rendered").status_code == 406


PDF = b"%PDF-1.4\n" + b"x" * 50_000


@pytest.mark.parametrize(
    ("stated", "data"),
    [
        ("application/pdf", PDF),
        ("application/pdf", PDF[:101]),
        ("text/xml", b"<a/>"),
        ("model/stl", PDF[:99]),
    ],
)
def test_a_document_is_rendered_as_itself(client: httpx.Client, stated: str, data: bytes) -> None:
    stored = put(
        client,
        frames=0,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1",
        MIMETypeOfEncapsulatedDocument=stated,
        EncapsulatedDocument=data + b"\0" * (len(data) % 2),
        EncapsulatedDocumentLength=len(data),
    )
    whole = stored.get("/rendered")
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == stated
    assert ("sandbox" in whole.headers.get("content-security-policy", "")) == (stated == "text/xml")
    part = stored.get("/rendered", range="bytes=1-3")
    assert (part.status_code, part.content) == (206, data[1:4])
    assert stored.get("/rendered", accept="image/jpeg").status_code == 406
    assert stored.get("/thumbnail").status_code == 406


def test_a_page_of_html_is_not_rendered(client: httpx.Client) -> None:
    stored = put(
        client,
        frames=0,
        MIMETypeOfEncapsulatedDocument="text/html",
        EncapsulatedDocument=b"<script>1</script>",
    )
    assert stored.get("/rendered").status_code == 406
