"""Files that appear in storage: dropped into ``inbox`` in any form, or put into ``dicom`` by others.

The development host scans the containers as the platform does; nothing here goes through the HTTP store
but what must be left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from azure.data.tables import TableServiceClient
from pydicom.uid import generate_uid

from shared.blobs import names
from shared.dicom.identifiers import InstanceKey
from tests.audit import (
    HTTP,
    assert_whole,
    audit,
    clean,
    container,
    is_stored,
    key_of,
    path_of,
    query,
    run,
    send,
)
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

GRACE_SECONDS = 2
OURS = {"origin": "store"}


@pytest.fixture(scope="module")
def scanning(start_server: StartServer) -> Server:
    """A server with storage of its own, whose triggers scan it."""
    server = start_server(
        workers=1,
        own_storage=True,
        DICOM_ORPHAN_GRACE_SECONDS=str(GRACE_SECONDS),
        DICOM_CLEANUP_SCHEDULE="0 0 0 1 1 *",
        DICOM_RECONCILE_SCHEDULE="0 0 0 1 1 *",
    )
    run(server, "clean_deleted_instances")  # makes the tables, which the tests look into
    return server


def drop(server: Server, where: str, name: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
    """Put a blob into storage, as a user of the storage account does."""
    with container(server, where) as client:
        client.upload_blob(name, data, metadata=metadata)


def own_name(file: bytes) -> str:
    """A proper name for a file in container ``dicom``."""
    return names.file_name(key_of(file), names.new_version())


def listed(server: Server, where: str) -> dict[str, dict[str, str]]:
    """The blobs of a container and their metadata."""
    with container(server, where) as client:
        return {blob.name: blob.metadata or {} for blob in client.list_blobs(include=["metadata"])}


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for the triggers."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "the triggers did not do it"
        time.sleep(0.05)


def is_gone(server: Server, where: str, name: str) -> None:
    eventually(lambda: name not in listed(server, where))


def entries(server: Server, file: bytes) -> list[str]:
    """The actions of an instance in the change feed."""
    found = query(server, "SELECT action FROM change_feed WHERE sop_instance_uid = ?", key_of(file).instance)
    return [row[0] for row in found]


def failure(server: Server, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What ``inbox-failed`` says of a file: its blob's metadata and its row in the table."""
    eventually(lambda: name in listed(server, names.INBOX_FAILED))
    service = TableServiceClient.from_connection_string(server.environment["AzureWebJobsStorage"])
    with service, service.get_table_client("inboxfailures") as table:
        (row,) = [row for row in table.list_entities() if row["Name"] == name]
    metadata = listed(server, names.INBOX_FAILED)[name]
    assert metadata["reason"] == row["Message"]
    return metadata, dict(row)


# --- dicom -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["Microsoft.Default", "hospital-2"])
def test_a_file_put_into_dicom_under_its_name_is_indexed_and_enters_the_change_feed_once(
    scanning: Server, partition: str
) -> None:
    file = make_file()
    key = key_of(file)
    name = names.file_name(InstanceKey(partition, key.study, key.series, key.instance), names.new_version())
    drop(scanning, names.DICOM, name, file)
    eventually(lambda: entries(scanning, file) == ["create"])
    root = scanning.v2 if partition == "Microsoft.Default" else f"{scanning.v2}/partitions/{partition}"
    url = root + path_of(key)
    assert HTTP.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"}).content == file
    assert HTTP.get(f"{url}/metadata").status_code == 200
    assert len(HTTP.get(f"{root}/studies?StudyInstanceUID={key.study}").json()) == 1
    assert run(scanning, "index_dicom_blob", f"dicom/{name}") == 202  # delivered again
    assert entries(scanning, file) == ["create"]
    assert name in listed(scanning, names.DICOM)


def test_files_that_others_all_gave_the_same_version_are_all_indexed(scanning: Server) -> None:
    files = [make_file() for _ in range(3)]
    dropped = [names.file_name(key_of(file), "1") for file in files]
    for name, file in zip(dropped, files, strict=True):
        drop(scanning, names.DICOM, name, file)
    for name, file in zip(dropped, files, strict=True):
        is_gone(scanning, names.DICOM, name)
        assert_whole(scanning, file)


