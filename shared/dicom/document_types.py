"""Media types that a value of the data set has by itself: encapsulated documents and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.dicom.document import value_of

ENCAPSULATED_DOCUMENT = "00420011"
PIXEL_DATA = "7FE00010"

_SERVED = frozenset({"application/pdf", "text/xml", "model/stl", "model/obj", "model/mtl"})


def type_and_length(document: Mapping[str, Any]) -> tuple[str, int | None]:
    """Media type of an encapsulated document, by its metadata, and its length without padding if stated."""
    stated, length = value_of(document, "00420012"), value_of(document, "00420015")
    return document_media_type(stated), length if isinstance(length, int) else None


def document_media_type(stated: object) -> str:
    """The media type that MIMETypeOfEncapsulatedDocument states, or an empty string.

    Only types of documents that the standard encapsulates (PS3.3 §C.24.2) count: what is stored is not
    trusted, and a browser would run ``text/html`` as a page of this server.
    """
    name = stated.partition(";")[0].strip().lower() if isinstance(stated, str) else ""
    return name if name in _SERVED else ""
