"""The Bicep templates parse, fit together, and provision what the code needs and nothing else.

No compiler of Bicep is at hand, so modules, parameters and outputs are compared here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueServiceClient

from shared.operations import followers, state, table
from shared.services import events
from shared.settings import Settings
from tests import conftest, test_settings
from tests.app_functions import all_functions

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
TEMPLATES = sorted(INFRA.rglob("*.bicep"))
PARSE_SECONDS = 60
TOKEN = "abcdefghijklm"  # uniqueString() gives 13 letters and digits

PARSE = """
import json, sys
from pycep import BicepParser
print(json.dumps(BicepParser().parse(text=sys.stdin.read())))
"""

ROLES = {
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
    "974c5e8b-45b9-4653-ba55-5f855dd0fb88": "Storage Queue Data Contributor",
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "b86a8fe4-44ce-4948-aee5-eccb2c155cd7": "Key Vault Secrets Officer",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
    "12cf5a90-567b-43ae-8102-96cf46c7d9b4": "Web PubSub Service Owner",
}
"""What the identity needs for blobs, queues, tables, secrets, telemetry and events (Azure built-in roles)."""

EMPTY_BY_DEFAULT = {
    "AzureWebJobsStorage": "the URIs and the identity take its place",
    "DICOM_AUTH_SCOPE": "tokens of applications have no scope",
    "DICOM_EVENTS_SECRET": "the identity takes its place",
    "WEBSITE_HOSTNAME": "set by Azure",
    "DICOM_FHIR_SCOPE": "made of the URL",
    "DICOM_FHIR_SECRET": "the identity takes its place",
    "DICOM_FHIR_PATIENT_SYSTEM": "as the ancestor does",
    "DICOM_SECRETS_KEY": "Key Vault takes its place",
    "DICOM_WEB_PUBSUB_CONNECTION": "the endpoint and the identity take its place",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Application Insights takes its place",
    "WEBSITE_INSTANCE_ID": "set by Azure",
}
NAME_LIMITS = {
    "storage": r"[a-z0-9]{3,24}",
    "vault": r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]",
    "database": r"[a-z0-9][a-z0-9-]{0,61}[a-z0-9]",
    "app": r"[A-Za-z0-9-]{2,32}",  # the host's id is made of the first 32 characters
    "identity": r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}",
    "events": r"[A-Za-z0-9-]{3,50}",
    "site": r"[a-z0-9]{3,24}",
    "webPubSub": r"[A-Za-z][A-Za-z0-9-]{1,61}[A-Za-z0-9]",
    "imageTopic": r"[A-Za-z0-9-]{3,50}",
}
"""Names of resources ("Naming rules and restrictions for Azure resources")."""


@cache
def parsed(path: Path) -> dict[str, Any]:
    """A template as pycep sees it; in a process of its own, because some texts take it for ever."""
    result = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=path.read_text(),
        capture_output=True,
        text=True,
        timeout=PARSE_SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"{path.name}: {result.stderr[-500:]}"
    tree: dict[str, Any] = json.loads(result.stdout)
    return tree


def main() -> dict[str, Any]:
    return parsed(INFRA / "main.bicep")


def parameters_of(module: str) -> dict[str, Any]:
    """What main.bicep gives to a module; one with a condition is wrapped."""
    config = main()["modules"][module]["config"]
    given: dict[str, Any] = config.get("config", config)["params"]
    return given


def app_settings() -> dict[str, Any]:
    settings = parsed(INFRA / "modules" / "app.bicep")["resources"]["settings"]
    found: dict[str, Any] = settings["config"]["properties"]
    return found


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_parses_and_says_what_its_parameters_are(path: Path) -> None:
    for name, parameter in parsed(path).get("parameters", {}).items():
        assert "description" in [d["type"] for d in parameter["decorators"]], f"{path.name}: {name}"


def test_modules_get_the_parameters_they_have() -> None:
    for name, module in main()["modules"].items():
        template = INFRA / module["detail"]["path"]
        declared = parsed(template)["parameters"]
        given = set(parameters_of(name))
        required = {key for key, value in declared.items() if value["default"] is None}
        assert given <= set(declared), name
        assert required <= given, name


def test_outputs_that_are_used_exist() -> None:
    text = (INFRA / "main.bicep").read_text()
    used = re.findall(r"\b(\w+)!?\.outputs\.(\w+)", text)
    assert used
    for module, output in used:
        template = INFRA / main()["modules"][module]["detail"]["path"]
        assert output in parsed(template)["outputs"], f"{module}.{output}"


def test_every_module_is_used() -> None:
    used = {module["detail"]["path"] for module in main()["modules"].values()}
    assert used == {str(path.relative_to(INFRA)) for path in TEMPLATES if path.parent != INFRA}


def test_every_setting_that_the_code_reads_is_set_or_has_a_default() -> None:
    read = {str(f.alias): f for f in Settings.model_fields.values()}
    names = set(read) | set(test_settings.environment_reads()) | test_settings.bound()
    for name in names - set(app_settings()) - set(EMPTY_BY_DEFAULT) - test_settings.TEST_ONLY:
        assert name in read, f"{name} is not set"
        assert str(read[name].default), f"{name} is not set and has no default"


def test_no_setting_is_set_that_nobody_reads() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    for name in app_settings():
        assert f"`{name}`" in text, name


def test_schedules_are_those_of_the_sample() -> None:
    sample = test_settings.sample()
    schedules = {name: value for name, value in app_settings().items() if name.endswith("_SCHEDULE")}
    assert schedules == {name: value for name, value in sample.items() if name.endswith("_SCHEDULE")}


def test_containers_and_queues_are_those_the_code_uses(tmp_path: Path) -> None:
    variables = parsed(INFRA / "modules" / "storage.bicep")["variables"]
    storage = conftest._Storage(tmp_path)
    try:
        connection = storage.azurite.connection_string
        blobs = BlobServiceClient.from_connection_string(connection)
        queues = QueueServiceClient.from_connection_string(connection)
        assert set(variables["containers"]["value"]) == {c.name for c in blobs.list_containers()}
        assert set(variables["queues"]["value"]) == {q.name for q in queues.list_queues()}
    finally:
        storage.close()
    used = {str(f.binding["queueName"]) for f in all_functions() if f.binding["type"] == "queueTrigger"}
    assert used == set(variables["queues"]["value"])


def test_the_identity_has_the_roles_it_needs_and_none_more() -> None:
    text = (INFRA / "modules" / "roles.bicep").read_text()
    uuid = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert sorted(re.findall(uuid, text)) == sorted(ROLES)
    for identifier, name in ROLES.items():
        assert f"'{identifier}' // {name}:" in text, "each says what it is for"
    others = {path.name for path in TEMPLATES if "roleAssignments" in path.read_text()}
    assert others == {"roles.bicep", "viewer.bicep", "image-events.bicep"}, (
        "viewer.bicep: a person may publish"
    )
    of_topic = (INFRA / "modules" / "image-events.bicep").read_text()
    assert re.findall(uuid, of_topic) == ["d5a91429-5739-47e2-a06b-3470a27159e7"], "EventGrid Data Sender"


def test_blob_triggers_are_subscribed_by_their_names() -> None:
    script = (INFRA / "scripts" / "subscribe-to-blobs.sh").read_text()
    subscribed = set(re.findall(r"^subscribe \w+ (\S+) (\w+)$", script, re.MULTILINE))
    triggers = {
        (str(f.binding["path"]).partition("/")[0], f.name)
        for f in all_functions()
        if f.binding["type"] == "blobTrigger"
    }
    assert subscribed == triggers


def test_app_roles_are_those_of_the_roles_file() -> None:
    text = (INFRA / "modules" / "entra.bicep").read_text()
    assert "loadJsonContent('../../roles.json')" in text


def names() -> Iterator[tuple[str, str]]:
    for module, limit in NAME_LIMITS.items():
        for parameter, value in parameters_of(module).items():
            if parameter in ("name", "serverName"):
                yield limit, str(value).replace("${token}", TOKEN)


@pytest.mark.parametrize(("limit", "name"), list(names()))
def test_names_are_within_the_limits_of_azure(limit: str, name: str) -> None:
    assert re.fullmatch(limit, name), name


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_secret_is_a_parameter_or_an_output(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"listKeys|listAccountSas|listServiceSas|AccountKey|SharedAccessSignature", text)
    for name in (*parsed(path).get("parameters", {}), *parsed(path).get("outputs", {})):
        assert not re.search(r"(?i)password|secret|accountkey|sastoken", name), name


def test_storage_takes_no_keys_and_nobody_anonymous() -> None:
    for path in TEMPLATES:
        text = path.read_text()
        if "Microsoft.Storage/storageAccounts@" not in text or " existing = " in text:
            continue
        assert "allowSharedKeyAccess: false" in text, path.name
        assert "allowBlobPublicAccess: false" in text, path.name
        assert "minimumTlsVersion: 'TLS1_2'" in text, path.name


def test_parameters_of_azd_are_parameters() -> None:
    given = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    assert set(given) <= set(main()["parameters"])


def test_hooks_of_azd_are_scripts_that_sh_takes() -> None:
    azure = (ROOT / "azure.yaml").read_text()
    scripts = re.findall(r"run: (\S+\.sh)", azure)
    assert scripts
    outputs = set(main()["outputs"])
    for script in scripts:
        subprocess.run([shutil.which("sh") or "sh", "-n", str(ROOT / script)], check=True)
        needed = set(re.findall(r'"\$\{([A-Z_]+):\?', (ROOT / script).read_text()))
        assert needed
        assert needed <= outputs, f"{script}: {needed - outputs}"


def test_telemetry_samples_neither_requests_nor_the_audit_trail() -> None:
    host = json.loads((ROOT / "host.json").read_text())
    sampling = host["logging"]["applicationInsights"]["samplingSettings"]
    assert set(sampling["excludedTypes"].split(";")) == {"Request", "Trace"}


PARAMETERS = sorted((INFRA / "parameters").glob("*.json"))


def test_there_are_parameters_for_a_trial_for_production_and_for_a_private_network() -> None:
    assert [path.stem for path in PARAMETERS] == ["private-network", "production", "trial"]


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.name)
def test_files_of_parameters_have_values_that_the_template_takes(path: Path) -> None:
    declared = main()["parameters"]
    given = json.loads(path.read_text())["parameters"]
    assert given["profile"]["value"] == {"private-network": "private"}.get(path.stem, path.stem)
    for name, parameter in given.items():
        kinds = {"string": str, "int": int, "bool": bool, "array": list}
        assert type(parameter["value"]) is kinds[declared[name]["type"]], name
        for decorator in declared[name]["decorators"]:
            match decorator:
                case {"type": "allowed", "argument": allowed}:
                    assert parameter["value"] in allowed, name
                case {"type": "min_value", "argument": least}:
                    assert parameter["value"] >= least, name
                case {"type": "max_value", "argument": most}:
                    assert parameter["value"] <= most, name


LONGEST = "e" * 32
"""The longest name of an environment that main.bicep takes."""
TYPE_LIMITS = {
    "Microsoft.Resources/resourceGroups": r"[\w().-]{1,90}",
    "Microsoft.Web/serverfarms": r"[A-Za-z0-9-]{1,60}",
    "Microsoft.Network/virtualNetworks": r"[A-Za-z0-9][\w.-]{0,62}\w",
    "Microsoft.OperationalInsights/workspaces": r"[A-Za-z0-9][A-Za-z0-9-]{2,61}[A-Za-z0-9]",
    "Microsoft.Insights/components": r"[^%&\\?/]{1,260}",
    "Microsoft.Insights/actionGroups": r"[^/]{1,260}",
    "Microsoft.Insights/metricAlerts": r"[^*#&+:<>?@%{}\\/]{1,260}",
    "Microsoft.Insights/scheduledQueryRules": r"[^*#&+:<>?@%{}\\/]{1,260}",
    "Microsoft.Network/privateEndpoints": r"[A-Za-z0-9][\w.-]{0,62}\w",
}


def given_names(path: Path) -> Iterator[tuple[str, str]]:
    """Type and name of each resource of a template whose name is written there or given by main.bicep."""
    module = {item["detail"]["path"]: name for name, item in main()["modules"].items()}
    given = parameters_of(module[str(path.relative_to(INFRA))]) if path.parent != INFRA else {}
    for kind, value in re.findall(
        r"^resource \w+ '([^@']+)@[^']+' = (?:if \(.*?\) )?\{(?:\n  parent: \w+)?\n  name: (.+)$",
        path.read_text(),
        re.MULTILINE,
    ):
        name = str(given.get(value, value)).rpartition(" : ")[2].strip("'")
        yield kind, name.replace("${token}", TOKEN).replace("${environmentName}", LONGEST)


def test_names_of_the_longest_environment_are_within_the_limits_of_azure() -> None:
    checked = {}
    for path in TEMPLATES:
        for kind, name in given_names(path):
            if kind in TYPE_LIMITS and "${" not in name:
                assert re.fullmatch(TYPE_LIMITS[kind], name), (path.name, kind, name)
                checked[kind] = name
    assert checked.keys() >= set(TYPE_LIMITS) - {"Microsoft.Network/privateEndpoints"}
    assert f"@maxLength({len(LONGEST)})\nparam environmentName" in (INFRA / "main.bicep").read_text()


def test_files_of_instances_are_never_deleted_by_the_life_cycle() -> None:
    rules = parsed(INFRA / "modules" / "storage.bicep")["variables"]
    containers = set(rules["containers"]["value"])
    deleting = [
        rule["value"]["definition"]
        for rule in rules.values()
        if isinstance(rule["value"], dict)
        and "definition" in rule["value"]
        and "delete" in rule["value"]["definition"]["actions"].get("baseBlob", {})
    ]
    assert [rule["filters"]["prefixMatch"] for rule in deleting] == [["operations/"]]
    assert "operations" in containers
    (days,) = [rule["actions"]["baseBlob"]["delete"]["daysAfterModificationGreaterThan"] for rule in deleting]
    assert days > Settings().operation_days


def test_tables_are_made_by_the_code_and_explained_to_operators() -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    assert "storageAccounts/tableServices" not in (INFRA / "modules" / "storage.bicep").read_text()
    names_of_tables = [
        *(state.CURSORS, state.INBOX_FAILURES, state.QUERY_TAGS, table.OPERATIONS, table.INDEX),
        *(followers.FOLLOWERS, events.DEAD_LETTERS),
    ]
    for name in names_of_tables:
        assert f"`{name}`" in page, name
