"""The audit trail: who did what to which resources, when, and with what outcome; one event a request.

Events are JSON lines of the logger ``dicom.audit``, which Application Insights collects, and where a setting
says so of blobs in the container ``audit``. They hold identifiers alone: no value of a query, no text from a
path that is no UID, no patient data (PS3.15 §A.5 names what an audit message is made of).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from shared import container
from shared.settings import settings

log = logging.getLogger("dicom.audit")

_MOST_INSTANCES = 1000
"""SOP Instance UIDs in one event; a store of more says how many there were."""


@dataclass(frozen=True, slots=True)
class Event:
    """What one request did.

    ``caller`` is the object id of a user or application and ``client`` the application, both empty for
    anonymous requests; ``resource`` maps the names of path parameters to identifiers; ``instances`` are the
    SOP Instance UIDs of a store; ``status`` is the HTTP status.
    """

    caller: str
    client: str
    transaction: str
    method: str
    partition: str
    resource: dict[str, str]
    instances: Sequence[str]
    status: int
    milliseconds: int


async def record(event: Event) -> None:
    """Write ``event`` to the trail; it is durable in the container, where events go there.

    Raises DependencyUnavailable where it could not be written there: then nobody may be answered.
    """
    line = json.dumps(_line(event))
    if settings().audit:
        log.info("%s", line)
    if settings().audit_container:
        await container.audit_trail().append(f"{line}\n".encode())


def _line(event: Event) -> dict[str, object]:
    """``event`` as JSON; an append whose answer was lost may leave it twice, with the same ``id``."""
    line: dict[str, object] = {
        "id": uuid.uuid4().hex,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "caller": event.caller,
        "client": event.client,
        "transaction": event.transaction,
        "method": event.method,
        "partition": event.partition,
        **event.resource,
        "outcome": _outcome(event.status),
        "status": event.status,
        "milliseconds": event.milliseconds,
    }
    if event.instances:
        line["instances"] = list(event.instances[:_MOST_INSTANCES])
        line["numberOfInstances"] = len(event.instances)
    return line


def _outcome(status: int) -> str:
    """The outcome in the terms of PS3.15 §A.5 (Event Outcome Indicator): success, or whose failure."""
    return "success" if status < 400 else "denied" if status in (401, 403) else "failure"
