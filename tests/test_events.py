"""Events of images arrive at a topic or a webhook: all of them, in order, with identifiers alone."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.data.tables import TableClient, UpdateMode
from pydicom.uid import generate_uid

from shared.dicom.identifiers import InstanceKey
from shared.neighbours.errors import NeighbourFailed, NeighbourRefused, NeighbourUnavailable
from shared.neighbours.events import Event
from shared.neighbours.publishers import EventGridTopic, Webhook
from shared.security.secrets import EncryptedFolder
from shared.services.events import to_event
from shared.settings import settings
from shared.sql.change_feed import Entry
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file, multipart
from tests.event_receiver import Fault, Receiver, receiver

HOST = "imaging.example.org"
KEY = "the-key-of-the-topic"
NEVER = "0 0 0 1 1 *"
EVENT = Event(
    "7", "Type", f"https://{HOST}", "subject", "2026-03-01T10:20:30.1234560Z", {"sequenceNumber": 7}
)


@pytest.fixture(scope="module")
def receiving() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


@pytest.fixture
def topic(receiving: Receiver) -> Receiver:
    """A receiver that has had nothing yet and takes everything."""
    receiving.events.clear()
    receiving.headers.clear()
    receiving.origins.clear()
    receiving.fault = lambda batch: None
    return receiving


@pytest.fixture(scope="module")
def sending(
    start_server: StartServer, receiving: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A server that sends to the receiver when its function is run, and has begun to follow its feed."""
    folder = tmp_path_factory.mktemp("events")
    asyncio.run(EncryptedFolder(folder / "secrets", "").save("topic-key", KEY))
    armed = folder / "armed"
    armed.write_text("")
    return start_server(
        workers=1,
        own_storage=True,
        DICOM_EVENTS_ENDPOINT=receiving.url,
        DICOM_EVENTS_SECRET="topic-key",
        DICOM_SECRETS_FOLDER=str(folder / "secrets"),
        DICOM_PUBLIC_BASE_URL=f"https://{HOST}",
        DICOM_FOLLOWER_SCHEDULE=NEVER,
        DICOM_FOLLOWER_HOLD_SECONDS="1",
        DICOM_FAULT_FILE=str(armed),
    )


@pytest.fixture
def server(sending: Server, topic: Receiver) -> Server:
    """``sending``, with nothing left to send."""
    wait_for(lambda: follows(sending))
    topic.events.clear()
    return sending


def follows(server: Server) -> bool:
    """Run the follower; whether it is up to date then."""
    try:
        server.run_function("send_events")
        return description(server)["description"] == "Up to date."
    except (httpx.TransportError, AssertionError):
        time.sleep(0.2)
        return False


def store(server: Server, *files: bytes, method: str = "POST") -> None:
    body, headers = multipart(files)
    response = httpx.request(method, f"{server.v2}/studies", content=body, headers=headers, timeout=60)
    response.raise_for_status()


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def sequences(events: list[dict[str, Any]]) -> list[int]:
    return [int(event["data"]["sequenceNumber"]) for event in events]


def newest(server: Server) -> int:
    response = httpx.get(f"{server.v2}/changefeed/latest")
    return int(response.json()["Sequence"]) if response.status_code == 200 else 0


def description(server: Server) -> dict[str, Any]:
    dependencies = httpx.get(f"{server.url}/health/check").json()["dependencies"]
    return {d["name"]: d for d in dependencies}["Events"]


def test_events_of_a_topic_are_cloud_events_of_the_ancestors_types(server: Server, topic: Receiver) -> None:
    before = newest(server)
    study, series, one = (generate_uid() for _ in range(3))
    file = make_file(study, series, one, PatientName="Secret^Name", PatientID="SECRET-ID")
    store(server, file)
    store(server, file, method="PUT")
    httpx.delete(f"{server.v2}/studies/{study}").raise_for_status()
    server.run_function("send_events")
    path = f"studies/{study}/series/{series}/instances/{one}"
    assert [event["type"] for event in topic.events] == [
        f"Microsoft.HealthcareApis.DicomImage{action}" for action in ("Created", "Updated", "Deleted")
    ]
    assert sequences(topic.events) == [before + 1, before + 2, before + 3]
    event = topic.events[0]
    assert event["data"] == {
        "partitionName": "Microsoft.Default",
        "imageStudyInstanceUid": study,
        "imageSeriesInstanceUid": series,
        "imageSopInstanceUid": one,
        "serviceHostName": HOST,
        "sequenceNumber": before + 1,
    }
    assert (event["specversion"], event["subject"]) == ("1.0", f"{HOST}/v2/{path}")
    assert (event["source"], event["dataschema"]) == (f"https://{HOST}/v2", "#1")
    assert len({event["id"] for event in topic.events}) == 3
    assert topic.headers[0]["aeg-sas-key"] == KEY
    assert topic.headers[0]["Content-Type"].startswith("application/cloudevents-batch+json")
    assert "secret" not in json.dumps(topic.events).lower()
    assert KEY not in server.log
    assert description(server) == {"name": "Events", "status": "Healthy", "description": "Up to date."}


def test_an_event_refused_for_good_is_kept_and_sent_again_on_demand(server: Server, topic: Receiver) -> None:
    before = newest(server)
    study = generate_uid()
    store(server, *[make_file(study) for _ in range(3)], make_file())
    topic.fault = lambda batch: 400 if before + 2 in sequences(batch) else None
    server.run_function("send_events")
    assert sorted(set(sequences(topic.events))) == [before + 1, before + 3, before + 4], (
        "the others went through"
    )
    connection = server.environment["AzureWebJobsStorage"]
    with TableClient.from_connection_string(connection, "eventdeadletters") as table:
        (row,) = table.list_entities()
        assert (row["Sequence"], row["StudyInstanceUid"]) == (str(before + 2), study)
        assert row["Error"] == "The Event Grid topic answered with status 400."
        topic.fault = lambda batch: None
        table.update_entity({**row, "Retry": True}, UpdateMode.MERGE)
        server.run_function("send_events")
        assert sequences(topic.events)[-1] == before + 2
        assert not list(table.list_entities())


