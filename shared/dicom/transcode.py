"""Encoding of decoded frames, and what it changes in the data set around them (PS3.5 §8.2, Annexes A and G).

Lossless targets give back the very pixels that went in. The one lossy target, JPEG Baseline, is for pixels
of 8 bits. Codecs work without Python's global lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shared.dicom.pixel_data import DECODABLE, DecodedFrame, ImagePixel, decode
from shared.dicom.transfer_syntaxes import (
    EXPLICIT_LE,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    IMPLICIT_LE,
    JPEG_2000_LOSSLESS,
    JPEG_2000_SYNTAXES,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LOSSY_SYNTAXES,
    JPEG_LS_LOSSLESS,
    JPEG_LS_SYNTAXES,
    JPEG_SYNTAXES,
    NATIVE,
    RLE,
)

if TYPE_CHECKING:
    import numpy as np

NATIVE_TARGETS = frozenset({EXPLICIT_LE, IMPLICIT_LE})
ENCODED_TARGETS = frozenset(
    {
        RLE,
        JPEG_BASELINE,
        JPEG_LOSSLESS_SV1,
        JPEG_LS_LOSSLESS,
        JPEG_2000_LOSSLESS,
        HTJ2K_LOSSLESS,
        HTJ2K_LOSSLESS_RPCL,
    }
)
"""Syntaxes frames are encoded in."""

_SLOW = (JPEG_SYNTAXES - JPEG_LOSSY_SYNTAXES) | JPEG_LS_SYNTAXES | JPEG_2000_SYNTAXES

JPEG_QUALITY = 90
"""Quality of JPEG Baseline, of 100 (the scale of libjpeg)."""

_RLE_SEGMENTS = 15


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame in its target syntax; ``image`` describes it there."""

    data: bytes
    image: ImagePixel


def transcodable(source: str, target: str) -> bool:
    """Whether frames in the syntax ``source`` can be had in ``target``, as far as syntaxes decide."""
    if source not in DECODABLE or source == target:
        return False
    return target in ENCODED_TARGETS or (target in NATIVE_TARGETS and source not in NATIVE)


def is_slow(source: str, target: str) -> bool:
    """Whether a frame takes longer to decode and encode than the result to be read from Blob Storage.

    Measured on frames of 0.5 to 8 MB (docs/costs.md): JPEG Lossless, JPEG-LS and JPEG 2000 do, both ways;
    RLE, JPEG and High-Throughput JPEG 2000 do not.
    """
    return source in _SLOW or target in _SLOW


def refusal(image: ImagePixel, target: str) -> str:
    """Why frames of ``image`` cannot be encoded in ``target``: one sentence, or nothing where they can."""
    if target in NATIVE_TARGETS:
        return ""
    if image.bits_allocated == 1:
        return "Pixels of one bit are not compressed."
    if target == RLE:
        too_many = image.samples_per_pixel * image.bits_allocated // 8 > _RLE_SEGMENTS
        return "RLE has too few segments for these pixels." if too_many else ""
    if image.high_bit != image.bits_stored - 1:
        return "HighBit is not BitsStored - 1, which compressed pixels need."
    if target == JPEG_BASELINE:
        return _baseline_refusal(image)
    return "Pixels of more than 16 bits are not compressed." if image.bits_allocated > 16 else ""


def _baseline_refusal(image: ImagePixel) -> str:
    if (image.bits_allocated, image.bits_stored, image.pixel_representation) != (8, 8, 0):
        return "JPEG Baseline holds unsigned pixels of 8 bits only."
    monochrome = ("MONOCHROME1", "MONOCHROME2")
    colour = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    allowed = monochrome if image.samples_per_pixel == 1 else colour
    if image.photometric_interpretation not in allowed:
        return f"JPEG Baseline is not for {image.photometric_interpretation}."
    return ""


def transcode(frame: bytes, image: ImagePixel, source: str, target: str) -> EncodedFrame:
    """``frame`` in another syntax. Raises CorruptFrame, and ValueError where ``target`` cannot hold it."""
    return encode(decode(frame, image, source), target)


def encode(frame: DecodedFrame, target: str) -> EncodedFrame:
    """The frame in ``target``: its bytes (little endian, interleaved) or its codestream, not padded.

    Raises ValueError where ``target`` cannot hold it.
    """
    if target in NATIVE_TARGETS:
        return EncodedFrame(_little_endian(frame.pixels), frame.image)
    reason = refusal(frame.image, target)
    if reason:
        raise ValueError(reason)
    image = replace(frame.image, photometric_interpretation=_encoded_colour(frame.image, target))
    if target == RLE and image.samples_per_pixel > 1:
        image = replace(image, planar_configuration=1)
    try:
        data = bytes(_ENCODERS[target](frame.pixels, frame.image))
    except Exception as error:  # codecs have exceptions of their own
        raise ValueError(f"A frame cannot be encoded in transfer syntax {target}.") from error
    return EncodedFrame(data, image)


