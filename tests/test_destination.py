"""Destinations: what is refused before anything is sent, and how failures of a container are told."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import AsyncHttpTransport
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from azure.storage.blob.aio import BlobServiceClient

from shared.blobs import destination
from shared.blobs.destination import Destination, open_destination, parse
from shared.blobs.store import BLOCK
from shared.errors import Conflict, DependencyUnavailable, InvalidRequest
from shared.settings import settings

SAS = "sv=2024-01-01&sr=c&sig=c2VjcmV0"
GOOD = f"https://account.blob.core.windows.net/exports?{SAS}"
KEY = "c2VjcmV0"
CONNECTION = (
    f"DefaultEndpointsProtocol=https;AccountName=account;AccountKey={KEY};EndpointSuffix=core.windows.net"
)


# --- what names a container ----------------------------------------------------------------------------


def test_a_uri_with_a_sas_is_split_into_what_may_be_shown_and_the_secret() -> None:
    address = parse({"blobContainerUri": GOOD})
    assert (address.uri, address.container, address.sas) == (
        "https://account.blob.core.windows.net/exports",
        "exports",
        SAS,
    )
    assert not address.uses_identity


def test_names_of_settings_are_matched_without_regard_to_case_as_the_ancestor_does() -> None:
    assert parse({"BlobContainerUri": GOOD, "connectionString": None, "UseManagedIdentity": False}).sas == SAS


def test_a_connection_string_names_account_and_container() -> None:
    address = parse({"connectionString": CONNECTION, "blobContainerName": "exports"})
    assert address.uri == "https://account.blob.core.windows.net/exports"
    assert (address.connection, address.sas) == (CONNECTION, "")


def test_the_managed_identity_opens_a_uri_without_a_sas() -> None:
    address = parse({"blobContainerUri": GOOD.partition("?")[0], "useManagedIdentity": True})
    assert address.uses_identity


def test_the_emulators_uris_have_the_account_in_the_path() -> None:
    address = parse({"blobContainerUri": f"http://127.0.0.1:10000/devstoreaccount1/exports?{SAS}"})
    assert address.container == "exports"


REFUSED = {
    "nothing": {},
    "both": {"blobContainerUri": GOOD, "connectionString": CONNECTION, "blobContainerName": "exports"},
    "unknown setting": {"blobContainerUri": GOOD, "folder": "x"},
    "setting twice": {"blobContainerUri": GOOD, "BlobContainerUri": GOOD},
    "no string": {"blobContainerUri": 1},
    "no boolean": {"blobContainerUri": GOOD, "useManagedIdentity": "true"},
    "name with a URI": {"blobContainerUri": GOOD, "blobContainerName": "exports"},
    "http": {"blobContainerUri": GOOD.replace("https", "http")},
    "file": {"blobContainerUri": f"file:///etc/passwd?{SAS}"},
    "no scheme": {"blobContainerUri": f"account.blob.core.windows.net/exports?{SAS}"},
    "ftp on this machine": {"blobContainerUri": f"ftp://127.0.0.1/account/exports?{SAS}"},
    "other host": {"blobContainerUri": f"https://example.org/exports?{SAS}"},
    "address of a metadata service": {"blobContainerUri": f"https://169.254.169.254/exports?{SAS}"},
    "host that ends alike": {"blobContainerUri": f"https://evilblob.core.windows.net/exports?{SAS}"},
    "host that begins alike": {
        "blobContainerUri": f"https://account.blob.core.windows.net.example.org/exports?{SAS}"
    },
    "userinfo": {"blobContainerUri": f"https://account.blob.core.windows.net@example.org/exports?{SAS}"},
    "userinfo before": {"blobContainerUri": f"https://x:y@account.blob.core.windows.net/exports?{SAS}"},
    "fragment": {"blobContainerUri": f"{GOOD}#x"},
    "bad port": {"blobContainerUri": f"https://account.blob.core.windows.net:x/exports?{SAS}"},
    "bad address": {"blobContainerUri": f"https://[::1/exports?{SAS}"},
    "newline": {"blobContainerUri": GOOD + "\nHost: x"},
    "no container": {"blobContainerUri": f"https://account.blob.core.windows.net?{SAS}"},
    "blob": {"blobContainerUri": f"https://account.blob.core.windows.net/exports/folder?{SAS}"},
    "container name": {"blobContainerUri": f"https://account.blob.core.windows.net/Exports!?{SAS}"},
    "dots": {"blobContainerUri": f"https://account.blob.core.windows.net/..?{SAS}"},
    "no SAS": {"blobContainerUri": GOOD.partition("?")[0]},
    "query that is no SAS": {"blobContainerUri": GOOD.partition("?")[0] + "?x=1"},
    "SAS and identity": {"blobContainerUri": GOOD, "useManagedIdentity": True},
    "identity at another host": {
        "blobContainerUri": "https://example.org/exports",
        "useManagedIdentity": True,
    },
    "connection without container": {"connectionString": CONNECTION},
    "connection and identity": {
        "connectionString": CONNECTION,
        "blobContainerName": "exports",
        "useManagedIdentity": True,
    },
    "no connection string": {"connectionString": "hello", "blobContainerName": "exports"},
    "connection without account": {"connectionString": "AccountKey=x", "blobContainerName": "exports"},
    "connection without key": {
        "connectionString": "BlobEndpoint=https://account.blob.core.windows.net",
        "blobContainerName": "exports",
    },
    "connection over http": {
        "connectionString": CONNECTION.replace("=https", "=http"),
        "blobContainerName": "exports",
    },
    "connection to another host": {
        "connectionString": f"BlobEndpoint=https://example.org;SharedAccessSignature={SAS}",
        "blobContainerName": "exports",
    },
    "connection with another suffix": {
        "connectionString": CONNECTION.replace("core.windows.net", "example.org"),
        "blobContainerName": "exports",
    },
    "connection and bad container": {"connectionString": CONNECTION, "blobContainerName": "../x"},
    "too long": {"blobContainerUri": GOOD + "x" * 5000},
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED.keys())
def test_a_malformed_or_unsafe_destination_is_refused_in_one_sentence_that_quotes_nothing(
    given: dict[str, Any],
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(given)
    said = str(raised.value)
    assert re.fullmatch(r"[^.]+(\.\s[^.]+)*\.", said.replace("studies?", "")), said
    for secret in (KEY, "example.org", "169.254", "passwd", "hello"):
        assert secret not in said


def test_this_machine_is_no_destination_in_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBSITE_INSTANCE_ID", "x")
    settings.cache_clear()
    try:
        for given in (
            {"blobContainerUri": f"http://127.0.0.1:10000/devstoreaccount1/exports?{SAS}"},
            {"connectionString": "UseDevelopmentStorage=true", "blobContainerName": "exports"},
        ):
            with pytest.raises(InvalidRequest):
                parse(given)
    finally:
        settings.cache_clear()


def test_further_hosts_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_STORAGE_HOSTS", "storage.hospital.example *.blob.core.windows.net")
    settings.cache_clear()
    try:
        assert parse({"blobContainerUri": f"https://storage.hospital.example/exports?{SAS}"}).sas == SAS
    finally:
        settings.cache_clear()


# --- a container ---------------------------------------------------------------------------------------


@pytest.fixture
async def container(azurite: Any) -> AsyncIterator[Any]:
    async with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        yield await service.create_container(f"exports-{uuid.uuid4().hex[:12]}")


def sas_of(container: Any, permission: str = "rcw", hours: float = 1) -> str:
    return generate_container_sas(
        container.account_name,
        container.container_name,
        account_key=container.credential.account_key,
        permission=ContainerSasPermissions.from_string(permission),
        start=datetime.now(UTC) - timedelta(days=1),
        expiry=datetime.now(UTC) + timedelta(hours=hours),
    )


def opened(container: Any, permission: str = "cw", hours: float = 1) -> Destination:
    sas = sas_of(container, permission, hours)
    return open_destination(parse({"blobContainerUri": f"{container.url}?{sas}"}), None)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def read(container: Any, name: str) -> bytes:
    data: bytes = await (await container.download_blob(name)).readall()
    return data


@pytest.mark.parametrize(
    "sizes", [[], [0], [5], [3, 4], [BLOCK], [BLOCK + 1], [BLOCK - 1, 2, BLOCK, 3 * BLOCK]]
)
async def test_what_is_written_is_what_was_given(container: Any, sizes: list[int]) -> None:
    data = [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]
    target = opened(container)
    assert await target.upload("a/b", pieces(*data), "application/dicom")
    assert await read(container, "a/b") == b"".join(data)
    properties = await container.get_blob_client("a/b").get_blob_properties()
    assert properties.content_settings.content_type == "application/dicom"
    await target.close()


@pytest.mark.parametrize("size", [10, BLOCK + 1])
async def test_of_those_that_replace_what_was_begun_the_first_one_wins(container: Any, size: int) -> None:
    target = opened(container)
    begun = await target.begin("a")
    assert await read(container, "a") == b""
    assert await target.upload("a", pieces(b"1" * size), "text/plain", begun)
    assert not await target.upload("a", pieces(b"2" * size), "text/plain", begun)
    assert await read(container, "a") == b"1" * size
    assert await target.upload("a", pieces(b"3" * size), "text/plain")
    assert await read(container, "a") == b"3" * size
    await target.close()


async def test_of_two_writers_of_a_large_blob_each_writes_all_of_it_or_is_told_to_try_again(
    container: Any,
) -> None:
    target = opened(container)

    async def slow(byte: bytes) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield byte * BLOCK
            await asyncio.sleep(0.05)

    results = await asyncio.gather(
        *(target.upload("a", slow(byte), "text/plain") for byte in (b"1", b"2", b"3")), return_exceptions=True
    )
    assert any(result is True for result in results)
    assert all(result is True or isinstance(result, DependencyUnavailable) for result in results), results
    data = await read(container, "a")
    assert len(data) == 3 * BLOCK
    assert len(set(data)) == 1
    await target.close()


async def test_a_source_that_fails_leaves_nothing_and_its_error_comes_through(container: Any) -> None:
    target = opened(container)

    async def broken() -> AsyncIterator[bytes]:
        yield b"1" * BLOCK
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        await target.upload("a", broken(), "text/plain")
    assert [blob.name async for blob in container.list_blobs()] == []
    await target.close()


@pytest.mark.parametrize(("permission", "hours"), [("r", 1), ("cw", -1)])
async def test_a_credential_that_does_not_do_is_told_without_it(
    container: Any, permission: str, hours: float
) -> None:
    target = opened(container, permission, hours)
    with pytest.raises(Conflict, match="credential") as raised:
        await target.begin("x")
    assert "sig" not in str(raised.value)
    assert raised.value.__cause__ is None  # nor in what a traceback would quote
    await target.close()


async def test_a_container_that_is_not_there_is_told(container: Any) -> None:
    target = opened(container)
    await container.delete_container()
    with pytest.raises(Conflict, match="does not exist"):
        await target.begin("x")
    await target.close()


async def test_a_host_that_does_not_answer_is_an_unavailable_dependency() -> None:
    address = parse({"blobContainerUri": f"http://127.0.0.1:9/account/exports?{SAS}"})
    target = open_destination(address, None, retry_total=0)
    started = time.monotonic()
    with pytest.raises(DependencyUnavailable):
        await target.begin("x")
    assert time.monotonic() - started < 30
    await target.close()


# --- the identity, and redirects ----------------------------------------------------------------------


class _Identity:
    def __init__(self) -> None:
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken("the-token", int(time.time()) + 3600)


class _Kept(AsyncHttpTransport):  # type: ignore[type-arg]
    """A transport that keeps requests and fails, at the end of the real pipeline."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def __aenter__(self) -> _Kept:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def send(self, request: Any, **_: Any) -> Any:
        from azure.core.exceptions import ServiceRequestError

        self.requests.append(request)
        raise ServiceRequestError("kept")


