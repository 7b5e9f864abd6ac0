"""Values of a data set as rows of ``attribute_value``: those of sequences, of attributes that may have
several, and of extended query tags.

They are read from DICOM JSON (PS3.18 Annex F), which a store has made and every metadata document is, so
that storing and re-indexing make the same rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shared.dicom import normalise
from shared.dicom.attributes import Attribute, Matching

Json = dict[str, Any]

MOST_ITEMS = 9_999
"""Items of a sequence, and values of one attribute, that are indexed."""


@dataclass(frozen=True, slots=True)
class IndexedValue:
    """One value of an attribute in its indexed forms; those its kind of matching has no use for are None.

    ``attribute`` is ``Attribute.value_name``. ``item`` names the sequence item the value is in: four digits a
    level, empty outside of sequences; values of one item have the same. ``text`` is what strings are matched
    by, a DT as it is written; ``words`` those of a person name; ``utc`` the instant of a DT with a time zone.
    """

    attribute: str
    item: str
    text: str | None = None
    words: str | None = None
    utc: str | None = None
    number: float | None = None


def indexed_values(
    dataset: Json, attributes: Iterable[Attribute], time_zone: str = ""
) -> tuple[IndexedValue, ...]:
    """The rows of ``attributes`` in a data set (or the part of it that has them), each once.

    ``time_zone`` is its TimezoneOffsetFromUTC: the zone of a DT that has none itself.
    """
    found: dict[IndexedValue, None] = {}
    for attribute in attributes:
        for item, value in _values(dataset, attribute, attribute.tags, ""):
            row = _indexed(attribute, item, value, time_zone)
            if row is not None:
                found[row] = None
    return tuple(found)


def unindexed(dataset: Json, attribute: Attribute, time_zone: str = "") -> bool:
    """Whether a data set has a value of the attribute that cannot be indexed."""
    return any(
        value.strip() and _indexed(attribute, item, value, time_zone) is None
        for item, value in _values(dataset, attribute, attribute.tags, "")
    )


def _values(
    dataset: Json, attribute: Attribute, tags: tuple[str, ...], item: str
) -> Iterator[tuple[str, str]]:
    """The values as texts, each with the item it is in."""
    tag = _in_block(dataset, tags[0], attribute.creator) if len(tags) == 1 and attribute.creator else tags[0]
    values = dataset.get(tag, {}).get("Value", [])[:MOST_ITEMS]
    if len(tags) == 1:
        yield from ((item, _text(value)) for value in values if value is not None)
        return
    for number, inner in enumerate(values, 1):
        if isinstance(inner, dict):
            yield from _values(inner, attribute, tags[1:], f"{item}{number:04d}")


def _in_block(dataset: Json, tag: str, creator: str) -> str:
    """The tag of a private element in the block that ``creator`` has reserved here (PS3.5 §7.8.1)."""
    for block in range(0x10, 0x100):
        if dataset.get(f"{tag[:4]}00{block:02X}", {}).get("Value") == [creator]:
            return f"{tag[:4]}{block:02X}{tag[6:]}"
    return ""


def _text(value: Any) -> str:
    """A JSON value as the text it was: a name's groups with ``=`` between them, numbers in digits."""
    if isinstance(value, dict):
        groups = (str(value.get(name, "")) for name in ("Alphabetic", "Ideographic", "Phonetic"))
        return "=".join(groups).rstrip("=")
    return value if isinstance(value, str) else repr(value)


def _indexed(attribute: Attribute, item: str, value: str, time_zone: str) -> IndexedValue | None:
    name, length = attribute.value_name, attribute.length
    if attribute.matching is Matching.NUMBER:
        number = numeric(attribute, value)
        return None if number is None else IndexedValue(name, item, number=number)
    if attribute.matching is Matching.DATETIME:
        local = normalise.date_time(value)
        utc = normalise.instant(value, time_zone)
        return None if local is None else IndexedValue(name, item, text=local, utc=utc)
    assert attribute.matching is not None
    text = normalise.shadow(attribute.matching, value)
    if not isinstance(text, str) or not text:
        return None
    words = normalise.name_words(value) if attribute.matching is Matching.PERSON_NAME else ""
    return IndexedValue(
        name, item, text=normalise.cut(text, length), words=normalise.cut(words, length) or None
    )


def numeric(attribute: Attribute, value: str) -> float | None:
    """A number as it is indexed: as exact as the attribute's VR, so that equal texts are equal numbers."""
    number = normalise.decimal(value)
    if number is None or attribute.vr != "FL":
        return number
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return None
