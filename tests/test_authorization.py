"""Who may call what: every route with every kind of caller, and the roles of ``roles.json``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import function_app  # noqa: F401 - registers the endpoints
from functions.http import ENDPOINTS, Endpoint
from shared.operations.operation import Operation
from shared.security.roles import Action, Roles
from shared.services import operations
from tests import oidc_issuer
from tests.conftest import Server, StartServer
from tests.export_target import Target
from tests.oidc_issuer import AUDIENCE, TENANT, Issuer

ROLES = {
    "roles": [
        {"name": "DICOM Data Owner", "dataActions": ["read", "write", "delete", "manage"]},
        {"name": "DICOM Data Reader", "dataActions": ["read"], "partitions": ["*"]},
        {"name": "Clinic A", "dataActions": ["read", "write", "delete", "manage"], "partitions": ["a"]},
        {
            "name": "Clinic of all others",
            "dataActions": ["read", "write", "delete", "manage"],
            "partitions": ["Microsoft.Default"],
        },
        {"name": "Writer", "dataActions": ["write"]},
    ]
}
UID = "1.2.3"
WHOLE_SERVER = {
    *("read_change_feed", "read_latest_change", "list_partitions"),
    *("add_query_tags", "update_query_tag", "delete_query_tag", "list_query_tag_errors"),
}
"""Routes that tell of, or change, every partition: they need a role for all."""
NO_PARTITION = {
    *("read_operation", "cancel_operation", "list_query_tags", "read_query_tag"),
    *("read_openapi", "retrieve_capabilities"),
}
"""Routes that a role for any partition opens; whose operation it opens is tested by itself."""


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with oidc_issuer.running() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def secured(start_server: StartServer, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    roles = tmp_path_factory.mktemp("roles") / "roles.json"
    roles.write_text(json.dumps(ROLES))
    return start_server(
        workers=1,
        own_storage=True,
        DICOM_AUTH_AUTHORITY=issuer.url,
        DICOM_AUTH_AUDIENCE=AUDIENCE,
        DICOM_AUTH_TENANT=TENANT,
        DICOM_ROLES_FILE=str(roles),
        DICOM_AUTH_ANONYMOUS="true",
        DICOM_AUDIT="true",
    )


def path_of(endpoint: Endpoint, partition: str = "a") -> str:
    """A path of an endpoint, with identifiers that nothing has."""
    values = {"partition": partition, "frames": "1"}
    return "/" + re.sub(r"\{(\w+)[^}]*\}", lambda m: values.get(m[1], UID), endpoint.template)


@pytest.fixture(scope="module")
def http(secured: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=secured.url, timeout=60) as http:
        yield http


def send(http: httpx.Client, endpoint: Endpoint, method: str, token: str, partition: str) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return http.request(method, path_of(endpoint, partition), headers=headers).status_code


GUARDED = [e for e in ENDPOINTS if e.access.action is not None]
EACH = [pytest.param(e, m, id=f"{m} {e.name}") for e in GUARDED for m in e.methods]


def test_only_the_health_check_is_open_to_everybody() -> None:
    assert {e.name for e in ENDPOINTS if e.access.action is None} == {"check_health"}


def test_routes_that_read_need_read_and_others_more() -> None:
    for endpoint in GUARDED:
        if endpoint.template.partition("workitems/")[2].startswith("{workitem}/subscribers/"):
            assert endpoint.access.action is Action.READ, "who subscribes reads what becomes of workitems"
        elif "DELETE" in endpoint.methods:
            assert endpoint.access.action in (Action.DELETE, Action.MANAGE), endpoint.name
        elif set(endpoint.methods) & {"POST", "PUT", "PATCH"}:
            assert endpoint.access.action in (Action.WRITE, Action.MANAGE), endpoint.name
        else:
            assert endpoint.access.action is Action.READ, endpoint.name


def _allows_default(endpoint: Endpoint) -> bool:
    """Whether a role for the default partition alone opens a route: paths that name none are of it, unless
    they tell of all."""
    return endpoint.access.scope == "any" or (
        endpoint.access.scope == "partition" and "{partition}" not in endpoint.template
    )


def test_routes_without_a_partition_in_their_path_are_of_three_kinds() -> None:
    """What a role for some partitions opens: those of the default partition only with it, those of the whole
    server never, those that tell of no partition's instances always."""
    kinds: dict[str, set[str]] = {"partition": set(), "all": set(), "any": set()}
    for endpoint in GUARDED:
        if "{partition}" not in endpoint.template:
            kinds[endpoint.access.scope].add(endpoint.name)
    assert kinds["partition"] == {
        e.name.removesuffix("_in_partition") for e in GUARDED if "{partition}" in e.template
    }
    assert kinds["all"] == WHOLE_SERVER
    assert kinds["any"] == NO_PARTITION


