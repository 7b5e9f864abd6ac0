"""Whether Blob Storage and the index of a server agree to the last byte.

After the timers have run, every file belongs to exactly one instance, every byte of the metadata packs to
one record, every cached frame to an instance that is there, and counts and change feed say what is there.
The storage must be the server's own.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import sqlalchemy as sa
from azure.storage.blob import BlobServiceClient, ContainerClient
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from shared.blobs import names
from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey
from shared.sql.engine import Database
from tests.conftest import Server
from tests.dicom_files import multipart

HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
"""A connection a request: the worker at the other end may have died since the last one."""

_VERSIONS = """
    SELECT partition_name, study_instance_uid, series_instance_uid, sop_instance_uid, {of}.version, {of}.size,
           {of}.pack, {of}.document_offset, {of}.document_length, {of}.bulkdata_length, {of}.frames_length,
           {number}
    FROM instance JOIN series ON series.series_key = instance.series_key
    JOIN study ON study.study_key = series.study_key
    JOIN partition ON partition.partition_key = study.partition_key"""
_CURRENT, _ORIGINAL = (_VERSIONS.format(of=of, number=n) for n, of in enumerate(("instance", "original")))
_INSTANCES = f"""{_CURRENT} UNION ALL {_ORIGINAL}
    JOIN original_instance original ON original.instance_key = instance.instance_key"""

_MISCOUNTED = """
    SELECT 'study', study_key FROM study WHERE
        number_of_instances != (SELECT count(*) FROM instance i WHERE i.study_key = study.study_key)
        OR number_of_series != (SELECT count(*) FROM series s WHERE s.study_key = study.study_key)
        OR number_of_instances = 0
    UNION ALL SELECT 'series', series_key FROM series WHERE
        number_of_instances != (SELECT count(*) FROM instance i WHERE i.series_key = series.series_key)
        OR number_of_instances = 0"""


@dataclass
class Found:
    """What an audit has seen: the bytes and the metadata document of each instance, and of originals."""

    files: dict[InstanceKey, bytes] = field(default_factory=dict)
    documents: dict[InstanceKey, dict[str, Any]] = field(default_factory=dict)
    originals: dict[InstanceKey, bytes] = field(default_factory=dict)
    documents_of_originals: dict[InstanceKey, dict[str, Any]] = field(default_factory=dict)


class WithStorage(Protocol):
    """A server, or what else knows the settings it was started with."""

    environment: dict[str, str]


def container(server: WithStorage, name: str) -> ContainerClient:
    """A container of the server's storage, reached without the server."""
    service = BlobServiceClient.from_connection_string(server.environment["AzureWebJobsStorage"])
    return service.get_container_client(name)


def query(server: WithStorage, statement: str, *values: Any) -> list[Any]:
    """Rows from the server's database. Statements are SQL of both SQLite and SQL Server; a test holds it."""
    url = sa.make_url(server.environment["DICOM_SQL_URL"]).difference_update_query(["timeout"])
    database = Database(url.render_as_string(hide_password=False), threads=1)
    with closing(database), database.engine.connect() as connection:
        result = connection.exec_driver_sql(statement, values)
        rows = [tuple(row) for row in result] if result.returns_rows else []
        connection.commit()
    return rows


def run(server: Server, function: str, blob: str = "") -> int:
    """Run a timer, or a blob function as if for ``container/name``; 202, or 500 when it raised."""
    url, longest = f"{server.url}/admin/functions/{function}", 1800  # seconds, for 20,000 files
    return HTTP.post(url, json={"input": blob}, timeout=longest).status_code


def clean(server: Server) -> None:
    """Run the timers. What failed before is due at once, not after minutes."""
    assert run(server, "reconcile_blobs") == 202
    query(server, "UPDATE deleted_instance SET cleanup_after = ''")
    assert run(server, "clean_deleted_instances") == 202
    assert run(server, "reconcile_blobs") == 202


def delete_everything(server: Server) -> None:
    """Delete all studies of the default partition."""
    for (uid,) in query(server, "SELECT study_instance_uid FROM study"):
        HTTP.delete(f"{server.v2}/studies/{uid}").raise_for_status()


