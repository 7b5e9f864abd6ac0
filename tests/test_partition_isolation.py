"""Nothing of one partition shows in another, at any route, while everybody stores, replaces and deletes.

Three partitions hold the same UIDs with different content (``tests/isolation.py``). :data:`PROBES` has an
entry for every HTTP function of the app; a route that nobody thought of here fails the first test.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

import function_app  # noqa: F401 - registers the functions
from functions import http
from tests import workitems
from tests.audit import audit, clean
from tests.conftest import StartServer
from tests.export_target import Target
from tests.isolation import Tenant, Uids, feed, named, tenants
from tests.operations_harness import wait_for_end

DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
OCTETS = 'multipart/related; type="application/octet-stream"'
JSON = "application/dicom+json"
XML = 'multipart/related; type="application/dicom+xml"'
SUBSCRIPTION = "workitems/1.2.840.10008.5.1.4.34.5/subscribers/READER"
ZIP = "application/zip; transfer-syntax=*"

Probe = Callable[[Tenant, Uids], object]


def retrieve(path: Callable[[Uids], str]) -> Probe:
    def probe(tenant: Tenant, uids: Uids) -> None:
        for accept in (DICOM, ZIP):
            tenant.get(path(uids), accept)

    return probe


def retrieve_instance(tenant: Tenant, uids: Uids) -> None:
    for accept in (DICOM, ZIP, "application/dicom; transfer-syntax=*", "application/dicom"):
        tenant.get(uids.path, accept)


def metadata(path: Callable[[Uids], str]) -> Probe:
    def probe(tenant: Tenant, uids: Uids) -> None:
        for accept in (JSON, XML):
            tenant.get(f"{path(uids)}/metadata", accept)
        tenant.get(f"{path(uids)}/metadata?includefield=PatientID", JSON)

    return probe


def bulk_data(tenant: Tenant, uids: Uids) -> None:
    """Every BulkDataURI of the metadata, as it stands there."""
    response = tenant.get(f"{uids.path}/metadata", JSON)
    if response.status_code == 200:
        (document,) = response.json()
        for attribute in document.values():
            if "BulkDataURI" in attribute:
                path = attribute["BulkDataURI"].partition("/studies/")[2]
                for accept in ("*/*", OCTETS):
                    tenant.get(f"studies/{path}", accept)


def frames(tenant: Tenant, uids: Uids) -> None:
    tenant.get(f"{uids.path}/frames/1", "application/octet-stream")
    tenant.get(f"{uids.path}/frames/2,1", OCTETS)


def image(path: Callable[[Uids], str]) -> Probe:
    def probe(tenant: Tenant, uids: Uids) -> None:
        tenant.get(path(uids), random.choice(("image/png", "image/jpeg")))

    return probe


def images(path: Callable[[Uids], str]) -> Probe:
    def probe(tenant: Tenant, uids: Uids) -> None:
        tenant.get(path(uids), 'multipart/related; type="image/png"')

    return probe


def search(path: Callable[[Uids], str]) -> Probe:
    def probe(tenant: Tenant, uids: Uids) -> None:
        tenant.get(path(uids), JSON, params={"includefield": "all"})
        found = tenant.get(path(uids), JSON, params={"PatientID": tenant.marker})
        assert found.status_code in (200, 204)
        of_other = random.choice(tenant.others).marker
        assert tenant.get(path(uids), JSON, params={"PatientID": of_other}).status_code == 204
        assert tenant.get(path(uids), JSON, params={"PatientName": f"{of_other}*"}).status_code == 204

    return probe


def wado_uri(tenant: Tenant, uids: Uids) -> None:
    query = {
        "requestType": "WADO",
        "studyUID": uids.study,
        "seriesUID": uids.series,
        "objectUID": uids.instance,
    }
    for content_type in ("application/dicom", "image/png"):
        tenant.get("wado", params=query | {"contentType": content_type})


def change_feed(tenant: Tenant, _uids: Uids) -> None:
    """Entries stand for one partition each: their metadata and URLs are of the one they name."""
    owners = {one.name: one for one in (tenant, *tenant.others)}
    for entry in feed(tenant.server):
        owners[entry["PartitionName"]].look_at("application/json", json.dumps(entry).encode())


def latest_change(tenant: Tenant, _uids: Uids) -> None:
    response = httpx.get(f"{tenant.server.v2}/changefeed/latest", timeout=60)
    if response.status_code == 200:
        owners = {one.name: one for one in (tenant, *tenant.others)}
        owners[response.json()["PartitionName"]].look_at("application/json", response.content)


def without_instances(path: str) -> Probe:
    """An answer that holds nothing of any instance."""

    def probe(tenant: Tenant, _uids: Uids) -> None:
        response = httpx.get(f"{tenant.server.url}/{path}", timeout=60)
        assert response.status_code in (200, 204)
        for one in (tenant, *tenant.others):
            assert one.marker not in response.text

    return probe


def no_such_operation(tenant: Tenant, _uids: Uids) -> None:
    """Who may cancel which operation is the matter of ``tests/test_authorization.py``."""
    assert httpx.delete(f"{tenant.server.v2}/operations/{'0' * 32}", timeout=60).status_code == 404


def export(tenant: Tenant, uids: Uids) -> None:
    """What an export writes, by identifiers and by a query; deletes at the same time let it skip some."""
    target = Target(tenant.server.environment["AzureWebJobsStorage"])
    sources = (
        {"type": "identifiers", "settings": {"values": [uids.study]}},
        {"type": "query", "settings": {"query": f"series?SeriesInstanceUID={uids.series}"}},
    )
    where = {"type": "azureblob", "settings": target.by_connection()}
    body = {"source": random.choice(sources), "destination": where}
    started = httpx.post(f"{tenant.root}/export", json=body, timeout=60)
    assert started.status_code == 202, started.text
    assert wait_for_end(started.json()["href"], 120)["status"] == "succeeded"
    for name, data in target.blobs().items():
        if name.endswith(".dcm"):
            tenant.look_at("application/dicom", data)


def no_such_tag(method: str, path: str = "/00180050") -> Probe:
    """Extended query tags are of all partitions; what they find is probed as searches are."""

    def probe(tenant: Tenant, _uids: Uids) -> None:
        url = f"{tenant.server.v2}/extendedquerytags{path}"
        response = httpx.request(method, url, json={"queryStatus": "Enabled"}, timeout=60)
        assert response.status_code in (400, 404)

    return probe


def workitem(tenant: Tenant, uids: Uids) -> None:
    """A workitem of the same UID in every partition, and what is found, changed and claimed of it."""
    uid, owner = uids.instance, f"1.{tenant.value}"
    created = tenant.request(
        "POST", "workitems", json=workitems.new(SOPInstanceUID=uid, PatientID=tenant.marker)
    )
    assert created.status_code in (201, 409)
    for accept in (JSON, "application/dicom+xml"):
        assert tenant.marker in tenant.get(f"workitems/{uid}", accept).text
    found = tenant.get("workitems", JSON, params={"SOPInstanceUID": uid, "includefield": "all"}).json()
    assert [one["00100020"]["Value"] for one in found] == [[tenant.marker]]
    of_other = random.choice(tenant.others).marker
    assert tenant.get("workitems", JSON, params={"PatientID": of_other}).status_code == 204
    state = workitems.data_set(ProcedureStepState="IN PROGRESS", TransactionUID=owner)
    assert tenant.request("PUT", f"workitems/{uid}/state", json=state).status_code in (200, 409)
    assert tenant.request("POST", f"workitems/{uid}?{owner}", json=workitems.LABEL).status_code == 200
    assert tenant.request("POST", f"workitems/{uid}/subscribers/WATCHER").status_code == 201
    reason = workitems.data_set(ReasonForCancellation=tenant.marker)
    assert tenant.request("POST", f"workitems/{uid}/cancelrequest", json=reason).status_code == 202
    assert tenant.marker in tenant.get("subscribers/WATCHER/events", JSON).text


READS: dict[str, Probe] = {
    "retrieve_study": retrieve(lambda u: u.study_path),
    "retrieve_series": retrieve(lambda u: u.series_path),
    "retrieve_instance": retrieve_instance,
    "retrieve_study_metadata": metadata(lambda u: u.study_path),
    "retrieve_series_metadata": metadata(lambda u: u.series_path),
    "retrieve_instance_metadata": metadata(lambda u: u.path),
    "retrieve_bulkdata": bulk_data,
    "retrieve_frames": frames,
    "render_study": images(lambda u: f"{u.study_path}/rendered"),
    "render_series": images(lambda u: f"{u.series_path}/rendered"),
    "render_instance": images(lambda u: f"{u.path}/rendered"),
    "render_frames": images(lambda u: f"{u.path}/frames/1,2/rendered"),
    "study_thumbnail": image(lambda u: f"{u.study_path}/thumbnail"),
    "series_thumbnail": image(lambda u: f"{u.series_path}/thumbnail"),
    "instance_thumbnail": image(lambda u: f"{u.path}/thumbnail"),
    "frames_thumbnail": image(lambda u: f"{u.path}/frames/2/thumbnail"),
    "search_patients": search(lambda u: "patients"),
    "search_studies": search(lambda u: "studies"),
    "search_study_series": search(lambda u: f"{u.study_path}/series"),
    "search_study_instances": search(lambda u: f"{u.study_path}/instances"),
    "search_series": search(lambda u: "series"),
    "search_series_instances": search(lambda u: f"{u.series_path}/instances"),
    "search_instances": search(lambda u: "instances"),
    "retrieve_by_wado_uri": wado_uri,
    "export_instances": export,
    "read_change_feed": change_feed,
    "read_latest_change": latest_change,
    "list_partitions": without_instances("v2/partitions"),
    "retrieve_capabilities": without_instances("v2"),
    "read_openapi": without_instances("v2/openapi.json"),
    "read_operation": lambda t, _: t.read_operations(),
    "cancel_operation": no_such_operation,
    "read_import_report": lambda t, _: t.read_reports(),
    "list_query_tags": without_instances("v2/extendedquerytags"),
    "add_query_tags": no_such_tag("POST", ""),
    "read_query_tag": no_such_tag("GET"),
    "update_query_tag": no_such_tag("PATCH"),
    "delete_query_tag": no_such_tag("DELETE"),
    "list_query_tag_errors": no_such_tag("GET", "/00180050/errors"),
    "subscribe": lambda t, _: t.request("POST", f"{SUBSCRIPTION}?deletionlock=true"),
    "unsubscribe": lambda t, _: t.request("DELETE", SUBSCRIPTION),
    "suspend_subscription": lambda t, _: t.request("POST", f"{SUBSCRIPTION}/suspend"),
    "read_subscriber": lambda t, _: t.get("subscribers/READER", "application/json"),
    "read_events": lambda t, _: t.get("subscribers/READER/events", JSON),
    "create_workitem": workitem,
    "retrieve_workitem": workitem,
    "update_workitem": workitem,
    "change_workitem_state": workitem,
    "request_workitem_cancellation": workitem,
    "search_workitems": workitem,
    "check_health": without_instances("health/check"),
}
"""What reads, by name of its handler; several readers run at once in every partition."""

WRITES: dict[str, Probe] = {
    "store_instances": lambda t, u: t.store(u),
    "store_study_instances": lambda t, u: t.store(u, path=u.study_path),
    "upsert_instances": lambda t, _: t.store(*random.sample(t.known, 4), method="PUT"),
    "upsert_study_instances": lambda t, u: t.store(u, path=u.study_path, method="PUT"),
    "import_instances": lambda t, u: t.import_file(u),
    "bulk_update": lambda t, u: t.update_study(u),
    "delete_study": lambda t, u: t.forget(u.study_path),
    "delete_series": lambda t, u: t.forget(u.series_path),
    "delete_instance": lambda t, u: t.forget(u.path),
}
"""What writes; one writer a partition, which knows what must be there in the end."""
WEIGHTS = {
    "upsert_instances": 8,
    "store_instances": 6,
    "delete_study": 1,
    "delete_series": 1,
    "import_instances": 0.3,
}
ROUNDS = 2
READERS = 4


def test_every_route_is_probed() -> None:
    handlers = {endpoint.handler.__name__ for endpoint in http.ENDPOINTS}
    assert handlers == READS.keys() | WRITES.keys()


def test_nothing_of_a_partition_shows_in_another(start_server: StartServer) -> None:
    server = start_server(own_storage=True, DICOM_CLEANUP_DELAY_SECONDS="600")
    owners = tenants(server)
    for tenant in owners:
        tenant.store(*tenant.known, method="PUT")
    _work_at_once(owners)
    for tenant in owners:
        for uids in tenant.known:
            _assert_last_generation(tenant, uids)
    for probe in READS.values():
        for tenant in [*owners, named(owners[0])]:
            probe(tenant, random.choice(tenant.known))
    clean(server)
    found = audit(server)
    by_name = {tenant.name: tenant for tenant in owners}
    assert len(found.files) == sum(len(tenant.stored) for tenant in owners)
    for key, file in found.files.items():
        by_name[key.partition].look_at("application/dicom", file)
    for key, file in found.originals.items():
        by_name[key.partition].look_at("application/dicom", file)
    for key, document in found.documents.items():
        assert document["00100020"]["Value"] == [by_name[key.partition].marker]
    server.close()


def _work_at_once(owners: list[Tenant]) -> None:
    """Every read in every partition, in any order, while one writer a partition changes it."""
    views = [*owners, named(owners[0])]
    reads = [(probe, tenant) for probe in READS.values() for tenant in views] * ROUNDS
    random.shuffle(reads)
    over = threading.Event()
    done: Counter[str] = Counter()

    def write(views: list[Tenant]) -> None:
        names = [*WRITES]
        weights = [WEIGHTS.get(name, 3) for name in names]
        while not over.is_set() or not all(done[name] for name in WRITES):
            (name,) = random.choices(names, weights)
            tenant = random.choice(views)
            WRITES[name](tenant, random.choice(tenant.known))
            done[name] += 1

    def read(probe: Probe, tenant: Tenant) -> None:
        probe(tenant, random.choice(tenant.known))

    with ThreadPoolExecutor(len(owners)) as writers, ThreadPoolExecutor(READERS) as readers:
        writing = [
            writers.submit(write, [view for view in views if view.name == tenant.name]) for tenant in owners
        ]
        try:
            for reading in [readers.submit(read, *each) for each in reads]:
                reading.result()
        finally:
            over.set()
            readers.shutdown(cancel_futures=True)
        for each in writing:
            each.result()


def _assert_last_generation(tenant: Tenant, uids: Uids) -> None:
    """What the partition's only writer stored last is there, or nothing where it deleted last."""
    response = tenant.get(f"{uids.path}/metadata", JSON)
    if uids not in tenant.stored:
        assert response.status_code == 404
        return
    (document,) = response.json()
    assert document["00200013"]["Value"] == [tenant.stored[uids]]


def test_a_validator_of_one_partition_is_none_in_another(start_server: StartServer) -> None:
    one, other, _ = tenants(start_server(workers=1))
    (uids, *_) = one.known
    for tenant in (one, other):
        tenant.store(uids)
    for path in (uids.path, f"{uids.path}/metadata", f"{uids.path}/frames/1", f"{uids.path}/thumbnail"):
        accept = "application/dicom" if path == uids.path else "*/*"
        tag = one.get(path, accept).headers["ETag"]
        assert one.request("GET", path, headers={"If-None-Match": tag, "Accept": accept}).status_code == 304
        answer = other.request("GET", path, headers={"If-None-Match": tag, "Accept": accept})
        assert answer.status_code == 200
