"""The documentation names what exists, and all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.app_functions import all_functions

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


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


@pytest.mark.parametrize("requirements", ["requirements.txt", "requirements-dev.txt"])
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
