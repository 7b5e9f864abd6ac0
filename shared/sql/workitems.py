"""Workitems in SQL: the one place they are in.

A workitem is a row with its data set as DICOM JSON; what searches match is in ``workitem_value``. The
Transaction UID is a column of its own and no part of the data set, so that nothing can return it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from shared.dicom import event_reports, workitem_attributes, workitem_states
from shared.dicom.event_reports import EventReport
from shared.dicom.indexed_values import IndexedValue, indexed_values
from shared.dicom.search_terms import Order, Position
from shared.dicom.workitem_query import WorkitemQuery
from shared.errors import Conflict, NotFound
from shared.sql import matching, partitions, workitem_events, workitem_subscriptions
from shared.sql import tables as t
from shared.sql.change_feed import timestamp
from shared.sql.search import is_after, order_by, partition_key_of

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workitem:
    """A workitem; ``owner`` is the Transaction UID of whoever has claimed it, empty before that."""

    key: int
    partition_key: int
    uid: str
    owner: str
    data_set: Json


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a workitem: its owner, its data set, and event reports beyond those of the change."""

    owner: str
    data_set: Json
    reports: tuple[EventReport, ...] = ()
    warning: str = ""


@dataclass(frozen=True, slots=True)
class FoundWorkitem:
    """A result of a search; ``data_set`` is DICOM JSON."""

    position: Position
    data_set: str


def create(connection: sa.Connection, partition: str, uid: str, data_set: Json) -> int:
    """Add a workitem, and tell those who are subscribed to the worklist: how many event reports were written.

    Raises Conflict if it is there.
    """
    partition_key = partitions.key_of(connection, partition)
    if _find(connection, partition_key, uid) is not None:
        raise Conflict("A workitem with this UID exists.")
    now = timestamp()
    row = {
        "partition_key": partition_key,
        "workitem_uid": uid,
        "state": workitem_states.state_of(data_set),
        "transaction_uid": "",
        "changed": now,
        "data_set": orjson.dumps(data_set).decode(),
    }
    key = connection.execute(sa.insert(t.workitem), row).inserted_primary_key[0]  # type: ignore[index]
    _insert_values(connection, partition_key, int(key), _values(data_set))
    workitem_subscriptions.apply_global(connection, partition_key, uid)
    return workitem_events.record(connection, partition_key, uid, event_reports.of_change(None, data_set))


def find(connection: sa.Connection, partition: str, uid: str) -> Workitem:
    """A workitem. Raises NotFound."""
    row = connection.execute(_statement(partition_key_of(partition), uid)).first()
    if row is None:
        raise NotFound("The workitem does not exist.")
    return _workitem(row)


def change(
    connection: sa.Connection, partition: str, uid: str, work: Callable[[Workitem], Change]
) -> tuple[Change, int]:
    """Do ``work`` with a workitem that nobody else changes meanwhile: its outcome, and how many event
    reports were written. Raises NotFound, and what ``work`` raises, which changes nothing."""
    partition_key = partitions.find(connection, partition)
    before = None if partition_key is None else _find(connection, partition_key, uid)
    if before is None:
        raise NotFound("The workitem does not exist.")
    after = work(before)
    if (after.owner, after.data_set) != (before.owner, before.data_set):
        _update(connection, before, after)
    reports = [*_reports(before.data_set, after.data_set), *after.reports]
    return after, workitem_events.record(connection, before.partition_key, uid, reports) if reports else 0


def _reports(before: Json, after: Json) -> list[EventReport]:
    """What a change is reported by; a workitem that nobody claimed is canceled by way of IN PROGRESS
    (PS3.4 §CC.2.2.3)."""
    states = (workitem_states.state_of(before), workitem_states.state_of(after))
    if states != (workitem_states.SCHEDULED, workitem_states.CANCELED):
        return event_reports.of_change(before, after)
    between = workitem_states.in_state(before, workitem_states.IN_PROGRESS)
    return [*event_reports.of_change(before, between), *event_reports.of_change(between, after)]


def _find(connection: sa.Connection, partition_key: int, uid: str) -> Workitem | None:
    """A workitem, held to the end of the transaction; the place where it would be is held likewise."""
    statement = _statement(sa.literal(partition_key), uid)
    row = connection.execute(statement.with_hint(t.workitem, "WITH (UPDLOCK, HOLDLOCK)", "mssql")).first()
    return None if row is None else _workitem(row)


