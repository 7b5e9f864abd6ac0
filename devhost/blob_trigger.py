"""Blob triggers by container scan: every version (ETag) of a blob fires a function once, or more.

Receipts in the container ``azure-webjobs-hosts`` say what has fired, so that a restart fires only what is
new. A receipt is written after the function has succeeded: a host that dies in between fires again (at
least once). A blob that fails ``poisonBlobThreshold`` times gets a receipt and a message in
``webjobs-blobtrigger-poison``. Differences from the platform: failures are counted in memory, receipts are
lines of append blobs instead of one blob each, and a container is listed anew each time (no storage logs).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient
from azure.storage.queue.aio import QueueServiceClient

from devhost import arguments
from devhost.app import Function
from devhost.executions import Executions, execute
from devhost.settings import HostSettings

log = logging.getLogger("devhost.triggers")

POISON_QUEUE = "webjobs-blobtrigger-poison"
_HOST_CONTAINER = "azure-webjobs-hosts"
_APPENDS = 40_000  # an append blob takes 50,000
_SCAN_SHARE = 10  # the pause after a scan is at least so many times what the scan took


class BlobTrigger:
    """Watches one container for one function."""

    def __init__(self, function: Function, settings: HostSettings) -> None:
        self._function = function
        self._settings = settings
        container, _, pattern = function.text("path").partition("/")
        self._pattern = compile_pattern(pattern or "{name}")
        self._interval = float(os.environ.get("DEVHOST_BLOB_SCAN_SECONDS", "1"))
        self._service = BlobServiceClient.from_connection_string(function.connection, retry_total=1)
        self._queues = QueueServiceClient.from_connection_string(function.connection)
        self._container = self._service.get_container_client(container)
        self._receipts = Receipts(self._service.get_container_client(_HOST_CONTAINER), function.name)
        self._executions = Executions(settings.blobs.max_degree_of_parallelism)
        self._listing_seconds = 0.0
        self._running: set[tuple[str, str]] = set()
        self._failures: Counter[tuple[str, str]] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Scan until ``stop``, then let what runs come to its end."""
        async with self._service, self._queues:
            first = True
            while not stop.is_set():
                try:
                    if first:
                        await self._receipts.load()
                    listed = await self._scan(stop)
                    if not stop.is_set():
                        await self._receipts.forget_all_but(listed, compact=first)
                        first = False
                except AzureError as error:
                    log.warning("%s: scanning failed: %s", self._function.name, type(error).__name__)
                pause = max(self._interval, _SCAN_SHARE * self._listing_seconds)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
            await self._executions.drain()

    async def _scan(self, stop: asyncio.Event) -> set[str]:
        """Fire for every blob without a receipt; the names of all there are."""
        listed: set[str] = set()
        started, waited = time.monotonic(), 0.0
        try:
            async for blob in self._container.list_blobs():
                if stop.is_set():
                    break
                listed.add(blob.name)
                version = (blob.name, str(blob.etag))
                if version in self._running or version in self._receipts:
                    continue
                if self._pattern.fullmatch(blob.name):
                    self._running.add(version)
                    before = time.monotonic()
                    await self._executions.start(self._fire(blob))
                    waited += time.monotonic() - before
        except ResourceNotFoundError:  # the container does not exist yet
            return set()
        self._listing_seconds = time.monotonic() - started - waited
        return listed

    async def _fire(self, blob: BlobProperties) -> None:
        version = (blob.name, str(blob.etag))
        uri = self._container.get_blob_client(blob.name).url
        argument = arguments.blob(self._container.container_name, blob.name, blob.size, uri)
        try:
            if not await execute(self._function, argument, self._settings):
                self._failures[version] += 1
                if self._failures[version] < self._settings.blobs.poison_blob_threshold:
                    return
                await self._poison(blob)
            await self._receipts.add(version)
            self._failures.pop(version, None)
        finally:
            self._running.discard(version)

    async def _poison(self, blob: BlobProperties) -> None:
        message = json.dumps(
            {
                "Type": "BlobTrigger",
                "FunctionId": f"Host.Functions.{self._function.name}",
                "BlobType": "BlockBlob",
                "ContainerName": self._container.container_name,
                "BlobName": blob.name,
                "ETag": f'"{blob.etag}"',
            }
        )
        log.error("%s failed too often for a blob; see the queue %s.", self._function.name, POISON_QUEUE)
        with contextlib.suppress(ResourceExistsError):
            await self._queues.create_queue(POISON_QUEUE)
        text = base64.b64encode(message.encode()).decode() if self._settings.queues.base64 else message
        await self._queues.get_queue_client(POISON_QUEUE).send_message(text)


class Receipts:
    """Which versions of which blobs a function has seen, kept in append blobs: one JSON line each."""

    def __init__(self, container: ContainerClient, function_name: str) -> None:
        self._container = container
        self._prefix = f"blobreceipts/devhost/{function_name}/"
        self._etags: dict[str, str] = {}
        self._lines = 0
        self._generation = 0
        self._appends = _APPENDS
        self._lock = asyncio.Lock()

    def __contains__(self, version: tuple[str, str]) -> bool:
        return self._etags.get(version[0]) == version[1]

    async def load(self) -> None:
        """Read what earlier hosts have written."""
        with contextlib.suppress(ResourceExistsError):
            await self._container.create_container()
        async for blob in self._container.list_blobs(name_starts_with=self._prefix):
            content = await (await self._container.download_blob(blob.name)).readall()
            for line in content.decode().splitlines():
                name, etag = json.loads(line)
                self._etags[name] = etag
                self._lines += 1
            self._generation = int(blob.name.rpartition("/")[2])

    async def add(self, version: tuple[str, str]) -> None:
        """Record a version."""
        await self._append([version])
        self._etags[version[0]] = version[1]

    async def forget_all_but(self, names: set[str], *, compact: bool) -> None:
        """Drop blobs that are gone, from the files too when ``compact`` and most lines are of no use."""
        self._etags = {name: etag for name, etag in self._etags.items() if name in names}
        if compact and self._lines > 1000 + 2 * len(self._etags):
            old = [blob.name async for blob in self._container.list_blobs(name_starts_with=self._prefix)]
            self._appends = _APPENDS
            await self._append(self._etags.items())
            for name in old:
                await self._container.delete_blob(name)

    async def _append(self, versions: Iterable[tuple[str, str]]) -> None:
        lines = [json.dumps(version).encode() + b"\n" for version in versions]
        async with self._lock:
            for start in range(0, len(lines), 2000):  # well below the 4 MiB of one append
                if self._appends >= _APPENDS:
                    self._generation += 1
                    await self._blob().create_append_blob()
                    self._appends = 0
                await self._blob().append_block(b"".join(lines[start : start + 2000]))
                self._appends += 1

    def _blob(self) -> BlobClient:
        return self._container.get_blob_client(f"{self._prefix}{self._generation:08d}")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The blob-name part of a trigger's path, such as ``{name}`` or ``{folder}/{name}.dcm``."""
    pieces = re.split(r"(\{[^{}]+\})", pattern)
    return re.compile(
        "".join(".+" if piece.startswith("{") else re.escape(piece) for piece in pieces), re.DOTALL
    )
