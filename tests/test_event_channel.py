"""Events on their way to subscribers over real WebSockets: in order, once, to nobody else, whatever dies."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy as sa
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from shared.dicom import event_reports
from shared.sql import partitions, workitem_events
from shared.sql import tables as t
from shared.sql.engine import Database
from tests.conftest import Server, StartServer

SCHEDULED = {
    "00741000": {"vr": "CS", "Value": ["SCHEDULED"]},
    "00404041": {"vr": "CS", "Value": ["READY"]},
}


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[Database]:
    """The server's own database, to write events as the worklist does."""
    database = Database(server.environment["DICOM_SQL_URL"])
    yield database
    database.close()


@pytest.fixture
def subscriber() -> str:
    return f"AE{uuid.uuid4().hex[:12]}"


def write(database: Database, subscriber: str, count: int, partition: str = "Microsoft.Default") -> list[str]:
    """Events of as many workitems, each in a transaction of its own; the workitems."""
    uids = [f"2.25.{uuid.uuid4().int}" for _ in range(count)]

    def work(connection: sa.Connection, uid: str) -> None:
        key = partitions.key_of(connection, partition)
        row = {"partition_key": key, "workitem_uid": uid, "subscriber": subscriber, "deletion_lock": 0}
        connection.execute(sa.insert(t.workitem_subscription), row)
        workitem_events.record(connection, key, uid, [event_reports.state(SCHEDULED)])

    for uid in uids:
        database.run(True, work, uid)
    return uids


def url_of(server: Server, subscriber: str, partition: str = "") -> str:
    root = f"{server.v2}/partitions/{partition}" if partition else server.v2
    response = httpx.get(f"{root}/subscribers/{subscriber}", timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["webSocketUrl"])


def event_id(report: dict[str, Any]) -> int:
    return int(report[event_reports.EVENT_ID]["Value"][0])


def receive(socket: ClientConnection, count: int, timeout: float = 15) -> list[tuple[int, str]]:
    """Event ID and workitem of ``count`` event reports as they come."""
    found = []
    deadline = time.monotonic() + timeout
    for _ in range(count):
        report = json.loads(socket.recv(timeout=deadline - time.monotonic()))
        found.append((event_id(report), report["00001000"]["Value"][0]))
    return found


def deliver(server: Server) -> None:
    server.run_function("tend_workitem_events")


def silent(socket: ClientConnection) -> bool:
    """Whether nothing comes any more."""
    try:
        socket.recv(timeout=0.3)
    except TimeoutError:
        return True
    return False


def test_events_arrive_once_and_in_order(server: Server, database: Database, subscriber: str) -> None:
    with connect(url_of(server, subscriber)) as socket:
        uids = write(database, subscriber, 20)
        deliver(server)
        deliver(server)
        assert receive(socket, 20) == list(enumerate(uids, 1))
        assert silent(socket)


def test_runs_that_send_at_once_keep_the_order(server: Server, database: Database, subscriber: str) -> None:
    with connect(url_of(server, subscriber)) as socket, ThreadPoolExecutor(4) as threads:
        runs = []
        uids = []
        for _ in range(6):
            uids += write(database, subscriber, 5)
            runs += [threads.submit(deliver, server) for _ in range(2)]
        for run in runs:
            run.result()
        assert receive(socket, 30) == list(enumerate(uids, 1))
        assert silent(socket)


def test_a_subscriber_that_was_cut_off_fetches_what_it_missed(
    server: Server, database: Database, subscriber: str
) -> None:
    with connect(url_of(server, subscriber)) as socket:
        first = write(database, subscriber, 3)
        deliver(server)
        seen = receive(socket, 3)
    missed = write(database, subscriber, 4)
    deliver(server)
    with connect(url_of(server, subscriber)) as socket:
        last = write(database, subscriber, 2)
        deliver(server)
        live = receive(socket, 2)
        response = httpx.get(
            f"{server.v2}/subscribers/{subscriber}/events", params={"after": seen[-1][0]}, timeout=60
        )
        assert response.headers["content-type"] == "application/dicom+json"
        fetched = [(event_id(report), report["00001000"]["Value"][0]) for report in response.json()]
        new = [event for event in live if event not in fetched]
        assert new == []
        assert fetched[-2:] == live
        assert seen + fetched == list(enumerate(first + missed + last, 1))


def test_events_of_one_partition_reach_no_subscriber_of_another(
    server: Server, database: Database, subscriber: str
) -> None:
    with (
        connect(url_of(server, subscriber)) as here,
        connect(url_of(server, subscriber, "elsewhere")) as there,
    ):
        write(database, subscriber, 1)
        uids = write(database, subscriber, 1, "elsewhere")
        deliver(server)
        receive(here, 1)
        assert receive(there, 1) == [(1, uids[0])]
        assert silent(here)
        assert silent(there)
    response = httpx.get(f"{server.v2}/partitions/nowhere/subscribers/{subscriber}/events", timeout=60)
    assert response.status_code == 204


def test_a_subscriber_gets_nothing_of_others(server: Server, database: Database, subscriber: str) -> None:
    with connect(url_of(server, "OTHER")) as other, connect(url_of(server, subscriber)) as socket:
        write(database, subscriber, 1)
        deliver(server)
        receive(socket, 1)
        assert silent(other)


@pytest.mark.parametrize("claim", ["key", "audience", "expiry", "none"])
def test_a_wrong_token_is_refused(server: Server, subscriber: str, claim: str) -> None:
    base, _, token = url_of(server, subscriber).partition("?access_token=")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["aud"] == base.replace("ws://", "http://")
    assert 3500 < claims["exp"] - time.time() <= 3600
    assert "role" not in claims, "a subscriber may only listen"
    if claim == "none":
        token = ""
    else:
        key = "k" * 64
        token = jwt.encode(claims | {"aud": "x"} if claim == "audience" else claims, key, "HS256")
    with pytest.raises(InvalidStatus) as refused, connect(f"{base}?access_token={token}"):
        pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=1001", "since=1"])
def test_malformed_queries_are_refused(server: Server, query: str) -> None:
    assert httpx.get(f"{server.v2}/subscribers/AE/events?{query}", timeout=60).status_code == 400


def test_a_malformed_ae_title_is_refused(server: Server) -> None:
    for title in ("A" * 17, "%20", "A%5CB", "%C3%A4"):
        assert httpx.get(f"{server.v2}/subscribers/{title}", timeout=60).status_code == 400, title


def test_events_that_are_no_longer_kept_are_said_to_be_missing(
    server: Server, database: Database, subscriber: str
) -> None:
    write(database, subscriber, 3)
    e = t.workitem_event
    old = sa.update(e).where(e.c.subscriber == subscriber, e.c.event_id <= 2).values(created="2000")
    database.run(True, lambda connection: connection.execute(old))
    deliver(server)
    response = httpx.get(f"{server.v2}/subscribers/{subscriber}/events", timeout=60)
    assert [event_id(report) for report in response.json()] == [3]
    assert '"2 earlier event reports are no longer kept."' in response.headers["warning"]


def test_an_event_survives_the_death_of_the_host_before_it_was_sent(start_server: StartServer) -> None:
    server = start_server(workers=1)
    database = Database(server.environment["DICOM_SQL_URL"])
    httpx.get(f"{server.v2}/subscribers/DOOMED", timeout=60)
    uids = write(database, "DOOMED", 2)
    server.kill()
    server.restart()
    with connect(url_of(server, "DOOMED")) as socket:
        deliver(server)
        assert receive(socket, 2) == list(enumerate(uids, 1))
        assert silent(socket)
    database.close()
