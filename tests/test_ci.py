"""``.ci/run`` installs what tests need, and nothing is left out there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tools import PACKAGES, tool


def test_every_program_of_the_tests_is_installed_by_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for package in PACKAGES.values():
        assert f"|| echo {package}\n" in script


def test_a_missing_program_fails_in_ci_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="Debian's package chromium"):
        tool("chromium")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="Debian's package chromium"):
        tool("chromium")


def run_ci(folder: Path, *commands: str, apt: int) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` of a tree that passes, where ``commands`` are installed and apt-get ends with ``apt``."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "dev.py").write_text("import os\nprint('CI is', os.environ['CI'])\n")
    programs = folder / "programs"
    programs.mkdir()
    for name in ("bash", "dirname", "env", "id", "mktemp", "rm", "tail"):
        (programs / name).symlink_to(str(shutil.which(name)))
    scripts = {
        "sudo": 'shift; exec "$@"',
        "apt-get": f'echo "$@" >>{folder}/asked; echo SAID; exit {apt}',
        "ldconfig": "echo libodbc.so.2",
        "python3": f'exec {sys.executable} "$@"',
    }
    for name in commands:
        scripts[name] = "exit 0"
    for name, body in scripts.items():
        (programs / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (programs / name).chmod(0o755)
    if "Orthanc" in commands:
        (programs / "libOrthancDicomWeb.so").touch()
    environment = {
        **os.environ,
        "PATH": str(programs),
        "SYSTEM_PROGRAMS": str(programs),
        "ORTHANC_PLUGINS": str(programs),
    }
    return subprocess.run(
        ["bash", folder / ".ci" / "run"], capture_output=True, text=True, env=environment, timeout=60
    )


def test_ci_installs_what_is_missing_and_no_more(tmp_path: Path) -> None:
    ended = run_ci(tmp_path, "chromium", "dcm2img", "Orthanc", apt=0)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "Installing chromium-driver ...\nCI is true\nCI is true\n"
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update.endswith(" update")
    assert install.endswith(" install -y --no-install-recommends chromium-driver")


def test_ci_with_all_programs_asks_for_nothing(tmp_path: Path) -> None:
    ended = run_ci(tmp_path, "chromium", "chromedriver", "dcmj2pnm", "Orthanc", apt=1)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "asked").exists()


def test_ci_that_cannot_install_says_so_and_fails(tmp_path: Path) -> None:
    ended = run_ci(tmp_path, apt=100)
    assert ended.returncode == 1
    assert "SAID" in ended.stderr
    assert (
        "Tests need chromium chromium-driver orthanc orthanc-dicomweb dcmtk, and apt-get cannot install them"
        in ended.stderr
    )
    assert ended.stdout.count("CI is true") == 2
