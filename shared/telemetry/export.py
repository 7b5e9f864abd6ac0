"""The SDK and its exporters, loaded by the first call of :mod:`shared.telemetry` that needs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.settings import settings

if TYPE_CHECKING:
    from shared.telemetry import Metric

SERVICE = "dicom-server"
"""Name of the service; Application Insights shows it as the role of the cloud."""

TRIGGER = "trigger"
"""The attribute of spans of functions that no request started; the workbook tells them apart by it."""

_SHOWN_SECONDS = 180
"""How long a gauge shows what was observed: the timers that observe run on one instance, then on another."""

_propagator = TraceContextTextMapPropagator()


class Exporting:
    """Spans and metrics of this process, sent in the background."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider, metrics: Sequence[Metric]) -> None:
        self._tracer = tracers.get_tracer(SERVICE)
        meter = meters.get_meter(SERVICE)
        self._record: dict[Metric, Callable[..., None]] = {}
        self._observed: dict[Metric, dict[tuple[tuple[str, str | int], ...], tuple[float, float]]] = {}
        for metric in metrics:
            described = metric.name, metric.unit, metric.description
            if metric.kind == "counter":
                self._record[metric] = meter.create_counter(*described).add
            elif metric.kind == "histogram":
                self._record[metric] = meter.create_histogram(*described).record
            else:
                self._observed[metric] = {}
                name, *others = described
                meter.create_observable_gauge(name, [partial(self._shown, metric)], *others)

    def add(self, metric: Metric, amount: float, attributes: Mapping[str, str | int]) -> None:
        """Count."""
        _check(metric, attributes)
        self._record[metric](amount, attributes)

    def observe(self, metric: Metric, value: float, attributes: Mapping[str, str | int]) -> None:
        """Show ``value`` for :data:`_SHOWN_SECONDS`."""
        _check(metric, attributes)
        self._observed[metric][tuple(attributes.items())] = value, time.monotonic()

    def _shown(self, metric: Metric, _options: CallbackOptions) -> list[Observation]:
        oldest = time.monotonic() - _SHOWN_SECONDS
        observed = list(self._observed[metric].items())
        return [Observation(value, dict(key)) for key, (value, moment) in observed if moment >= oldest]

    def begin_request(self, transaction: str, method: str, route: str, traceparent: str) -> Span:
        """A span of a request, in the trace that the client names."""
        span: Span = self._tracer.start_span(
            transaction,
            context=_propagator.extract({"traceparent": traceparent}),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        return span

    def set_status(self, span: Span, status: int) -> None:
        """What a request was answered with; an error is the server's own."""
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))

    def within(self, span: Span) -> AbstractContextManager[Span]:
        """What begins within belongs to ``span``; exceptions pass without a trace of their message."""
        return trace.use_span(span, record_exception=False, set_status_on_exception=False)

    def traceparent(self) -> str:
        """What names the current span to others, empty where there is none."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier.get("traceparent", "")

    def invocation(self, name: str, trigger: str, traceparent: str) -> AbstractContextManager[Span]:
        """A span of a function that a queue, a blob or a timer started."""
        span = self._tracer.start_span(
            name,
            context=_propagator.extract({"traceparent": traceparent}),
            kind=SpanKind.CONSUMER,
            attributes={TRIGGER: trigger},
        )
        return self._lasting(span)

    def dependency(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[Span]:
        """A span of a call."""
        return self._lasting(self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes))

    @contextmanager
    def _lasting(self, span: Span) -> Iterator[Span]:
        """``span`` as long as what is within; of an exception it has the kind, never the message."""
        try:
            with self.within(span):
                yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()


def _check(metric: Metric, attributes: Mapping[str, str | int]) -> None:
    """Attributes that the metric does not have are a mistake of the caller."""
    if set(attributes) != set(metric.attributes):
        raise ValueError(f"{metric.name} is split by {metric.attributes}.")


def start(metrics: Sequence[Metric]) -> Exporting:
    """Begin to export to wherever the settings say."""
    resource = Resource.create({"service.name": SERVICE})
    tracers = TracerProvider(resource=resource)
    readers = []
    for spans, measurements in _exporters():
        tracers.add_span_processor(BatchSpanProcessor(spans))
        readers.append(PeriodicExportingMetricReader(measurements))
    return Exporting(tracers, MeterProvider(readers, resource), metrics)


def _exporters() -> Iterator[tuple[SpanExporter, MetricExporter]]:
    config = settings()
    if config.insights_connection:
        # What the library would tell its maker, and fetch from it, is nothing that leaves this server.
        os.environ.setdefault("APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL", "true")
        os.environ.setdefault("APPLICATIONINSIGHTS_SDKSTATS_DISABLED", "true")
        os.environ.setdefault("APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED", "true")
        from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter, AzureMonitorTraceExporter

        options: dict[str, Any] = {
            "connection_string": config.insights_connection,
            "disable_offline_storage": True,
        }
        yield AzureMonitorTraceExporter(**options), AzureMonitorMetricExporter(**options)
    if config.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        yield OTLPSpanExporter(), OTLPMetricExporter()
