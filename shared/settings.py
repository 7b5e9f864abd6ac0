"""Typed settings, read from the environment (Azure Functions application settings).

The table of all settings is ``docs/settings.md``; a test compares it with this class.
"""

from __future__ import annotations

from functools import cache
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One attribute a setting; the alias is the name of the application setting."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=True)

    storage_connection: str = Field("", alias="AzureWebJobsStorage")
    blob_service_uri: str = Field("", alias="AzureWebJobsStorage__blobServiceUri")
    table_service_uri: str = Field("", alias="AzureWebJobsStorage__tableServiceUri")
    queue_service_uri: str = Field("", alias="AzureWebJobsStorage__queueServiceUri")
    managed_identity_client_id: str = Field("", alias="AzureWebJobsStorage__clientId")
    sql_url: str = Field("sqlite:///.data/dicom.db", alias="DICOM_SQL_URL")
    insights_connection: str = Field("", alias="APPLICATIONINSIGHTS_CONNECTION_STRING")
    otlp_endpoint: str = Field("", alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    public_base_url: str = Field("", alias="DICOM_PUBLIC_BASE_URL")
    max_request_bytes: int = Field(104_857_600, alias="FUNCTIONS_REQUEST_BODY_SIZE_LIMIT", gt=0)
    azure_instance_id: str = Field("", alias="WEBSITE_INSTANCE_ID")
    auth_authority: str = Field("", alias="DICOM_AUTH_AUTHORITY")
    auth_audience: str = Field("", alias="DICOM_AUTH_AUDIENCE")
    auth_tenant: str = Field("", alias="DICOM_AUTH_TENANT")
    auth_scope: str = Field("", alias="DICOM_AUTH_SCOPE")
    auth_anonymous: bool = Field(False, alias="DICOM_AUTH_ANONYMOUS")
    audit: bool = Field(True, alias="DICOM_AUDIT")
    audit_container: bool = Field(False, alias="DICOM_AUDIT_CONTAINER")
    roles_file: str = Field("roles.json", alias="DICOM_ROLES_FILE")
    cleanup_delay_seconds: int = Field(300, alias="DICOM_CLEANUP_DELAY_SECONDS", ge=0)
    operation_days: int = Field(30, alias="DICOM_OPERATION_DAYS", ge=1)
    orphan_grace_seconds: int = Field(3600, alias="DICOM_ORPHAN_GRACE_SECONDS", ge=0)
    cache_bytes: int = Field(10_737_418_240, alias="DICOM_CACHE_BYTES", ge=0)
    key_vault_uri: str = Field("", alias="DICOM_KEY_VAULT_URI")
    secrets_folder: str = Field(".data/secrets", alias="DICOM_SECRETS_FOLDER")
    secrets_key: str = Field("", alias="DICOM_SECRETS_KEY")
    web_pubsub_endpoint: str = Field("", alias="DICOM_WEB_PUBSUB_ENDPOINT")
    web_pubsub_connection: str = Field("", alias="DICOM_WEB_PUBSUB_CONNECTION")
    workitem_event_days: int = Field(7, alias="DICOM_WORKITEM_EVENT_DAYS", ge=1)
    workitem_days: int = Field(0, alias="DICOM_WORKITEM_DAYS", ge=0)
    follower_hold_seconds: float = Field(60, alias="DICOM_FOLLOWER_HOLD_SECONDS", gt=0)
    events_endpoint: str = Field("", alias="DICOM_EVENTS_ENDPOINT")
    events_target: Literal["EventGrid", "Webhook"] = Field("EventGrid", alias="DICOM_EVENTS_TARGET")
    events_schema: Literal["CloudEvents", "EventGrid"] = Field("CloudEvents", alias="DICOM_EVENTS_SCHEMA")
    events_secret: str = Field("", alias="DICOM_EVENTS_SECRET")
    fhir_url: str = Field("", alias="DICOM_FHIR_URL")
    fhir_version: Literal["R4", "R5"] = Field("R4", alias="DICOM_FHIR_VERSION")
    fhir_scope: str = Field("", alias="DICOM_FHIR_SCOPE")
    fhir_secret: str = Field("", alias="DICOM_FHIR_SECRET")
    fhir_partition: str = Field("Microsoft.Default", alias="DICOM_FHIR_PARTITION")
    fhir_patient_system: str = Field("", alias="DICOM_FHIR_PATIENT_SYSTEM")
    fhir_use_issuer: bool = Field(False, alias="DICOM_FHIR_USE_ISSUER")
    fhir_enforce_validation: bool = Field(False, alias="DICOM_FHIR_ENFORCE_VALIDATION")
    fhir_ignore_json_parsing_errors: bool = Field(False, alias="DICOM_FHIR_IGNORE_JSON_PARSING_ERRORS")
    azure_host_name: str = Field("", alias="WEBSITE_HOSTNAME")
    storage_hosts: str = Field(
        "*.blob.core.windows.net *.blob.core.usgovcloudapi.net *.blob.core.chinacloudapi.cn "
        "*.blob.storage.azure.net",
        alias="DICOM_STORAGE_HOSTS",
    )

    @property
    def host_name(self) -> str:
        """The host that clients know the server by."""
        return urlsplit(self.public_base_url).netloc or self.azure_host_name or "localhost"


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()  # type: ignore[call-arg]
