"""Event reports as they are made and kept: their types, their order and their numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from shared.dicom import event_reports
from shared.dicom.event_reports import EventType
from shared.sql import tables as t
from shared.sql import workitem_events, workitem_subscriptions
from shared.sql.engine import Database
from tests.conftest import NewSqlUrl

SCHEDULED: dict[str, Any] = {
    "00741000": {"vr": "CS", "Value": ["SCHEDULED"]},
    "00404041": {"vr": "CS", "Value": ["READY"]},
    "00081195": {"vr": "UI", "Value": ["2.25.1"]},
}


def with_state(state: str, **more: Any) -> dict[str, Any]:
    return SCHEDULED | {"00741000": {"vr": "CS", "Value": [state]}} | more


@pytest.fixture
def database(new_sql_url: NewSqlUrl) -> Iterator[Database]:
    database = Database(new_sql_url("dicom"))
    yield database
    database.close()


def subscribe_to_worklist(database: Database, subscriber: str, partition: int = 1, lock: int = 0) -> None:
    row = {"partition_key": partition, "subscriber": subscriber, "filtered": 0}
    row |= {"deletion_lock": lock, "filter": ""}  # type: ignore[dict-item]
    database.run(True, lambda c: c.execute(sa.insert(t.worklist_subscription), row))


def create(database: Database, uid: str, partition: int = 1) -> int:
    def work(connection: sa.Connection) -> int:
        workitem_subscriptions.apply_global(connection, partition, uid)
        reports = event_reports.of_change(None, SCHEDULED)
        return workitem_events.record(connection, partition, uid, reports)

    return database.run(True, work)


def events(database: Database, subscriber: str, after: int = 0, partition: int = 1) -> list[tuple[int, str]]:
    found = database.run(False, workitem_events.read, partition, subscriber, after, 1000)
    return [(event.event_id, event.workitem_uid) for event in found]


def test_a_new_workitem_is_reported_with_its_state_alone() -> None:
    (report,) = event_reports.of_change(None, SCHEDULED)
    assert report.type is EventType.STATE
    assert report.attributes == {tag: SCHEDULED[tag] for tag in ("00741000", "00404041")}


def test_a_change_that_is_no_event_is_not_reported() -> None:
    assert event_reports.of_change(SCHEDULED, SCHEDULED | {"00741200": {"vr": "CS", "Value": ["LOW"]}}) == []


def test_progress_is_reported_whole() -> None:
    progress = {"vr": "SQ", "Value": [{"00741004": {"vr": "DS", "Value": [50]}}]}
    (report,) = event_reports.of_change(SCHEDULED, SCHEDULED | {"00741002": progress})
    assert (report.type, report.attributes) == (EventType.PROGRESS, {"00741002": progress})


def test_a_workitem_created_for_a_station_is_reported_as_assigned_too() -> None:
    station = {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["CT1"]}}]}
    reports = event_reports.of_change(None, SCHEDULED | {"00404025": station})
    assert [report.type for report in reports] == [EventType.STATE, EventType.ASSIGNED]
    assert reports[1].attributes == {"00404025": station}


def test_a_cancellation_is_reported_with_its_reason() -> None:
    reason = {"00741238": {"vr": "LT", "Value": ["Patient left"]}}
    canceled = with_state("CANCELED", **{"00741002": {"vr": "SQ", "Value": [reason]}})
    states = event_reports.of_change(with_state("IN PROGRESS"), canceled)
    assert [report.type for report in states] == [EventType.STATE, EventType.PROGRESS]
    assert states[0].attributes["00741238"] == reason["00741238"]


def test_a_payload_names_the_workitem_and_never_its_transaction() -> None:
    payload = event_reports.payload(event_reports.state(SCHEDULED), "1.2.3", 65536)
    assert payload["00000002"]["Value"] == ["1.2.840.10008.5.1.4.34.6.1"]
    assert payload["00000110"] == {"vr": "US", "Value": [1]}
    assert payload["00001000"]["Value"] == ["1.2.3"]
    assert payload["00001002"] == {"vr": "US", "Value": [1]}
    assert payload[event_reports.EVENT_ID] == {"vr": "UV", "Value": [65536]}
    assert "00081195" not in payload


def test_events_are_numbered_for_each_subscriber_without_gaps(database: Database) -> None:
    subscribe_to_worklist(database, "FIRST")
    assert create(database, "1.1") == 1
    subscribe_to_worklist(database, "SECOND")
    assert create(database, "1.2") == 2
    assert events(database, "FIRST") == [(1, "1.1"), (2, "1.2")]
    assert events(database, "FIRST", after=1) == [(2, "1.2")]
    assert events(database, "SECOND") == [(1, "1.2")]


def test_nobody_is_told_of_other_partitions(database: Database) -> None:
    subscribe_to_worklist(database, "FIRST")
    assert create(database, "1.1", partition=2) == 0
    assert events(database, "FIRST") == events(database, "FIRST", partition=2) == []


def test_writers_at_once_leave_no_gap(database: Database) -> None:
    subscribe_to_worklist(database, "FIRST")
    threads = [
        threading.Thread(target=lambda n=n: [create(database, f"1.{n}.{i}") for i in range(10)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _ in events(database, "FIRST")] == list(range(1, 41))


def test_a_change_that_is_rolled_back_is_not_reported(database: Database) -> None:
    subscribe_to_worklist(database, "FIRST")

    def work(connection: sa.Connection) -> None:
        workitem_subscriptions.apply_global(connection, 1, "1.1")
        workitem_events.record(connection, 1, "1.1", event_reports.of_change(None, SCHEDULED))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.run(True, work)
    assert create(database, "1.2") == 1
    assert events(database, "FIRST") == [(1, "1.2")]
