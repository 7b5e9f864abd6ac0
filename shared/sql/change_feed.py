"""The change feed: written with every change, in its transaction; read in order of Sequence.

Sequences are given out from one row whose lock is held until the transaction commits. Writers thus
commit in the order of their sequences and without gaps: a reader that saw N will never find anything
below N appear later. The price is that transactions queue for their last few statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from shared.dicom.identifiers import InstanceKey
from shared.sql import tables as t

CREATE, UPDATE, DELETE = "create", "update", "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """An entry to write."""

    action: str
    key: InstanceKey
    version: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as read. ``state`` is ``current``, ``replaced`` or ``deleted``; the metadata's place is
    given where the instance exists."""

    sequence: int
    timestamp: str
    action: str
    key: InstanceKey
    state: str
    pack: str
    document_offset: int
    document_length: int


def timestamp(moment: datetime | None = None) -> str:
    """UTC as ISO 8601 with seven decimals, which sorts as text."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def append(connection: sa.Connection, changes: Sequence[Change]) -> None:
    """Write ``changes``; must be the last thing a transaction does, for it holds everybody up."""
    if not changes:
        return
    head = t.change_feed_head
    last = connection.execute(sa.select(head).with_hint(head, "WITH (UPDLOCK)", "mssql")).one()
    now = max(timestamp(), last.timestamp)
    connection.execute(sa.update(head).values(sequence=last.sequence + len(changes), timestamp=now))
    connection.execute(
        sa.insert(t.change_feed),
        [
            {
                "sequence": last.sequence + number,
                "timestamp": now,
                "action": change.action,
                "partition_name": change.key.partition,
                "study_instance_uid": change.key.study,
                "series_instance_uid": change.key.series,
                "sop_instance_uid": change.key.instance,
                "version": change.version,
            }
            for number, change in enumerate(changes, start=1)
        ],
    )


def read(
    connection: sa.Connection, offset: int, limit: int, start_time: str | None, end_time: str | None
) -> list[Entry]:
    """``limit`` entries in order of Sequence after passing over ``offset``.

    Without a time window the offset is a sequence number, so that following the feed costs the same at
    any point of it; within ``start_time <= Timestamp < end_time`` it counts entries of the window.
    """
    feed = t.change_feed
    statement = _entries().order_by(feed.c.sequence)
    if start_time is None and end_time is None:
        statement = statement.where(feed.c.sequence > offset).limit(limit)
    else:
        if start_time is not None:
            statement = statement.where(feed.c.timestamp >= start_time)
        if end_time is not None:
            statement = statement.where(feed.c.timestamp < end_time)
        statement = statement.offset(offset).limit(limit)
    return [_entry(row) for row in connection.execute(statement)]


def latest(connection: sa.Connection) -> Entry | None:
    """The entry with the highest Sequence, or None in an empty feed."""
    row = connection.execute(_entries().order_by(t.change_feed.c.sequence.desc()).limit(1)).first()
    return _entry(row) if row is not None else None


def _entries() -> sa.Select[tuple[object, ...]]:
    """Entries with the version of the instance that has their identifiers now."""
    feed, now = t.change_feed, t.instance
    where = (
        sa.select(now.c.version, now.c.pack, now.c.document_offset, now.c.document_length)
        .add_columns(
            t.partition.c.partition_name,
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            now.c.sop_instance_uid,
        )
        .join(t.series, t.series.c.series_key == now.c.series_key)
        .join(t.study, t.study.c.study_key == t.series.c.study_key)
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        .subquery("live")
    )
    columns = ("partition_name", "study_instance_uid", "series_instance_uid", "sop_instance_uid")
    return sa.select(
        feed,
        where.c.version.label("live_version"),
        where.c.pack,
        where.c.document_offset,
        where.c.document_length,
    ).outerjoin(where, sa.and_(*(where.c[column] == feed.c[column] for column in columns)))


def _entry(row: sa.Row[tuple[object, ...]]) -> Entry:
    live = row.live_version
    state = "deleted" if live is None else "current" if live == row.version else "replaced"
    if row.action == DELETE and state == "current":
        state = "replaced"
    key = InstanceKey(
        row.partition_name, row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid
    )
    return Entry(
        row.sequence,
        row.timestamp,
        row.action,
        key,
        state,
        row.pack or "",
        row.document_offset or 0,
        row.document_length or 0,
    )
