"""Export on the wire: the app with its queues, and another container of a real Azurite as the destination."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import sqlglot
from azure.data.tables import TableServiceClient
from azure.storage.blob import (
    BlobServiceClient,
)
from azure.storage.queue import QueueServiceClient
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from sqlalchemy.dialects import mssql

from shared.dicom.attributes import Level
from shared.dicom.deidentify import Pseudonyms
from shared.dicom.identifiers import Resource
from shared.services.export import Source
from shared.sql import export as index
from shared.web.query_params import search_query
from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, to_file
from tests.export_target import Target
from tests.operations_harness import wait_for_end
from tests.partition import Partition, problem

Json = dict[str, Any]


@pytest.fixture
def target(azurite: Any) -> Target:
    return Target(azurite.connection_string)


@pytest.fixture
def partition(server: Server) -> Partition:
    return Partition(server)


def identifiers(*values: str) -> Json:
    return {"type": "identifiers", "settings": {"values": list(values)}}


def query(text: str) -> Json:
    return {"type": "query", "settings": {"query": text}}


def start(partition: Partition, source: Json, where: Json, **more: Any) -> httpx.Response:
    body = {"source": source, "destination": {"type": "azureblob", "settings": where}, **more}
    return partition.http.post(f"{partition.root}/export", json=body)


def export(partition: Partition, source: Json, where: Json, **more: Any) -> Json:
    """Export and wait for the end."""
    response = start(partition, source, where, **more)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == response.json()["href"]
    return wait_for_end(response.json()["href"])


def identifier(file: bytes) -> str:
    ds = dcmread(io.BytesIO(file), stop_before_pixels=True)
    return f"{ds.StudyInstanceUID}/{ds.SeriesInstanceUID}/{ds.SOPInstanceUID}"


def lines(data: bytes) -> list[Json]:
    return [json.loads(line) for line in data.splitlines()]


# --- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SAS", "connection string"])
def test_studies_series_and_instances_are_copied_byte_for_byte_to_the_ancestors_layout(
    partition: Partition, target: Target, how: str
) -> None:
    study, series = generate_uid(), generate_uid()
    files = [make_file(study=study, series=series) for _ in range(3)]
    others = [make_file(), make_file()]
    partition.keep(*files, *others, make_file())
    other_study, other_series, _ = identifier(others[1]).split("/")
    where = target.sas() if how == "SAS" else target.by_connection()
    asked = identifiers(study, identifier(others[0]), f"{other_study}/{other_series}", f"{study}/{series}")
    end = export(partition, asked, where)
    id = end["operationId"]
    assert (end["type"], end["status"], end["percentComplete"]) == ("export", "succeeded", 100)
    assert end["results"] == {
        "exported": 5,
        "skipped": 0,
        "errorHref": f"{target.client.url}/{id}/errors.log",
    }
    expected = {f"{id}/results/{identifier(file)}.dcm": file for file in [*files, *others]}
    assert target.blobs() == expected | {f"{id}/errors.log": b""}
    name = f"{id}/results/{identifier(files[0])}.dcm"
    kind = target.client.get_blob_client(name).get_blob_properties().content_settings.content_type
    assert kind == "application/dicom"


def test_a_large_file_is_copied_in_blocks(partition: Partition, target: Target) -> None:
    file = make_file(frames=240_000)  # 11 MB
    partition.keep(file)
    end = export(partition, identifiers(identifier(file)), target.sas())
    assert target.blobs()[f"{end['operationId']}/results/{identifier(file)}.dcm"] == file


def test_an_export_by_query_takes_everything_that_matches_at_its_level(
    partition: Partition, target: Target
) -> None:
    study = generate_uid()
    patient = {"PatientName": "Müller^Anna", "SpecificCharacterSet": "ISO_IR 192"}
    kept = [make_file(study=study, Modality="CT", **patient) for _ in range(2)]
    kept.append(make_file(study=study, Modality="MR", **patient))
    partition.keep(*kept, make_file(PatientName="Other^One", Modality="CT"))
    for text, expected in (
        ("studies?PatientName=MULLER*", kept),
        (f"studies/{study}/series?Modality=MR", kept[2:]),
        (f"series?Modality=CT&StudyInstanceUID={study}", kept[:2]),
        (f"instances?SOPInstanceUID={identifier(kept[0]).split('/')[2]}", kept[:1]),
        ("studies?PatientID=nobody", []),
        ("studies?PatientName=Anna&fuzzymatching=true", kept),
    ):
        end = export(partition, query(text), target.sas())
        prefix = f"{end['operationId']}/results/"
        names = {name for name in target.blobs() if name.startswith(prefix)}
        assert names == {f"{prefix}{identifier(file)}.dcm" for file in expected}, text
        assert end["results"]["exported"] == len(expected)


def test_a_partition_is_not_left(server: Server, partition: Partition, target: Target) -> None:
    file = make_file()
    partition.keep(file)
    Partition(server).keep(make_file(*identifier(file).split("/"), PatientID="other"))
    end = export(Partition(server), query("studies"), target.sas())
    assert end["results"]["exported"] == 0
    end = export(partition, query("studies"), target.sas())
    assert end["results"]["exported"] == 1
    assert file in target.blobs().values()


# --- failures ------------------------------------------------------------------------------------------


def test_what_is_not_there_is_skipped_and_logged(partition: Partition, target: Target) -> None:
    file = make_file()
    partition.keep(file)
    study = identifier(file).split("/")[0]
    missing = ["1.2.3", f"{study}/1.2.3", f"{study}/1.2.3/4"]
    end = export(partition, identifiers("1.2.3", *missing, identifier(file)), target.sas())
    assert end["status"] == "succeeded"
    assert (end["results"]["exported"], end["results"]["skipped"]) == (1, 2)  # one covers another
    assert end["errors"] == ["There is no such study, series or instance."]
    logged = lines(target.blobs()[f"{end['operationId']}/errors.log"])
    assert [entry["identifier"] for entry in logged] == missing[:2]
    assert {entry["error"] for entry in logged} == {"There is no such study, series or instance."}
    for entry in logged:
        assert entry.keys() == {"timestamp", "identifier", "error"}
        datetime.fromisoformat(entry["timestamp"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {"type": "all"}}, "identifiers or query"),
        ({"source": identifiers()}, "values"),
        ({"source": identifiers("1/2/3/4")}, "identifier"),
        ({"source": identifiers("1.2.3/")}, "SeriesInstanceUID"),
        ({"source": identifiers("not a uid")}, "StudyInstanceUID"),
        ({"source": {"type": "identifiers", "settings": {"values": [1]}}}, "identifier"),
        ({"source": {"type": "identifiers"}}, "settings"),
        ({"source": query("patients?PatientID=1")}, "path of a search"),
        ({"source": query("studies?Nonsense=1")}, "Nonsense"),
        ({"source": query("studies?limit=1")}, "limit"),
        ({"source": query("studies/x y/series")}, "StudyInstanceUID"),
        ({"source": query("studies?StudyDate=soon")}, "StudyDate"),
        ({"source": {"type": "query", "settings": {"query": 1}}}, "query"),
        ({"destination": {"type": "s3", "settings": {}}}, "azureblob"),
        ({"destination": {"type": "azureblob"}}, "settings"),
        (
            {
                "destination": {
                    "type": "azureblob",
                    "settings": {"blobContainerUri": "https://x.test/c?sig=1"},
                }
            },
            "DICOM_STORAGE_HOSTS",
        ),
        ({"deidentification": {"profile": "none"}}, "profile"),
        ({"deidentification": {"profile": "basic", "options": ["cleanDescriptors"]}}, "options"),
        ({"deidentification": {"profile": "basic", "options": "retainUids"}}, "options"),
        ({"deidentification": {"profile": "basic", "allowBurnedInAnnotation": 1}}, "allowBurnedInAnnotation"),
        ({"metadata": {"type": "csv"}}, "parquet"),
        ({"surprise": 1}, "members"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(
    partition: Partition, target: Target, change: Json, said: str
) -> None:
    body = {
        "source": identifiers("1.2.3"),
        "destination": {"type": "azureblob", "settings": target.sas()},
        **change,
    }
    detail = problem(partition.http.post(f"{partition.root}/export", json=body), 400)
    assert said in detail
    assert "sig" not in detail


@pytest.mark.parametrize("container", ["dicom", "metadata", "inbox", "cache", "operations"])
def test_the_servers_own_containers_are_no_destination(
    partition: Partition, target: Target, container: str
) -> None:
    where = {"connectionString": target.connection, "blobContainerName": container}
    body = {"source": identifiers("1.2.3"), "destination": {"type": "azureblob", "settings": where}}
    assert "its own data" in problem(partition.http.post(f"{partition.root}/export", json=body), 400)


def test_a_query_may_name_an_extended_query_tag(server: Server, partition: Partition, target: Target) -> None:
    tag = [{"path": "DeviceSerialNumber", "vr": "LO", "level": "Series"}]
    added = httpx.post(f"{server.v2}/extendedquerytags", json=tag, timeout=60)
    assert added.status_code == 202, added.text
    wait_for_end(added.json()["href"], 120)
    file = make_file(DeviceSerialNumber="WANTED")
    partition.keep(file)
    partition.keep(make_file(DeviceSerialNumber="OTHER"))
    end = export(partition, query("instances?DeviceSerialNumber=want*"), target.sas())
    assert (end["status"], end["results"]["exported"]) == ("succeeded", 1)
    assert [name for name in target.blobs() if identifier(file).rpartition("/")[2] in name]
    assert httpx.delete(f"{server.v2}/extendedquerytags/DeviceSerialNumber", timeout=60).status_code in (
        202,
        204,
    )


def test_bodies_that_are_no_json_too_large_or_of_another_type(partition: Partition) -> None:
    url = f"{partition.root}/export"
    problem(partition.http.post(url, content=b"{", headers={"Content-Type": "application/json"}), 400)
    problem(partition.http.post(url, content=b"[]", headers={"Content-Type": "application/json"}), 400)
    problem(partition.http.post(url, content=b"<a/>", headers={"Content-Type": "text/xml"}), 415)
    large = json.dumps({"source": "x" * 2**21}).encode()
    problem(partition.http.post(url, content=large, headers={"Content-Type": "application/json"}), 413)


@pytest.mark.parametrize(
    ("permission", "hours", "said"), [("r", 1, "credential"), ("cw", -1, "credential"), ("", 1, "not exist")]
)
def test_a_destination_that_cannot_be_written_to_is_told_at_once_without_its_secret(
    partition: Partition, target: Target, permission: str, hours: float, said: str
) -> None:
    where = target.sas(permission or "cw", hours)
    if not permission:
        target.client.delete_container()
    detail = problem(start(partition, identifiers("1.2.3"), where), 400)
    assert said in detail
    assert "sig" not in detail


def test_a_destination_that_does_not_answer_is_503(partition: Partition) -> None:
    where = {"blobContainerUri": "http://127.0.0.1:9/account/exports?sv=1&sig=c2VjcmV0"}
    response = start(partition, identifiers("1.2.3"), where)
    assert "sig" not in problem(response, 503)
    assert int(response.headers["Retry-After"]) > 0


# --- secrets -------------------------------------------------------------------------------------------


def _everything_kept(connection: str) -> str:
    """All that tables, queues and the containers of the server hold, as text."""
    found: list[str] = []
    tables = TableServiceClient.from_connection_string(connection)
    for table in tables.list_tables():
        found += [str(dict(row)) for row in tables.get_table_client(table.name).list_entities()]
    queues = QueueServiceClient.from_connection_string(connection)
    for queue in queues.list_queues():
        messages = queues.get_queue_client(queue.name).peek_messages(32)
        found += [str(message.content) for message in messages]
    blobs = BlobServiceClient.from_connection_string(connection).get_container_client("operations")
    found += list(blobs.list_blob_names())
    for name in blobs.list_blob_names():
        found.append(blobs.download_blob(name).readall().decode(errors="replace"))
    return "\n".join(found)


def secrets_of(server: Server) -> list[Path]:
    return list(Path(server.environment["DICOM_SECRETS_FOLDER"]).glob("*.secret"))


def test_the_secret_is_in_no_table_queue_blob_or_log_and_gone_at_the_end(
    server: Server, partition: Partition, target: Target, azurite: Any
) -> None:
    partition.keep(*(make_file() for _ in range(3)))
    where = target.sas()
    signature = where["blobContainerUri"].rpartition("sig=")[2].partition("&")[0]
    response = start(partition, query("studies?PatientID=P-1"), where)
    id = response.json()["id"]
    during = _everything_kept(azurite.connection_string)
    assert id in during
    end = wait_for_end(response.json()["href"])
    assert end["status"] == "succeeded"
    for kept in (during, _everything_kept(azurite.connection_string), server.log, json.dumps(end)):
        assert signature not in kept
        assert "sig=" not in kept
    assert not [path for path in secrets_of(server) if id in path.name]
    blobs = BlobServiceClient.from_connection_string(azurite.connection_string)
    assert not list(blobs.get_container_client("operations").list_blob_names(name_starts_with=id))


def test_a_canceled_export_ends_with_its_log_and_without_its_secret(
    server: Server, partition: Partition, target: Target
) -> None:
    partition.keep(*(make_file() for _ in range(20)))
    response = start(partition, query("studies"), target.sas())
    id, href = response.json()["id"], response.json()["href"]
    assert partition.http.delete(href).status_code in (200, 202, 409)
    end = wait_for_end(href)
    assert end["status"] in ("canceled", "succeeded")
    assert f"{id}/errors.log" in target.blobs()
    assert not [path for path in secrets_of(server) if id in path.name]


# --- de-identified -------------------------------------------------------------------------------------

PROFILE = {"profile": "basic"}


def test_a_deidentified_export_has_new_names_and_no_trace_of_the_patient(
    partition: Partition, target: Target
) -> None:
    study = generate_uid()
    patient = {"PatientName": "Secret^Person", "PatientID": "SECRET-1", "PatientBirthDate": "19700102"}
    variants = {
        "explicit": make_file(study=study, frames=3, **patient),
        "implicit": make_file(study=study, transfer_syntax=ImplicitVRLittleEndian, **patient),
        "big endian": to_file(
            _big_endian(make_dataset(study=study, **patient)), transfer_syntax=ExplicitVRBigEndian
        ),
        "encapsulated": make_file(study=study, frames=2, encapsulated=True, **patient),
        "deflated": make_file(study=study, transfer_syntax=DeflatedExplicitVRLittleEndian, **patient),
        "no pixels": make_file(study=study, frames=0, **patient),
    }
    partition.keep(*variants.values())
    end = export(partition, identifiers(study), target.sas(), deidentification=PROFILE)
    assert (end["status"], end["results"]["exported"]) == ("succeeded", 6), end
    blobs = target.blobs()
    assert blobs.pop(f"{end['operationId']}/errors.log") == b""
    by_syntax: dict[tuple[str, bool], Any] = {}
    for name, data in blobs.items():
        for secret in (b"Secret", b"SECRET-1", b"19700102", study.encode()):
            assert secret not in data
        assert study not in name
        ds = dcmread(io.BytesIO(data))
        uids = f"{ds.StudyInstanceUID}/{ds.SeriesInstanceUID}/{ds.SOPInstanceUID}"
        assert name == f"{end['operationId']}/results/{uids}.dcm"
        assert ds.PatientIdentityRemoved == "YES"
        by_syntax[ds.file_meta.TransferSyntaxUID, "PixelData" in ds] = ds
    assert len({ds.StudyInstanceUID for ds in by_syntax.values()}) == 1
    assert len({ds.PatientID for ds in by_syntax.values()}) == 1
    for file in variants.values():
        before = dcmread(io.BytesIO(file))
        after = by_syntax[before.file_meta.TransferSyntaxUID, "PixelData" in before]
        if "PixelData" in before:
            assert after.PixelData == before.PixelData
            assert after["PixelData"].VR == before["PixelData"].VR
        assert after.Modality == before.Modality


def _big_endian(ds: Any) -> Any:
    ds["PixelData"].VR = "OW"
    return ds


def test_instances_that_must_not_be_deidentified_are_skipped_and_logged(
    partition: Partition, target: Target
) -> None:
    burned = make_file(BurnedInAnnotation="YES")
    document = make_file(
        frames=0, EncapsulatedDocument=b"%PDF-1.7", MIMETypeOfEncapsulatedDocument="application/pdf"
    )
    fine = make_file()
    partition.keep(burned, document, fine)
    end = export(partition, query("studies"), target.sas(), deidentification=PROFILE)
    assert (end["results"]["exported"], end["results"]["skipped"]) == (1, 2)
    logged = {e["identifier"]: e["error"] for e in lines(target.blobs()[f"{end['operationId']}/errors.log"])}
    assert "BurnedInAnnotation" in logged[identifier(burned)]
    assert "document" in logged[identifier(document)]
    allowed = export(
        partition,
        identifiers(identifier(burned)),
        target.sas(),
        deidentification=PROFILE | {"allowBurnedInAnnotation": True},
    )
    assert allowed["results"]["exported"] == 1


def test_options_are_those_of_the_request(partition: Partition, target: Target) -> None:
    file = make_file(PatientAge="042Y", StudyDate="20240229")
    partition.keep(file)
    options = ["retainUids", "retainPatientCharacteristics", "retainLongitudinalFullDates"]
    end = export(partition, query("studies"), target.sas(), deidentification=PROFILE | {"options": options})
    ds = dcmread(io.BytesIO(target.blobs()[f"{end['operationId']}/results/{identifier(file)}.dcm"]))
    assert (ds.PatientAge, ds.StudyDate, ds.PatientName) == ("042Y", "20240229", "")


# --- the table of metadata -----------------------------------------------------------------------------


def test_the_table_has_a_row_an_instance(partition: Partition, target: Target) -> None:
    files = [
        make_file(
            PatientName="Müller^Anna=山田", SpecificCharacterSet="ISO_IR 192", InstanceNumber=7, Rows=4
        ),
        make_file(ImageType=["ORIGINAL", "PRIMARY"], PatientWeight="70.5"),
    ]
    partition.keep(*files)
    end = export(partition, query("studies"), target.sas(), metadata={"type": "parquet"})
    blobs = target.blobs()
    (part,) = [name for name in blobs if name.endswith(".parquet")]
    assert part == f"{end['operationId']}/metadata/part-00000000.parquet"
    rows = {row["SOPInstanceUID"]: row for row in pq.read_table(io.BytesIO(blobs[part])).to_pylist()}
    first, second = (rows[identifier(file).split("/")[2]] for file in files)
    assert first["path"] == f"{end['operationId']}/results/{identifier(files[0])}.dcm"
    assert (first["PatientName"], first["InstanceNumber"], first["Rows"]) == ("Müller^Anna=山田", 7, 4)
    assert first["StudyDate"] == "20240229"
    assert (second["ImageType"], second["PatientWeight"]) == ("ORIGINAL\\PRIMARY", 70.5)
    assert second["InstanceNumber"] is None


def test_the_table_of_a_deidentified_export_is_deidentified(partition: Partition, target: Target) -> None:
    file = make_file(PatientName="Secret^Person", StudyDescription="Secret", PatientID="SECRET-1")
    partition.keep(file, make_file(BurnedInAnnotation="YES"))
    end = export(
        partition, query("studies"), target.sas(), metadata={"type": "parquet"}, deidentification=PROFILE
    )
    blobs = target.blobs()
    (part,) = [name for name in blobs if name.endswith(".parquet")]
    (row,) = pq.read_table(io.BytesIO(blobs[part])).to_pylist()
    assert row["path"] in blobs
    assert "ecret" not in str(row).lower().replace("secrets", "")
    assert row["StudyInstanceUID"].startswith("2.25.")
    assert (row["PatientName"], row["StudyDescription"], row["Modality"]) == (None, None, "CT")
    assert end["results"]["skipped"] == 1


def test_pseudonyms_need_the_key_of_the_operation() -> None:
    assert Pseudonyms(b"1").uid("1.2.3") != Pseudonyms(b"2").uid("1.2.3")


@pytest.mark.parametrize(
    "text",
    [
        "StudyDate=20240101-20240201",
        "PatientName=doe*&fuzzymatching=true",
        "PatientName=doe^j*",
        "SOPInstanceUID=1.2,1.3",
        "InstanceNumber=7",
        "AcquisitionDateTime=20240101-20240201&TimezoneOffsetFromUTC=%2B0100",
        "AcquisitionDateTime=-20240201",
        "ModalitiesInStudy=CT,MR",
    ],
)
def test_the_terms_of_a_query_survive_being_kept(text: str) -> None:
    query = search_query(Level.INSTANCE, Resource("p"), parse_qsl(text))
    assert query.terms
    source = Source("p", study="1.2", terms=query.terms)
    assert Source.parse(source.json()) == source


def test_the_statements_of_a_listing_are_t_sql() -> None:
    query = search_query(
        Level.INSTANCE,
        Resource("p", "1.2", "1.3"),
        parse_qsl("PatientName=doe*&InstanceNumber=7&StudyDate=20240101-&SOPInstanceUID=1.2,1.3"),
    )
    for resource, terms in ((Resource("p", "1.2", "1.3", "1.4"), ()), (query.resource, query.terms)):
        _assert_t_sql(index.statement(resource, terms, 5, 100))


def _assert_t_sql(statement: sa.Select[Any]) -> None:
    dialect = mssql.dialect()
    text = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    (parsed,) = sqlglot.parse(text.replace(":", "@"), dialect="tsql")
    assert parsed is not None
    assert parsed.find(sqlglot.exp.Command) is None
