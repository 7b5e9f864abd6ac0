"""Subscriptions to workitems and to worklists in SQL (PS3.4 §CC.2.3).

A worklist subscription makes a subscription to each workitem: to those that exist when it begins, and to each
new one. Every change here holds ``workitem_events.hold``, as changes of workitems do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from shared.dicom import event_reports, stored_terms
from shared.dicom.search_terms import Term
from shared.errors import NotFound
from shared.sql import matching, partitions, workitem_events
from shared.sql import tables as t

WORKLIST = "1.2.840.10008.5.1.4.34.5"
FILTERED_WORKLIST = "1.2.840.10008.5.1.4.34.5.1"
"""The UIDs that stand for all workitems, and for all that match a filter."""

_PAGE = 1000
_FINAL = ("COMPLETED", "CANCELED")


def subscribe(
    connection: sa.Connection, partition: str, workitem_uid: str, subscriber: str, deletion_lock: bool
) -> int:
    """Subscribe to a workitem, and report its state; how many reports were written. Raises NotFound."""
    workitem_events.hold(connection)
    partition_key = partitions.find(connection, partition)
    w = t.workitem
    of = (w.c.partition_key == partition_key, w.c.workitem_uid == workitem_uid)
    data_set = connection.execute(sa.select(w.c.data_set).where(*of)).scalar()
    if partition_key is None or data_set is None:
        raise NotFound("The workitem does not exist.")
    s = t.workitem_subscription
    this = (*_of_subscriber(s, partition_key, subscriber), s.c.workitem_uid == workitem_uid)
    changed = connection.execute(sa.update(s).where(*this).values(deletion_lock=int(deletion_lock)))
    if not changed.rowcount:
        _insert(connection, partition_key, subscriber, [workitem_uid], deletion_lock)
    report = event_reports.state(orjson.loads(data_set))
    return workitem_events.record_for(connection, partition_key, subscriber, [(workitem_uid, report)])


def subscribe_to_worklist(
    connection: sa.Connection,
    partition: str,
    subscriber: str,
    deletion_lock: bool,
    terms: Sequence[Term] | None,
) -> int:
    """Subscribe to all workitems, or to those that match ``terms``, that are there and that will be.

    A subscription to a workitem that is there stays as it is. With a deletion lock the states of the others
    are reported (PS3.4 Table CC.2.3-2). Returns how many reports were written.
    """
    workitem_events.hold(connection)
    partition_key = partitions.key_of(connection, partition)
    w = t.worklist_subscription
    filtered = terms is not None
    this = (*_of_subscriber(w, partition_key, subscriber), w.c.filtered == int(filtered))
    text = orjson.dumps([stored_terms.dump(term) for term in terms or ()]).decode()
    connection.execute(sa.delete(w).where(*this))
    row: dict[str, Any] = {"partition_key": partition_key, "subscriber": subscriber}
    row |= {"filtered": int(filtered), "deletion_lock": int(deletion_lock), "filter": text}
    connection.execute(sa.insert(w), row)
    written = 0
    for page in _workitems(connection, partition_key, subscriber, terms or ()):
        new = [workitem.workitem_uid for workitem in page if workitem.subscriber is None]
        _insert(connection, partition_key, subscriber, new, deletion_lock)
        reports = [
            (workitem.workitem_uid, event_reports.state(orjson.loads(workitem.data_set)))
            for workitem in page
            if deletion_lock and workitem.subscriber is None
        ]
        written += workitem_events.record_for(connection, partition_key, subscriber, reports)
    return written


def apply_global(connection: sa.Connection, partition_key: int, workitem_uid: str) -> None:
    """Subscribe everybody to a new workitem who is subscribed to the worklist.

    Called in the transaction that creates the workitem, after its row and what searches match are written
    and before the event reports of its creation are.
    """
    workitem_events.hold(connection)
    w = t.worklist_subscription
    locks: dict[str, bool] = {}
    for row in connection.execute(sa.select(w).where(w.c.partition_key == partition_key)).all():
        terms = [stored_terms.load(term) for term in orjson.loads(row.filter or "[]")]
        if not row.filtered or _matches(connection, partition_key, workitem_uid, terms):
            locks[row.subscriber] = locks.get(row.subscriber, False) or bool(row.deletion_lock)
    for subscriber, lock in locks.items():
        _insert(connection, partition_key, subscriber, [workitem_uid], lock)


def unsubscribe(connection: sa.Connection, partition: str, workitem_uid: str, subscriber: str) -> None:
    """End a subscription to a workitem. Raises NotFound."""
    workitem_events.hold(connection)
    s = t.workitem_subscription
    own = _of_subscriber(s, partitions.find(connection, partition), subscriber)
    if not connection.execute(sa.delete(s).where(*own, s.c.workitem_uid == workitem_uid)).rowcount:
        raise NotFound("There is no such subscription.")


def unsubscribe_from_worklist(
    connection: sa.Connection, partition: str, subscriber: str, filtered: bool
) -> None:
    """End a worklist subscription and the subscriber's subscriptions to workitems. Raises NotFound.

    The one to all workitems takes the filtered one with it; while it stands, the filtered one ends alone.
    """
    workitem_events.hold(connection)
    partition_key = partitions.find(connection, partition)
    w, s = t.worklist_subscription, t.workitem_subscription
    own = _of_subscriber(w, partition_key, subscriber)
    ended = connection.execute(sa.delete(w).where(*own, *([w.c.filtered == 1] if filtered else []))).rowcount
    if connection.execute(sa.select(w.c.filtered).where(*own)).first() is None:
        gone = sa.delete(s).where(*_of_subscriber(s, partition_key, subscriber))
        ended += 0 if filtered and not ended else connection.execute(gone).rowcount
    if not ended:
        raise NotFound("There is no such subscription.")


def suspend(connection: sa.Connection, partition: str, subscriber: str, filtered: bool) -> None:
    """New workitems make no subscriptions any more; those there are stay. Raises NotFound."""
    workitem_events.hold(connection)
    w = t.worklist_subscription
    own = _of_subscriber(w, partitions.find(connection, partition), subscriber)
    if not connection.execute(sa.delete(w).where(*own, w.c.filtered == int(filtered))).rowcount:
        raise NotFound("There is no such subscription.")


def remove_final(connection: sa.Connection, before: str, limit: int) -> int:
    """Remove workitems that have been completed or canceled since before a timestamp, but those that a
    subscriber holds a deletion lock on; how many."""
    workitem_events.hold(connection)
    w, s, v = t.workitem, t.workitem_subscription, t.workitem_value
    same = sa.and_(s.c.partition_key == w.c.partition_key, s.c.workitem_uid == w.c.workitem_uid)
    locked = sa.exists().where(same, s.c.deletion_lock == 1)
    found = connection.execute(
        sa.select(w.c.workitem_key, w.c.partition_key, w.c.workitem_uid)
        .where(w.c.state.in_(_FINAL), w.c.changed < before, ~locked)
        .limit(limit)
    ).all()
    for row in found:
        partition = row.partition_key
        own = (s.c.partition_key == partition, s.c.workitem_uid == row.workitem_uid)
        connection.execute(sa.delete(s).where(*own))
        of_row = (v.c.partition_key == partition, v.c.owner_key == row.workitem_key)
        connection.execute(sa.delete(v).where(*of_row))
        connection.execute(sa.delete(w).where(w.c.workitem_key == row.workitem_key))
    return len(found)


def _of_subscriber(
    table: sa.Table, partition_key: int | None, subscriber: str
) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.partition_key == sa.literal(partition_key, sa.BigInteger), table.c.subscriber == subscriber


def _insert(
    connection: sa.Connection, partition_key: int, subscriber: str, uids: Sequence[str], deletion_lock: bool
) -> None:
    rows = [
        {
            "partition_key": partition_key,
            "workitem_uid": uid,
            "subscriber": subscriber,
            "deletion_lock": int(deletion_lock),
        }
        for uid in uids
    ]
    if rows:
        connection.execute(sa.insert(t.workitem_subscription), rows)


def _workitems(
    connection: sa.Connection, partition_key: int, subscriber: str, terms: Sequence[Term]
) -> Iterator[Sequence[Any]]:
    """Pages of workitems that match; their ``subscriber`` is None where they are not subscribed to."""
    w, s = t.workitem, t.workitem_subscription
    own = sa.and_(
        s.c.partition_key == w.c.partition_key,
        s.c.workitem_uid == w.c.workitem_uid,
        s.c.subscriber == subscriber,
    )
    statement = (
        sa.select(w.c.workitem_key, w.c.workitem_uid, w.c.data_set, s.c.subscriber)
        .select_from(w.outerjoin(s, own))
        .where(*_matching(partition_key, terms))
        .order_by(w.c.workitem_key)
        .limit(_PAGE)
    )
    last = 0
    while page := connection.execute(statement.where(w.c.workitem_key > last)).all():
        yield page
        last = page[-1].workitem_key


def _matches(connection: sa.Connection, partition_key: int, workitem_uid: str, terms: Sequence[Term]) -> bool:
    w = t.workitem
    conditions = (w.c.workitem_uid == workitem_uid, *_matching(partition_key, terms))
    return connection.execute(sa.select(w.c.workitem_key).where(*conditions)).first() is not None


def _matching(partition_key: int, terms: Sequence[Term]) -> list[sa.ColumnElement[bool]]:
    """Conditions on a workitem, the same as those of a search."""
    w = t.workitem
    conditions: list[sa.ColumnElement[bool]] = [w.c.partition_key == partition_key]
    key: sa.ScalarSelect[int] = sa.select(sa.literal(partition_key, sa.BigInteger)).scalar_subquery()
    for group in matching.by_item(tuple(terms)):
        values = matching.values_of(group, key, t.workitem_value)
        owners = sa.select(values.first.c.owner_key).select_from(values.rows).where(values.condition)
        conditions.append(w.c.workitem_key.in_(owners))
    return conditions