async def test_the_identitys_token_for_storage_goes_to_the_container_over_https() -> None:
    identity, transport = _Identity(), _Kept()
    address = parse({"blobContainerUri": GOOD.partition("?")[0], "useManagedIdentity": True})
    target = open_destination(address, identity, transport=transport, retry_total=0, retry_policy=None)
    with pytest.raises(DependencyUnavailable):
        await target.upload("a", pieces(b"1"), "text/plain")
    assert identity.scopes[:1] == ["https://storage.azure.com/.default"]
    request = transport.requests[0]
    assert request.url.startswith("https://account.blob.core.windows.net/exports/a")
    assert request.headers["Authorization"] == "Bearer the-token"


@pytest.fixture
def redirecting() -> Iterator[tuple[int, list[str]]]:
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seen.append(self.path)
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield port, seen
    server.shutdown()
    server.server_close()


async def test_a_redirect_is_not_followed(redirecting: tuple[int, list[str]]) -> None:
    port, seen = redirecting
    address = parse({"blobContainerUri": f"http://127.0.0.1:{port}/account/exports?{SAS}"})
    target = open_destination(address, None)
    with pytest.raises((Conflict, DependencyUnavailable)):
        await target.begin("x")
    assert seen
    assert not any("elsewhere" in path for path in seen)
    await target.close()


def test_hosts_of_the_default_setting_are_the_clouds_of_azure() -> None:
    assert destination.settings().storage_hosts.split()[0] == "*.blob.core.windows.net"
