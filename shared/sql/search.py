"""QIDO-RS searches in SQL: one statement a search, whatever is asked.

The statement finds the keys of a page in an inner query that indexes can answer alone, in the order of the
results, and joins the rows of that page, so that their JSON is read for a page and never for all that match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from shared.dicom.attributes import Level
from shared.dicom.identifiers import Resource
from shared.dicom.search_terms import Equal, Order, Position, SearchQuery, Term
from shared.sql import matching, tables
from shared.sql.matching import Condition, Partition, Values, key_of, level_of, table_of, unindexed


@dataclass(frozen=True, slots=True)
class PatientRow:
    """A patient and how much there is of it; ``attributes`` is DICOM JSON."""

    key: int
    attributes: str
    number_of_studies: int
    number_of_series: int
    number_of_instances: int


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
    """One result below the patients: the rows of its level and of those above, and its place in the order.

    ``tag_attributes`` are what the extended query tags of some levels have, each as DICOM JSON.
    """

    position: Position
    study: StudyRow
    series: SeriesRow | None = None
    instance: InstanceRow | None = None
    tag_attributes: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundPatient:
    """One result of a search for patients."""

    position: Position
    patient: PatientRow


def search(connection: sa.Connection, query: SearchQuery) -> list[Found]:
    """A page of studies, series or instances."""
    return [_found(query, row) for row in connection.execute(statement(query))]


def _found(query: SearchQuery, row: sa.Row[Any]) -> Found:
    position, values = _position(query, row)
    return Found(
        position,
        StudyRow(*values[:6]),
        SeriesRow(*values[6:10]) if query.level >= Level.SERIES else None,
        InstanceRow(*values[10:13]) if query.level is Level.INSTANCE else None,
        values[len(values) - len(_tag_levels(query)) :],
    )


def _tag_levels(query: SearchQuery) -> list[Level]:
    """The levels of the extended query tags that are returned."""
    return sorted({tag.level for tag in query.query_tags})


def _position(query: SearchQuery, row: sa.Row[Any]) -> tuple[Position, tuple[Any, ...]]:
    """Where the row is in the order, and its columns after those that say so."""
    values: tuple[Any, ...] = tuple(row)
    count = len(query.order) + 1
    return Position(values[1:count], int(values[0])), values[count:]


def search_patients(connection: sa.Connection, query: SearchQuery) -> list[FoundPatient]:
    """A page of patients; what there is of each is counted for those of the page alone."""
    found = []
    for row in connection.execute(patient_statement(query)):
        position, values = _position(query, row)
        found.append(FoundPatient(position, PatientRow(*values)))
    return found


def count(connection: sa.Connection, query: SearchQuery) -> int:
    """How many results the search has on all its pages."""
    return int(connection.execute(count_statement(query)).scalar_one())


def count_statement(query: SearchQuery) -> sa.Select[Any]:
    """The statement of :func:`count`."""
    matching_keys = _keys(query).subquery("matching")
    return sa.select(sa.func.count()).select_from(matching_keys)


def statement(query: SearchQuery) -> sa.Select[Any]:
    """The statement of a search: the place in the order, then the columns of the rows, level by level."""
    page = _page(query).subquery("page")
    study, series, instance = tables.study, tables.series, tables.instance
    needed = {attribute.level for attribute in query.returned if not attribute.computed}

    def attributes(level: Level) -> sa.ColumnElement[str]:
        return table_of(level).c.attributes if level in needed else sa.literal_column("'{}'", sa.Text())

    columns: list[sa.ColumnElement[Any]] = [
        *page.c,
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
    columns += [
        key_of(level).table.c.tag_attributes.label(f"{level.name.lower()}_tags")
        for level in _tag_levels(query)
    ]
    key = key_of(query.level)
    rows = _with_parents(page.join(key.table, key == page.c.result_key), query.level, set(Level))
    return sa.select(*columns).select_from(rows).order_by(*order_by(query.order, list(page.c)))


def patient_statement(query: SearchQuery) -> sa.Select[Any]:
    """The statement of a search for patients."""
    page = _page(query).subquery("page")
    patient, study = tables.patient, tables.study

    def of_studies(what: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        found = sa.select(what).where(study.c.patient_key == patient.c.patient_key)
        return found.correlate(patient).scalar_subquery()

    columns = [
        *page.c,
        patient.c.patient_key,
        patient.c.attributes,
        of_studies(sa.func.count()).label("number_of_studies"),
        of_studies(sa.func.sum(study.c.number_of_series)).label("number_of_series"),
        of_studies(sa.func.sum(study.c.number_of_instances)).label("number_of_instances"),
    ]
    rows = page.join(patient, patient.c.patient_key == page.c.result_key)
    return sa.select(*columns).select_from(rows).order_by(*order_by(query.order, list(page.c)))


def _with_parents(rows: sa.FromClause, level: Level, wanted: set[Level]) -> sa.FromClause:
    """``rows`` of ``level`` joined to those of their parents that are ``wanted``."""
    for parent in sorted(wanted):
        if Level.PATIENT < parent < level:
            key = key_of(parent)
            rows = rows.join(key.table, key == table_of(level).c[key.name])
    return rows


# --- the page --------------------------------------------------------------------------------------------


def _page(query: SearchQuery) -> sa.Select[Any]:
    """The keys of the page and what they are sorted by."""
    keys = _keys(query)
    columns = list(keys.selected_columns)
    if query.after is not None:
        keys = keys.where(is_after(query.order, columns, query.after))
    few = {term.attribute for term in _plan(query).drivers if matching.selectivity(term) < matching.WIDE}
    for number, order in enumerate(query.order, 1):
        if few and order.attribute not in few:
            # Few rows are found and then sorted: SQLite would rather read all in the order of the page.
            columns[number] = unindexed(columns[number].element, type_=columns[number].type)
    return keys.order_by(*order_by(query.order, columns)).limit(query.limit).offset(query.offset)


def matching_instances(resource: Resource, terms: Sequence[Term]) -> tuple[sa.FromClause, list[Condition]]:
    """Instances joined to their series and studies, and the conditions for those that ``terms`` match."""
    query = SearchQuery(Level.INSTANCE, resource, terms=tuple(terms))
    rows = _with_parents(tables.instance, Level.INSTANCE, set(Level))
    return rows, _conditions(query, replace(_plan(query), leads=False))[0]


def _conditions(query: SearchQuery, plan: _Plan) -> tuple[list[Condition], Values | None]:
    """What rows must fulfil, and the rows of ``attribute_value`` that lead to them where the plan says so."""
    partition = partition_key_of(query.resource.partition)
    conditions = [table_of(level).c.partition_key == partition for level in sorted(plan.anchors)]
    for uid, column in (
        (query.resource.study, tables.study.c.study_instance_uid),
        (query.resource.series, tables.series.c.series_instance_uid),
        (query.resource.instance, tables.instance.c.sop_instance_uid),
    ):
        if uid:
            conditions.append(column == uid)
    for term in query.terms:
        if not term.attribute.in_values:
            level = level_of(term.attribute, query.level)
            indexed = term in plan.drivers or level not in plan.anchors or bool(query.resource.study)
            conditions.append(matching.column_condition(term, query.level, partition, indexed))
    leading: Values | None = None
    for group in matching.by_item(query.terms):
        if plan.drivers.isdisjoint(group):
            conditions.append(matching.owner_has(group, query.level, partition))
        elif plan.leads:
            first = sorted(group, key=lambda term: term not in plan.drivers)
            leading = matching.values_of(first, partition)
        else:
            conditions.append(matching.among_owners(group, query.level, partition))
    return conditions, leading


def _keys(query: SearchQuery) -> sa.Select[Any]:
    """The keys of all that matches, with what they are sorted by."""
    plan = _plan(query)
    conditions, leading = _conditions(query, plan)
    used = set(plan.anchors) | {level_of(term.attribute, query.level) for term in query.terms}
    used |= {level_of(order.attribute, query.level) for order in query.order}
    if query.resource.series:
        used.add(Level.SERIES)
    key = key_of(query.level)
    if leading is None:
        rows = _with_parents(key.table, query.level, used)
        columns = [key.label("result_key"), *(_sort_columns(query))]
        return sa.select(*columns).select_from(rows).where(*conditions)
    owner = leading.first.c.owner_key
    rows = _with_parents(leading.rows.join(key.table, key == owner), query.level, used)
    return (
        sa.select(owner.label("result_key"))
        .distinct()
        .select_from(rows)
        .where(leading.condition, *conditions)
    )


@dataclass(frozen=True)
class _Plan:
    """How a search is entered.

    ``anchors`` are the tables restricted to the partition; ``drivers`` the terms whose indexes may be used
    there; ``leads`` says that the rows of ``attribute_value`` come first, in the order of the page.
    """

    anchors: frozenset[Level]
    drivers: frozenset[Term] = frozenset()
    leads: bool = False


def _plan(query: SearchQuery) -> _Plan:
    if query.resource.study:
        return _Plan(frozenset({Level.STUDY}))
    ranked = sorted(query.terms, key=lambda term: (matching.selectivity(term), term.attribute.level))
    best = matching.selectivity(ranked[0]) if ranked else None
    if best is None:
        return _Plan(frozenset({query.order[0].attribute.level if query.order else query.level}))
    if best == matching.UNIQUE:
        return _by_uids([term for term in ranked if matching.selectivity(term) == best])
    driver = ranked[0]
    if best == matching.COMMON:
        # Many rows have the value: they are met soon in the order of the page, at the level of the page.
        here = [term for term in ranked if matching.selectivity(term) == best and _is_here(term, query)]
        if not here:
            return _Plan(frozenset({query.level}))
        driver = here[0]
    if driver.attribute.in_values:
        leads = matching.is_exact(driver) and _is_here(driver, query) and not query.order
        return _Plan(frozenset(), frozenset({driver}), leads)
    return _Plan(frozenset({level_of(driver.attribute, query.level)}), frozenset({driver}))


def _by_uids(terms: Sequence[Term]) -> _Plan:
    """Those of one UID are entered by it; lists of UIDs bring their partition along."""
    single = {term.attribute.level for term in terms if isinstance(term, Equal) and len(term.values) == 1}
    return _Plan(frozenset(single), frozenset(terms))


def _is_here(term: Term, query: SearchQuery) -> bool:
    """Whether a term is about the results themselves and not about what they belong to."""
    return level_of(term.attribute, query.level) is query.level and (
        query.level is not Level.PATIENT or not term.attribute.in_values
    )


def partition_key_of(name: str) -> Partition:
    """The key of the partition of that name, as a subquery."""
    partition = tables.partition
    return sa.select(partition.c.partition_key).where(partition.c.partition_name == name).scalar_subquery()


# --- the order -------------------------------------------------------------------------------------------


def _sort_columns(query: SearchQuery) -> list[sa.ColumnElement[Any]]:
    return [
        table_of(level_of(order.attribute, query.level)).c[order.attribute.column].label(f"order_{number}")
        for number, order in enumerate(query.order)
    ]


def _directions(order: Sequence[Order]) -> list[bool]:
    """Which sort keys descend; the last is the row's key, which makes the order complete."""
    directions = [one.descending for one in order]
    return [*directions, directions[-1] if directions else True]


