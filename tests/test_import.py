"""Bulk import over HTTP: what of a container is stored, what is refused and why, and what sources become."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.storage.blob import (
    BlobServiceClient,
    ContainerClient,
    ContainerSasPermissions,
    generate_container_sas,
)
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from shared.dicom import failure_reasons
from shared.dicom.identifiers import DEFAULT_PARTITION
from tests.audit import container as in_storage
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file
from tests.operations_harness import wait_for_end
from tests.partition import Partition, path_of, problem

Json = dict[str, Any]
OTHER = {"PatientName": "Other^Content"}


class Import:
    """A container with files, and imports of it into a fresh partition."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.partition = Partition(server)
        self.connection = server.environment["AzureWebJobsStorage"]
        self.service = BlobServiceClient.from_connection_string(self.connection)
        self.container: ContainerClient = self.service.create_container(f"source-{uuid.uuid4().hex[:16]}")

    def put(self, name: str, data: bytes) -> None:
        """Write a blob of the source."""
        self.container.upload_blob(name, data, overwrite=True)

    @property
    def left(self) -> set[str]:
        """The names of the blobs in the source."""
        return {blob.name for blob in self.container.list_blobs()}

    @property
    def settings(self) -> Json:
        """The source by connection string."""
        return {"connectionString": self.connection, "blobContainerName": self.container.container_name}

    def sas(self, permission: str = "rl", seconds: int = 3600) -> Json:
        """The source by the URI of the container with a SAS."""
        token = generate_container_sas(
            str(self.service.account_name),
            self.container.container_name,
            account_key=self.service.credential.account_key,
            permission=ContainerSasPermissions.from_string(permission),
            expiry=datetime.now(UTC) + timedelta(seconds=seconds),
        )
        return {"blobContainerUri": f"{self.container.url}?{token}"}

    def post(self, settings: Json | None = None, **options: Any) -> httpx.Response:
        """Start an import."""
        source = {"type": "azureblob", "settings": self.settings if settings is None else settings}
        body = {"source": source, **options}
        return httpx.post(f"{self.partition.root}/import", json=body, timeout=60)

    def run(self, settings: Json | None = None, **options: Any) -> Json:
        """Import and wait for the end: the operation."""
        response = self.post(settings, **options)
        assert response.status_code == 202, response.text
        assert response.headers["Location"] == response.json()["href"]
        return wait_for_end(response.headers["Location"])

    def report(self, operation: Json) -> dict[str, Json]:
        """The lines of the report by name of the blob."""
        (url,) = operation["resources"]
        response = httpx.get(url, timeout=60)
        assert response.status_code == 200
        assert response.headers["Content-Type"].partition(";")[0] == "application/x-ndjson"
        lines = [json.loads(line) for line in response.text.splitlines()]
        return {line["name"]: line for line in lines}

    def is_stored(self, file: bytes) -> bool:
        """Whether the partition has exactly this file."""
        response = self.partition.get(path_of(file), "application/dicom; transfer-syntax=*")
        return response.status_code == 200 and response.content == file


@pytest.fixture
def bulk(server: Server) -> Iterator[Import]:
    """A container with files of its own."""
    one = Import(server)
    yield one
    one.container.delete_container()


def results(operation: Json, **expected: int) -> bool:
    """Whether an operation succeeded with these counts and zero for all others."""
    counts = dict.fromkeys(("stored", "replaced", "duplicates", "skipped", "refused", "failed"), 0)
    assert operation["status"] == "succeeded", operation
    assert operation["percentComplete"] == 100
    assert operation["type"] == "import"
    assert operation["results"] == counts | expected, operation["results"]
    return True


def test_every_file_of_a_container_is_stored_once(bulk: Import) -> None:
    study = generate_uid()
    files = {f"folder {n % 7}/Jané {n}.dcm": make_file(study) for n in range(120)}
    for name, data in files.items():
        bulk.put(name, data)
    operation = bulk.run()
    assert results(operation, stored=120)
    assert bulk.report(operation) == {}
    assert all(bulk.is_stored(data) for data in files.values())
    (found,) = bulk.partition.get(f"studies?StudyInstanceUID={study}").json()
    assert found["00201208"]["Value"] == [120]
    assert bulk.left == set(files)
    assert results(bulk.run(), duplicates=120)


def test_files_of_any_size_are_stored_as_they_are(bulk: Import) -> None:
    large = make_file(frames=2, PixelData=bytes(20 * 1024 * 1024), Rows=2560, Columns=2048)
    small = make_file()
    for name, data in (("large", large), ("small", small)):
        bulk.put(name, data)
    assert results(bulk.run(), stored=2)
    assert bulk.is_stored(large)
    assert bulk.is_stored(small)


def test_a_prefix_narrows_the_source(bulk: Import) -> None:
    inside, outside = make_file(), make_file()
    bulk.put("2024/a", inside)
    bulk.put("2025/a", outside)
    assert results(bulk.run(bulk.settings | {"prefix": "2024/"}), stored=1)
    assert bulk.is_stored(inside)
    assert not bulk.is_stored(outside)


