"""Pixels of one frame: what describes them, and how they are decoded (PS3.3 §C.7.6.3, PS3.5 §8).

The codecs are those of ``imagecodecs``, which work without Python's global lock; pydicom unpacks, signs
and checks what they make.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from shared.dicom.document import value_of
from shared.dicom.transfer_syntaxes import (
    EXPLICIT_LE,
    HTJ2K_SYNTAXES,
    JPEG_2000_SYNTAXES,
    JPEG_LOSSY_SYNTAXES,
    JPEG_LS_SYNTAXES,
    JPEG_SYNTAXES,
    LOSSY_SYNTAXES,
    NATIVE,
    RLE,
)

if TYPE_CHECKING:
    import numpy as np

DECODABLE = NATIVE | JPEG_SYNTAXES | JPEG_LS_SYNTAXES | JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES | {RLE}
"""Transfer syntaxes whose frames :func:`decode` takes."""

LARGEST_FRAME = 256 * 1024 * 1024
"""Bytes of a decoded frame beyond which none is decoded."""

_FLOAT_PIXELS = ("7FE00008", "7FE00009")
_BITS_ALLOCATED = (1, 8, 16, 32, 64)
_SUBSAMPLED = "YBR_FULL_422"
_INTERPRETATIONS = frozenset(
    {
        *(
            "MONOCHROME1",
            "MONOCHROME2",
            "PALETTE COLOR",
            "RGB",
            "YBR_FULL",
            "YBR_FULL_422",
            "YBR_ICT",
            "YBR_RCT",
        ),
        *("YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV"),
    }
)
PARTIAL = ("YBR_PARTIAL_422", "YBR_PARTIAL_420")
"""Retired colour spaces whose values keep a distance from black and white, as those of video do."""

_PLUGIN = "imagecodecs"
_END_OF_IMAGE = b"\xff\xd9"


class CorruptFrame(ValueError):
    """The frame cannot be decoded; the message is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class ImagePixel:
    """The attributes of the Image Pixel module that describe one frame (PS3.3 Table C.7-11c)."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    planar_configuration: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ImagePixel:
        """Out of a DICOM JSON object. Raises ValueError, with a sentence, where that describes no image."""
        if any(tag in document for tag in _FLOAT_PIXELS):
            raise ValueError("The pixels are floating point numbers.")
        bits_stored = _integer(document, "00280101", "BitsStored", 1, 64)
        image = cls(
            rows=_integer(document, "00280010", "Rows", 1, 65535),
            columns=_integer(document, "00280011", "Columns", 1, 65535),
            samples_per_pixel=_integer(document, "00280002", "SamplesPerPixel", 1, 4),
            photometric_interpretation=str(value_of(document, "00280004", "MONOCHROME2")).strip(),
            planar_configuration=_integer(document, "00280006", "PlanarConfiguration", 0, 1, 0),
            bits_allocated=_integer(document, "00280100", "BitsAllocated", 1, 64),
            bits_stored=bits_stored,
            high_bit=_integer(document, "00280102", "HighBit", 0, 63, bits_stored - 1),
            pixel_representation=_integer(document, "00280103", "PixelRepresentation", 0, 1, 0),
        )
        image._check()
        return image

    def _check(self) -> None:
        if self.samples_per_pixel not in (1, 3):
            raise ValueError("SamplesPerPixel is neither 1 nor 3.")
        if self.bits_allocated not in _BITS_ALLOCATED:
            raise ValueError("BitsAllocated is none of 1, 8, 16, 32 and 64.")
        if self.bits_stored > self.bits_allocated:
            raise ValueError("BitsStored is larger than BitsAllocated.")
        if self.frame_length > LARGEST_FRAME:
            raise ValueError(
                f"A frame has {self.frame_length} bytes; the most that is decoded is {LARGEST_FRAME}."
            )

    @property
    def frame_length(self) -> int:
        """Bytes of one decoded frame, its last byte filled up; pixels of one bit are packed."""
        bits = self.rows * self.columns * self.samples_per_pixel * self.bits_allocated
        return (bits + 7) // 8


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """``pixels`` has the shape (rows, columns) or (rows, columns, samples); ``image`` describes it."""

    pixels: np.ndarray[Any, Any]
    image: ImagePixel


def _integer(
    document: Mapping[str, Any], tag: str, keyword: str, low: int, high: int, default: int | None = None
) -> int:
    value = value_of(document, tag, default)
    if value is None:
        raise ValueError(f"{keyword} is missing.")
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{keyword} is not an integer from {low} to {high}.")
    return value


def decode(frame: bytes, image: ImagePixel, transfer_syntax: str) -> DecodedFrame:
    """The pixels of ``frame``: its codestream; or, in any native syntax, its little-endian bytes (pixels of
    one bit packed, beginning at a byte boundary).

    The dtype is as wide as BitsAllocated and signed as PixelRepresentation says; pixels of one bit become
    bytes. Colour is interleaved afterwards. Its space stays as it is, PALETTE COLOR included, except:
    the colour transforms of JPEG 2000 are undone (YBR_RCT, YBR_ICT become RGB), YBR of lossy JPEG
    (YBR_FULL and YBR_FULL_422, and the retired YBR_PARTIAL ones) becomes RGB, and subsampling of native data
    is undone (YBR_FULL_422 becomes YBR_FULL). Bits beyond BitsStored are cleared, or follow the sign, where
    HighBit is BitsStored - 1; where it is not (retired), words stay as they are. What lossy compression has
    carried beyond BitsStored becomes the greatest value, or the least.

    Holds no global lock while a codec works. Raises CorruptFrame.
    """
    if transfer_syntax not in DECODABLE:
        raise CorruptFrame(f"Frames in transfer syntax {transfer_syntax} cannot be decoded.")
    if image.photometric_interpretation not in _INTERPRETATIONS:
        known = image.photometric_interpretation[:16]
        raise CorruptFrame(f"Frames of PhotometricInterpretation {known} cannot be decoded.")
    native = transfer_syntax in NATIVE
    if image.photometric_interpretation in PARTIAL and not (native or transfer_syntax in JPEG_LOSSY_SYNTAXES):
        raise CorruptFrame(f"Frames of {image.photometric_interpretation} in this syntax cannot be decoded.")
    if native and image.photometric_interpretation in PARTIAL:
        raise CorruptFrame("Native frames of a retired YBR_PARTIAL colour space are rendered, not converted.")
    if not native:
        _check_codestream(frame, image, transfer_syntax)
    try:
        pixels, found = _decode(frame, image, transfer_syntax, native)
    except CorruptFrame:
        raise
    except Exception as error:
        raise CorruptFrame(f"A frame cannot be decoded from transfer syntax {transfer_syntax}.") from error
    if transfer_syntax in LOSSY_SYNTAXES:
        pixels = _within_range(pixels, image)
    colour = str(found.get("photometric_interpretation", image.photometric_interpretation))
    if native and colour == _SUBSAMPLED:
        colour = "YBR_FULL"
    if colour in PARTIAL:
        pixels, colour = rgb_of_partial(pixels), "RGB"
    described = replace(image, photometric_interpretation=colour, planar_configuration=0)
    if image.bits_allocated == 1:
        described = replace(described, bits_allocated=8)
    return DecodedFrame(pixels, described)


def rgb_of_partial(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """RGB of pixels of 8 bits in YBR_PARTIAL, no longer subsampled (PS3.3 §C.7.6.3.1.2 of 2016)."""
    import numpy as np

    luma, blue, red = (pixels[:, :, plane].astype(np.float64) for plane in range(3))
    luma, blue, red = 1.1644 * (luma - 16), blue - 128, red - 128
    mixed = (luma + 1.5960 * red, luma - 0.3917 * blue - 0.8129 * red, luma + 2.0173 * blue)
    return np.rint(np.clip(np.stack(mixed, axis=-1), 0, 255)).astype(np.uint8)


def _within_range(pixels: np.ndarray[Any, Any], image: ImagePixel) -> np.ndarray[Any, Any]:
    """``pixels`` between the least and the greatest value of BitsStored bits."""
    if image.bits_stored == 8 * pixels.dtype.itemsize or image.high_bit != image.bits_stored - 1:
        return pixels
    least = -(1 << image.bits_stored - 1) if image.pixel_representation else 0
    return pixels.clip(least, least + (1 << image.bits_stored) - 1)


def _decode(
    frame: bytes, image: ImagePixel, transfer_syntax: str, native: bool
) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    from pydicom.encaps import encapsulate

    source = frame if native else encapsulate([frame], has_bot=False)
    pixels, found = _decoder(EXPLICIT_LE if native else transfer_syntax).as_array(
        source,
        index=0,
        raw=True,
        decoding_plugin="" if native else _PLUGIN,
        rows=image.rows,
        columns=image.columns,
        samples_per_pixel=image.samples_per_pixel,
        photometric_interpretation=image.photometric_interpretation,
        planar_configuration=image.planar_configuration,
        bits_allocated=image.bits_allocated,
        bits_stored=image.bits_stored,
        pixel_representation=image.pixel_representation,
        number_of_frames=1,
        pixel_keyword="PixelData",
        correct_unused_bits=image.high_bit == image.bits_stored - 1,
        pixel_vr="OW" if image.bits_allocated > 8 else "OB",
    )
    return pixels, found


@cache
def _decoder(transfer_syntax: str) -> Any:
    """pydicom's decoder, with the codecs of this module."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it prints a traceback for each bad frame
    decoder = get_decoder(UID(transfer_syntax))
    if transfer_syntax not in NATIVE and _PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(_PLUGIN, (__name__, "run_codec"))
    return decoder


