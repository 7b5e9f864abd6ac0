"""The workflows of GitHub parse, name what exists, and may do no more than they must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
    publishes = any(step.get("uses", "").startswith("actions/deploy-pages@") for step in steps(path))
    needed = {"id-token"} if signs_in else {"id-token", "pages"} if publishes else set()
    assert permissions.keys() - {"contents"} == needed
    assert "secrets." not in path.read_text()
    assert all("permissions" not in job for job in workflow(path)["jobs"].values())


def test_there_are_workflows_for_tests_changes_deployments_the_viewer_and_releases() -> None:
    assert {path.stem for path in WORKFLOWS} == {"test", "what-if", "deploy", "viewer", "release"}


def parameters_of_azd() -> dict[str, str]:
    """The variable of each parameter that azd passes on."""
    given = json.loads((ROOT / "infra" / "main.parameters.json").read_text())["parameters"]
    found = {name: re.match(r"\$\{(\w+)", parameter["value"]) for name, parameter in given.items()}
    return {name: match[1] for name, match in found.items() if match is not None}


def test_a_deployment_and_what_would_change_take_the_same_variables() -> None:
    deploy = (ROOT / ".github" / "workflows" / "deploy.yml").read_text()
    what_if = (ROOT / ".github" / "workflows" / "what-if.yml").read_text()
    for name, variable in parameters_of_azd().items():
        if variable == "AZURE_SQL_ADMINISTRATOR":
            continue  # how the administrator is shown
        for line in re.findall(rf"\$\{{\{{ vars\.{variable}\b.*", deploy):
            assert line in what_if, variable
        assert f"vars.{variable} " in deploy, variable
        assert re.search(rf"\b{name}=", what_if), name


def test_the_button_leads_the_portal_to_the_template() -> None:
    url = "https://owner.github.io/server/azuredeploy.json"
    script = ROOT / "infra" / "scripts" / "button.py"
    ended = subprocess.run([sys.executable, script, url], capture_output=True, text=True, check=True)
    (link,) = re.findall(r'<a href="(https://portal[^"]+)"', ended.stdout)
    assert unquote(link.partition("/uri/")[2]) == url
    assert subprocess.run([sys.executable, script, "file:///x"], capture_output=True, check=False).returncode
