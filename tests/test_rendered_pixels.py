"""Kinds of pixels, rendered: colour spaces, palettes, wide and floating point values, polarity."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut
from pydicom.uid import JPEGBaseline8Bit

from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, to_file
from tests.partition import Partition, problem

ROWS, COLUMNS = 8, 12


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def drawn(archive: Partition, file: bytes, query: str = "") -> np.ndarray:
    """The picture of the first frame."""
    (path,) = archive.keep(file)
    response: httpx.Response = archive.get(f"{path}/frames/1/rendered{query}", "image/png")
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content))).astype(int)


# --- colour ------------------------------------------------------------------------------------------


def colours() -> np.ndarray:
    """An RGB picture, two neighbours of which are alike, so that subsampling loses nothing."""
    half = np.random.default_rng(1).integers(0, 256, (ROWS, COLUMNS // 2, 3))
    return np.repeat(half, 2, axis=1)


def ybr(rgb: np.ndarray, partial: bool) -> np.ndarray:
    """The planes of PS3.3 §C.7.6.3.1.2."""
    if partial:
        matrix = [[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]]
    else:
        matrix = [[0.2990, 0.5870, 0.1140], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]]
    offset = [16 if partial else 0, 128, 128]
    return np.rint(np.clip(rgb @ np.array(matrix).T + offset, 0, 255)).astype(np.uint8)


def colour_file(interpretation: str, pixels: bytes, **attributes: Any) -> Dataset:
    return make_dataset(
        Rows=ROWS,
        Columns=COLUMNS,
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation=interpretation,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=pixels,
        **attributes,
    )


@pytest.mark.parametrize("interpretation", ["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_native_subsampled_colour_is_what_was_encoded(archive: Partition, interpretation: str) -> None:
    planes = ybr(colours(), partial="PARTIAL" in interpretation)
    pairs = planes.reshape(ROWS, COLUMNS // 2, 2, 3)
    packed = np.stack([pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]], axis=-1)
    seen = drawn(archive, to_file(colour_file(interpretation, packed.tobytes())))
    assert np.abs(seen - colours()).max() <= 3


@pytest.mark.parametrize("interpretation", ["YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"])
def test_colour_in_jpeg_is_what_was_encoded(archive: Partition, interpretation: str) -> None:
    smooth = np.full((ROWS, COLUMNS, 3), (200, 60, 90))
    smooth[:, COLUMNS // 2 :] = (20, 120, 250)
    planes = ybr(smooth, partial="PARTIAL" in interpretation)
    stream = imagecodecs.jpeg8_encode(
        planes, level=98, colorspace="YCBCR", outcolorspace="YCBCR", subsampling="422"
    )
    ds = colour_file(interpretation, encapsulate([bytes(stream)]))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    seen = drawn(archive, to_file(ds, JPEGBaseline8Bit))
    edge = [0, 1, 2, 3, COLUMNS - 4, COLUMNS - 3, COLUMNS - 2, COLUMNS - 1]
    assert np.abs(seen - smooth)[:, edge].max() <= 8


def test_decoded_frames_of_a_retired_colour_space_are_rgb(archive: Partition) -> None:
    planes = np.full((ROWS, COLUMNS, 3), (126, 100, 150), np.uint8)
    stream = imagecodecs.jpeg8_encode(planes, level=98, colorspace="YCBCR", outcolorspace="YCBCR")
    ds = colour_file("YBR_PARTIAL_422", encapsulate([bytes(stream)]))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    (path,) = archive.keep(to_file(ds, JPEGBaseline8Bit))
    response = archive.get(path, "application/dicom")
    decoded = dcmread(io.BytesIO(response.content))
    assert decoded.PhotometricInterpretation == "RGB"
    seen = np.array(Image.open(io.BytesIO(archive.get(f"{path}/rendered", "image/png").content)))
    assert np.array_equal(decoded.pixel_array, seen)


def test_colour_transforms_of_jpeg_2000_are_undone(archive: Partition) -> None:
    whole = drawn(archive, Path(str(get_testdata_file("US1_UNCR.dcm"))).read_bytes())
    pictures = {}
    for name in ("US1_J2KR.dcm", "US1_J2KI.dcm"):
        ds = dcmread(str(get_testdata_file(name)))
        ds.SOPInstanceUID += ".1"
        buffer = io.BytesIO()
        ds.save_as(buffer)
        pictures[name] = drawn(archive, buffer.getvalue())
    assert np.array_equal(pictures["US1_J2KR.dcm"], whole)
    assert np.abs(pictures["US1_J2KI.dcm"] - whole).mean() < 3


@pytest.mark.parametrize("interpretation", ["CMYK", "ARGB", "HSV", "XYB"])
def test_another_colour_space_is_refused_with_a_sentence(archive: Partition, interpretation: str) -> None:
    samples = 4 if interpretation in ("CMYK", "ARGB") else 3
    ds = colour_file(interpretation, bytes(ROWS * COLUMNS * samples))
    ds.SamplesPerPixel = samples
    (path,) = archive.keep(to_file(ds))
    detail = problem(archive.get(f"{path}/rendered"), 406)
    assert "SamplesPerPixel" in detail or interpretation in detail


# --- palettes ----------------------------------------------------------------------------------------


def test_segments_of_a_palette_are_expanded(archive: Partition) -> None:
    """0 discrete, 1 linear, 2 indirect (PS3.3 §C.7.9.2); here 16 values from black to white and back."""
    ds = make_dataset(PhotometricInterpretation="PALETTE COLOR", Rows=4, Columns=4)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = bytes(range(16))
    segments = np.array([0, 1, 0, 1, 7, 0xFF00, 0, 1, 0xFF00, 1, 7, 0], "<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [16, 0, 16])
        setattr(ds, f"Segmented{colour}PaletteColorLookupTableData", segments)
    seen = drawn(archive, to_file(ds))[:, :, 0].ravel()
    up = [round(255 * step / 7) for step in range(8)]
    assert np.abs(seen - np.array(up + up[::-1])).max() <= 2


@pytest.mark.parametrize("name", ["gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"])
def test_a_real_image_with_segments_is_what_pydicom_draws(archive: Partition, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    ds = dcmread(path)
    expected = apply_color_lut(ds.pixel_array, ds) >> 8
    ds.SOPInstanceUID += f".{len(name)}"  # both have the same
    buffer = io.BytesIO()
    ds.save_as(buffer)
    assert np.array_equal(drawn(archive, buffer.getvalue()), expected)


def test_a_supplemental_palette_colours_the_values_it_maps(archive: Partition) -> None:
    ds = make_dataset(Rows=2, Columns=3, PixelPresentation="MIXED", PixelRepresentation=1)
    ds.WindowCenter, ds.WindowWidth = "50", "100"
    ds.PixelData = np.array([0, 50, 99, 100, 101, 5000], "<i2").tobytes()
    tables = {"Red": [255, 0], "Green": [0, 255], "Blue": [0, 0]}
    for colour, table in tables.items():
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [2, 100, 16])
        data = np.array(table, "<u2") * 257
        setattr(ds, f"{colour}PaletteColorLookupTableData", data.astype("<u2").tobytes())
    seen = drawn(archive, to_file(ds)).reshape(6, 3).tolist()
    assert [len(set(pixel)) for pixel in seen[:3]] == [1, 1, 1]
    assert seen[3:] == [[255, 0, 0], [0, 255, 0], [0, 255, 0]]


def test_a_real_image_with_a_supplemental_palette_is_coloured(archive: Partition) -> None:
    path = Path(str(get_testdata_file("eCT_Supplemental.dcm")))
    seen = drawn(archive, path.read_bytes())
    values = dcmread(path).pixel_array[0]
    coloured = (seen.max(axis=2) - seen.min(axis=2)) > 0
    assert coloured.any()
    assert not coloured[values < 1024].any()


# --- grey --------------------------------------------------------------------------------------------

VALUES = [0.0, 250.0, 500.0, 750.0, 1000.0, 2000.0]


@pytest.mark.parametrize(
    ("keyword", "dtype", "bits"),
    [
        ("PixelData", "<u4", 32),
        ("PixelData", "<i4", 32),
        ("FloatPixelData", "<f4", 32),
        ("DoubleFloatPixelData", "<f8", 64),
    ],
)
@pytest.mark.parametrize("window", ["?window=500,1000,linear-exact", ""])
def test_wide_and_floating_point_values_are_windowed(
    archive: Partition, keyword: str, dtype: str, bits: int, window: str
) -> None:
    ds = make_dataset(Rows=2, Columns=3, BitsAllocated=bits, PixelData=None)
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(dtype[1] == "i")
    setattr(ds, keyword, np.array(VALUES, dtype).tobytes())
    if keyword == "PixelData":
        ds["PixelData"].VR = "OW"
    else:
        del ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    seen = drawn(archive, to_file(ds), window).ravel()
    top = 1000 if window else 2000
    assert np.abs(seen - np.clip(np.array(VALUES) / top * 255, 0, 255)).max() <= 1


@pytest.mark.parametrize(
    ("interpretation", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", None, False),
    ],
)
def test_polarity_is_applied_once_after_the_voi_lut(
    archive: Partition, interpretation: str, shape: str | None, inverted: bool
) -> None:
    lut = Dataset()
    lut.LUTDescriptor = [4, 10, 8]
    lut.add_new(0x00283006, "OW", bytes([0, 200, 100, 255]))
    file = make_file(
        Rows=1,
        Columns=6,
        PhotometricInterpretation=interpretation,
        PresentationLUTShape=shape,
        VOILUTSequence=[lut],
        PixelData=np.array([9, 10, 11, 12, 13, 14], "<u2").tobytes(),
    )
    expected = np.array([0, 0, 200, 100, 255, 255])
    assert drawn(archive, file).ravel().tolist() == (255 - expected if inverted else expected).tolist()
