"""Blob containers outside of the server: how a client names one, and one into which files are exported.

What names a container comes from a client, so it is checked before anything is sent: the scheme is https
and the host a storage service's (``DICOM_STORAGE_HOSTS``), or the server would carry requests, and the token
of its own identity, to wherever somebody likes. Locally the emulator on loopback will do, too.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import BlobBlock, ContentSettings
from azure.storage.blob.aio import ContainerClient, LinearRetry

from shared.blobs.store import BLOCK, error_code
from shared.errors import Conflict, DependencyUnavailable, InvalidRequest
from shared.settings import settings

_NAMES = ("blobContainerUri", "blobContainerName", "connectionString", "useManagedIdentity")
_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*|\$web|\$root")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """Where a container is: ``uri`` without its SAS. ``connection`` and ``sas`` are secrets.

    Without either of them the app's own identity opens it.
    """

    uri: str
    container: str
    connection: str = ""
    sas: str = ""

    @property
    def uses_identity(self) -> bool:
        """Whether the app's own identity opens the container."""
        return not self.connection and not self.sas


def parse(given: Mapping[str, Any]) -> Address:
    """The container that the settings of a source or a destination of type ``azureblob`` name.

    Names are matched without regard to case, as the ancestor does. Raises InvalidRequest, whose message
    quotes nothing: any part may be a secret.
    """
    values = _values(given)
    identity = values.get("useManagedIdentity") or False
    uri, connection = values.get("blobContainerUri") or "", values.get("connectionString") or ""
    if bool(uri) == bool(connection):
        raise InvalidRequest("A container is named either by blobContainerUri or by connectionString.")
    if uri and values.get("blobContainerName"):
        raise InvalidRequest("blobContainerName goes with connectionString; blobContainerUri names its own.")
    if connection and identity:
        raise InvalidRequest("useManagedIdentity goes with blobContainerUri.")
    return (
        _of_uri(uri, identity) if uri else _of_connection(connection, values.get("blobContainerName") or "")
    )


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {name.lower(): name for name in _NAMES}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name.lower() not in known or known[name.lower()] in values:
            raise InvalidRequest(f"The settings of a container are {', '.join(_NAMES)}, each once.")
        name = known[name.lower()]
        kind = bool if name == "useManagedIdentity" else str
        if value is not None and not isinstance(value, kind):
            raise InvalidRequest(f"{name} must be a {'boolean' if kind is bool else 'string'}.")
        if isinstance(value, str) and (len(value) > _MOST_CHARACTERS or not value.isprintable()):
            raise InvalidRequest(f"{name} is too long or holds characters that do not belong there.")
        values[name] = value
    return values


def _of_uri(uri: str, identity: bool) -> Address:
    try:
        parts = urlsplit(uri.strip())
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidRequest("blobContainerUri is no URI.") from None
    if parts.fragment or parts.username is not None or parts.password is not None:
        raise InvalidRequest("blobContainerUri must be the URI of a container, with its SAS as the query.")
    _check_host(parts.scheme, host, "blobContainerUri")
    segments = parts.path.strip("/").split("/")
    account = [] if host not in _LOOPBACK else segments[:1]  # the emulator has the account in the path
    rest = segments[len(account) :]
    if len(rest) != 1 or _CONTAINER.fullmatch(rest[0]) is None or not all(map(_ACCOUNT.fullmatch, account)):
        raise InvalidRequest("blobContainerUri must name one container after the account, and nothing else.")
    if identity and parts.query:
        raise InvalidRequest("blobContainerUri has a SAS, so useManagedIdentity must not be true.")
    if not identity and "sig" not in parse_qs(parts.query):
        raise InvalidRequest("blobContainerUri needs a SAS, or useManagedIdentity must be true.")
    clean = f"{parts.scheme}://{parts.netloc}/{'/'.join(segments)}"
    return Address(clean, rest[0], sas=parts.query)


def _of_connection(connection: str, container: str) -> Address:
    if _CONTAINER.fullmatch(container) is None:
        raise InvalidRequest(
            "blobContainerName must be the name of a container: it goes with connectionString."
        )
    try:
        client = ContainerClient.from_connection_string(connection, container)
        parts = urlsplit(client.url)
        host, _ = parts.hostname or "", parts.port
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest("connectionString is no connection string of a storage account.") from None
    _check_host(parts.scheme, host, "connectionString")
    if client.credential is None and "sig" not in parse_qs(parts.query):
        raise InvalidRequest("connectionString needs an AccountKey or a SharedAccessSignature.")
    return Address(f"{parts.scheme}://{parts.netloc}{parts.path}", container, connection=connection)


