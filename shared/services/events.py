"""Events of images that came, changed or went: an event a change of the feed, identifiers and no values.

Types and data are those of the events of Azure Health Data Services, so that a subscriber of theirs
understands these. An event's id is made of the server's name and the Sequence: one that comes twice has the
same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cache

from shared import container, faults
from shared.dicom.identifiers import DEFAULT_PARTITION
from shared.neighbours.events import Event
from shared.services import follower
from shared.settings import settings
from shared.sql.change_feed import CREATE, DELETE, UPDATE, Entry

NAME = "events"
DEAD_LETTERS = "eventdeadletters"
_TYPES = {CREATE: "DicomImageCreated", UPDATE: "DicomImageUpdated", DELETE: "DicomImageDeleted"}
_AT_ONCE = 100


def configured() -> bool:
    """Whether events are sent at all."""
    return bool(settings().events_endpoint)


async def follow(seconds: float = 50.0) -> int:
    """Send the events of what has changed; how many."""
    return await follower.follow(_consumer(), seconds) if configured() else 0


def to_event(entry: Entry) -> Event:
    """The event of a change."""
    key, host = entry.key, settings().host_name
    partition = "" if key.partition == DEFAULT_PARTITION else f"/partitions/{key.partition}"
    resource = f"studies/{key.study}/series/{key.series}/instances/{key.instance}"
    return Event(
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://{host}/v2/changefeed/{entry.sequence}")),
        type=f"Microsoft.HealthcareApis.{_TYPES[entry.action]}",
        source=f"https://{host}/v2",
        subject=f"{host}/v2{partition}/{resource}",
        time=entry.timestamp,
        data={
            "partitionName": key.partition,
            "imageStudyInstanceUid": key.study,
            "imageSeriesInstanceUid": key.series,
            "imageSopInstanceUid": key.instance,
            "serviceHostName": host,
            "sequenceNumber": entry.sequence,
        },
    )


class _Events:
    """The consumer of the feed that sends events."""

    name = NAME
    from_start = False
    alone = True
    tables: Sequence[str] = (DEAD_LETTERS,)

    async def deliver(self, entries: Sequence[Entry]) -> None:
        publisher = await container.event_publisher()
        for start in range(0, len(entries), _AT_ONCE):
            await publisher.publish([to_event(entry) for entry in entries[start : start + _AT_ONCE]])
            faults.point("events.published")

    def table_of(self, error: Exception) -> str:
        return DEAD_LETTERS

    async def on_retry(self, entries: Sequence[Entry], error: Exception) -> None:
        return None


@cache
def _consumer() -> follower.Consumer:
    return _Events()
