"""Subscriptions to workitems and to worklists in SQL (PS3.4 §CC.2.3)."""

from __future__ import annotations

import sqlalchemy as sa

from shared.sql import tables as t
from shared.sql import workitem_events


def apply_global(connection: sa.Connection, partition_key: int, workitem_uid: str) -> None:
    """Subscribe everybody to a new workitem who is subscribed to the worklist.

    Called in the transaction that creates the workitem, after its row is written and before the event
    reports of its creation are.
    """
    workitem_events.hold(connection)
    w = t.worklist_subscription
    found = connection.execute(
        sa.select(w.c.subscriber, sa.func.max(w.c.deletion_lock).label("deletion_lock"))
        .where(w.c.partition_key == partition_key, w.c.filtered == 0)
        .group_by(w.c.subscriber)
    ).all()
    rows = [
        {
            "partition_key": partition_key,
            "workitem_uid": workitem_uid,
            "subscriber": row.subscriber,
            "deletion_lock": row.deletion_lock,
        }
        for row in found
    ]
    if rows:
        connection.execute(sa.insert(t.workitem_subscription), rows)
