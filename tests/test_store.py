"""Store over HTTP (PS3.18 §10.5): every status, failure reason and warning, and what is stored then."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from tests.conftest import Server, StartServer
from tests.dicom_files import make_dataset, make_file, multipart, to_file
from tests.partition import DICOM_JSON, Partition, path_of, problem, values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

SINGLE = {"Content_Type": "application/dicom"}


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def referenced(response: httpx.Response) -> list[dict[str, Any]]:
    """The items of ReferencedSOPSequence."""
    assert response.headers["Content-Type"] == DICOM_JSON
    return values(response.json().get("00081199", {}))


def failed(response: httpx.Response) -> list[tuple[int, str]]:
    """Failure reason and comment of each item of FailedSOPSequence."""
    assert response.headers["Content-Type"] == DICOM_JSON
    return [
        (item["00081197"]["Value"][0], item["00741048"]["Value"][0]["00000902"]["Value"][0])
        for item in values(response.json().get("00081198", {}))
    ]


# --- what is stored -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("in_study", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_a_file_is_stored_by_every_form_of_the_request(
    archive: Partition, method: str, in_study: bool, single: bool
) -> None:
    study, series, instance = (str(generate_uid()) for _ in range(3))
    file = make_file(study, series, instance)
    path = f"studies/{study}" if in_study else "studies"
    if single:
        response = archive.request(method, path, file, **SINGLE)
    else:
        response = archive.store(file, path=path, method=method)
    assert response.status_code == 200
    root = f"{archive.root}/studies/{study}"
    assert response.json() == {
        "00081190": {"vr": "UR", "Value": [root]},
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CTImageStorage]},
                    "00081155": {"vr": "UI", "Value": [instance]},
                    "00081190": {"vr": "UR", "Value": [f"{root}/series/{series}/instances/{instance}"]},
                }
            ],
        },
    }
    stored = archive.get(path_of(file), "application/dicom; transfer-syntax=*")
    assert stored.content == file


def test_the_preamble_is_replaced_by_zeros_and_nothing_else(archive: Partition) -> None:
    file = make_file()
    (path,) = archive.keep(b"MZ".ljust(128, b"\x90") + file[128:])
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == bytes(128) + file[128:]


def test_instances_of_several_studies_have_no_common_retrieve_url(archive: Partition) -> None:
    response = archive.store(make_file(), make_file())
    assert response.status_code == 200
    assert len(referenced(response)) == 2
    assert "00081190" not in response.json()


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Forwarded": "for=127.0.0.1;proto=https;host=pacs.example.org"}, "https://pacs.example.org"),
        (
            {"Forwarded": 'host="pacs.example.org:8443";proto=https, host=inner'},
            "https://pacs.example.org:8443",
        ),
        (
            {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "a.example", "X_Forwarded_Prefix": "/dicom/"},
            "https://a.example/dicom",
        ),
        ({"X_Forwarded_Host": 'evil"host'}, None),
        ({"X_Forwarded_Proto": "javascript"}, None),
        ({"Host": "pacs.example.org"}, "http://pacs.example.org"),
    ],
)
def test_urls_are_those_the_client_sees(
    archive: Partition, server: Server, headers: dict[str, str], base: str | None
) -> None:
    response = archive.request("POST", "studies", make_file(), **SINGLE, **headers)
    url = response.json()["00081190"]["Value"][0]
    assert url.startswith(f"{base or server.url}/v2/partitions/{archive.name}/studies/")


def test_uids_that_storage_would_mangle_are_stored_and_found(archive: Partition) -> None:
    for study, series, instance in (
        ("1.", "1-", "abc.DEF-9"),
        ("1..2", "...x", "x..."),
        ("-", "9" * 64, "0"),
    ):
        file = make_file(study, series, instance)
        (path,) = archive.keep(file)
        assert archive.get(path, "application/dicom; transfer-syntax=*").content == file


# --- outcomes -----------------------------------------------------------------------------------------


def test_store_of_a_duplicate_reports_45070_and_loses_nothing(archive: Partition) -> None:
    file = make_file()
    (path,) = archive.keep(file)
    response = archive.store(file)
    assert response.status_code == 409
    assert failed(response) == [
        (45070, "DICOM100: An instance with the same identifiers has been stored already.")
    ]
    item = response.json()["00081198"]["Value"][0]
    assert item["00081150"]["Value"] == [CTImageStorage]
    assert f"/instances/{item['00081155']['Value'][0]}" in path
    assert "00081199" not in response.json()
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == file


def test_store_of_two_files_with_the_same_identifiers_keeps_the_first(archive: Partition) -> None:
    study, series, instance = (str(generate_uid()) for _ in range(3))
    first, second = (make_file(study, series, instance, PatientName=name) for name in ("First", "Second"))
    response = archive.store(first, second)
    assert response.status_code == 202
    assert len(referenced(response)) == 1
    assert [reason for reason, _ in failed(response)] == [45070]
    assert archive.get(path_of(first), "application/dicom; transfer-syntax=*").content == first


def test_put_replaces_an_instance(archive: Partition) -> None:
    study, series, instance = (str(generate_uid()) for _ in range(3))
    first, second = (make_file(study, series, instance, PatientName=name) for name in ("First", "Second"))
    (path,) = archive.keep(first)
    assert archive.store(second, method="PUT").status_code == 200
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == second
    (metadata,) = archive.get(f"{path}/metadata").json()
    assert metadata["00100010"]["Value"] == [{"Alphabetic": "Second"}]
    (found,) = archive.get(f"instances?SOPInstanceUID={instance}").json()
    assert found["00080018"]["Value"] == [instance]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_instance_of_another_study_reports_43265(archive: Partition, method: str) -> None:
    mine, other = make_file(study="1.2.3"), make_file(study="1.2.4")
    response = archive.store(mine, other, path="studies/1.2.3", method=method)
    assert response.status_code == 202
    assert len(referenced(response)) == 1
    assert failed(response) == [
        (43265, "DICOM100: The instance belongs to another study than the one in the path.")
    ]
    assert archive.get(path_of(other)).status_code == 404


def test_something_that_is_no_dicom_reports_43264(archive: Partition) -> None:
    response = archive.store(b"This is text.")
    assert response.status_code == 409
    assert failed(response) == [
        (
            43264,
            "DICOM100: The file is no DICOM Part 10 file: it is shorter than preamble and prefix.",
        )
    ]
    assert response.json()["00081198"]["Value"][0].keys() == {"00081197", "00741048"}


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID"]
)
def test_a_missing_identifier_reports_43264_and_names_it(archive: Partition, keyword: str) -> None:
    response = archive.store(to_file(_without(keyword)))
    assert response.status_code == 409
    assert failed(response) == [(43264, f"DICOM100: {keyword} is missing.")]


def _without(keyword: str) -> Any:
    ds = make_dataset()
    del ds[keyword]
    return ds


def test_metadata_beyond_the_limit_reports_272(archive: Partition) -> None:
    text = b"UT\0\0" + (250_000).to_bytes(4, "little") + b"\1" * 250_000  # its JSON takes six times that
    texts = (b"\x31\0" + (0x1000 + n).to_bytes(2, "little") + text for n in range(100))
    file = make_file(frames=0) + b"".join(texts)
    response = archive.request("POST", "studies", file, **SINGLE)
    assert response.status_code == 409
    assert failed(response) == [(272, "DICOM100: The metadata is larger than the 96 MiB the server takes.")]


def test_an_attribute_that_breaks_its_vr_is_stored_with_a_warning_that_names_it(archive: Partition) -> None:
    ds = make_dataset(frames=0)
    ds.StudyDate = None
    ds.add_new(0x00080020, "LO", "tomorrow")  # the letters of another VR ...
    file = to_file(ds).replace(b"\x08\x00\x20\x00LO", b"\x08\x00\x20\x00DA")  # ... in a date
    response = archive.store(file)
    assert response.status_code == 202
    (item,) = referenced(response)
    assert item["00081196"] == {"vr": "US", "Value": [1]}
    assert item["00741048"]["Value"] == [
        {"00000902": {"vr": "LO", "Value": ["DICOM100: (0008,0020) is not a date YYYYMMDD."]}}
    ]
    assert failed(response) == []
    path = path_of(file)
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == file
    assert archive.get(f"{path}/metadata").json()[0]["00080020"]["Value"] == ["tomorrow"]
    assert archive.get(f"instances?SOPInstanceUID={ds.SOPInstanceUID}").status_code == 200


@pytest.mark.parametrize(
    "meta", [{"MediaStorageSOPClassUID": MRImageStorage}, {"MediaStorageSOPInstanceUID": "1.2.3.4"}]
)
def test_file_meta_information_that_differs_warns_with_45063(
    archive: Partition, meta: dict[str, str]
) -> None:
    ds = make_dataset()
    response = archive.store(to_file(ds, meta=meta))
    assert response.status_code == 202
    (item,) = referenced(response)
    assert item["00081196"]["Value"] == [45063]
    assert item["00081150"]["Value"] == [CTImageStorage]
    assert item["00081155"]["Value"] == [ds.SOPInstanceUID]


def test_a_mixed_batch_says_what_became_of_each_file(archive: Partition) -> None:
    known, fresh, other = make_file(), make_file(), make_file()
    archive.keep(known)
    response = archive.store(known, fresh, b"nonsense" * 100, other[:-9], other)
    assert response.status_code == 202
    assert [item["00081155"]["Value"][0] for item in referenced(response)] == [
        path_of(file).rpartition("/")[2] for file in (fresh, other)
    ]
    assert [reason for reason, _ in failed(response)] == [45070, 43264, 43264]


def test_a_large_file_that_is_refused_at_its_end_leaves_nothing_visible(archive: Partition) -> None:
    file = make_file(frames=0, StudyInstanceUID="1.2.77")
    large = file + b"\xe0\x7f\x10\x00OW\0\0" + (2**25).to_bytes(4, "little") + bytes(2**24)
    response = archive.store(large)
    assert response.status_code == 409
    assert failed(response)[0][0] == 43264
    assert archive.get("studies/1.2.77").status_code == 404
    assert archive.get("studies?StudyInstanceUID=1.2.77").status_code == 204


# --- the body -----------------------------------------------------------------------------------------


def _multipart(archive: Partition, body: bytes, content_type: str) -> httpx.Response:
    return archive.request("POST", "studies", body, Content_Type=content_type)


RELATED = 'multipart/related; type="application/dicom"; boundary='


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (RELATED + "simple", "simple"),
        (RELATED + '"quoted (with) odd, characters: ?/=\'+_-."', "quoted (with) odd, characters: ?/='+_-."),
        ("multipart/related; boundary=simple; type=application/dicom", "simple"),
        ("multipart/related; boundary=simple", "simple"),
        ("MultiPart/Related; BOUNDARY=Simple; TYPE=Application/DICOM", "Simple"),
        (RELATED + "b" * 70, "b" * 70),
    ],
)
def test_boundaries_and_types_in_every_spelling(archive: Partition, content_type: str, boundary: str) -> None:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + make_file() + f"\r\n--{boundary}--".encode()
    assert _multipart(archive, body, content_type).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Content-Type:application/dicom\r\n",
        "content-type: Application/DICOM; transfer-syntax=1.2.840.10008.1.2.1\r\n",
        "Content-Type: application/octet-stream\r\n",
        'MIME-Version: 1.0\r\nContent-ID: <1@x>\r\nContent-Type: application/dicom; x="a;b"\r\n',
        "Content-Length: 5\r\nContent-Type: application/dicom\r\n",
        "".join(f"X-{i}: {i}\r\n" for i in range(40)),
    ],
)
def test_parts_with_odd_headers_are_taken(archive: Partition, headers: str) -> None:
    body = b"--b\r\n" + headers.encode() + b"\r\n" + make_file() + b"\r\n--b--\r\n"
    assert _multipart(archive, body, RELATED + "b").status_code == 200


def test_text_around_the_parts_means_nothing(archive: Partition) -> None:
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + make_file() + b"\r\n"
    body = b"This is a preamble.\r\n" + part + b"--b--\r\nThis is an epilogue.\r\n--b\r\nno part"
    assert _multipart(archive, body, RELATED + "b").status_code == 200


def test_a_boundary_within_a_value_is_no_boundary(archive: Partition) -> None:
    text = "\r\n--bounda\r\n--\r--boundary\n--boundary\r\n--boundar"
    file = make_file(TextValue=text)
    body = b"--boundary\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n--boundary--\r\n"
    assert _multipart(archive, body, RELATED + "boundary").status_code == 200
    assert archive.get(path_of(file), "application/dicom; transfer-syntax=*").content == file


@pytest.mark.parametrize("body", [b"", b"--b--", b"--b--\r\n", b"\r\n--b--\r\n"])
def test_a_request_without_files_is_204(archive: Partition, body: bytes) -> None:
    response = _multipart(archive, body, RELATED + "b")
    assert (response.status_code, response.content) == (204, b"")
    assert archive.request("POST", "studies", b"", **SINGLE).status_code == 204


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"no boundary at all", RELATED + "b"),
        (b"--b\r\n\r\nno end", RELATED + "b"),
        (b"--b\r\n", RELATED + "b"),
        (b"--b", RELATED + "b"),
        (b"--b\nContent-Type: application/dicom\n\nx\n--b--\n", RELATED + "b"),
        (b"--b\r\nNot a header\r\n\r\nx\r\n--b--", RELATED + "b"),
        (b"--b\r\nX: " + b"y" * 10_000 + b"\r\n\r\nx\r\n--b--", RELATED + "b"),
        (b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n--b--", RELATED + "b"),
        (b"x" * 100_000, RELATED + "b"),
        (b"--b--", "multipart/related; type=application/dicom"),
        (b"--b--", RELATED + '""'),
        (b"--b--", RELATED + "b" * 1000),
    ],
)
def test_a_malformed_multipart_body_is_400(archive: Partition, body: bytes, content_type: str) -> None:
    assert problem(_multipart(archive, body, content_type), 400)


def test_a_body_that_ends_early_stores_nothing_of_it(archive: Partition) -> None:
    file = make_file()
    body, headers = multipart([file, make_file()])
    response = archive.request("POST", "studies", body[:-60], Content_Type=headers["Content-Type"])
    assert "closing boundary" in problem(response, 400)
    assert archive.get(path_of(file)).status_code == 404


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/dicom+json",
        'multipart/related; type="application/dicom+json"; boundary=b',
        "multipart/form-data; boundary=b",
        "multipart/mixed; boundary=b",
    ],
)
def test_another_media_type_is_415(archive: Partition, content_type: str) -> None:
    response = archive.request("POST", "studies", b"--b--\r\n", Content_Type=content_type)
    assert problem(response, 415)


def test_a_part_of_another_media_type_is_415_and_stores_nothing(archive: Partition) -> None:
    file = make_file()
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file
    body += b"\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b--"
    assert problem(_multipart(archive, body, RELATED + "b"), 415)
    assert archive.get(path_of(file)).status_code == 404


@pytest.mark.parametrize("accept", ["application/dicom+xml", "text/html", "multipart/related"])
def test_a_response_type_the_server_does_not_have_is_406(archive: Partition, accept: str) -> None:
    response = archive.request("POST", "studies", make_file(), Accept=accept, **SINGLE)
    assert problem(response, 406)


@pytest.mark.parametrize("accept", ["application/dicom+json", "application/json", "*/*", "application/*"])
def test_a_response_type_the_server_has_is_taken(archive: Partition, accept: str) -> None:
    response = archive.request("POST", "studies", make_file(), Accept=accept, **SINGLE)
    assert response.status_code == 200


@pytest.mark.parametrize("study", ["1_2", "x" * 65, "a%20b", "%00", "1%2F2"])
def test_a_malformed_study_in_the_path_is_400(archive: Partition, study: str) -> None:
    assert "StudyInstanceUID" in problem(archive.store(make_file(), path=f"studies/{study}"), 400)


def test_more_parts_than_the_server_takes_is_413(archive: Partition) -> None:
    body = b"--b\r\n\r\nx\r\n" * 10_001 + b"--b--"
    assert "10000 parts" in problem(_multipart(archive, body, RELATED + "b"), 413)


def test_a_body_above_the_limit_is_413(start_server: StartServer) -> None:
    server = start_server(workers=1, FUNCTIONS_REQUEST_BODY_SIZE_LIMIT="20000")
    small = Partition(server)
    assert small.store(make_file()).status_code == 200
    assert "20000 bytes" in problem(small.store(make_file(), make_file(frames=500)), 413)
    chunks = iter([make_file(frames=500)])  # without Content-Length
    assert "20000 bytes" in problem(small.request("POST", "studies", chunks, **SINGLE), 413)
    assert small.store(make_file()).status_code == 200
    server.close()
