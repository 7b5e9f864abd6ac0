"""What Azure Key Vault says on the wire, as a TLS server on loopback: enough of its REST API for secrets.

The real client runs against it unchanged: it discovers the tenant from the challenge of a 401, sends its
token, and waits for deletions, which take a while here as they do there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from azure.core.credentials import AccessToken
from azure.core.pipeline.transport import AioHttpTransport
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "unit.vault.test"
TOKEN = "a-token-of-the-app"


class Identity:
    """A credential that notes what it was asked for."""

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.tenants: list[str] = []

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes += scopes
        self.tenants.append(options.get("tenant_id") or "")
        return AccessToken(TOKEN, int(time.time()) + 3600)

    async def close(self) -> None:
        return None

    async def __aenter__(self) -> Identity:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@dataclass
class Vault:
    """The server's state; ``requests`` has method, path, whether a token came along, and the body."""

    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, bool, str]] = field(default_factory=list)
    purge_status: int = 204
    status: int = 0
    resource: str = ""
    port: int = 0

    @property
    def uri(self) -> str:
        return f"https://{HOST}:{self.port}"

    def challenge(self) -> web.Response:
        resource = self.resource or f"https://vault.test:{self.port}"
        header = f'Bearer authorization="https://login.test/the-tenant", resource="{resource}"'
        return web.json_response(
            {"error": {"code": "Unauthorized"}}, status=401, headers={"WWW-Authenticate": header}
        )

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        authorized = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.requests.append((request.method, request.path, authorized, body))
        assert request.query.get("api-version")
        if not authorized:
            return self.challenge()
        if self.status:
            return web.json_response({"error": {"code": "Odd", "message": body}}, status=self.status)
        parts = request.path.strip("/").split("/")
        if parts == ["secrets"]:
            return web.json_response({"value": [self._item(name) for name in self.secrets], "nextLink": None})
        return await getattr(self, f"_{request.method.lower()}_{parts[0]}")(request, parts[1], body)

    async def _put_secrets(self, request: web.Request, name: str, _body: str) -> web.Response:
        if name in self.deleted:
            return web.json_response({"error": {"code": "Conflict"}}, status=409)
        given = await request.json()
        self.secrets[name] = given | {"created": int(time.time())}
        return web.json_response(self._item(name) | {"value": given["value"]})

    async def _get_secrets(self, _request: web.Request, name: str, _body: str) -> web.Response:
        if name not in self.secrets:
            return self._missing()
        return web.json_response(self._item(name) | {"value": self.secrets[name]["value"]})

    async def _delete_secrets(self, _request: web.Request, name: str, _body: str) -> web.Response:
        if name not in self.secrets:
            return self._missing()
        item = self._item(name)
        del self.secrets[name]
        self.deleted[name] = 1  # polls until it is done
        return web.json_response(item | {"recoveryId": f"{self.uri}/deletedsecrets/{name}"})

    async def _get_deletedsecrets(self, _request: web.Request, name: str, _body: str) -> web.Response:
        if self.deleted.get(name, 1) > 0:
            if name in self.deleted:
                self.deleted[name] -= 1
            return self._missing()
        return web.json_response({"id": f"{self.uri}/secrets/{name}/1", "attributes": {}})

    async def _delete_deletedsecrets(self, _request: web.Request, name: str, _body: str) -> web.Response:
        if name not in self.deleted:
            return self._missing()
        if self.purge_status == 204:
            del self.deleted[name]
            return web.Response(status=204)
        return web.json_response({"error": {"code": "Forbidden"}}, status=self.purge_status)

    def _item(self, name: str) -> dict[str, Any]:
        kept = self.secrets[name]
        attributes = dict(kept.get("attributes") or {}) | {"created": kept["created"], "enabled": True}
        return {"id": f"{self.uri}/secrets/{name}/1", "attributes": attributes, "tags": kept.get("tags")}

    def _missing(self) -> web.Response:
        return web.json_response({"error": {"code": "SecretNotFound"}}, status=404)


class _Resolver(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        assert host == HOST, host
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        return None


@contextlib.asynccontextmanager
async def vault(folder: Path) -> AsyncIterator[tuple[Vault, AioHttpTransport]]:
    """A vault on a free port, and a transport that trusts its certificate and finds its host."""
    state = Vault()
    async with over_tls(folder, _app(state)) as (state.port, transport):
        yield state, transport


@contextlib.asynccontextmanager
async def over_tls(folder: Path, app: web.Application) -> AsyncIterator[tuple[int, AioHttpTransport]]:
    """An application at :data:`HOST` on a free port, and a transport that finds and trusts it."""
    certificate = _certificate(folder)
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side)
    await site.start()
    client_side = ssl.create_default_context(cafile=str(certificate))
    connector = aiohttp.TCPConnector(resolver=_Resolver(), ssl=client_side)
    session = aiohttp.ClientSession(connector=connector)
    try:
        yield runner.addresses[0][1], AioHttpTransport(session=session, session_owner=False)
    finally:
        await session.close()
        await runner.cleanup()


def _app(state: Vault) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", state.answer)
    return app


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(HOST), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "vault.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
