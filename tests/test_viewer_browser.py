"""OHIF in headless Chromium on the running server: the sample studies are listed, and their images are seen.

With ``DICOM_TEST_SCREENSHOT`` the picture of an open study goes to that file.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
from devhost.viewer import Package
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


@pytest.fixture(scope="module")
def viewer(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with the viewer and the sample studies."""
    package = Package(ROOT / ".dev")
    package.ensure(Screen(ROOT / ".dev" / "logs"), Installation(ROOT / ".dev"), sys.executable)
    server = start_server(own_storage=True, DEVHOST_VIEWER=str(package.files))
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
    return browser.find_element(By.TAG_NAME, "body").text


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
    until(browser, lambda: "Heart" in text(browser), "the segmentation among the series")
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
