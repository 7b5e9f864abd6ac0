"""Event reports on their way to the subscribers, and for those who fetch what they missed.

Events are in SQL when the change they report is. A message says so to a queue, whose trigger sends them in
order through the event channel; a timer does the same, for events whose message was lost with a process. What
is sent twice, because a process died in between, has the same Event ID.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

from shared import container, faults
from shared.dicom import event_reports
from shared.errors import DependencyUnavailable
from shared.operations.event_channel import EventChannel
from shared.operations.queue import WORKITEM_EVENTS
from shared.settings import settings
from shared.sql import partitions, workitem_events
from shared.sql.change_feed import timestamp
from shared.sql.workitem_events import WorkitemEvent

log = logging.getLogger(__name__)

_BATCH = 100
_LEASE_SECONDS = 60.0
_SENDING_SECONDS = 30.0
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Missed:
    """Event reports as they are sent; ``lost`` counts those before them that are not kept any more."""

    payloads: list[bytes]
    lost: int


async def announce() -> None:
    """Say that there are new events; where that fails, the timer finds them."""
    faults.point("workitem_events.committed")
    try:
        await container.operation_queue().send(WORKITEM_EVENTS, {})
    except DependencyUnavailable:
        log.warning("No message could be sent about new events; they are sent later.")


async def deliver() -> int:
    """Send what has not been sent; how many events.

    One run sends at a time, here and on other machines. Returns when nothing is left, so that no event waits
    for the next message because this run came while another one was just ending.
    """
    channel, database = container.event_channel(), container.database()
    if channel is None:
        return 0
    owner, done, count = uuid.uuid4().hex, 0, 0
    give_up = time.monotonic() + 2 * _LEASE_SECONDS
    while count or await database.read(workitem_events.is_pending):
        now = datetime.now(UTC)
        until = timestamp(now + timedelta(seconds=_LEASE_SECONDS))
        events = await database.write(workitem_events.take, owner, done, timestamp(now), until, _BATCH)
        if events is None:
            if time.monotonic() > give_up:
                break
            await asyncio.sleep(_PAUSE_SECONDS)
            if not await database.read(workitem_events.is_pending):
                break
            continue
        if not events:
            break
        try:
            await _send(channel, events)
        except BaseException:
            await asyncio.shield(database.write(workitem_events.release, owner))
            raise
        done = events[-1].sequence
        count += len(events)
    return count


async def _send(channel: EventChannel, events: Sequence[WorkitemEvent]) -> None:
    """Send events, those of each subscriber one after the other."""
    found = await container.database().read(partitions.find_all)
    names = {partition.key: partition.name for partition in found}
    by_subscriber: dict[tuple[int, str], list[WorkitemEvent]] = defaultdict(list)
    for event in events:
        by_subscriber[event.partition_key, event.subscriber].append(event)

    async def send(partition_key: int, subscriber: str, own: list[WorkitemEvent]) -> None:
        for event in own:
            await channel.send(names[partition_key], subscriber, _payload(event))

    try:
        async with asyncio.timeout(_SENDING_SECONDS), asyncio.TaskGroup() as group:
            for (partition_key, subscriber), own in by_subscriber.items():
                group.create_task(send(partition_key, subscriber, own))
    except TimeoutError as error:
        raise DependencyUnavailable("The service that sends events is too slow; try again later.") from error
    except ExceptionGroup as error:
        if error.split(DependencyUnavailable)[1] is not None:
            raise
        raise DependencyUnavailable("Events could not be sent; try again later.") from error


def _payload(event: WorkitemEvent) -> bytes:
    return orjson.dumps(event_reports.payload(event.report, event.workitem_uid, event.event_id))


async def missed(partition: str, subscriber: str, after: int, limit: int) -> Missed:
    """Event reports of a subscriber that follow the Event ID ``after``, in order."""

    events, lost = await container.database().read(
        workitem_events.read_missed, partition, subscriber, after, limit
    )
    return Missed([_payload(event) for event in events], lost)


async def last_event_id(partition: str, subscriber: str) -> int:
    """The Event ID of the newest event report of a subscriber; 0 before the first."""

    return await container.database().read(workitem_events.last_event_id, partition, subscriber)


async def connection_url(partition: str, subscriber: str) -> str:
    """The URL by which a subscriber gets its events, which expires; empty where events are only fetched."""
    channel = container.event_channel()
    return "" if channel is None else await channel.url(partition, subscriber)


async def prune() -> int:
    """Forget events older than ``DICOM_WORKITEM_EVENT_DAYS``; how many."""
    before = timestamp(datetime.now(UTC) - timedelta(days=settings().workitem_event_days))
    return await container.database().write(workitem_events.prune, before)
