"""Runs triggered functions: so many at a time, with the time limit of host.json, and outcomes logged."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any

from devhost.app import Function
from devhost.settings import HostSettings

log = logging.getLogger("devhost.triggers")


async def execute(function: Function, argument: Any, settings: HostSettings) -> bool:
    """Call a function; whether it ended well. What it raised is logged, not raised."""
    started = time.monotonic()
    limit = None if math.isinf(settings.function_timeout) else settings.function_timeout
    try:
        async with asyncio.timeout(limit):
            await function.invoke(argument)
    except Exception:
        log.exception("%s failed after %.2f s.", function.name, time.monotonic() - started)
        return False
    log.debug("%s succeeded after %.2f s.", function.name, time.monotonic() - started)
    return True


class Executions:
    """Tasks in flight, at most ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for a slot and run ``work`` in it."""
        try:
            await self._slots.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def drain(self) -> None:
        """Wait for the end of all tasks; cancelled itself, it cancels them."""
        if self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError:
                for task in self._tasks:
                    task.cancel()
                raise

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("A trigger failed around its function.", exc_info=task.exception())