@pytest.mark.parametrize(("endpoint", "method"), EACH)
def test_every_route_with_every_caller(
    http: httpx.Client, issuer: Issuer, endpoint: Endpoint, method: str
) -> None:
    action = endpoint.access.action
    passed = {200, 202, 204, 400, 404, 406, 409, 415}
    reader_may = action is Action.READ
    clinic_may = endpoint.access.scope == "any" or "{partition}" in endpoint.template
    assert clinic_may or endpoint.access.scope == "all" or _allows_default(endpoint)
    expired = int(time.time()) - 600
    for token, partition, expected in (
        ("", "a", {401}),
        (issuer.token("DICOM Data Owner", exp=expired), "a", {401}),
        (issuer.token("DICOM Data Owner", aud="api://other"), "a", {401}),
        (issuer.token("A role that nobody knows"), "a", {403}),
        (issuer.token("DICOM Data Reader"), "a", passed if reader_may else {403}),
        (issuer.token("Writer"), "a", passed if action is Action.WRITE else {403}),
        (issuer.token("Clinic A"), "a", passed if clinic_may else {403}),
        (issuer.token("Clinic A"), "A", passed if endpoint.access.scope == "any" else {403}),
        (issuer.token("Clinic of all others"), "a", passed if _allows_default(endpoint) else {403}),
        (issuer.token("DICOM Data Owner"), "a", passed),
    ):
        status = send(http, endpoint, method, token, partition)
        assert status in expected, (partition, expected, status)


@dataclass(frozen=True)
class Started:
    """An operation that a caller started in a partition; None: the whole server."""

    type: str
    path: str
    partition: str | None


@pytest.fixture(scope="module")
def started(secured: Server, http: httpx.Client, issuer: Issuer) -> list[Started]:
    """Operations of the partition ``a``, of others, and of the whole server."""
    where = {
        "type": "azureblob",
        "settings": Target(secured.environment["AzureWebJobsStorage"]).by_connection(),
    }
    update = {"studyInstanceUids": [UID], "changeDataset": {"00081030": {"vr": "LO", "Value": ["x"]}}}
    source = {"type": "identifiers", "settings": {"values": [UID]}}
    tags = [{"path": "SliceThickness", "level": "Instance"}]
    found = []
    for type, path, body, partition in (
        ("export", "partitions/a/export", {"source": source, "destination": where}, "a"),
        ("import", "partitions/a/import", {"source": where}, "a"),
        ("update", "partitions/a/studies/$bulkUpdate", update, "a"),
        ("update", "partitions/A/studies/$bulkUpdate", update, "A"),
        ("update", "studies/$bulkUpdate", update, "Microsoft.Default"),
        ("reindex", "extendedquerytags", tags, None),
    ):
        role = {"a": "Clinic A", "Microsoft.Default": "Clinic of all others"}.get(partition or "")
        headers = {"Authorization": f"Bearer {issuer.token(role or 'DICOM Data Owner')}"}
        response = http.post(f"/v2/{path}", json=body, headers=headers)
        assert response.status_code == 202, response.text
        found.append(Started(type, f"/v2/operations/{response.json()['id']}", partition))
    return found


def test_operations_of_every_type_are_told_apart(started: list[Started]) -> None:
    assert {one.type for one in started} | {"deletetag"} == operations.KINDS.keys()
    assert Operation("0" * 32, "deletetag", "running", {}, "", "").partition is None


@pytest.mark.parametrize(
    ("role", "reads", "cancels"),
    [
        ("DICOM Data Owner", {"a", "A", "Microsoft.Default", None}, {"a", "A", "Microsoft.Default", None}),
        ("DICOM Data Reader", {"a", "A", "Microsoft.Default", None}, set()),
        ("Clinic A", {"a"}, {"a"}),
        ("Clinic of all others", {"Microsoft.Default"}, {"Microsoft.Default"}),
    ],
)
def test_an_operation_of_another_partition_is_as_one_that_does_not_exist(
    http: httpx.Client,
    issuer: Issuer,
    started: list[Started],
    role: str,
    reads: set[str | None],
    cancels: set[str | None],
) -> None:
    headers = {"Authorization": f"Bearer {issuer.token(role)}"}
    for method, may in (("GET", reads), ("HEAD", reads), ("DELETE", cancels)):
        unknown = http.request(method, f"/v2/operations/{'0' * 32}", headers=headers)
        for one in started:
            response = http.request(method, one.path, headers=headers)
            if one.partition in may:
                assert response.status_code in (200, 202, 409), (method, one)
            else:
                assert response.status_code == unknown.status_code == (404 if may else 403), (method, one)
                assert response.content == unknown.content
                assert {*response.headers} == {*unknown.headers}


def test_who_may_cancel_elsewhere_alone_cancels_nothing(
    http: httpx.Client, issuer: Issuer, started: list[Started]
) -> None:
    headers = {"Authorization": f"Bearer {issuer.token('DICOM Data Reader', 'Clinic A')}"}
    for one in started:
        assert http.get(one.path, headers=headers).status_code in (200, 202)
        if one.partition != "a":
            assert http.delete(one.path, headers=headers).status_code == 404


