"""All triggers but HTTP, in one process of the host."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from devhost.app import Function
from devhost.blob_trigger import BlobTrigger
from devhost.queue_trigger import QueueTrigger
from devhost.settings import HostSettings
from devhost.timer_trigger import TimerTrigger

log = logging.getLogger("devhost.triggers")

_GRACE_SECONDS = 5


Trigger = BlobTrigger | QueueTrigger | TimerTrigger


def create_triggers(functions: list[Function], settings: HostSettings) -> list[Trigger]:
    """A listener for every function that this process fires.

    Raises ValueError for a trigger that is not declared as it should be.
    """
    return [trigger for function in functions if (trigger := _trigger(function, settings)) is not None]


async def run_triggers(triggers: list[Trigger], stop: asyncio.Event) -> None:
    """Fire the functions until ``stop``; what runs then gets a few seconds to end."""
    tasks = [asyncio.create_task(trigger.run(stop)) for trigger in triggers]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_EXCEPTION)
    if not stop.is_set():  # a listener failed: end the process, so that the host starts it anew
        stopped.cancel()
        await asyncio.gather(*tasks)
    if tasks:
        await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


def _trigger(function: Function, settings: HostSettings) -> Trigger | None:
    if function.trigger == "queueTrigger":
        return QueueTrigger(function, settings)
    if function.trigger == "timerTrigger":
        return TimerTrigger(function, settings)
    if function.trigger == "blobTrigger" and function.binding.get("source") != "EventGrid":
        return BlobTrigger(function, settings)
    if function.trigger != "httpTrigger":
        log.warning("%s is not fired here: it has a %s.", function.name, function.trigger)
    return None