def test_a_preamble_that_may_hold_a_program_is_not_kept(scanning: Server) -> None:
    file = make_file()
    name = own_name(file)
    drop(scanning, names.DICOM, name, b"MZ".ljust(128, b"\x90") + file[128:])
    is_gone(scanning, names.DICOM, name)
    assert_whole(scanning, file)
    assert entries(scanning, file) == ["create"]


def test_a_file_under_a_name_that_is_no_instances_moves_to_inbox_failed(scanning: Server) -> None:
    drop(scanning, names.DICOM, "some/folder/ä file.dcm", make_file())
    metadata, row = failure(scanning, "some/folder/ä file.dcm")
    assert metadata["reason"] == "The blob's name is not that of an instance."
    assert row["FailureReason"] == 43264
    is_gone(scanning, names.DICOM, "some/folder/ä file.dcm")


def test_a_file_that_is_not_what_its_name_says_moves_to_inbox_failed(scanning: Server) -> None:
    name = own_name(make_file())
    drop(scanning, names.DICOM, name, make_file())
    metadata, _ = failure(scanning, name)
    assert metadata["reason"] == "The file's identifiers are not those of its blob name."
    is_gone(scanning, names.DICOM, name)


def test_what_is_no_dicom_file_moves_to_inbox_failed(scanning: Server) -> None:
    name = own_name(make_file())
    drop(scanning, names.DICOM, name, b"no DICOM file")
    failure(scanning, name)
    is_gone(scanning, names.DICOM, name)


def test_what_the_http_path_stores_is_left_alone(scanning: Server) -> None:
    files = [make_file() for _ in range(4)]
    send(scanning, *files).raise_for_status()
    marker = make_file()
    drop(scanning, names.DICOM, own_name(marker), marker)  # when the trigger has seen it, it saw those too
    eventually(lambda: entries(scanning, marker) == ["create"])
    for file in files:
        assert entries(scanning, file) == ["create"]


def test_a_store_in_flight_is_left_alone_and_healed_when_it_is_over(scanning: Server) -> None:
    file = make_file()
    name = own_name(file)
    drop(scanning, names.DICOM, name, file, OURS)
    assert run(scanning, "index_dicom_blob", f"dicom/{name}") == 202
    assert run(scanning, "reconcile_blobs") == 202
    assert not is_stored(scanning, file)
    time.sleep(GRACE_SECONDS)
    assert run(scanning, "reconcile_blobs") == 202
    assert_whole(scanning, file)
    assert entries(scanning, file) == ["create"]


def test_duplicates_in_dicom_are_removed_and_different_files_set_aside(scanning: Server) -> None:
    stored = make_file()
    key = key_of(stored)
    send(scanning, stored).raise_for_status()
    copy, other, ours = own_name(stored), own_name(stored), own_name(stored)
    different = make_file(key.study, key.series, key.instance, PatientName="Other^Name")
    drop(scanning, names.DICOM, copy, stored)
    drop(scanning, names.DICOM, other, different)
    drop(scanning, names.DICOM, ours, different, OURS)
    time.sleep(GRACE_SECONDS)
    assert run(scanning, "reconcile_blobs") == 202
    assert not {copy, other, ours} & listed(scanning, names.DICOM).keys()
    assert {copy, other, ours} & listed(scanning, names.INBOX_FAILED).keys() == {other}
    metadata, _ = failure(scanning, other)
    assert metadata["reason"] == "Another version of the instance is stored already."
    assert_whole(scanning, stored)
    assert entries(scanning, stored) == ["create"]


def test_the_file_of_a_deleted_instance_does_not_come_back(scanning: Server) -> None:
    file = make_file()
    name = own_name(file)
    drop(scanning, names.DICOM, name, file)
    eventually(lambda: entries(scanning, file) == ["create"])
    HTTP.delete(scanning.v2 + path_of(key_of(file))).raise_for_status()
    assert run(scanning, "clean_deleted_instances") == 202
    assert name not in listed(scanning, names.DICOM)
    drop(scanning, names.DICOM, name, file)  # as if its clean-up had been cut off
    assert run(scanning, "index_dicom_blob", f"dicom/{name}") == 202
    time.sleep(GRACE_SECONDS)
    assert run(scanning, "reconcile_blobs") == 202
    assert name not in listed(scanning, names.DICOM)
    assert entries(scanning, file) == ["create", "delete"]