def test_a_host_killed_while_the_topic_fails_loses_nothing_and_keeps_the_order(
    server: Server, topic: Receiver
) -> None:
    before = newest(server)
    dice = random.Random(7)
    topic.fault = lambda batch: dice.choice([None] * 6 + [429, 500, 503, "cut", "lost", "lost"])
    studies = [generate_uid() for _ in range(6)]
    for killed in (True, False):
        for study in studies:
            store(server, *[make_file(study) for _ in range(4)])
        seen = len(topic.events)
        running = threading.Thread(target=follows, args=[server])
        running.start()
        wait_for(lambda seen=seen: len(topic.events) > seen)  # type: ignore[misc]
        if killed:
            server.kill()
        running.join()
        if killed:
            server.restart()
    expected = set(range(before + 1, newest(server) + 1))
    assert len(expected) == 2 * 6 * 4
    wait_for(lambda: follows(server) and set(sequences(topic.events)) == expected, 60)
    for study in studies:
        of_study = [e for e in topic.events if e["data"]["imageStudyInstanceUid"] == study]
        first = list(dict.fromkeys(sequences(of_study)))
        assert first == sorted(first), "each comes for the first time after all that come before it"
    ids: dict[int, set[str]] = {}
    for event in topic.events:
        ids.setdefault(event["data"]["sequenceNumber"], set()).add(event["id"])
    assert all(len(of_one) == 1 for of_one in ids.values())


def test_a_host_that_dies_at_any_point_leaves_no_event_out(server: Server, topic: Receiver) -> None:
    armed = Path(server.environment["DICOM_FAULT_FILE"])
    for point in ("events.published", "follower.delivered", "follower.saved"):
        before = newest(server)
        store(server, make_file(), make_file())
        armed.write_text(f"{point}:kill")
        follows(server)
        assert armed.read_text() == "", point
        wait_for(lambda: follows(server))
        assert {before + 1, before + 2} <= set(sequences(topic.events)), point


def test_a_topic_that_is_down_holds_the_cursor_and_health_says_so(server: Server, topic: Receiver) -> None:
    topic.fault = lambda batch: 503
    store(server, make_file())
    running = threading.Thread(target=follows, args=[server])
    running.start()
    wait_for(lambda: description(server)["description"].startswith("1 changes behind"))
    assert description(server)["status"] == "Healthy", "images are served all the same"
    topic.fault = lambda batch: None
    running.join()
    assert follows(server)


async def test_a_webhook_is_asked_first_and_gets_nothing_while_it_says_no(topic: Receiver) -> None:
    webhook = Webhook(topic.url, KEY, HOST)
    topic.allowed_origin = "somebody.else"
    try:
        with pytest.raises(NeighbourUnavailable, match="does not allow events"):
            await webhook.publish([EVENT])
        assert topic.events == []
        topic.allowed_origin = HOST
        await webhook.publish([EVENT, EVENT])
        await webhook.publish([EVENT])
    finally:
        await webhook.close()
        topic.allowed_origin = "*"
    assert topic.origins == [HOST] * 2, "asked until it said yes, and never again"
    assert len(topic.events) == 3
    assert topic.events[0]["data"] == EVENT.data
    assert topic.headers[0]["Content-Type"] == "application/cloudevents-batch+json; charset=utf-8"
    assert topic.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_a_topic_may_have_event_grids_own_schema(topic: Receiver) -> None:
    client = EventGridTopic(topic.url, KEY, cloud_events=False)
    try:
        await client.publish([EVENT])
    finally:
        await client.close()
    (event,) = topic.events
    assert (event["eventType"], event["dataVersion"], event["id"]) == (EVENT.type, "1", EVENT.id)
    assert (event["subject"], event["data"]) == (EVENT.subject, EVENT.data)
    assert event["eventTime"].startswith("2026-03-01T10:20:30")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (400, NeighbourRefused),
        (413, NeighbourRefused),
        (401, NeighbourUnavailable),
        (404, NeighbourUnavailable),
        (429, NeighbourUnavailable),
        (503, NeighbourUnavailable),
        ("cut", NeighbourUnavailable),
        (409, NeighbourFailed),
        (500, NeighbourFailed),
    ],
)
async def test_failures_are_of_three_kinds(topic: Receiver, fault: Fault, kind: type[Exception]) -> None:
    topic.fault = lambda batch: fault
    for publisher in (EventGridTopic(topic.url, KEY, True), Webhook(topic.url, "", HOST)):
        try:
            with pytest.raises(kind) as raised:
                await publisher.publish([EVENT])
        finally:
            await publisher.close()
        assert KEY not in str(raised.value)
        if fault == 429:
            assert getattr(raised.value, "retry_after", 0) == 1, "what Retry-After says"


def test_an_event_names_its_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_PUBLIC_BASE_URL", f"https://{HOST}/imaging")
    settings.cache_clear()
    try:
        key = InstanceKey("north", "1.2", "1.2.3", "1.2.3.4")
        event = to_event(Entry(7, "2026-03-01T10:20:30.1234560Z", "create", key, "current", "", 0, 0))
    finally:
        settings.cache_clear()
    assert event.subject == f"{HOST}/v2/partitions/north/studies/1.2/series/1.2.3/instances/1.2.3.4"
    assert event.data["partitionName"] == "north"
