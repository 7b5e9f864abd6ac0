"""Spans and metrics of requests arrive at a collector and at Azure Monitor, and tell of no patient."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.data.tables import TableServiceClient, UpdateMode
from azure.storage.blob import BlobServiceClient, ContainerClient
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydicom.uid import generate_uid

from shared.telemetry import METRICS
from shared.telemetry.export import SERVICE, TRIGGER
from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, multipart, to_file
from tests.operations_harness import wait_for_end

ROOT = Path(__file__).resolve().parents[1]
STUDY, SERIES = generate_uid(), generate_uid()
SECRETS = {
    "PatientName": "Quokka^Marsupia",
    "PatientID": "QK-4711-X",
    "PatientBirthDate": "19030417",
    "AccessionNumber": "ACQK99817",
}
NEVER = (b"quokka", b"marsupia", b"qk-4711-x", b"19030417", b"acqk99817")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Receiver:
    """What was posted: path and body."""

    def __init__(self, port: int, posted: list[tuple[str, bytes]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.posted = posted

    def spans(self) -> list[Any]:
        """Spans that a collector got."""
        return [
            span
            for path, body in list(self.posted)
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """Metrics that a collector got, each as it came last."""
        return {
            metric.name: metric
            for path, body in list(self.posted)
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def envelopes(self) -> list[dict[str, Any]]:
        """What Azure Monitor got."""
        return [e for path, body in list(self.posted) if path.endswith("/track") for e in json.loads(body)]


@contextmanager
def receiving() -> Iterator[Receiver]:
    posted: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            posted.append((self.path, body))
            answer = b""
            if self.path.endswith("/track"):
                count = len(json.loads(body))
                answer = json.dumps({"itemsReceived": count, "itemsAccepted": count, "errors": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Receiver(server.server_address[1], posted)
    finally:
        server.shutdown()


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def monitor() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def measured(start_server: StartServer, collector: Receiver, monitor: Receiver) -> Server:
    return start_server(
        workers=1,
        own_storage=True,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        APPLICATIONINSIGHTS_CONNECTION_STRING=f"InstrumentationKey=0e0c7e3e-0000-4000-8000-000000000001;IngestionEndpoint={monitor.url}/",
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_METRIC_EXPORT_INTERVAL="300",
    )


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


def trigger(envelope: dict[str, Any]) -> str | None:
    """What started the function that an envelope of Azure Monitor tells of."""
    found: str | None = envelope["data"]["baseData"].get("properties", {}).get(TRIGGER)
    return found


def value(metric: Any) -> float:
    return sum(point.as_int or point.as_double for point in metric.sum.data_points)


def test_requests_arrive_with_their_dependencies_and_tell_of_no_patient(
    measured: Server, collector: Receiver, monitor: Receiver
) -> None:
    files = [to_file(make_dataset(STUDY, SERIES, generate_uid(), **SECRETS)) for _ in range(2)]
    body, form = multipart([*files, b"Quokka^Marsupia is no DICOM file"])
    form["traceparent"] = f"00-{TRACE}-00f067aa0ba902b7-01"
    series = f"studies/{STUDY}/series/{SERIES}"
    with httpx.Client(base_url=f"{measured.v2}/", timeout=60) as http:
        assert http.post("studies", content=body, headers=form).status_code == 202
        assert http.get("studies", params={"PatientName": "Quokka*", "PatientID": "QK-4711-X"}).json()
        assert http.get("studies", params={"Quokka": "Marsupia"}).status_code == 400
        assert http.get("studies/Quokka^Marsupia/metadata").status_code == 400
        assert http.get(f"{series}/metadata").status_code == 200
        whole = http.get(
            f"studies/{STUDY}", headers={"Accept": 'multipart/related; type="application/dicom"'}
        )
        assert whole.status_code == 200
        assert http.delete(f"studies/{STUDY}").status_code == 204
    eventually(lambda: any(span.name == "delete_study" for span in collector.spans()))
    eventually(lambda: value(collector.metrics().get("dicom.requests", _none())) >= 7)
    spans, metrics = collector.spans(), collector.metrics()
    (store,) = [span for span in spans if span.name == "store_instances"]
    assert store.trace_id.hex() == TRACE
    assert {a.key for a in store.attributes} == {
        "http.request.method",
        "http.route",
        "http.response.status_code",
    }
    within = [span.name for span in spans if span.parent_span_id == store.span_id]
    assert "sql commit_store" in within
    assert value(metrics["dicom.instances.stored"]) == 2
    assert value(metrics["dicom.bytes.stored"]) == sum(map(len, files))
    assert value(metrics["dicom.store.failures"]) == 1
    assert value(metrics["dicom.bytes.served"]) >= len(whole.content)
    eventually(lambda: any(e["name"].endswith("Request") for e in monitor.envelopes()))
    eventually(
        lambda: (
            "dicom.requests"
            in {m["name"] for e in monitor.envelopes() for m in e["data"]["baseData"].get("metrics", [])}
        )
    )
    posted = b"\n".join(body for _, body in [*collector.posted, *monitor.posted]).lower()
    assert [secret for secret in NEVER if secret in posted] == []


def test_operations_stay_in_the_trace_that_began_them_and_tell_of_no_patient(
    measured: Server, collector: Receiver, monitor: Receiver
) -> None:
    connection = measured.environment["AzureWebJobsStorage"]
    service = BlobServiceClient.from_connection_string(connection)
    source, target = service.create_container("source"), service.create_container("target")
    updated, exported = generate_uid(), generate_uid()
    source.upload_blob("1.dcm", to_file(make_dataset(generate_uid(), SERIES, generate_uid(), **SECRETS)))
    source.upload_blob("2.dcm", b"Quokka^Marsupia is no DICOM file")

    def container(client: ContainerClient) -> dict[str, Any]:
        settings = {"connectionString": connection, "blobContainerName": client.container_name}
        return {"type": "azureblob", "settings": settings}

    identifiers = {"type": "identifiers", "settings": {"values": [exported]}}
    begun = {
        "studies/$bulkUpdate": {
            "studyInstanceUids": [updated],
            "changeDataset": {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Quokka^Rex"}]}},
        },
        "export": {"source": identifiers, "destination": container(target)},
        "import": {"source": container(source)},
    }
    with httpx.Client(base_url=f"{measured.v2}/", timeout=60) as http:
        for study in (updated, exported):
            file = to_file(make_dataset(study, generate_uid(), generate_uid(), **SECRETS))
            stored = http.post("studies", content=file, headers={"Content-Type": "application/dicom"})
            assert stored.status_code == 200
        ends = []
        for number, (path, body) in enumerate(begun.items(), 1):
            trace = {"traceparent": f"00-{number:032x}-00f067aa0ba902b7-01"}
            response = http.post(path, json=body, headers=trace)
            assert response.status_code == 202, response.text
            ends.append(response.headers["Location"])
        for url in ends:
            assert wait_for_end(url)["status"] in ("succeeded", "failed")
    measured.run_function("observe_backlog")

    def names(number: int) -> set[str]:
        return {s.name for s in collector.spans() if s.trace_id.hex() == f"{number:032x}"}

    for number in range(1, 1 + len(begun)):
        eventually(lambda: {"coordinate_operation", "work_on_operation"} <= names(number))  # noqa: B023
        assert {"queue send", "table find"} <= names(number)
    assert any(name.startswith("blob ") for name in names(1))
    eventually(lambda: {"dicom.queue.messages", "dicom.cleanup.waiting"} <= set(collector.metrics()))
    depths = collector.metrics()["dicom.queue.messages"].gauge.data_points
    assert {"operations", "operations-poison"} <= {p.attributes[0].value.string_value for p in depths}
    eventually(lambda: any(s.name == "observe_backlog" for s in collector.spans()))
    eventually(lambda: "timer" in {t for t in map(trigger, monitor.envelopes()) if t})
    assert {e["tags"]["ai.cloud.role"] for e in monitor.envelopes()} == {SERVICE}
    posted = b"\n".join(body for _, body in [*collector.posted, *monitor.posted]).lower()
    assert [secret for secret in NEVER if secret in posted or secret in measured.log.lower().encode()] == []


def test_an_operation_that_a_timer_wakes_goes_on_in_the_trace_that_is_kept_with_it(
    measured: Server, collector: Receiver
) -> None:
    """The row of one that has ended is put back to where a lost message would have left it."""
    begun, kept = f"{0xA1:032x}", f"{0xA2:032x}"
    change = {"00081030": {"vr": "LO", "Value": ["x"]}}
    response = httpx.post(
        f"{measured.v2}/studies/$bulkUpdate",
        json={"studyInstanceUids": [generate_uid()], "changeDataset": change},
        headers={"traceparent": f"00-{begun}-00f067aa0ba902b7-01"},
        timeout=60,
    )
    id = response.json()["id"]
    wait_for_end(response.headers["Location"])
    tables = TableServiceClient.from_connection_string(measured.environment["AzureWebJobsStorage"])
    row = tables.get_table_client("operations").get_entity(id, "operation")
    assert row["Traceparent"].startswith(f"00-{begun}-")
    lost = {"Status": "running", "Updated": "2026-01-01T00:00:00.000Z"}
    lost["Traceparent"] = f"00-{kept}-00f067aa0ba902b7-01"
    tables.get_table_client("operations").update_entity(
        {"PartitionKey": id, "RowKey": "operation", **lost}, UpdateMode.MERGE
    )
    tables.get_table_client("operationindex").upsert_entity({"PartitionKey": "active", "RowKey": id})
    measured.run_function("tend_operations")
    wait_for_end(response.headers["Location"])
    eventually(
        lambda: any(s.name == "coordinate_operation" and s.trace_id.hex() == kept for s in collector.spans())
    )


def _none() -> Any:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

    return Metric()


def test_without_a_setting_the_sdk_is_not_loaded() -> None:
    program = (
        "import sys; import function_app; from shared import telemetry; telemetry.add(telemetry.REQUESTS, "
        "transaction='x', status=200); "
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'azure.monitor'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_metric_is_explained_to_operators() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    for metric in METRICS:
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        assert f"| `{metric.name}` | {metric.unit} | {attributes} | {metric.description} |" in text


def queries() -> list[str]:
    """What the workbook and the alerts ask Application Insights."""
    modules = ROOT / "infra" / "modules"
    workbook = json.loads((modules / "workbook.json").read_text())
    asked = [item["content"]["query"] for item in workbook["items"] if "query" in item["content"]]
    return asked + re.findall(r"query: '([^']+)'", (modules / "alerts.bicep").read_text())


def test_the_workbook_and_the_alerts_ask_for_what_there_is() -> None:
    metrics = {metric.name: metric for metric in METRICS}
    asked = queries()
    named = {name for query in asked for name in re.findall(r"dicom\.[a-z.]+", query)}
    assert named == set(metrics), "each metric is in the workbook"
    for query in asked:
        of_query = [metrics[name] for name in re.findall(r"dicom\.[a-z.]+", query)]
        attributes = {name for metric in of_query for name in metric.attributes}
        assert set(re.findall(r"customDimensions\.(\w+)", query)) <= attributes, query
        assert set(re.findall(r"cloud_RoleName == '([^']+)'", query)) <= {SERVICE}
        assert set(re.findall(r"customDimensions\[.([\w.]+).\]", query)) <= {TRIGGER}
        table = re.match(r"\w+", query)
        assert table
        assert table[0] in ("customMetrics", "requests", "dependencies", "traces", "union")
    (sentence,) = {text for query in asked for text in re.findall(r'message has "([^"]+)"', query)}
    assert sentence in (ROOT / "shared" / "services" / "operations.py").read_text()
    event = json.dumps({"transaction": "", "outcome": "denied"})
    kept = {text for query in asked for text in re.findall(r"message has '([^']+)'", query)}
    assert all(text in event for text in kept)
