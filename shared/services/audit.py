"""The audit trail: who did what to which resources, when, and with what outcome; one event a request.

Events are JSON lines of the logger ``dicom.audit``, which Application Insights collects. They hold
identifiers alone: no value of a query, no text from a path that is no UID, no patient data (PS3.15 §A.5
names what an audit message is made of).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

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


def record(event: Event) -> None:
    """Write ``event`` to the trail."""
    line = {
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
    log.info("%s", json.dumps(line))


def _outcome(status: int) -> str:
    """The outcome in the terms of PS3.15 §A.5 (Event Outcome Indicator): success, or whose failure."""
    return "success" if status < 400 else "denied" if status in (401, 403) else "failure"
