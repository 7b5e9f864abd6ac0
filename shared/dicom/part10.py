"""A push parser for DICOM Part 10 files (PS3.10 §7, PS3.5 §7 and Annex A).

Bytes go in as they arrive; what comes out is everything the server keeps about an instance: its
metadata as DICOM JSON text, the values to index, where bulk data and frames lie in the file, and what
is wrong with it. Pixel data and other large values are skipped over, never held, so memory is bounded
by the metadata whatever the size of the file.

    parser = Part10Parser()
    for chunk in chunks:
        parser.feed(chunk)
    instance = parser.close()
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from shared.dicom import failure_reasons, json_model
from shared.dicom.attributes import ATTRIBUTES, Level
from shared.dicom.frames import FrameIndex, begins_codestream, index_encapsulated, index_native
from shared.dicom.identifiers import is_uid
from shared.dicom.json_model import BINARY_VRS, CharacterSet, Encoded
from shared.dicom.transfer_syntaxes import EXPLICIT_BE, IMPLICIT_LE, is_deflated, is_video
from shared.errors import InvalidInstance

INLINE_BINARY = 32 * 1024
"""Binary values up to this many bytes are InlineBinary in the metadata, larger ones BulkDataURI: a
512 x 512 overlay plane and private scalars stay inline, look-up tables and pixel data do not."""

INLINE_TEXT = 256 * 1024
"""Values of other VRs up to this many bytes are in the metadata, larger ones BulkDataURI."""

META_LIMIT = 512 * 1024
"""Where the file meta information must have ended; it takes a few hundred bytes."""

METADATA_LIMIT = 96 * 1024 * 1024
"""Bytes of metadata one instance may have, what Python needs to hold them included; more is refused rather
than held in memory."""

INFLATED_LIMIT = 2 * 1024**3
"""Bytes a deflated data set may inflate to. A request of 100 MB could hold 100 GB, which would keep a
worker busy for minutes."""

DEPTH_LIMIT = 64
"""Sequences within sequences; deeper nesting is refused."""

BULKDATA_PREFIX = '"BulkDataURI":"/'
"""How a BulkDataURI begins in a stored document; the rest is the path of the bulk data. It becomes an
absolute URL when the document is served (a quote inside a JSON string is always escaped, so this text
occurs nowhere else)."""

_UNDEFINED = 0xFFFFFFFF
_INFLATE_STEP = 1 << 20
_HELD_VALUE = 150  # bytes Python needs to keep one value besides its text
_HELD_BULKDATA = 400
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
KNOWN_VRS = {vr: vr.decode() for vr in LONG_VRS | _SHORT_VRS}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009
_PIXELS = frozenset({_PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_PIXEL_DATA})
_TRAILING_PADDING = 0xFFFCFFFC
_EXTENDED_OFFSET, _EXTENDED_OFFSET_LENGTHS = 0x7FE00001, 0x7FE00002
_EXTENDED_OFFSETS = frozenset({_EXTENDED_OFFSET, _EXTENDED_OFFSET_LENGTHS})
_SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION = 0x00080005, 0x00280103
_SCOPED = frozenset({_SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION})
_TAG = {order: struct.Struct(order + "HH").unpack_from for order in "<>"}
_SHORT = {order: struct.Struct(order + "H").unpack_from for order in "<>"}
_LONG = {order: struct.Struct(order + "I").unpack_from for order in "<>"}
_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_PATIENT_ID = 0x00100020
_IDENTITY = {
    _SOP_CLASS: "SOPClassUID",
    _SOP_INSTANCE: "SOPInstanceUID",
    _STUDY: "StudyInstanceUID",
    _SERIES: "SeriesInstanceUID",
}
_IMAGE = {
    0x00280002: "samples_per_pixel",
    0x00280004: "photometric_interpretation",
    0x00280008: "number_of_frames",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
}

Steps = Generator[None, None, Any]


@dataclass(frozen=True, slots=True)
class Warned:
    """An attribute that breaks its VR: tag ``GGGGEEEE`` and what is wrong, in one sentence."""

    tag: str
    message: str


@dataclass(frozen=True, slots=True)
class BulkData:
    """Where a value given by BulkDataURI lies: bytes of the data set's stream.

    Offsets count from the start of the file, or of the inflated data set in a deflated syntax;
    ``encapsulated`` says that the range holds items instead of plain bytes (PS3.5 §A.4).
    """

    path: str
    vr: str
    offset: int
    length: int
    encapsulated: bool = False


@dataclass(slots=True)
class ParsedInstance:
    """What a file says. Lists and dictionaries are not shared with the parser."""

    size: int = 0
    preamble_is_zero: bool = True
    transfer_syntax: str = ""
    media_storage_sop_class: str = ""
    media_storage_sop_instance: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    patient_id: str | None = None
    document: bytes = b""
    attributes: dict[Level, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    bulkdata: list[BulkData] = field(default_factory=list)
    frames: FrameIndex = field(default_factory=FrameIndex)
    warnings: list[Warned] = field(default_factory=list)


class _Scope:
    """What holds within one data set or item and is inherited by its items."""

    __slots__ = ("characters", "creators", "pixel_representation")

    def __init__(self, parent: _Scope | None = None) -> None:
        self.characters: CharacterSet = parent.characters if parent else _DEFAULT_CHARACTERS
        self.pixel_representation: int = parent.pixel_representation if parent else 0
        self.creators: dict[int, str] = {}


_DEFAULT_CHARACTERS = CharacterSet([])


class Part10Parser:
    """Parses one file; see the module's docstring. Raises InvalidInstance from ``feed`` and ``close``."""

    def __init__(self) -> None:
        self.result = ParsedInstance()
        self._buffer = b""
        self._position = 0
        self._base = 0  # offset of the buffer's first byte in the data set's stream
        self._to_skip = 0
        self._ended = False
        self._done = False
        self._inline = 0
        self._implicit = False
        self._order = "<"
        self._inflate: Any = None
        self._deflated = b""  # the first bytes of a deflated data set, on their way to be inflated
        self._inflated = 0
        self._out: dict[int, str] = {}
        self._image: dict[str, str] = {}
        self._pixels: tuple[int, int, Fragments | None] | None = None
        self._extended_offsets: list[bytes] = [b"", b""]
        self._expected: tuple[BulkData, FrameIndex] | None = None
        self.repeated: set[int] = set()
        """Tags that occur twice in the data set itself; the last counts."""
        self._steps = self._file()

    # --- feeding -----------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        self.result.size += len(chunk)
        if self._inflate is None:
            self._push(chunk)
            chunk, self._deflated = self._deflated, b""
        while chunk and self._inflate is not None and not self._inflate.eof:
            try:
                data = self._inflate.decompress(chunk, _INFLATE_STEP)
            except zlib.error as error:
                raise invalid("The deflated data set is corrupt.") from error
            chunk = self._inflate.unconsumed_tail
            self._inflated += len(data)
            if self._inflated > INFLATED_LIMIT:
                raise InvalidInstance(
                    f"The deflated data set is larger than the {INFLATED_LIMIT >> 30} GiB the server takes.",
                    failure_reasons.PROCESSING_FAILURE,
                )
            self._push(data)

    def _push(self, chunk: bytes) -> None:
        if self._to_skip:
            skipped = min(self._to_skip, len(chunk))
            self._to_skip -= skipped
            self._base += skipped
            if skipped == len(chunk):
                return
            chunk = chunk[skipped:]
        if self._position < len(self._buffer):
            self._base += self._position
            self._buffer = self._buffer[self._position :] + chunk
        else:
            self._base += len(self._buffer)
            self._buffer = chunk
        self._position = 0
        self._advance()

    def _advance(self) -> None:
        if self._done:
            return
        try:
            next(self._steps)
        except StopIteration:
            self._done = True

    def close(self) -> ParsedInstance:
        """The file is complete: check and return the instance."""
        if self._inflate is not None:
            self._push(self._inflate.flush())
            if not self._inflate.eof:
                raise invalid("The deflated data set is truncated.")
        self._ended = True
        self._advance()
        if self._to_skip:
            raise invalid("The file ends before the value of its last element.")
        return self._finish()

    def expect_pixel_data(self, pixels: BulkData, frames: FrameIndex) -> None:
        """The caller knows the pixel data and its ``frames`` in this file, and will :meth:`pass_over` it."""
        self._expected = pixels, frames

    def pass_over(self) -> None:
        """Go on behind the expected pixel data, whose element's header and first bytes were fed last."""
        if self._expected is None or not self._to_skip:
            raise invalid("The pixel data is not where it was.")
        self.result.size += self._to_skip
        self._base += self._to_skip
        self._to_skip = 0

    @property
    def identity_known(self) -> bool:
        """Whether the three identifying UIDs have been read."""
        return len(self.result.identity) == len(_IDENTITY)

    # --- reading -----------------------------------------------------------------------------------

    def _offset(self) -> int:
        return self._base + self._position

    def _have(self, count: int) -> Generator[None, None, bool]:
        """Wait until ``count`` bytes are buffered; False where the file ends before."""
        while len(self._buffer) - self._position < count:
            if self._ended:
                return False
            yield
        return True

    def _take(self, count: int) -> Generator[None, None, bytes]:
        if len(self._buffer) - self._position < count and not (yield from self._have(count)):
            raise invalid("The file ends before the value of its last element.")
        start = self._position
        self._position = start + count
        return self._buffer[start : start + count]

    def _skip(self, count: int) -> Steps:
        there = min(count, len(self._buffer) - self._position)
        self._position += there
        self._to_skip = count - there
        if self._to_skip:
            self._base += len(self._buffer)
            self._buffer, self._position = b"", 0
            yield

    # --- the file ----------------------------------------------------------------------------------

    def _file(self) -> Steps:
        if not (yield from self._have(132)):
            raise invalid("The file is no DICOM Part 10 file: it is shorter than preamble and prefix.")
        head = yield from self._take(132)
        if head[128:] != b"DICM":
            raise invalid("The file is no DICOM Part 10 file: the prefix DICM is missing.")
        self.result.preamble_is_zero = not any(head[:128])
        yield from self._file_meta()
        syntax = self.result.transfer_syntax
        if not is_uid(syntax):
            raise invalid("TransferSyntaxUID (0002,0010) is missing or malformed.")
        if is_deflated(syntax):
            self._begin_inflating()
        self._order = ">" if syntax == EXPLICIT_BE else "<"
        self._implicit = syntax == IMPLICIT_LE
        yield from self._guess_vr_encoding()
        yield from self._elements(None, 0, self._out, _Scope(), "")

    def _file_meta(self) -> Steps:
        while (yield from self._have(8)):
            group, element, vr, length = struct.unpack_from("<HH2sH", self._buffer, self._position)
            if group != 0x0002:
                return
            header = 8
            if vr in LONG_VRS:
                if not (yield from self._have(12)):
                    break
                (length,) = struct.unpack_from("<I", self._buffer, self._position + 8)
                header = 12
            elif vr not in _SHORT_VRS:
                raise invalid("The file meta information is not in Explicit VR Little Endian.")
            if self._offset() + header + length > META_LIMIT:
                raise invalid(f"The file meta information is longer than {META_LIMIT // 2**10} KiB.")
            yield from self._take(header)
            value = yield from self._take(length)
            text = value.rstrip(b" \0").decode("latin-1")
            if element == 0x0010:
                self.result.transfer_syntax = text
            elif element == 0x0002:
                self.result.media_storage_sop_class = text
            elif element == 0x0003:
                self.result.media_storage_sop_instance = text

    def _begin_inflating(self) -> None:
        """From here on offsets count in the inflated data set, which :meth:`feed` makes piece by piece."""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._deflated = self._buffer[self._position :]
        self._buffer, self._position, self._base = b"", 0, 0

    def _guess_vr_encoding(self) -> Steps:
        """Some writers declare one VR encoding and use the other; the first element tells."""
        if not (yield from self._have(8)):
            return
        looks_explicit = self._buffer[self._position + 4 : self._position + 6] in KNOWN_VRS
        self._implicit = not looks_explicit

    # --- data sets ---------------------------------------------------------------------------------

    def _elements(self, end: int | None, depth: int, out: dict[int, str], scope: _Scope, path: str) -> Steps:
        """The elements of a data set or item up to ``end`` (None: up to a delimiter, or the file's end)."""
        while True:
            if end is not None and self._base + self._position >= end:
                if self._base + self._position > end:
                    raise invalid("An element reaches beyond the item that holds it.")
                return
            if len(self._buffer) - self._position < 12 and not (yield from self._have(12)):
                left = len(self._buffer) - self._position
                if left < 8 and depth == 0 and not any(self._buffer[self._position :]):
                    return  # the end, or a little padding
                if left < 8:
                    raise invalid("The file ends within an element's header.")
            group, number = _TAG[self._order](self._buffer, self._position)
            tag = group << 16 | number
            if group == 0xFFFE:
                if tag == _ITEM_END and depth and end is None:
                    self._position += 8
                    return
                raise invalid(f"The item or delimiter {_name(tag)} stands where none belongs.")
            if tag == 0 and depth == 0 and (yield from self._only_zeros_left()):
                return
            if tag in out and not depth:
                self.repeated.add(tag)
            vr, length, implicit = self._header(tag, scope)
            if length > INLINE_BINARY or vr == "SQ" or (tag in _PIXELS and not depth):
                yield from self._large(tag, vr, length, implicit, depth, out, scope, path)
                continue
            start = self._position
            stop = start + length
            if stop <= len(self._buffer):
                raw = self._buffer[start:stop]
                self._position = stop
            else:
                raw = yield from self._take(length)
            self._value(tag, vr, raw, depth, out, scope, path)

    def _only_zeros_left(self) -> Generator[None, None, bool]:
        """Whether the file is padded with zeros up to its end (some archives pad to a block)."""
        while self._buffer.count(0, self._position) == len(self._buffer) - self._position:
            if self._ended:
                return True
            self._base += len(self._buffer)
            self._buffer, self._position = b"", 0
            yield
        raise invalid("The data set is followed by bytes that are no element.")

    def _header(self, tag: int, scope: _Scope) -> tuple[str, int, bool]:
        """VR, length and whether the value is encoded in Implicit VR; moves past the header."""
        if not self._implicit:
            code = self._buffer[self._position + 4 : self._position + 6]
            vr = KNOWN_VRS.get(code, "")
            if vr and code not in LONG_VRS:
                (length,) = _SHORT[self._order](self._buffer, self._position + 6)
                self._position += 8
                return vr, length, False
            if vr or looks_like_vr(code):
                if len(self._buffer) - self._position < 12:
                    raise invalid("The file ends within an element's header.")
                (length,) = _LONG[self._order](self._buffer, self._position + 8)
                self._position += 12
                vr = vr or "UN"
                if vr == "UN" and length < _UNDEFINED:
                    vr = self._known_instead_of_un(tag, length, scope)
                return vr, length, False
        (length,) = _LONG[self._order](self._buffer, self._position + 4)
        self._position += 8
        vr = implicit_vr(tag, scope.creators.get(private_block(tag), ""), scope.pixel_representation)
        return vr, length, True

    def _known_instead_of_un(self, tag: int, length: int, scope: _Scope) -> str:
        """The dictionary's VR for a short element that some gateway wrote as UN (PS3.5 §6.2.2)."""
        if length > 0xFFFE or self._order == ">":
            return "UN"
        vr = implicit_vr(tag, scope.creators.get(private_block(tag), ""), scope.pixel_representation)
        return "UN" if vr in BINARY_VRS else vr

    def _large(
        self,
        tag: int,
        vr: str,
        length: int,
        implicit: bool,
        depth: int,
        out: dict[int, str],
        scope: _Scope,
        path: str,
    ) -> Steps:
        """A sequence, pixel data, or a value that may be too large for the metadata."""
        if tag in _PIXELS and depth == 0:
            yield from self._pixel_data(tag, vr, length, out)
            return
        if length == _UNDEFINED and vr in ("OB", "OW") and not implicit:
            yield from self._encapsulated_value(tag, vr, out, path)
            return
        if vr == "SQ" or length == _UNDEFINED:
            # A UN of undefined length is a sequence in Implicit VR Little Endian (PS3.5 §6.2.2).
            foreign = vr != "SQ" and not implicit
            if foreign and vr != "UN":
                raise invalid(f"The element {_name(tag)} of VR {vr} has undefined length.")
            yield from self._sequence(tag, length, foreign, depth, out, scope, path)
            return
        if tag in _EXTENDED_OFFSETS and length <= METADATA_LIMIT // 4:
            self._count(length)
            self._extended_offsets[tag == _EXTENDED_OFFSET_LENGTHS] = yield from self._take(length)
            out[tag] = self._bulk(tag, vr, self._offset() - length, length, path)
            return
        if vr in BINARY_VRS or length > INLINE_TEXT:
            out[tag] = self._bulk(tag, vr, self._offset(), length, path)
            yield from self._skip(length)
            return
        raw = yield from self._take(length)
        self._value(tag, vr, raw, depth, out, scope, path)

    def _value(
        self, tag: int, vr: str, raw: bytes, depth: int, out: dict[int, str], scope: _Scope, path: str
    ) -> None:
        """A value that is part of the metadata."""
        if tag & 0xFFFF == 0:
            return  # group lengths are retired and say nothing
        if tag in _EXTENDED_OFFSETS:
            self._extended_offsets[tag == _EXTENDED_OFFSET_LENGTHS] = raw
        value = json_model.encode(vr, raw, self._order, scope.characters)
        out[tag] = text = f'"{tag:08X}":{{"vr":"{vr}"{value.json}}}'
        self._count(len(text) + _HELD_VALUE)
        if value.problem:
            self._warn(tag, value.problem, path)
        if depth == 0 or tag in _SCOPED or tag & 0x10000:
            self._note(tag, value, depth, scope)

    def _note(self, tag: int, value: Encoded, depth: int, scope: _Scope) -> None:
        """Keep what later elements, the frame index and the SQL index need."""
        if tag == _SPECIFIC_CHARACTER_SET:
            scope.characters = CharacterSet(value.text.split("\\"))
        elif tag == _PIXEL_REPRESENTATION:
            scope.pixel_representation = 1 if value.text == "1" else 0
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            scope.creators[tag] = value.text
        if depth:
            return
        if tag in _IDENTITY:
            self._identify(_IDENTITY[tag], value.text)
        elif tag in _IMAGE:
            self._image[_IMAGE[tag]] = value.text
        if tag == _PATIENT_ID:
            if value.problem:
                raise invalid(f"PatientID {_name(tag)} {value.problem}.")
            self.result.patient_id = value.text
        keyword = _searchable().get(tag)
        if keyword is not None and not value.problem and value.text:
            self.result.values[keyword] = value.text

    def _identify(self, keyword: str, uid: str) -> None:
        if self.result.identity.setdefault(keyword, uid) != uid:
            raise invalid(f"{keyword} occurs twice with different values.")

    def _sequence(
        self, tag: int, length: int, foreign: bool, depth: int, out: dict[int, str], scope: _Scope, path: str
    ) -> Steps:
        if depth >= DEPTH_LIMIT:
            raise invalid(f"Sequences are nested more than {DEPTH_LIMIT} deep.")
        outer = self._implicit, self._order
        if foreign:
            self._implicit, self._order = True, "<"
        end = None if length == _UNDEFINED else self._offset() + length
        count = 0
        texts = [f'"{tag:08X}":{{"vr":"SQ"']
        while end is None or self._offset() < end:
            header = yield from self._take(8)
            group, number, item_length = struct.unpack(self._order + "HHI", header)
            delimiter = group << 16 | number
            if delimiter == _SEQUENCE_END and end is None:
                break
            if delimiter != _ITEM:
                raise invalid(f"The sequence {_name(tag)} holds something that is no item.")
            item_end = None if item_length == _UNDEFINED else self._offset() + item_length
            inner: dict[int, str] = {}
            count += 1
            item_path = f"{path}{tag:08X}.{count}."
            yield from self._elements(item_end, depth + 1, inner, _Scope(scope), item_path)
            texts.append(
                (",{" if count > 1 else ',"Value":[{') + ",".join(inner[t] for t in sorted(inner)) + "}"
            )
            self._count(64 - _HELD_VALUE * len(inner))  # the item's values are one text now
        if end is not None and self._offset() > end:
            raise invalid(f"An item of {_name(tag)} reaches beyond its sequence.")
        self._implicit, self._order = outer
        texts.append("]}" if count else "}")
        out[tag] = "".join(texts)
        self._count(_HELD_VALUE)

    # --- bulk data and pixels ----------------------------------------------------------------------

    def _pixel_data(self, tag: int, vr: str, length: int, out: dict[int, str]) -> Steps:
        offset = self._offset()
        if self._expected is not None:
            known, _ = self._expected
            out[tag] = self._bulk(tag, known.vr, offset, known.length, "", known.encapsulated)
            yield from self._skip(known.length)
            return
        if length != _UNDEFINED:
            out[tag] = self._bulk(tag, vr, offset, length, "")
            self._pixels = offset, length, None
            yield from self._skip(length)
            return
        fragments = yield from self._fragments(tag)
        out[tag] = self._bulk(tag, "OB", offset, self._offset() - offset, "", encapsulated=True)
        self._pixels = offset, self._offset() - offset, fragments

    def _encapsulated_value(self, tag: int, vr: str, out: dict[int, str], path: str) -> Steps:
        offset = self._offset()
        yield from self._fragments(tag)
        out[tag] = self._bulk(tag, vr, offset, self._offset() - offset, path, encapsulated=True)

    def _fragments(self, tag: int) -> Generator[None, None, Fragments]:
        """Walk over the items of encapsulated data (PS3.5 §A.4)."""
        found = Fragments()
        first = True
        while True:
            header = yield from self._take(8)
            group, number, length = struct.unpack(self._order + "HHI", header)
            item = group << 16 | number
            if item == _SEQUENCE_END:
                return found
            if item != _ITEM or length == _UNDEFINED:
                raise invalid(f"The encapsulated value {_name(tag)} holds something that is no fragment.")
            if first and length <= METADATA_LIMIT // 4:
                found.basic_offsets = yield from self._take(length)
                self._count(length)
            else:
                found.offsets.append(self._offset())
                found.lengths.append(length)
                head = yield from self._take(min(4, length))
                found.begins.append(begins_codestream(head))
                self._count(24)
                yield from self._skip(length - len(head))
            first = False

    def _bulk(
        self, tag: int, vr: str, offset: int, length: int, path: str, encapsulated: bool = False
    ) -> str:
        full = f"{path}{tag:08X}"
        self.result.bulkdata.append(BulkData(full, vr, offset, length, encapsulated))
        self._count(_HELD_BULKDATA)
        if length == 0:
            return f'"{tag:08X}":{{"vr":"{vr}"}}'
        return f'"{tag:08X}":{{"vr":"{vr}",{BULKDATA_PREFIX}{full}"}}'

    # --- results -----------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self._inline += size
        if self._inline > METADATA_LIMIT:
            raise InvalidInstance(
                f"The metadata is larger than the {METADATA_LIMIT // 2**20} MiB the server takes.",
                failure_reasons.PROCESSING_FAILURE,
            )

    def _warn(self, tag: int, problem: str, path: str) -> None:
        top = int(path[:8], 16) if path else tag
        if len(self.result.warnings) < 100 and all(w.tag != f"{top:08X}" for w in self.result.warnings):
            where = f"{_name(tag)} within {_name(top)}" if path else _name(tag)
            self.result.warnings.append(Warned(f"{top:08X}", f"{where} {problem}."))

    def _finish(self) -> ParsedInstance:
        result = self.result
        for keyword in _IDENTITY.values():
            uid = result.identity.get(keyword, "")
            if not uid:
                raise invalid(f"{keyword} is missing.")
            if not is_uid(uid):
                raise invalid(f"{keyword} is not 1 to 64 letters, digits, '.' or '-'.")
        if result.patient_id is None:
            raise invalid("PatientID is missing.")
        result.attributes = self._level_attributes()
        result.document = self._document()
        result.frames = self._frame_index()
        return result

    def _document(self) -> bytes:
        """All values as one JSON object. Each text is let go when it is encoded: documents may be large."""
        pieces: list[bytes] = []
        for tag in sorted(self._out):
            pieces += b"," if pieces else b"{", self._out.pop(tag).encode()
        return b"".join([*pieces, b"}"])

    def _level_attributes(self) -> dict[Level, str]:
        """The attributes that searches return, a JSON object a level; large values are left out."""
        levels: dict[Level, list[str]] = {level: [] for level in Level}
        returned = _returned()
        for tag in sorted(returned.keys() & self._out.keys()):
            text = self._out[tag]
            if len(text) <= INLINE_BINARY:
                levels[returned[tag]].append(text)
        return {level: "{" + ",".join(texts) + "}" for level, texts in levels.items()}

    def _frame_index(self) -> FrameIndex:
        if self._expected is not None:
            return self._expected[1]
        if self._pixels is None:
            return FrameIndex()
        offset, length, fragments = self._pixels
        if fragments is None:
            frames, problem = index_native(self._image, offset, length)
        else:
            one = {"number_of_frames": "1"} if is_video(self.result.transfer_syntax) else {}
            frames, problem = index_encapsulated(self._image | one, fragments, self._extended_offsets)
        if problem:
            self._warn(_PIXEL_DATA, problem, "")
        return frames


