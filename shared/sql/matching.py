"""Terms of a search as SQL conditions, and which of them a search is entered by.

Every index begins with the partition. SQLite keeps no statistics unless asked to, and would as soon enter
by the sex of all patients as by the identifier of one: so the driver, the term that promises the fewest rows,
is chosen first, its table alone is restricted to the partition, and the other conditions on that table are
kept from indexes. The other tables are joined by keys, which never cross partitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions

from shared.dicom.attributes import Attribute, Level, Matching
from shared.dicom.search_terms import Between, Equal, Like, Moment, Term, Within, Words
from shared.sql import tables
from shared.sql.engine import uid_table

_TABLES = {
    Level.PATIENT: tables.patient,
    Level.STUDY: tables.study,
    Level.SERIES: tables.series,
    Level.INSTANCE: tables.instance,
}
_KEYS: dict[Level, sa.Column[int]] = {
    Level.PATIENT: tables.patient.c.patient_key,
    Level.STUDY: tables.study.c.study_key,
    Level.SERIES: tables.series.c.series_key,
    Level.INSTANCE: tables.instance.c.instance_key,
}
_ESCAPE = "!"

Condition = sa.ColumnElement[bool]
Partition = sa.ScalarSelect[int]


def table_of(level: Level) -> sa.Table:
    """The table whose rows are the results of ``level``."""
    return _TABLES[level]


def key_of(level: Level) -> sa.Column[int]:
    """The key of that table."""
    return _KEYS[level]


def level_of(attribute: Attribute, level: Level) -> Level:
    """At which level the attribute's column is in a search for ``level``: patients have their own."""
    return Level.PATIENT if level is Level.PATIENT else attribute.level


class unindexed(functions.GenericFunction[Any]):
    """A column that SQLite uses no index of (`+column`); SQL Server has statistics and knows better."""

    inherit_cache = True
    name = "unindexed"


