"""Subscriptions to workitems (PS3.18 §11.10 to §11.12), and how long final workitems are kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from shared import container
from shared.dicom.search_terms import Term
from shared.services import workitem_events
from shared.settings import settings
from shared.sql import workitem_subscriptions as index
from shared.sql.change_feed import timestamp
from shared.sql.workitem_subscriptions import FILTERED_WORKLIST, WORKLIST

__all__ = ["FILTERED_WORKLIST", "WORKLIST"]

_BATCH = 500


async def subscribe(
    partition: str, uid: str, subscriber: str, deletion_lock: bool, terms: Sequence[Term] | None
) -> str:
    """Subscribe to a workitem or a worklist; ``terms`` are those of the filtered worklist.

    Returns the URL by which the subscriber connects, empty where events are only fetched. Raises NotFound.
    """
    url = await workitem_events.connection_url(partition, subscriber)
    database = container.database()
    if uid in (WORKLIST, FILTERED_WORKLIST):
        written = await database.write(
            index.subscribe_to_worklist, partition, subscriber, deletion_lock, terms
        )
    else:
        written = await database.write(index.subscribe, partition, uid, subscriber, deletion_lock)
    if written:
        await workitem_events.announce()
    return url


async def unsubscribe(partition: str, uid: str, subscriber: str) -> None:
    """End a subscription to a workitem or a worklist. Raises NotFound."""
    database = container.database()
    if uid in (WORKLIST, FILTERED_WORKLIST):
        filtered = uid == FILTERED_WORKLIST
        await database.write(index.unsubscribe_from_worklist, partition, subscriber, filtered)
    else:
        await database.write(index.unsubscribe, partition, uid, subscriber)


async def suspend(partition: str, uid: str, subscriber: str) -> None:
    """Let new workitems make no subscriptions any more. Raises NotFound."""
    await container.database().write(index.suspend, partition, subscriber, uid == FILTERED_WORKLIST)


async def remove_final() -> int:
    """Remove workitems that were completed or canceled more than ``DICOM_WORKITEM_DAYS`` ago and that nobody
    holds a deletion lock on; how many. None where the setting is 0."""
    days = settings().workitem_days
    if not days:
        return 0
    before = timestamp(datetime.now(UTC) - timedelta(days=days))
    removed = 0
    while count := await container.database().write(index.remove_final, before, _BATCH):
        removed += count
    return removed
