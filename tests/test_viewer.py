"""The viewer's page and files beside the functions, as the development host serves them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest

from devhost.azurite import Installation
from devhost.setup import Problem, Screen
from devhost.viewer import Package, SignIn, configuration, write_site
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
    assert (
        httpx.get(f"{viewer.url}/health/check", timeout=60)
        .headers["Content-Type"]
        .startswith("application/json")
    )
    assert httpx.post(f"{viewer.url}/viewer").status_code == 404


def test_server_without_viewer_has_no_page(server: Server) -> None:
    assert httpx.get(f"{server.url}/viewer", timeout=60).status_code == 404


# --- as a static website -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://dicom.example", "https://dicom.example/", "https://dicom.example/v2"]
)
def test_static_website_is_configured_for_its_server(files: Path, tmp_path: Path, url: str) -> None:
    write_site(files, tmp_path / "site", url)
    config = (tmp_path / "site" / "app-config.js").read_text()
    assert 'const root = "https://dicom.example/v2";' in config
    assert 'routerBasename: "/",' in config
    assert "oidc" not in config
    page = (tmp_path / "site" / "index.html").read_bytes()
    assert (tmp_path / "site" / "404.html").read_bytes() == page
    assert {path.name for path in files.iterdir()} - {
        path.name for path in (tmp_path / "site").iterdir()
    } == {
        "_headers",
        "_redirects",
        "google.js",
        "serve.json",
        "silent-refresh.html",
    }


def test_static_website_signs_users_in_where_it_is_told_how() -> None:
    config = configuration(
        "https://dicom.example", SignIn("https://login.example", "id", "openid x</script>")
    )
    settings = json.loads(config.partition("window.config.oidc = ")[2].strip().removesuffix(";"))
    assert settings[0]["authority"] == "https://login.example"
    assert settings[0]["response_type"] == "code"
    assert settings[0]["scope"] == "openid x</script>"


def test_static_website_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    files, site = tmp_path / "files", tmp_path / "site"
    files.mkdir()
    (files / "index.html").write_text("page")
    write_site(files, site, "https://one.example")
    (site / "old.js").write_text("")
    write_site(files, site, "https://two.example")
    assert "two.example" in (site / "app-config.js").read_text()
    assert not (site / "old.js").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "work.txt").write_text("")
    with pytest.raises(Problem, match="holds something else"):
        write_site(files, tmp_path / "other", "https://one.example")
    assert (tmp_path / "other" / "work.txt").exists()


@pytest.mark.parametrize(
    "url", ["dicom.example", "ftp://dicom.example", "https://", "https://dicom.example/?a=1"]
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(Problem, match="not the URL of a server"):
        configuration(url, None)
