"""Projection of metadata (``includefield``): exactly the attributes asked for, and the UIDs."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from shared.dicom.projection import IDENTITY
from shared.errors import InvalidRequest
from shared.web.query_params import projection
from tests.conftest import Server
from tests.dicom_files import make_dataset, make_file, to_file
from tests.partition import DICOM_JSON, Partition, problem

PATIENT = "00100010"


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


@pytest.fixture(scope="module")
def instance(archive: Partition) -> str:
    """An instance with a sequence of two items, a private element and numbers with digits to keep."""
    ds = make_dataset(frames=1, SliceThickness="1.500")
    items = []
    for step in ("S1", "S2"):
        item, code = Dataset(), Dataset()
        item.ScheduledProcedureStepID = step
        item.RequestedProcedureID = f'R"{step}\\{{'
        code.CodeValue, code.CodeMeaning = "1", "one"
        item.ScheduledProtocolCodeSequence = [code, Dataset()]
        items.append(item)
    ds.RequestAttributesSequence = items
    ds.private_block(0x7053, "Maker", create=True).add_new(0x02, "LO", "of value")
    (path,) = archive.keep(to_file(ds))
    return path


def get(archive: Partition, path: str, query: str) -> Any:
    response = archive.get(f"{path}/metadata{query}", DICOM_JSON)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "query",
    [
        "?includefield=PatientName&includefield=Rows",
        "?includefield=PatientName,00280010",
        "?includefield=00100010,%20Rows&accept=application/json",
    ],
)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_named_attributes_and_uids_are_left(
    archive: Partition, instance: str, query: str, levels: int
) -> None:
    path = "/".join(instance.split("/")[: 2 * levels])
    (document,) = get(archive, path, query)
    (whole,) = get(archive, path, "")
    kept = {*IDENTITY, PATIENT, "00280010"}
    assert document == {tag: value for tag, value in whole.items() if tag in kept}
    assert list(document) == sorted(kept)


def test_all_and_nothing_are_the_whole(archive: Partition, instance: str) -> None:
    whole = get(archive, instance, "")
    for query in ("?includefield=all", "?includefield=Rows,ALL", "?includefield=", "?includefield=,"):
        assert get(archive, instance, query) == whole


def test_a_path_leaves_parts_of_items(archive: Partition, instance: str) -> None:
    sequence = "RequestAttributesSequence"
    query = f"?includefield={sequence}.ScheduledProcedureStepID,{sequence}.00400008.CodeMeaning"
    (document,) = get(archive, instance, query)
    code = {"vr": "SQ", "Value": [{"00080104": {"vr": "LO", "Value": ["one"]}}, {}]}
    assert document["00400275"]["Value"] == [
        {"00400008": code, "00400009": {"vr": "SH", "Value": [step]}} for step in ("S1", "S2")
    ]
    (document,) = get(archive, instance, f"?includefield={sequence}.00400009,{sequence},PatientName.Rows")
    (whole,) = get(archive, instance, "")
    assert document["00400275"] == whole["00400275"]
    assert document[PATIENT] == whole[PATIENT]


def test_a_private_element_comes_with_its_creator_and_digits_stay(archive: Partition, instance: str) -> None:
    response = archive.get(f"{instance}/metadata?includefield=70531002,SliceThickness")
    (document,) = response.json()
    assert set(document) == {*IDENTITY, "00180050", "70530010", "70531002"}
    assert b"1.500" in response.content


def test_attributes_an_instance_lacks_are_left_out(archive: Partition, instance: str) -> None:
    (document,) = get(archive, instance, "?includefield=PatientComments,00091010")
    assert set(document) == set(IDENTITY)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?includefield=PatientNam", "PatientNam"),
        ("?includefield=Rows,0010001", "0010001"),
        ("?includefield=RequestAttributesSequence.Nothing", "Nothing"),
        ("?includefield=.", "'.'"),
        ("?includefields=Rows", "includefields"),
        ("?PatientName=x", "PatientName"),
    ],
)
def test_what_is_unknown_is_400_and_named(archive: Partition, instance: str, query: str, said: str) -> None:
    assert said in problem(archive.get(f"{instance}/metadata{query}"), 400)


def test_each_projection_has_a_tag_of_its_own(archive: Partition, instance: str) -> None:
    def tag(query: str) -> str:
        return archive.get(f"{instance}/metadata{query}").headers["ETag"]

    assert tag("?includefield=Rows,Columns") == tag("?includefield=00280011&includefield=Rows")
    queries = ("", "?includefield=Rows", "?includefield=Columns", "?includefield=00400275.00400009")
    tags = {query: tag(query) for query in queries}
    assert len(set(tags.values())) == len(queries)
    response = archive.get(f"{instance}/metadata?includefield=Rows", If_None_Match=tags["?includefield=Rows"])
    assert (response.status_code, response.content) == (304, b"")


def test_a_series_of_many_and_large_documents(archive: Partition) -> None:
    study, series = str(generate_uid()), str(generate_uid())
    large = Dataset()
    large.add_new(0x0040A160, "UT", '{"00100010":{"vr":"PN"}},' * 4000)
    sequence = [large] * 3
    paths = archive.keep(*(make_file(study, series, ReferencedImageSequence=sequence) for _ in range(6)))
    documents = get(archive, f"studies/{study}/series/{series}", "?includefield=PatientName,NumberOfFrames")
    assert {d["00080018"]["Value"][0] for d in documents} == {path.rpartition("/")[2] for path in paths}
    assert all(set(d) == {*IDENTITY, PATIENT, "00280008"} for d in documents)


def test_parameters_become_a_projection_or_none() -> None:
    assert projection([]) is None
    with pytest.raises(InvalidRequest):
        projection([("limit", "1")])
    chosen = projection([("includefield", "RequestAttributesSequence.Rows"), ("includefield", "Rows")])
    assert chosen is not None
    assert chosen.key == f"{','.join(IDENTITY)},00280010,00400275(00280010)"
