"""Telemetry: traces and metrics by OpenTelemetry, where a setting says where they go.

Without ``APPLICATIONINSIGHTS_CONNECTION_STRING`` and ``OTEL_EXPORTER_OTLP_ENDPOINT`` its SDK is not loaded,
and each call here is one look-up. Names and attributes are fixed words, numbers and route templates: no URL,
no query, no value of an instance and no message of an exception goes into them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from shared.settings import settings

if TYPE_CHECKING:
    from shared.telemetry.export import Exporting


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, how it is counted, its unit, what it says, and the attributes it is split by."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str
    description: str
    attributes: tuple[str, ...] = ()


REQUESTS = Metric(
    "dicom.requests", "counter", "{request}", "requests that were answered", ("transaction", "status")
)
DURATION = Metric(
    "dicom.request.duration", "histogram", "s", "time until the status was known", ("transaction",)
)
BYTES_SERVED = Metric("dicom.bytes.served", "counter", "By", "bytes of bodies sent", ("transaction",))
FRAMES_SERVED = Metric("dicom.frames.served", "counter", "{frame}", "frames of Retrieve Frames")
INSTANCES_STORED = Metric("dicom.instances.stored", "counter", "{instance}", "instances that were committed")
BYTES_STORED = Metric("dicom.bytes.stored", "counter", "By", "bytes of the files of those instances")
STORE_FAILURES = Metric(
    "dicom.store.failures", "counter", "{instance}", "instances refused, by Failure Reason", ("reason",)
)
OPERATIONS_ENDED = Metric(
    "dicom.operations.ended", "counter", "{operation}", "operations that came to an end", ("type", "status")
)
CACHE_READS = Metric(
    "dicom.cache.reads", "counter", "{read}", "reads of the cache of frames: hit or miss", ("result",)
)
QUEUE_MESSAGES = Metric(
    "dicom.queue.messages", "gauge", "{message}", "messages in a queue, about", ("queue",)
)
CLEANUP_WAITING = Metric(
    "dicom.cleanup.waiting", "gauge", "{instance}", "deleted and replaced instances whose bytes are due to go"
)
METRICS = (
    REQUESTS,
    DURATION,
    BYTES_SERVED,
    FRAMES_SERVED,
    INSTANCES_STORED,
    BYTES_STORED,
    STORE_FAILURES,
    OPERATIONS_ENDED,
    CACHE_READS,
    QUEUE_MESSAGES,
    CLEANUP_WAITING,
)

_lock = Lock()


@cache
def _exporting() -> Exporting | None:
    config = settings()
    if not config.insights_connection and not config.otlp_endpoint:
        return None
    with _lock:
        return _started()


@cache
def _started() -> Exporting:
    from shared.telemetry import export

    return export.start(METRICS)


def active() -> bool:
    """Whether telemetry goes anywhere."""
    return _exporting() is not None


def add(metric: Metric, amount: float = 1, **attributes: str | int) -> None:
    """Count ``amount``, split by the attributes that the metric names."""
    exporting = _exporting()
    if exporting is not None and amount:
        exporting.add(metric, amount, attributes)


def observe(metric: Metric, value: float, **attributes: str | int) -> None:
    """Say what a gauge shows now; it shows it for some minutes."""
    exporting = _exporting()
    if exporting is not None:
        exporting.observe(metric, value, attributes)


def invocation(name: str, trigger: str, traceparent: str) -> AbstractContextManager[Any]:
    """A span around a function that no request started, in the trace of what sent its message."""
    exporting = _exporting()
    return nullcontext() if exporting is None else exporting.invocation(name, trigger, traceparent)


def carried(message: dict[str, Any]) -> dict[str, Any]:
    """The message of a queue, with the trace that whoever receives it goes on with (W3C Trace Context).

    One that names a trace keeps it.
    """
    if "traceparent" in message:
        return message
    exporting = _exporting()
    traceparent = "" if exporting is None else exporting.traceparent()
    return message | {"traceparent": traceparent} if traceparent else message


def dependency(name: str, **attributes: str) -> AbstractContextManager[Any]:
    """A span around a call of a dependency; ``name`` is that of the call, never a value."""
    exporting = _exporting()
    return nullcontext() if exporting is None else exporting.dependency(name, attributes)


class Request:
    """What is measured of one request; of one that is not measured, nothing is done."""

    def __init__(self, exporting: Exporting | None, transaction: str, span: Any = None) -> None:
        self._exporting = exporting
        self._transaction = transaction
        self._span = span
        self._started = time.monotonic()
        self._streams = False

    @property
    def measured(self) -> bool:
        """Whether anything looks at it."""
        return self._exporting is not None

    def answered(self, status: int, length: int = 0) -> None:
        """The status is known, and of a body that is not streamed its length."""
        if self._exporting is None:
            return
        self._exporting.set_status(self._span, status)
        add(REQUESTS, transaction=self._transaction, status=status)
        add(DURATION, time.monotonic() - self._started, transaction=self._transaction)
        add(BYTES_SERVED, length, transaction=self._transaction)

    def streamed(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The same body, counted; the span lasts until its end, and calls made for it are within."""
        self._streams = True
        return self._counted(body)

    async def _counted(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        assert self._exporting is not None
        chunks = aiter(body)
        sent = 0
        try:
            while True:
                with self._exporting.within(self._span):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                sent += len(chunk)
                yield chunk
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
            add(BYTES_SERVED, sent, transaction=self._transaction)
            self._span.end()

    def close(self) -> None:
        """End the span, unless a body is on its way."""
        if self._span is not None and not self._streams:
            self._span.end()


@contextmanager
def request(transaction: str, method: str, route: str, traceparent: str) -> Iterator[Request]:
    """Measure a request; ``traceparent`` is the client's header (W3C Trace Context), empty for none."""
    exporting = _exporting()
    if exporting is None:
        yield Request(None, transaction)
        return
    span = exporting.begin_request(transaction, method, route, traceparent)
    measured = Request(exporting, transaction, span)
    try:
        with exporting.within(span):
            yield measured
    finally:
        measured.close()
