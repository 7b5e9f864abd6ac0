"""The secret store: Key Vault through its real client over TLS, and the encrypted folder."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from shared import container
from shared.errors import DependencyUnavailable
from shared.security.secrets import EncryptedFolder, KeyVault, SecretNotFound, SecretStore, key_vault
from shared.settings import settings
from tests.key_vault import Identity, Vault, vault

SECRET = "sv=2024&sig=very-secret"


@pytest.fixture
async def key_vault_of(tmp_path: Path) -> AsyncIterator[tuple[Vault, KeyVault, Identity]]:
    identity = Identity()
    async with vault(tmp_path) as (server, transport):
        store = key_vault(server.uri, identity, transport=transport, retry_backoff_factor=0.01)
        yield server, store, identity


@pytest.fixture(params=["key vault", "folder", "folder with a given key"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SecretStore]:
    if request.param == "key vault":
        async with vault(tmp_path) as (server, transport):
            yield key_vault(server.uri, Identity(), transport=transport, retry_backoff_factor=0.01)
    else:
        given = Fernet.generate_key().decode() if "given" in request.param else ""
        yield EncryptedFolder(tmp_path / "secrets", given)


async def test_a_secret_is_kept_read_listed_and_gone_after_its_deletion(store: SecretStore) -> None:
    await store.save("export-1", SECRET)
    await store.save("export-2", "another")
    await store.save("export-1", SECRET + "!")
    assert await store.read("export-1") == SECRET + "!"
    listed = {name: saved async for name, saved in store.names()}
    assert listed.keys() == {"export-1", "export-2"}
    assert all(abs((datetime.now(UTC) - saved).total_seconds()) < 60 for saved in listed.values())
    await store.delete("export-1")
    await store.delete("export-1")
    with pytest.raises(SecretNotFound):
        await store.read("export-1")
    assert [name async for name, _ in store.names()] == ["export-2"]


async def test_names_that_would_be_paths_are_refused(store: SecretStore) -> None:
    for name in ("../key", "", "a/b", "a.b", "x" * 128):
        with pytest.raises(ValueError, match="letters"):
            await store.read(name)


# --- Key Vault -----------------------------------------------------------------------------------------


async def test_key_vaults_challenge_decides_on_scope_and_tenant_and_the_first_request_holds_no_secret(
    key_vault_of: tuple[Vault, KeyVault, Identity],
) -> None:
    server, store, identity = key_vault_of
    await store.save("export-1", SECRET)
    assert identity.scopes == [f"https://vault.test:{server.port}/.default"]
    assert identity.tenants == ["the-tenant"]
    (_, _, first_authorized, first_body), (method, path, authorized, body) = server.requests
    assert (first_authorized, first_body) == (False, "")
    assert (method, path, authorized) == ("PUT", "/secrets/export-1", True)
    assert SECRET in body
    assert server.secrets["export-1"]["tags"] == {"application": "dicom-server"}
    assert server.secrets["export-1"]["attributes"]["exp"] > datetime.now(UTC).timestamp() + 86400


async def test_a_deleted_secret_is_purged_from_key_vault(
    key_vault_of: tuple[Vault, KeyVault, Identity],
) -> None:
    server, store, _ = key_vault_of
    await store.save("export-1", SECRET)
    await store.delete("export-1")
    assert (server.secrets, server.deleted) == ({}, {})
    assert ("DELETE", "/deletedsecrets/export-1") in [(m, p) for m, p, _, _ in server.requests]


async def test_a_vault_that_is_protected_from_purging_keeps_the_deleted_secret_unreadable(
    key_vault_of: tuple[Vault, KeyVault, Identity],
) -> None:
    server, store, _ = key_vault_of
    server.purge_status = 403
    await store.save("export-1", SECRET)
    await store.delete("export-1")
    with pytest.raises(SecretNotFound):
        await store.read("export-1")


async def test_secrets_of_others_in_the_vault_are_not_listed(
    key_vault_of: tuple[Vault, KeyVault, Identity],
) -> None:
    server, store, _ = key_vault_of
    await store.save("export-1", SECRET)
    server.secrets["others"] = {"value": "x", "tags": None, "created": 1}
    assert [name async for name, _ in store.names()] == ["export-1"]


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_vault_that_fails_is_an_unavailable_dependency_and_the_error_holds_no_secret(
    key_vault_of: tuple[Vault, KeyVault, Identity], status: int
) -> None:
    server, store, _ = key_vault_of
    server.status = status
    with pytest.raises(DependencyUnavailable) as raised:
        await store.save("export-1", SECRET)
    assert SECRET not in str(raised.value)


async def test_a_vault_that_is_not_there_is_an_unavailable_dependency() -> None:
    store = key_vault("https://127.0.0.1:9", Identity(), retry_total=0)
    with pytest.raises(DependencyUnavailable):
        await store.read("export-1")
    await store.close()


async def test_a_server_that_asks_for_a_token_of_another_resource_gets_none(
    key_vault_of: tuple[Vault, KeyVault, Identity],
) -> None:
    server, store, identity = key_vault_of
    server.resource = "https://storage.azure.com"
    with pytest.raises(DependencyUnavailable):
        await store.read("export-1")
    assert identity.scopes == []


# --- the folder ----------------------------------------------------------------------------------------


async def test_files_and_key_are_readable_by_their_owner_alone_and_hold_no_plain_secret(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "secrets"
    await EncryptedFolder(folder).save("export-1", SECRET)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == ["export-1.secret", "key"]
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"very-secret" not in path.read_bytes()


def test_processes_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from shared.security.secrets import EncryptedFolder; "
        "asyncio.run(EncryptedFolder(Path(sys.argv[1])).save(sys.argv[2], sys.argv[2]))"
    )
    folder = tmp_path / "secrets"
    names = [f"export-{number}" for number in range(4)]
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), name], cwd=root) for name in names
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert [asyncio.run(EncryptedFolder(folder).read(name)) for name in names] == names


async def test_a_secret_of_another_key_is_as_good_as_gone(tmp_path: Path) -> None:
    await EncryptedFolder(tmp_path, Fernet.generate_key().decode()).save("export-1", SECRET)
    with pytest.raises(SecretNotFound):
        await EncryptedFolder(tmp_path, Fernet.generate_key().decode()).read("export-1")


async def test_a_folder_that_cannot_be_used_is_an_unavailable_dependency(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DependencyUnavailable):
        await EncryptedFolder(tmp_path / "file" / "secrets").save("export-1", SECRET)


# --- the choice ----------------------------------------------------------------------------------------


def test_in_azure_without_a_vault_there_is_no_secret_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSITE_INSTANCE_ID", "x")
    settings.cache_clear()
    container.secret_store.cache_clear()
    try:
        with pytest.raises(DependencyUnavailable, match="DICOM_KEY_VAULT_URI"):
            container.secret_store()
    finally:
        settings.cache_clear()
        container.secret_store.cache_clear()