def test_a_sas_opens_the_source(bulk: Import) -> None:
    file = make_file()
    bulk.put("a", file)
    assert results(bulk.run(bulk.sas()), stored=1)
    assert bulk.is_stored(file)


def test_an_empty_source_succeeds(bulk: Import) -> None:
    assert results(bulk.run())


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("a.dcm", make_file())
    return buffer.getvalue()


def dicomdir() -> bytes:
    with open(str(get_testdata_file("DICOMDIR")), "rb") as file:
        return file.read()


def test_what_is_no_instance_is_reported_with_its_reason_and_the_rest_goes_on(bulk: Import) -> None:
    good = [make_file(), make_file()]
    bulk.put("a good one", good[0])
    bulk.put("archive.zip", archive())
    bulk.put("DICOMDIR", dicomdir())
    bulk.put("empty", b"")
    bulk.put("notes.txt", b"Dear colleague, ...")
    bulk.put("nothing but zeros", bytes(4096))
    bulk.put("truncated.dcm", make_file()[:-10])
    bulk.put("without a study.dcm", make_file(StudyInstanceUID=""))
    bulk.put("z the last one", good[1])
    operation = bulk.run(deleteSources=True)
    assert results(operation, stored=2, skipped=3, refused=4)
    assert all(bulk.is_stored(data) for data in good)
    report = bulk.report(operation)
    assert {name: line["status"] for name, line in report.items()} == {
        "archive.zip": "skipped",
        "DICOMDIR": "skipped",
        "empty": "skipped",
        "notes.txt": "refused",
        "nothing but zeros": "refused",
        "truncated.dcm": "refused",
        "without a study.dcm": "refused",
    }
    assert "Zip" in report["archive.zip"]["message"]
    assert "StudyInstanceUID" in report["without a study.dcm"]["message"]
    assert report["truncated.dcm"]["failureReason"] == failure_reasons.VALIDATION_FAILURE
    assert all(line["message"].endswith(".") for line in report.values())
    assert bulk.left == set(report)


@pytest.mark.parametrize("duplicates", ["skip", "replace"])
def test_duplicates_are_skipped_or_replaced(bulk: Import, duplicates: str) -> None:
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    same, before = make_file(), make_file(study, series, instance)
    after = make_file(study, series, instance, **OTHER)
    bulk.partition.keep(same, before)
    for name, data in (("same", same), ("other", after), ("new", make_file())):
        bulk.put(name, data)
    operation = bulk.run(duplicates=duplicates)
    if duplicates == "skip":
        assert results(operation, stored=1, duplicates=1, refused=1)
        assert bulk.report(operation)["other"]["failureReason"] == failure_reasons.ALREADY_EXISTS
        assert bulk.is_stored(before)
    else:
        assert results(operation, stored=1, duplicates=1, replaced=1)
        assert bulk.report(operation) == {}
        assert bulk.is_stored(after)


@pytest.mark.parametrize("duplicates", ["skip", "replace"])
def test_files_of_one_import_do_not_replace_each_other(bulk: Import, duplicates: str) -> None:
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    first, other = make_file(study, series, instance), make_file(study, series, instance, **OTHER)
    for name, data in (("a", first), ("b", first), ("c", other)):
        bulk.put(name, data)
    operation = bulk.run(duplicates=duplicates)
    assert results(operation, stored=1, duplicates=1, refused=1)
    assert "Another file" in bulk.report(operation)["c"]["message"]
    assert bulk.is_stored(first)


def test_sources_go_when_they_are_stored_and_only_then(bulk: Import) -> None:
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    same = make_file()
    bulk.partition.keep(same, make_file(study, series, instance))
    bulk.put("new", make_file())
    bulk.put("same", same)
    bulk.put("other", make_file(study, series, instance, **OTHER))
    bulk.put("junk", b"junk")
    operation = bulk.run(bulk.sas("rld"), deleteSources=True)
    assert results(operation, stored=1, duplicates=1, refused=2)
    assert bulk.left == {"other", "junk"}


def test_sources_that_may_not_be_deleted_stay_and_the_operation_says_so(bulk: Import) -> None:
    bulk.put("new", make_file())
    operation = bulk.run(bulk.sas("rl"), deleteSources=True)
    assert results(operation, stored=1)
    assert operation["errors"] == ["Sources that are stored could not be deleted: the source refuses."]
    assert bulk.left == {"new"}


def test_the_same_files_go_to_two_partitions(server: Server, bulk: Import) -> None:
    file = make_file()
    bulk.put("a", file)
    assert results(bulk.run(), stored=1)
    bulk.partition = Partition(server)
    operation = bulk.run()
    assert results(operation, stored=1)
    assert bulk.is_stored(file)
    (url,) = operation["resources"]
    assert f"/partitions/{bulk.partition.name}/import/" in url
    of_other = url.replace(bulk.partition.name, "another")
    assert problem(httpx.get(of_other), 404) == "There is no such import."


