"""One frame as an image for the eye: 8-bit grey or RGB in a file (PS3.3 §C.11, PS3.18 §8.3.5, §8.7.4).

Grey values take the modality LUT, the VOI LUT and the polarity of the photometric interpretation, in this
order. Values of up to 16 bits are mapped once each, in a table, whatever the size of the frame.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shared.dicom.document import value_of, values_of
from shared.dicom.pixel_data import CorruptFrame, ImagePixel, decode, rgb_of_partial
from shared.dicom.transfer_syntaxes import EXPLICIT_LE, NATIVE

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF"}
"""What is made, the default first, by the name Pillow has for it."""

LARGEST_VIEWPORT = 4096
"""The most pixels of a viewport's side."""

WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_BYTES = "Bytes"
_FLOATS = {"7FE00008": "<f4", "7FE00009": "<f8"}
_PALETTES = ("00281201", "00281202", "00281203", "00281221", "00281222", "00281223")
_DESCRIPTOR = "00281101"
_LUTS = ("00283000", "00283010")
_LUT_DATA = "00283006"
_MOST_OVERLAYS = 16


class EmptyRegion(ValueError):
    """The viewport's source region lies outside the image."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window of values after the modality LUT (PS3.3 §C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True, slots=True)
class Viewport:
    """Size to scale to, and the region of the image: left, top, width, height; negative sizes mirror.

    A width or height of 0 reaches to the edge of the image.
    """

    width: int
    height: int
    region: tuple[float, float, float, float] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Options:
    """What a client may ask of a rendering (PS3.18 §8.3.5)."""

    viewport: Viewport | None = None
    window: Window | None = None
    quality: int = 90


Region = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of an image, as WADO-URI gives them."""

Json = Mapping[str, Any]


def binary_elements(document: Json) -> list[dict[str, Any]]:
    """The elements of lookup tables and overlays that a rendering needs and that are bulk data.

    The caller puts their bytes under the key ``Bytes``.
    """
    found = [document.get(tag) for tag in _PALETTES]
    found += [document.get(f"60{group:02X}3000") for group in range(0, 2 * _MOST_OVERLAYS, 2)]
    found += [item.get(_LUT_DATA) for tag in _LUTS for item in _items(document, tag)[:1]]
    return [element for element in found if element and "BulkDataURI" in element]


def render(frame: bytes, document: Json, number: int, transfer_syntax: str, options: Options) -> Array:
    """Frame ``number`` (from 1) as an array of uint8 of the shape (rows, columns) or (rows, columns, 3).

    ``frame`` is what :func:`shared.dicom.pixel_data.decode` takes. Raises CorruptFrame, or ValueError where
    the attributes describe no image that can be rendered; the message is one sentence.
    """
    try:
        pixels = _render(frame, document, number, transfer_syntax, options)
        _draw_overlays(pixels, document, number)
        return _in_viewport(pixels, options.viewport)
    except ValueError:
        raise
    except Exception as error:
        raise CorruptFrame("The attributes of the image contradict each other.") from error


def encode(pixels: Array, media_type: str, quality: int) -> bytes:
    """The image as a file of ``media_type``; ``quality`` (1 to 100) counts for JPEG alone."""
    from PIL import Image

    out = io.BytesIO()
    more: dict[str, Any] = {"image/jpeg": {"quality": quality}, "image/png": {"compress_level": 1}}
    Image.fromarray(pixels).save(out, MEDIA_TYPES[media_type], **more.get(media_type, {}))
    return out.getvalue()


