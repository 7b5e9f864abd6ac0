"""JSON responses: compressed where the client takes it, with entity tags, and the ``accept`` parameter."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import Server
from tests.dicom_files import make_file, multipart

PATHS = ("studies", "series", "instances", "changefeed")


@pytest.fixture(scope="module", autouse=True)
def _stored(server: Server) -> None:
    body, headers = multipart([make_file() for _ in range(5)])
    assert httpx.post(f"{server.v2}/studies", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_json_is_compressed_where_the_client_takes_it(server: Server, path: str) -> None:
    packed = httpx.get(f"{server.v2}/{path}", headers={"Accept-Encoding": "gzip"})
    plain = httpx.get(f"{server.v2}/{path}", headers={"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert packed.headers["ETag"] != plain.headers["ETag"]  # other bytes
    assert "Accept-Encoding" in packed.headers["Vary"]


@pytest.mark.parametrize("coding", ["gzip", "identity"])
@pytest.mark.parametrize("path", PATHS)
def test_json_the_client_has_is_not_sent_again(server: Server, path: str, coding: str) -> None:
    headers = {"Accept-Encoding": coding}
    first = httpx.get(f"{server.v2}/{path}", headers=headers)
    again = httpx.get(f"{server.v2}/{path}", headers=headers | {"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]


@pytest.mark.parametrize("path", PATHS)
def test_the_accept_parameter_stands_in_for_the_header(server: Server, path: str) -> None:
    refused = httpx.get(f"{server.v2}/{path}", params={"accept": "text/html"})
    assert refused.status_code == 406
    taken = httpx.get(
        f"{server.v2}/{path}", params={"accept": "application/json"}, headers={"Accept": "text/html"}
    )
    assert taken.status_code == 200
    assert taken.headers["Content-Type"].startswith("application/json")
