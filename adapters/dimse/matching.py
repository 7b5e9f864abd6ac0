"""Attribute matching (PS3.4 §C.2.2.2) of an entry of a worklist with the keys of a query."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from adapters.dimse.find import tags_of, value_of

_START = ("ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime")


Known = Mapping[str, Any]
"""Keywords that are compared; of a sequence those in its items, or None for all."""

_NO_KEYS = ("SpecificCharacterSet", "TimezoneOffsetFromUTC")


def has_unknown_keys(keys: Dataset, known: Known | None) -> bool:
    """Whether a key has a value that nothing is compared with (PS3.4 §C.2.2.1.3)."""
    for tag in tags_of(keys):
        keyword = keyword_for_tag(tag)
        if not keyword or keyword in _NO_KEYS or known is None:
            continue
        if dictionary_VR(tag) == "SQ":
            unknown = any(has_unknown_keys(one, known.get(keyword, {})) for one in _item(keys, keyword))
        else:
            unknown = keyword not in known and bool(value_of(keys, keyword))
        if unknown:
            return True
    return False


def matches(entry: Dataset, keys: Dataset, known: Known | None) -> bool:
    """Whether every key matches; a sequence matches by one of its items."""
    combined = _is_range_of_both(keys)
    if combined and not _in_range_of_both(entry, keys):
        return False
    return all(
        _key_matches(entry, keys, keyword, known)
        for tag in tags_of(keys)
        if (keyword := keyword_for_tag(tag)) and not (combined and keyword in _START)
    )


def _key_matches(entry: Dataset, keys: Dataset, keyword: str, known: Known | None) -> bool:
    if keyword in _NO_KEYS or (known is not None and keyword not in known):
        return True
    vr = dictionary_VR(keyword)
    if vr != "SQ":
        key = value_of(keys, keyword)
        return not key or _matches(value_of(entry, keyword), key, vr)
    items = list(entry.get(keyword) or []) or [Dataset()]
    within = known[keyword] if known is not None else None
    return all(any(matches(item, wanted, within) for item in items) for wanted in _item(keys, keyword))


def _item(keys: Dataset, keyword: str) -> list[Dataset]:
    """The item of keys in a sequence, if there is one."""
    return list(keys.get(keyword) or [])[:1]


def _matches(value: str, key: str, vr: str) -> bool:
    """Whether one of the values matches one of the keys; backslashes are between several."""
    if vr == "DA":
        first, last = _bounds(key)
        return bool(value) and first <= value and (not last or value <= last)
    if vr == "TM":
        first, last = _bounds(key)
        return bool(value) and _time(first) <= _time(value) <= _time(last, "9")
    found, wanted = value.split("\\"), key.split("\\")
    if vr == "UI":
        return bool(set(found) & set(wanted))
    if vr == "PN":
        return any(_name_matches(one, pattern) for one in found for pattern in wanted)
    return any(_fits(one, pattern) for one in found for pattern in wanted)


def _fits(value: str, pattern: str) -> bool:
    """Wildcard matching: ``*`` and ``?`` alone mean something."""
    return fnmatch.fnmatchcase(value.strip(), pattern.strip().replace("[", "[[]"))


# --- person names --------------------------------------------------------------------------------------


def _name_matches(value: str, key: str) -> bool:
    """Without regard to case and accents, as the server does. A key of one component group matches any."""
    groups, patterns = (_plain(text).split("=") for text in (value, key))
    if len(patterns) == 1:
        return any(_group_fits(group, patterns[0]) for group in groups)
    groups += [""] * (len(patterns) - len(groups))
    return all(
        not pattern or _group_fits(group, pattern) for group, pattern in zip(groups, patterns, strict=False)
    )


def _group_fits(group: str, pattern: str) -> bool:
    """Trailing empty components do not count (PS3.5 §6.2.1): ``Doe^*`` matches ``Doe``."""
    group = group.rstrip("^ ")
    short = re.sub(r"(\^\**)+$", "", pattern)
    return _fits(group, pattern.rstrip("^ ")) or (bool(short) and _fits(group, short))


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize(
        "NFC", "".join(one for one in decomposed if not unicodedata.combining(one))
    ).casefold()


# --- dates and times -----------------------------------------------------------------------------------


def _bounds(key: str) -> tuple[str, str]:
    """The ends of a range, empty where it is open; both are the value where it is none."""
    first, hyphen, last = (part.strip() for part in key.partition("-"))
    return first, last if hyphen else first


def _time(text: str, fill: str = "0") -> str:
    """``HHMMSSFFFFFF``; what is missing is the earliest, or with ``fill`` 9 the latest."""
    clock, _, fraction = text.replace(":", "").partition(".")
    latest = "235959" if fill == "9" else "000000"
    return clock + latest[len(clock) :] + fraction.ljust(6, fill)


def _is_range_of_both(keys: Dataset) -> bool:
    """Ranges of the start's date and of its time are one range of moments (PS3.4 Table K.6-1)."""
    return all("-" in value_of(keys, keyword) for keyword in _START)


def _in_range_of_both(entry: Dataset, keys: Dataset) -> bool:
    date, time = (value_of(entry, keyword) for keyword in _START)
    (first, last), (earliest, latest) = (_bounds(value_of(keys, keyword)) for keyword in _START)
    moment = date + _time(time)
    from_here = not first or first + _time(earliest) <= moment
    return bool(date) and from_here and (not last or moment <= last + _time(latest, "9"))
