"""Spans of functions that queues, blobs and timers start."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import azure.functions as func

from shared import telemetry

Function = Callable[..., Awaitable[None]]


def traced(trigger: Literal["queue", "blob", "timer"]) -> Callable[[Function], Function]:
    """A span around each run of a function; of a queue, in the trace of what sent the message."""

    def trace(function: Function) -> Function:
        @functools.wraps(function)
        async def run(*args: Any, **bound: Any) -> None:
            with telemetry.invocation(function.__name__, trigger, _traceparent(*args, *bound.values())):
                await function(*args, **bound)

        return run

    return trace


def _traceparent(*bound: Any) -> str:
    """What the message of a queue says of the trace it belongs to."""
    if telemetry.active() and bound and isinstance(bound[0], func.QueueMessage):
        try:
            given = json.loads(bound[0].get_body())["traceparent"]
        except (ValueError, TypeError, KeyError):
            return ""
        return given if isinstance(given, str) else ""
    return ""
