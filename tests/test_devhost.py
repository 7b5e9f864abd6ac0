"""The development host: routing, HTTP, settings, triggers and processes, on a small app of its own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueServiceClient

from devhost import settings as host_settings
from devhost.azurite import Azurite
from devhost.blob_trigger import POISON_QUEUE, compile_pattern
from devhost.routing import Router, compile_template, decode_path
from devhost.timer_trigger import Schedule
from tests.conftest import ROOT, Server, StartServer

ECHO = ROOT / "tests" / "apps" / "echo"

# --- templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("v2/studies", "v2/studies", {}),
        ("v2/studies", "V2/Studies", {}),
        ("v2/studies", "v2/studies/1", None),
        ("studies/{study}", "studies/1.2.3", {"study": "1.2.3"}),
        ("studies/{study}", "studies", None),
        ("studies/{study}/series/{series}", "studies/1/SERIES/2", {"study": "1", "series": "2"}),
        ("a/{x?}", "a", {}),
        ("a/{x?}", "a/b", {"x": "b"}),
        ("a/{x?}", "a/b/c", None),
        ("a/{*rest}", "a/b/c", {"rest": "b/c"}),
        ("a/{*rest}", "a", {}),
        ("a/{**rest}", "a/b/c", {"rest": "b/c"}),
        ("n/{id:int}", "n/12", {"id": "12"}),
        ("n/{id:int}", "n/twelve", None),
        ("n/{id:int?}", "n", {}),
        ("n/{id:int:range(1,9)}", "n/10", None),
        ("n/{id:min(5)}", "n/5", {"id": "5"}),
        ("n/{id:maxlength(2)}", "n/abc", None),
        ("n/{id:regex(^[a-c]{{2}}$)}", "n/AB", {"id": "AB"}),
        ("n/{id:regex(^a/b|c:d$)}", "n/c:d", {"id": "c:d"}),
        ("n/{id:regex(^[a-c]{{2}}$)}", "n/abc", None),
        ("f/{name}.{ext}", "f/a.b.dcm", {"name": "a", "ext": "b.dcm"}),
        ("studies/$bulkUpdate", "studies/$bulkupdate", {}),
        ("", "", {}),
    ],
)
def test_template(template: str, path: str, values: dict[str, str] | None) -> None:
    assert compile_template(template).match(path) == values


@pytest.mark.parametrize("template", ["a/{b", "a/{b:nonsense}"])
def test_bad_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|constraint"):
        compile_template(template)


def test_routes_are_tried_by_function_name_and_method() -> None:
    router = Router()
    router.add("z", ["GET"], "a/b")
    router.add("y", ["get"], "a/{x}")
    router.add("A", ["POST"], "a/{x}")
    assert router.match("GET", "a/b") == ("y", {"x": "b"})
    assert router.match("POST", "a/b") == ("A", {"x": "b"})
    assert router.match("PUT", "a/b") is None


def test_path_is_decoded_but_for_slashes() -> None:
    assert decode_path(b"/a%20b/%C3%A9/c%2Fd/%252F/") == "a b/é/c%2Fd/%2F"


# --- settings ------------------------------------------------------------------------------------


def test_host_json_of_the_app_is_read() -> None:
    settings = host_settings.load(ROOT)
    assert settings.route_prefix == ""
    assert settings.queues.visibility_timeout == 30
    assert settings.queues.base64
    assert settings.blobs.poison_blob_threshold == 5
    assert settings.function_timeout == 1800


def test_environment_wins_over_local_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"Values": {"ECHO_A": "file", "ECHO_B": "file"}, "Host": {"CORS": "http://a, http://b"}}
    (tmp_path / "local.settings.json").write_text(json.dumps(local))
    monkeypatch.setenv("ECHO_A", "environment")
    monkeypatch.delenv("ECHO_B", raising=False)
    settings = host_settings.load(tmp_path)
    assert (os.environ["ECHO_A"], os.environ["ECHO_B"]) == ("environment", "file")
    monkeypatch.delenv("ECHO_B")
    assert settings.cors_origins == ("http://a", "http://b")
    assert settings.route_prefix == "api"  # the platform's default


def test_broken_host_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("{")
    with pytest.raises(ValueError, match=r"host\.json"):
        host_settings.load(tmp_path)


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "after", "tick"),
    [
        ("0 */5 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:05:00"),
        ("0 */5 * * * *", "2026-01-01T00:04:59.5", "2026-01-01T00:05:00"),
        ("30 0 3 * * *", "2026-01-01T03:00:30", "2026-01-02T03:00:30"),
        ("*/10 * * * * *", "2026-12-31T23:59:55", "2027-01-01T00:00:00"),
        ("0 0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 30 9-17/4 * * Mon-Fri", "2026-01-02T17:31:00", "2026-01-05T09:30:00"),
        ("0 0 0 1 JAN,JUL *", "2026-01-01T00:00:00", "2026-07-01T00:00:00"),
        ("0 0 12 13 * 5", "2026-01-01T00:00:00", "2026-02-13T12:00:00"),
        ("5/20 * * * * *", "2026-01-01T00:00:06", "2026-01-01T00:00:25"),
        ("*/15 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:15:00"),
    ],
)
def test_schedule(schedule: str, after: str, tick: str) -> None:
    start = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert Schedule.parse(schedule).next(start) == datetime.fromisoformat(tick).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "schedule", ["", "* * *", "60 * * * * *", "* * * * * 7", "*/0 * * * * *", "a * * * * *"]
)
def test_bad_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule.parse(schedule)


def test_blob_pattern() -> None:
    assert compile_pattern("{name}").fullmatch("a/b/c.dcm")
    assert compile_pattern("in/{name}.dcm").fullmatch("in/x.dcm")
    assert not compile_pattern("in/{name}.dcm").fullmatch("in/xdcm")


# --- the host as processes -----------------------------------------------------------------------


class Echo:
    """The echo app in a host, and the storage it listens to."""

    def __init__(self, server: Server, azurite: Azurite, out: Path) -> None:
        self.server = server
        self.out = out
        self.container = BlobServiceClient.from_connection_string(
            azurite.connection_string
        ).get_container_client(server.environment["ECHO_CONTAINER"])
        self.queues = QueueServiceClient.from_connection_string(azurite.connection_string)
        self.queue = self.queues.get_queue_client(server.environment["ECHO_QUEUE"])

    def told(self, **facts: Any) -> list[dict[str, Any]]:
        """What the functions told so far, where it has these facts."""
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return [told for line in lines if facts.items() <= (told := json.loads(line)).items()]


@pytest.fixture(scope="module")
def echo(
    start_server: StartServer, azurite: Azurite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Echo]:
    folder = tmp_path_factory.mktemp("echo")
    app = folder / "app"
    shutil.copytree(ECHO, app)
    local = {
        "Values": {"ECHO_SETTING": "from the file", "ECHO_SCHEDULE": "* * * * * *"},
        "Host": {"CORS": "http://viewer.example,http://other.example", "CORSCredentials": True},
    }
    (app / "local.settings.json").write_text(json.dumps(local))
    unique = uuid.uuid4().hex[:8]
    server = start_server(
        root=app,
        ECHO_OUT=str(folder / "out.jsonl"),
        ECHO_CONTAINER=f"echo-{unique}",
        ECHO_QUEUE=f"echo-{unique}",
        FUNCTIONS_REQUEST_BODY_SIZE_LIMIT="100000",
        **{"AzureWebJobs.on_tick_disabled.Disabled": "true"},
    )
    started = Echo(server, azurite, folder / "out.jsonl")
    started.container.create_container()
    started.queue.create_queue()
    yield started
    server.close()


@pytest.fixture
def http(echo: Echo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=echo.server.url + "/api", timeout=20) as client:
        yield client


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def test_first_function_by_name_serves_a_path(http: httpx.Client) -> None:
    assert http.get("/items/first").json() == {"function": "a_first"}
    assert http.get("/items/special").json()["function"] == "b_item"
    assert http.get("/ITEMS/a%20%C3%A9%2Fb?q=1&q=2").json() == {
        "function": "b_item",
        "path": {"id": "a é%2Fb"},
        "query": "q=1&q=2",
    }


def test_what_no_route_fits_is_404(http: httpx.Client) -> None:
    assert http.post("/items/1").status_code == 404
    assert http.get("/numbers/x").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{http.base_url.port}/items/1").status_code == 404
    assert http.get("/nothing").content == b""


def test_custom_headers_of_host_json_are_sent(http: httpx.Client) -> None:
    assert http.get("/items/1").headers["X-From-Host"] == "yes"


def test_response_is_streamed(http: httpx.Client) -> None:
    with http.stream("GET", "/stream") as response:
        started = time.monotonic()
        parts = [(part, time.monotonic() - started) for part in response.iter_raw()]
    assert b"".join(part for part, _ in parts) == b"012"
    assert parts[-1][1] - parts[0][1] > 0.2


def test_exception_is_a_500_that_tells_nothing(http: httpx.Client, echo: Echo) -> None:
    response = http.get("/fail", headers={"Origin": "http://viewer.example"})
    assert response.status_code == 500
    assert b"secret" not in response.content
    assert response.headers["Access-Control-Allow-Origin"] == "http://viewer.example"
    assert "secret details" in echo.server.log


def test_body_past_the_limit_is_413(http: httpx.Client) -> None:
    assert http.post("/upload", content=b"x" * 100_000).json() == {"size": 100_000}
    assert http.post("/upload", content=b"x" * 1_000_000).status_code == 413
    assert http.post("/upload", content=iter([b"x" * 60_000] * 20)).status_code == 413
    assert http.post("/upload", content=iter([b"x" * 10_000] * 10)).json() == {"size": 100_000}


def test_preflight_is_answered_by_the_host(http: httpx.Client) -> None:
    response = http.options(
        "/items/1",
        headers={
            "Origin": "http://viewer.example",
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type,x-own",
        },
    )
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == "http://viewer.example"
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Access-Control-Allow-Methods"] == "PUT"
    assert response.headers["Access-Control-Allow-Headers"] == "content-type,x-own"


def test_origin_that_is_not_allowed_gets_no_cors_headers(http: httpx.Client) -> None:
    headers = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "GET"}
    assert http.options("/items/1", headers=headers).status_code == 404
    assert "Access-Control-Allow-Origin" not in http.get("/items/1", headers=headers).headers


def test_cors_headers_are_on_404(http: httpx.Client) -> None:
    response = http.get("/nothing", headers={"Origin": "http://other.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "http://other.example"


def test_local_settings_reach_the_functions(http: httpx.Client) -> None:
    assert http.get("/process").json()["setting"] == "from the file"


def test_admin_endpoint_runs_a_function_to_its_end(echo: Echo) -> None:
    echo.server.run_function("on_message", "by hand")
    assert echo.told(message="by hand")
    echo.server.run_function("on_blob", "container/in/by/hand")
    assert echo.told(blob="container/in/by/hand")
    failing = httpx.post(f"{echo.server.url}/admin/functions/on_message", json={"input": "fail"})
    assert failing.status_code == 500
    assert httpx.post(f"{echo.server.url}/admin/functions/b_item", json={}).status_code == 404
    assert httpx.post(f"{echo.server.url}/admin/functions/on_tick", content=b"{").status_code == 400


def test_timer_ticks_and_a_disabled_function_does_not(echo: Echo) -> None:
    eventually(lambda: len(echo.told(tick=False)) >= 2)
    assert not echo.told(never=True)


def test_blob_fires_once_per_version(echo: Echo) -> None:
    echo.container.upload_blob("in/folder/é 1.dcm", b"1234")
    echo.container.upload_blob("elsewhere/2.dcm", b"")
    name = f"{echo.container.container_name}/in/folder/é 1.dcm"
    eventually(lambda: echo.told(blob=name))
    time.sleep(1)
    (told,) = echo.told(blob=name)
    assert told["length"] == 4
    assert told["uri"].startswith("http://127.0.0.1:")
    echo.container.upload_blob("in/folder/é 1.dcm", b"12345", overwrite=True)
    eventually(lambda: len(echo.told(blob=name)) == 2)
    assert not echo.told(blob=f"{echo.container.container_name}/elsewhere/2.dcm")


def test_receipts_survive_a_restart(echo: Echo) -> None:
    prefix = echo.container.container_name
    echo.container.upload_blob("in/before", b"")
    eventually(lambda: echo.told(blob=f"{prefix}/in/before"))
    time.sleep(0.5)
    echo.server.stop()
    echo.container.upload_blob("in/meanwhile", b"")
    echo.server.restart()
    eventually(lambda: echo.told(blob=f"{prefix}/in/meanwhile"))
    assert len(echo.told(blob=f"{prefix}/in/before")) == 1


def test_blob_that_keeps_failing_goes_to_the_poison_queue(echo: Echo) -> None:
    prefix = echo.container.container_name
    echo.container.upload_blob("in/fail", b"")
    poison = echo.queues.get_queue_client(POISON_QUEUE)

    def poisoned() -> list[dict[str, Any]]:
        if POISON_QUEUE not in [queue.name for queue in echo.queues.list_queues()]:
            return []
        messages = [json.loads(base64.b64decode(m.content)) for m in poison.peek_messages(32)]
        return [message for message in messages if message["ContainerName"] == prefix]

    eventually(poisoned)
    (message,) = poisoned()
    assert message["BlobName"] == "in/fail"
    assert message["FunctionId"] == "Host.Functions.on_blob"
    time.sleep(1)
    assert len(echo.told(blob=f"{prefix}/in/fail")) == 3  # poisonBlobThreshold


def test_queue_message_is_delivered_and_deleted(echo: Echo) -> None:
    echo.queue.send_message(base64.b64encode("grüße".encode()).decode())
    eventually(lambda: echo.told(message="grüße", count=1))
    eventually(lambda: echo.queue.get_queue_properties().approximate_message_count == 0)


def test_message_that_keeps_failing_goes_to_the_poison_queue(echo: Echo) -> None:
    content = base64.b64encode(b"fail this").decode()
    echo.queue.send_message(content)
    poison = echo.queues.get_queue_client(f"{echo.queue.queue_name}-poison")
    eventually(lambda: len(echo.told(message="fail this")) == 3)
    eventually(lambda: poison.queue_name in [queue.name for queue in echo.queues.list_queues()])
    eventually(lambda: [m.content for m in poison.peek_messages()] == [content])
    assert [told["count"] for told in echo.told(message="fail this")] == [1, 2, 3]


def test_function_timeout_of_host_json_ends_a_function(echo: Echo) -> None:
    echo.queue.send_message(base64.b64encode(b"sleep").decode())
    eventually(lambda: echo.told(message="sleep", count=2), 20)


def test_worker_that_dies_is_started_anew(echo: Echo, http: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        http.post("/die")
    pids: set[int] = set()

    def both() -> bool:
        with httpx.Client(timeout=5) as fresh:
            pids.add(fresh.get(f"{echo.server.url}/api/process").json()["pid"])
        return len(pids) >= 2

    eventually(both)
    assert "starting it anew" in echo.server.log


def test_blob_whose_function_dies_fires_again(echo: Echo) -> None:
    """At least once: without a receipt a blob fires anew, here after the process was killed in between."""
    echo.container.upload_blob("in/die", b"")
    name = f"{echo.container.container_name}/in/die"
    eventually(lambda: len(echo.told(blob=name)) == 2)
    time.sleep(1)
    assert len(echo.told(blob=name)) == 2
    assert "The triggers ended (exit code -9)" in echo.server.log


def test_host_ends_with_the_process_that_started_it(azurite: Azurite, tmp_path: Path) -> None:
    """A parent that is killed has no chance to stop its children."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'devhost', '--follow-stdin', '--port', '0', "
        f"'--root', {str(ECHO)!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\n"
        "print(child.stdout.readline().decode(), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {
        **os.environ,
        "AzureWebJobsStorage": azurite.connection_string,
        "ECHO_OUT": str(tmp_path / "out"),
        "ECHO_CONTAINER": "echo-parent",
        "ECHO_QUEUE": "echo-parent",
        "ECHO_SCHEDULE": "0 0 0 1 1 *",
    }
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        port = int(line.split(":")[2].split()[0])
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not _accepts(port))


def test_app_that_cannot_be_loaded_ends_the_host(tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_text("import nonsense_that_does_not_exist\n")
    ended = subprocess.run(
        [sys.executable, "-m", "devhost", "--port", "0", "--root", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "nonsense_that_does_not_exist" in ended.stderr


def test_busy_port_is_one_sentence() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "devhost", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 2
    assert ended.stderr.strip().count("\n") == 0
    assert str(port) in ended.stderr


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
