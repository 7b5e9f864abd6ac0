"""What functions are called with: the trigger types of ``azure.functions``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from azure.functions.blob import InputStream
from azure.functions.queue import QueueMessage
from azure.functions.timer import TimerRequest


def blob(container: str, name: str, length: int, uri: str) -> InputStream:
    """A blob without its content: the app reads blobs through its own client."""
    return InputStream(data=b"", name=f"{container}/{name}", uri=uri, length=length)


def queue_message(body: bytes, **properties: Any) -> QueueMessage:
    """A message; properties are those of :class:`QueueMessage` (id, dequeue_count, ...)."""
    return QueueMessage(body=body, **properties)


def timer(past_due: bool = False, last: datetime | None = None) -> TimerRequest:
    """A tick of a timer."""
    status = {"Last": last.isoformat()} if last else {}
    return TimerRequest(past_due=past_due, schedule_status=status)