def order_by(order: Sequence[Order], columns: Sequence[sa.ColumnElement[Any]]) -> list[sa.ColumnElement[Any]]:
    """The ORDER BY of ``columns``, the first of which is the key; NULL is the least on both engines."""
    key, *values = columns[: len(order) + 1]
    pairs = zip([*values, key], _directions(order), strict=True)
    return [column.desc() if descends else column.asc() for column, descends in pairs]


def is_after(
    order: Sequence[Order], columns: Sequence[sa.ColumnElement[Any]], position: Position
) -> Condition:
    """Whether a row comes after ``position`` in the order of the results."""
    key, *values = [column.element if isinstance(column, sa.Label) else column for column in columns]
    *directions, key_descends = _directions(order)
    condition: Condition = sa.false()
    same: list[Condition] = []
    for column, value, descends in zip(values, position.values, directions, strict=True):
        condition = sa.or_(condition, sa.and_(*same, _beyond(column, value, descends)))
        same.append(column.is_(None) if value is None else column == value)
    beyond: Condition = key < position.key if key_descends else key > position.key
    return sa.or_(condition, sa.and_(*same, beyond))


def _beyond(column: sa.ColumnElement[Any], value: Any, descends: bool) -> Condition:
    """Whether ``column`` comes after ``value`` in one direction, NULL being the least."""
    if value is None:
        return sa.false() if descends else column.is_not(None)
    above: Condition = column > value
    below: Condition = column < value
    return below | column.is_(None) if descends else above