def is_available(uid: str) -> bool:
    """Whether the codecs are installed, which they always are; pydicom asks."""
    return True


def run_codec(frame: bytes, runner: Any) -> bytes | bytearray:
    """The decoded bytes of ``frame``; a decoding function of pydicom (``pydicom.pixels.decoders``)."""
    syntax = str(runner.transfer_syntax)
    if syntax == RLE:
        return _decode_rle(frame, runner)
    pixels = _CODECS[syntax](frame, runner)
    expected = (runner.rows, runner.columns) + ((runner.samples_per_pixel,) * (runner.samples_per_pixel > 1))
    if pixels.shape != expected:
        raise CorruptFrame("The size or the number of samples in a frame's codestream is not the image's.")
    bits = 8 * pixels.dtype.itemsize
    if bits > runner.bits_allocated:
        raise CorruptFrame("The pixels in a frame's codestream have more bits than BitsAllocated says.")
    runner.set_option("bits_allocated", bits)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return bytes(pixels.tobytes())


def _decode_jpeg(frame: bytes, runner: Any) -> np.ndarray[Any, Any]:
    import imagecodecs

    if frame.rfind(_END_OF_IMAGE) < 0:
        raise CorruptFrame("The frame's codestream ends early.")  # libjpeg would make up the rest
    if runner.samples_per_pixel == 1:
        return imagecodecs.jpeg8_decode(frame)
    lossy_ybr = str(runner.transfer_syntax) in JPEG_LOSSY_SYNTAXES and runner.photometric_interpretation in (
        "YBR_FULL",
        "YBR_FULL_422",
    )
    stored = "YCBCR" if lossy_ybr else "RGB"  # RGB to RGB leaves samples as they are, whatever they mean
    pixels = imagecodecs.jpeg8_decode(frame, colorspace=stored, outcolorspace="RGB")
    if lossy_ybr:
        runner.set_option("photometric_interpretation", "RGB")
    return pixels


