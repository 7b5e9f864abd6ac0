"""Metadata as XML: the Native DICOM Model (PS3.19 §A.1), out of the text of a DICOM JSON object.

The text is that of a stored document (see ``projection``): without blanks, attributes in the order of their
tags. It is walked attribute by attribute and item by item, so that a slide's hundred thousand functional
groups become XML piece by piece and never a tree of objects.

A private attribute is known by its creator and the last byte of its element number; the block that the
creator happened to get in this data set is no part of its tag, and becomes zero. Without a creator the tag
stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydicom.datadict import keyword_for_tag

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_HEAD = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
_END = "</NativeDicomModel>\n"

PIECE = 64 * 1024
"""Characters of XML in a piece, about."""

_DECODE = json.JSONDecoder(parse_float=str, parse_int=str).raw_decode  # digits stay as they are stored
_ATTRIBUTE = 12  # {"GGGGEEEE":
_SEQUENCE = '{"vr":"SQ","Value":['
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")

_SPECIAL = re.compile('[&<>"\t\n\r\x00-\x1f\ud800-\udfff\ufffe\uffff]')
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}
_IN_ATTRIBUTES = _ESCAPES | {"\t": "&#9;", "\n": "&#10;"}
_ILLEGAL = "\N{REPLACEMENT CHARACTER}"  # XML 1.0 §2.2 has no other way to say that there was a character


def pieces(document: str) -> Iterator[str]:
    """The XML document of a DICOM JSON object, in pieces. Raises ValueError where the text is no such."""
    gathered: list[str] = [_HEAD]
    size = 0
    for text in _attributes(document, [0]):
        gathered.append(text)
        size += len(text)
        if size >= PIECE:
            yield "".join(gathered)
            gathered, size = [], 0
    gathered.append(_END)
    yield "".join(gathered)


def _attributes(text: str, at: list[int]) -> Iterator[str]:
    """The attributes of the object at the position ``at``, which is moved behind it."""
    position = at[0]
    if text[position : position + 2] == "{}":
        at[0] = position + 2
        return
    creators: dict[str, str] = {}
    while text[position] in "{,":
        tag = text[position + 2 : position + 10]
        start = position + _ATTRIBUTE
        if text.startswith(_SEQUENCE, start):
            yield _start_of(tag, "SQ", creators)
            at[0] = start + len(_SEQUENCE)
            yield from _items(text, at)
            yield "</DicomAttribute>"
            position = at[0]
            continue
        element, position = _DECODE(text, start)
        yield _start_of(tag, str(element["vr"]), creators)
        yield _value_of(element)
        yield "</DicomAttribute>"
        if _reserves(tag) and element.get("Value"):
            creators[tag[:4] + tag[6:]] = str(element["Value"][0])
    if text[position] != "}":
        raise ValueError("The text is no DICOM JSON object.")
    at[0] = position + 1


def _items(text: str, at: list[int]) -> Iterator[str]:
    """The items of a sequence, the first at the position ``at``, which is moved behind the sequence."""
    number = 0
    while text[at[0]] in "{,":
        at[0] += text[at[0]] == ","
        number += 1
        yield f'<Item number="{number}">'
        yield from _attributes(text, at)
        yield "</Item>"
    if not text.startswith("]}", at[0]):
        raise ValueError("The text is no DICOM JSON object.")
    at[0] += 2


def _reserves(tag: str) -> bool:
    """Whether the tag is that of a private creator, (gggg,0010-00FF) (PS3.5 §7.8.1)."""
    return int(tag[3], 16) % 2 == 1 and tag[4:6] == "00" and tag[6] != "0"


def _start_of(tag: str, vr: str, creators: dict[str, str]) -> str:
    if int(tag[3], 16) % 2 == 0:
        keyword = _keyword(tag)
        return f'<DicomAttribute tag="{tag}" vr="{vr}"' + (f' keyword="{keyword}">' if keyword else ">")
    creator = creators.get(tag[:6]) if tag[4:6] != "00" else None
    if not creator:
        return f'<DicomAttribute tag="{tag}" vr="{vr}">'
    named = _escaped(creator, _IN_ATTRIBUTES)
    return f'<DicomAttribute tag="{tag[:4]}00{tag[6:]}" vr="{vr}" privateCreator="{named}">'


@lru_cache(maxsize=8192)
def _keyword(tag: str) -> str:
    return str(keyword_for_tag(int(tag, 16)))


def _value_of(element: dict[str, Any]) -> str:
    if "Value" in element:
        one = _person_name if element["vr"] == "PN" else _value
        return "".join(one(number, value) for number, value in enumerate(element["Value"], 1))
    if "BulkDataURI" in element:
        return f'<BulkData uri="{_escaped(element["BulkDataURI"], _IN_ATTRIBUTES)}"/>'
    if "InlineBinary" in element:
        return f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    return ""


def _value(number: int, value: object) -> str:
    if value is None:
        return f'<Value number="{number}"/>'
    return f'<Value number="{number}">{_escaped(str(value))}</Value>'


def _person_name(number: int, value: object) -> str:
    if not isinstance(value, dict):
        return f'<PersonName number="{number}"/>'
    groups = ((name, _name(value.get(name, ""))) for name in _GROUPS)
    inner = "".join(f"<{name}>{components}</{name}>" for name, components in groups if components)
    return f'<PersonName number="{number}">{inner}</PersonName>'


def _name(group: str) -> str:
    """The components of one group; what is beyond the fifth stays in the last."""
    parts = zip(_COMPONENTS, group.split("^", len(_COMPONENTS) - 1), strict=False)
    return "".join(f"<{name}>{_escaped(part)}</{name}>" for name, part in parts if part)


def _escaped(text: str, escapes: dict[str, str] = _ESCAPES) -> str:
    """Text for XML, whatever its characters are; line ends survive a parser's normalisation."""
    return _SPECIAL.sub(lambda found: _escape(found[0], escapes), text)


def _escape(character: str, escapes: dict[str, str]) -> str:
    if character in escapes:
        return escapes[character]
    return character if character in "\t\n" else _ILLEGAL
