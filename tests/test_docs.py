"""The documentation names what exists, and all of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.app_functions import all_functions

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("adapters/**/*.md")])


def packages(requirements: str) -> set[str]:
    """Names of the packages a requirements file lists."""
    return set(re.findall(r"^([A-Za-z][\w.-]*)", (ROOT / requirements).read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_decision_is_in_the_index_and_has_its_parts() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    decisions = sorted(folder.glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        text = page.read_text()
        assert f"({page.name})" in index
        assert text.startswith(f"# {page.name[:4]} ")
        assert [part in text for part in ("**Context.**", "**Decision.**", "**Consequences.**")] == [True] * 3


@pytest.mark.parametrize(
    "requirements", ["requirements.txt", "requirements-dev.txt", "adapters/dimse/requirements.txt"]
)
def test_every_dependency_is_explained(requirements: str) -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    (section,) = re.findall(
        rf"^## [^\n]*`{requirements}`[^\n]*\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    )
    assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == packages(requirements)


def test_every_function_without_a_route_is_explained_to_operators() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    for function in all_functions():
        if function.binding["type"] != "httpTrigger":
            assert f"`{function.name}`" in text, function.name


def sentences() -> str:
    """Every literal text of the code, on a line each."""
    files = [path for folder in ("functions", "shared", "devhost") for path in ROOT.glob(f"{folder}/**/*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return "\n".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_sentences_of_the_server_that_operators_look_up_are_those_of_the_code() -> None:
    code = re.sub(r"%[sd]", "\n", sentences())
    page = (ROOT / "docs" / "troubleshoot.md").read_text()
    spans = [
        span
        for row in re.findall(r"^\| (.*?) \| ", page, re.MULTILINE)
        for span in re.findall("`([^`]+)`", row)
    ]
    quoted = [span for span in spans if " " in span and "/" not in span]
    assert len(quoted) > 30
    for text in quoted:
        for piece in text.split("…"):
            assert piece.strip() in code, text


def test_every_setting_has_a_task() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text()
    (read_by_the_app,) = re.findall(r"^## Read by the app\n(.*?)^## ", settings, re.DOTALL | re.MULTILINE)
    tasks = (ROOT / "docs" / "configure.md").read_text()
    for name in re.findall(r"^\| `([^`]+)` \|", read_by_the_app, re.MULTILINE):
        assert f"`{name}`" in tasks, name
