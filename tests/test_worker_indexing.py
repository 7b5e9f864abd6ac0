"""What Microsoft's own worker library indexes is what the development host serves.

The library (``azure-functions-runtime``) needs Python 3.13 or later and its own packages: they go into a
virtual environment under ``.dev``, made once. ``DICOM_TEST_PYTHON313`` names a Python to use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

_PACKAGE = "azure-functions-runtime>=1.3,<2"
_IS_NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 13))"


def _candidates() -> Iterator[str]:
    yield os.environ.get("DICOM_TEST_PYTHON313", "")
    yield sys.executable
    for name in ("python3.13", "python3.14"):
        yield shutil.which(name) or ""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for versions in (pyenv, Path(sys.base_prefix).parent):  # this Python may be one of pyenv's itself
        yield from (str(path) for path in sorted(versions.glob("3.1[3-9].*/bin/python"), reverse=True))


def _python313() -> str:
    for candidate in filter(None, _candidates()):
        try:
            if subprocess.run([candidate, "-c", _IS_NEW_ENOUGH], capture_output=True).returncode == 0:
                return candidate
        except OSError:
            continue
    pytest.skip(
        "NOT COMPARED with Microsoft's worker library: it needs Python 3.13, and none was found "
        "(on PATH, under pyenv, or in DICOM_TEST_PYTHON313)"
    )


@pytest.fixture(scope="module")
def worker_python() -> str:
    """A Python 3.13 with the app's packages and the worker library."""
    python = _python313()
    requirements = ROOT / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes() + f"{python} {_PACKAGE}".encode()).hexdigest()
    folder = ROOT / ".dev" / "worker"
    stamp = folder / "made-from"
    venv_python = folder / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == key):
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(venv_python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(requirements), _PACKAGE], check=True)
        stamp.write_text(key)
    return str(venv_python)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """The app's settings; neither side may need a service to index the app, so these lead nowhere."""
    return {**os.environ, "AzureWebJobsStorage": "", "DICOM_SQL_URL": "mssql+pyodbc://nowhere.invalid/none"}


@pytest.fixture(scope="module")
def indexed(worker_python: str, settings: dict[str, str]) -> dict[str, Any]:
    """What the worker library says."""
    script = ROOT / "tests" / "apps" / "index_with_worker.py"
    return _json([worker_python, str(script)], settings)


@pytest.fixture(scope="module")
def served(settings: dict[str, str]) -> dict[str, Any]:
    """What the development host has loaded: function by name."""
    script = (
        "import json; from pathlib import Path; from devhost.app import load_functions; "
        "print(json.dumps({f.name: [f.trigger, f.binding, f.route, f.methods] "
        "for f in load_functions(Path.cwd())}))"
    )
    return _json([sys.executable, "-c", script], settings)


def _json(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def test_worker_switches_to_streaming_types(indexed: dict[str, Any]) -> None:
    assert indexed["streaming"]


def test_names_are_the_same(indexed: dict[str, Any], served: dict[str, Any]) -> None:
    assert indexed["functions"]
    assert sorted(indexed["functions"]) == sorted(served)


def test_triggers_and_bindings_are_the_same(indexed: dict[str, Any], served: dict[str, Any]) -> None:
    for name, bindings in indexed["functions"].items():
        (trigger,) = (binding for binding in bindings if binding["type"].endswith("Trigger"))
        assert served[name][:2] == [trigger["type"], trigger], name


def test_routes_and_methods_are_the_same(indexed: dict[str, Any], served: dict[str, Any]) -> None:
    triggers = {
        name: binding
        for name, bindings in indexed["functions"].items()
        for binding in bindings
        if binding["type"] == "httpTrigger"
    }
    assert triggers
    for name, trigger in triggers.items():
        assert served[name][2:] == [trigger["route"], trigger["methods"]], name
