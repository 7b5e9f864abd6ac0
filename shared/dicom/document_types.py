"""Media types that a value of the data set has by itself: encapsulated documents and videos."""

from __future__ import annotations

ENCAPSULATED_DOCUMENT = "00420011"
PIXEL_DATA = "7FE00010"

_SERVED = frozenset({"application/pdf", "text/xml", "model/stl", "model/obj", "model/mtl"})


def document_media_type(stated: object) -> str:
    """The media type that MIMETypeOfEncapsulatedDocument states, or an empty string.

    Only types of documents that the standard encapsulates (PS3.3 §C.24.2) count: what is stored is not
    trusted, and a browser would run ``text/html`` as a page of this server.
    """
    name = stated.partition(";")[0].strip().lower() if isinstance(stated, str) else ""
    return name if name in _SERVED else ""