def test_the_inbox_is_imported_into_the_default_partition(server: Server) -> None:
    files = [make_file() for _ in range(3)]
    prefix = f"{uuid.uuid4().hex}/"
    inbox = in_storage(server, "inbox")
    for number, data in enumerate(files):
        inbox.upload_blob(f"{prefix}{number}", data)
    body = {"source": {"type": "inbox", "settings": {"prefix": prefix}}}
    other = httpx.post(f"{Partition(server).root}/import", json=body)
    assert "inbox" in problem(other, 400)
    response = httpx.post(f"{server.v2}/import", json=body)
    operation = wait_for_end(response.headers["Location"])
    assert operation["status"] == "succeeded"  # the trigger may have taken some of them
    default = Partition(server)
    default.root, default.name = server.v2, DEFAULT_PARTITION
    for data in files:
        assert default.get(path_of(data), "application/dicom; transfer-syntax=*").content == data
    assert [blob.name for blob in inbox.list_blobs(name_starts_with=prefix)] == []


Change = Callable[[Import], Json]
SETTINGS: dict[str, Change] = {
    "no such container": lambda b: b.settings | {"blobContainerName": "no-such-container"},
    "a wrong key": lambda b: {
        "connectionString": b.connection.replace("AccountKey=", "AccountKey=AAAA"),
        "blobContainerName": b.container.container_name,
    },
    "a SAS that has expired": lambda b: b.sas(seconds=-60),
    "a SAS that does not list": lambda b: b.sas("r"),
    "another host": lambda b: {"blobContainerUri": "https://example.org/a/b?sig=x"},
    "the server's own files": lambda b: b.settings | {"blobContainerName": "dicom"},
    "the server's own inbox": lambda b: b.settings | {"blobContainerName": "inbox"},
    "nothing": lambda b: {},
    "unknown setting": lambda b: b.settings | {"folder": "x"},
    "a prefix that is none": lambda b: b.settings | {"prefix": 7},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_source_that_cannot_be_read_is_refused_at_once(bulk: Import, what: str) -> None:
    settings = SETTINGS[what](bulk)
    sentence = problem(bulk.post(settings), 400)
    assert sentence.endswith(".")
    assert "estination" not in sentence
    for value in settings.values():
        assert len(str(value)) < 20 or str(value) not in sentence


BODIES: dict[str, tuple[bytes, str, int]] = {
    "no JSON": (b"{", "application/json", 400),
    "no object": (b"[]", "application/json", 400),
    "no source": (b"{}", "application/json", 400),
    "another type": (b'{"source": {"type": "ftp"}}', "application/json", 400),
    "an inbox with settings": (
        b'{"source": {"type": "inbox", "settings": {"connectionString": "x"}}}',
        "application/json",
        400,
    ),
    "an unknown member": (b'{"source": {"type": "inbox"}, "partition": "x"}', "application/json", 400),
    "unknown duplicates": (b'{"source": {"type": "inbox"}, "duplicates": "x"}', "application/json", 400),
    "no boolean": (b'{"source": {"type": "inbox"}, "deleteSources": 1}', "application/json", 400),
    "another media type": (b"<a/>", "text/xml", 415),
    "too large": (b" " * 70_000, "application/json", 413),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_malformed_body_is_refused(server: Server, what: str) -> None:
    body, media_type, status = BODIES[what]
    response = httpx.post(f"{server.v2}/import", content=body, headers={"Content-Type": media_type})
    problem(response, status)


def test_a_report_of_no_import_is_404(server: Server) -> None:
    assert problem(httpx.get(f"{server.v2}/import/{'0' * 32}/report"), 404)
    assert problem(httpx.get(f"{server.v2}/import/nonsense/report"), 404)


def test_neither_names_nor_secrets_are_in_logs_or_tables(server: Server, bulk: Import) -> None:
    name = f"Doe^Jane {uuid.uuid4().hex}.dcm"
    bulk.put(name, make_file())
    bulk.put(f"junk {name}", b"junk")
    signature = bulk.sas()
    operation = bulk.run(signature)
    assert results(operation, stored=1, refused=1)
    assert name not in server.log
    assert signature["blobContainerUri"].partition("?")[2] not in server.log
    assert name not in json.dumps(operation)


def test_a_secret_goes_with_its_import_and_one_left_behind_is_swept(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(
        workers=1,
        own_storage=True,  # no other host works on its queues
        DICOM_SECRETS_FOLDER=str(tmp_path),
        DICOM_FAULT="import.secret_saved:fail",
        DICOM_ORPHAN_GRACE_SECONDS="0",
        **{"AzureWebJobs.reconcile_blobs.Disabled": "true"},  # others use the storage, too
    )
    bulk = Import(server)
    assert problem(bulk.post(), 503)
    assert len(list(tmp_path.glob("*.secret"))) == 1
    server.run_function("tend_operations")
    assert list(tmp_path.glob("*.secret")) == []
    assert results(bulk.run())
    assert list(tmp_path.glob("*.secret")) == []
    bulk.container.delete_container()
