"""Search terms: what a QIDO-RS query asks for, in the indexed forms of ``normalise``.

A query's value becomes a term by the matching its attribute has (PS3.4 §C.2.2.2); ``shared/sql/search.py``
turns terms into SQL. Patterns are normalised text in which ``*`` stands for any characters and ``?``
for one. Nothing here echoes a value: it may be patient data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword

from shared.dicom import normalise
from shared.dicom.attributes import Attribute, Level, Matching, at_level, by_path, by_tag
from shared.dicom.identifiers import Resource, check_uid
from shared.dicom.indexed_values import numeric
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from shared.dicom.query_tags import QueryTag

MAX_LENGTH = 1024
"""Characters in the value of one attribute other than a UID list."""
MAX_ALTERNATIVES = 32
"""Values in a list of strings; lists of UIDs are limited by the length of the URL alone."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_TRAILING_ANY = re.compile(r"(\^\**)+$")
_FARTHEST_ZONE = 14  # hours (PS3.5 §6.2, DT)
_HYPHEN = re.compile("-")


@dataclass(frozen=True, slots=True)
class Equal:
    """The attribute has one of ``values``: UID lists and numbers (PS3.4 §C.2.2.2.1-2)."""

    attribute: Attribute
    values: tuple[str | int | float, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """The attribute matches one of ``patterns`` (PS3.4 §C.2.2.2.4); one without ``*`` and ``?`` is exact."""

    attribute: Attribute
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Words:
    """Every one of ``words`` begins a word of the name, or one of ``patterns`` matches it.

    That is fuzzy matching (PS3.18 §8.3.4.2): it adds to literal matching, it does not replace it.
    """

    attribute: Attribute
    words: tuple[str, ...]
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Between:
    """A DA or TM lies between ``low`` and ``high``, both included; None is open (PS3.4 §C.2.2.2.5)."""

    attribute: Attribute
    low: str | None
    high: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A date-time of a query: as it is written, and in UTC where its time zone is known.

    ``reach`` bounds what values may say that are beyond it, whatever their time zone: an index has the values
    as they are written.
    """

    local: str
    utc: str | None
    reach: str


@dataclass(frozen=True, slots=True)
class Within:
    """A DT lies between ``low`` and ``high``, both included; None is open (PS3.4 §C.2.2.2.5).

    A bound and a value are compared as instants where both have a time zone, else as they are written.
    """

    attribute: Attribute
    low: Moment | None
    high: Moment | None


Term = Equal | Like | Words | Between | Within


@dataclass(frozen=True, slots=True)
class Order:
    """One key that results are sorted by: an attribute that has a column."""

    attribute: Attribute
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the order of a search's results: the sort values and the key of the result before it."""

    values: tuple[str | int | None, ...]
    key: int


@dataclass(frozen=True, kw_only=True)
class Query:
    """What every search has.

    ``requested`` holds the tags that were matched or named by ``includefield``, ``include_all`` is
    ``includefield=all``. Results are in the order of ``order``, then the newest first; the page begins
    ``after`` a position, or at ``offset``.
    """

    terms: tuple[Term, ...] = ()
    requested: frozenset[str] = frozenset()
    include_all: bool = False
    limit: int = 100
    offset: int = 0
    order: tuple[Order, ...] = ()
    after: Position | None = None


@dataclass(frozen=True)
class SearchQuery(Query):
    """One QIDO-RS search. ``resource`` restricts it to a study or series; ``query_tags`` are the extended
    query tags that are returned.
    """

    level: Level
    resource: Resource
    query_tags: tuple[QueryTag, ...] = ()

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels whose default attributes are returned: the target's and its parents', but for
        those the path names (PS3.18 §10.6.3.3).
        """
        if self.level is Level.PATIENT:
            return ()
        first = (
            Level.INSTANCE if self.resource.series else Level.SERIES if self.resource.study else Level.STUDY
        )
        return tuple(level for level in Level if first <= level <= self.level)

    @property
    def returned(self) -> tuple[Attribute, ...]:
        """The attributes of a result that come from the table, in the order of their tags."""
        if self.level is Level.PATIENT:
            return tuple(sorted((a for a in at_level(Level.STUDY) if a.patient), key=lambda a: a.tag))
        chosen = {
            attribute.tag: attribute
            for level in self.levels
            for attribute in at_level(level)
            if attribute.default or self.include_all
        }
        for tag in self.requested:
            attribute = by_tag().get(tag)
            if attribute is not None and attribute.level <= self.level:
                chosen[tag] = attribute
        return tuple(chosen[tag] for tag in sorted(chosen))

    @property
    def not_indexed(self) -> frozenset[str]:
        """The tags that were asked for and are in no row of the table: they are read from the metadata."""
        return self.requested - by_tag().keys() if self.level is not Level.PATIENT else frozenset()


def tag_of(name: str) -> str | None:
    """The tag (``"00100010"``) that a keyword or eight hexadecimal digits name; None where they name none."""
    if _TAG.fullmatch(name):
        return name.upper()
    tag = tag_for_keyword(name) if name else None
    return None if tag is None else f"{tag:08X}"


def path_of(name: str) -> str | None:
    """The tags that a dotted path of keywords and tags names, with dots between them; None where it names
    none."""
    tags = [tag_of(part) for part in name.split(".")]
    return None if None in tags else ".".join(tag for tag in tags if tag is not None)


def name_of(tag: str) -> str:
    """The keyword of a tag, or the tag where the dictionary does not have it."""
    number = int(tag, 16)
    return (keyword_for_tag(number) if dictionary_has_tag(number) else "") or tag


def searchable(path: str, level: Level, query_tags: Mapping[str, Attribute] | None = None) -> Attribute:
    """The attribute that ``path`` matches at ``level``; ``query_tags`` are those beyond the table, by path.

    Raises InvalidRequest where it matches none. Viewers ask for Modality of studies; that is
    ModalitiesInStudy there.
    """
    if path == "00080060" and level is Level.STUDY:
        path = "00080061"
    attribute = by_path().get(path) or (query_tags or {}).get(path)
    if attribute is None or not is_known(attribute, level):
        name = ".".join(map(name_of, path.split(".")))
        raise InvalidRequest(f"{name} cannot be searched for at the {level.name.lower()} level.")
    return attribute


def is_known(attribute: Attribute, level: Level) -> bool:
    """Whether what is found at ``level`` has the attribute."""
    return attribute.patient if level is Level.PATIENT else attribute.level <= level


def sortable(path: str, level: Level) -> Attribute:
    """The attribute by which results of ``level`` are sorted. Raises InvalidRequest where they cannot be."""
    attribute = by_path().get(path)
    if attribute is None or not attribute.column or attribute.computed or not is_known(attribute, level):
        name = ".".join(map(name_of, path.split(".")))
        raise InvalidRequest(f"{level.name.capitalize()} results cannot be sorted by {name}.")
    return attribute


def parse_term(attribute: Attribute, value: str, fuzzy: bool = False, time_zone: str = "") -> Term | None:
    """The term for a query's value; None where it matches everything (empty, or nothing but ``*``).

    ``time_zone`` (``+HHMM``) is that of date-times which have none. Raises InvalidRequest naming the
    attribute where the value is malformed.
    """
    value = value.strip()
    if not value.strip("*"):
        return None
    if attribute.matching is Matching.UID:
        return _uid_list(attribute, value)
    if len(value) > MAX_LENGTH:
        raise InvalidRequest(f"The value of {attribute.keyword} is longer than {MAX_LENGTH} characters.")
    if attribute.matching in _MOMENTS:
        return _between(attribute, value, time_zone)
    if attribute.matching is Matching.NUMBER:
        return _number(attribute, value)
    if attribute.matching is Matching.PERSON_NAME:
        return _person_name(attribute, value, fuzzy)
    return _text(attribute, value)


def _number(attribute: Attribute, value: str) -> Term:
    whole = attribute.vr not in ("DS", "FD", "FL")
    number = numeric(attribute, value) if attribute.in_values else normalise.number(value)
    if number is None or (whole and number != int(number)):
        raise InvalidRequest(
            f"The value of {attribute.keyword} is not {'an integer' if whole else 'a number'}."
        )
    return Equal(attribute, (number,))


def _uid_list(attribute: Attribute, value: str) -> Term | None:
    """A list of UIDs with ``\\`` (PS3.4 §C.2.2.2.2) or ``,`` (PS3.18 §8.3.4.1) between them."""
    uids = [uid.strip() for uid in re.split(r"[\\,]", value)]
    checked = tuple(dict.fromkeys(check_uid(uid, attribute.keyword) for uid in uids if uid))
    return Equal(attribute, checked) if checked else None


def _text(attribute: Attribute, value: str) -> Term | None:
    """One value or several: ``\\`` cannot occur in a value, and neither can ``,`` in a code string."""
    separators = r"[\\,]" if attribute.vr == "CS" else r"\\"
    values = [normalise.text(part) for part in re.split(separators, value)]
    patterns = tuple(dict.fromkeys(_pattern(part, attribute.length) for part in values if part))
    if not patterns or "*" in patterns:
        return None
    if len(patterns) > MAX_ALTERNATIVES:
        raise InvalidRequest(f"{attribute.keyword} has more than {MAX_ALTERNATIVES} values.")
    return Like(attribute, patterns)


def _pattern(value: str, length: int) -> str:
    """A pattern of normalised text; one without wildcards is cut as indexed values are."""
    return _collapse(value) if re.search(r"[*?]", value) else value[:length]


def _person_name(attribute: Attribute, value: str, fuzzy: bool) -> Term | None:
    patterns = _name_patterns(value)
    if fuzzy:
        words = tuple(normalise.name_words(re.sub(r"[*?]", " ", value)).split())
        wild = patterns if re.search(r"[*?]", value) else ()
        return Words(attribute, words, wild) if words else None
    return Like(attribute, patterns) if patterns else None


def _name_patterns(value: str) -> tuple[str, ...]:
    """Patterns over a whole indexed name (``alphabetic=ideographic=phonetic``) that match ``value``.

    A value with one component group matches the alphabetic group; one that is not ASCII may match any
    group, because nobody types a leading ``=``. In a value with several an empty group matches all.
    ``Doe^*`` matches ``Doe`` too, since trailing empty components do not count.
    """
    name = _collapse(normalise.person_name(value))
    if not name:
        return ()
    short = _TRAILING_ANY.sub("", name)
    names = [name, short] if short and short != name else [name]
    if "=" in name:
        names = ["=".join(group or "*" for group in one.split("=")) for one in names]
    forms = ["{}", "{}=*"]
    if "=" not in name and not name.isascii():
        forms += ["*={}", "*={}=*"]
    patterns = dict.fromkeys(_collapse(form.replace("{}", one)) for one in names for form in forms)
    return () if "*" in patterns else tuple(patterns)


def _collapse(pattern: str) -> str:
    """Runs of ``*`` match what one does, and faster."""
    return re.sub(r"\*+", "*", pattern)


_MOMENTS: dict[Matching | None, tuple[str, Callable[[str, str], str | None]]] = {
    Matching.DATE: ("a date (YYYYMMDD)", lambda value, fill: normalise.date(value)),
    Matching.TIME: ("a time (HHMMSS.FFFFFF)", normalise.time),
    Matching.DATETIME: ("a date and time (YYYYMMDDHHMMSS.FFFFFF&ZZXX)", normalise.date_time),
}


def _between(attribute: Attribute, value: str, time_zone: str) -> Term:
    """A single value or a range of DA, TM or DT.

    A value of less than full precision stands for all moments within it. ``-`` also begins the offset
    of a DT: a value that is one DT is that, then the first hyphen with a DT or nothing on both sides
    divides a range. A ``+`` that arrived as a space, as it does in a URL that was not encoded, is
    restored.
    """
    expected, normal = _MOMENTS[attribute.matching]
    if attribute.matching is Matching.DATETIME:
        value = value.strip().replace(" ", "+")
    if normal(value, "0") and normal(value, "9"):
        return _range(attribute, value, value, time_zone)
    for hyphen in _HYPHEN.finditer(value):
        first, last = value[: hyphen.start()].strip(), value[hyphen.end() :].strip()
        low, high = normal(first, "0"), normal(last, "9")
        if (low or not first) and (high or not last) and (low or high):
            return _range(attribute, first, last, time_zone)
    raise InvalidRequest(
        f"The value of {attribute.keyword} is neither {expected} nor a range of two of them."
    )


def _range(attribute: Attribute, first: str, last: str, time_zone: str) -> Term:
    """The term of a range whose ends are well-formed, or empty where it is open."""
    _, normal = _MOMENTS[attribute.matching]
    low, high = normal(first, "0"), normal(last, "9")
    if attribute.matching is not Matching.DATETIME:
        return Between(attribute, low, high)
    return Within(
        attribute,
        _moment(low, normalise.instant(first, time_zone, "0"), -_FARTHEST_ZONE) if low else None,
        _moment(high, normalise.instant(last, time_zone, "9"), _FARTHEST_ZONE) if high else None,
    )


def _moment(local: str, utc: str | None, hours: int) -> Moment:
    return Moment(local, utc, normalise.reach(local, utc, hours) if utc else local)
