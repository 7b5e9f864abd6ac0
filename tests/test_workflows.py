"""The workflows of GitHub parse, name what exists, and may do no more than they must."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_commands_name_files_that_exist(path: Path) -> None:
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"]), step["uses"]
        for name in re.findall(r"(?<!\S)((?:\.ci|infra|dev\.py)[\w/.-]*)", step.get("run", "")):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_few_and_there_is_no_secret(path: Path) -> None:
    permissions = workflow(path)["permissions"]
    assert permissions["contents"] == "read"
    signs_in = any(step.get("uses", "").startswith("azure/login@") for step in steps(path))
    assert permissions.keys() - {"contents"} == ({"id-token"} if signs_in else set())
    assert "secrets." not in path.read_text()
    assert all("permissions" not in job for job in workflow(path)["jobs"].values())


def test_there_are_workflows_for_tests_for_changes_of_templates_and_for_deployments() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "what-if", "deploy"}
