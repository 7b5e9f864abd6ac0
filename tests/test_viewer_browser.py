"""OHIF in headless Chromium on the running server: the sample studies are listed, and their images are seen.

With ``DICOM_TEST_SCREENSHOT`` the picture of an open study goes to that file.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from devhost import demo
from devhost.azurite import Installation
from devhost.setup import Screen
from devhost.viewer import Package, SignIn, write_site
from tests import oidc_issuer
from tests.conftest import ROOT, Server, StartServer
from tests.tools import tool

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--window-size=1400,900",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENTS = ("CT Chest", "US Cine", "Photograph", "PDF Report")


class Site(http.server.SimpleHTTPRequestHandler):
    """A static website as Azure Storage serves it: what is no file is the page, with the status 404."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        page = Path(self.directory, "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Path:
    """The viewer's files."""
    package = Package(ROOT / ".dev")
    package.ensure(Screen(ROOT / ".dev" / "logs"), Installation(ROOT / ".dev"), sys.executable)
    return package.files


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server whose folder is empty at first."""
    folder = tmp_path_factory.mktemp("site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=folder / "viewer")) as web:
        web.folder = folder / "viewer"  # type: ignore[attr-defined]
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture(scope="module")
def viewer(
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
    files: Path,
    site: http.server.ThreadingHTTPServer,
) -> Server:
    """A server with the viewer and the sample studies; its CORS allows the site."""
    root = tmp_path_factory.mktemp("root")
    for name in ("function_app.py", "functions", "shared", "host.json", "roles.json"):
        (root / name).symlink_to(ROOT / name)
    cors = f"http://127.0.0.1:{site.server_port}"
    (root / "local.settings.json").write_text(json.dumps({"Host": {"CORS": cors}}))
    server = start_server(own_storage=True, root=root, DEVHOST_VIEWER=str(files))
    write_site(files, site.folder, server.url)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("demo")
    demo.write(folder)
    subprocess.run(
        [sys.executable, "-m", "devhost.load", str(folder), "--url", server.url], cwd=ROOT, check=True
    )
    return server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = tool("chromium"), tool("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def until(browser: webdriver.Chrome, condition: object, what: str) -> None:
    WebDriverWait(browser, 120, 0.25).until(lambda _: condition(), what)  # type: ignore[operator]


def text(browser: webdriver.Chrome) -> str:
    """What is to be read on the page; nothing while the browser is on its way to another."""
    return str(browser.execute_script("return document.body ? document.body.innerText : ''"))


def seen(browser: webdriver.Chrome) -> np.ndarray:
    """The middle of the viewport, as it is on the screen."""
    canvas = browser.find_element(By.CSS_SELECTOR, "canvas.cornerstone-canvas")
    picture = np.array(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("L")).astype(int)
    height, width = picture.shape
    return picture[height // 4 : -height // 4, width // 4 : -width // 4]


def shown(browser: webdriver.Chrome) -> bool:
    there = browser.find_elements(By.CSS_SELECTOR, "canvas.cornerstone-canvas")
    return bool(there) and seen(browser).std() > 10


def requested(browser: webdriver.Chrome) -> tuple[set[str], list[str]]:
    """Hosts asked since the last call, and the answers of 400 and more of this server."""
    hosts, failed = set(), []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith(("http:", "https:")):
                hosts.add(url.split("/")[2].rpartition(":")[0])
        if message["method"] == "Network.responseReceived":
            response = message["params"]["response"]
            if response["status"] >= 400 and "/v2/" in response["url"]:
                failed.append(f"{response['status']} {response['url']}")
    return hosts, failed


def test_the_sample_studies_are_listed_opened_and_scrolled(viewer: Server, browser: webdriver.Chrome) -> None:
    browser.get(f"{viewer.url}/viewer")
    until(browser, lambda: all(name in text(browser) for name in PATIENTS), "the list of studies")

    browser.get(f"{viewer.url}/viewer/viewer?StudyInstanceUIDs={demo.uid('CT Chest')}")
    until(browser, lambda: shown(browser), "an image of the CT")
    for tour in browser.find_elements(By.XPATH, "//*[text()='Skip all']"):
        tour.click()
    until(browser, lambda: "Skip all" not in text(browser), "the end of the tour")
    first = seen(browser)
    for _ in range(30):
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_DOWN)
    until(browser, lambda: np.abs(seen(browser) - first).mean() > 2, "another slice")
    for series in ("Heart", "Volume of the heart"):
        until(browser, lambda: series in text(browser), f"{series} among the series")  # noqa: B023
    picture = os.environ.get("DICOM_TEST_SCREENSHOT")
    if picture:
        browser.save_screenshot(picture)
        assert Path(picture).stat().st_size > 10_000

    hosts, failed = requested(browser)
    assert hosts == {"127.0.0.1"}
    assert failed == []


@pytest.mark.parametrize("study", ["US Cine", "Photograph"])
def test_a_colour_study_is_seen(viewer: Server, browser: webdriver.Chrome, study: str) -> None:
    browser.get(f"{viewer.url}/viewer/viewer?StudyInstanceUIDs={demo.uid(study)}")
    until(browser, lambda: shown(browser), study)
    assert requested(browser)[1] == []


def test_the_static_website_of_another_origin_lists_and_shows(
    viewer: Server, browser: webdriver.Chrome, site: http.server.ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{site.server_port}"
    browser.get(url)
    until(browser, lambda: all(name in text(browser) for name in PATIENTS), "the list of studies")
    browser.get(f"{url}/viewer?StudyInstanceUIDs={demo.uid('CT Chest')}")
    until(browser, lambda: shown(browser), "an image of the CT")
    first = seen(browser)
    for _ in range(30):
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_DOWN)
    until(browser, lambda: np.abs(seen(browser) - first).mean() > 2, "another slice")
    hosts, failed = requested(browser)
    assert hosts == {"127.0.0.1"}
    assert failed == []


@pytest.fixture(scope="module")
def signing_in(
    viewer: Server, files: Path, site: http.server.ThreadingHTTPServer
) -> Iterator[tuple[oidc_issuer.Issuer, dict[str, str]]]:
    """An issuer whose tokens the server wants from now on, and the pages that send people there: on an
    origin of their own, and beside the functions."""
    pages = {"site": f"http://127.0.0.1:{site.server_port}", "app": f"{viewer.url}/viewer"}
    scope = f"openid profile {oidc_issuer.AUDIENCE}/Dicom.ReadWrite"
    with oidc_issuer.running() as issuer:
        issuer.redirects = {f"{page}/callback" for page in pages.values()}
        write_site(files, site.folder, viewer.url, SignIn(issuer.url, oidc_issuer.CLIENT, scope))  # type: ignore[attr-defined]
        viewer.restart(
            DICOM_AUTH_AUTHORITY=issuer.url,
            DICOM_AUTH_AUDIENCE=oidc_issuer.AUDIENCE,
            DICOM_AUTH_TENANT=oidc_issuer.TENANT,
            DICOM_AUTH_ANONYMOUS="false",
            DEVHOST_VIEWER_CLIENT_ID=oidc_issuer.CLIENT,
            DEVHOST_VIEWER_SCOPE=scope,
        )
        yield issuer, pages


def sign_out(browser: webdriver.Chrome, issuer: oidc_issuer.Issuer) -> None:
    """Nobody is signed in, at the issuer and in the page that is open."""
    issuer.signed_in = None
    issuer.requests.clear()
    browser.execute_script("sessionStorage.clear()")
    browser.delete_all_cookies()
    requested(browser)


@pytest.mark.parametrize("where", ["site", "app"])
def test_nobody_sees_anything_before_signing_in_and_a_reader_the_list(
    signing_in: tuple[oidc_issuer.Issuer, dict[str, str]], browser: webdriver.Chrome, where: str
) -> None:
    """Authorization code flow with PKCE: on another origin and beside the functions."""
    issuer, page = signing_in[0], signing_in[1][where]
    sign_out(browser, issuer)
    browser.get(page)
    until(browser, lambda: "Nobody is signed in" in text(browser), "the issuer")
    assert browser.current_url.startswith(f"{issuer.url}/authorize?")
    assert not any(name in browser.page_source for name in PATIENTS)

    issuer.signed_in = ("DICOM Data Reader",)
    browser.get(page)
    until(browser, lambda: all(name in text(browser) for name in PATIENTS), "the list of studies")
    assert browser.current_url.startswith(page)
    assert "/token" in issuer.requests
    hosts, failed = requested(browser)
    assert hosts == {"127.0.0.1"}
    assert failed == []


def test_somebody_without_a_role_signs_in_and_sees_nothing(
    signing_in: tuple[oidc_issuer.Issuer, dict[str, str]], browser: webdriver.Chrome
) -> None:
    issuer, pages = signing_in
    browser.get(f"{pages['app']}/app-config.js")  # a page of that origin, whose sign-in is to be forgotten
    sign_out(browser, issuer)
    issuer.signed_in = ()
    browser.get(pages["app"])
    until(browser, lambda: any(f.startswith("403 ") for f in requested(browser)[1]), "a refusal")
    assert not any(name in text(browser) for name in PATIENTS)
    assert "/token" in issuer.requests
