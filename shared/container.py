"""Builds the clients of Azure and SQL once per process, on first use.

Importing the app must touch no network and no secret; the first request that needs a client makes it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.errors import DependencyUnavailable
from shared.settings import settings

if TYPE_CHECKING:
    from azure.data.tables.aio import TableServiceClient

    from shared.blobs.store import BlobStore
    from shared.blobs.trail import Trail
    from shared.neighbours.fhir import FhirServer
    from shared.neighbours.publishers import Publisher
    from shared.operations.event_channel import EventChannel
    from shared.operations.followers import FollowerTable
    from shared.operations.queue import OperationQueue
    from shared.operations.state import State
    from shared.operations.table import OperationTable
    from shared.security.roles import Roles
    from shared.security.secrets import SecretStore
    from shared.security.tokens import TokenValidator
    from shared.sql.engine import Database


@cache
def database() -> Database:
    """The SQL database of ``DICOM_SQL_URL``."""
    from shared.sql.engine import Database

    return Database(settings().sql_url, access_token=_sql_token)


_SQL_SCOPE = "https://database.windows.net/.default"


def _sql_token() -> str:
    """An access token for Azure SQL; the library keeps it until shortly before it expires."""
    return str(_blocking_credential().get_token(_SQL_SCOPE).token)


@cache
def _blocking_credential() -> Any:
    """:func:`credential` for the threads of SQL, whose driver waits."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(managed_identity_client_id=settings().managed_identity_client_id or None)


@cache
def credential() -> Any:
    """The managed identity in Azure, a developer's own identity elsewhere."""
    from azure.identity.aio import DefaultAzureCredential

    client_id = settings().managed_identity_client_id
    return DefaultAzureCredential(managed_identity_client_id=client_id or None)


@cache
def blob_store() -> BlobStore:
    """The storage account of ``AzureWebJobsStorage``."""
    from shared.blobs.store import connect

    config = settings()
    connection = config.storage_connection
    return connect(connection, config.blob_service_uri, None if connection else credential())


@cache
def audit_trail() -> Trail:
    """The audit trail in the container ``audit``."""
    from shared.blobs.trail import Trail

    return Trail(blob_store())


@cache
def table_service() -> TableServiceClient:
    """Table Storage of the same account."""
    from azure.data.tables.aio import TableServiceClient

    config = settings()
    retries: dict[str, Any] = {
        "retry_total": 2,
        "retry_backoff_factor": 0.2,
        "connection_timeout": 5,
        "read_timeout": 30,
    }
    if config.storage_connection:
        return TableServiceClient.from_connection_string(config.storage_connection, **retries)
    return TableServiceClient(config.table_service_uri, credential=credential(), **retries)


@cache
def state() -> State:
    """Cursors and failures in Table Storage."""
    from shared.operations.state import State

    return State(table_service())


@cache
def followers() -> FollowerTable:
    """Cursors of followers of the change feed, and what they gave up, in Table Storage."""
    from shared.operations.followers import FollowerTable

    return FollowerTable(table_service())


@cache
def operation_table() -> OperationTable:
    """Status of long-running operations in Table Storage."""
    from shared.operations.table import OperationTable

    return OperationTable(table_service())


@cache
def operation_queue() -> OperationQueue:
    """The queues of long-running operations."""
    from shared.operations.queue import OperationQueue, create_service

    config = settings()
    connection = config.storage_connection
    return OperationQueue(
        create_service(connection, config.queue_service_uri, None if connection else credential())
    )


_publisher: list[Publisher] = []


async def event_publisher() -> Publisher:
    """What sends events to ``DICOM_EVENTS_ENDPOINT``."""
    if not _publisher:
        from shared.neighbours.publishers import EventGridTopic, Webhook

        config = settings()
        endpoint = config.events_endpoint
        secret = await neighbour_secret(config.events_secret)
        if config.events_target == "Webhook":
            check_neighbour_url("DICOM_EVENTS_ENDPOINT", endpoint)
            _publisher.append(Webhook(endpoint, secret, config.host_name))
        else:
            as_whom = secret or credential()
            _publisher.append(EventGridTopic(endpoint, as_whom, config.events_schema == "CloudEvents"))
    return _publisher[0]


@cache
def fhir_server() -> FhirServer:
    """The FHIR server of ``DICOM_FHIR_URL``. Raises DependencyUnavailable where its URL is not safe."""
    from shared.neighbours.fhir import FhirServer

    url = settings().fhir_url.rstrip("/")
    check_neighbour_url("DICOM_FHIR_URL", url)
    return FhirServer(url, _fhir_token)


async def _fhir_token() -> str:
    """A bearer token: a secret, or one of the app's identity, which is never shown without encryption."""
    config = settings()
    if config.fhir_secret:
        return await neighbour_secret(config.fhir_secret)
    if config.fhir_url.startswith("http://"):
        return ""
    scope = config.fhir_scope or f"{config.fhir_url.rstrip('/')}/.default"
    return str((await credential().get_token(scope)).token)


async def neighbour_secret(name: str) -> str:
    """The secret ``name``, or nothing where no name is given. Raises DependencyUnavailable."""
    from shared.security.secrets import SecretNotFound

    if not name:
        return ""
    try:
        return await secret_store().read(name)
    except SecretNotFound as error:
        raise DependencyUnavailable(f"The secret store has no secret {name}.") from error


def check_neighbour_url(setting: str, url: str) -> None:
    """Patient data and tokens travel encrypted, except to this very machine. Raises DependencyUnavailable."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        return
    raise DependencyUnavailable(f"{setting} must be an https URL.")


@cache
def event_channel() -> EventChannel | None:
    """Azure Web PubSub, or the development host's; None where there is neither: events are fetched then."""
    config = settings()
    if not (config.web_pubsub_connection or config.web_pubsub_endpoint):
        return None
    from shared.operations import event_channel as channel

    connection = config.web_pubsub_connection
    return channel.connect(connection, config.web_pubsub_endpoint, None if connection else credential())


@cache
def tokens() -> TokenValidator:
    """What validates access tokens: those of ``DICOM_AUTH_AUTHORITY``."""
    from shared.security.tokens import TokenValidator

    config = settings()
    audiences = [part.strip() for part in config.auth_audience.split(",") if part.strip()]
    return TokenValidator(config.auth_authority, audiences, config.auth_tenant, config.auth_scope)


@cache
def roles() -> Roles:
    """The roles of ``DICOM_ROLES_FILE``, a path relative to the app's folder."""
    from shared.security.roles import Roles

    return Roles.load(Path(__file__).parents[1] / settings().roles_file)


@cache
def secret_store() -> SecretStore:
    """Azure Key Vault where ``DICOM_KEY_VAULT_URI`` names one, else an encrypted folder of this machine.

    Raises DependencyUnavailable in Azure without a vault: instances share no folder there.
    """
    from shared.security import secrets

    config = settings()
    if config.key_vault_uri:
        return secrets.key_vault(config.key_vault_uri, credential())
    if config.azure_instance_id:
        raise DependencyUnavailable("The server has no secret store: DICOM_KEY_VAULT_URI is not set.")
    return secrets.EncryptedFolder(Path(config.secrets_folder), config.secrets_key)
