"""Access tokens of Microsoft Entra ID, or of another OpenID Connect issuer, validated in the app.

PyJWT checks signature, expiry, issuer and audience (RFC 7519, RFC 8725); what the issuer is called and
where its keys are comes from its discovery document (OpenID Connect Discovery 1.0 §4). Keys are cached,
and fetched anew when a token names one that is not among them, which is how issuers rotate keys.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import jwt

from shared.errors import DependencyUnavailable, Unauthenticated

_ALGORITHMS = ["RS256"]
_LEEWAY_SECONDS = 60
_TIMEOUT_SECONDS = 10
_KEYS_SECONDS = 24 * 3600.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_TOKEN = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Issuer:
    name: str
    keys: jwt.PyJWKClient


class TokenValidator:
    """Validates the tokens of one authority.

    ``authority`` is the issuer's base URL (``https://login.microsoftonline.com/{tenant}/v2.0``),
    ``audiences`` those of which a token must name one, ``tenant`` the ``tid`` it must have (empty: any of
    the issuer), ``scope`` a scope that tokens of users must have (empty: none). All calls block.
    """

    def __init__(
        self,
        authority: str,
        audiences: Sequence[str],
        tenant: str = "",
        scope: str = "",
        *,
        context: ssl.SSLContext | None = None,
        cooldown: float = 30.0,
    ) -> None:
        url = urlparse(authority)
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
            raise ValueError("The authority must be an https URL.")
        if not audiences:
            raise ValueError("An authority needs an audience.")
        self._authority = authority.rstrip("/")
        self._audiences = list(audiences)
        self._tenant = tenant
        self._scope = scope
        self._context = context
        self._cooldown = cooldown
        self._issuer: _Issuer | None = None
        self._lock = threading.Lock()

    def validate(self, token: str) -> dict[str, Any]:
        """The claims of a token.

        Raises Unauthenticated where it is not valid, in words that quote nothing of it, and
        DependencyUnavailable where the issuer cannot be reached.
        """
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("The access token is too long.")
        claims = self._decoded(token)
        if self._tenant and claims.get("tid") != self._tenant:
            raise Unauthenticated("The access token is of another tenant.")
        if self._scope and "scp" in claims and self._scope not in str(claims["scp"]).split():
            raise Unauthenticated(f"The access token lacks the scope {self._scope}.")
        return claims

    def _decoded(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in _ALGORITHMS:  # before any key is looked for
                raise jwt.InvalidAlgorithmError
            issuer = self._discovered()
            return jwt.decode(
                token,
                _key(issuer.keys, str(header.get("kid", ""))),
                algorithms=_ALGORITHMS,
                audience=self._audiences,
                issuer=issuer.name,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_sentence(error)) from error

    def _discovered(self) -> _Issuer:
        with self._lock:
            if self._issuer is None:
                self._issuer = self._discover()
            return self._issuer

    def _discover(self) -> _Issuer:
        handler = urllib.request.HTTPSHandler(context=self._context)
        url = f"{self._authority}/.well-known/openid-configuration"
        try:
            with urllib.request.build_opener(handler).open(url, timeout=_TIMEOUT_SECONDS) as response:
                document = json.load(response)
            name, keys = str(document["issuer"]), str(document["jwks_uri"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DependencyUnavailable("The authority's discovery document cannot be read.") from error
        if "{" in name:
            raise DependencyUnavailable("The authority must be that of one tenant.")
        return _Issuer(
            name,
            jwt.PyJWKClient(
                keys,
                lifespan=_KEYS_SECONDS,
                timeout=_TIMEOUT_SECONDS,
                ssl_context=self._context,
                cooldown_duration=self._cooldown,
            ),
        )


def _key(keys: jwt.PyJWKClient, kid: str) -> jwt.PyJWK:
    try:
        keys.get_signing_keys()  # which fails when there are none, whatever the token says
    except (jwt.PyJWTError, OSError, ValueError) as error:
        raise DependencyUnavailable("The authority's keys cannot be read.") from error
    try:
        return keys.get_signing_key(kid)
    except (jwt.PyJWKClientConnectionError, OSError) as error:
        raise DependencyUnavailable("The authority's keys cannot be read.") from error


_SENTENCES: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "The access token has expired."),
    (jwt.ImmatureSignatureError, "The access token is not valid yet."),
    (jwt.InvalidAudienceError, "The access token is for another audience."),
    (jwt.InvalidIssuerError, "The access token is of another issuer."),
    (jwt.InvalidAlgorithmError, "The access token is not signed with RS256."),
    (jwt.MissingRequiredClaimError, "The access token lacks a claim that it must have."),
    (jwt.PyJWKClientError, "The access token is signed with a key the issuer does not have."),
    (jwt.InvalidSignatureError, "The access token's signature is wrong."),
)


def _sentence(error: jwt.PyJWTError) -> str:
    return next((s for kind, s in _SENTENCES if isinstance(error, kind)), "The access token is malformed.")
