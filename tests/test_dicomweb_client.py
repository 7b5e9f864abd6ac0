"""A real client: dicomweb-client stores, searches, retrieves and deletes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless

from tests.conftest import Server
from tests.dicom_files import codestream, frame, make_file, real_files
from tests.partition import Partition

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

STUDY, CT, SEG = "1.2.826.1", "1.2.826.1.1", "1.2.826.1.2"
REAL = {path.name: path for path in real_files()}


@pytest.fixture(scope="module")
def files() -> list[Dataset]:
    """Two CT instances, one of them with three frames, and a compressed one in another series."""
    made = [
        make_file(STUDY, CT, "1.2.826.1.1.1", InstanceNumber=1),
        make_file(STUDY, CT, "1.2.826.1.1.2", frames=3, InstanceNumber=2),
        make_file(STUDY, SEG, "1.2.826.1.2.1", frames=4, encapsulated=True, Modality="SEG"),
    ]
    return [dcmread(io.BytesIO(file)) for file in made]


@pytest.fixture(scope="module")
def client(server: Server, files: list[Dataset]) -> DICOMwebClient:
    """A client of a partition into which it has stored the files."""
    root = Partition(server).root
    client = DICOMwebClient(url=root)
    answer = client.store_instances(datasets=files)
    stored = [str(item.ReferencedSOPInstanceUID) for item in answer.ReferencedSOPSequence]
    assert stored == [str(ds.SOPInstanceUID) for ds in files]
    assert "FailedSOPSequence" not in answer
    assert answer.RetrieveURL == f"{root}/studies/{STUDY}"
    return client


def test_store_into_a_study_and_of_a_duplicate(client: DICOMwebClient, files: list[Dataset]) -> None:
    with pytest.raises(requests.HTTPError) as caught:
        client.store_instances(datasets=files[:1], study_instance_uid=STUDY)
    assert caught.value.response.status_code == 409
    fresh = dcmread(io.BytesIO(make_file("1.2.826.2")))
    answer = client.store_instances([fresh], study_instance_uid="1.2.826.2")
    assert len(answer.ReferencedSOPSequence) == 1
    client.delete_study("1.2.826.2")


def test_search_at_all_levels(client: DICOMwebClient) -> None:
    (study,) = map(Dataset.from_json, client.search_for_studies(search_filters={"PatientName": "Doe*"}))
    assert study.StudyInstanceUID == STUDY
    assert study.NumberOfStudyRelatedInstances == 3
    assert list(study.ModalitiesInStudy) == ["CT", "SEG"]
    assert client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "jan"})
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []

    series = [Dataset.from_json(item) for item in client.search_for_series(STUDY)]
    assert {str(item.SeriesInstanceUID) for item in series} == {CT, SEG}
    (seg,) = client.search_for_series(search_filters={"Modality": "SEG"}, fields=["Modality", "00081115"])
    assert Dataset.from_json(seg).SeriesInstanceUID == SEG

    assert len(client.search_for_instances()) == 3
    assert len(client.search_for_instances(STUDY)) == 3
    assert len(client.search_for_instances(STUDY, CT)) == 2
    (second,) = client.search_for_instances(STUDY, CT, search_filters={"InstanceNumber": 2})
    assert Dataset.from_json(second).SOPInstanceUID == "1.2.826.1.1.2"
    pages = [client.search_for_instances(limit=2, offset=offset) for offset in (0, 2, 3)]
    assert [len(page) for page in pages] == [2, 1, 0]
    assert len(client.search_for_instances(limit=1, get_remaining=True)) == 3


def test_metadata_at_three_levels(client: DICOMwebClient, files: list[Dataset]) -> None:
    for documents, count in (
        (client.retrieve_study_metadata(STUDY), 3),
        (client.retrieve_series_metadata(STUDY, CT), 2),
    ):
        assert len(documents) == count
    for ds in files:
        document = client.retrieve_instance_metadata(STUDY, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        got = Dataset.from_json(document)
        del got.PixelData
        assert {e.tag: e.value for e in got} == {e.tag: e.value for e in ds if e.keyword != "PixelData"}


def test_instances_at_three_levels(client: DICOMwebClient, files: list[Dataset]) -> None:
    uncompressed = {str(ds.SOPInstanceUID): ds for ds in files[:2]}
    stored = {str(ds.SOPInstanceUID): ds for ds in files}
    as_stored = (("application/dicom", "*"),)
    assert {
        str(ds.SOPInstanceUID): ds for ds in client.retrieve_study(STUDY, media_types=as_stored)
    } == stored
    assert {str(ds.SOPInstanceUID): ds for ds in client.retrieve_series(STUDY, CT)} == uncompressed
    assert len(list(client.iter_study(STUDY, media_types=as_stored))) == 3
    for ds in files:
        got = client.retrieve_instance(STUDY, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        assert got == ds
        assert got.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
    one = files[0]
    wanted = (("application/dicom", "1.2.840.10008.1.2.1"),)
    got = client.retrieve_instance(STUDY, CT, one.SOPInstanceUID, media_types=wanted)
    assert np.array_equal(got.pixel_array, one.pixel_array)


def test_frames(client: DICOMwebClient, files: list[Dataset]) -> None:
    native, compressed = files[1].SOPInstanceUID, files[2].SOPInstanceUID
    assert client.retrieve_instance_frames(STUDY, CT, native, [3, 1]) == [frame(3), frame(1)]
    assert list(client.iter_instance_frames(STUDY, CT, native, [2])) == [frame(2)]
    for media_types in (
        (("application/octet-stream", "*"),),
        (("image/jp2", JPEG2000Lossless),),
        (("image/jp2", JPEG2000Lossless), ("image/jls", "1.2.840.10008.1.2.4.80")),
    ):
        got = client.retrieve_instance_frames(STUDY, SEG, compressed, [4, 2], media_types=media_types)
        assert got == [codestream(4), codestream(2)]


def test_bulk_data(client: DICOMwebClient, files: list[Dataset]) -> None:
    document = client.retrieve_instance_metadata(STUDY, CT, files[1].SOPInstanceUID)
    url = document["7FE00010"]["BulkDataURI"]
    assert client.retrieve_bulkdata(url) == [files[1].PixelData]
    assert list(client.iter_bulkdata(url, media_types=("application/octet-stream",))) == [files[1].PixelData]


@pytest.mark.parametrize("name", ["CT_small.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "rtplan.dcm"])
def test_real_files_come_back(client: DICOMwebClient, name: str) -> None:
    ds = dcmread(REAL[name])
    client.store_instances([ds])
    uids = ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID
    assert client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),)) == ds
    if "PixelData" in ds:
        count = int(ds.get("NumberOfFrames") or 1)
        got = client.retrieve_instance_frames(
            *uids, list(range(1, count + 1)), media_types=(("application/octet-stream", "*"),)
        )
        value = ds.PixelData
        compressed = ds.file_meta.TransferSyntaxUID.is_compressed
        assert got == (list(generate_frames(value, number_of_frames=count)) if compressed else [value])
    client.delete_instance(*uids)
    assert client.search_for_instances(search_filters={"SOPInstanceUID": ds.SOPInstanceUID}) == []


def test_delete_at_three_levels(server: Server, files: list[Dataset]) -> None:
    client = DICOMwebClient(url=Partition(server).root)
    client.store_instances(files)
    client.delete_instance(STUDY, CT, files[0].SOPInstanceUID)
    assert len(client.search_for_instances()) == 2
    client.delete_series(STUDY, CT)
    assert len(client.search_for_series()) == 1
    client.delete_study(STUDY)
    assert client.search_for_studies() == []
    with pytest.raises(requests.HTTPError) as caught:
        client.delete_study(STUDY)
    assert caught.value.response.status_code == 404
