"""QIDO-RS searches in SQL: one statement a search, whatever is asked.

The statement finds the keys of a page in an inner query that indexes can answer alone, newest first,
and joins the rows of that page, so that their JSON is read for a page and never for all that match.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shared.dicom.attributes import Attribute, Level, Matching
from shared.dicom.identifiers import Resource
from shared.dicom.search_terms import Between, Equal, Like, Moment, SearchQuery, Term, Within, Words
from shared.sql import tables
from shared.sql.engine import uid_table

_TABLES = {Level.STUDY: tables.study, Level.SERIES: tables.series, Level.INSTANCE: tables.instance}
_KEYS: dict[Level, sa.Column[int]] = {
    Level.STUDY: tables.study.c.study_key,
    Level.SERIES: tables.series.c.series_key,
    Level.INSTANCE: tables.instance.c.instance_key,
}
_ESCAPE = "!"

Condition = sa.ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class StudyRow:
    """What a result needs of its study; ``attributes`` is DICOM JSON, ``{}`` where it is not returned."""

    key: int
    uid: str
    number_of_series: int
    number_of_instances: int
    modalities: str
    attributes: str


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """What a result needs of its series."""

    key: int
    uid: str
    number_of_instances: int
    attributes: str


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """What a result needs of its instance."""

    uid: str
    transfer_syntax_uid: str
    attributes: str


@dataclass(frozen=True, slots=True)
class Found:
    """One result: the rows of its level and of the levels above."""

    study: StudyRow
    series: SeriesRow | None = None
    instance: InstanceRow | None = None


def search(connection: sa.Connection, query: SearchQuery) -> list[Found]:
    """A page of what ``query`` matches, newest first."""
    return [_found(query.level, row) for row in connection.execute(statement(query))]


def _found(level: Level, row: sa.Row[Any]) -> Found:
    values: tuple[Any, ...] = tuple(row)
    return Found(
        StudyRow(*values[:6]),
        SeriesRow(*values[6:10]) if level >= Level.SERIES else None,
        InstanceRow(*values[10:]) if level is Level.INSTANCE else None,
    )


def statement(query: SearchQuery) -> sa.Select[Any]:
    """The statement of a search: the columns of the rows above, level by level."""
    page = _page(query).subquery("page")
    study, series, instance = tables.study, tables.series, tables.instance
    needed = {attribute.level for attribute in query.returned if not attribute.computed}

    def attributes(level: Level) -> sa.ColumnElement[str]:
        return _TABLES[level].c.attributes if level in needed else sa.literal_column("'{}'", sa.Text())

    columns: list[sa.ColumnElement[Any]] = [
        study.c.study_key,
        study.c.study_instance_uid,
        study.c.number_of_series,
        study.c.number_of_instances,
        study.c.modalities_in_study,
        attributes(Level.STUDY).label("study_attributes"),
    ]
    if query.level >= Level.SERIES:
        columns += [
            series.c.series_key,
            series.c.series_instance_uid,
            series.c.number_of_instances.label("number_of_series_instances"),
            attributes(Level.SERIES).label("series_attributes"),
        ]
    if query.level is Level.INSTANCE:
        columns += [
            instance.c.sop_instance_uid,
            instance.c.transfer_syntax_uid,
            attributes(Level.INSTANCE).label("instance_attributes"),
        ]
    key = _KEYS[query.level]
    rows = _with_parents(page.join(key.table, key == page.c[key.name]), query.level, set(Level))
    return sa.select(*columns).select_from(rows).order_by(key.desc())


def matching_instances(resource: Resource, terms: Sequence[Term]) -> tuple[sa.FromClause, list[Condition]]:
    """Instances joined to their series and studies, and the conditions for those that ``terms`` match."""
    query = SearchQuery(Level.INSTANCE, resource, tuple(terms))
    partition = _partition_key(resource.partition)
    conditions = [_TABLES[level].c.partition_key == partition for level in _anchors(query)]
    for uid, column in (
        (resource.study, tables.study.c.study_instance_uid),
        (resource.series, tables.series.c.series_instance_uid),
        (resource.instance, tables.instance.c.sop_instance_uid),
    ):
        if uid:
            conditions.append(column == uid)
    rows = _with_parents(tables.instance, Level.INSTANCE, set(Level))
    return rows, conditions + _conditions(terms, partition)


def _with_parents(rows: sa.FromClause, level: Level, wanted: set[Level]) -> sa.FromClause:
    """``rows`` of ``level`` joined to those of their parents that are ``wanted``."""
    for parent in sorted(wanted):
        if parent < level:
            key = _KEYS[parent]
            rows = rows.join(key.table, key == _TABLES[level].c[key.name])
    return rows


def _page(query: SearchQuery) -> sa.Select[Any]:
    """The keys of the page."""
    partition = _partition_key(query.resource.partition)
    anchors = _anchors(query)
    conditions = [_TABLES[level].c.partition_key == partition for level in anchors]
    if query.resource.study:
        conditions.append(tables.study.c.study_instance_uid == query.resource.study)
    if query.resource.series:
        conditions.append(tables.series.c.series_instance_uid == query.resource.series)
    conditions += _conditions(query.terms, partition)
    used = anchors | {term.attribute.level for term in query.terms}
    if query.resource.series:
        used.add(Level.SERIES)
    key = _KEYS[query.level]
    return (
        sa.select(key)
        .select_from(_with_parents(key.table, query.level, used))
        .where(*conditions)
        .order_by(key.desc())
        .limit(query.limit)
        .offset(query.offset)
    )


def _anchors(query: SearchQuery) -> set[Level]:
    """The tables that are restricted to the partition, and so may be entered by their indexes.

    Every index begins with the partition. SQLite keeps no statistics unless asked to, and would as soon
    enter by the modality of all series as by the identifier of one patient; so only the tables are left
    to it that promise the fewest rows: those whose UIDs are given, else the highest with a condition.
    The other tables are joined by keys, which never cross partitions.
    """
    if query.resource.study:
        return {Level.STUDY}
    unique = [term for term in query.terms if _is_unique(term.attribute)]
    if unique:
        return {term.attribute.level for term in unique if isinstance(term, Equal) and len(term.values) == 1}
    return {min((term.attribute.level for term in query.terms), default=query.level)}


def _is_unique(attribute: Attribute) -> bool:
    return attribute.matching is Matching.UID and attribute.keyword != "SOPClassUID"


def _partition_key(name: str) -> sa.ScalarSelect[int]:
    partition = tables.partition
    return sa.select(partition.c.partition_key).where(partition.c.partition_name == name).scalar_subquery()


def _conditions(terms: Sequence[Term], partition: sa.ScalarSelect[int]) -> list[Condition]:
    """One for each term, but for terms of the same sequence, which one item must fulfil together
    (PS3.4 §C.2.2.2.6)."""
    conditions: list[Condition] = []
    of_items: dict[tuple[Level, str], list[Term]] = {}
    for term in terms:
        attribute = term.attribute
        if not attribute.in_values:
            conditions.append(_condition(term, partition))
            continue
        group = attribute.tag if len(attribute.tags) > 1 else attribute.value_name
        of_items.setdefault((attribute.level, group), []).append(term)
    return conditions + [_has_values(group, partition) for group in of_items.values()]


def _condition(term: Term, partition: sa.ScalarSelect[int]) -> Condition:
    attribute = term.attribute
    if attribute.keyword == "ModalitiesInStudy" and isinstance(term, Like):
        return _has_modality(term.patterns)
    if isinstance(term, Equal) and len(term.values) > 1 and _is_unique(attribute):
        return _one_of(attribute, [str(value) for value in term.values], partition)
    columns, name = _TABLES[attribute.level].c, attribute.column
    return _matches(term, _Columns(columns[name], columns.get(f"{name}_words"), columns.get(f"{name}_utc")))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the indexed forms of an attribute are; the latter two for names and date-times."""

    value: sa.ColumnElement[Any]
    words: sa.ColumnElement[str] | None
    utc: sa.ColumnElement[str] | None


