"""The secret store: what only a running operation may know, such as the SAS of a container it writes to.

Two real ones: Azure Key Vault, and files encrypted with a key beside them for development. A secret is
written once, read by every worker and deleted when its operation ends. It is never in a queue message, a
table row or a log, and no error raised here holds one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.keyvault.secrets.aio import SecretClient
from cryptography.fernet import Fernet, InvalidToken

from shared.errors import DependencyUnavailable

EXPIRY = timedelta(days=90)
"""After it a secret that nobody deleted is of no use to anybody: Key Vault is told so, too."""

_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")  # what Key Vault allows
_TAG = {"application": "dicom-server"}
_KEY_FILE = "key"
_SUFFIX = ".secret"

T = TypeVar("T")


class SecretNotFound(Exception):
    """There is no secret of that name: it was deleted, because its operation has ended."""


class SecretStore(Protocol):
    """Secrets by name: letters, digits and hyphens."""

    async def save(self, name: str, value: str) -> None:
        """Keep ``value``, up to 25,000 bytes, under ``name``."""

    async def read(self, name: str) -> str:
        """The value. Raises SecretNotFound."""

    async def delete(self, name: str) -> None:
        """Make the value unreadable for ever; one that is gone already is fine."""

    def names(self) -> AsyncIterator[tuple[str, datetime]]:
        """Every secret this application keeps, and when it was saved."""

    async def close(self) -> None:
        """Close connections."""


# --- Azure Key Vault -----------------------------------------------------------------------------------


class KeyVault:
    """Secrets in an Azure Key Vault, reached with the app's identity.

    The identity needs get, list, set and delete on secrets, and purge where deleted secrets should not
    wait for the end of the vault's retention.
    """

    def __init__(self, client: SecretClient) -> None:
        self._client = client

    async def save(self, name: str, value: str) -> None:
        """As the protocol says."""
        expires = datetime.now(UTC) + EXPIRY
        _check(name)
        async with _translated():
            await self._client.set_secret(
                name, value, expires_on=expires, tags=_TAG, content_type="application/json"
            )

    async def read(self, name: str) -> str:
        """As the protocol says."""
        _check(name)
        async with _translated():
            return (await self._client.get_secret(name)).value or ""

    async def delete(self, name: str) -> None:
        """As the protocol says; purged at once where the vault and the identity's rights allow it."""
        _check(name)
        async with _translated():
            with contextlib.suppress(ResourceNotFoundError):
                await self._client.delete_secret(name)
            try:
                await self._client.purge_deleted_secret(name)
            except ResourceNotFoundError:
                return  # purged already, or the vault keeps no deleted secrets
            except HttpResponseError as error:
                if error.status_code not in (403, 409):  # protected from purging; or it is being purged
                    raise

    async def names(self) -> AsyncIterator[tuple[str, datetime]]:
        """As the protocol says; other applications' secrets in the vault are left out."""
        async with _translated():
            async for found in self._client.list_properties_of_secrets():
                if (found.tags or {}).get("application") == _TAG["application"] and found.name:
                    yield found.name, found.created_on or datetime.now(UTC)

    async def close(self) -> None:
        """As the protocol says."""
        await self._client.close()


def key_vault(uri: str, credential: Any, **options: Any) -> KeyVault:
    """The vault at ``uri``; few and fast retries, because requests and steps wait for it."""
    timing: dict[str, Any] = {"retry_total": 3, "retry_backoff_factor": 0.4, "connection_timeout": 5}
    return KeyVault(SecretClient(uri, credential, **(timing | {"read_timeout": 30} | options)))


@contextlib.asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except ResourceNotFoundError as error:
        raise SecretNotFound from error
    except HttpResponseError as error:
        if error.status_code in (401, 403):
            raise DependencyUnavailable("Key Vault refused the server's identity.") from error
        raise DependencyUnavailable("Key Vault is unavailable; try again later.") from error
    except (AzureError, OSError) as error:
        raise DependencyUnavailable("Key Vault is unavailable; try again later.") from error
    except ValueError as error:  # the client's word for a challenge that is not the vault's
        raise DependencyUnavailable("What answers at DICOM_KEY_VAULT_URI is no Key Vault.") from error


# --- a folder ------------------------------------------------------------------------------------------


class EncryptedFolder:
    """Secrets as encrypted files (Fernet: AES-128-CBC with HMAC-SHA256), for development.

    All processes of one machine share the folder. Its key lies in it, readable by its owner alone, unless
    ``key`` gives one: the encryption keeps secrets out of backups and searches, not from the owner.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        self._folder = folder
        self._key = key

    async def save(self, name: str, value: str) -> None:
        """As the protocol says."""
        await self._run(self._save, name, value)

    async def read(self, name: str) -> str:
        """As the protocol says."""
        return await self._run(self._read, name)

    async def delete(self, name: str) -> None:
        """As the protocol says."""
        await self._run(lambda: self._path(name).unlink(missing_ok=True))

    async def names(self) -> AsyncIterator[tuple[str, datetime]]:
        """As the protocol says."""
        for path in await self._run(lambda: sorted(self._folder.glob(f"*{_SUFFIX}"))):
            with contextlib.suppress(FileNotFoundError):
                yield path.name.removesuffix(_SUFFIX), datetime.fromtimestamp(path.stat().st_mtime, UTC)

    async def close(self) -> None:
        """Nothing is open."""

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            raise DependencyUnavailable("The folder of secrets cannot be used.") from error

    def _path(self, name: str) -> Path:
        _check(name)
        return self._folder / f"{name}{_SUFFIX}"

    def _save(self, name: str, value: str) -> None:
        token = self._cipher().encrypt(value.encode())
        _write_private(self._path(name), token, replace=True)

    def _read(self, name: str) -> str:
        try:
            return self._cipher().decrypt(self._path(name).read_bytes()).decode()
        except (FileNotFoundError, InvalidToken) as error:
            raise SecretNotFound from error

    def _cipher(self) -> Fernet:
        if self._key:
            return Fernet(self._key)
        path = self._folder / _KEY_FILE
        if not path.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(path, Fernet.generate_key(), replace=False)
        return Fernet(path.read_bytes())


def _write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a whole file that its owner alone may read. Of several writers without ``replace`` the first
    wins, and nobody ever sees a part of a file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if replace:
            temporary.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError("A secret's name is letters, digits and hyphens.")
