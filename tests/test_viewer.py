"""The viewer's page and files beside the functions, as the development host serves them."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from devhost.azurite import Installation
from devhost.setup import Screen
from devhost.viewer import Package
from tests.conftest import ROOT, Server, StartServer


@pytest.fixture(scope="module")
def files() -> Path:
    """The viewer's files, fetched on first use."""
    package = Package(ROOT / ".dev")
    package.ensure(Screen(ROOT / ".dev" / "logs"), Installation(ROOT / ".dev"), sys.executable)
    return package.files


@pytest.fixture(scope="module")
def viewer(start_server: StartServer, files: Path) -> Server:
    """A server with the viewer."""
    return start_server(DEVHOST_VIEWER=str(files))


@pytest.mark.parametrize("path", ["/viewer", "/viewer/", "/viewer/viewer?StudyInstanceUIDs=1.2.3"])
def test_page_is_at_every_address_below_viewer(viewer: Server, path: str) -> None:
    response = httpx.get(viewer.url + path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "<title>OHIF Viewer</title>" in response.text


def test_configuration_is_this_projects(viewer: Server) -> None:
    response = httpx.get(f"{viewer.url}/app-config.js")
    assert response.text == (ROOT / "devhost" / "app-config.js").read_text()
    assert response.headers["Content-Type"].startswith("text/javascript")


def test_files_have_their_types_and_stay_in_the_cache(viewer: Server, files: Path) -> None:
    name = next(files.glob("*.wasm")).name
    response = httpx.get(f"{viewer.url}/{name}")
    assert response.headers["Content-Type"] == "application/wasm"
    assert "immutable" in response.headers["Cache-Control"]
    again = httpx.get(f"{viewer.url}/{name}", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/", "/index.html", "/none.js", "/viewer/none.js", "/viewer/%2e%2e/%2e%2e/%2e%2e/dev.py", "/%00.js"],
)
def test_what_is_no_file_of_the_viewer_is_not_served(viewer: Server, path: str) -> None:
    response = httpx.get(viewer.url + path)
    assert response.status_code == 404 or "<title>OHIF Viewer</title>" in response.text
    assert "devhost" not in response.text


def test_functions_come_first(viewer: Server) -> None:
    assert httpx.get(f"{viewer.url}/health/check").headers["Content-Type"].startswith("application/json")
    assert httpx.post(f"{viewer.url}/viewer").status_code == 404


def test_server_without_viewer_has_no_page(server: Server) -> None:
    assert httpx.get(f"{server.url}/viewer").status_code == 404
