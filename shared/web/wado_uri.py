"""Query parameters of WADO-URI (PS3.18 §9.1.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from shared.dicom.identifiers import Resource, check_uid
from shared.dicom.render import LARGEST_VIEWPORT, Options, Region, Viewport, Window
from shared.errors import InvalidRequest

_KNOWN = frozenset(
    {
        "requestType",
        "studyUID",
        "seriesUID",
        "objectUID",
        "contentType",
        "charset",
        "transferSyntax",
        "frameNumber",
        "rows",
        "columns",
        "region",
        "windowCenter",
        "windowWidth",
        "imageQuality",
    }
)
_REFUSED = ("annotation", "anonymize", "presentationUID", "presentationSeriesUID")


@dataclass(frozen=True, slots=True)
class WadoUri:
    """A request. ``content_types`` are those taken, best first, none for the default of the object;
    ``region`` is left, top, right and bottom as fractions of the image."""

    resource: Resource
    content_types: tuple[str, ...]
    transfer_syntax: str
    frame: int
    options: Options
    region: Region | None


def parse(partition: str, parameters: Iterable[tuple[str, str]]) -> WadoUri:
    """The request that ``parameters`` make. Raises InvalidRequest, which names the wrong parameter."""
    given: dict[str, str] = {}
    for name, value in parameters:
        if name in _REFUSED:
            raise InvalidRequest(f"The query parameter {name} is not supported.")
        if name not in _KNOWN:
            raise InvalidRequest("A query parameter is none that WADO-URI knows.")
        if name in given:
            raise InvalidRequest(f"The query parameter {name} is given twice.")
        given[name] = value
    if given.get("requestType") != "WADO":
        raise InvalidRequest("The query parameter requestType must be WADO.")
    uids = [_uid(given, name) for name in ("studyUID", "seriesUID", "objectUID")]
    types = [piece.partition(";")[0].strip().lower() for piece in given.get("contentType", "").split(",")]
    return WadoUri(
        Resource(partition, *uids),
        tuple(piece for piece in types if piece),
        given.get("transferSyntax", "").strip(),
        _integer(given, "frameNumber", 2**31 - 1) or 1,
        Options(_viewport(given), _window(given), _integer(given, "imageQuality", 100) or 90),
        _region(given),
    )


def _uid(given: dict[str, str], name: str) -> str:
    if name not in given:
        raise InvalidRequest(f"The query parameter {name} is missing.")
    return check_uid(given[name], name)


def _integer(given: dict[str, str], name: str, most: int) -> int:
    """From 1 to ``most``; 0 where it is not given."""
    text = given.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 11 and 1 <= int(text) <= most):
        raise InvalidRequest(f"The query parameter {name} must be an integer from 1 to {most}.")
    return int(text)


def _viewport(given: dict[str, str]) -> Viewport | None:
    rows, columns = (_integer(given, name, LARGEST_VIEWPORT) for name in ("rows", "columns"))
    return Viewport(columns or LARGEST_VIEWPORT, rows or LARGEST_VIEWPORT) if rows or columns else None


def _decimals(given: dict[str, str], name: str) -> list[float]:
    try:
        numbers = [float(piece) for piece in given[name].split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) and abs(number) < 1e12 for number in numbers):
        raise InvalidRequest(f"The query parameter {name} must be decimal numbers.")
    return numbers


def _window(given: dict[str, str]) -> Window | None:
    if "windowCenter" not in given and "windowWidth" not in given:
        return None
    if "windowCenter" not in given or "windowWidth" not in given:
        raise InvalidRequest("The query parameters windowCenter and windowWidth go together.")
    centre, width = _decimals(given, "windowCenter"), _decimals(given, "windowWidth")
    if len(centre) != 1 or len(width) != 1 or width[0] < 1:
        raise InvalidRequest("windowCenter must be one number, and windowWidth one of at least 1.")
    return Window(centre[0], width[0])


def _region(given: dict[str, str]) -> Region | None:
    if "region" not in given:
        return None
    numbers = _decimals(given, "region")
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return left, top, right, bottom
    raise InvalidRequest("region must be xmin,ymin,xmax,ymax, each from 0 to 1, and rising.")
