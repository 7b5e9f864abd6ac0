"""Values of data elements as DICOM JSON text (PS3.18 Annex F), straight from their encoded bytes.

Nothing is turned into objects that is not needed: a store writes this text once and every later
request for metadata serves it as it is.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import warnings
from json.encoder import encode_basestring as quote
from typing import NamedTuple

from pydicom.charset import convert_encodings, decode_bytes, default_encoding, python_encoding

from shared.dicom.validation import CHECKS

_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
_LONGEST_NUMBER = 32  # JSON parsers give up at some length; DS has at most 16 characters, IS 12
_NAME_DELIMITERS, _TEXT_DELIMITERS = set(b"\\^="), set(b"\\\t\n\f\r")  # PS3.5 §6.1.2.5.3
_PADDED_BOTH_ENDS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM"})
_LEADING_SPACES_COUNT = frozenset({"LT", "ST", "UT"})
_SINGLE_VALUED = frozenset({"LT", "ST", "UT", "UR"})
WITH_CHARACTER_SET = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_STRUCTS = {
    "US": ("H", 2),
    "SS": ("h", 2),
    "UL": ("I", 4),
    "SL": ("i", 4),
    "FL": ("f", 4),
    "FD": ("d", 8),
    "UV": ("Q", 8),
    "SV": ("q", 8),
}

BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
TEXT_VRS = frozenset(CHECKS)

_LEFT_BY_PYDICOM = "\x1b$)A"  # pydicom believes that Python removes the escape sequence of ISO 2022 IR 58


class Encoded(NamedTuple):
    """A value as JSON.

    ``json`` is what follows ``"vr":"XX"`` in the attribute's object; ``text`` the decoded value without
    padding (values still separated by backslashes); ``problem`` says in one sentence how it breaks its VR.
    """

    json: str
    text: str
    problem: str


EMPTY = Encoded("", "", "")


class CharacterSet:
    """The character repertoires in force in a data set (PS3.5 §6.1.2)."""

    def __init__(self, terms: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                encodings = list(convert_encodings(terms or [""]))
            except ValueError:
                encodings = []
        # pydicom takes any of Python's codecs for a character set; some of those are not even text.
        known = set(python_encoding.values())
        self.encodings = [e if e in known else default_encoding for e in encodings] or [default_encoding]

    def decode(self, vr: str, raw: bytes) -> tuple[str, bool]:
        """The text and whether every byte of it was legal."""
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii"), True
        if len(self.encodings) == 1:
            encoding = self.encodings[0]
            legal = encoding != default_encoding  # beyond ASCII nothing is defined without a character set
            try:
                return raw.decode(encoding), legal and (b"\x1b" not in raw or encoding.startswith("iso2022"))
            except (UnicodeDecodeError, LookupError):
                return raw.decode("latin-1"), False
        delimiters = _NAME_DELIMITERS if vr == "PN" else _TEXT_DELIMITERS
        strict = ["ascii" if encoding == default_encoding else encoding for encoding in self.encodings]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                text = decode_bytes(raw, strict, delimiters)
                if caught:
                    return decode_bytes(raw, self.encodings, delimiters), False
                return text.replace(_LEFT_BY_PYDICOM, ""), True
            except (UnicodeDecodeError, LookupError, ValueError):
                return raw.decode("latin-1"), False

    def encode(self, vr: str, text: str) -> bytes | None:
        """The bytes of ``text``, or None where they would not be read as the same text again.

        Code extensions (PS3.5 §6.1.2.5) are read and not written: beyond ASCII, only a single repertoire.
        """
        if text.isascii():
            return text.encode()
        if len(self.encodings) > 1:
            return None
        try:
            raw = text.encode(self.encodings[0])
        except (UnicodeEncodeError, LookupError):
            return None
        return raw if self.decode(vr, raw) == (text, True) else None


def encode_text(vr: str, raw: bytes, characters: CharacterSet) -> Encoded:
    """A string VR. Trailing spaces and nulls are padding and are left out (PS3.5 §6.2)."""
    raw = raw.rstrip(b" \0")
    if not raw:
        return EMPTY
    if vr in WITH_CHARACTER_SET:
        text, legal = characters.decode(vr, raw)
    else:
        legal = raw.isascii()
        text = raw.decode("ascii" if legal else "latin-1")
    problem = "" if legal else "holds bytes that its character set does not define"
    check = CHECKS[vr]
    if vr in _SINGLE_VALUED or "\\" not in text:
        value = text.strip(" ") if vr in _PADDED_BOTH_ENDS else text
        return Encoded(f',"Value":[{_json_of(vr, value)}]', value, problem or check(value))
    values = [v.strip(" ") if vr in _PADDED_BOTH_ENDS else v.rstrip(" \0") for v in text.split("\\")]
    encoded = ",".join(_json_of(vr, value) if value else "null" for value in values)
    if not problem:
        problem = next((p for p in map(check, filter(None, values)) if p), "")
    return Encoded(f',"Value":[{encoded}]', "\\".join(values), problem)


def _json_of(vr: str, value: str) -> str:
    if vr == "DS" or vr == "IS":
        return _number_of(value)
    if vr == "PN":
        return _person_name_of(value)
    return quote(value)


def _number_of(value: str) -> str:
    """A JSON number with the digits as stored; what is no number stays a string (Table F.2.3-1)."""
    if len(value) <= _LONGEST_NUMBER and _JSON_NUMBER.fullmatch(value):
        return value
    try:
        number = float(value)
    except ValueError:
        return quote(value)
    return repr(number) if math.isfinite(number) and value.isascii() and "_" not in value else quote(value)


def _person_name_of(value: str) -> str:
    if "=" not in value:
        return f'{{"Alphabetic":{quote(value)}}}'
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
    return "{" + ",".join(f'"{name}":{quote(group.strip(" "))}' for name, group in groups if group) + "}"


def encode_numbers(vr: str, raw: bytes, order: str) -> Encoded:
    """A binary number VR; ``order`` is ``<`` or ``>``."""
    letter, size = _STRUCTS[vr]
    count, rest = divmod(len(raw), size)
    values = struct.unpack_from(f"{order}{count}{letter}", raw)
    problem = "has a length that is no multiple of its VR's" if rest else ""
    if not values:
        return Encoded("", "", problem)
    text = ",".join(map(_float_of if letter in "fd" else str, values))
    return Encoded(f',"Value":[{text}]', text.replace(",", "\\"), problem)


def _float_of(value: float) -> str:
    """JSON has no token for what is not finite: those become strings (``"NaN"``, ``"Infinity"``)."""
    if math.isfinite(value):
        return repr(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'


def encode_tags(raw: bytes, order: str) -> Encoded:
    """AT: tags of eight hexadecimal digits."""
    count, rest = divmod(len(raw), 4)
    pairs = struct.unpack_from(f"{order}{2 * count}H", raw)
    values = [f"{pairs[i]:04X}{pairs[i + 1]:04X}" for i in range(0, len(pairs), 2)]
    problem = "has a length that is no multiple of its VR's" if rest else ""
    if not values:
        return Encoded("", "", problem)
    return Encoded(',"Value":[' + ",".join(f'"{v}"' for v in values) + "]", "\\".join(values), problem)


_SWAPPED_SIZES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def little_endian(vr: str, raw: bytes, order: str) -> bytes:
    """Bulk data is little endian on the wire (PS3.18 §8.7.1); swap what was stored big endian."""
    size = _SWAPPED_SIZES.get(vr, 1)
    if order == "<" or size == 1:
        return raw
    count = len(raw) // size
    letter = {2: "H", 4: "I", 8: "Q"}[size]
    swapped = struct.pack(f"<{count}{letter}", *struct.unpack_from(f">{count}{letter}", raw))
    return swapped + raw[count * size :]


def encode_binary(vr: str, raw: bytes, order: str) -> Encoded:
    """A binary VR in place, as InlineBinary (Annex F.2.7)."""
    if not raw:
        return EMPTY
    return Encoded(f',"InlineBinary":"{base64.b64encode(little_endian(vr, raw, order)).decode()}"', "", "")


def encode(vr: str, raw: bytes, order: str, characters: CharacterSet) -> Encoded:
    """Any VR but SQ."""
    if vr in TEXT_VRS:
        return encode_text(vr, raw, characters)
    if vr in _STRUCTS:
        return encode_numbers(vr, raw, order)
    if vr == "AT":
        return encode_tags(raw, order)
    return encode_binary(vr, raw, order)
