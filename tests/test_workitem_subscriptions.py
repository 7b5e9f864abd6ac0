"""Subscriptions to workitems and worklists (PS3.18 §11.10 to §11.13), with subscribers on real WebSockets."""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import sqlglot
from sqlalchemy.dialects import mssql
from websockets.sync.client import connect

from shared.sql import partitions, workitem_events, workitem_subscriptions, workitems
from shared.sql import tables as t
from shared.sql.engine import Database
from shared.web.query_params import workitem_request
from tests.conftest import Server, StartServer
from tests.workitems import code, data_set, new
from tests.worklist_clients import FILTERED_WORKLIST, WORKLIST, Subscriber, Worklist

PROGRESS = data_set(ProcedureStepProgress="50")


@pytest.fixture
def worklist(server: Server) -> Worklist:
    """A worklist of its own: a partition nobody else uses."""
    return Worklist(server, f"w-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def name() -> str:
    return f"AE{uuid.uuid4().hex[:12]}"


def kinds(subscriber: Subscriber, uid: str) -> list[str]:
    """What was reported of a workitem, in order."""
    return [state or kind for _, workitem, kind, state in subscriber.events if workitem == uid]


def test_a_manager_a_modality_and_a_subscriber_of_the_worklist(worklist: Worklist, name: str) -> None:
    early = worklist.create()
    response = worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    assert response.status_code == 201
    assert response.headers["content-location"].startswith("ws://127.0.0.1:")
    with Subscriber(worklist, name).connect(response.headers["content-location"]) as subscriber:
        late = worklist.create(ScheduledStationNameCodeSequence=code("CT1"))
        transactions = {uid: worklist.claim(uid) for uid in (early, late)}
        worklist.update(late, transactions[late], ProcedureStepProgressInformationSequence=PROGRESS)
        worklist.ask_to_cancel(late, "Fire drill")
        worklist.cancel(late, transactions[late])
        subscriber.wait_for(9)
        assert kinds(subscriber, early) == ["SCHEDULED", "IN PROGRESS"]
        assert kinds(subscriber, late)[:5] == [
            "SCHEDULED",
            "assigned",
            "IN PROGRESS",
            "progress",
            "cancel requested",
        ]
        assert "CANCELED" in kinds(subscriber, late)
        assert [number for number, *_ in subscriber.events] == list(range(1, len(subscriber.events) + 1))


def test_a_subscriber_of_one_workitem_hears_of_that_alone(worklist: Worklist, name: str) -> None:
    mine, other = worklist.create(), worklist.create()
    worklist.subscribe(mine, name)
    with Subscriber(worklist, name).connect() as subscriber:
        worklist.claim(other)
        worklist.claim(mine)
        subscriber.wait_for(2)
        assert kinds(subscriber, mine) == ["SCHEDULED", "IN PROGRESS"]
        worklist.done("DELETE", f"workitems/{mine}/subscribers/{name}")
        assert worklist.request("DELETE", f"workitems/{mine}/subscribers/{name}").status_code == 404
        worklist.ask_to_cancel(worklist.create())
        assert subscriber.is_silent()


def test_connections_that_are_cut_lose_and_repeat_nothing(worklist: Worklist, name: str) -> None:
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    with Subscriber(worklist, name) as subscriber:
        uids: list[str] = []
        for _ in range(4):
            subscriber.connect()
            uids += [worklist.create() for _ in range(3)]
            subscriber.wait_for(len(uids) - 1)
            subscriber.cut()
            uids += [worklist.create() for _ in range(2)]
        subscriber.connect().wait_for(len(uids))
        assert [uid for _, uid, *_ in subscriber.events] == uids
        assert [number for number, *_ in subscriber.events] == list(range(1, len(uids) + 1))


@pytest.mark.parametrize(
    "query",
    [
        "?deletionlock=true&WorklistLabel=Head",
        "?filter=00741202=Head&deletionlock=true",
        "?deletionlock=true&00741202=H*d",
    ],
)
def test_a_filtered_subscription_gets_what_matches_now_and_later(
    worklist: Worklist, name: str, query: str
) -> None:
    early, _ = worklist.create(WorklistLabel="Head"), worklist.create()
    worklist.subscribe(FILTERED_WORKLIST, name, query)
    with Subscriber(worklist, name).connect() as subscriber:
        other, late = worklist.create(), worklist.create(WorklistLabel="Head")
        worklist.claim(other)
        worklist.claim(late)
        subscriber.wait_for(3)
        assert [uid for _, uid, *_ in subscriber.events] == [early, late, late]


def test_a_suspended_subscription_takes_no_new_workitems(worklist: Worklist, name: str) -> None:
    early = worklist.create()
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    worklist.done("POST", f"workitems/{WORKLIST}/subscribers/{name}/suspend")
    assert worklist.request("POST", f"workitems/{WORKLIST}/subscribers/{name}/suspend").status_code == 404
    with Subscriber(worklist, name).connect() as subscriber:
        late = worklist.create()
        worklist.claim(late)
        worklist.claim(early)
        subscriber.wait_for(2)
        assert [uid for _, uid, *_ in subscriber.events] == [early, early]


def test_unsubscribing_from_the_worklist_ends_everything(worklist: Worklist, name: str) -> None:
    uid = worklist.create()
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    worklist.subscribe(FILTERED_WORKLIST, name, "?WorklistLabel=Chest")
    worklist.done("DELETE", f"workitems/{WORKLIST}/subscribers/{name}")
    with Subscriber(worklist, name).connect() as subscriber:
        before = len(subscriber.events)
        worklist.claim(uid)
        worklist.create()
        assert subscriber.is_silent()
        assert len(subscriber.events) == before


def test_the_filtered_subscription_ends_alone_while_the_other_stands(worklist: Worklist, name: str) -> None:
    uid = worklist.create()
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    worklist.subscribe(FILTERED_WORKLIST, name, "?WorklistLabel=Chest")
    worklist.done("DELETE", f"workitems/{FILTERED_WORKLIST}/subscribers/{name}")
    with Subscriber(worklist, name).connect() as subscriber:
        worklist.claim(uid)
        subscriber.wait_for(2)
        assert kinds(subscriber, uid)[-1] == "IN PROGRESS"


def test_partitions_know_nothing_of_each_other(worklist: Worklist, name: str) -> None:
    other = Worklist(worklist.server, f"x{worklist.partition}")
    uid = other.create()
    assert worklist.request("POST", f"workitems/{uid}/subscribers/{name}").status_code == 404
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    other.subscribe(uid, name)
    with Subscriber(worklist, name).connect() as here, Subscriber(other, name).connect() as there:
        own = worklist.create()
        other.claim(uid)
        assert [workitem for _, workitem, *_ in here.wait_for(1)] == [own]
        assert [workitem for _, workitem, *_ in there.wait_for(2)] == [uid, uid]


REFUSED: dict[str, tuple[str, str, int]] = {
    "no such workitem": ("POST", "workitems/1.2.3/subscribers/AE", 404),
    "lock neither yes nor no": ("POST", f"workitems/{WORKLIST}/subscribers/AE?deletionlock=1", 400),
    "filter of all": ("POST", f"workitems/{WORKLIST}/subscribers/AE?WorklistLabel=A", 400),
    "no filter": ("POST", f"workitems/{FILTERED_WORKLIST}/subscribers/AE", 400),
    "unknown attribute": ("POST", f"workitems/{FILTERED_WORKLIST}/subscribers/AE?Nothing=A", 400),
    "filter without value": (
        "POST",
        f"workitems/{FILTERED_WORKLIST}/subscribers/AE?filter=WorklistLabel",
        400,
    ),
    "title too long": ("POST", f"workitems/{WORKLIST}/subscribers/{'A' * 17}", 400),
    "suspension of a workitem": ("POST", "workitems/1.2.3/subscribers/AE/suspend", 400),
    "suspension of nothing": ("POST", f"workitems/{FILTERED_WORKLIST}/subscribers/AE/suspend", 404),
    "end of nothing": ("DELETE", f"workitems/{WORKLIST}/subscribers/AE", 404),
    "end of nothing filtered": ("DELETE", f"workitems/{FILTERED_WORKLIST}/subscribers/AE", 404),
    "end for no workitem": ("DELETE", "workitems/1.2.3/subscribers/AE", 404),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused(worklist: Worklist, case: str) -> None:
    method, path, status = REFUSED[case]
    response = worklist.request(method, path)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


def test_final_workitems_are_removed_unless_a_subscriber_holds_them(worklist: Worklist, name: str) -> None:
    locked, unlocked, active = (worklist.create() for _ in range(3))
    worklist.subscribe(locked, name, "?deletionlock=true")
    worklist.subscribe(unlocked, name, "?deletionlock=false")
    for uid in (locked, unlocked):
        worklist.cancel(uid, worklist.claim(uid))
    database = Database(worklist.server.environment["DICOM_SQL_URL"])

    def remove() -> None:
        w = t.workitem
        in_partition = sa.select(t.partition.c.partition_key).where(
            t.partition.c.partition_name == worklist.partition
        )

        def work(connection: sa.Connection) -> int:
            old = sa.update(w).where(w.c.partition_key.in_(in_partition)).values(changed="1999")
            connection.execute(old)
            return workitem_subscriptions.remove_final(connection, "2000", 100)

        database.run(True, work)

    remove()
    assert [worklist.exists(uid) for uid in (locked, unlocked, active)] == [True, False, True]
    worklist.subscribe(locked, name, "?deletionlock=false")
    remove()
    assert [worklist.exists(uid) for uid in (locked, active)] == [False, True]
    database.close()


@pytest.mark.parametrize("lock", ["true", "false"])
def test_a_worklist_subscription_leaves_those_to_workitems_as_they_are(
    worklist: Worklist, name: str, lock: str
) -> None:
    known, other = worklist.create(), worklist.create()
    worklist.subscribe(known, name)
    worklist.subscribe(WORKLIST, name, f"?deletionlock={lock}")
    expected = ["SCHEDULED"] if lock == "true" else []
    with Subscriber(worklist, name).connect() as subscriber:
        subscriber.wait_for(1 + len(expected))
        assert kinds(subscriber, known) == ["SCHEDULED"]
        assert kinds(subscriber, other) == expected
        assert subscriber.is_silent()


def test_an_event_survives_a_kill_between_its_commit_and_its_message(
    start_server: StartServer, name: str
) -> None:
    server = start_server(workers=2, DICOM_FAULT="workitem_events.committed:kill")
    worklist = Worklist(server)
    worklist.subscribe(WORKLIST, name, "?deletionlock=true")
    with pytest.raises(httpx.HTTPError):
        worklist.create()
    server.kill()
    server.restart(DICOM_FAULT=None)
    with Subscriber(worklist, name) as subscriber:
        url = str(worklist.done("GET", f"subscribers/{name}").json()["webSocketUrl"])
        with connect(url) as socket:
            server.run_function("tend_workitem_events")
            assert json.loads(socket.recv(timeout=10))["00741000"]["Value"] == ["SCHEDULED"]
        subscriber.connect()
        later = worklist.create()
        server.run_function("tend_workitem_events")  # the queue is that of other servers too
        subscriber.wait_for(2)
        assert subscriber.events[1][1] == later
        assert [number for number, *_ in subscriber.events] == [1, 2]


def test_a_subscription_that_begins_while_workitems_change_misses_nothing(
    worklist: Worklist, name: str
) -> None:
    """What is claimed at the same moment is reported as it is then, or as its change."""
    uids = [worklist.create() for _ in range(12)]
    with ThreadPoolExecutor(4) as threads:
        claims = [threads.submit(Worklist(worklist.server, worklist.partition).claim, uid) for uid in uids]
        worklist.subscribe(WORKLIST, name, "?deletionlock=true")
        new = [worklist.create() for _ in range(2)]
        for claim in claims:
            claim.result()
    with Subscriber(worklist, name).connect() as subscriber:
        assert subscriber.is_silent()
        for uid in uids:
            assert kinds(subscriber, uid)[-1] == "IN PROGRESS"
        assert [kinds(subscriber, uid) for uid in new] == [["SCHEDULED"], ["SCHEDULED"]]


def test_every_statement_of_subscriptions_and_events_is_t_sql(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'dicom.db'}")
    partition, uid = "Microsoft.Default", "1.2.3"
    database.run(True, partitions.key_of, partition)
    workitem = {tag: value for tag, value in new(WorklistLabel="Chest").items() if tag != "00081195"}
    terms = workitem_request(partition, [("WorklistLabel", "Ch*")]).query.terms
    statements: set[str] = set()

    def executed(
        _connection: sa.Connection,
        statement: sa.ClauseElement,
        many: list[dict[str, object]],
        one: object,
        _: object,
    ) -> None:
        if isinstance(statement, sa.Executable):
            names = list((many or [one or {}])[0])  # type: ignore[call-overload]
            dialect = mssql.dialect()  # type: ignore[no-untyped-call]
            compiled = statement.compile(  # type: ignore[attr-defined]
                dialect=dialect, column_keys=names or None, compile_kwargs={"render_postcompile": True}
            )
            statements.add(str(compiled))

    sa.event.listen(database.engine, "before_execute", executed)
    subscriptions, events = workitem_subscriptions, workitem_events
    write = lambda work, *arguments: database.run(True, work, *arguments)  # noqa: E731
    write(subscriptions.subscribe_to_worklist, partition, "A", False, None)
    write(subscriptions.subscribe_to_worklist, partition, "A", True, terms)
    write(workitems.create, partition, uid, workitem)
    write(subscriptions.subscribe_to_worklist, partition, "B", True, terms)
    write(subscriptions.subscribe, partition, uid, "B", True)
    write(subscriptions.subscribe, partition, uid, "C", False)
    assert database.run(False, events.is_pending)
    write(events.take, "run", 0, "2000", "2001", 2)
    write(events.release, "run")
    assert len(database.run(False, events.read_missed, partition, "B", 0, 10)[0]) == 2
    write(events.prune, "1999")
    write(subscriptions.suspend, partition, "B", True)
    write(subscriptions.unsubscribe, partition, uid, "B")
    write(subscriptions.unsubscribe_from_worklist, partition, "A", True)
    write(subscriptions.unsubscribe_from_worklist, partition, "A", False)
    write(
        lambda connection: connection.execute(sa.update(t.workitem).values(state="COMPLETED", changed="1999"))
    )
    assert write(subscriptions.remove_final, "2000", 10) == 1
    database.close()
    text = " ".join(statements)
    for table in ("workitem_event", "workitem_subscription", "worklist_subscription", "workitem_event_head"):
        assert table in text
    assert "WITH (UPDLOCK)" in text
    for sql in statements:
        (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
        assert parsed is not None
        assert parsed.find(sqlglot.exp.Command) is None, sql
