"""The transcoding matrix: files in every transfer syntax by other makers' encoders, and what each becomes.

``python -m tests.transcoding`` writes the tables of ``docs/transcoding.md``; a test fails when they are
stale.
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.uid import UID

from shared.dicom import transcode
from shared.dicom.pixel_data import ImagePixel, decode
from shared.dicom.transfer_syntaxes import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    IMPLICIT_LE,
    JPEG_2000_LOSSLESS,
    JPEG_2000_SYNTAXES,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    NATIVE,
    RLE,
)
from tests.dicom_files import make_dataset, to_file
from tests.images import KINDS, Pixels, made
from tests.tools import tool

PAGE = Path(__file__).resolve().parents[1] / "docs" / "transcoding.md"

JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSY = "1.2.840.10008.1.2.4.203"

SOURCES = (
    *(IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE, RLE),
    *(JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1),
    *(JPEG_LS_LOSSLESS, JPEG_LS_NEAR, JPEG_2000_LOSSLESS, JPEG_2000_LOSSY),
    *(HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K_LOSSY),
)
TARGETS = (
    *(EXPLICIT_LE, IMPLICIT_LE, RLE, JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS),
    *(JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL),
)
WIRE_KINDS = ("grey 8", "grey 12 of 16", "RGB 8")
"""What is stored and retrieved; the other kinds are tested without a server."""

NEAR = 2
SOURCE_ERROR = {JPEG_BASELINE: 0.03, JPEG_EXTENDED: 0.03, JPEG_2000_LOSSY: 0.06, HTJ2K_LOSSY: 0.05}
"""By how much a decoded sample may differ from what was compressed, as part of the range of values."""
BASELINE_ERROR = 16
"""By how much a sample may differ once it is in JPEG Baseline, of 255: its quality on a slope with noise."""

_BY_DCMTK = {
    RLE: ("dcmcrle",),
    JPEG_BASELINE: ("dcmcjpeg", "+eb", "+q", "90"),
    JPEG_EXTENDED: ("dcmcjpeg", "+ee", "+q", "90"),
    JPEG_LOSSLESS: ("dcmcjpeg", "+el"),
    JPEG_LOSSLESS_SV1: ("dcmcjpeg", "+e1"),
}


def source_error(syntax: str, image: ImagePixel) -> int:
    """The most a sample may differ from what was compressed in ``syntax``."""
    if syntax == JPEG_LS_NEAR:
        return NEAR
    return int(SOURCE_ERROR.get(syntax, 0) * ((1 << image.bits_stored) - 1))


def original(kind: str, frames: int) -> Pixels:
    """The pixels before any compression; a frame more is a dimension more in front."""
    return np.stack([made(KINDS[kind], number + 1).pixels for number in range(frames)])


def impossible(kind: str, syntax: str) -> str:
    """Why no file of ``kind`` is made in ``syntax``; empty where one is."""
    image = KINDS[kind]
    if syntax in NATIVE or syntax == RLE:
        return ""
    if image.bits_allocated > 16:
        return "more than 16 bits"
    if syntax == JPEG_BASELINE and image.bits_stored > 8:
        return "more than 8 bits"
    if syntax == JPEG_EXTENDED and image.bits_stored > 12:
        return "more than 12 bits"
    lossy = syntax in SOURCE_ERROR or syntax == JPEG_LS_NEAR
    if lossy and image.pixel_representation:
        return "signed"
    if lossy and image.photometric_interpretation == "PALETTE COLOR":
        return "indexes of a palette"
    if syntax in _BY_DCMTK and kind in ("RGB 16", "YBR_FULL 8"):
        return "not encoded by dcmtk"
    return ""


@cache
def source_file(kind: str, syntax: str, frames: int = 1) -> bytes:
    """A file of ``frames`` frames of ``kind`` in ``syntax``, by dcmtk, CharLS, OpenJPEG or OpenJPH."""
    image = KINDS[kind]
    ds = make_dataset(frames=0)
    for keyword, value in _attributes(image).items():
        setattr(ds, keyword, value)
    if frames > 1:
        ds.NumberOfFrames = frames
    pixels = original(kind, frames)
    order = ">" if syntax == EXPLICIT_BE else "<"
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    ds["PixelData"].VR = "OW" if image.bits_allocated > 8 or syntax == IMPLICIT_LE else "OB"
    if syntax in NATIVE:
        return to_file(ds, UID(syntax))
    if syntax in _BY_DCMTK:
        return _by_dcmtk(to_file(ds), *_BY_DCMTK[syntax])
    if syntax in (JPEG_LS_LOSSLESS, JPEG_LS_NEAR):
        to_file(ds)  # which gives it its file meta information
        near = {"jls_error": NEAR} if syntax == JPEG_LS_NEAR else {}
        ds.compress(syntax, **near, generate_instance_uid=False)
        return to_file(ds, UID(syntax))
    return _by_wavelets(ds, pixels, image, syntax)


def _attributes(image: ImagePixel) -> dict[str, Any]:
    found = {
        "SamplesPerPixel": image.samples_per_pixel,
        "PhotometricInterpretation": image.photometric_interpretation,
        "Rows": image.rows,
        "Columns": image.columns,
        "BitsAllocated": image.bits_allocated,
        "BitsStored": image.bits_stored,
        "HighBit": image.high_bit,
        "PixelRepresentation": image.pixel_representation,
    }
    if image.samples_per_pixel > 1:
        found["PlanarConfiguration"] = 0
    if image.photometric_interpretation == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            found[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            found[f"{colour}PaletteColorLookupTableData"] = bytes(512)
    return found


def _by_dcmtk(file: bytes, program: str, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        native, encoded = Path(folder, "native.dcm"), Path(folder, "encoded.dcm")
        native.write_bytes(file)
        command = [tool(program), *options, "+un", str(native), str(encoded)]
        subprocess.run(command, check=True, capture_output=True)
        return encoded.read_bytes()


def _by_wavelets(ds: Dataset, pixels: Pixels, image: ImagePixel, syntax: str) -> bytes:
    """By OpenJPEG, and OpenJPH where it is High-Throughput JPEG 2000."""
    import imagecodecs

    reversible = syntax not in (JPEG_2000_LOSSY, HTJ2K_LOSSY)
    rgb = image.photometric_interpretation == "RGB"
    frames = []
    for frame in map(np.ascontiguousarray, pixels):
        if syntax in JPEG_2000_SYNTAXES:
            options = {"level": 0 if reversible else 40, "mct": rgb, "bitspersample": image.bits_stored}
            encode, options = imagecodecs.jpeg2k_encode, {**options, "codecformat": "j2k", "resolutions": 3}
        else:
            encode = imagecodecs.htj2k_encode
            options = {"level": None if reversible else 0.002, "rgb": rgb, "planar": False}
        frames.append(bytes(encode(frame, reversible=reversible, **options)))
    if rgb:
        ds.PhotometricInterpretation = "YBR_RCT" if reversible else "YBR_ICT"
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return to_file(ds, UID(syntax))


# --- outcomes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file taken apart: its frames, what describes them, and how they decode."""

    syntax: str
    image: ImagePixel
    frames: list[bytes]

    @classmethod
    def of(cls, file: bytes) -> Source:
        """Frames of a file, big endian words swapped as the server hands them to its codecs."""
        ds = dcmread(io.BytesIO(file))
        syntax = str(ds.file_meta.TransferSyntaxUID)
        described = ds.group_dataset(0x0028)
        count = 1
        with suppress(ValueError):  # a file in pydicom's collection has none that is a number
            count = int(described.get("NumberOfFrames", 1))
        described.pop("NumberOfFrames", None)
        image = ImagePixel.from_document(described.to_json_dict(0, str))
        if syntax not in NATIVE:
            return cls(syntax, image, list(generate_frames(ds.PixelData, number_of_frames=count)))
        data = ds.PixelData
        if syntax == EXPLICIT_BE and image.bits_allocated > 8:
            data = np.frombuffer(data, f">u{image.bits_allocated // 8}").byteswap().tobytes()
        length = image.frame_length
        return cls(syntax, image, [data[i * length : (i + 1) * length] for i in range(count)])


