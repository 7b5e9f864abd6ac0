"""A slow and obvious matcher of data sets: what PS3.4 §C.2.2.2 means here, in plain Python.

It shares nothing with the server but the attribute table's levels: values are those pydicom reads from the
files, conditions are texts by path, and every data set is looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from pydicom.dataset import Dataset

Path = tuple[str, ...]
"""Keywords: sequences, then the attribute."""


@dataclass(frozen=True)
class Options:
    """What a query says besides its conditions."""

    fuzzy: bool = False
    time_zone: str = ""


def matches(dataset: Dataset, conditions: Mapping[Path, str], options: Options) -> bool:
    """Whether a data set, or an item, fulfils all conditions."""
    time_zone = str(dataset.get("TimezoneOffsetFromUTC", "") or "")
    return _item_matches(dataset, conditions, options, time_zone)


def _item_matches(dataset: Dataset, conditions: Mapping[Path, str], options: Options, time_zone: str) -> bool:
    for path, query in conditions.items():
        if len(path) == 1 and not _attribute_matches(dataset, path[0], query, options, time_zone):
            return False
    for sequence in {path[0] for path in conditions if len(path) > 1}:
        inner = {
            path[1:]: query
            for path, query in conditions.items()
            if len(path) > 1 and path[0] == sequence and not universal(path[-1], query)
        }
        items = dataset.get(sequence) or []
        if inner and not any(_item_matches(item, inner, options, time_zone) for item in items):
            return False
    return True


def _attribute_matches(dataset: Dataset, keyword: str, query: str, options: Options, time_zone: str) -> bool:
    if universal(keyword, query, options.fuzzy):
        return True
    vr = _vr(keyword)
    return any(_value_matches(vr, value, query, options, time_zone) for value in _values(dataset, keyword))


@cache
def _vr(keyword: str) -> str:
    dataset = Dataset()
    setattr(dataset, keyword, None)
    return str(dataset[keyword].VR)


def _values(dataset: Dataset, keyword: str) -> Iterator[str]:
    value: Any = dataset.get(keyword)
    several = value if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
    yield from (str(one) for one in several if one is not None and str(one))


def universal(keyword: str, query: str, fuzzy: bool = False) -> bool:
    """Whether a query matches everything: it is empty, or wildcards alone."""
    if not query.strip().strip("*"):
        return True
    vr = _vr(keyword)
    if vr == "PN":
        name = plain_name(query)
        forms = [name, re.sub(r"(\^\**)+$", "", name)]
        if fuzzy:
            return not re.split(r"[\s^=\\,*?]+", plain(query)).count("") < len(
                re.split(r"[\s^=\\,*?]+", plain(query))
            )
        return not name or any(form and not form.strip("*") for form in forms)
    if vr in ("LO", "SH", "CS", "AE", "AS"):
        parts = [folded(part) for part in re.split(r"[\\,]" if vr == "CS" else r"\\", query)]
        return not any(parts) or any(part and not part.strip("*") for part in parts)
    return False


def _value_matches(vr: str, value: str, query: str, options: Options, time_zone: str) -> bool:
    query = query.strip()
    if vr == "UI":
        return value in re.split(r"[\\,]", query)
    if vr == "PN":
        return fuzzy_name(query, value) if options.fuzzy else name_matches(query, value)
    if vr == "DA":
        return in_range(query, value, lambda text: (text, text))
    if vr == "TM":
        return in_range(query, value, time_span)
    if vr == "DT":
        return moment_matches(query, value, options.time_zone, time_zone)
    if vr in ("DS", "IS", "US"):
        return float(value) == float(query)
    parts = [folded(part) for part in re.split(r"[\\,]" if vr == "CS" else r"\\", query)]
    return any(part and glob(part, folded(value)) for part in parts)


# --- text and names --------------------------------------------------------------------------------------


def folded(value: str) -> str:
    """Without case."""
    return unicodedata.normalize("NFKC", value.strip()).casefold()


def plain(value: str) -> str:
    """Without case and accents."""
    decomposed = unicodedata.normalize("NFKD", value)
    return unicodedata.normalize(
        "NFC", "".join(c for c in decomposed if not unicodedata.combining(c))
    ).casefold()


def glob(pattern: str, value: str) -> bool:
    """``*`` and ``?``."""
    expression = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(expression, value, re.DOTALL) is not None


def plain_name(value: str) -> str:
    """A name whose groups have neither case nor accents nor trailing empty components."""
    return "=".join(plain(group.strip().rstrip("^ ")) for group in value.split("=")).rstrip("=")


def name_matches(query: str, value: str) -> bool:
    """Group by group where the query has groups; else the first, or any when it is not ASCII."""
    name, pattern = plain_name(value), plain_name(query)
    for form in {pattern, re.sub(r"(\^\**)+$", "", pattern)} - {""}:
        if "=" in form:
            form = "=".join(group or "*" for group in form.split("="))
        candidates = [form, f"{form}=*"]
        if "=" not in pattern and not pattern.isascii():
            candidates += [f"*={form}", f"*={form}=*"]
        if any(glob(candidate, name) for candidate in candidates):
            return True
    return False


def fuzzy_name(query: str, value: str) -> bool:
    """Every word of the query begins one of the name; a query with wildcards may match as it is, too."""
    words = [word for word in re.split(r"[\s^=\\,]+", plain(value)) if word]
    wanted = [word for word in re.split(r"[\s^=\\,*?]+", plain(query)) if word]
    if all(any(word.startswith(prefix) for word in words) for prefix in wanted):
        return True
    return bool(re.search(r"[*?]", query)) and name_matches(query, value)


# --- dates and times -------------------------------------------------------------------------------------


def in_range(query: str, value: str, span: Any) -> bool:
    """Whether ``value`` begins within a DA or TM, or a range of them."""
    first, hyphen, last = query.partition("-")
    if not hyphen:
        last = first
    begin = span(value)[0]
    return (not first or span(first)[0] <= begin) and (not last or begin <= span(last)[1])


def time_span(value: str) -> tuple[int, int]:
    """First and last microsecond of the day that a TM means."""
    whole, _, fraction = value.partition(".")
    first = unit = 0
    for start, size in ((0, 3600), (2, 60), (4, 1)):
        if whole[start:]:
            first += int(whole[start : start + 2]) * size * 10**6
            unit = size * 10**6
    if fraction:
        first += int(fraction.ljust(6, "0"))
        unit = 10 ** (6 - len(fraction))
    return first, first + unit - 1


Moment = tuple[datetime, datetime, timedelta | None]
"""First and last moment as written, and how far they are from UTC."""

_DT = re.compile(r"(\d{4}(?:\d\d){0,5}(?:\.\d{1,6})?)([+-](?:0\d|1[0-3])[0-5]\d|[+]1400)?")


def moment_of(text: str, time_zone: str) -> Moment | None:
    """What a DT means; None where the text is none."""
    match = _DT.fullmatch(text)
    if match is None:
        return None
    whole, _, fraction = match[1].partition(".")
    numbers = [int(whole[:4]), *(int(whole[i : i + 2]) for i in range(4, len(whole), 2))]
    try:
        first = datetime(*(numbers + [1, 1, 0, 0, 0][len(numbers) - 1 :]))  # type: ignore[arg-type]
    except ValueError:
        return None
    if len(numbers) == 1:
        after = datetime(first.year + 1, 1, 1)
    elif len(numbers) == 2:
        after = datetime(first.year + first.month // 12, first.month % 12 + 1, 1)
    else:
        step = {3: timedelta(days=1), 4: timedelta(hours=1), 5: timedelta(minutes=1)}
        after = first + step.get(len(numbers), timedelta(seconds=1))
    if fraction:
        first += timedelta(microseconds=int(fraction.ljust(6, "0")))
        after = first + timedelta(microseconds=10 ** (6 - len(fraction)))
    zone = match[2] or time_zone
    shift = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:])) if zone else None
    return first, after - timedelta(microseconds=1), -shift if shift and zone[0] == "-" else shift


def moment_matches(query: str, value: str, query_zone: str, value_zone: str) -> bool:
    """Instants are compared where both have a time zone, else what is written."""
    begin, _, zone = moment_of(value, value_zone) or (None, None, None)
    assert begin is not None

    def beyond(bound: Moment | None, index: int) -> bool:
        if bound is None:
            return False
        edge, one = bound[index], begin
        if bound[2] is not None and zone is not None:
            edge, one = edge - bound[2], begin - zone
        return one < edge if index == 0 else one > edge

    single = moment_of(query, query_zone)
    if single:
        return not beyond(single, 0) and not beyond(single, 1)
    for number, character in enumerate(query):
        first, last = query[:number], query[number + 1 :]
        low, high = moment_of(first, query_zone), moment_of(last, query_zone)
        if character == "-" and (low or not first) and (high or not last) and (low or high):
            return not beyond(low, 0) and not beyond(high, 1)
    raise AssertionError(f"{query} is no range")
