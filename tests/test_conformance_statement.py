"""The conformance statement says what the code does.

Its tables are generated. Every 2xx to 4xx status it claims is provoked over HTTP, and so are claims in prose
that a change would break most easily.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from devhost import docs
from functions import http, query_tags, store
from shared.dicom import failure_reasons, part10, transcode
from shared.web.transactions import TRANSACTIONS
from tests import workitems
from tests.conftest import Server, StartServer
from tests.dicom_files import codestream, frame, make_dataset, make_file, multipart, read_multipart, to_file
from tests.images import GREY_12, made

TEXT = docs.STATEMENT.read_text()
DICOM = {"Content-Type": "application/dicom"}
NO_SUCH_TYPE = {"Accept": "text/html"}


# --- the document ------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_code() -> None:
    assert docs.render(TEXT) == TEXT, "run: python -m devhost.docs"


def test_every_table_is_there() -> None:
    assert sorted(re.findall(r"<!-- begin ([\w-]+) -->", TEXT)) == sorted(docs.TABLES)


def test_statuses_of_errors_are_those_the_errors_have() -> None:
    known = {status for status, _ in http._STATUS.values()} | {500}
    claimed = {status for t in TRANSACTIONS.values() for status in t.statuses if status >= 400}
    assert claimed == known


def test_relative_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (docs.STATEMENT.parent / link).exists(), link


# --- statuses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """An instance on the server under test, and the client that stored it."""

    client: httpx.Client
    study: str
    series: str
    instance: str

    @property
    def path(self) -> str:
        """The instance."""
        return f"/v2/studies/{self.study}/series/{self.series}/instances/{self.instance}"

    def get(self, path: str, **headers: str) -> httpx.Response:
        """GET ``path`` below the instance."""
        return self.client.get(self.path + path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def wado(self, **parameters: str) -> httpx.Response:
        """GET by WADO-URI; ``range`` and ``If-None-Match`` are headers."""
        headers = {
            k.replace("_", "-"): parameters.pop(k) for k in ("range", "If-None-Match") if k in parameters
        }
        uids = {"studyUID": self.study, "seriesUID": self.series, "objectUID": self.instance}
        query = {"requestType": "WADO"} | uids | parameters
        return self.client.get("/v2/wado", params=query, headers=headers)

    def post(self, body: bytes, path: str = "/v2/studies", **headers: str) -> httpx.Response:
        """POST a body of application/dicom."""
        return self.client.post(path, content=body, headers=DICOM | headers)


def put(client: httpx.Client, **options: Any) -> Stored:
    """An instance of :func:`make_file`, stored."""
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    response = client.post(
        "/v2/studies", content=make_file(study, series, instance, **options), headers=DICOM
    )
    assert response.status_code in (200, 202), response.text
    return Stored(client, study, series, instance)


@pytest.fixture
def stored(client: httpx.Client) -> Stored:
    """A native CT instance of two frames."""
    return put(client, frames=2)


def same_again(s: Stored) -> bytes:
    return make_file(s.study, s.series, s.instance)


def several(s: Stored) -> httpx.Response:
    """One that is stored already, and one that is new."""
    body, headers = multipart([same_again(s), make_file()])
    return s.client.post("/v2/studies", content=body, headers=headers)


def nothing(s: Stored) -> httpx.Response:
    return s.client.post("/v2/studies", content=b"", headers=DICOM)


def bulk_update(s: Stored, studies: list[str]) -> httpx.Response:
    changes = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Roe^Richard"}]}}
    return s.client.post(
        "/v2/studies/$bulkUpdate", json={"studyInstanceUids": studies, "changeDataset": changes}
    )


def too_many(s: Stored) -> httpx.Response:
    body, headers = multipart([b"x"] * (store.MOST_PARTS + 1))
    return s.client.post("/v2/studies", content=body, headers=headers)


def cached(s: Stored) -> httpx.Response:
    etag = s.get("/metadata").headers["etag"]
    return s.get("/metadata", if_none_match=etag)


def start_import(s: Stored) -> httpx.Response:
    """Of a folder of the inbox that is not there."""
    return s.client.post(
        "/v2/import", json={"source": {"type": "inbox", "settings": {"prefix": "no such folder/"}}}
    )


def report_of(s: Stored) -> str:
    return f"/v2/import/{start_import(s).json()['id']}/report"


def subscription(name: str) -> str:
    """To all workitems of a partition that has none."""
    return f"/v2/partitions/nobodys-work/workitems/1.2.840.10008.5.1.4.34.5/subscribers/{name}"


def subscribed(s: Stored, name: str) -> httpx.Client:
    """A client, after ``name`` has subscribed."""
    assert s.client.post(subscription(name)).status_code == 201
    return s.client


HELD = {"If-None-Match": "*"}
"""Of a client that holds whatever there is."""

PROVOKED: dict[tuple[str, int], Callable[[Stored], httpx.Response]] = {
    ("store", 200): lambda s: s.post(make_file()),
    ("store", 202): several,
    ("store", 204): nothing,
    ("store", 400): lambda s: s.post(make_file(), "/v2/studies/not_a_uid"),
    ("store", 406): lambda s: s.post(make_file(), **NO_SUCH_TYPE),
    ("store", 409): lambda s: s.post(same_again(s)),
    ("store", 413): too_many,
    ("store", 415): lambda s: s.client.post(
        "/v2/studies", content=b"x", headers={"Content-Type": "text/css"}
    ),
    ("retrieve", 200): lambda s: s.get(""),
    ("retrieve", 206): lambda s: s.get("", accept="application/dicom", range="bytes=0-99"),
    ("retrieve", 304): lambda s: s.get("", accept="application/dicom", **HELD),
    ("retrieve", 416): lambda s: s.get("", accept="application/dicom", range="bytes=9999999-"),
    ("retrieve", 400): lambda s: s.client.get("/v2/studies/not_a_uid"),
    ("retrieve", 404): lambda s: s.client.get("/v2/studies/1.2.3"),
    ("retrieve", 406): lambda s: s.get("", **NO_SUCH_TYPE),
    ("metadata", 200): lambda s: s.get("/metadata"),
    ("metadata", 304): cached,
    ("metadata", 400): lambda s: s.client.get("/v2/studies/not_a_uid/metadata"),
    ("metadata", 404): lambda s: s.client.get("/v2/studies/1.2.3/metadata"),
    ("metadata", 406): lambda s: s.get("/metadata", **NO_SUCH_TYPE),
    ("frames", 200): lambda s: s.get("/frames/2,1"),
    ("frames", 206): lambda s: s.get("/frames/1", range="bytes=0-9"),
    ("frames", 304): lambda s: s.get("/frames/1", **HELD),
    ("frames", 416): lambda s: s.get("/frames/1", range="bytes=9999999-"),
    ("frames", 400): lambda s: s.get("/frames/0"),
    ("frames", 404): lambda s: s.get("/frames/3"),
    ("frames", 406): lambda s: s.get("/frames/1", accept="image/png"),
    ("wado_uri", 200): lambda s: s.wado(),
    ("wado_uri", 206): lambda s: s.wado(contentType="application/dicom", range="bytes=0-9"),
    ("wado_uri", 304): lambda s: s.wado(**HELD),
    ("wado_uri", 400): lambda s: s.wado(frameNumber="0"),
    ("wado_uri", 404): lambda s: s.wado(frameNumber="99"),
    ("wado_uri", 406): lambda s: s.wado(contentType="video/mp4"),
    ("wado_uri", 416): lambda s: s.wado(contentType="application/dicom", range="bytes=9999999-"),
    ("bulkdata", 200): lambda s: s.get("/bulkdata/7FE00010"),
    ("bulkdata", 206): lambda s: s.get("/bulkdata/7FE00010", range="bytes=0-9"),
    ("bulkdata", 304): lambda s: s.get("/bulkdata/7FE00010", **HELD),
    ("bulkdata", 416): lambda s: s.get("/bulkdata/7FE00010", range="bytes=9999999-"),
    ("bulkdata", 400): lambda s: s.client.get(
        f"/v2/studies/{s.study}/series/{s.series}/instances/not_a_uid/bulkdata/7FE00010"
    ),
    ("bulkdata", 404): lambda s: s.get("/bulkdata/00100010"),
    ("bulkdata", 406): lambda s: s.get("/bulkdata/7FE00010", accept="image/jpeg"),
    ("search", 200): lambda s: s.client.get("/v2/studies"),
    ("search", 304): lambda s: s.client.get("/v2/studies", headers=HELD),
    ("search", 204): lambda s: s.client.get("/v2/studies?StudyInstanceUID=1.2.3"),
    ("search", 400): lambda s: s.client.get("/v2/studies?limit=0"),
    ("search", 406): lambda s: s.client.get("/v2/studies", headers=NO_SUCH_TYPE),
    ("delete", 204): lambda s: s.client.delete(s.path),
    ("delete", 400): lambda s: s.client.delete("/v2/studies/not_a_uid"),
    ("delete", 404): lambda s: s.client.delete("/v2/studies/1.2.3"),
    ("change_feed", 200): lambda s: s.client.get("/v2/changefeed"),
    ("change_feed", 304): lambda s: s.client.get("/v2/changefeed", headers=HELD),
    ("change_feed", 400): lambda s: s.client.get("/v2/changefeed?limit=201"),
    ("change_feed", 406): lambda s: s.client.get("/v2/changefeed", headers=NO_SUCH_TYPE),
    ("read_latest_change", 200): lambda s: s.client.get("/v2/changefeed/latest"),
    ("read_latest_change", 304): lambda s: s.client.get("/v2/changefeed/latest", headers=HELD),
    ("read_latest_change", 400): lambda s: s.client.get("/v2/changefeed/latest?includeMetadata=maybe"),
    ("read_latest_change", 406): lambda s: s.client.get("/v2/changefeed/latest", headers=NO_SUCH_TYPE),
    ("rendered", 200): lambda s: s.get("/frames/1/rendered", accept="image/png"),
    ("rendered", 206): lambda s: s.get("/frames/1/rendered", range="bytes=0-3"),
    ("rendered", 304): lambda s: s.get("/thumbnail", **{"if-none-match": "*"}),
    ("rendered", 400): lambda s: s.get("/rendered?quality=0"),
    ("rendered", 404): lambda s: s.get("/frames/9/rendered"),
    ("rendered", 406): lambda s: s.get("/rendered", accept="text/html"),
    ("rendered", 416): lambda s: s.get("/frames/1/rendered", range="bytes=9999999-"),
    ("partitions", 200): lambda s: s.client.get("/v2/partitions"),
    ("partitions", 304): lambda s: s.client.get("/v2/partitions", headers=HELD),
    ("partitions", 406): lambda s: s.client.get("/v2/partitions", headers=NO_SUCH_TYPE),
    ("imports", 202): start_import,
    ("imports", 400): lambda s: s.client.post("/v2/import", json={}),
    ("imports", 413): lambda s: s.client.post("/v2/import", json={"source": "x" * 70_000}),
    ("imports", 415): lambda s: s.client.post("/v2/import", content=b"{}", headers=DICOM),
    ("read_import_report", 200): lambda s: s.client.get(report_of(s)),
    ("read_import_report", 400): lambda s: s.client.get(f"/v2/partitions/a~b/import/{'0' * 32}/report"),
    ("read_import_report", 404): lambda s: s.client.get(f"/v2/import/{'0' * 32}/report"),
    ("read_import_report", 406): lambda s: s.client.get(report_of(s), headers=NO_SUCH_TYPE),
    ("query_tags", 200): lambda s: s.client.get("/v2/extendedquerytags"),
    ("query_tags", 304): lambda s: s.client.get("/v2/extendedquerytags", headers=HELD),
    ("query_tags", 400): lambda s: s.client.get("/v2/extendedquerytags/nothing"),
    ("query_tags", 404): lambda s: s.client.get("/v2/extendedquerytags/00180050/errors"),
    ("add_query_tags", 400): lambda s: s.client.post("/v2/extendedquerytags", json=[]),
    ("add_query_tags", 409): lambda s: s.client.post(
        "/v2/extendedquerytags", json=[{"path": "PatientID", "level": "Study"}]
    ),
    ("add_query_tags", 413): lambda s: s.client.post(
        "/v2/extendedquerytags", json=[" " * query_tags.MOST_BYTES]
    ),
    ("add_query_tags", 415): lambda s: s.client.post(
        "/v2/extendedquerytags", content=b"[]", headers={"Content-Type": "text/css"}
    ),
    ("update_query_tag", 400): lambda s: s.client.patch("/v2/extendedquerytags/00180050", json=[]),
    ("update_query_tag", 404): lambda s: s.client.patch(
        "/v2/extendedquerytags/00180050", json={"queryStatus": "Enabled"}
    ),
    ("update_query_tag", 413): lambda s: s.client.patch(
        "/v2/extendedquerytags/00180050", json=[" " * query_tags.MOST_BYTES]
    ),
    ("update_query_tag", 415): lambda s: s.client.patch(
        "/v2/extendedquerytags/00180050", content=b"{}", headers={"Content-Type": "text/css"}
    ),
    ("delete_query_tag", 400): lambda s: s.client.delete("/v2/extendedquerytags/nothing"),
    ("delete_query_tag", 404): lambda s: s.client.delete("/v2/extendedquerytags/00180050"),
    ("operations", 404): lambda s: s.client.get(f"/v2/operations/{'0' * 32}"),
    ("cancel_operation", 404): lambda s: s.client.delete("/v2/operations/none"),
    ("update", 202): lambda s: bulk_update(s, [s.study]),
    ("update", 400): lambda s: bulk_update(s, []),
    ("update", 413): lambda s: s.client.post("/v2/studies/$bulkUpdate", content=b" " * 2**21),
    ("update", 415): lambda s: s.post(b"{}", path="/v2/studies/$bulkUpdate"),
    ("export", 400): lambda s: s.client.post("/v2/export", json={"source": {}}),
    ("export", 413): lambda s: s.client.post(
        "/v2/export", content=b" " * (2**21 + 1), headers={"Content-Type": "application/json"}
    ),
    ("export", 415): lambda s: s.client.post(
        "/v2/export", content=b"<a/>", headers={"Content-Type": "text/xml"}
    ),
    ("create_workitem", 201): lambda s: workitems.create(s.client),
    ("create_workitem", 400): lambda s: s.client.post("/v2/workitems", json={}),
    ("create_workitem", 409): lambda s: workitems.create(s.client, workitems.created(s.client)),
    ("create_workitem", 413): lambda s: s.client.post("/v2/workitems", content=b" " * (2**20 + 1)),
    ("create_workitem", 415): lambda s: s.post(b"x", "/v2/workitems"),
    ("retrieve_workitem", 200): lambda s: s.client.get(workitems.path(s.client)),
    ("retrieve_workitem", 304): lambda s: s.client.get(workitems.path(s.client), headers=HELD),
    ("retrieve_workitem", 400): lambda s: s.client.get("/v2/workitems/not_a_uid"),
    ("retrieve_workitem", 404): lambda s: s.client.get("/v2/workitems/1.2.3"),
    ("retrieve_workitem", 406): lambda s: s.client.get(workitems.path(s.client), headers=NO_SUCH_TYPE),
    ("search_workitems", 200): lambda s: workitems.found(s.client),
    ("search_workitems", 304): lambda s: workitems.found(s.client, **HELD),
    ("search_workitems", 204): lambda s: s.client.get("/v2/workitems?PatientID=nobody+at+all"),
    ("search_workitems", 400): lambda s: s.client.get("/v2/workitems?StudyDate=20260101"),
    ("search_workitems", 406): lambda s: s.client.get("/v2/workitems", headers=NO_SUCH_TYPE),
    ("update_workitem", 200): lambda s: s.client.post(workitems.path(s.client), json=workitems.LABEL),
    ("update_workitem", 400): lambda s: s.client.post(workitems.path(s.client), json={}),
    ("update_workitem", 404): lambda s: s.client.post("/v2/workitems/1.2.3", json=workitems.LABEL),
    ("update_workitem", 413): lambda s: s.client.post("/v2/workitems/1.2.3", content=b" " * (2**20 + 1)),
    ("update_workitem", 415): lambda s: s.post(b"x", "/v2/workitems/1.2.3"),
    ("change_workitem_state", 200): lambda s: workitems.change(s.client, workitems.created(s.client)),
    ("change_workitem_state", 400): lambda s: s.client.put("/v2/workitems/1.2.3/state", json={}),
    ("change_workitem_state", 404): lambda s: workitems.change(s.client, "1.2.3"),
    ("change_workitem_state", 409): lambda s: workitems.change(
        s.client, workitems.created(s.client), "COMPLETED"
    ),
    ("change_workitem_state", 413): lambda s: s.client.put(
        "/v2/workitems/1.2.3/state", content=b" " * (2**20 + 1)
    ),
    ("change_workitem_state", 415): lambda s: s.client.put(
        "/v2/workitems/1.2.3/state", content=b"x", headers=DICOM
    ),
    ("request_workitem_cancellation", 202): lambda s: s.client.post(
        f"{workitems.path(s.client)}/cancelrequest"
    ),
    ("request_workitem_cancellation", 400): lambda s: s.client.post(
        "/v2/workitems/1.2.3/cancelrequest", json=[]
    ),
    ("request_workitem_cancellation", 404): lambda s: s.client.post("/v2/workitems/1.2.3/cancelrequest"),
    ("request_workitem_cancellation", 409): lambda s: s.client.post(
        f"{workitems.path(s.client, 'COMPLETED')}/cancelrequest"
    ),
    ("request_workitem_cancellation", 413): lambda s: s.client.post(
        "/v2/workitems/1.2.3/cancelrequest", content=b" " * (2**20 + 1)
    ),
    ("request_workitem_cancellation", 415): lambda s: s.post(b"x", "/v2/workitems/1.2.3/cancelrequest"),
    ("subscribe", 201): lambda s: s.client.post(subscription("READER")),
    ("subscribe", 400): lambda s: s.client.post(subscription("READER") + "?deletionlock=maybe"),
    ("subscribe", 404): lambda s: s.client.post("/v2/workitems/1.2.3/subscribers/READER"),
    ("unsubscribe", 200): lambda s: subscribed(s, "ENDING").delete(subscription("ENDING")),
    ("unsubscribe", 400): lambda s: s.client.delete(subscription("A%5CB")),
    ("unsubscribe", 404): lambda s: s.client.delete(subscription("NOBODY")),
    ("suspend_subscription", 200): lambda s: subscribed(s, "PAUSING").post(
        subscription("PAUSING") + "/suspend"
    ),
    ("suspend_subscription", 400): lambda s: s.client.post("/v2/workitems/1.2.3/subscribers/AE/suspend"),
    ("suspend_subscription", 404): lambda s: s.client.post(subscription("NOBODY") + "/suspend"),
    ("read_subscriber", 200): lambda s: s.client.get("/v2/subscribers/READER"),
    ("read_subscriber", 400): lambda s: s.client.get("/v2/subscribers/A%5CB"),
    ("read_subscriber", 406): lambda s: s.client.get("/v2/subscribers/READER", headers=NO_SUCH_TYPE),
    ("read_events", 204): lambda s: s.client.get("/v2/subscribers/NOBODY/events"),
    ("read_events", 400): lambda s: s.client.get("/v2/subscribers/NOBODY/events?after=x"),
    ("read_events", 406): lambda s: s.client.get("/v2/subscribers/NOBODY/events", headers=NO_SUCH_TYPE),
    ("health", 200): lambda s: s.client.get("/health/check"),
    ("retrieve_capabilities", 200): lambda s: s.client.options("/v2"),
    ("retrieve_capabilities", 406): lambda s: s.client.get("/v2", headers=NO_SUCH_TYPE),
    ("openapi", 200): lambda s: s.client.get("/v2/openapi.json"),
}
ELSEWHERE = {
    ("read_events", 200),
    ("read_latest_change", 204),
    ("partitions", 204),
    ("add_query_tags", 202),
    ("update_query_tag", 200),
    ("update_query_tag", 409),
    ("delete_query_tag", 204),
    *(("operations", status) for status in (200, 202)),
    ("export", 202),
    *(("cancel_operation", status) for status in (200, 202, 409)),
}
"""Provoked by a test of its own, like every 401, 403 and 503."""


def test_every_status_claimed_is_provoked() -> None:
    claimed = {(name, status) for name, t in TRANSACTIONS.items() for status in t.statuses}
    outside = {(name, status) for name, status in claimed if status in (401, 403, 500, 503)}
    assert claimed - outside == set(PROVOKED) | ELSEWHERE


@pytest.mark.parametrize(("name", "status"), PROVOKED)
def test_a_status_is_as_stated(stored: Stored, name: str, status: int) -> None:
    response = PROVOKED[name, status](stored)
    transaction = TRANSACTIONS[name]
    assert response.status_code == status
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if status in transaction.answered:
        assert media_type in {produced.partition(";")[0] for produced in transaction.produces}
    elif status in transaction.empty:
        assert not response.content
    else:
        assert media_type == "application/problem+json"
        assert response.json()["status"] == status
        assert response.json()["detail"].endswith((".", ")."))


def test_a_new_server_has_an_empty_feed_and_one_in_azure_serves_nobody(start_server: StartServer) -> None:
    server = start_server(workers=1, own_storage=True)
    response = httpx.get(f"{server.v2}/changefeed/latest", timeout=60)
    assert response.status_code == 204
    assert httpx.get(f"{server.v2}/changefeed", timeout=60).json() == []
    assert httpx.get(f"{server.v2}/partitions", timeout=60).status_code == 204
    server.restart(WEBSITE_INSTANCE_ID="some-instance")
    for path in ("/v2/studies", "/v2/changefeed", "/v2/partitions", "/v2/openapi.json"):
        assert httpx.get(server.url + path, timeout=60).status_code == 403
    assert httpx.get(f"{server.url}/health/check", timeout=60).status_code == 200
    server.close()


def test_a_wrong_method_or_path_is_404(stored: Stored) -> None:
    assert stored.client.patch(stored.path).status_code == 404
    assert stored.client.get(f"{stored.path}/renderings").status_code == 404
    assert stored.client.delete("/v2/workitems").status_code == 404


# --- store -------------------------------------------------------------------------------------------


def reason(response: httpx.Response) -> int:
    """The Failure Reason of the only failed instance."""
    (failed,) = response.json()["00081198"]["Value"]
    (value,) = failed["00081197"]["Value"]
    assert all(len(item) == 1 for item in failed["00741048"]["Value"])
    return int(value)


@pytest.mark.parametrize(
    "attribute", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID"]
)
def test_a_file_without_a_required_attribute_fails_and_is_told_so(
    client: httpx.Client, attribute: str
) -> None:
    empty = {"PatientID": None}.get(attribute, "")
    response = client.post("/v2/studies", content=make_file(**{attribute: empty}), headers=DICOM)
    assert response.status_code == 409
    assert reason(response) == failure_reasons.VALIDATION_FAILURE
    assert attribute in response.text


def test_an_empty_patient_id_will_do(client: httpx.Client) -> None:
    assert client.post("/v2/studies", content=make_file(PatientID=""), headers=DICOM).status_code == 200


def test_a_duplicate_and_a_foreign_study_have_their_reasons(stored: Stored) -> None:
    assert reason(stored.post(same_again(stored))) == failure_reasons.ALREADY_EXISTS
    other = stored.post(make_file(), f"/v2/studies/{stored.study}")
    assert reason(other) == failure_reasons.STUDY_MISMATCH


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_the_second_of_two_alike_in_a_request_fails(client: httpx.Client, method: str) -> None:
    file = make_file()
    body, headers = multipart([file, file])
    response = client.request(method, "/v2/studies", content=body, headers=headers)
    assert response.status_code == 202
    assert reason(response) == failure_reasons.ALREADY_EXISTS
    assert len(response.json()["00081199"]["Value"]) == 1


def test_a_value_that_breaks_its_vr_is_stored_with_a_warning_and_not_matched(client: httpx.Client) -> None:
    study = generate_uid()
    file = make_file(study).replace(b"20240229", b"20240230")
    response = client.post("/v2/studies", content=file, headers=DICOM)
    assert response.status_code == 202
    (item,) = response.json()["00081199"]["Value"]
    assert item["00081196"]["Value"] == [failure_reasons.WARN_VALIDATION]
    (comment,) = (c["00000902"]["Value"][0] for c in item["00741048"]["Value"])
    assert comment.startswith("DICOM100: (0008,0020)")
    assert "20240230" not in comment
    (found,) = client.get(f"/v2/studies?StudyInstanceUID={study}").json()
    assert found["00080020"]["Value"] == ["20240230"]
    assert client.get(f"/v2/studies?StudyInstanceUID={study}&StudyDate=20240101-").status_code == 204


def test_a_uid_beyond_the_standard_is_stored_with_a_warning(client: httpx.Client) -> None:
    response = client.post("/v2/studies", content=make_file("A-" + generate_uid()[:60]), headers=DICOM)
    assert response.status_code == 202


def test_file_meta_information_that_differs_is_a_warning(client: httpx.Client) -> None:
    instance = generate_uid()
    file = make_file(instance=instance)
    other = instance[:-1] + ("1" if instance[-1] != "1" else "2")
    file = file.replace(instance.encode(), other.encode(), 1)
    response = client.post("/v2/studies", content=file, headers=DICOM)
    assert response.status_code == 202
    (item,) = response.json()["00081199"]["Value"]
    assert item["00081196"]["Value"] == [failure_reasons.WARN_SOP_CLASS_MISMATCH]


def test_the_preamble_becomes_zeros_and_nothing_else_changes(client: httpx.Client) -> None:
    study, series, instance = generate_uid(), generate_uid(), generate_uid()
    file = b"MZ" + b"\x90" * 126 + make_file(study, series, instance)[128:]
    assert client.post("/v2/studies", content=file, headers=DICOM).status_code == 200
    response = Stored(client, study, series, instance).get("", accept="application/dicom; transfer-syntax=*")
    assert response.content == bytes(128) + file[128:]


def test_put_replaces_and_the_change_feed_says_update(stored: Stored) -> None:
    response = stored.client.put(
        "/v2/studies", content=make_file(stored.study, stored.series, stored.instance)
    )
    assert response.status_code == 415
    response = stored.client.put("/v2/studies", content=same_again(stored), headers=DICOM)
    assert response.status_code == 200
    last = stored.client.get("/v2/changefeed/latest").json()
    before = stored.client.get(f"/v2/changefeed?offset={last['Sequence'] - 2}&limit=1").json()[0]
    assert [(e["Action"], e["State"]) for e in (before, last)] == [
        ("create", "replaced"),
        ("update", "current"),
    ]
    assert stored.client.delete(stored.path).status_code == 204
    feed = stored.client.get(f"/v2/changefeed?offset={last['Sequence'] - 2}&includeMetadata=false").json()
    assert [(e["Action"], e["State"]) for e in feed] == [
        ("create", "deleted"),
        ("update", "deleted"),
        ("delete", "deleted"),
    ]
    assert [e["Sequence"] for e in feed] == [last["Sequence"] + n for n in (-1, 0, 1)]


# --- retrieve ----------------------------------------------------------------------------------------


def syntax(content_type: str) -> str:
    """The transfer syntax of a part."""
    return content_type.rpartition("transfer-syntax=")[2]


@pytest.mark.parametrize(
    "source",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_native_data_is_converted_and_comes_as_stored_when_asked(client: httpx.Client, source: str) -> None:
    stored = put(client, transfer_syntax=source)
    part10_type = "application/dicom"
    assert syntax(stored.get("", accept=part10_type).headers["content-type"]) == ExplicitVRLittleEndian
    asked = f"{part10_type}; transfer-syntax=*"
    assert syntax(stored.get("", accept=asked).headers["content-type"]) == source
    for target in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        asked = f"{part10_type}; transfer-syntax={target}"
        assert syntax(stored.get("", accept=asked).headers["content-type"]) == target
    response = stored.get("")
    ((headers, _),) = read_multipart(response.headers["content-type"], response.content)
    assert syntax(headers["content-type"]) == source


def test_compressed_data_is_decoded_unless_it_is_asked_for_as_stored(client: httpx.Client) -> None:
    image = GREY_12
    codestream = transcode.encode(made(image), JPEG2000Lossless).data
    ds = make_dataset(Rows=image.rows, Columns=image.columns, BitsStored=12, HighBit=11)
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    assert client.post("/v2/studies", content=to_file(ds, JPEG2000Lossless), headers=DICOM).status_code == 200
    stored = Stored(client, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    as_stored = stored.get("", accept="application/dicom; transfer-syntax=*")
    assert syntax(as_stored.headers["content-type"]) == JPEG2000Lossless
    pixels = transcode.encode(made(image), ExplicitVRLittleEndian).data
    for target in (ExplicitVRLittleEndian, JPEGLSLossless, RLELossless):
        accept = f"application/dicom; transfer-syntax={target}"
        if target == ExplicitVRLittleEndian:
            accept = "application/dicom"
        got = stored.get("", accept=accept)
        assert syntax(got.headers["content-type"]) == target
        read = dcmread(io.BytesIO(got.content))
        assert read.pixel_array.astype("<u2").tobytes() == pixels
        assert read.PatientName == ds.PatientName
    assert stored.get("/frames/1", accept="application/octet-stream").content == pixels
    baseline = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
    assert "8 bits" in stored.get("/frames/1", accept=baseline).json()["detail"]
    lossless = stored.get("/frames/1", accept=f"{baseline}, image/jpeg; q=0.5")
    assert syntax(lossless.headers["content-type"]) == "1.2.840.10008.1.2.4.70"


def test_a_frame_that_cannot_be_decoded_is_refused_alone(client: httpx.Client) -> None:
    stored = put(client, encapsulated=True)
    for accept in ("application/dicom", f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"):
        refused = stored.get("", accept=accept)
        assert refused.status_code == 406
        assert JPEG2000Lossless in refused.json()["detail"]


def test_a_study_comes_as_multipart_alone(stored: Stored) -> None:
    url = f"/v2/studies/{stored.study}"
    assert stored.client.get(url, headers={"Accept": "application/dicom"}).status_code == 406
    assert stored.client.get(url).headers["content-type"].startswith("multipart/related")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/jp2", "image/jp2"),
        (f"image/jp2; transfer-syntax={JPEG2000Lossless}", "image/jp2"),
        (f"application/octet-stream; transfer-syntax={JPEG2000Lossless}", "application/octet-stream"),
        ("application/octet-stream; transfer-syntax=*", "application/octet-stream"),
        ("*/*", "image/jp2"),
        ("application/octet-stream", ""),
        ("image/jpeg", ""),
    ],
)
def test_compressed_frames_by_accept(client: httpx.Client, accept: str, media_type: str) -> None:
    response = put(client, frames=2, encapsulated=True).get("/frames/2", accept=accept)
    if not media_type:
        assert response.status_code == 406
        return
    content_type, body = response.headers["content-type"], response.content
    if accept == "*/*":
        ((headers, body),) = read_multipart(content_type, body)
        content_type = headers["content-type"]
    assert content_type == f"{media_type}; transfer-syntax={JPEG2000Lossless}"
    assert body.rstrip(b"\0") == codestream(2).rstrip(b"\0")


@pytest.mark.parametrize(
    ("source", "accept", "answered"),
    [
        (ImplicitVRLittleEndian, "application/octet-stream", ExplicitVRLittleEndian),
        (
            ImplicitVRLittleEndian,
            f"application/octet-stream; transfer-syntax={ImplicitVRLittleEndian}",
            ExplicitVRLittleEndian,
        ),
        (ExplicitVRBigEndian, "application/octet-stream", ExplicitVRLittleEndian),
        (
            ExplicitVRBigEndian,
            f"application/octet-stream; transfer-syntax={ExplicitVRBigEndian}",
            ExplicitVRBigEndian,
        ),
    ],
)
def test_native_frames_by_accept(client: httpx.Client, source: str, accept: str, answered: str) -> None:
    response = put(client, transfer_syntax=source).get("/frames/1", accept=accept)
    assert response.headers["content-type"] == f"application/octet-stream; transfer-syntax={answered}"
    assert len(response.content) == len(frame(1))


def test_several_frames_come_as_multipart_in_the_order_asked(stored: Stored) -> None:
    assert stored.get("/frames/1,2", accept="application/octet-stream").status_code == 406
    response = stored.get("/frames/2,1")
    parts = read_multipart(response.headers["content-type"], response.content)
    assert [body for _, body in parts] == [frame(2), frame(1)]


def test_small_binary_values_are_inline_and_larger_ones_are_bulk_data(client: httpx.Client) -> None:
    small = b"s" * part10.INLINE_BINARY
    stored = put(client, ICCProfile=small, EncapsulatedDocument=small + b"xx")
    (document,) = stored.get("/metadata").json()
    assert "InlineBinary" in document["00282000"]
    assert list(document["7FE00010"]) == ["vr", "BulkDataURI"]
    uri = document["00420011"]["BulkDataURI"]
    response = client.get(uri)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.content == small + b"xx"
    assert not [tag for tag in document if tag.startswith("0002")]


def test_head_gives_the_headers_of_get(stored: Stored) -> None:
    for path, accept in (("", "*/*"), ("", "application/dicom"), ("/metadata", "*/*"), ("/frames/1", "*/*")):
        get, head = (
            stored.client.request(
                method, stored.path + path, headers={"Accept": accept, "Accept-Encoding": ""}
            )
            for method in ("GET", "HEAD")
        )
        assert head.status_code == get.status_code == 200
        assert not head.content
        assert head.headers.get("content-length") == get.headers.get("content-length")
        kind = get.headers["content-type"].partition("boundary=")[0]
        assert head.headers["content-type"].partition("boundary=")[0] == kind


def test_paths_match_without_regard_to_case_and_partitions_with_regard_to_it(stored: Stored) -> None:
    assert stored.client.get(f"/V2/Studies/{stored.study}/METADATA").status_code == 200
    default = "/v2/partitions/Microsoft.Default/studies"
    assert stored.client.get(f"{default}/{stored.study}/metadata").status_code == 200
    assert stored.client.get(f"{default.lower()}/{stored.study}/metadata").status_code == 404


# --- change feed -------------------------------------------------------------------------------------


def test_offset_is_a_sequence_and_names_of_parameters_have_no_case(server: Server, stored: Stored) -> None:
    last = stored.client.get("/v2/changefeed/latest").json()["Sequence"]
    entries = stored.client.get("/v2/changefeed", params={"OFFSET": last - 1, "Limit": 1}).json()
    assert [entry["Sequence"] for entry in entries] == [last]
    assert set(entries[0]) == {
        "Sequence",
        "StudyInstanceUid",
        "SeriesInstanceUid",
        "SopInstanceUid",
        "PartitionName",
        "Action",
        "Timestamp",
        "State",
        "Metadata",
    }
    assert entries[0]["Metadata"]["7FE00010"]["BulkDataURI"].startswith(server.url)
    assert stored.client.get("/v2/changefeed?cursor=1").status_code == 400


def test_examples_of_json_are_json() -> None:
    for example in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL):
        json.loads(example)
