"""Event reports in SQL: written in the transaction of the change they report, read until they are old.

Every transaction that changes workitems or subscriptions holds the one row of ``workitem_event_head`` from
before it decides who is told until its end. So a subscriber sees changes in the order of their commits, and
a subscription that begins while a workitem changes sees either the change or its outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from shared.dicom.event_reports import EventReport, EventType
from shared.sql import partitions
from shared.sql import tables as t
from shared.sql.change_feed import timestamp


@dataclass(frozen=True, slots=True)
class WorkitemEvent:
    """An event report for one subscriber; ``event_id`` counts those of a subscriber without gaps."""

    sequence: int
    partition_key: int
    subscriber: str
    event_id: int
    workitem_uid: str
    report: EventReport


def hold(connection: sa.Connection) -> int:
    """Wait for the other transactions that change workitems or subscriptions; the last sequence so far."""
    head = t.workitem_event_head
    held = sa.select(head.c.sequence).with_hint(head, "WITH (UPDLOCK)", "mssql")
    return int(connection.execute(held).scalar_one())


def record(
    connection: sa.Connection, partition_key: int, workitem_uid: str, reports: Sequence[EventReport]
) -> int:
    """Write ``reports`` of a workitem for each of its subscribers; how many were written.

    Must be the last thing the transaction of the change does, for it holds everybody up.
    """
    hold(connection)
    s = t.workitem_subscription
    found = connection.execute(
        sa.select(s.c.subscriber)
        .where(s.c.partition_key == partition_key, s.c.workitem_uid == workitem_uid)
        .order_by(s.c.subscriber)
    ).scalars()
    return _write(
        connection,
        partition_key,
        {subscriber: [(workitem_uid, report) for report in reports] for subscriber in found},
    )


def record_for(
    connection: sa.Connection,
    partition_key: int,
    subscriber: str,
    reports: Iterable[tuple[str, EventReport]],
) -> int:
    """Write (workitem, report) for one subscriber alone: what it learns when its subscription begins."""
    return _write(connection, partition_key, {subscriber: list(reports)})


def _write(
    connection: sa.Connection,
    partition_key: int,
    given: Mapping[str, Sequence[tuple[str, EventReport]]],
) -> int:
    count = sum(map(len, given.values()))
    if not count:
        return 0
    sequence = hold(connection)
    now = timestamp()
    rows = []
    for subscriber, reports in given.items():
        event_id = _take_numbers(connection, partition_key, subscriber, len(reports))
        for workitem_uid, report in reports:
            sequence, event_id = sequence + 1, event_id + 1
            rows.append(
                {
                    "sequence": sequence,
                    "partition_key": partition_key,
                    "subscriber": subscriber,
                    "event_id": event_id,
                    "workitem_uid": workitem_uid,
                    "type": int(report.type),
                    "content": orjson.dumps(report.attributes).decode(),
                    "created": now,
                }
            )
    connection.execute(sa.insert(t.workitem_event), rows)
    connection.execute(sa.update(t.workitem_event_head).values(sequence=sequence))
    return count


def _take_numbers(connection: sa.Connection, partition_key: int, subscriber: str, count: int) -> int:
    """The last number given to the subscriber before the ``count`` it gets now."""
    s = t.workitem_subscriber
    this = (s.c.partition_key == partition_key, s.c.subscriber == subscriber)
    last = connection.execute(sa.select(s.c.last_event_id).where(*this)).scalar()
    if last is None:
        row = {"partition_key": partition_key, "subscriber": subscriber, "last_event_id": count}
        connection.execute(sa.insert(s), row)
        return 0
    connection.execute(sa.update(s).where(*this).values(last_event_id=last + count))
    return int(last)


def read_missed(
    connection: sa.Connection, partition: str, subscriber: str, after: int, limit: int
) -> tuple[list[WorkitemEvent], int]:
    """Up to ``limit`` events that follow ``after`` in a partition given by name, and how many before them are
    not kept any more."""
    key = partitions.find(connection, partition)
    if key is None:
        return [], 0
    last = last_event_id(connection, partition, subscriber)
    events = read(connection, key, subscriber, after, limit)
    first = events[0].event_id if events else last + 1
    return events, max(0, first - after - 1)


def read(
    connection: sa.Connection, partition_key: int, subscriber: str, after: int, limit: int
) -> list[WorkitemEvent]:
    """Up to ``limit`` events of a subscriber that follow ``after``, in order."""
    e = t.workitem_event
    statement = (
        sa.select(e)
        .where(e.c.partition_key == partition_key, e.c.subscriber == subscriber, e.c.event_id > after)
        .order_by(e.c.event_id)
        .limit(limit)
    )
    return [_event(row) for row in connection.execute(statement)]


def last_event_id(connection: sa.Connection, partition: str, subscriber: str) -> int:
    """The number of the newest event a subscriber has got in a partition; 0 before the first."""
    s, p = t.workitem_subscriber, t.partition
    found = connection.execute(
        sa.select(s.c.last_event_id)
        .join(p, p.c.partition_key == s.c.partition_key)
        .where(p.c.partition_name == partition, s.c.subscriber == subscriber)
    ).scalar()
    return int(found or 0)


def prune(connection: sa.Connection, before: str) -> int:
    """Forget events that were written before a timestamp; how many."""
    return connection.execute(sa.delete(t.workitem_event).where(t.workitem_event.c.created < before)).rowcount


# --- delivery ----------------------------------------------------------------------------------------


def is_pending(connection: sa.Connection) -> bool:
    """Whether there are events that have not been sent."""
    e, d = t.workitem_event, t.workitem_event_delivery
    sent = sa.select(d.c.sequence).scalar_subquery()
    return connection.execute(sa.select(e.c.sequence).where(e.c.sequence > sent).limit(1)).first() is not None


def take(
    connection: sa.Connection, owner: str, done: int, now: str, until: str, limit: int
) -> list[WorkitemEvent] | None:
    """The next events to send, in order, for the run ``owner``, which has sent those up to ``done``.

    None while another run sends events and its time is not up: two at once would mix up their order. With an
    empty list the run has ended.
    """
    d = t.workitem_event_delivery
    row = connection.execute(sa.select(d).with_hint(d, "WITH (UPDLOCK)", "mssql")).one()
    sequence = row.sequence
    if row.owner == owner:
        sequence = max(sequence, done)
    elif row.owner and row.until > now:
        return None
    e = t.workitem_event
    rows = connection.execute(sa.select(e).where(e.c.sequence > sequence).order_by(e.c.sequence).limit(limit))
    events = [_event(found) for found in rows]
    mine = {"owner": owner, "until": until} if events else {"owner": "", "until": ""}
    connection.execute(sa.update(d).values(sequence=sequence, **mine))
    return events


def release(connection: sa.Connection, owner: str) -> None:
    """Let another run send what this one could not."""
    d = t.workitem_event_delivery
    connection.execute(sa.update(d).where(d.c.owner == owner).values(owner="", until=""))


def _event(row: sa.Row[tuple[object, ...]]) -> WorkitemEvent:
    return WorkitemEvent(
        row.sequence,
        row.partition_key,
        row.subscriber,
        row.event_id,
        row.workitem_uid,
        EventReport(EventType(row.type), orjson.loads(row.content)),
    )