def _decode_jpeg_ls(frame: bytes, runner: Any) -> np.ndarray[Any, Any]:
    import imagecodecs

    if not frame.endswith((_END_OF_IMAGE, _END_OF_IMAGE + b"\0")):
        frame += _END_OF_IMAGE  # without an end CharLS may look for one for seconds
    pixels = imagecodecs.jpegls_decode(frame)
    if pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[2]:
        pixels = pixels.transpose(1, 2, 0)  # interleaved by plane
    return pixels


def _decode_jpeg_2000(frame: bytes, runner: Any) -> np.ndarray[Any, Any]:
    import imagecodecs

    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    # OpenJPEG for HTJ2K too: imagecodecs loses the errors of OpenJPH, and hands out what is in the buffer.
    return imagecodecs.jpeg2k_decode(frame, planar=False, numthreads=1)


_CODECS: dict[str, Callable[[bytes, Any], np.ndarray[Any, Any]]] = {
    **dict.fromkeys(JPEG_SYNTAXES, _decode_jpeg),
    **dict.fromkeys(JPEG_LS_SYNTAXES, _decode_jpeg_ls),
    **dict.fromkeys(JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES, _decode_jpeg_2000),
}


def _decode_rle(frame: bytes, runner: Any) -> bytes:
    """The planes of an RLE frame one after the other (PS3.5 Annex G)."""
    import imagecodecs

    length = runner.rows * runner.columns * runner.samples_per_pixel * runner.bits_allocated // 8
    if int.from_bytes(frame[:4], "little") != runner.samples_per_pixel * runner.bits_allocated // 8:
        raise CorruptFrame("The number of segments in a frame of RLE does not fit the image.")
    data = imagecodecs.dicomrle_decode(frame, f"<u{runner.bits_allocated // 8}", out=length)
    if len(data) != length:
        raise CorruptFrame("A frame of RLE holds too few bytes or too many.")
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 1)
    return bytes(data)


def _check_codestream(frame: bytes, image: ImagePixel, transfer_syntax: str) -> None:
    """Refuse a codestream that announces another size, before memory is taken for it.

    RLE announces none; and what marks a size in one kind of codestream is pixels in another.
    """
    if transfer_syntax == RLE:
        return
    wavelets = transfer_syntax in JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES
    size = _size_in_jpeg_2000(frame) if wavelets else _size_in_jpeg(frame)
    if size is not None and size != (image.rows, image.columns):
        raise CorruptFrame("A frame's codestream announces other numbers of rows and columns than the image.")


def _size_in_jpeg_2000(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that the SIZ segment announces; it may follow boxes of a file format."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0 and len(frame) >= siz + 24:
        width, height, left, top = (
            int.from_bytes(frame[siz + at : siz + at + 4], "big") for at in (8, 12, 16, 20)
        )
        return height - top, width - left
    return None


def _size_in_jpeg(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that the SOF segment of JPEG or JPEG-LS announces."""
    if not frame.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = frame[position + 5 : position + 7], frame[position + 7 : position + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big")
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None
