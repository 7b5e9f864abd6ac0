"""Partitions over HTTP: how one comes to be, the list of them, and names that are none."""

from __future__ import annotations

from datetime import datetime

import httpx
import pytest
from pydicom.uid import generate_uid

from tests.conftest import Server
from tests.dicom_files import make_file
from tests.partition import Partition, path_of, problem


def listed(server: Server) -> dict[str, tuple[int, str]]:
    """Key and time of every partition, by name."""
    response = httpx.get(f"{server.v2}/partitions")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    entries = response.json()
    assert all(set(e) == {"partitionKey", "partitionName", "createdDate"} for e in entries)
    assert [e["partitionKey"] for e in entries] == sorted(e["partitionKey"] for e in entries)
    return {e["partitionName"]: (e["partitionKey"], e["createdDate"]) for e in entries}


def test_the_first_store_makes_a_partition_and_no_other_request_does(server: Server) -> None:
    partition = Partition(server)
    file = make_file()
    assert partition.get("studies").status_code == 204
    assert partition.get(path_of(file)).status_code == 404
    assert partition.get(f"{path_of(file)}/metadata").status_code == 404
    assert partition.request("DELETE", path_of(file)).status_code == 404
    partition.keep(make_file())
    before = listed(server)
    partition.keep(file)
    assert listed(server) == before
    key, created = before[partition.name]
    assert key > 0
    assert datetime.fromisoformat(created).tzinfo is not None


def test_a_store_that_keeps_nothing_makes_no_partition(server: Server) -> None:
    partition = Partition(server)
    assert partition.store(b"no DICOM").status_code == 409
    Partition(server).keep(make_file())
    assert partition.name not in listed(server)


def test_a_partition_stays_when_its_last_instance_goes(server: Server) -> None:
    partition = Partition(server)
    (path,) = partition.keep(make_file())
    assert partition.request("DELETE", path).status_code == 204
    assert partition.name in listed(server)
    assert partition.get("studies").status_code == 204


def test_the_list_has_an_entity_tag(server: Server) -> None:
    Partition(server).keep(make_file())
    response = httpx.get(f"{server.v2}/partitions")
    again = httpx.get(f"{server.v2}/partitions", headers={"If-None-Match": response.headers["ETag"]})
    assert again.status_code == 304
    Partition(server).keep(make_file())
    other = httpx.get(f"{server.v2}/partitions", headers={"If-None-Match": response.headers["ETag"]})
    assert other.status_code == 200


NAMES = ("a", "A" * 64, "0", "-", "_", "x.y", "-._", "1.2.840.10008", "Microsoft.Default.", "x.")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_form_holds_instances(server: Server, name: str) -> None:
    partition = Partition(server)
    partition.name, partition.root = name, f"{server.v2}/partitions/{name}"
    study = generate_uid()
    (path,) = partition.keep(make_file(study))
    assert name in listed(server)
    (found,) = partition.get(f"studies?StudyInstanceUID={study}").json()
    assert found["00081190"]["Value"] == [f"{partition.root}/studies/{study}"]
    assert partition.get(path, "application/dicom").status_code == 200


@pytest.mark.parametrize("name", ["x" * 65, "a b", "a%2Fb", "ä", "a:b", "a~", "a'b", "a%00b", "%", "a;--"])
def test_any_other_name_is_refused_in_a_sentence(server: Server, name: str) -> None:
    root = f"{server.v2}/partitions/{name}"
    sentence = "A partition's name must be 1 to 64 letters, digits, '.', '-' or '_'."
    assert problem(httpx.get(f"{root}/studies"), 400) == sentence
    store = httpx.post(f"{root}/studies", content=make_file(), headers={"Content-Type": "application/dicom"})
    assert problem(store, 400) == sentence
    assert problem(httpx.delete(f"{root}/studies/1.2.3"), 400) == sentence


def test_names_that_differ_in_case_are_different_partitions(server: Server) -> None:
    upper, lower = Partition(server), Partition(server)
    upper.name = upper.name.upper()
    lower.name = upper.name.lower()
    upper.root, lower.root = (f"{server.v2}/partitions/{p.name}" for p in (upper, lower))
    file = make_file()
    upper.keep(file)
    assert lower.get("studies").status_code == 204
    lower.keep(file)
    assert lower.request("DELETE", path_of(file)).status_code == 204
    assert upper.get(path_of(file), "application/dicom").status_code == 200
