"""The blob store on real storage, with a shared key and with a token, and on storage that fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import AioHttpTransport
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from devhost.azurite import Azurite, Installation
from shared.blobs import names
from shared.blobs.store import BLOCK, BlobNotFound, BlobStore, connect
from shared.errors import DependencyUnavailable
from tests.conftest import ROOT

NAME = "0ab/Microsoft.Default/1.2/1.2.3/1.2.3.4~/v.dcm"


@pytest.fixture
async def blobs(azurite: Azurite) -> AsyncIterator[BlobStore]:
    store = connect(azurite.connection_string, "", None)
    yield store
    await store.close()


async def gathered(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "inbox/a folder/é+%41&b=c#d?.dcm"])
async def test_a_range_holds_the_bytes_of_the_blob(blobs: BlobStore, name: str) -> None:
    data = bytes(range(256)) * 8
    await blobs.upload(names.INBOX_FAILED, name, data, {})
    assert await blobs.read(names.INBOX_FAILED, name, 0, 2048) == data
    assert await blobs.read(names.INBOX_FAILED, name, 100, 1) == data[100:101]
    assert await blobs.read(names.INBOX_FAILED, name, 2000, 500) == data[2000:]
    assert await blobs.read(names.INBOX_FAILED, name, 5, 0) == b""
    assert await gathered(blobs.stream(names.INBOX_FAILED, name, 7, 41)) == [data[7:48]]
    assert b"".join(await gathered(blobs.stream(names.INBOX_FAILED, name, 7))) == data[7:]
    await blobs.delete(names.INBOX_FAILED, name)


async def test_what_is_not_there_is_told_apart_from_what_cannot_be_reached(blobs: BlobStore) -> None:
    with pytest.raises(BlobNotFound):
        await blobs.read(names.INBOX_FAILED, "no/such.dcm", 0, 10)
    with pytest.raises(BlobNotFound):
        await gathered(blobs.stream(names.INBOX_FAILED, "no/such.dcm", 0, 3 * BLOCK))
    with pytest.raises(DependencyUnavailable, match="lacks a container"):
        await blobs.read("no-such-container", "a.dcm", 0, 10)


async def test_a_wrong_key_is_reported_as_a_refused_credential(azurite: Azurite) -> None:
    key = base64.b64encode(bytes(64)).decode()
    parts = [p for p in azurite.connection_string.split(";") if p and not p.startswith("AccountKey")]
    store = connect(";".join([*parts, f"AccountKey={key}"]), "", None)
    try:
        with pytest.raises(DependencyUnavailable, match="refused the server's credential"):
            await store.read(names.INBOX_FAILED, "a.dcm", 0, 10)
    finally:
        await store.close()


async def test_large_ranges_come_in_order_and_some_blocks_ahead(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{uuid.uuid4().hex}.dcm"
    pieces = [bytes([number]) * BLOCK for number in range(7)]
    for number, piece in enumerate(pieces):
        await blobs.stage_block(names.INBOX_FAILED, name, number, piece)
    await blobs.commit_blocks(names.INBOX_FAILED, name, len(pieces), {})
    reading, most, begun = 0, 0, 0
    read = blobs.read

    async def counted(*arguments: Any) -> bytes:
        nonlocal reading, most, begun
        reading, begun = reading + 1, begun + 1
        most = max(most, reading)
        try:
            if begun % 2 == 0:
                await asyncio.sleep(0.05)  # later blocks arrive before earlier ones
            return await read(*arguments)
        finally:
            reading -= 1

    monkeypatch.setattr(blobs, "read", counted)
    length = 6 * BLOCK + 5
    got = await gathered(blobs.stream(names.INBOX_FAILED, name, 10, length))
    assert b"".join(got) == b"".join(pieces)[10 : 10 + length]
    assert most == 2
    begun = 0
    async with aclosing(blobs.stream(names.INBOX_FAILED, name, 0, 7 * BLOCK)) as chunks:  # type: ignore[type-var]
        assert await anext(chunks) == pieces[0]
        await asyncio.sleep(0)
        assert begun == 3
    assert reading == 0, "what was read ahead is given up with its reader"
    await blobs.delete(names.INBOX_FAILED, name)


# --- storage that fails ------------------------------------------------------------------------------


def answers(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def failing(script: list[bytes]) -> AsyncIterator[tuple[BlobStore, list[dict[str, str]]]]:
    """A store on a server that answers one request after the other from ``script``; and their headers."""
    requests: list[dict[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        requests.append(dict(line.lower().split(": ", 1) for line in head[1:] if line))
        writer.write(script[len(requests) - 1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    key = base64.b64encode(bytes(64)).decode()
    store = connect(f"AccountName=a;AccountKey={key};BlobEndpoint=http://127.0.0.1:{port}/a;", "", None)
    try:
        yield store, requests
    finally:
        await store.close()
        server.close()


async def test_a_read_is_tried_again_after_a_server_error_and_after_a_body_that_was_cut_off() -> None:
    script = [
        answers("503 Server Busy", b""),
        answers("206 Partial Content", b"half", length=8),
        answers("206 Partial Content", b"complete"),
    ]
    async with failing(script) as (store, requests):
        assert await store.read("dicom", "a/b.dcm", 100, 8) == b"complete"
    assert [request["x-ms-range"] for request in requests] == ["bytes=100-107"] * 3
    assert all(request["authorization"].startswith("sharedkey a:") for request in requests)


async def test_storage_that_keeps_failing_is_unavailable() -> None:
    async with failing([answers("500 Internal Server Error", b"")] * 9) as (store, requests):
        with pytest.raises(DependencyUnavailable):
            await store.read("dicom", "a.dcm", 0, 8)
    assert len(requests) == 4


# --- token credentials -------------------------------------------------------------------------------


class Credential:
    """Tokens as Microsoft Entra ID gives them out, but for the signature, which Azurite does not check."""

    def __init__(self) -> None:
        self.scopes: list[tuple[str, ...]] = []

    async def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        self.scopes.append(scopes)
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": f"https://sts.windows.net/{uuid.UUID(int=1)}/",
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + 3600,
            "ver": "1.0",
        }
        parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
        encoded = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in [*parts, b"signature"]]
        return AccessToken(".".join(encoded), now + 3600)

    async def close(self) -> None:
        """Nothing to close."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


async def test_a_token_credential_reads_and_writes_over_tls(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    arguments = ["--oauth", "basic", "--cert", str(public), "--key", str(private)]
    with contextlib.closing(
        Azurite(Installation(ROOT / ".dev"), tmp_path / "azurite", arguments=arguments)
    ) as azurite:
        credential = Credential()
        uri = f"https://127.0.0.1:{azurite.ports[0]}/devstoreaccount1"
        transport = AioHttpTransport(connection_verify=str(public))
        store = connect("", uri, credential, transport)
        try:
            await store.prepare()
            await store.upload(names.INBOX_FAILED, NAME, b"0123456789", {})
            before = len(credential.scopes)
            assert await store.read(names.INBOX_FAILED, NAME, 3, 4) == b"3456"
            assert await store.read(names.INBOX_FAILED, NAME, 0, 2) == b"01"
            assert len(credential.scopes) == before + 1, "a token serves many reads"
            assert set(credential.scopes) == {("https://storage.azure.com/.default",)}
        finally:
            await store.close()
