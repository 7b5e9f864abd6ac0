"""Changing elements of a file and leaving every other byte of it as it is.

Elements are walked over, not decoded. What follows the last element that changes is not even looked at, so
that it may stay where it is in storage. Only where a new text does not fit the file's character set are
all texts rewritten, in UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from shared.dicom import convert
from shared.dicom.changes import SPECIFIC_CHARACTER_SET, Element, Unencodable, encode
from shared.dicom.json_model import CharacterSet
from shared.dicom.part10 import DEPTH_LIMIT, KNOWN_VRS, LONG_VRS, looks_like_vr
from shared.dicom.transfer_syntaxes import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
UTF_8 = "ISO_IR 192"


class Incomplete(Exception):
    """More bytes of the data set are needed."""


@dataclass(frozen=True, slots=True)
class Edited:
    """The first ``consumed`` bytes of a data set, as they are now."""

    data: bytes
    consumed: int


@dataclass(frozen=True, slots=True)
class _Span:
    """Where an element lies: its header begins at ``start``, its value at ``value``."""

    tag: int
    start: int
    value: int
    stop: int


def edit(data: bytes, complete: bool, syntax: str, changes: Sequence[Element], thorough: bool) -> Edited:
    """Change elements of the data set that begins with ``data``; ``complete`` says that it is all there is
    before pixel data.

    ``thorough`` looks at all of it, for a data set whose elements are not in order. Raises Incomplete,
    Unencodable where a text does not fit the character set, and ValueError where elements cannot be told
    apart.
    """
    walk = _Walk(data, complete, syntax)
    last = None if thorough else max(change.tag for change in changes)
    spans, consumed = walk.elements(max(last, SPECIFIC_CHARACTER_SET) if last is not None else None)
    edits = encode(changes, walk.encoding, _characters(data, spans))
    groups = {tag >> 16 for tag in edits}
    waiting = sorted(edits, reverse=True)
    out: list[bytes] = []
    for span in spans:
        while waiting and waiting[-1] < span.tag:
            out.append(edits[waiting.pop()])
        if span.tag in edits:
            if waiting and waiting[-1] == span.tag:
                out.append(edits[waiting.pop()])
        elif span.tag & 0xFFFF or span.tag >> 16 not in groups:  # a group's length would be wrong
            out.append(data[span.start : span.stop])
    out += (edits[tag] for tag in reversed(waiting))
    return Edited(b"".join(out), consumed)


def edit_whole(data: bytes, syntax: str, changes: Sequence[Element], thorough: bool = False) -> bytes:
    """Change elements of the data set ``data``, pixel data included. Raises ValueError."""
    try:
        edited = edit(data, True, syntax, changes, thorough)
    except Unencodable:
        spans, _ = _Walk(data, True, syntax).elements(None)
        pixels = next((span for span in spans if span.tag in _PIXELS), None)
        start, stop = (pixels.start, pixels.stop) if pixels else (len(data), len(data))
        before, after = in_utf_8(data[:start], data[stop:], syntax, changes)
        return before + data[start:stop] + after
    return edited.data + data[edited.consumed :]


def _characters(data: bytes, spans: Sequence[_Span]) -> CharacterSet:
    for span in spans:
        if span.tag == SPECIFIC_CHARACTER_SET:
            text = data[span.value : span.stop].decode("latin-1").rstrip(" \0")
            return CharacterSet([term.strip(" ") for term in text.split("\\")])
    return CharacterSet([])


def in_utf_8(before: bytes, after: bytes, syntax: str, changes: Sequence[Element]) -> tuple[bytes, bytes]:
    """All that is ``before`` and ``after`` pixel data with its elements changed and its texts in UTF-8.

    What was not legal in its character set becomes what the metadata have shown for it. Raises ValueError
    where elements cannot be told apart.
    """
    encoding = _Walk(before, True, syntax).encoding
    try:
        edits = encode(changes, encoding, CharacterSet([UTF_8]))
    except Unencodable as error:
        raise ValueError("A text cannot be encoded in UTF-8.") from error
    edits[SPECIFIC_CHARACTER_SET] = convert.element(SPECIFIC_CHARACTER_SET, "CS", UTF_8.encode(), encoding)
    converter = convert.Converter(encoding, encoding, edits, to_utf_8=True)
    return converter.convert(before), converter.convert(after) if after else b""


class _Walk:
    """Walks over the elements of a data set, as the parser reads them."""

    def __init__(self, data: bytes, complete: bool, syntax: str) -> None:
        self._data = data
        self._complete = complete
        self._order = ">" if syntax == EXPLICIT_BE else "<"
        self._implicit = len(data) >= 8 and data[4:6] not in KNOWN_VRS  # whatever the file declares

    @property
    def encoding(self) -> str:
        """The native syntax that has the encoding the elements really are in. Raises ValueError."""
        if self._implicit and self._order == ">":
            raise ValueError("The data set is in Implicit VR Big Endian, which no transfer syntax has.")
        if self._implicit:
            return IMPLICIT_LE
        return EXPLICIT_BE if self._order == ">" else EXPLICIT_LE

    def elements(self, last: int | None) -> tuple[list[_Span], int]:
        """The elements up to the first whose tag is above ``last``, and where that begins."""
        found: list[_Span] = []
        position = 0
        while self._has(position, 8):
            tag, value, length = self._header(position)
            if (last is not None and tag > last) or tag == 0:  # zeros pad the file
                return found, position
            stop = self._end(tag, value, length)
            found.append(_Span(tag, position, value, stop))
            position = stop
        return found, position

    def _has(self, position: int, count: int) -> bool:
        """Whether ``count`` bytes are there; False at the end of the data set. Raises Incomplete."""
        if position + count <= len(self._data):
            return True
        if not self._complete:
            raise Incomplete
        return False

    def _need(self, position: int, count: int) -> None:
        if not self._has(position, count):
            raise ValueError("The data set ends within an element.")

    def _header(self, position: int) -> tuple[int, int, int]:
        """Tag, where the value begins, and its length."""
        self._need(position, 8)
        data, order = self._data, self._order
        group, number = struct.unpack_from(order + "HH", data, position)
        tag = group << 16 | number
        code = data[position + 4 : position + 6]
        if group != 0xFFFE and not self._implicit:
            if code in KNOWN_VRS and code not in LONG_VRS:
                return tag, position + 8, struct.unpack_from(order + "H", data, position + 6)[0]
            if code in LONG_VRS or looks_like_vr(code):
                self._need(position, 12)
                return tag, position + 12, struct.unpack_from(order + "I", data, position + 8)[0]
        return tag, position + 8, struct.unpack_from(order + "I", data, position + 4)[0]

    def _end(self, tag: int, value: int, length: int, depth: int = 0) -> int:
        if length != _UNDEFINED:
            self._need(value, length)
            return value + length
        if depth >= DEPTH_LIMIT:
            raise ValueError("Sequences are nested too deep.")
        return self._end_of_items(value, depth, self._data[value - 8 : value - 6] == b"UN")

    def _end_of_items(self, position: int, depth: int, foreign: bool) -> int:
        """Where a sequence (or encapsulated value) of undefined length ends, behind its delimiter."""
        outer = self._implicit, self._order
        if foreign and not self._implicit:  # PS3.5 §6.2.2: Implicit VR Little Endian within
            self._implicit, self._order = True, "<"
        while True:
            tag, position, length = self._header(position)
            if tag == _SEQUENCE_END:
                self._implicit, self._order = outer
                return position
            if tag != _ITEM:
                raise ValueError("A sequence holds something that is no item.")
            if length != _UNDEFINED:
                self._need(position, length)
                position += length
                continue
            while True:
                tag, value, length = self._header(position)
                if tag == _ITEM_END:
                    position = value
                    break
                position = self._end(tag, value, length, depth + 1)
