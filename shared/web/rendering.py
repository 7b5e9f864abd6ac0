"""Query parameters of rendered resources (PS3.18 §8.3.5) and which media type answers (§8.7.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.dicom import report
from shared.dicom.render import LARGEST_VIEWPORT, MEDIA_TYPES, WINDOW_FUNCTIONS, Options, Viewport, Window
from shared.errors import InvalidRequest, NotAcceptable
from shared.web.accept import MediaRange, matches

GIF = "image/gif"
REPORT = report.MEDIA_TYPE

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


@dataclass(frozen=True, slots=True)
class Candidate:
    """What there is of one instance to render: a number of frames, or a report."""

    frames: int
    report: bool = False

    @property
    def offered(self) -> tuple[str, ...]:
        """The media types it can be had in, the default first."""
        return (REPORT,) if self.report else tuple(MEDIA_TYPES)

    def bodies(self, media_type: str) -> int:
        """How many bodies it makes in that type: an image a frame, but one GIF of all."""
        return 1 if media_type in (REPORT, GIF) else self.frames


def choose(ranges: Sequence[MediaRange], candidates: Sequence[Candidate]) -> tuple[list[str], bool]:
    """The media type of each candidate, empty where it is left out, and whether the answer is multipart.

    Each comes in the type it fits best of those allowed in multipart; or one alone where only one fits.
    Raises NotAcceptable.
    """
    for given in ranges:
        if given.multipart or given.media_type == "*/*":
            types = [_best(ranges, candidate) for candidate in candidates]
            if any(types):
                bodies = sum(c.bodies(of) for c, of in zip(candidates, types, strict=True) if of)
                return types, given.multipart or bodies > 1
            continue
        types = [_alone(given, candidate) for candidate in candidates]
        if sum(map(bool, types)) == 1:
            return types, False
    if any(matches(given.media_type, of) for given in ranges for c in candidates for of in c.offered):
        raise NotAcceptable("Several images are available as multipart/related only.")
    if all(candidate.report for candidate in candidates):
        raise NotAcceptable("Reports are rendered as text/html.")
    raise NotAcceptable("Images are rendered as image/jpeg, image/png and image/gif, reports as text/html.")


def _best(ranges: Sequence[MediaRange], candidate: Candidate) -> str:
    several = (given for given in ranges if given.multipart or given.media_type == "*/*")
    return next((of for given in several for of in candidate.offered if matches(given.media_type, of)), "")


def _alone(given: MediaRange, candidate: Candidate) -> str:
    types = (of for of in candidate.offered if matches(given.media_type, of))
    return next((of for of in types if candidate.bodies(of) == 1), "")
