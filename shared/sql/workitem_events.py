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


def _event(row: sa.Row[tuple[object, ...]]) -> WorkitemEvent:
    return WorkitemEvent(
        row.sequence,
        row.partition_key,
        row.subscriber,
        row.event_id,
        row.workitem_uid,
        EventReport(EventType(row.type), orjson.loads(row.content)),
    )
