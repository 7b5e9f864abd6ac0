"""Programs of other makers that tests drive or compare with, as Debian packages them."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "dcm2xml": "dcmtk",
    "dcmcjpeg": "dcmtk",
    "dcmcrle": "dcmtk",
    "dcmj2pnm": "dcmtk",
    **dict.fromkeys(("echoscu", "storescu", "storescp", "findscu", "movescu", "getscu"), "dcmtk"),
    "Orthanc": "orthanc",
}
"""The package each program is in; ``.ci/run`` installs them."""

_NEWER = {"dcmj2pnm": "dcm2img"}
_SYSTEM = "/usr/sbin"


def tool(name: str) -> str:
    """The path of a program. Where it is not installed the test is skipped, and in CI it fails."""
    path = shutil.which(_NEWER.get(name, name)) or shutil.which(name)
    if path is None and PACKAGES[name] == "orthanc":  # a daemon, not in every user's path
        path = shutil.which(name, path=_SYSTEM)
    if path is None:
        missing(f"{name} is not installed (Debian's package {PACKAGES[name]})")
    return str(path)


def missing(what: str) -> None:
    """Skip the test, which cannot run without ``what``; in CI fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and in CI nothing is left out.")
    pytest.skip(what)
