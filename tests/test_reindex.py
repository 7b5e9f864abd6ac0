"""The SQL database rebuilt from the blobs alone shows what the old one showed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import httpx
import pytest
from pydicom.uid import generate_uid

from shared.blobs import names
from shared.dicom.identifiers import InstanceKey
from tests.audit import HTTP, Found, audit, clean, container, key_of, path_of, query, send
from tests.conftest import ROOT, NewSqlUrl, Server, StartServer
from tests.dicom_files import make_file, real_files
from tests.operations_harness import wait_for_end

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

ORIGINAL = {"msdicom-request-original": "true"}
LARGEST = 50_000
"""Bytes of the largest real file used here."""


def search(server: Server, level: str) -> list[str]:
    """All a search at a level returns with every attribute, in an order of its own."""
    found: list[Any] = []
    while True:
        parameters = {"includefield": "all", "limit": "200", "offset": str(len(found))}
        page = HTTP.get(f"{server.v2}/{level}", params=parameters)
        if page.status_code == 204:
            return sorted(map(str, found))
        found += page.raise_for_status().json()


def shown(server: Server, keys: list[InstanceKey]) -> dict[str, Any]:
    """Everything clients see: searches, metadata and the bytes of instances."""
    with httpx.Client(timeout=60) as client:
        whole = {"Accept": "application/dicom; transfer-syntax=*"}
        return {
            **{level: search(server, level) for level in ("studies", "series", "instances")},
            "files": {key: client.get(server.v2 + path_of(key), headers=whole).content for key in keys},
            "originals": {
                key: client.get(server.v2 + path_of(key), headers=whole | ORIGINAL).content for key in keys
            },
            "metadata": {key: client.get(f"{server.v2}{path_of(key)}/metadata").json() for key in keys},
        }


def update(server: Server, study: str, name: str) -> None:
    """Give a study's patient another name, and wait for it."""
    changes = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": name}]}}
    body = {"studyInstanceUids": [study], "changeDataset": changes}
    response = HTTP.post(f"{server.v2}/studies/$bulkUpdate", json=body)
    assert wait_for_end(response.json()["href"])["status"] == "succeeded"


def reindex(server: Server, sql_url: str) -> subprocess.CompletedProcess[str]:
    """Run the command on another database."""
    return subprocess.run(
        [sys.executable, "-m", "shared.services.reindex"],
        cwd=ROOT,
        env=server.environment | {"DICOM_SQL_URL": sql_url},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def archive(start_server: StartServer) -> Server:
    """A server with a history, all of it cleaned up: stores, replacements, deletes, a partition, a drop."""
    server = start_server(
        workers=1, own_storage=True, DICOM_ORPHAN_GRACE_SECONDS="0", DICOM_BLOB_TRIGGER_SOURCE="EventGrid"
    )
    real = [path.read_bytes() for path in real_files()[::3] if path.stat().st_size <= LARGEST]
    for start in range(0, len(real), 10):
        send(server, *real[start : start + 10])
    study, series = generate_uid(), generate_uid()
    deleted = make_file(study)
    send(server, deleted, make_file()).raise_for_status()
    HTTP.delete(server.v2 + path_of(key_of(deleted))).raise_for_status()
    for number, name in ((9, "First"), (5, "Second"), (1, "Last")):  # in the order of names the other wins
        send(server, make_file(study, series, f"1.2.{number}", PatientName=name)).raise_for_status()
    replaced = [make_file(study) for _ in range(2)]
    send(server, *replaced).raise_for_status()
    for file in replaced:
        key = key_of(file)
        after = make_file(study, key.series, key.instance, PatientName="Replaced", Modality="MR")
        send(server, after, method="PUT").raise_for_status()
    updated = generate_uid()
    send(server, make_file(updated), make_file(updated)).raise_for_status()
    for name in ("Updated", "Updated^Again"):
        update(server, updated, name)
    dropped = make_file()
    with container(server, names.INBOX) as inbox:
        inbox.upload_blob("dropped", dropped)
    clean(server)
    return server


def test_a_rebuilt_database_shows_what_the_old_one_did(archive: Server, new_sql_url: NewSqlUrl) -> None:
    before: Found = audit(archive)
    keys = sorted(before.files, key=str)
    assert len(keys) > 40
    expected = shown(archive, keys)
    sql_url = new_sql_url("rebuilt")
    done = reindex(archive, sql_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{len(keys)} instances indexed.\n")
    archive.restart(DICOM_SQL_URL=sql_url)
    rebuilt = shown(archive, keys)
    for kind, content in expected.items():
        assert rebuilt[kind] == content
    entries = query(
        archive,
        "SELECT partition_name, study_instance_uid, series_instance_uid, sop_instance_uid, action "
        "FROM change_feed",
    )
    assert Counter(entries) == Counter(
        (key.partition, key.study, key.series, key.instance, "create") for key in keys
    )
    clean(archive)
    after = audit(archive)
    assert after.files == before.files
    assert after.documents == before.documents
    assert len(before.originals) == 2
    assert after.originals == before.originals
    assert after.documents_of_originals == before.documents_of_originals


def test_a_database_that_is_not_empty_is_left_alone(archive: Server) -> None:
    url = archive.environment["DICOM_SQL_URL"]
    rows = query(archive, "SELECT count(*) FROM change_feed")
    done = reindex(archive, url)
    assert done.returncode == 1
    assert done.stderr == "The SQL database is not empty; point DICOM_SQL_URL to a new one.\n"
    assert query(archive, "SELECT count(*) FROM change_feed") == rows


def test_files_that_were_never_indexed_are_left_to_the_reconciliation(
    archive: Server, new_sql_url: NewSqlUrl
) -> None:
    good, hidden = make_file(), make_file()
    programs = b"MZ".ljust(128) + hidden[128:]
    with container(archive, names.DICOM) as dicom:
        dicom.upload_blob(names.file_name(key_of(good), names.new_version()), good)
        dicom.upload_blob(names.file_name(key_of(hidden), names.new_version()), programs)
        dicom.upload_blob(names.file_name(key_of(make_file()), "zzz"), b"no DICOM file")
        dicom.upload_blob("no/proper/name", good)
    sql_url = new_sql_url("again")
    assert reindex(archive, sql_url).returncode == 0
    archive.restart(DICOM_SQL_URL=sql_url)
    assert query(archive, "SELECT 1 FROM instance WHERE sop_instance_uid = ?", key_of(good).instance)
    assert not query(archive, "SELECT 1 FROM instance WHERE sop_instance_uid = ?", key_of(hidden).instance)
    clean(archive)
    found = audit(archive)
    assert found.files[key_of(hidden)] == hidden
    with container(archive, names.INBOX_FAILED) as failed:
        assert len(list(failed.list_blobs())) == 2
