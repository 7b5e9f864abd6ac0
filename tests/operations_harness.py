"""Long-running operations under test.

:class:`Worker` works off the queues in the test's own process, message by message: tests decide what comes
twice, late or never. :func:`wait_for_end` waits for an operation of a server.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueServiceClient

from shared.operations import queue
from shared.services import operations

Json = dict[str, Any]

COORDINATOR_POINTS = (
    "operations.page_made",
    "operations.planned",
    "operations.steps_sent",
    "operations.beaten",
    "operations.folded",
    "operations.work_finished",
    "operations.ended",
)
STEP_POINTS = ("operations.step_started", "operations.step_worked", "operations.step_finished")
POINTS = {"operations.created", *COORDINATOR_POINTS, *STEP_POINTS}
"""Where operations may be cut off."""


UPDATE_POINTS = (
    "update.requested",
    "update.rewritten",
    "update.appended",
    "update.prepared",
    "update.in_transaction",
    "update.committed",
    "update.ended",
)
"""Where a bulk update may be cut off."""


class Worker:
    """Receives the messages of both queues and hands them to the engine, as the triggers do."""

    def __init__(self, connection: str) -> None:
        self._service = QueueServiceClient.from_connection_string(connection)

    async def run(self, seconds: float = 30.0) -> None:
        """Work until both queues are empty, delayed messages included."""
        deadline = time.monotonic() + seconds
        while await self.turn() or await self.waiting():
            assert time.monotonic() < deadline, "the operations do not come to an end"

    async def turn(self, keep: bool = False) -> int:
        """Work off what is visible now; with ``keep`` the messages stay, as after a crash."""
        count = 0
        for name in (queue.OPERATIONS, queue.STEPS):
            client = self._service.get_queue_client(name)
            messages: list[QueueMessage] = [
                m
                async for m in client.receive_messages(max_messages=32, visibility_timeout=1 if keep else 30)
            ]
            for message in messages:
                count += 1
                await operations.handle(base64.b64decode(message.content), message.dequeue_count > 1)
                if not keep:
                    await client.delete_message(message)
        return count

    async def waiting(self) -> int:
        """Messages in the queues, visible or not."""
        total = 0
        for name in (queue.OPERATIONS, queue.STEPS):
            properties = await self._service.get_queue_client(name).get_queue_properties()
            total += properties.approximate_message_count or 0
        return total

    async def lose(self) -> None:
        """Drop all messages."""
        for name in (queue.OPERATIONS, queue.STEPS):
            await self._service.get_queue_client(name).clear_messages()

    async def peek(self, name: str) -> list[Json]:
        """The visible messages of a queue."""
        messages = await self._service.get_queue_client(name).peek_messages(max_messages=32)
        return [json.loads(base64.b64decode(message.content)) for message in messages]

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()


def wait_for_end(url: str, seconds: float = 60.0) -> Json:
    """The operation at ``url`` once it has ended; it answers 202 until then, 200 from then on."""
    deadline = time.monotonic() + seconds
    while True:
        response = httpx.get(url, timeout=60)
        body: Json = response.json()
        if response.status_code == 200:
            assert body["status"] in ("succeeded", "failed", "canceled"), body
            return body
        assert response.status_code == 202, response.text
        assert body["status"] in ("notStarted", "running"), body
        assert body["percentComplete"] < 100
        assert int(response.headers["Retry-After"]) > 0
        assert time.monotonic() < deadline, f"the operation has not ended: {body}"
        time.sleep(0.2)