def audit(server: WithStorage) -> Found:
    """Compare everything with everything; AssertionError where a byte or a row is too many or too few."""
    found = Found()
    rows = query(server, _INSTANCES)
    files = {names.file_name(InstanceKey(*row[:4]), row[4]): row for row in rows}
    with container(server, names.DICOM) as dicom:
        assert sorted(files) == sorted(blob.name for blob in dicom.list_blobs())
        for name, row in files.items():
            data = dicom.download_blob(name).readall()
            assert len(data) == row[5]
            ds = dcmread(DicomBytesIO(data), stop_before_pixels=True)
            assert (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID) == row[1:4]
            (found.originals if row[11] else found.files)[InstanceKey(*row[:4])] = data
    by_pack: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_pack[names.pack_name(row[0], row[1], row[2], row[6])].append(row)
    with container(server, names.METADATA) as metadata:
        sizes = {blob.name: blob.size for blob in metadata.list_blobs()}
        assert sorted(sizes) == sorted(by_pack)
        for name, members in by_pack.items():
            data = metadata.download_blob(name).readall()
            end = 0
            for row in sorted(members, key=lambda row: row[7]):
                assert row[7] == end, f"{name} has dead bytes"
                document = json.loads(data[end : end + row[8]])
                assert document["00080018"]["Value"] == [row[3]]
                documents = found.documents_of_originals if row[11] else found.documents
                documents[InstanceKey(*row[:4])] = document
                end += sum(row[8:11])
            assert end == sizes[name], f"{name} has dead bytes"
    with container(server, names.CACHE) as cache:
        made_from = {names.parse_cached_name(blob.name) for blob in cache.list_blobs()}
        assert made_from <= {(InstanceKey(*row[:4]), row[4]) for row in rows}
    assert query(server, _MISCOUNTED) == []
    assert query(server, "SELECT version FROM deleted_instance") == []
    assert query(server, "SELECT version FROM prepared_update") == []
    _audit_change_feed(server, {InstanceKey(*row[:4]): row[4] for row in rows if not row[11]})
    return found


def _audit_change_feed(server: WithStorage, current: dict[InstanceKey, str]) -> None:
    """Sequences have no gap, and replaying the feed gives what is there, each version once."""
    rows = query(
        server,
        "SELECT sequence, action, partition_name, study_instance_uid, series_instance_uid, sop_instance_uid, "
        "version FROM change_feed ORDER BY sequence",
    )
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    stored = Counter((row[2:6], row[6]) for row in rows if row[1] != "delete")
    assert set(stored.values()) <= {1}, "a version was committed twice"
    replayed: dict[InstanceKey, str] = {}
    for _, action, *identifiers, version in rows:
        key = InstanceKey(*identifiers)
        assert (action == "create") == (key not in replayed), (action, key)
        if action == "delete":
            assert replayed.pop(key) == version
        else:
            replayed[key] = version
    assert replayed == current


# --- instances over HTTP -----------------------------------------------------------------------------


def key_of(file: bytes) -> InstanceKey:
    """The identifiers of a file in the default partition."""
    ds = dcmread(DicomBytesIO(file), stop_before_pixels=True)
    return InstanceKey(DEFAULT_PARTITION, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)


def path_of(key: InstanceKey) -> str:
    """The path of an instance below the base."""
    return f"/studies/{key.study}/series/{key.series}/instances/{key.instance}"


def send(server: Server, *files: bytes, method: str = "POST") -> httpx.Response:
    """Store files with one request."""
    body, headers = multipart(files)
    return HTTP.request(method, f"{server.v2}/studies", content=body, headers=headers)


def assert_whole(server: Server, file: bytes) -> None:
    """The instance is there in every way there is: bytes, metadata, frames, search and change feed."""
    key = key_of(file)
    url = server.v2 + path_of(key)
    response = HTTP.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert response.status_code == 200, response.text
    assert response.content == bytes(128) + file[128:]
    (document,) = HTTP.get(f"{url}/metadata").raise_for_status().json()
    assert document["00080018"]["Value"] == [key.instance]
    frame = HTTP.get(f"{url}/frames/1", headers={"Accept": "application/octet-stream"})
    assert frame.raise_for_status().content in file
    for level, keyword, uid in (
        ("studies", "StudyInstanceUID", key.study),
        ("series", "SeriesInstanceUID", key.series),
        ("instances", "SOPInstanceUID", key.instance),
    ):
        found = HTTP.get(f"{server.v2}/{level}", params={keyword: uid})
        assert len(found.raise_for_status().json()) == 1
    states = query(
        server,
        "SELECT action FROM change_feed WHERE sop_instance_uid = ? ORDER BY sequence DESC",
        key.instance,
    )
    assert states[0][0] in ("create", "update")


def is_stored(server: Server, file: bytes) -> bool:
    """Whether the instance is visible; if it is, it must be whole."""
    response = HTTP.get(f"{server.v2}{path_of(key_of(file))}/metadata")
    if response.status_code == 404:
        return False
    assert_whole(server, file)
    return True
