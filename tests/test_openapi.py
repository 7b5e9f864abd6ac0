"""The OpenAPI document: valid, complete, and served."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from shared.dicom.attributes import Level, by_path
from shared.dicom.search_terms import is_known
from shared.web import openapi, query_params
from tests.app_functions import http_functions

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"get", "head", "options", "post", "put", "delete", "patch"}


@pytest.fixture(scope="module")
def document(server: Any) -> dict[str, Any]:
    response = httpx.get(f"{server.v2}/openapi.json", timeout=60)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    result: dict[str, Any] = response.json()
    return result


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (path, method): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def query_names(document: dict[str, Any], path: str) -> set[str]:
    parameters = document["paths"][path]["get"]["parameters"]
    return {p["$ref"].rpartition("/")[2] if "$ref" in p else p["name"] for p in parameters}


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_registered_route_and_method_is_listed_and_nothing_else(document: dict[str, Any]) -> None:
    registered = {("/" + f.template, method.lower()) for f in http_functions() for method in f.methods}
    assert set(operations(document)) == registered


def test_studies_service_is_listed_with_and_without_partition(document: dict[str, Any]) -> None:
    assert "/v2/studies/{study}" in document["paths"]
    assert "/v2/partitions/{partition}/studies/{study}" in document["paths"]


def test_path_parameters_are_declared(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        declared = [p["$ref"].rpartition("/")[2] for p in item.get("parameters", [])]
        assert declared == re.findall(r"{(\w+)}", path)
        assert all(document["components"]["parameters"][name]["required"] for name in declared)


def test_every_operation_has_an_id_of_its_own_and_a_summary(document: dict[str, Any]) -> None:
    found = operations(document).values()
    assert len({operation["operationId"] for operation in found}) == len(found)
    assert all(operation["summary"].endswith(".") for operation in found)


def test_errors_are_problems_and_head_has_no_bodies(document: dict[str, Any]) -> None:
    for (path, method), operation in operations(document).items():
        for status, response in operation["responses"].items():
            content = set(response.get("content", {}))
            if method == "head" or status in ("204", "304"):
                assert not content, (path, method, status)
            elif int(status) >= 400 and (status, path) not in {("503", "/health/check")} and content:
                stores = status == "409" and method in ("post", "put") and "/studies" in path
                expected = "application/dicom+json" if stores else "application/problem+json"
                assert content == {expected}, (path, method, status)


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("/v2/patients", Level.PATIENT),
        ("/v2/studies", Level.STUDY),
        ("/v2/series", Level.SERIES),
        ("/v2/instances", Level.INSTANCE),
    ],
)
def test_searches_take_the_attributes_of_their_level(
    document: dict[str, Any], path: str, level: Level
) -> None:
    names = query_names(document, path)
    attributes = {a.keyword for a in by_path().values() if is_known(a, level)}
    options = {"limit", "offset", "cursor", "orderby", "count", "fuzzymatching", "includefield"}
    assert names == attributes | options | {"TimezoneOffsetFromUTC"}


def test_the_limit_of_a_search_is_the_one_enforced(document: dict[str, Any]) -> None:
    (limit,) = (p for p in document["paths"]["/v2/studies"]["get"]["parameters"] if p.get("name") == "limit")
    assert limit["schema"]["maximum"] == query_params.MAX_LIMIT


def test_the_server_is_the_one_the_client_sees(client: httpx.Client) -> None:
    plain = client.get("/v2/openapi.json").json()
    proxied = client.get(
        "/v2/openapi.json", headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pacs.example.org"}
    ).json()
    assert plain["servers"] == [{"url": str(client.base_url).rstrip("/")}]
    assert proxied["servers"] == [{"url": "https://pacs.example.org"}]


def test_head_answers_as_get_without_a_body(client: httpx.Client) -> None:
    response = client.head("/v2/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert not response.content


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == openapi.VERSION
