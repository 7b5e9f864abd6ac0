"""What the adapter looks at in a Part 10 file, without decoding its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.tag import BaseTag
from pynetdicom.dsutils import split_dataset

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_CHUNK = 1024 * 1024
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Identity:
    """The UIDs of a data set; empty where it has none."""

    sop_class: str
    instance: str
    study: str
    series: str


def identity(path: Path) -> Identity:
    """The UIDs in the data set. Raises whatever pydicom raises on a file that is none."""

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return int(tag) > _SERIES

    with path.open("rb") as content:
        ds = read_partial(
            content, stop_when=beyond, specific_tags=[_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES]
        )
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    return Identity(*(str(ds.get(keyword) or "") for keyword in keywords))


def is_deflated(path: Path) -> bool:
    """Whether reading the data set would inflate all of it."""
    return str(read_file_meta_info(path).TransferSyntaxUID) == _DEFLATED


def same_dataset(one: Path, other: Path) -> bool:
    """Whether two files hold the same data set in the same transfer syntax, byte for byte."""
    (meta, start), (other_meta, other_start) = split_dataset(one), split_dataset(other)
    if meta.TransferSyntaxUID != other_meta.TransferSyntaxUID:
        return False
    if one.stat().st_size - start != other.stat().st_size - other_start:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        left.seek(start)
        right.seek(other_start)
        while chunk := left.read(_CHUNK):
            if chunk != right.read(_CHUNK):
                return False
    return True
