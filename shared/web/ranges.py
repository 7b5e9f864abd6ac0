"""Range requests (RFC 9110 §14): which bytes of a representation a request asks for."""

from __future__ import annotations

import re

from shared.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,30})\s*-\s*(\d{0,30})", re.IGNORECASE)


def requested(range_header: str, if_range: str, etag: str, length: int) -> tuple[int, int] | None:
    """``(first byte, number of bytes)`` to answer with 206, or None to answer with the whole.

    The whole is what another unit, malformed or several ranges get (RFC 9110 §14.2 lets a server ignore
    them), and a request whose ``If-Range`` is not the strong entity tag ``etag`` (a date never is).
    Raises RangeNotSatisfiable where no byte of the range lies within ``length``.
    """
    match = _ONE_RANGE.fullmatch(range_header.strip())
    if match is None or (if_range.strip() and if_range.strip() != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:  # the last so many bytes
        start, stop = max(0, length - int(last)), length
    elif last and int(last) < int(first):
        return None
    else:
        start, stop = int(first), min(int(last) + 1, length) if last else length
    if start >= stop:
        raise RangeNotSatisfiable(f"The range lies outside of the {length} bytes.", length)
    return start, stop - start


def content_range(start: int, count: int, length: int) -> str:
    """The Content-Range header of a 206 (RFC 9110 §14.4)."""
    return f"bytes {start}-{start + count - 1}/{length}"
