"""The Accept header (RFC 9110 §12.5.1, PS3.18 §8.7.5), parsed leniently and obeyed exactly.

Parameters may be quoted or not (``type="application/dicom"`` or ``type=application/dicom``), and
``transfer-syntax`` may be given several times in one range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BETWEEN_COMMAS = re.compile(r'(?:[^,"]|"[^"]*")+')
_BETWEEN_SEMICOLONS = re.compile(r'(?:[^;"]|"[^"]*")+')
_LIMIT = 8192


@dataclass(frozen=True)
class MediaRange:
    """One range: ``media_type`` is that of the parts where the range is multipart/related.

    ``transfer_syntaxes`` are those asked for, in order; empty where none was given, ``*`` meaning any.
    """

    media_type: str
    multipart: bool = False
    transfer_syntaxes: tuple[str, ...] = ()
    quality: float = 1.0
    order: int = field(default=0, compare=False)


def parse_accept(header: str | None) -> list[MediaRange]:
    """The ranges of an Accept header, best first; an absent or empty one means ``*/*``.

    Ranges with quality 0 are left out; the order of equals is the header's.
    """
    if not header or not header.strip():
        return [MediaRange("*/*")]
    ranges = [
        _parse_range(text, order) for order, text in enumerate(_BETWEEN_COMMAS.findall(header[:_LIMIT]))
    ]
    usable = [r for r in ranges if r is not None and r.quality > 0]
    return sorted(usable, key=lambda r: (-r.quality, _specificity(r), r.order))


def _specificity(given: MediaRange) -> int:
    return 2 if given.media_type == "*/*" else 1 if given.media_type.endswith("/*") else 0


def _parse_range(text: str, order: int) -> MediaRange | None:
    pieces = [piece.strip() for piece in _BETWEEN_SEMICOLONS.findall(text)] or [""]
    media_type = pieces[0].lower()
    if "/" not in media_type:
        return None
    part_type, syntaxes, quality = "", [], 1.0
    for piece in pieces[1:]:
        name, _, value = piece.partition("=")
        value = value.strip().strip('"').strip()
        match name.strip().lower():
            case "type":
                part_type = value.lower()
            case "transfer-syntax" if value:
                syntaxes.append(value)
            case "q":
                quality = _quality(value)
    multipart = media_type.startswith("multipart/")
    if multipart:
        if media_type not in ("multipart/related", "multipart/*"):
            return None
        media_type = part_type or "*/*"
    return MediaRange(media_type, multipart, tuple(syntaxes), quality, order)


def _quality(value: str) -> float:
    try:
        return min(max(float(value), 0.0), 1.0)
    except ValueError:
        return 1.0


def accepts(ranges: Sequence[MediaRange], *media_types: str) -> str:
    """The first of ``media_types`` that the best fitting single-part range allows, or an empty string."""
    for given in ranges:
        if given.multipart:
            continue
        for media_type in media_types:
            if matches(given.media_type, media_type):
                return media_type
    return ""


def matches(given: str, media_type: str) -> bool:
    """Whether a range's type (``*/*``, ``image/*`` or exact, in lower case) covers ``media_type``."""
    media_type = media_type.lower()  # one of them is video/H265
    if given in ("*/*", media_type):
        return True
    return given.endswith("/*") and media_type.startswith(given[:-1])