def _encoded_colour(image: ImagePixel, target: str) -> str:
    """PhotometricInterpretation of a frame of ``image`` once encoded (PS3.5 §8.2)."""
    colour = image.photometric_interpretation
    if target == JPEG_BASELINE and image.samples_per_pixel == 3:
        return "YBR_FULL_422"
    if target in (JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL) and colour == "RGB":
        return "YBR_RCT"
    return colour


def is_lossy(source: str, target: str) -> bool:
    """Whether pixels that come in ``target`` from ``source`` have been through lossy JPEG."""
    return target == JPEG_BASELINE or source in JPEG_LOSSY_SYNTAXES


# --- encoders ----------------------------------------------------------------------------------------


def _little_endian(pixels: np.ndarray[Any, Any]) -> bytes:
    return bytes(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes())


def _unsigned(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same bits as unsigned numbers, contiguous: what codecs without signs take."""
    import numpy as np

    return np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}")


def _levels(image: ImagePixel) -> int:
    """Resolutions of a wavelet transform: the lowest has at most 64 pixels a side where six allow it."""
    return max(1, min(6, min(image.rows, image.columns).bit_length()))


def _encode_rle(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes:
    """One segment a byte of each sample, highest first, each row packed on its own (PS3.5 Annex G)."""
    import imagecodecs

    size = pixels.dtype.itemsize
    octets = _unsigned(pixels).astype(f">u{size}").view("u1")
    octets = octets.reshape(image.rows, image.columns, image.samples_per_pixel * size)
    segments: list[bytes] = []
    for plane in range(octets.shape[2]):
        packed = bytes(imagecodecs.packbits_encode(octets[:, :, plane].copy(), axis=-1))
        segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = [64]
    for segment in segments[:-1]:
        offsets.append(offsets[-1] + len(segment))
    offsets += [0] * (_RLE_SEGMENTS - len(offsets))
    header = b"".join(number.to_bytes(4, "little") for number in [len(segments), *offsets])
    return header + b"".join(segments)


def _encode_jpeg_baseline(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes | bytearray:
    import imagecodecs

    if image.samples_per_pixel == 1:
        return imagecodecs.jpeg8_encode(_unsigned(pixels), level=JPEG_QUALITY)
    given = "RGB" if image.photometric_interpretation == "RGB" else "YCBCR"
    return imagecodecs.jpeg8_encode(
        _unsigned(pixels), level=JPEG_QUALITY, colorspace=given, outcolorspace="YCBCR", subsampling="422"
    )


def _encode_jpeg_lossless(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes | bytearray:
    import imagecodecs

    bits = 8 * pixels.dtype.itemsize
    if not image.pixel_representation and image.bits_stored > 1:
        bits = image.bits_stored
    spaces: dict[str, Any] = {}
    if image.samples_per_pixel > 1:
        space = "RGB" if image.photometric_interpretation == "RGB" else "UNKNOWN"
        spaces = {"colorspace": space, "outcolorspace": space}
    return imagecodecs.jpeg8_encode(
        _unsigned(pixels), lossless=True, predictor=1, bitspersample=bits, **spaces
    )


def _encode_jpeg_ls(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes | bytearray:
    """Noise may become longer than it was, up to four times: a code has 4 bits a bit of its sample at the
    most (ITU-T T.87 §A.5.3, LIMIT)."""
    import imagecodecs

    samples = _unsigned(pixels)
    try:
        return imagecodecs.jpegls_encode(samples)
    except imagecodecs.JpeglsError:
        return imagecodecs.jpegls_encode(samples, out=4 * samples.nbytes + 4096)


def _encode_jpeg_2000(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes | bytearray:
    import imagecodecs

    return imagecodecs.jpeg2k_encode(
        pixels,
        level=0,
        codecformat="j2k",
        reversible=True,
        bitspersample=image.bits_stored,
        mct=image.photometric_interpretation == "RGB",
        resolutions=_levels(image),
        numthreads=1,
    )


def _encode_htj2k(pixels: np.ndarray[Any, Any], image: ImagePixel) -> bytes | bytearray:
    import imagecodecs
    import numpy as np

    return imagecodecs.htj2k_encode(
        np.ascontiguousarray(pixels),
        reversible=True,
        rgb=image.photometric_interpretation == "RGB",
        planar=False,
        resolutions=_levels(image),
        tlm=True,
    )


_ENCODERS: dict[str, Callable[[np.ndarray[Any, Any], ImagePixel], bytes | bytearray]] = {
    RLE: _encode_rle,
    JPEG_BASELINE: _encode_jpeg_baseline,
    JPEG_LOSSLESS_SV1: _encode_jpeg_lossless,
    JPEG_LS_LOSSLESS: _encode_jpeg_ls,
    JPEG_2000_LOSSLESS: _encode_jpeg_2000,
    HTJ2K_LOSSLESS: _encode_htj2k,
    HTJ2K_LOSSLESS_RPCL: _encode_htj2k,
}