def _check_host(scheme: str, host: str, name: str) -> None:
    config = settings()
    if host in _LOOPBACK and not config.azure_instance_id:
        if scheme in ("http", "https"):
            return
        raise InvalidRequest(f"{name} must be an http or https address on this machine.")
    if scheme != "https":
        raise InvalidRequest(f"{name} must be an https address.")
    if not any(fnmatchcase(host, pattern.lower()) for pattern in config.storage_hosts.split()):
        raise InvalidRequest(f"{name} is at a host that is not among those of DICOM_STORAGE_HOSTS.")


class Destination:
    """A container to write to. Every method raises DependencyUnavailable when it does not answer, and
    Conflict when it is not there or refuses what it was given: trying again will not help then."""

    def __init__(self, client: ContainerClient) -> None:
        self._client = client

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def begin(self, name: str) -> str:
        """Write an empty blob, which finds out whether blobs can be written at all; its entity tag."""
        async with _translated():
            written = await self._client.get_blob_client(name).upload_blob(b"", overwrite=True)
        return str(written["etag"])

    async def upload(
        self, name: str, chunks: AsyncIterator[bytes], content_type: str, instead_of: str = ""
    ) -> bool:
        """Write a blob of ``chunks``, replacing any of that name; nothing is visible before all is there.

        At most three blocks of :data:`BLOCK` are held. With ``instead_of``, an entity tag, only a blob that
        has it is replaced; False where there is none, so that of several writers the first one wins.
        """
        blob = self._client.get_blob_client(name)
        options: dict[str, Any] = {"content_settings": ContentSettings(content_type=content_type)}
        if instead_of:
            options |= {"etag": instead_of, "match_condition": MatchConditions.IfNotModified}
        blocks: list[BlobBlock] = []
        last = b""
        mine = secrets.token_hex(8)  # each of two writers at once commits blocks of its own alone
        async for piece in _pieces(chunks):
            if len(piece) < BLOCK and not blocks:
                last = piece
                break
            block = f"{mine}{len(blocks):06d}"
            async with _translated():
                await blob.stage_block(block, piece, length=len(piece))
            blocks.append(BlobBlock(block))
        try:
            async with _translated():
                if blocks:
                    await blob.commit_block_list(blocks, **options)
                else:
                    await blob.upload_blob(last, length=len(last), overwrite=True, **options)
        except _Modified:
            return False
        return True


class _Modified(Exception):
    """The blob is not the one that was to be replaced."""


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of a block; the last one is shorter."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size < BLOCK:
            continue
        data = b"".join(held)
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            yield data[start : start + BLOCK]
        rest = data[len(data) - len(data) % BLOCK :]
        held, size = ([rest], len(rest)) if rest else ([], 0)
    if held:
        yield b"".join(held)


@contextlib.asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Exceptions of the SDK in terms of this module; none of its messages goes on, they may quote a SAS."""
    try:
        yield
    except ResourceModifiedError:
        raise _Modified from None
    except ResourceNotFoundError:
        raise Conflict("The destination's container does not exist.") from None
    except ClientAuthenticationError:
        raise Conflict("The destination refuses the credential: it is wrong or has expired.") from None
    except HttpResponseError as error:
        status = error.status_code or 0
        if error_code(error) == "InvalidBlockList":  # another writer of the blob has just finished
            raise DependencyUnavailable("The destination is being written to by others.") from None
        if status == 403:
            raise Conflict("The destination refuses: the credential does not allow to write.") from None
        if status in (400, 404, 405, 409, 412, 415):
            raise Conflict(f"The destination refuses what is written to it (status {status}).") from None
        raise DependencyUnavailable("The destination is unavailable; try again later.") from None
    except (TimeoutError, AzureError, OSError):
        raise DependencyUnavailable("The destination is unavailable; try again later.") from None


def open_destination(address: Address, credential: Any, **options: Any) -> Destination:
    """A client of the container. ``credential`` is the app's identity, used where the address says so."""
    timing: dict[str, Any] = {"backoff": 0.5, "retry_total": 3, "random_jitter_range": 0.3}
    common: dict[str, Any] = {
        "max_single_put_size": BLOCK,
        "max_block_size": BLOCK,
        "retry_policy": LinearRetry(**timing),
        "connection_timeout": 5,
        "read_timeout": 60,
        "logging_enable": False,
        "permit_redirects": False,
    } | options
    if address.connection:
        client = ContainerClient.from_connection_string(address.connection, address.container, **common)
    else:
        uri = f"{address.uri}?{address.sas}" if address.sas else address.uri
        client = ContainerClient.from_container_url(
            uri, credential if address.uses_identity else None, **common
        )
    return Destination(client)
