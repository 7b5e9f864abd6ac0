"""The queues: coordinators of long-running operations, their steps, and word of events to send."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.queue.aio import QueueServiceClient

from shared import telemetry
from shared.errors import DependencyUnavailable

OPERATIONS = "operations"
STEPS = "operation-steps"
WORKITEM_EVENTS = "workitem-events"
POISON = "-poison"
BLOBS_POISON = "webjobs-blobtrigger-poison"
"""Where the platform puts what blob triggers failed at."""

_QUEUES = OPERATIONS, STEPS, WORKITEM_EVENTS
_FOR_EVER = -1


class OperationQueue:
    """Sends messages; the triggers of ``functions/queue_triggers.py`` receive them."""

    def __init__(self, service: QueueServiceClient) -> None:
        self._service = service

    async def send(self, queue: str, message: dict[str, Any], delay: int = 0) -> None:
        """Send ``message``, visible after ``delay`` seconds. Raises DependencyUnavailable."""
        content = base64.b64encode(json.dumps(telemetry.carried(message)).encode()).decode()
        client = self._service.get_queue_client(queue)
        try:
            with telemetry.dependency("queue send", **{"peer.service": "Queue Storage"}):
                try:
                    await client.send_message(content, visibility_timeout=delay, time_to_live=_FOR_EVER)
                except ResourceNotFoundError:
                    await self._create(queue)
                    await client.send_message(content, visibility_timeout=delay, time_to_live=_FOR_EVER)
        except (AzureError, OSError) as error:
            raise _unavailable() from error

    async def prepare(self) -> None:
        """Make the queues that do not exist, those of the poison messages too."""
        try:
            for queue in (OPERATIONS, STEPS):
                await self._create(queue)
                await self._create(queue + POISON)
            await self._create(WORKITEM_EVENTS)
        except (AzureError, OSError) as error:
            raise _unavailable() from error

    async def depths(self) -> dict[str, int]:
        """About how many messages each queue has, hidden ones too; queues that do not exist are left out."""
        found: dict[str, int] = {}
        try:
            for queue in (*(q + s for q in _QUEUES for s in ("", POISON)), BLOBS_POISON):
                with contextlib.suppress(ResourceNotFoundError):
                    properties = await self._service.get_queue_client(queue).get_queue_properties()
                    found[queue] = properties.approximate_message_count or 0
        except (AzureError, OSError) as error:
            raise _unavailable() from error
        return found

    async def ping(self) -> None:
        """Raise DependencyUnavailable unless Queue Storage answers."""
        try:
            async for _ in self._service.list_queues(results_per_page=1):
                break
        except (AzureError, OSError) as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    async def _create(self, queue: str) -> None:
        with contextlib.suppress(ResourceExistsError):
            await self._service.create_queue(queue)


def _unavailable() -> DependencyUnavailable:
    return DependencyUnavailable("Queue Storage is unavailable; try again later.")


def create_service(connection: str, uri: str, credential: Any) -> QueueServiceClient:
    """A client for a connection string (local) or for an account URI and a credential (Azure)."""
    retries: dict[str, Any] = {
        "retry_total": 2,
        "retry_backoff_factor": 0.2,
        "connection_timeout": 5,
        "read_timeout": 30,
    }
    if connection:
        return QueueServiceClient.from_connection_string(connection, **retries)
    return QueueServiceClient(uri, credential=credential, **retries)