@compiles(unindexed)
def _unindexed(element: Any, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(unindexed, "sqlite")
def _unindexed_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


# --- how selective a term is ---------------------------------------------------------------------------

UNIQUE, IDENTIFYING, DATED, NARROW, WIDE, COMMON, SCANNED = range(7)
"""From one row to all: a UID of rows; a text or UID that few share; one date; a prefix or a closed range; an
open range, or one of times; a value that many share; nothing an index helps with."""


def selectivity(term: Term) -> int:
    """How few rows a term leaves, as far as its kind tells."""
    attribute = term.attribute
    shared_by_many = attribute.vr in ("CS", "IS", "US", "AS") or attribute.keyword == "SOPClassUID"
    match term:
        case Equal():
            return UNIQUE if is_unique(attribute) else COMMON if shared_by_many else IDENTIFYING
        case Like(patterns=patterns):
            if attribute.keyword == "ModalitiesInStudy" or not _prefix(patterns):
                return SCANNED
            if shared_by_many:
                return COMMON
            return NARROW if any(map(is_wild, patterns)) else IDENTIFYING
        case Between(low=low, high=high):
            if low is None or high is None or attribute.matching is Matching.TIME:
                return WIDE
            return DATED if low == high else NARROW
        case Within():
            return WIDE
        case Words():
            return SCANNED


def is_unique(attribute: Attribute) -> bool:
    """Whether the attribute is the UID of rows."""
    return attribute.keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def is_exact(term: Term) -> bool:
    """Whether one value is looked for, so that an index hands rows out in the order of their keys."""
    match term:
        case Equal(values=values):
            return len(values) == 1
        case Like(patterns=patterns):
            return len(patterns) == 1 and not is_wild(patterns[0])
    return False


# --- columns ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the indexed forms of an attribute are; the latter two for names and date-times."""

    value: sa.ColumnElement[Any]
    words: sa.ColumnElement[str] | None
    utc: sa.ColumnElement[str] | None


def column_condition(term: Term, level: Level, partition: Partition, indexed: bool = True) -> Condition:
    """Whether a row of the attribute's table fulfils ``term``, in a search for ``level``."""
    attribute = term.attribute
    if attribute.keyword == "ModalitiesInStudy" and isinstance(term, Like):
        return _has_modality(term.patterns)
    if isinstance(term, Equal) and len(term.values) > 1 and is_unique(attribute):
        return _one_of(attribute, [str(value) for value in term.values], partition)
    table = _TABLES[level_of(attribute, level)]

    def column(suffix: str) -> sa.ColumnElement[Any] | None:
        found: sa.Column[Any] | None = table.c.get(attribute.column + suffix)
        if found is None or indexed:
            return found
        hidden: sa.ColumnElement[Any] = unindexed(found, type_=found.type)
        return hidden

    value = column("")
    assert value is not None
    return _matches(term, _Columns(value, column("_words"), column("_utc")))


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


def _has_modality(patterns: tuple[str, ...]) -> Condition:
    """Whether any series of the study has a modality that matches."""
    other = tables.series.alias("other_series")
    return (
        sa.select(sa.literal_column("1"))
        .where(other.c.study_key == tables.study.c.study_key, _like(other.c.modality, patterns))
        .correlate(tables.study)
        .exists()
    )


def _one_of(attribute: Attribute, uids: list[str], partition: Partition) -> Condition:
    """Whether the UID of a row is among ``uids``.

    They are resolved to keys first: SQLite would rather walk the partition in the order of the page and try
    each row against the list.
    """
    given = sa.select(uid_table(uids).c.value)
    named = _TABLES[attribute.level].alias("named")
    key = _KEYS[attribute.level]
    return key.in_(
        sa.select(named.c[key.name]).where(
            named.c.partition_key == partition, named.c[attribute.column].in_(given)
        )
    )


# --- rows of attribute_value -----------------------------------------------------------------------------


def by_item(terms: Iterable[Term]) -> list[list[Term]]:
    """Terms on ``attribute_value``, together where they are of one sequence: one item must fulfil all of
    them (PS3.4 §C.2.2.2.6)."""
    groups: dict[tuple[Level, str], list[Term]] = {}
    for term in terms:
        attribute = term.attribute
        if attribute.in_values:
            outer = attribute.tag if len(attribute.tags) > 1 else attribute.value_name
            groups.setdefault((attribute.level, outer), []).append(term)
    return list(groups.values())


@dataclass(frozen=True)
class Values:
    """Rows of ``attribute_value`` that fulfil terms of one group: joined, the first row leading."""

    rows: sa.FromClause
    first: sa.FromClause
    condition: Condition


def values_of(
    terms: Sequence[Term], partition: Partition, table: sa.Table = tables.attribute_value
) -> Values:
    """The rows that fulfil all of ``terms``; ``table`` has the columns of ``attribute_value`` that match."""
    rows = [table.alias(f"value_{number}") for number in range(len(terms))]
    joined: sa.FromClause = rows[0]
    conditions = [rows[0].c.partition_key == partition]
    for number, (term, row) in enumerate(zip(terms, rows, strict=True)):
        value = row.c.number if term.attribute.matching is Matching.NUMBER else row.c.text
        conditions.append(row.c.attribute == term.attribute.value_name)
        conditions.append(_matches(term, _Columns(value, row.c.words, row.c.utc)))
        if number:
            nearest = max(range(number), key=lambda n: _shared_depth(terms[n], term))
            length = 4 * _shared_depth(terms[nearest], term)
            joined = joined.join(row, _same_item(row, rows[nearest], length))
    return Values(joined, rows[0], sa.and_(*conditions))


def _shared_depth(one: Term, other: Term) -> int:
    """How many sequences both attributes are in."""
    pairs = zip(one.attribute.tags[:-1], other.attribute.tags[:-1], strict=False)
    depth = 0
    for a, b in pairs:
        if a != b:
            break
        depth += 1
    return depth


def _same_item(row: sa.FromClause, other: sa.FromClause, length: int) -> Condition:
    """Whether both rows are of one owner, and of one item as far as the first ``length`` characters say."""
    owner = ("partition_key", "study_key", "series_key", "level", "owner_key")
    same = [row.c[name] == other.c[name] for name in owner if name in row.c]
    item = sa.func.substring(row.c.item, 1, length) == sa.func.substring(other.c.item, 1, length)
    return sa.and_(*same, item)


def among_owners(terms: Sequence[Term], level: Level, partition: Partition) -> Condition:
    """Whether values fulfil ``terms``: their owners are found first, by the values."""
    values = values_of(terms, partition)
    if level is not Level.PATIENT:
        owners = sa.select(values.first.c.owner_key).select_from(values.rows)
        return _KEYS[terms[0].attribute.level].in_(owners.where(values.condition))
    of_patient = tables.study.alias("study_of_patient")
    rows = values.rows.join(of_patient, of_patient.c.study_key == values.first.c.owner_key)
    patients = sa.select(of_patient.c.patient_key).select_from(rows).where(values.condition)
    return _KEYS[level].in_(patients)


def owner_has(terms: Sequence[Term], level: Level, partition: Partition) -> Condition:
    """Whether values fulfil ``terms``: looked up for each row that is considered."""
    if level is Level.PATIENT:
        return among_owners(terms, level, partition)
    owner = terms[0].attribute.level
    table, values = _TABLES[owner], values_of(terms, partition)
    first = values.first.c
    of_owner = [
        first.study_key == table.c.study_key,
        first.level == int(owner),
        first.series_key == (table.c.series_key if owner > Level.STUDY else 0),
        first.owner_key == _KEYS[owner],
    ]
    found: sa.Select[Any] = (
        sa.select(sa.literal_column("1")).select_from(values.rows).where(*of_owner, values.condition)
    )
    return found.correlate(table).exists()


# --- comparisons -----------------------------------------------------------------------------------------


def _written(bound: Moment | None) -> str | None:
    return bound.local if bound else None


def _within(term: Within, columns: _Columns) -> Condition:
    """Instants are compared where bound and value have a time zone, else what is written.

    The range of what values may say is stated too, because an index serves it.
    """
    local, utc = columns.value, columns.utc
    assert utc is not None
    low, high = term.low, term.high
    zoned = [bound.utc is not None for bound in (low, high) if bound]
    written = _between(local, _written(low), _written(high))
    if not any(zoned):
        return written
    reached = _between(local, low.reach if low else None, high.reach if high else None)
    tests = []
    if low:
        tests.append(local >= low.local if low.utc is None else utc >= low.utc)
    if high:
        tests.append(local <= high.local if high.utc is None else utc <= high.utc)
    instant = sa.and_(utc.is_not(None), *tests)
    return sa.and_(reached, instant | sa.and_(utc.is_(None), written))


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
        column.like(_like_pattern(pattern), escape=_ESCAPE) if is_wild(pattern) else column == pattern
        for pattern in patterns
    ]
    matches = sa.or_(sa.false(), *tests)
    if not any(map(is_wild, patterns)):
        return matches
    prefix = _prefix(patterns)
    end = _after(prefix) if prefix else ""
    return sa.and_(column >= prefix, column < end, matches) if end else matches


def _prefix(patterns: tuple[str, ...]) -> str:
    """What all that matches one of ``patterns`` begins with; of several exact ones the first."""
    if not any(map(is_wild, patterns)):
        return patterns[0] if patterns else ""
    return _common_prefix([re.split(r"[*?]", pattern)[0] for pattern in patterns])


def _common_prefix(texts: list[str]) -> str:
    """What all of ``texts`` begin with: the first and the last of them, in order, differ soonest."""
    first, last = min(texts), max(texts)
    same = (number for number, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(same, len(first))]


def is_wild(pattern: str) -> bool:
    """Whether a pattern has wildcards."""
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