def test_the_audit_trail_says_whose_operation_was_asked_for_in_vain(
    secured: Server, http: httpx.Client, issuer: Issuer, started: list[Started]
) -> None:
    headers = {"Authorization": f"Bearer {issuer.token('Clinic of all others', oid='curious')}"}
    assert http.get(started[0].path, headers=headers).status_code == 404
    (event,) = (
        json.loads(line[line.index("{") :]) for line in secured.log.splitlines() if '"curious"' in line
    )
    assert (event["transaction"], event["partition"], event["status"]) == ("read_operation", "a", 404)


def test_a_challenge_says_where_tokens_come_from_and_what_is_wrong(secured: Server, issuer: Issuer) -> None:
    response = httpx.get(f"{secured.v2}/studies")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == (
        f'Bearer realm="DICOMweb", authorization_uri="{issuer.url}"'
    )
    assert "WWW-Authenticate" in response.headers["Access-Control-Expose-Headers"]
    assert response.json()["title"] == "Unauthorized"
    headers = {"Authorization": f"Bearer {issuer.token(exp=1)}"}
    challenge = httpx.get(f"{secured.v2}/studies", headers=headers).headers["WWW-Authenticate"]
    assert challenge.endswith('error="invalid_token", error_description="The access token has expired."')
    basic = httpx.get(f"{secured.v2}/studies", headers={"Authorization": "Basic YTpi"})
    assert basic.status_code == 401
    assert httpx.get(f"{secured.url}/health/check").status_code == 200


def test_a_principal_header_of_the_platform_is_not_believed(secured: Server) -> None:
    principal = {"X-MS-CLIENT-PRINCIPAL": "eyJhdXRoX3R5cCI6ImFhZCJ9", "X-MS-CLIENT-PRINCIPAL-ID": "x"}
    assert httpx.get(f"{secured.v2}/studies", headers=principal).status_code == 401


def test_an_authority_that_does_not_answer_is_503(start_server: StartServer) -> None:
    with oidc_issuer.running() as issuer:
        token = issuer.token("DICOM Data Owner")
        issuer.broken = True
        server = start_server(workers=1, DICOM_AUTH_AUTHORITY=issuer.url, DICOM_AUTH_AUDIENCE=AUDIENCE)
        headers = {"Authorization": f"Bearer {token}"}
        response = httpx.get(f"{server.v2}/studies", headers=headers)
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        issuer.broken = False
        assert httpx.get(f"{server.v2}/studies", headers=headers).status_code == 204
        server.restart(DICOM_AUTH_AUTHORITY="", DICOM_AUTH_ANONYMOUS="false")
        response = httpx.get(f"{server.v2}/studies")
        assert response.status_code == 403
        assert "No authority is configured" in response.text
        server.restart(DICOM_AUTH_ANONYMOUS="true", WEBSITE_INSTANCE_ID="some-instance")
        response = httpx.get(f"{server.v2}/studies")
        assert response.status_code == 403
        assert "loopback" in response.text
        server.close()


def test_the_roles_that_ship_are_an_owner_and_a_reader() -> None:
    roles = Roles.load(Path(__file__).parents[1] / "roles.json")
    (owner,) = roles.of(["DICOM Data Owner"])
    (reader,) = roles.of(["DICOM Data Reader", "unknown"])
    assert owner.actions == set(Action)
    assert reader.actions == {Action.READ}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"roles": [{"name": "x"}]}',
        '{"roles": [{"name": "", "dataActions": ["read"]}]}',
        '{"roles": [{"name": "x", "dataActions": ["reed"]}]}',
        '{"roles": [{"name": "x", "dataActions": ["read"], "partition": ["a"]}]}',
        '{"roles": [{"name": "x", "dataActions": ["read"], "partitions": "*"}]}',
        "no JSON",
    ],
)
def test_a_wrong_roles_file_is_refused_as_a_whole(tmp_path: Path, content: str) -> None:
    path = tmp_path / "roles.json"
    path.write_text(content)
    with pytest.raises(ValueError):
        Roles.load(path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-For": "127.0.0.1"}, 204),
        ({"X-Forwarded-For": "127.0.0.1:40000, [::1]:50000"}, 204),
        ({"Forwarded": 'for="[::1]:4711";proto=http'}, 204),
        ({"X-Forwarded-Host": "viewer.example"}, 204),
        ({"X-Forwarded-For": "192.0.2.1"}, 403),
        ({"X-Forwarded-For": "192.0.2.1, 127.0.0.1"}, 403),
        ({"X-Forwarded-For": "unknown"}, 403),
        ({"Forwarded": "proto=https;for=192.0.2.1"}, 403),
        ({"Forwarded": 'for=127.0.0.1, for="[2001:db8::1]"'}, 403),
        ({"Forwarded": "for=_hidden"}, 403),
    ],
)
def test_a_proxy_on_the_loopback_interface_opens_nothing_to_others(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    assert client.get("/v2/studies?PatientID=nobody", headers=headers).status_code == status