def decoded(source: Source) -> Pixels:
    """The frames as they are in native form, by the server's decoders."""
    return np.stack([decode(frame, source.image, source.syntax).pixels for frame in source.frames])


def outcome(source: Source, target: str) -> str:
    """What becomes of ``source`` in ``target``, compared with what it decodes to: a cell of the tables."""
    if source.syntax == target:
        return "as stored"
    reason = transcode.refusal(source.image, target)
    if reason:
        return f"refused: {reason}"
    before = decoded(source)
    if target in transcode.NATIVE_TARGETS or source.syntax == EXPLICIT_LE:
        frames = [transcode.encode(decode(f, source.image, source.syntax), target) for f in source.frames]
    else:
        frames = [transcode.transcode(f, source.image, source.syntax, target) for f in source.frames]
    answers = [decode(frame.data, frame.image, target) for frame in frames]
    if answers[0].image.photometric_interpretation == "RGB":
        before = as_rgb(before, source)
    return compared(before, np.stack([answer.pixels for answer in answers]), target)


def as_rgb(pixels: Pixels, source: Source) -> Pixels:
    """Decoded ``pixels`` of ``source`` as JPEG Baseline decodes to them: YBR_FULL as RGB."""
    colour = decode(source.frames[0], source.image, source.syntax).image.photometric_interpretation
    if colour != "YBR_FULL":
        return pixels
    return np.stack([convert_color_space(frame, "YBR_FULL", "RGB") for frame in pixels])


