"""Conversion of native data between Implicit VR, Explicit VR and Explicit VR Big Endian (PS3.5 §7, Annex A).

Headers of elements are rewritten and numbers byte-swapped; values are never decoded, so that a text in
a wrong character set or a malformed number is the same afterwards. Pixel data is left to the caller: it
streams by and is at most byte-swapped.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping

from shared.dicom.json_model import WITH_CHARACTER_SET, CharacterSet
from shared.dicom.part10 import (
    DEPTH_LIMIT,
    KNOWN_VRS,
    LONG_VRS,
    implicit_vr,
    looks_like_vr,
    private_block,
)
from shared.dicom.transfer_syntaxes import EXPLICIT_BE, IMPLICIT_LE

_TYPES = {2: "H", 4: "I", 8: "Q"}
_WORDS = (
    dict.fromkeys(("US", "SS", "OW", "AT"), 2)
    | dict.fromkeys(("UL", "SL", "FL", "OF", "OL"), 4)
    | dict.fromkeys(("FD", "OD", "UV", "SV", "OV"), 8)
)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_REPRESENTATION, _SPECIFIC_CHARACTER_SET = 0x00280103, 0x00080005


def meta_length(head: bytes) -> int:
    """Bytes of preamble, prefix and file meta information at the start of a Part 10 file."""
    position = 132
    while position + 8 <= len(head):
        group, _, vr, length = struct.unpack_from("<HH2sH", head, position)
        if group != 0x0002:
            break
        if vr in LONG_VRS:
            (length,) = struct.unpack_from("<I", head, position + 8)
            position += 4
        position += 8 + length
    return position


def with_transfer_syntax(header: bytes, target: str) -> bytes:
    """Preamble, prefix and file meta information ``header`` with TransferSyntaxUID ``target``."""
    uid = target.encode() + b"\0" * (len(target) % 2)
    elements: list[bytes] = []
    position = 132
    while position < len(header):
        _, element, vr, length = struct.unpack_from("<HH2sH", header, position)
        size = 8 + length
        if vr in LONG_VRS:
            size = 12 + int(struct.unpack_from("<I", header, position + 8)[0])
        if element == 0x0010:
            elements.append(struct.pack("<HH2sH", 2, 0x0010, b"UI", len(uid)) + uid)
        elif element != 0:
            elements.append(header[position : position + size])
        position += size
    content = b"".join(elements)
    return header[:132] + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(content)) + content


class Converter:
    """Rewrites the elements of one data set from the syntax ``source`` to ``target``.

    What lies before pixel data and what follows it are given one after the other. ``edits`` has elements of
    the data set itself, by tag and already encoded in ``target``, that replace or add to what is there, and
    empty bytes for what is left out. ``to_utf_8`` decodes texts after all: they become UTF-8, except those
    of items that name a character set of their own.
    """

    def __init__(
        self, source: str, target: str, edits: Mapping[int, bytes] | None = None, to_utf_8: bool = False
    ) -> None:
        self._to_utf_8 = to_utf_8
        self._edits = sorted((edits or {}).items(), reverse=True)
        self._order = ">" if source == EXPLICIT_BE else "<"
        self._implicit = source == IMPLICIT_LE
        self._target_order = ">" if target == EXPLICIT_BE else "<"
        self._target_implicit = target == IMPLICIT_LE
        self._scope = _Scope()
        self._begun = False

    def convert(self, elements: bytes) -> bytes:
        """Whole elements in the target syntax. Raises ValueError where they cannot be converted."""
        if not self._begun and len(elements) >= 8:  # some files are not in the syntax they declare
            self._implicit = elements[4:6] not in KNOWN_VRS
            self._begun = True
        try:
            converted, _ = self._elements(elements, 0, len(elements), self._scope, 0)
        except struct.error as error:
            raise ValueError("The data set ends within an element.") from error
        return converted + self._edits_before(_UNDEFINED)

    def _edits_before(self, tag: int) -> bytes:
        """Edits that come before ``tag`` and have not been made yet."""
        out: list[bytes] = []
        while self._edits and self._edits[-1][0] < tag:
            out.append(self._edits.pop()[1])
        return b"".join(out)

    def _elements(
        self, data: bytes, position: int, end: int | None, scope: _Scope, depth: int
    ) -> tuple[bytes, int]:
        """The elements up to ``end`` (None: up to an item's delimiter) and where they end."""
        out: list[bytes] = []
        while end is None or position < end:
            if depth == 0 and len(data) - position < 8:
                break  # padding, as the parser has seen
            group, number = struct.unpack_from(self._order + "HH", data, position)
            tag = group << 16 | number
            if end is None and tag == _ITEM_END:
                return b"".join(out), position + 8
            if tag == 0 and depth == 0:
                break  # padding
            vr, length, position, implicit = self._header(data, position, tag, scope)
            if depth == 0 and self._edits:
                out.append(self._edits_before(tag))
                if self._edits and self._edits[-1][0] == tag:
                    out.append(self._edits.pop()[1])
                    if length == _UNDEFINED:
                        foreign = vr == "UN" and not implicit
                        _, position = self._sequence(data, position, length, scope, depth, foreign)
                        continue
                    scope.note(tag, data[position : position + length], self._order)
                    position += length
                    continue
            if vr == "SQ" or (length == _UNDEFINED and vr == "UN"):
                foreign = vr == "UN" and not implicit
                items, position = self._sequence(data, position, length, scope, depth, foreign)
                undefined = length == _UNDEFINED
                out.append(self._element_header(tag, "SQ", _UNDEFINED if undefined else len(items)) + items)
                continue
            if length == _UNDEFINED:
                raise ValueError("An element within a sequence is encapsulated.")
            value = data[position : position + length]
            if len(value) < length:
                raise ValueError("The data set ends within a value.")
            position += length
            scope.note(tag, value, self._order)
            if number:  # group lengths are retired, and would be wrong
                if self._order != self._target_order:
                    value = swap(value, _WORDS.get(vr, 1))
                if self._to_utf_8:
                    value = scope.in_utf_8(tag, vr, value, self._order)
                out.append(self._element_header(tag, vr, len(value)) + value)
        return b"".join(out), position

    def _header(self, data: bytes, position: int, tag: int, scope: _Scope) -> tuple[str, int, int, bool]:
        """VR, length, where the value begins, and whether it is in Implicit VR; as the parser reads them."""
        code = data[position + 4 : position + 6]
        if not self._implicit and code in KNOWN_VRS and code not in LONG_VRS:
            (length,) = struct.unpack_from(self._order + "H", data, position + 6)
            return KNOWN_VRS[code], length, position + 8, False
        if not self._implicit and (code in LONG_VRS or looks_like_vr(code)):
            (length,) = struct.unpack_from(self._order + "I", data, position + 8)
            return KNOWN_VRS.get(code, "UN"), length, position + 12, False
        (length,) = struct.unpack_from(self._order + "I", data, position + 4)
        creator = scope.creators.get(private_block(tag), "")
        return implicit_vr(tag, creator, scope.pixel_representation), length, position + 8, True

    def _sequence(
        self, data: bytes, position: int, length: int, scope: _Scope, depth: int, foreign: bool
    ) -> tuple[bytes, int]:
        """The items of a sequence with its delimiter, and where it ends."""
        if depth >= DEPTH_LIMIT:
            raise ValueError("Sequences are nested too deep.")
        outer = self._implicit, self._order
        if foreign:
            self._implicit, self._order = True, "<"
        end = None if length == _UNDEFINED else position + length
        out: list[bytes] = []
        while end is None or position < end:
            group, number, item_length = struct.unpack_from(self._order + "HHI", data, position)
            position += 8
            if end is None and group << 16 | number == _SEQUENCE_END:
                out.append(self._tag(_SEQUENCE_END, 0))
                break
            if group << 16 | number != _ITEM:
                raise ValueError("A sequence holds something that is no item.")
            undefined = item_length == _UNDEFINED
            item_end = None if undefined else position + item_length
            item, position = self._elements(data, position, item_end, _Scope(scope), depth + 1)
            out += self._tag(_ITEM, _UNDEFINED if undefined else len(item)), item
            if undefined:
                out.append(self._tag(_ITEM_END, 0))
        self._implicit, self._order = outer
        return b"".join(out), position

    def _element_header(self, tag: int, vr: str, length: int) -> bytes:
        if self._target_implicit:
            return self._tag(tag, length)
        code = vr.encode()
        if code not in LONG_VRS and length > 0xFFFF:
            code = b"UN"  # PS3.5 §6.2.2 note: the length field of the VR is too short
        if code in LONG_VRS:
            return struct.pack(self._target_order + "HH2sHI", tag >> 16, tag & 0xFFFF, code, 0, length)
        return struct.pack(self._target_order + "HH2sH", tag >> 16, tag & 0xFFFF, code, length)

    def _tag(self, tag: int, length: int) -> bytes:
        return struct.pack(self._target_order + "HHI", tag >> 16, tag & 0xFFFF, length)


class _Scope:
    """What decides on VRs and texts within one data set or item."""

    def __init__(self, parent: _Scope | None = None) -> None:
        self.pixel_representation: int = parent.pixel_representation if parent else 0
        self.creators: dict[int, str] = {}
        self._inner = parent is not None
        self._characters: CharacterSet = parent._characters if parent else CharacterSet([])
        self._own_characters: bool = parent._own_characters if parent else False

    def in_utf_8(self, tag: int, vr: str, value: bytes, order: str) -> bytes:
        """``value`` in UTF-8 where it is a text in the character set of the data set."""
        if self._own_characters or (value.isascii() and b"\x1b" not in value):
            return value
        if vr == "UN" and order == "<":  # a gateway's; the parser reads the dictionary's VR (PS3.5 §6.2.2)
            vr = implicit_vr(tag, self.creators.get(private_block(tag), ""), 0)
        if vr not in WITH_CHARACTER_SET:
            return value
        text, _ = self._characters.decode(vr, value.rstrip(b" \0"))
        recoded = text.encode("utf-8", "replace")
        return recoded + b" " * (len(recoded) % 2)

    def note(self, tag: int, value: bytes, order: str) -> None:
        if tag == _SPECIFIC_CHARACTER_SET:
            terms = value.decode("latin-1").rstrip(" \0").split("\\")
            self._characters = CharacterSet([term.strip(" ") for term in terms])
            self._own_characters = self._inner
        elif tag == _PIXEL_REPRESENTATION and len(value) == 2:
            self.pixel_representation = int(struct.unpack(order + "H", value)[0] == 1)
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            self.creators[tag] = value.decode("latin-1").strip(" \0")


def element(tag: int, vr: str, value: bytes, target: str) -> bytes:
    """An element of ``value``, of even length and in the byte order of ``target``."""
    if target == IMPLICIT_LE:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    order = ">" if target == EXPLICIT_BE else "<"
    code = vr.encode()
    if code not in LONG_VRS and len(value) > 0xFFFF:
        code = b"UN"  # PS3.5 §6.2.2 note: the length field of the VR is too short
    if code in LONG_VRS:
        return struct.pack(order + "HH2sHI", tag >> 16, tag & 0xFFFF, code, 0, len(value)) + value
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, code, len(value)) + value


def element_header(tag: int, vr: str, length: int, target: str) -> bytes:
    """The header of a pixel data element of ``length`` bytes in the syntax ``target``."""
    if target == IMPLICIT_LE:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)
    order = ">" if target == EXPLICIT_BE else "<"
    return struct.pack(order + "HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, length)


def swap(data: bytes, size: int) -> bytes:
    """Reverse the bytes of each word of ``size`` bytes; a rest that is no word stays."""
    if size == 1:
        return data
    whole = len(data) - len(data) % size
    words = array(_TYPES[size])
    words.frombytes(data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


def word_size(vr: str, bits_allocated: int) -> int:
    """Bytes of the words whose order byte-swapping reverses in the pixel data element.

    OB has none; the words of OW are pixels of 16 bits or more, and pairs of smaller ones (PS3.5 §8.1.1).
    """
    if vr == "OW":
        return {32: 4, 64: 8}.get(bits_allocated, 2)
    return _WORDS.get(vr, 1)
