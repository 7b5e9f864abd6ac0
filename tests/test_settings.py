"""``docs/settings.md`` has every setting the code reads, with its default, and no other."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.settings import Settings
from tests.app_functions import all_functions

ROOT = Path(__file__).resolve().parents[1]
TEST_ONLY = {"DICOM_FAULT", "DICOM_FAULT_FILE"}
NOT_NEEDED_TO_START = {
    "AzureWebJobsStorage__blobServiceUri",
    "AzureWebJobsStorage__tableServiceUri",
    "AzureWebJobsStorage__queueServiceUri",
    "AzureWebJobsStorage__clientId",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "DICOM_PUBLIC_BASE_URL",
    "WEBSITE_INSTANCE_ID",
    "DICOM_AUDIT",
    "DICOM_AUDIT_CONTAINER",
    "DICOM_AUTH_AUTHORITY",
    "DICOM_AUTH_AUDIENCE",
    "DICOM_AUTH_TENANT",
    "DICOM_AUTH_SCOPE",
    "DICOM_ROLES_FILE",
    "DICOM_CLEANUP_DELAY_SECONDS",
    "DICOM_KEY_VAULT_URI",
    "DICOM_SECRETS_FOLDER",
    "DICOM_SECRETS_KEY",
    "DICOM_STORAGE_HOSTS",
    "DICOM_WEB_PUBSUB_ENDPOINT",
    "DICOM_WEB_PUBSUB_CONNECTION",
    "DICOM_WORKITEM_EVENT_DAYS",
    "DICOM_WORKITEM_DAYS",
    "DICOM_FOLLOWER_HOLD_SECONDS",
    "DICOM_EVENTS_ENDPOINT",
    "DICOM_EVENTS_TARGET",
    "DICOM_EVENTS_SCHEMA",
    "DICOM_EVENTS_SECRET",
    "WEBSITE_HOSTNAME",
    "DICOM_FHIR_URL",
    "DICOM_FHIR_VERSION",
    "DICOM_FHIR_SCOPE",
    "DICOM_FHIR_SECRET",
    "DICOM_FHIR_PARTITION",
    "DICOM_FHIR_PATIENT_SYSTEM",
    "DICOM_FHIR_USE_ISSUER",
    "DICOM_FHIR_ENFORCE_VALIDATION",
    "DICOM_FHIR_IGNORE_JSON_PARSING_ERRORS",
    "DICOM_ORPHAN_GRACE_SECONDS",
    "DICOM_OPERATION_DAYS",
    "DICOM_CACHE_BYTES",
}


def documented(section: str) -> dict[str, str]:
    """The settings of a section's table and their second column."""
    text = (ROOT / "docs" / "settings.md").read_text()
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `([^`]+)` \|([^|]*)\|", body, re.MULTILINE)
    return {name: value.strip().strip("`") for name, value in rows}


def environment_reads() -> Iterator[str]:
    """Names the app takes from ``os.environ`` itself; each must be a literal."""
    for path in [ROOT / "function_app.py", *ROOT.glob("functions/*.py"), *ROOT.glob("shared/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=owner, attr="get"), args=[name, *_]):
                    pass
                case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr="getenv"), args=[name, *_]):
                    owner = ast.parse("os.environ", mode="eval").body
                case ast.Subscript(value=owner, slice=name):
                    pass
                case _:
                    continue
            if ast.unparse(owner) == "os.environ":
                assert isinstance(name, ast.Constant), f"{path}: {ast.unparse(node)}"
                yield str(name.value)


def bound() -> set[str]:
    """Settings that triggers name by ``%NAME%`` or as a connection."""
    found = set()
    for function in all_functions():
        found |= set(re.findall("%([^%]+)%", json.dumps(function.binding)))
        if "connection" in function.binding:
            found.add(str(function.binding["connection"]))
    return found


def sample() -> dict[str, str]:
    values: dict[str, str] = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]
    return values


def test_every_setting_the_app_reads_is_documented_and_no_other() -> None:
    aliases = {str(field.alias) for field in Settings.model_fields.values()}
    read = aliases | set(environment_reads()) | bound()
    assert set(documented("Read by the app")) == read - TEST_ONLY


def test_documented_defaults_are_the_codes() -> None:
    stated = documented("Read by the app")
    for field in Settings.model_fields.values():
        assert stated[str(field.alias)] == str(field.default), field.alias


def test_settings_for_tests_are_mentioned_as_such() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"`{name}`" in text for name in TEST_ONLY)
    assert not TEST_ONLY & set(sample())


def test_the_sample_holds_what_a_start_needs() -> None:
    assert set(documented("Read by the app")) - NOT_NEEDED_TO_START <= set(sample())


def test_every_setting_of_the_sample_is_documented() -> None:
    platform = documented("Read by the platform")
    assert set(sample()) <= set(documented("Read by the app")) | set(platform)
    assert platform == {name: sample()[name] for name in platform}


@pytest.mark.parametrize(
    "name",
    [
        "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT",
        "DICOM_CLEANUP_DELAY_SECONDS",
        "DICOM_ORPHAN_GRACE_SECONDS",
        "DICOM_CACHE_BYTES",
    ],
)
@pytest.mark.parametrize("value", ["-1", "many"])
def test_a_value_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        Settings()  # type: ignore[call-arg]
