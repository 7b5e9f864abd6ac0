"""Queue triggers: batches, dequeue count, renewal of what takes long, and the poison queue.

Settings are those of host.json ("Azure Queue storage trigger", learn.microsoft.com). A message stays
invisible for half a minute that is renewed while its function runs; when the host dies it is back then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueServiceClient

from devhost import arguments
from devhost.app import Function
from devhost.executions import Executions, execute
from devhost.settings import HostSettings

log = logging.getLogger("devhost.triggers")

_LEASE_SECONDS = int(os.environ.get("DEVHOST_QUEUE_LEASE_SECONDS", "30"))
_SHORTEST_POLL = 0.1


class QueueTrigger:
    """Feeds one queue to one function."""

    def __init__(self, function: Function, settings: HostSettings) -> None:
        self._function = function
        self._settings = settings
        self._service = QueueServiceClient.from_connection_string(function.connection, retry_total=1)
        self._name = function.text("queueName").lower()
        self._queue = self._service.get_queue_client(self._name)
        self._batch = settings.queues.batch_size
        self._executions = Executions(self._batch + self._batch // 2)

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until ``stop``, then let what runs come to its end."""
        async with self._service:
            pause = _SHORTEST_POLL
            longest = self._settings.queues.max_polling_interval
            while not stop.is_set():
                found = await self._poll() if len(self._executions) <= self._batch // 2 else 1
                pause = _SHORTEST_POLL if found else min(2 * pause, longest)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
            await self._executions.drain()

    async def _poll(self) -> int:
        """Fetch a batch and start its messages; how many there were."""
        try:
            messages = [
                message
                async for message in self._queue.receive_messages(
                    messages_per_page=self._batch,
                    max_messages=self._batch,
                    visibility_timeout=_LEASE_SECONDS,
                )
            ]
        except ResourceNotFoundError:
            return 0
        except AzureError as error:
            log.warning("%s: polling failed: %s", self._function.name, type(error).__name__)
            return 0
        for message in messages:
            await self._executions.start(self._process(message))
        return len(messages)

    async def _process(self, message: QueueMessage) -> None:
        limit = self._settings.queues.max_dequeue_count
        count = message.dequeue_count or 1
        if count > limit:  # the host died each time
            await self._poison(message)
            return
        renewal = asyncio.create_task(self._renew(message))
        try:
            done = await self._execute(message)
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])
        if done:
            await self._queue.delete_message(message.id, message.pop_receipt)
        elif count >= limit:
            await self._poison(message)
        else:
            await self._queue.update_message(
                message.id,
                message.pop_receipt,
                visibility_timeout=int(self._settings.queues.visibility_timeout),
            )

    async def _execute(self, message: QueueMessage) -> bool:
        try:
            body = self._decode(message.content)
        except (binascii.Error, UnicodeEncodeError):
            log.error("%s: a message is not base64, as host.json says it is.", self._function.name)
            return False
        argument = arguments.queue_message(
            body,
            id=message.id,
            dequeue_count=message.dequeue_count,
            insertion_time=message.inserted_on,
            expiration_time=message.expires_on,
            time_next_visible=message.next_visible_on,
            pop_receipt=message.pop_receipt,
        )
        return await execute(self._function, argument, self._settings)

    def _decode(self, content: str) -> bytes:
        return base64.b64decode(content, validate=True) if self._settings.queues.base64 else content.encode()

    async def _renew(self, message: QueueMessage) -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 2)
            with contextlib.suppress(AzureError):
                # Shielded: a cancelled request could change the receipt without our learning the new one.
                renewed = await asyncio.shield(
                    self._queue.update_message(
                        message.id, message.pop_receipt, visibility_timeout=_LEASE_SECONDS
                    )
                )
                message.pop_receipt = renewed.pop_receipt

    async def _poison(self, message: QueueMessage) -> None:
        name = f"{self._name}-poison"
        log.error("%s failed too often for a message; see the queue %s.", self._function.name, name)
        with contextlib.suppress(ResourceExistsError):
            await self._service.create_queue(name)
        await self._service.get_queue_client(name).send_message(message.content)
        await self._queue.delete_message(message.id, message.pop_receipt)