# --- inbox -------------------------------------------------------------------------------------------

DROPPED = [
    "plain",
    "IMG0001.dcm",
    "a/b/c/d/e.dcm",
    "Ünïcode ñame/画像 1.dcm",
    "50% #1 & more?.dcm",
    "trailing.",
]


def test_whatever_is_dropped_into_the_inbox_is_stored_and_removed(scanning: Server) -> None:
    files = {name: make_file() for name in DROPPED}
    for name, file in files.items():
        drop(scanning, names.INBOX, name, file)
    for name, file in files.items():
        is_gone(scanning, names.INBOX, name)
        assert_whole(scanning, file)
        assert entries(scanning, file) == ["create"]
    assert not files.keys() & listed(scanning, names.INBOX_FAILED).keys()


@pytest.mark.parametrize(
    ("data", "reason", "word"),
    [
        (b"", 43264, "DICOM"),
        (b"plain text, longer than a preamble " * 9, 43264, "DICOM"),
        (make_file(PatientID=None), 43264, "PatientID"),
        (make_file(instance="1.2/3"), 43264, "SOPInstanceUID"),
        (make_file()[:-20], 43264, ""),
    ],
    ids=["empty", "text", "without patient", "malformed UID", "truncated"],
)
def test_what_cannot_be_stored_moves_to_inbox_failed_with_the_reason(
    scanning: Server, request: pytest.FixtureRequest, data: bytes, reason: int, word: str
) -> None:
    name = f"refused/{request.node.callspec.id}.dcm"
    drop(scanning, names.INBOX, name, data)
    metadata, row = failure(scanning, name)
    assert metadata["failurereason"] == str(row["FailureReason"]) == str(reason)
    assert word in metadata["reason"]
    is_gone(scanning, names.INBOX, name)
    with container(scanning, names.INBOX_FAILED) as failed:
        assert failed.download_blob(name).readall() == data


def test_an_identical_file_that_is_stored_already_is_removed(scanning: Server) -> None:
    file = make_file()
    send(scanning, file).raise_for_status()
    drop(scanning, names.INBOX, "again.dcm", b"II*\0".ljust(128) + file[128:])
    is_gone(scanning, names.INBOX, "again.dcm")
    assert "again.dcm" not in listed(scanning, names.INBOX_FAILED)
    assert entries(scanning, file) == ["create"]


def test_a_different_file_with_the_identifiers_of_a_stored_one_is_set_aside(scanning: Server) -> None:
    file = make_file()
    key = key_of(file)
    send(scanning, file).raise_for_status()
    different = make_file(key.study, key.series, key.instance, PatientName="Other^Name")
    drop(scanning, names.INBOX, "different.dcm", different)
    metadata, row = failure(scanning, "different.dcm")
    assert metadata["failurereason"] == "45070"
    assert row["FailureReason"] == 45070
    assert_whole(scanning, file)


def test_two_deliveries_at_once_store_a_file_once(scanning: Server) -> None:
    study = generate_uid()
    files = {f"twice/{number}.dcm": make_file(study) for number in range(6)}
    for name, file in files.items():
        drop(scanning, names.INBOX, name, file)
        assert run(scanning, "store_inbox_blob", f"inbox/{name}") == 202  # beside the scan
    for name, file in files.items():
        is_gone(scanning, names.INBOX, name)
        assert entries(scanning, file) == ["create"]
    assert not files.keys() & listed(scanning, names.INBOX_FAILED).keys()


def test_afterwards_every_byte_belongs_to_an_instance(scanning: Server) -> None:
    time.sleep(GRACE_SECONDS)
    clean(scanning)
    assert len(audit(scanning).files) > len(DROPPED)