def _statement(partition_key: sa.ColumnElement[int], uid: str) -> sa.Select[Any]:
    w = t.workitem
    columns = (w.c.workitem_key, w.c.partition_key, w.c.workitem_uid, w.c.transaction_uid, w.c.data_set)
    return sa.select(*columns).where(w.c.partition_key == partition_key, w.c.workitem_uid == uid)


def _workitem(row: Any) -> Workitem:
    return Workitem(row[0], row[1], row[2], row[3], orjson.loads(row[4]))


def _update(connection: sa.Connection, before: Workitem, after: Change) -> None:
    row = {
        "state": workitem_states.state_of(after.data_set),
        "transaction_uid": after.owner,
        "changed": timestamp(),
        "data_set": orjson.dumps(after.data_set).decode(),
    }
    connection.execute(sa.update(t.workitem).where(t.workitem.c.workitem_key == before.key).values(row))
    values = _values(after.data_set)
    if values != _values(before.data_set):
        v = t.workitem_value
        connection.execute(
            sa.delete(v).where(v.c.partition_key == before.partition_key, v.c.owner_key == before.key)
        )
        _insert_values(connection, before.partition_key, before.key, values)


def _values(data_set: Json) -> tuple[IndexedValue, ...]:
    zone = data_set.get("00080201", {}).get("Value", [""])[0]
    return indexed_values(data_set, workitem_attributes.by_path().values(), zone)


def _insert_values(
    connection: sa.Connection, partition_key: int, key: int, values: Sequence[IndexedValue]
) -> None:
    rows = [{"partition_key": partition_key, "owner_key": key, **asdict(value)} for value in values]
    for row in rows:
        del row["number"]  # no attribute that is matched is one
    connection.execute(sa.insert(t.workitem_value), rows)


# --- search ------------------------------------------------------------------------------------------


def search(connection: sa.Connection, query: WorkitemQuery) -> list[FoundWorkitem]:
    """A page of workitems."""
    found = []
    for row in connection.execute(statement(query)):
        key, *values, data_set = row
        found.append(FoundWorkitem(Position(tuple(values), int(key)), data_set))
    return found


def count(connection: sa.Connection, query: WorkitemQuery) -> int:
    """How many results the search has on all its pages."""
    return int(connection.execute(count_statement(query)).scalar_one())


def count_statement(query: WorkitemQuery) -> sa.Select[Any]:
    """The statement of :func:`count`."""
    matching_keys = _keys(query).subquery("matching")
    return sa.select(sa.func.count()).select_from(matching_keys)


def statement(query: WorkitemQuery) -> sa.Select[Any]:
    """The statement of a search: the keys of a page are found first, and data sets read for those alone."""
    keys = _keys(query)
    columns = list(keys.selected_columns)
    if query.after is not None:
        keys = keys.where(is_after(query.order, columns, query.after))
    keys = keys.order_by(*order_by(query.order, columns)).limit(query.limit).offset(query.offset)
    page = keys.subquery("page")
    rows = page.join(t.workitem, t.workitem.c.workitem_key == page.c.result_key)
    return (
        sa.select(*page.c, t.workitem.c.data_set)
        .select_from(rows)
        .order_by(*order_by(query.order, list(page.c)))
    )


def _keys(query: WorkitemQuery) -> sa.Select[Any]:
    """The keys of all that matches, with what they are sorted by."""
    partition_key, w = partition_key_of(query.partition), t.workitem
    conditions = [w.c.partition_key == partition_key]
    for group in matching.by_item(query.terms):
        values = matching.values_of(group, partition_key, t.workitem_value)
        owners = sa.select(values.first.c.owner_key).select_from(values.rows).where(values.condition)
        conditions.append(w.c.workitem_key.in_(owners))
    columns = [_sort_column(order).label(f"order_{n}") for n, order in enumerate(query.order)]
    return sa.select(w.c.workitem_key.label("result_key"), *columns).where(*conditions)


def _sort_column(order: Order) -> sa.ScalarSelect[str]:
    """The indexed value of the attribute; the least of several, NULL where there is none."""
    w, v = t.workitem, t.workitem_value
    return (
        sa.select(sa.func.min(v.c.text))
        .where(
            v.c.partition_key == w.c.partition_key,
            v.c.owner_key == w.c.workitem_key,
            v.c.attribute == order.attribute.value_name,
        )
        .correlate(w)
        .scalar_subquery()
    )
