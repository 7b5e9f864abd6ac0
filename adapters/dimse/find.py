"""C-FIND (PS3.4 §C.4.1) by QIDO-RS: patient root and study root, all levels, hierarchical."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from adapters.dimse.dicomweb import DicomWeb, Json, Refused, Unavailable
from adapters.dimse.keys import MATCHED

LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
UNIQUE = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
PENDING, PENDING_UNMATCHED = 0xFF00, 0xFF01
OUT_OF_RESOURCES, IDENTIFIER_MISMATCH, CANCELED, UNABLE = 0xA700, 0xA900, 0xFE00, 0xC001
_OWN = {Tag("SpecificCharacterSet"), Tag("QueryRetrieveLevel"), Tag("RetrieveAETitle")}


class BadIdentifier(Exception):
    """The identifier breaks the rules of its information model."""


@dataclass(frozen=True)
class Search:
    """A QIDO-RS search: its path and parameters; ``unmatched`` says that keys with values were left out."""

    path: str
    query: tuple[tuple[str, str], ...]
    unmatched: bool


def failure(status: int, comment: str = "") -> Dataset:
    """A status with an Error Comment (0000,0902), which never holds values of the request."""
    ds = Dataset()
    ds.Status = status
    if comment:
        ds.ErrorComment = comment[:64]
    return ds


def tags_of(ds: Dataset) -> list[BaseTag]:
    """The tags of a data set, in order; its values are not touched."""
    return sorted(ds.keys())


def level_of(identifier: Dataset, patient_root: bool) -> str:
    """The Query/Retrieve Level. Raises BadIdentifier."""
    level = str(identifier.get("QueryRetrieveLevel") or "").strip()
    if level not in LEVELS or (level == "PATIENT" and not patient_root):
        raise BadIdentifier("QueryRetrieveLevel is missing or not of this model")
    return level


def above(level: str, patient_root: bool) -> tuple[str, ...]:
    """The unique keys of the levels above."""
    levels = LEVELS[: LEVELS.index(level)]
    return tuple(UNIQUE[one] for one in levels if one != "PATIENT" or patient_root)


def value_of(identifier: Dataset, keyword: str) -> str:
    """The value as a query writes it: several with backslashes between; empty for universal matching."""
    tag = Tag(keyword)
    if tag not in identifier:
        return ""
    try:
        value = identifier[tag].value
    except Exception:  # a number with a wildcard, or bytes that are no value of the VR
        raw = identifier.get_item(tag).value
        value = raw.decode("ascii", "replace").strip("\0 ") if isinstance(raw, bytes) else raw
    if value is None or isinstance(value, bytes):
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, (MultiValue, list)) else str(value)
    text = text.strip("\0 ")
    return "" if set(text) == {"*"} else text


def search_of(identifier: Dataset, patient_root: bool) -> Search:
    """The search an identifier asks for. Raises BadIdentifier."""
    level = level_of(identifier, patient_root)
    for keyword in above(level, patient_root):
        value = value_of(identifier, keyword)
        if not value or set(value) & set("\\*?"):
            raise BadIdentifier(f"{keyword} must have one value at this level")
    path = _path(level, identifier)
    query: list[tuple[str, str]] = []
    fields: list[str] = []
    unmatched = False
    for tag in tags_of(identifier):
        keyword = keyword_for_tag(tag)
        if tag in _OWN or tag.element == 0 or tag.is_private or not keyword:
            continue
        fields.append(f"{int(tag):08X}")
        if (
            keyword in ("StudyInstanceUID", "SeriesInstanceUID")
            and f"/{value_of(identifier, keyword)}" in path
        ):
            continue
        for name, value in _matched(identifier, keyword):
            if name in MATCHED[level]:
                query.append((name, value))
            else:
                unmatched = True
    if fields:
        query.append(("includefield", ",".join(fields)))
    return Search(path, tuple(query), unmatched)


def _path(level: str, identifier: Dataset) -> str:
    study, series = (value_of(identifier, UNIQUE[one]) for one in ("STUDY", "SERIES"))
    for uid in (study, series):
        if set(uid) - set("0123456789.\\*?"):
            raise BadIdentifier("a UID has characters that no UID has")
    if level == "SERIES":
        return f"studies/{study}/series"
    if level == "IMAGE":
        return f"studies/{study}/series/{series}/instances"
    return "patients" if level == "PATIENT" else "studies"


def _matched(identifier: Dataset, keyword: str) -> Iterator[tuple[str, str]]:
    """Name and value of what a key asks to be matched; within a sequence by dotted paths."""
    if identifier.get_item(Tag(keyword)).VR != "SQ" and not isinstance(identifier.get(keyword), list):
        value = value_of(identifier, keyword)
        if value:
            yield keyword, value
        return
    for item in list(identifier.get(keyword) or [])[:1]:
        if isinstance(item, Dataset):
            for tag in tags_of(item):
                inner = keyword_for_tag(tag)
                for name, value in _matched(item, inner) if inner else ():
                    yield f"{keyword}.{name}", value


def answer(result: Json, identifier: Dataset, ae_title: str) -> Dataset:
    """What is returned for a result: every key that was asked for, empty where the server has none."""
    ds = Dataset()
    for tag in tags_of(identifier):
        if tag not in _OWN and tag.element != 0:
            ds.add(_element(result, tag, identifier))
    ds.QueryRetrieveLevel = identifier.QueryRetrieveLevel
    ds.RetrieveAETitle = ae_title
    return with_character_set(ds)


def with_character_set(ds: Dataset) -> Dataset:
    """UTF-8 where ASCII does not do; nothing else is asked of a reader."""
    if not _is_ascii(ds):
        ds.SpecificCharacterSet = "ISO_IR 192"
    return ds


def _is_ascii(ds: Dataset) -> bool:
    for element in ds:
        if element.VR == "SQ":
            if not all(_is_ascii(item) for item in element.value):
                return False
        elif (
            element.VR not in ("OB", "OW", "UN", "OF", "OD", "OL", "OV") and not str(element.value).isascii()
        ):
            return False
    return True


def _element(result: Json, tag: Any, identifier: Dataset) -> DataElement:
    found = result.get(f"{int(tag):08X}")
    if found and found.get("Value"):
        with suppress(Exception), warnings.catch_warnings():  # a stored value that breaks its VR stays empty
            warnings.simplefilter("ignore")
            return Dataset.from_json({f"{int(tag):08X}": found})[tag]
    vr = (found or {}).get("vr") or identifier.get_item(tag).VR or "UN"
    try:
        return DataElement(tag, vr, None if vr != "SQ" else [])
    except Exception:
        return DataElement(tag, "UN", None)


def find(
    server: DicomWeb, partition: str, identifier: Dataset, patient_root: bool, limit: int, event: Any
) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """The answers to a C-FIND, as pynetdicom wants them."""
    ae_title = event.assoc.requestor.primitive.called_ae_title
    try:
        search = search_of(identifier, patient_root)
        status = PENDING_UNMATCHED if search.unmatched else PENDING
        for number, result in enumerate(server.search(partition, search.path, search.query)):
            if event.is_cancelled:
                yield CANCELED, None
                return
            if number >= limit:
                yield failure(OUT_OF_RESOURCES, "More matches than this service returns"), None
                return
            yield status, answer(result, identifier, ae_title)
    except BadIdentifier as error:
        yield failure(IDENTIFIER_MISMATCH, str(error)), None
    except Refused as error:
        yield (
            failure(UNABLE if error.status != 400 else IDENTIFIER_MISMATCH, "The server refuses the search"),
            None,
        )
    except Unavailable:
        yield failure(UNABLE, "The server does not answer"), None