def _render(frame: bytes, document: Json, number: int, transfer_syntax: str, options: Options) -> Array:
    import numpy as np

    kind = next((dtype for tag, dtype in _FLOATS.items() if tag in document), None)
    if kind is not None:
        shape = _number(document, "00280010", 0), _number(document, "00280011", 0)
        floats = np.frombuffer(frame, kind)[: int(shape[0] * shape[1])].reshape(int(shape[0]), int(shape[1]))
        return _grey(np.nan_to_num(floats.astype(np.float64)), document, number, options, signed=True)
    image = ImagePixel.from_document(document)
    if image.photometric_interpretation == "YBR_PARTIAL_422" and transfer_syntax in NATIVE:
        layout = replace(image, photometric_interpretation="YBR_FULL_422")
        return rgb_of_partial(decode(frame, layout, transfer_syntax).pixels)
    decoded = decode(frame, image, transfer_syntax)
    if decoded.image.samples_per_pixel == 3:
        return _colour(decoded.pixels, decoded.image)
    if image.photometric_interpretation == "PALETTE COLOR":
        return _by_table(decoded.pixels, lambda values: _palette(values, document))
    grey = _grey(decoded.pixels, document, number, options, image.pixel_representation == 1)
    if (
        value_of(document, "00089205", "") in ("COLOR", "MIXED")
        and len(values_of(document, _DESCRIPTOR)) == 3
    ):
        return _supplemented(grey, decoded.pixels, document)
    return grey


def _by_table(pixels: Array, mapping: Callable[[Array], Array]) -> Array:
    """``mapping`` of every pixel; of every value there may be, where these are few."""
    import numpy as np

    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return mapping(pixels)
    unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
    values = np.arange(2 ** (8 * pixels.dtype.itemsize), dtype=unsigned.dtype).view(pixels.dtype)
    return np.array(mapping(values)[unsigned])


def _colour(pixels: Array, image: ImagePixel) -> Array:
    import numpy as np
    from pydicom.pixels import convert_color_space

    if image.bits_stored > 8:
        pixels = pixels >> (image.bits_stored - 8)
    pixels = pixels.astype(np.uint8)
    colour = image.photometric_interpretation
    if colour == "YBR_FULL":
        return np.array(convert_color_space(pixels, "YBR_FULL", "RGB"))
    if colour != "RGB":
        raise ValueError(f"Images of PhotometricInterpretation {colour[:16]} are not rendered.")
    return np.array(pixels)


def _supplemented(grey: Array, values: Array, document: Json) -> Array:
    """Grey up to the first value that the supplemental palette maps, and its colours from there on
    (PS3.3 §C.7.6.19)."""
    import numpy as np

    coloured = values >= _first_mapped(document, signed=values.dtype.kind == "i")
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    if coloured.any():
        pixels[coloured] = _palette(values[coloured], document)
    return np.array(pixels)


def _first_mapped(document: Json, signed: bool) -> int:
    first = int(values_of(document, _DESCRIPTOR)[1])
    return first - 65536 if signed and first > 32767 else first


def _palette(values: Array, document: Json) -> Array:
    import numpy as np
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.pixels import apply_color_lut

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT_LE  # the byte order of segments
    for red in (0x00281101, 0x00281102, 0x00281103):
        count, _, bits = (int(v) & 0xFFFF for v in values_of(document, f"{red:08X}"))
        ds.add_new(red, "US", [count, 0, bits])
    for tag in _PALETTES:
        if tag in document:
            ds.add_new(int(tag, 16), "OW", _binary(document[tag]))
    first = _first_mapped(document, signed=values.dtype.kind == "i")
    colours = apply_color_lut(np.maximum(values.astype(np.int64) - first, 0), ds)
    bits = ds[0x00281101].value[2]
    return np.array((colours >> 8 if bits > 8 else colours).astype(np.uint8))


# --- grey --------------------------------------------------------------------------------------------


