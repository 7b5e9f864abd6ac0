"""What the server must know of transfer syntaxes (PS3.5 §10, PS3.6 Table A-1)."""

from __future__ import annotations

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"

NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
RLE = "1.2.840.10008.1.2.5"

JPEG_LOSSY_SYNTAXES = frozenset({JPEG_BASELINE, "1.2.840.10008.1.2.4.51"})
JPEG_SYNTAXES = JPEG_LOSSY_SYNTAXES | {"1.2.840.10008.1.2.4.57", JPEG_LOSSLESS_SV1}
JPEG_LS_SYNTAXES = frozenset({JPEG_LS_LOSSLESS, "1.2.840.10008.1.2.4.81"})
JPEG_2000_SYNTAXES = frozenset({JPEG_2000_LOSSLESS, "1.2.840.10008.1.2.4.91"})
HTJ2K_SYNTAXES = frozenset({HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, "1.2.840.10008.1.2.4.203"})
LOSSY_SYNTAXES = JPEG_LOSSY_SYNTAXES | {
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
}
"""Syntaxes in which frames may have lost something, among those that are decoded."""

_DEFLATED = frozenset({DEFLATED_LE, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

_MEDIA_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.100": "video/mpeg",
    "1.2.840.10008.1.2.4.100.1": "video/mpeg",
    "1.2.840.10008.1.2.4.101": "video/mpeg",
    "1.2.840.10008.1.2.4.101.1": "video/mpeg",
    "1.2.840.10008.1.2.4.102": "video/mp4",
    "1.2.840.10008.1.2.4.102.1": "video/mp4",
    "1.2.840.10008.1.2.4.103": "video/mp4",
    "1.2.840.10008.1.2.4.103.1": "video/mp4",
    "1.2.840.10008.1.2.4.104": "video/mp4",
    "1.2.840.10008.1.2.4.104.1": "video/mp4",
    "1.2.840.10008.1.2.4.105": "video/mp4",
    "1.2.840.10008.1.2.4.105.1": "video/mp4",
    "1.2.840.10008.1.2.4.106": "video/mp4",
    "1.2.840.10008.1.2.4.106.1": "video/mp4",
    "1.2.840.10008.1.2.4.107": "video/H265",
    "1.2.840.10008.1.2.4.108": "video/H265",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}

DEFAULT_OF_MEDIA_TYPE = {
    "image/jpeg": "1.2.840.10008.1.2.4.70",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/jpx": "1.2.840.10008.1.2.4.92",
    "image/jphc": "1.2.840.10008.1.2.4.201",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
}
"""Transfer syntax a media type stands for when the Accept header names none (PS3.18 Table 8.7.3-5)."""


def media_type(transfer_syntax: str) -> str:
    """Media type of one frame in this syntax (PS3.18 Table 8.7.3-5); native and unknown are octet streams."""
    return _MEDIA_TYPES.get(transfer_syntax, "application/octet-stream")


def is_video(transfer_syntax: str) -> bool:
    """Whether pixel data is one stream for all frames, whose fragments mean nothing (PS3.5 §8.2.5 to §8.2.9).

    Such an instance has one frame to retrieve: the stream.
    """
    return media_type(transfer_syntax).startswith("video/")


def is_deflated(transfer_syntax: str) -> bool:
    """Whether the data set after the file meta information is a deflate stream (RFC 1951)."""
    return transfer_syntax in _DEFLATED


def byte_order(transfer_syntax: str) -> str:
    """``>`` for Explicit VR Big Endian, else ``<``."""
    return ">" if transfer_syntax == EXPLICIT_BE else "<"
