"""Delete over HTTP: three levels, and that nothing of it can be seen any more."""

from __future__ import annotations

import pytest
from pydicom.uid import generate_uid

from tests.conftest import Server
from tests.dicom_files import make_file
from tests.partition import Partition, path_of, problem


@pytest.fixture
def archive(server: Server) -> Partition:
    return Partition(server)


def study_of(archive: Partition) -> list[str]:
    """A study of three series with two instances each: the paths of the instances."""
    study = str(generate_uid())
    return archive.keep(
        *(make_file(study, series) for series in (str(generate_uid()) for _ in range(3)) for _ in range(2))
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_delete_is_seen_at_once_and_spares_the_rest(archive: Partition, levels: int) -> None:
    paths = study_of(archive)
    target = "/".join(paths[0].split("/")[: 2 * levels])
    response = archive.request("DELETE", target)
    assert (response.status_code, response.content) == (204, b"")
    gone = [path for path in paths if path.startswith(target)]
    left = [path for path in paths if path not in gone]
    for path in gone:
        for below in ("", "/metadata", "/frames/1", "/bulkdata/7FE00010"):
            assert "does not exist" in problem(archive.get(path + below), 404)
    for path in left:
        assert archive.get(path, "application/dicom").status_code == 200
    found = archive.get("instances")
    uids = [item["00080018"]["Value"][0] for item in found.json()] if found.status_code == 200 else []
    assert sorted(uids) == sorted(path.rpartition("/")[2] for path in left)
    studies = archive.get("studies")
    if left:
        assert studies.json()[0]["00201208"]["Value"] == [len(left)]
        assert studies.json()[0]["00201206"]["Value"] == [len({path.split("/")[3] for path in left})]
    else:
        assert studies.status_code == 204


@pytest.mark.parametrize(("levels", "kind"), [(1, "study"), (2, "series"), (3, "instance")])
def test_delete_of_nothing_is_404_also_when_repeated(archive: Partition, levels: int, kind: str) -> None:
    target = "/".join(study_of(archive)[0].split("/")[: 2 * levels])
    assert archive.request("DELETE", target).status_code == 204
    for _ in range(2):
        assert problem(archive.request("DELETE", target), 404) == f"The {kind} does not exist."


def test_delete_of_the_last_instance_removes_series_and_study(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    assert archive.request("DELETE", path).status_code == 204
    for level in ("studies", "series", "instances"):
        assert archive.get(level).status_code == 204


def test_a_deleted_instance_can_be_stored_again(archive: Partition, server: Server) -> None:
    file = make_file()
    for _ in range(2):
        (path,) = archive.keep(file)
        assert archive.get(path, "application/dicom; transfer-syntax=*").content == file
        assert archive.request("DELETE", path).status_code == 204
        server.run_function("clean_deleted_instances")
        assert archive.get(path).status_code == 404
    (path,) = archive.keep(file)
    server.run_function("clean_deleted_instances")
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == file


def test_the_same_instance_in_another_partition_stays(archive: Partition, server: Server) -> None:
    file, other = make_file(), Partition(server)
    archive.keep(file)
    other.keep(file)
    assert archive.request("DELETE", f"studies/{path_of(file).split('/')[1]}").status_code == 204
    assert other.get(path_of(file), "application/dicom").status_code == 200


@pytest.mark.parametrize("path", ["studies/1_2", "studies/1/series/%00", "studies/1/series/2/instances/a%20"])
def test_a_malformed_identifier_is_400(archive: Partition, path: str) -> None:
    assert problem(archive.request("DELETE", path), 400)


def test_all_studies_at_once_cannot_be_deleted(archive: Partition) -> None:
    archive.keep(make_file())
    assert archive.request("DELETE", "studies").status_code in (404, 405)
    assert len(archive.get("studies").json()) == 1