class Fragments:
    """The fragments of encapsulated data.

    ``offsets`` of their bytes in the file and ``lengths``; ``begins`` has 1 where a codestream begins.
    """

    __slots__ = ("basic_offsets", "begins", "lengths", "offsets")

    def __init__(self) -> None:
        self.basic_offsets = b""
        self.offsets: array[int] = array("Q")
        self.lengths: array[int] = array("Q")
        self.begins = bytearray()


def invalid(message: str) -> InvalidInstance:
    """A file that breaks the format: failure reason 43264."""
    return InvalidInstance(message, failure_reasons.VALIDATION_FAILURE)


def _name(tag: int) -> str:
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"


def looks_like_vr(code: bytes) -> bool:
    """Whether ``code`` may be a VR of a later edition, which has a length of 32 bits (PS3.5 §7.1.2)."""
    return code.isalpha() and code.isupper()


def private_block(tag: int) -> int:
    """The tag of the private creator that owns a private element (PS3.5 §7.8.1)."""
    return (tag & 0xFFFF0000) | (tag & 0xFF00) >> 8


@cache
def _searchable() -> dict[int, str]:
    """What has a column, and the time zone, which date-times are indexed by."""
    return {
        int(a.tag, 16): a.keyword
        for a in ATTRIBUTES
        if (a.column and not a.computed) or a.keyword == "TimezoneOffsetFromUTC"
    }


@cache
def _returned() -> dict[int, Level]:
    return {int(a.tag, 16): a.level for a in ATTRIBUTES if not a.computed}


@lru_cache(maxsize=8192)
def implicit_vr(tag: int, creator: str, pixel_representation: int) -> str:
    """The VR of an element whose encoding does not give it."""
    if tag & 0xFFFF == 0:
        return "UL"
    if tag >> 16 & 1:
        if 0x10 <= tag & 0xFFFF <= 0xFF:
            return "LO"
        try:
            vr = private_dictionary_VR(tag, creator) if creator else "UN"
        except KeyError:
            return "UN"
    else:
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            return "UN"
    if " or " not in vr:
        return vr
    if vr.startswith("US or SS"):
        return "SS" if pixel_representation else "US"
    return "OW"
