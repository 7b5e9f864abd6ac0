"""Small Part 10 files for tests, made with pydicom; real ones; and the parts of a multipart body."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import data_store
import pydicom
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

ROWS, COLUMNS = 4, 6

_NO_DICOM = {".py", ".pyc", ".json", ".txt", ".md"}


def real_files() -> list[Path]:
    """Every file that pydicom packages for its tests and that pydicom-data holds."""
    folders = [Path(str(module.__file__)).parent / "data" for module in (pydicom, data_store)]
    found = (path for folder in folders for path in folder.rglob("*"))
    return sorted(path for path in found if path.is_file() and path.suffix not in _NO_DICOM)


def frame(number: int) -> bytes:
    """The pixels of frame ``number`` (from 1) of a file made here: 4 x 6 pixels of 16 bits, no two alike."""
    return b"".join(((number * 256 + i) % 65536).to_bytes(2, "little") for i in range(ROWS * COLUMNS))


def codestream(number: int) -> bytes:
    """What stands for a compressed frame in an encapsulated file: it begins as JPEG 2000 does."""
    return b"\xff\x4f\xff\x51" + frame(number)


def make_dataset(
    study: str | None = None,
    series: str | None = None,
    instance: str | None = None,
    frames: int = 1,
    **attributes: Any,
) -> Dataset:
    """A CT data set in Explicit VR Little Endian; ``frames=0`` has no pixels.

    Further attributes are given by keyword; the value None leaves one out.
    """
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = instance or generate_uid()
    ds.StudyInstanceUID = study or generate_uid()
    ds.SeriesInstanceUID = series or generate_uid()
    ds.PatientID = "P-1"
    ds.PatientName = "Doe^Jane"
    ds.Modality = "CT"
    ds.StudyDate = "20240229"
    if frames:
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.NumberOfFrames = frames
        ds.Rows, ds.Columns = ROWS, COLUMNS
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = b"".join(frame(number + 1) for number in range(frames))
    for keyword, value in attributes.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def to_file(
    ds: Dataset, transfer_syntax: str = ExplicitVRLittleEndian, meta: dict[str, str] | None = None
) -> bytes:
    """The data set as a Part 10 file; ``meta`` replaces values of the file meta information."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.FileMetaInformationVersion = b"\0\1"
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CTImageStorage)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", generate_uid())
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds.file_meta.ImplementationClassUID = "1.2.826.0.1.3680043.9.9999"
    for keyword, value in (meta or {}).items():
        setattr(ds.file_meta, keyword, value)
    ds.preamble = bytes(128)
    buffer = io.BytesIO()
    dcmwrite(
        buffer,
        ds,
        implicit_vr=transfer_syntax == ImplicitVRLittleEndian,
        little_endian=transfer_syntax != ExplicitVRBigEndian,
        enforce_file_format=False,
        overwrite=True,
    )
    return buffer.getvalue()


def make_file(
    study: str | None = None,
    series: str | None = None,
    instance: str | None = None,
    frames: int = 1,
    encapsulated: bool = False,
    transfer_syntax: str | None = None,
    **attributes: Any,
) -> bytes:
    """A Part 10 file of :func:`make_dataset`.

    ``encapsulated`` holds :func:`codestream` for each frame, in JPEG 2000 Lossless where no other is asked.
    """
    ds = make_dataset(study, series, instance, frames, **attributes)
    if encapsulated:
        ds.PixelData = encapsulate([codestream(number + 1) for number in range(frames)])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    return to_file(ds, transfer_syntax or (JPEG2000Lossless if encapsulated else ExplicitVRLittleEndian))


def multipart(
    files: Iterable[bytes], content_type: str = "application/dicom"
) -> tuple[bytes, dict[str, str]]:
    """A multipart/related body and the headers that go with it."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    body = b"".join(head + file + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'}


def read_multipart(content_type: str, body: bytes) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a response: headers by lower-case name, and bytes.

    Written apart from the server's code, and strict: CRLF, a header block in every part, a closing boundary.
    """
    boundary = content_type.split("boundary=")[1].split(";")[0].strip('"').encode()
    assert body.startswith(b"--" + boundary + b"\r\n"), body[:100]
    assert body.endswith(b"\r\n--" + boundary + b"--\r\n"), body[-100:]
    parts = []
    inside = body[len(boundary) + 4 : -(len(boundary) + 8)]
    for part in inside.split(b"\r\n--" + boundary + b"\r\n"):
        head, _, content = part.partition(b"\r\n\r\n")
        lines = (line.decode().split(": ", 1) for line in head.split(b"\r\n"))
        parts.append(({name.lower(): value for name, value in lines}, content))
    return parts
