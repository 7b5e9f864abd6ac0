"""wsidicom, a client for whole-slide images, opens pyramids over the wire and reads what was stored."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid
from wsidicom import WsiDicom, WsiDicomWebClient

from shared.dicom import transcode
from shared.dicom.pixel_data import DecodedFrame, ImagePixel
from tests.conftest import Server
from tests.dicom_files import make_dataset, to_file
from tests.partition import Partition

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Pixels = np.ndarray[Any, Any]

TILE = 32
EDGES = (128, 64, 32)  # pixels of the levels: 16, 4 tiles and 1
WIDTH = 1.28  # mm
TILE_IMAGE = ImagePixel(TILE, TILE, 3, "RGB", 0, 8, 8, 7, 0)
ERRORS = {JPEG2000Lossless: 0, JPEGBaseline8Bit: 12}
"""The most a sample may differ, by transfer syntax."""


def level(edge: int) -> Pixels:
    """A square of colours that change slowly: every tile of it is another."""
    across, down = np.meshgrid(np.linspace(0, 255, edge), np.linspace(0, 255, edge))
    return np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8)


def instance(
    study: str, series: str, shared: dict[str, str], edge: int, syntax: str, sparse: bool
) -> Dataset:
    """One level of a pyramid."""
    corners = [(row, column) for row in range(0, edge, TILE) for column in range(0, edge, TILE)]
    pixels = level(edge)
    tiles = [
        transcode.encode(
            DecodedFrame(np.ascontiguousarray(pixels[row : row + TILE, column : column + TILE]), TILE_IMAGE),
            syntax,
        )
        for row, column in corners
    ]
    ds = make_dataset(
        study,
        series,
        frames=0,
        SOPClassUID=VLWholeSlideMicroscopyImageStorage,
        Modality="SM",
        ImageType=["ORIGINAL" if edge == EDGES[0] else "DERIVED", "PRIMARY", "VOLUME", "NONE"],
        SamplesPerPixel=3,
        PhotometricInterpretation=tiles[0].image.photometric_interpretation,
        PlanarConfiguration=0,
        NumberOfFrames=len(tiles),
        Rows=TILE,
        Columns=TILE,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        TotalPixelMatrixColumns=edge,
        TotalPixelMatrixRows=edge,
        TotalPixelMatrixFocalPlanes=1,
        NumberOfOpticalPaths=1,
        ImagedVolumeWidth=WIDTH,
        ImagedVolumeHeight=WIDTH,
        ImagedVolumeDepth=1.0,
        ImageOrientationSlide=[0, 1, 0, 1, 0, 0],
        SpecimenLabelInImage="NO",
        BurnedInAnnotation="NO",
        FocusMethod="AUTO",
        ExtendedDepthOfField="NO",
        VolumetricProperties="VOLUME",
        LossyImageCompression="00" if syntax == JPEG2000Lossless else "01",
        ContainerIdentifier="slide",
        DimensionOrganizationType="TILED_SPARSE" if sparse else "TILED_FULL",
        **shared,
    )
    ds.TotalPixelMatrixOriginSequence = [
        _item(XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0)
    ]
    ds.OpticalPathSequence = [_item(OpticalPathIdentifier="0")]
    spacing = WIDTH / edge
    measures = _item(PixelSpacing=[spacing, spacing], SliceThickness=1.0)
    ds.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=[measures])]
    if sparse:
        ds.PerFrameFunctionalGroupsSequence = [_position(*corner) for corner in corners]
    ds.PixelData = encapsulate([tile.data for tile in tiles])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return dcmread(io.BytesIO(to_file(ds, syntax)))


def _item(**attributes: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def _position(row: int, column: int) -> Dataset:
    position = _item(
        RowPositionInTotalImagePixelMatrix=row + 1,
        ColumnPositionInTotalImagePixelMatrix=column + 1,
        XOffsetInSlideCoordinateSystem=0,
        YOffsetInSlideCoordinateSystem=0,
        ZOffsetInSlideCoordinateSystem=0,
    )
    return _item(PlanePositionSlideSequence=[position])


@contextmanager
def opened(server: Server, syntax: str, sparse: bool) -> Iterator[WsiDicom]:
    """A stored pyramid, opened over the wire."""
    client = DICOMwebClient(url=Partition(server).root)
    study, series = generate_uid(), generate_uid()
    shared = {
        "FrameOfReferenceUID": generate_uid(),
        "DimensionOrganizationUID": generate_uid(),
        "PyramidUID": generate_uid(),
    }
    answer = client.store_instances(
        datasets=[instance(study, series, shared, edge, syntax, sparse) for edge in EDGES]
    )
    assert "FailedSOPSequence" not in answer
    with WsiDicom.open_web(WsiDicomWebClient(client), study, series) as slide:
        yield slide


@pytest.mark.parametrize("sparse", [False, True], ids=["TILED_FULL", "TILED_SPARSE"])
@pytest.mark.parametrize("syntax", ERRORS, ids=["JPEG 2000", "JPEG Baseline"])
def test_regions_of_every_level_are_those_stored(server: Server, syntax: str, sparse: bool) -> None:
    with opened(server, syntax, sparse) as slide:
        assert [found.size.width for found in slide.pyramids[0]] == list(EDGES)
        for number, edge in enumerate(EDGES):
            start, size = edge // 4, edge // 2  # across tiles, but for the level of one
            region = np.asarray(slide.read_region((start, start), number, (size, size)).convert("RGB"))
            source = level(edge)[start : start + size, start : start + size]
            assert region.shape == source.shape
            assert np.abs(region.astype(int) - source.astype(int)).max() <= ERRORS[syntax]
