"""Long-running operations under test.

:class:`Worker` works off the queues in the test's own process, message by message: tests decide what comes
twice, late or never. :func:`wait_for_end` waits for an operation of a server. :class:`TwoServers` runs an
app on two hosts and kills them in turn.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueServiceClient
from pydicom.uid import generate_uid

from shared.operations import queue
from shared.services import operations
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart

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
TAG_POINTS = (
    "query_tags.announced",
    "query_tags.added",
    "query_tags.deleting",
    "reindex.read",
    "reindex.written",
    "reindex.ready",
    "tag_deletion.removed",
    "tag_deletion.forgotten",
)
POINTS = {"operations.created", *COORDINATOR_POINTS, *STEP_POINTS, *TAG_POINTS}
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


class TwoServers:
    """Two hosts of the app on one storage and one database: a scaled-out app whose instances get killed."""

    def __init__(self, start_server: StartServer, **environment: str) -> None:
        options = {"DEVHOST_QUEUE_LEASE_SECONDS": "5", "DICOM_OPERATIONS_SCHEDULE": "*/5 * * * * *"}
        first = start_server(workers=1, own_storage=True, **options, **environment)
        shared = {name: first.environment[name] for name in ("AzureWebJobsStorage", "DICOM_SQL_URL")}
        self.servers = [first, start_server(workers=1, **shared, **options, **environment)]
        self.kills = 0

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request to whichever host answers; ``path`` begins at the root.

        It may have been worked on twice.
        """
        deadline = time.monotonic() + 60
        while True:
            for server in self.servers:
                with contextlib.suppress(httpx.TransportError):
                    response = httpx.request(method, f"{server.url}{path}", timeout=60, **options)
                    if response.status_code != 503:
                        return response
            assert time.monotonic() < deadline, "no host answers"
            time.sleep(0.1)

    @contextlib.contextmanager
    def killing(self) -> Iterator[None]:
        """Kill one of the hosts every few seconds: SIGKILL to all its processes, and start it again.

        At full size the pauses are longer, so that there is an end to it: a host takes seconds to start.
        """
        shortest, longest = (0.5, 4.0) if MOST <= 5000 else (2.0, 8.0)
        stop = threading.Event()

        def kill() -> None:
            chance = random.Random(1)
            while not stop.wait(chance.uniform(shortest, longest)):
                victim = self.servers[self.kills % 2]
                victim.kill()
                self.kills += 1
                victim.restart()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            stop.set()
            killer.join()

    def wait_for_end(self, id: str, seconds: float) -> Json:
        """The operation once it has ended; what it says until then must not be more than is so."""
        deadline = time.monotonic() + seconds
        percent = 0
        while True:
            response = self.request("GET", f"/v2/operations/{id}")
            body: Json = response.json()
            if response.status_code == 200:
                return body
            assert response.status_code == 202, response.text
            assert body["status"] in ("notStarted", "running"), body
            assert percent <= body["percentComplete"] < 100
            percent = body["percentComplete"]
            assert time.monotonic() < deadline, f"the operation has not ended: {body}"
            time.sleep(0.2)


def store_many(server: Server, count: int, a_study: int = 100, **attributes: Any) -> list[str]:
    """Store ``count`` small instances, ``a_study`` in each study; the Study Instance UIDs.

    InstanceNumber and SliceThickness count from 1; further attributes are given by keyword.
    """
    studies = []
    with httpx.Client(timeout=120) as client:
        for start in range(0, count, a_study):
            study, series = generate_uid(), generate_uid()
            studies.append(study)
            files = [
                make_file(
                    study, series, frames=0, InstanceNumber=number, SliceThickness=str(number), **attributes
                )
                for number in range(start + 1, min(start + a_study, count) + 1)
            ]
            body, headers = multipart(files)
            client.post(f"{server.v2}/studies", content=body, headers=headers).raise_for_status()
    return studies


MOST = int(os.environ.get("DICOM_TEST_KILLED_INSTANCES", "1000"))
"""Instances in the tests that kill servers while an operation runs: 20,000 for the whole of it."""