def _grey(pixels: Array, document: Json, number: int, options: Options, signed: bool) -> Array:
    import numpy as np

    modality = _modality(document, number, signed)
    function = _window(document, number, options)
    voi = None if options.window else next(iter(_items(document, "00283010")), None)
    bounds = (0.0, 1.0)
    if function is None and voi is None:
        low, high = _extremes(pixels, document)
        ends = modality(np.array([low, high]))
        bounds = (float(ends.min()), float(ends.max()))
    inverted = _inverted(document)

    def mapping(values: Array) -> Array:
        shades = modality(values)
        if voi is not None:
            shades = _lookup(shades, voi, signed) / (2 ** min(int(values_of(voi, "00283002")[2]), 16) - 1)
        elif function is not None:
            shades = _windowed(shades, function)
        else:
            shades = (shades - bounds[0]) / max(bounds[1] - bounds[0], 1e-12)
        grey = np.rint(np.clip(shades, 0, 1) * 255).astype(np.uint8)
        return 255 - grey if inverted else grey

    return _by_table(pixels, mapping)


def _extremes(pixels: Array, document: Json) -> tuple[float, float]:
    """The least and the greatest value but for padding."""
    padding = values_of(document, "00280120")
    if padding and isinstance(padding[0], int):
        kept = pixels[pixels != padding[0]]
        pixels = kept if kept.size else pixels
    return float(pixels.min()), float(pixels.max())


def _modality(document: Json, number: int, signed: bool) -> Callable[[Array], Array]:
    import numpy as np

    lut = next(iter(_items(document, "00283000")), None)
    if lut is not None:
        return lambda values: _lookup(values.astype(np.float64), lut, signed)
    source = _functional_group(document, number, "00289145") or document
    slope, intercept = _number(source, "00281053", 1), _number(source, "00281052", 0)
    return lambda values: values.astype(np.float64) * slope + intercept


def _window(document: Json, number: int, options: Options) -> Window | None:
    if options.window is not None:
        return options.window
    source = _functional_group(document, number, "00289132") or document
    width = _number(source, "00281051", 0)
    if "00281050" not in source or width <= 0:
        return None
    function = str(value_of(source, "00281056", "LINEAR"))
    if function not in WINDOW_FUNCTIONS or (function == "LINEAR" and width < 1):
        function = "LINEAR_EXACT" if width < 1 else "LINEAR"
    return Window(_number(source, "00281050", 0), width, function)


