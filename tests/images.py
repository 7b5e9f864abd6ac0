"""Images for tests of pixels: made ones of every kind, and real ones of pydicom-data."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from shared.dicom import transcode
from shared.dicom.pixel_data import DecodedFrame, ImagePixel
from tests.dicom_files import make_dataset, to_file

Pixels = np.ndarray[Any, Any]

GREY_8 = ImagePixel(24, 37, 1, "MONOCHROME2", 0, 8, 8, 7, 0)
GREY_12 = ImagePixel(24, 37, 1, "MONOCHROME2", 0, 16, 12, 11, 0)
GREY_16_SIGNED = ImagePixel(24, 37, 1, "MONOCHROME1", 0, 16, 16, 15, 1)
GREY_12_SIGNED = ImagePixel(24, 37, 1, "MONOCHROME2", 0, 16, 12, 11, 1)
GREY_32 = ImagePixel(24, 37, 1, "MONOCHROME2", 0, 32, 32, 31, 0)
COLOUR_8 = ImagePixel(24, 37, 3, "RGB", 0, 8, 8, 7, 0)
COLOUR_16 = ImagePixel(24, 37, 3, "RGB", 0, 16, 16, 15, 0)
YBR_8 = ImagePixel(24, 37, 3, "YBR_FULL", 0, 8, 8, 7, 0)
PALETTE_8 = ImagePixel(24, 37, 1, "PALETTE COLOR", 0, 8, 8, 7, 0)

KINDS = {
    "grey 8": GREY_8,
    "grey 12 of 16": GREY_12,
    "grey 12 of 16, signed": GREY_12_SIGNED,
    "grey 16, signed": GREY_16_SIGNED,
    "grey 32": GREY_32,
    "palette 8": PALETTE_8,
    "RGB 8": COLOUR_8,
    "RGB 16": COLOUR_16,
    "YBR_FULL 8": YBR_8,
}


def made(image: ImagePixel, number: int = 1) -> DecodedFrame:
    """Frame ``number`` of an image: a slope with a little noise over the whole range of values."""
    low = -(1 << image.bits_stored - 1) if image.pixel_representation else 0
    rng = np.random.default_rng(number)
    shape = (image.rows, image.columns) + ((3,) if image.samples_per_pixel == 3 else ())
    slope = np.linspace(0, 0.98, image.rows * image.columns).reshape(image.rows, image.columns)
    values = (slope if image.samples_per_pixel == 1 else slope[:, :, None]) + rng.uniform(0, 0.02, shape)
    sign = "i" if image.pixel_representation else "u"
    pixels = (low + values * ((1 << image.bits_stored) - 1)).astype(f"{sign}{image.bits_allocated // 8}")
    return DecodedFrame(pixels, image)


def compressed(
    frames: int = 2, syntax: str = JPEG2000Lossless, **attributes: Any
) -> tuple[bytes, list[Pixels]]:
    """A file of grey frames in ``syntax``, and its pixels."""
    decoded = [made(GREY_12, number) for number in range(1, frames + 1)]
    ds = make_dataset(
        frames=0,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=frames,
        Rows=GREY_12.rows,
        Columns=GREY_12.columns,
        BitsAllocated=16,
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=0,
        **attributes,
    )
    ds.PixelData = encapsulate([transcode.encode(frame, syntax).data for frame in decoded])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return to_file(ds, syntax), [frame.pixels for frame in decoded]
