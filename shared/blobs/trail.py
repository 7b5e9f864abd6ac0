"""The audit trail in Blob Storage: append blobs of lines, one an hour and process.

A line is durable before the request it tells of is answered. Requests that end at about the same time share
an append: while one is under way, lines are gathered for the next.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from shared.blobs import names
from shared.blobs.store import BlobStore, PackFull, PackMissing
from shared.errors import DependencyUnavailable

_BATCH_BYTES = 1024 * 1024
_LONGEST_WAIT = 15.0
"""Seconds that a request waits for its line."""

_TRIES = 3


class Trail:
    """Appends lines; of one process and its event loop."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._process = names.new_version()
        self._blob = ""
        self._full = 0
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def append(self, line: bytes) -> None:
        """Return when ``line`` is durable. Raises DependencyUnavailable; then it may be there or not."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                await written
        except TimeoutError as error:
            raise _unavailable() from error

    async def _write(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            failure: Exception | None = None
            try:
                await self._append(b"".join(line for line, _ in batch))
            except Exception as error:
                failure = error
            for _, written in batch:
                if written.done():
                    continue
                if failure is None:
                    written.set_result(None)
                else:
                    written.set_exception(_unavailable())

    def _next_batch(self) -> list[tuple[bytes, asyncio.Future[None]]]:
        size, count = 0, 0
        for line, _ in self._waiting:
            size += len(line)
            if count and size > _BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _append(self, data: bytes) -> None:
        for _ in range(_TRIES):
            name = names.audit_name(datetime.now(UTC), self._process, self._full)
            try:
                if name != self._blob:
                    await self._store.create_pack(name, names.AUDIT)
                    self._blob = name
                await self._store.append(name, data, names.AUDIT)
                return
            except PackFull:
                self._full += 1
            except PackMissing:
                self._blob = ""
        raise _unavailable()


def _unavailable() -> DependencyUnavailable:
    return DependencyUnavailable("The audit trail cannot be written; try again later.")