def _windowed(values: Array, window: Window) -> Array:
    """From 0 to 1 within the window (PS3.3 §C.11.2.1.2 and §C.11.2.1.3)."""
    import numpy as np

    centre, width = window.centre, window.width
    if window.function == "SIGMOID":
        return np.array(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500))))
    if window.function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return np.array((values > centre - 0.5).astype(np.float64))
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _lookup(values: Array, lut: Json, signed: bool) -> Array:
    """``values`` through an item of the Modality or VOI LUT Sequence (PS3.3 §C.11.1.1)."""
    import numpy as np

    count, first, _ = (int(value) for value in values_of(lut, "00283002"))
    count = count & 0xFFFF or 65536
    first = first - 65536 if signed and first > 32767 else first
    element = lut[_LUT_DATA]
    if "Value" in element:
        data = np.array(element["Value"], dtype=np.float64)
    else:
        raw = _binary(element)
        data = np.frombuffer(raw[: len(raw) // 2 * 2], "u1" if len(raw) <= count + 1 else "<u2")
    if not data.size:
        raise ValueError("A lookup table of the image is empty.")
    indexes = np.clip(values - first, 0, min(count, data.size) - 1).astype(np.int64)
    return np.array(data[indexes].astype(np.float64))


def _inverted(document: Json) -> bool:
    shape = value_of(document, "20500020", "")
    if shape in ("IDENTITY", "INVERSE"):
        return bool(shape == "INVERSE")
    return bool(value_of(document, "00280004", "") == "MONOCHROME1")


# --- overlays and the viewport -----------------------------------------------------------------------


def _draw_overlays(pixels: Array, document: Json, number: int) -> None:
    """Graphics of the overlay planes in white (PS3.3 §C.9.2)."""
    import numpy as np

    for group in range(0, 2 * _MOST_OVERLAYS, 2):
        prefix = f"60{group:02X}"
        element = document.get(prefix + "3000")
        if not element or value_of(document, prefix + "0040", "") != "G":
            continue
        rows, columns = int(_number(document, prefix + "0010", 0)), int(_number(document, prefix + "0011", 0))
        frames = int(_number(document, prefix + "0015", 1))
        index = number - int(_number(document, prefix + "0051", 1)) if prefix + "0015" in document else 0
        size = rows * columns
        raw = np.frombuffer(_binary(element), np.uint8)
        if not 0 <= index < frames or size <= 0 or (index + 1) * size > raw.size * 8:
            continue
        first = index * size // 8
        bits = np.unpackbits(raw[first : ((index + 1) * size + 7) // 8], bitorder="little")
        drop = index * size - first * 8
        plane = bits[drop : drop + size].reshape(rows, columns).astype(bool)
        origin = [int(v) for v in values_of(document, prefix + "0050")] or [1, 1]
        top, left = origin[0] - 1, origin[1] - 1
        plane = plane[max(0, -top) :, max(0, -left) :]
        target = pixels[max(0, top) :, max(0, left) :]
        height, width = min(plane.shape[0], target.shape[0]), min(plane.shape[1], target.shape[1])
        target[:height, :width][plane[:height, :width]] = 255


def _in_viewport(pixels: Array, viewport: Viewport | None) -> Array:
    """The region of the viewport, scaled to fit with its proportions."""
    import numpy as np
    from PIL import Image

    if viewport is None:
        return pixels
    left, top, width, height = viewport.region
    width, height = width or pixels.shape[1] - left, height or pixels.shape[0] - top
    right, bottom = min(left + abs(width), pixels.shape[1]), min(top + abs(height), pixels.shape[0])
    part = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    if not part.size or right <= left or bottom <= top:
        raise EmptyRegion("The viewport's region lies outside the image.")
    part = part[:: -1 if height < 0 else 1, :: -1 if width < 0 else 1]
    scale = min(viewport.width / part.shape[1], viewport.height / part.shape[0])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.array(image.resize(size, Image.Resampling.BILINEAR))


def within(region: Region, options: Options, document: Json) -> Options:
    """The options with the region in pixels, which scales to fit rows and columns (PS3.18 §9.1.2.2.5)."""
    height, width = value_of(document, "00280010", 0), value_of(document, "00280011", 0)
    left, top, right, bottom = region
    pixels = left * width, top * height, (right - left) * width, (bottom - top) * height
    size = options.viewport or Viewport(max(1, round(pixels[2])), max(1, round(pixels[3])))
    return replace(options, viewport=replace(size, region=pixels))


def thumbnail_options(options: Options, side: int) -> Options:
    """The options with a viewport of ``side`` pixels where none is asked for."""
    return options if options.viewport else replace(options, viewport=Viewport(side, side))


# --- attributes --------------------------------------------------------------------------------------


def _items(document: Json, tag: str) -> list[Json]:
    return [item for item in values_of(document, tag) if isinstance(item, Mapping) and item]


def _number(document: Json, tag: str, default: float) -> float:
    try:
        return float(value_of(document, tag, default))
    except (TypeError, ValueError):
        return default


def _functional_group(document: Json, number: int, tag: str) -> Json | None:
    """The item of a functional group macro that holds for a frame (PS3.3 §C.7.6.16)."""
    per_frame = values_of(document, "52009230")
    places = per_frame[number - 1 : number] + values_of(document, "52009229")[:1]
    for place in places:
        items = _items(place, tag) if isinstance(place, Mapping) else []
        if items:
            return items[0]
    return None


def _binary(element: Json) -> bytes:
    if _BYTES in element:
        return bytes(element[_BYTES])
    if "Value" in element:
        return b"".join(int(value).to_bytes(2, "little") for value in element["Value"])
    try:
        return base64.b64decode(element.get("InlineBinary", ""))
    except binascii.Error:
        return b""
