"""The direction of imports, and what importing the app may load.

::

    functions -> services -> sql | blobs | operations | security | neighbours -> dicom -> errors

``web`` stands beside ``services`` and is used by ``functions`` alone; ``container`` builds what services
use. Imports inside functions count. Imports under ``if TYPE_CHECKING`` do not exist at run time; they may
name the dataclasses that services hand up, wherever those are defined: ``functions`` those of ``services``
and ``sql``, ``web`` those of ``services``.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.blobs import names

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/**/*.py")])

MAY_IMPORT = {
    "functions": {"telemetry", "functions", "services", "web", "dicom", "errors", "settings"},
    "services": {
        "telemetry",
        "services",
        "sql",
        "blobs",
        "operations",
        "security",
        "neighbours",
        "dicom",
        "errors",
        "settings",
        "container",
        "faults",
    },
    "web": {"web", "dicom", "errors"},
    "sql": {"telemetry", "sql", "dicom", "errors", "settings", "faults"},
    "blobs": {"telemetry", "blobs", "dicom", "errors", "settings", "faults"},
    "operations": {"telemetry", "operations", "dicom", "errors", "settings", "faults"},
    "security": {"security", "dicom", "errors", "settings", "faults"},
    "neighbours": {"neighbours", "dicom", "errors", "settings", "faults"},
    "container": {"sql", "blobs", "operations", "security", "neighbours", "settings", "errors"},
    "dicom": {"dicom", "errors"},
    "faults": {"errors"},
    "telemetry": {"telemetry", "settings"},
    "settings": set(),
    "errors": set(),
}
MAY_NAME_TYPES_OF = {"functions": {"services", "sql"}, "web": {"services"}}
PACKAGES = {
    # package -> the layers that may import it
    "sqlalchemy": {"sql"},
    "alembic": {"sql"},
    "pyodbc": {"sql"},
    "azure.functions": {"functions"},
    "azurefunctions": {"functions"},
    "starlette": {"functions"},
    "fastapi": {"functions"},
    "python_multipart": {"web"},
    "azure.storage": {"blobs", "operations"},
    "azure.data": {"operations", "container"},
    "azure.messaging": {"operations"},
    "azure.keyvault": {"security", "container"},
    "azure.identity": {"container"},
    "cryptography": {"security"},
    "dicomanonymizer": {"dicom"},
    "azure.core": {"blobs", "operations", "security", "neighbours"},
    "azure.eventgrid": {"neighbours"},
    "aiohttp": {"neighbours"},
    "opentelemetry": {"telemetry"},
    "azure.monitor": {"telemetry"},
    "pydicom": {"dicom"},
    "numpy": {"dicom"},
    "jwt": {"security"},
    "pydantic": {"settings"},
    "pydantic_settings": {"settings"},
}


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "functions" else parts[1]


def imports(path: Path, *, types: bool) -> Iterator[str]:
    """The modules a file imports anywhere: at run time, or for type checking alone."""

    def visit(node: ast.AST, within: bool) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            within = True
        if within is types:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, within)

    yield from visit(ast.parse(path.read_text()), False)


def own_layers(path: Path, *, types: bool) -> set[str]:
    """The layers of this project a file imports."""
    found = set()
    for module in imports(path, types=types):
        parts = module.split(".")
        if parts[0] == "functions":
            found.add("functions")
        elif parts[0] == "shared":
            found.add(parts[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    if path == ROOT / "shared" / "__init__.py":
        assert not own_layers(path, types=False)
        return
    allowed = MAY_IMPORT[layer(path)]
    assert own_layers(path, types=False) <= allowed
    assert own_layers(path, types=True) <= allowed | MAY_NAME_TYPES_OF.get(layer(path), set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_are_known_to_their_layer_alone(path: Path) -> None:
    for module in imports(path, types=False):
        for package, layers in PACKAGES.items():
            if module == package or module.startswith(package + "."):
                assert layer(path) in layers, f"{path.relative_to(ROOT)} imports {module}"


def test_blob_names_are_built_in_one_module() -> None:
    for path in FILES:
        if path.name == "names.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"[^`/]\.(dcm|pack)$", node.value), path


def test_blob_triggers_watch_the_containers_of_the_names_module() -> None:
    """A binding's path is a literal for the platform to read."""
    paths = re.findall(r'path="([^"/]+)/{name}"', (ROOT / "functions" / "blob_triggers.py").read_text())
    assert sorted(paths) == sorted([names.DICOM, names.INBOX])


HEAVY = (
    "numpy",
    "imagecodecs",
    "zstandard",
    "pydicom",
    "sqlalchemy",
    "alembic",
    "azure.storage",
    "azure.data",
    "azure.identity",
    "azure.eventgrid",
    "aiohttp",
    "opentelemetry.sdk",
    "azure.monitor",
)


def _import_app() -> tuple[float, set[str]]:
    """Seconds of a processor the import takes in a new process, and the heavy packages it loads."""
    program = (
        "import sys, time; started = time.process_time(); import function_app; "
        "print(time.process_time() - started); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, modules = done.stdout.splitlines()
    return float(seconds), {name for name in HEAVY if name in modules.split()}


def test_import_of_the_app_is_light_and_quick() -> None:
    runs = [_import_app() for _ in range(5)]
    assert [loaded for _, loaded in runs] == [set()] * 5
    assert statistics.median(seconds for seconds, _ in runs) < 1
