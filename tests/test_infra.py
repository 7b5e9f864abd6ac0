"""What deploys the viewer: the Bicep module is one, and the script does what its documentation says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

INFRA = ROOT / "infra"
PARSE_SECONDS = 60


def parsed(path: Path) -> dict[str, Any]:
    """What pycep reads from a Bicep file; its grammar can take forever, so it has its time."""
    with get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply_async(_parse, (path.read_text(),)).get(PARSE_SECONDS)
    return result


def _parse(text: str) -> Any:
    from pycep import BicepParser

    return BicepParser().parse(text=text)


def test_storage_of_the_viewer_has_no_keys_and_no_old_tls() -> None:
    module = parsed(INFRA / "modules" / "viewer.bicep")
    properties = module["resources"]["account"]["config"]["properties"]
    assert properties["allowSharedKeyAccess"] is False
    assert properties["allowBlobPublicAccess"] is False
    assert properties["supportsHttpsTrafficOnly"] is True
    assert properties["minimumTlsVersion"] == "TLS1_2"
    assert {"accountName", "url", "origin"} <= module["outputs"].keys()


SITE = {
    "index.html": "page",
    "404.html": "page",
    "app-config.js": "configuration",
    "app.bundle.0123456789abcdef.js": "code",
    "0123456789abcdef.wasm": "codec",
    "sw.js": "worker",
}
AZ = """#!/bin/bash
echo "$@" >>{folder}/calls
for argument in "$@"; do
    if [ "$before" = --source ]; then (cd "$argument" && ls | sort | sed "s/^/  /") >>{folder}/calls; fi
    before=$argument
done
if [ "$2 $3" = "account show" ]; then echo https://site.example/; fi
exit {code}
"""


def deploy(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """The script in a tree whose dev.py writes a site of a few files, with a CLI that notes its calls."""
    tree = folder / "tree"
    (tree / "infra" / "scripts").mkdir(parents=True)
    script = tree / "infra" / "scripts" / "deploy-viewer.sh"
    shutil.copy(INFRA / "scripts" / "deploy-viewer.sh", script)
    (tree / "dev.py").write_text(
        f"import sys, pathlib\nprint(sys.argv[1:])\nout = pathlib.Path(sys.argv[3])\nout.mkdir()\n"
        f"for name, text in {SITE!r}.items():\n    (out / name).write_text(text)\n"
    )
    programs = folder / "programs"
    programs.mkdir()
    (programs / "az").write_text(AZ.format(folder=folder, code=code))
    (programs / "python3").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(folder),
        "FUNCTION_APP": "dicom",
        "RESOURCE_GROUP": "group",
    }
    return subprocess.run(
        ["bash", script, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def test_script_switches_the_website_on_and_uploads_the_page_last(tmp_path: Path) -> None:
    ended = deploy(tmp_path, "account1", "https://dicom.example", "--authority", "https://login.example")
    assert ended.returncode == 0, ended.stderr
    assert "'--url', 'https://dicom.example', '--authority', 'https://login.example'" in ended.stdout
    assert ended.stdout.endswith("CORS of the DICOM server must allow the origin https://site.example.\n")
    calls = (tmp_path / "calls").read_text().splitlines()
    started = [line for line in calls if not line.startswith(" ")]
    login = "--account-name account1 --auth-mode login"
    assert started[0].startswith(f"storage blob service-properties update {login}")
    assert started[0].endswith("--static-website true --index-document index.html --404-document 404.html")
    for line, kept in zip(started[1:3], ("immutable", "no-cache"), strict=True):
        assert line.startswith(f"storage blob upload-batch {login}")
        assert "--destination $web" in line
        assert line.endswith(kept)
    first, second = (calls.index(line) for line in started[1:3])
    assert calls[first + 1 : second] == ["  0123456789abcdef.wasm", "  app.bundle.0123456789abcdef.js"]
    assert calls[second + 1 : second + 5] == ["  404.html", "  app-config.js", "  index.html", "  sw.js"]
    assert started[4].startswith("functionapp cors add --name dicom --resource-group group")
    assert "--allowed-origins https://site.example " in started[4]
    assert not list(tmp_path.glob("tmp.*"))


def test_script_stops_at_the_first_thing_that_fails(tmp_path: Path) -> None:
    assert deploy(tmp_path, "account1", "https://dicom.example", code=1).returncode == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_script_without_arguments_says_which_it_needs(tmp_path: Path) -> None:
    ended = deploy(tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: deploy-viewer.sh ACCOUNT SERVER")
