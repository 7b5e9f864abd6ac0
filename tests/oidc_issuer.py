"""An OpenID Connect issuer on the loopback interface: discovery, keys that rotate, signed tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "api://dicom"
TENANT = "5f0a2b0e-6f5c-4d2c-9a53-1f0c1f7d5e11"


class Issuer:
    """``url`` is the authority; ``requests`` are the paths asked for so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.broken = False
        self._published: dict[str, rsa.RSAPrivateKey] = {}
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on, and publish that alone."""
        self.kid = f"key-{time.monotonic_ns()}"
        self._published = {self.kid: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    @property
    def key(self) -> rsa.RSAPrivateKey:
        """The key in use."""
        return self._published[self.kid]

    def token(self, *roles: str, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        """A token; ``claims`` replace those it would have, None removes one."""
        now = int(time.time())
        payload = {
            "iss": self.url,
            "aud": AUDIENCE,
            "tid": TENANT,
            "oid": "0e0c7e3e-0000-4000-8000-000000000001",
            "azp": "0e0c7e3e-0000-4000-8000-000000000002",
            "nbf": now - 5,
            "exp": now + 600,
            "roles": list(roles),
        } | claims
        given = {name: value for name, value in payload.items() if value is not None}
        signer = key if key is not None else self.key
        return jwt.encode(given, signer, algorithm=algorithm, headers={"kid": self.kid})

    def answer(self, path: str) -> dict[str, Any] | None:
        """The document at ``path``."""
        self.requests.append(path)
        if self.broken:
            return None
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            keys = [
                {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
                for kid, key in self._published.items()
            ]
            return {"keys": keys}
        return None


@contextmanager
def running() -> Iterator[Issuer]:
    """An issuer that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = issuer.answer(self.path)
            body = json.dumps(document).encode()
            self.send_response(200 if document is not None else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