def _matches(term: Term, columns: _Columns) -> Condition:
    match term:
        case Equal(values=(value,)):
            return columns.value == value
        case Equal(values=values):
            return columns.value.in_(sa.select(uid_table([str(value) for value in values]).c.value))
        case Between(low=low, high=high):
            return _between(columns.value, low, high)
        case Within():
            return _within(term, columns)
        case Like(patterns=patterns):
            return _like(columns.value, patterns)
        case Words(words=words, patterns=patterns):
            assert columns.words is not None
            return _words(columns.words, words) | _like(columns.value, patterns)


def _has_values(terms: Sequence[Term], partition: sa.ScalarSelect[int]) -> Condition:
    """Whether rows of ``attribute_value`` fulfil all terms; several are of one sequence and its items."""
    level = terms[0].attribute.level
    rows = [tables.attribute_value.alias(f"value_{number}") for number in range(len(terms))]
    joined: sa.FromClause = rows[0]
    conditions = [rows[0].c.partition_key == partition]
    for number, (term, row) in enumerate(zip(terms, rows, strict=True)):
        value = row.c.number if term.attribute.matching is Matching.NUMBER else row.c.text
        conditions.append(row.c.attribute == term.attribute.value_name)
        conditions.append(_matches(term, _Columns(value, row.c.words, row.c.utc)))
        if number:
            nearest = max(range(number), key=lambda n: _shared_depth(terms[n], term))
            depth = 4 * _shared_depth(terms[nearest], term)
            joined = joined.join(row, _same_item(row, rows[nearest], depth))
    return _KEYS[level].in_(sa.select(rows[0].c.owner_key).select_from(joined).where(*conditions))