def compared(before: Pixels, after: Pixels, target: str) -> str:
    """``equal``, or the stated error of a lossy target. AssertionError where it is neither."""
    assert before.shape == after.shape
    if target != JPEG_BASELINE:
        np.testing.assert_array_equal(after, before)
        return "equal"
    assert np.abs(after.astype(int) - before.astype(int)).max() <= BASELINE_ERROR
    return f"within {BASELINE_ERROR}"


def decoded_by_others(file: bytes) -> Pixels:
    """All frames of a file by pydicom's plug-ins; RGB where compression made other colours of it."""
    ds = dcmread(io.BytesIO(file))
    made_by_codec = ds.PhotometricInterpretation in ("YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    pixels = pixel_array(ds, raw=not made_by_codec)
    if ds.PixelRepresentation == 0:  # lossy wavelets overshoot
        pixels = pixels.clip(0, (1 << ds.BitsStored) - 1)
    return pixels if int(ds.get("NumberOfFrames", 1)) > 1 else pixels[None]


# --- the page ----------------------------------------------------------------------------------------


NAMES = {
    IMPLICIT_LE: "Implicit VR Little Endian",
    EXPLICIT_LE: "Explicit VR Little Endian",
    DEFLATED_LE: "Deflated Explicit VR Little Endian",
    EXPLICIT_BE: "Explicit VR Big Endian",
    RLE: "RLE Lossless",
    JPEG_BASELINE: "JPEG Baseline",
    JPEG_EXTENDED: "JPEG Extended",
    JPEG_LOSSLESS: "JPEG Lossless (.57)",
    JPEG_LOSSLESS_SV1: "JPEG Lossless SV1 (.70)",
    JPEG_LS_LOSSLESS: "JPEG-LS Lossless",
    JPEG_LS_NEAR: "JPEG-LS Near-Lossless",
    JPEG_2000_LOSSLESS: "JPEG 2000 Lossless",
    JPEG_2000_LOSSY: "JPEG 2000",
    HTJ2K_LOSSLESS: "HTJ2K Lossless (.201)",
    HTJ2K_LOSSLESS_RPCL: "HTJ2K Lossless RPCL (.202)",
    HTJ2K_LOSSY: "HTJ2K (.203)",
}


def _table(kind: str) -> Iterator[str]:
    yield f"### {kind[0].upper()}{kind[1:]}\n"
    yield f"| stored | its own error | {' | '.join(NAMES[target] for target in TARGETS)} |"
    yield "|---" * (len(TARGETS) + 2) + "|"
    reasons: list[str] = []
    for syntax in SOURCES:
        if impossible(kind, syntax):
            continue
        source = Source.of(source_file(kind, syntax))
        cells = [_cell(outcome(source, target), reasons) for target in TARGETS]
        error = source_error(syntax, KINDS[kind])
        yield f"| {NAMES[syntax]} | {error or 'none'} | {' | '.join(cells)} |"
    yield ""
    for number, reason in enumerate(reasons, 1):
        yield f"({number}) {reason}\n"


def _cell(found: str, reasons: list[str]) -> str:
    word, _, reason = found.partition(": ")
    if not reason:
        return word
    if reason not in reasons:
        reasons.append(reason)
    return f"{word} ({reasons.index(reason) + 1})"


def tables() -> str:
    """The generated part of the page."""
    return "\n".join(line for kind in KINDS for line in _table(kind)).rstrip()


def render(text: str) -> str:
    """``text`` with the tables as they should be."""
    return re.sub(
        r"(<!-- begin matrix -->\n).*?(<!-- end matrix -->)",
        lambda match: f"{match[1]}\n{tables()}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
