"""Query parameters of rendered resources (PS3.18 §8.3.5) and which media type answers (§8.7.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from shared.dicom.render import LARGEST_VIEWPORT, MEDIA_TYPES, WINDOW_FUNCTIONS, Options, Viewport, Window
from shared.errors import InvalidRequest, NotAcceptable
from shared.web.accept import MediaRange, matches

_FUNCTIONS = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}


def parse_options(parameters: Iterable[tuple[str, str]], thumbnail: bool) -> Options:
    """The options of a request; thumbnails take a viewport alone. Raises InvalidRequest."""
    given: dict[str, str] = {}
    for name, value in parameters:
        if name == "accept":
            continue
        if name not in ("viewport", "window", "quality", "annotation", "iccprofile"):
            raise InvalidRequest(
                "A query parameter is none of accept, viewport, window, quality, iccprofile."
            )
        if thumbnail and name != "viewport":
            raise InvalidRequest("A thumbnail takes the query parameters accept and viewport alone.")
        if name in given:
            raise InvalidRequest(f"The query parameter {name} is given twice.")
        given[name] = value
    if "annotation" in given:
        raise InvalidRequest("Annotations are not burned into images: annotation is not supported.")
    if given.get("iccprofile", "no") != "no":
        raise InvalidRequest("ICC profiles are neither applied nor sent: iccprofile may only be no.")
    return Options(
        _viewport(given["viewport"]) if "viewport" in given else None,
        _window(given["window"]) if "window" in given else None,
        _quality(given["quality"]) if "quality" in given else 90,
    )


def _numbers(pieces: Sequence[str], problem: str) -> list[float]:
    try:
        numbers = [float(piece) if piece.strip() else 0.0 for piece in pieces]
    except ValueError:
        raise InvalidRequest(problem) from None
    if not all(math.isfinite(number) and abs(number) < 1e12 for number in numbers):
        raise InvalidRequest(problem)
    return numbers


def _viewport(text: str) -> Viewport:
    problem = (
        f"viewport must be vw,vh or vw,vh,sx,sy,sw,sh, with vw and vh integers from 1 to {LARGEST_VIEWPORT} "
        "and sx and sy not negative."
    )
    pieces = text.split(",")
    numbers = _numbers(pieces, problem)
    whole = all(piece.strip().isascii() and piece.strip().isdigit() for piece in pieces[:2])
    if len(numbers) not in (2, 6) or not whole or not all(1 <= n <= LARGEST_VIEWPORT for n in numbers[:2]):
        raise InvalidRequest(problem)
    if any(n < 0 for n in numbers[2:4]):
        raise InvalidRequest(problem)
    left, top, width, height = numbers[2:] or [0.0] * 4
    return Viewport(int(numbers[0]), int(numbers[1]), (left, top, width, height))


def _window(text: str) -> Window:
    problem = "window must be centre,width,function with one of linear, linear-exact and sigmoid."
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) != 3 or not all(pieces) or pieces[2].lower() not in _FUNCTIONS:
        raise InvalidRequest(problem)
    centre, width = _numbers(pieces[:2], problem)
    function = _FUNCTIONS[pieces[2].lower()]
    assert function in WINDOW_FUNCTIONS
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise InvalidRequest("The width of a window must be greater than 0, and of a linear one at least 1.")
    return Window(centre, width, function)


def _quality(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= 100):
        raise InvalidRequest("quality must be an integer from 1 to 100.")
    return int(text)


def choose(ranges: Sequence[MediaRange], count: int) -> tuple[str, bool]:
    """Media type of the images and whether they come as multipart, for ``count``. Raises NotAcceptable."""
    for given in ranges:
        multipart = given.multipart or (given.media_type == "*/*" and count > 1)
        for offered in MEDIA_TYPES:
            if matches(given.media_type, offered) and (multipart or count == 1):
                return offered, multipart
    if count > 1 and any(matches(given.media_type, offered) for given in ranges for offered in MEDIA_TYPES):
        raise NotAcceptable("Several images are available as multipart/related only.")
    raise NotAcceptable("Images are rendered as image/jpeg and image/png.")
