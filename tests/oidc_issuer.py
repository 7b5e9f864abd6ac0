"""An OpenID Connect issuer on the loopback interface: discovery, keys that rotate, signed tokens, and the
authorization code flow with PKCE (RFC 6749 §4.1, RFC 7636) for pages of any origin."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "api://dicom"
CLIENT = "0e0c7e3e-0000-4000-8000-000000000003"
"""The single-page application that may ask people to sign in."""
TENANT = "5f0a2b0e-6f5c-4d2c-9a53-1f0c1f7d5e11"


class Issuer:
    """``url`` is the authority; ``requests`` are the paths asked for so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.broken = False
        self.signed_in: tuple[str, ...] | None = None
        """Roles of who has signed in at the issuer; None while nobody has."""
        self.redirects: set[str] = set()
        """Redirect URIs that are registered for the client."""
        self._codes: dict[str, dict[str, str]] = {}
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
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | {
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            }
        if path == "/keys":
            keys = [
                {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
                for kid, key in self._published.items()
            ]
            return {"keys": keys}
        return None

    def authorize(self, query: str) -> str | None:
        """Where to send the browser with a code; None where nobody has signed in or the request is wrong."""
        given = dict(parse_qsl(query))
        self.requests.append("/authorize")
        known = given.get("client_id") == CLIENT and given.get("redirect_uri") in self.redirects
        right = given.get("response_type") == "code" and given.get("code_challenge_method") == "S256"
        if self.signed_in is None or not known or not right:
            return None
        code = secrets.token_urlsafe()
        self._codes[code] = given
        answer = {"code": code, "state": given["state"]}
        return f"{given['redirect_uri']}?{urlencode(answer)}"

    def exchange(self, form: str) -> dict[str, Any] | None:
        """The tokens for a code, once, for who knows the verifier of its challenge."""
        given = dict(parse_qsl(form))
        self.requests.append("/token")
        asked = self._codes.pop(given.get("code", ""), None)
        digest = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or self.signed_in is None or asked["code_challenge"] != challenge:
            return None
        if given.get("redirect_uri") != asked["redirect_uri"] or "client_secret" in given:
            return None
        nonce = asked.get("nonce")
        return {
            "access_token": self.token(*self.signed_in, azp=CLIENT, scp="Dicom.ReadWrite"),
            "id_token": self.token(aud=CLIENT, sub="someone", nonce=nonce),
            "token_type": "Bearer",
            "expires_in": 600,
            "scope": asked["scope"],
        }


@contextmanager
def running() -> Iterator[Issuer]:
    """An issuer that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/authorize":
                to = issuer.authorize(address.query)
                self.send(403, "Nobody is signed in.") if to is None else self.send(302, "", Location=to)
                return
            document = issuer.answer(self.path)
            self.send(200 if document is not None else 500, document)

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            tokens = issuer.exchange(form) if self.path == "/token" else None
            self.send(200 if tokens else 400, tokens or {"error": "invalid_grant"})

        def do_OPTIONS(self) -> None:
            self.send(200, None, **{"Access-Control-Allow-Headers": "*"})

        def send(self, status: int, document: Any, **headers: str) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
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
