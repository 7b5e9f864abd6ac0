"""The frames of an image as one animated GIF (GIF89a), made frame by frame: one at a time is in memory.

Grey values come as they are, by one table for all frames; each frame of colours has the best 256 of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.dicom.document import value_of, values_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_FRAMES = 2000
MOST_PIXELS = 1 << 28
"""Of all frames together; that many take ten seconds in grey and half a minute in colour."""

END = b";"

_FASTEST, _SLOWEST, _DEFAULT = 20, 10_000, 100  # milliseconds; browsers slow down what is faster
_GREYS = bytes(value for value in range(256) for _ in range(3))
_FOR_EVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
_TABLE_OF_256 = 0xF7  # packed fields of the screen descriptor: a global table of 2 ** 8 colours


def times(document: Mapping[str, Any], numbers: Sequence[int]) -> list[int]:
    """Milliseconds that each frame is shown (PS3.3 §C.7.6.5)."""
    rate = _number(document, "00082144")  # RecommendedDisplayFrameRate
    if rate > 0:
        return [_within(1000 / rate)] * len(numbers)
    vector = values_of(document, "00181065")  # FrameTimeVector: from the frame before to each
    if len(vector) > 1:
        until_next = [_within(step) for step in vector[1:]]
        until_next.append(until_next[-1])
        return [until_next[min(number, len(until_next)) - 1] for number in numbers]
    time, cine_rate = _number(document, "00181063"), _number(document, "00180040")
    return [_within(time or (1000 / cine_rate if cine_rate > 0 else _DEFAULT))] * len(numbers)


def start(pixels: Array) -> bytes:
    """What precedes the first frame, which is like ``pixels``."""
    height, width = pixels.shape[:2]
    screen = struct.pack("<HHBBB", width, height, _TABLE_OF_256, 0, 0)
    return b"GIF89a" + screen + _GREYS + _FOR_EVER


def frame(pixels: Array, milliseconds: int) -> bytes:
    """One frame: uint8 of the shape (rows, columns) or (rows, columns, 3)."""
    from PIL import Image
    from PIL.GifImagePlugin import getdata

    image = Image.fromarray(pixels)
    colour = pixels.ndim == 3
    if colour:
        image = image.quantize(256)
    return b"".join(getdata(image, duration=milliseconds, include_color_table=colour))


def _within(milliseconds: object) -> int:
    if not isinstance(milliseconds, int | float) or not milliseconds > 0:
        return _DEFAULT
    return int(min(max(milliseconds, _FASTEST), _SLOWEST))


def _number(document: Mapping[str, Any], tag: str) -> float:
    value = value_of(document, tag, 0)
    return float(value) if isinstance(value, int | float) else 0.0