def _shared_depth(one: Term, other: Term) -> int:
    """How many sequences both attributes are in."""
    outer = zip(one.attribute.tags[:-1], other.attribute.tags[:-1], strict=False)
    return next(
        (n for n, (a, b) in enumerate(outer) if a != b),
        min(len(one.attribute.tags), len(other.attribute.tags)) - 1,
    )


def _same_item(row: sa.FromClause, other: sa.FromClause, length: int) -> Condition:
    """Whether both rows are of one owner, and of one item as far as the first ``length`` characters say."""
    owner = ("study_key", "series_key", "level", "owner_key")
    same = [row.c[name] == other.c[name] for name in owner]
    item = sa.func.substring(row.c.item, 1, length) == sa.func.substring(other.c.item, 1, length)
    return sa.and_(*same, item)


def _written(bound: Moment | None) -> str | None:
    return bound.local if bound else None


def _instant(bound: Moment | None) -> str | None:
    return bound.utc if bound else None


def _within(term: Within, columns: _Columns) -> Condition:
    """Instants are compared where bound and value have a time zone, else what is written."""
    local, utc = columns.value, columns.utc
    assert utc is not None
    low, high = term.low, term.high
    zoned = [bound.utc is not None for bound in (low, high) if bound]
    written = _between(local, _written(low), _written(high))
    if not any(zoned):
        return written
    if all(zoned):
        return _between(utc, _instant(low), _instant(high)) | sa.and_(utc.is_(None), written)
    assert low
    assert high
    after = local >= low.local if low.utc is None else utc >= low.utc
    before = local <= high.local if high.utc is None else utc <= high.utc
    return sa.and_(utc.is_not(None), after, before) | sa.and_(utc.is_(None), written)


def _has_modality(patterns: tuple[str, ...]) -> Condition:
    """Whether any series of the study has a modality that matches."""
    other = tables.series.alias("other_series")
    return (
        sa.select(sa.literal_column("1"))
        .where(other.c.study_key == tables.study.c.study_key, _like(other.c.modality, patterns))
        .correlate(tables.study)
        .exists()
    )


def _one_of(attribute: Attribute, uids: list[str], partition: sa.ScalarSelect[int]) -> Condition:
    """Whether the attribute is among ``uids``.

    UIDs that identify rows are resolved to keys first: SQLite would rather walk the partition in the
    order of the page and try each row against the list.
    """
    given = sa.select(uid_table(uids).c.value)
    named = _TABLES[attribute.level].alias("named")
    key = _KEYS[attribute.level]
    return key.in_(
        sa.select(named.c[key.name]).where(
            named.c.partition_key == partition, named.c[attribute.column].in_(given)
        )
    )


def _between(column: sa.ColumnElement[Any], low: str | None, high: str | None) -> Condition:
    if low == high:
        return column == low
    bounds = [column >= low if low is not None else None, column <= high if high is not None else None]
    return sa.and_(*(bound for bound in bounds if bound is not None))


def _words(column: sa.ColumnElement[Any], words: tuple[str, ...]) -> Condition:
    """Every word begins one of ``column``, where each is preceded by a space."""
    return sa.and_(*(column.like(_like_pattern(f"* {word}*"), escape=_ESCAPE) for word in words))


def _like(column: sa.ColumnElement[Any], patterns: tuple[str, ...]) -> Condition:
    """Whether ``column`` matches one of ``patterns``.

    The range that their common beginning spans is stated too: an index serves it on every engine, and
    it does not serve an OR of LIKEs.
    """
    tests = [
        column.like(_like_pattern(pattern), escape=_ESCAPE) if _is_wild(pattern) else column == pattern
        for pattern in patterns
    ]
    matches = sa.or_(sa.false(), *tests)
    if not any(map(_is_wild, patterns)):
        return matches
    prefix = _common_prefix([re.split(r"[*?]", pattern)[0] for pattern in patterns])
    end = _after(prefix) if prefix else ""
    return sa.and_(column >= prefix, column < end, matches) if end else matches


def _common_prefix(texts: list[str]) -> str:
    """What all of ``texts`` begin with: the first and the last of them, in order, differ soonest."""
    first, last = min(texts), max(texts)
    same = (number for number, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(same, len(first))]


def _is_wild(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def _like_pattern(pattern: str) -> str:
    """A pattern in the language of LIKE; ``[`` is special on SQL Server, and escaping it harms nowhere."""
    literal = re.sub(r"[!%_\[]", lambda match: _ESCAPE + match[0], pattern)
    return literal.replace("*", "%").replace("?", "_")


def _after(prefix: str) -> str:
    """The least string above all that begin with ``prefix``; empty where there is none that suits.

    SQLite orders by code point and SQL Server's binary collation by UTF-16 unit; beside surrogates
    the two differ, so the bound keeps clear of them.
    """
    last = ord(prefix[-1])
    if last >= 0xFFFF:
        return ""
    return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
