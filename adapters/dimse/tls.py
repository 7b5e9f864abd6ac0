"""TLS of associations: the BCP 195 profile of PS3.15 §B.12, by TLS 1.2 and 1.3, never without."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from adapters.dimse.config import ConfigurationError, PeerTls, Tls


class _LateHandshake(ssl.SSLContext):
    """Shakes hands when an association is first read from, in its own thread.

    pynetdicom would do it in the thread that accepts connections, where a peer that says nothing keeps all
    others waiting.
    """

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*arguments, **options | {"do_handshake_on_connect": False})


def server_context(tls: Tls, name: str) -> ssl.SSLContext:
    """The adapter's side of associations that peers open; ``name`` begins the names of its settings.

    Raises ConfigurationError naming the one that is wrong.
    """
    context = _LateHandshake(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_identity(context, name, tls.certificate, tls.key)
    if tls.client_ca:
        _load_authorities(context, f"{name}client_ca", tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: PeerTls, name: str) -> ssl.SSLContext:
    """The adapter's side of associations that it opens; ``name`` begins the names of its settings.

    Raises ConfigurationError naming the one that is wrong.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asks for a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_host
    _load_authorities(context, f"{name}ca", tls.ca)
    if tls.certificate and tls.key:
        _load_identity(context, name, tls.certificate, tls.key)
    return context


def _load_authorities(context: ssl.SSLContext, setting: str, path: Path) -> None:
    _check_readable(setting, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigurationError(f"{setting}: {path} holds no certificate in PEM.") from None


def _load_identity(context: ssl.SSLContext, name: str, certificate: Path, key: Path) -> None:
    _check_readable(f"{name}certificate", certificate)
    _check_readable(f"{name}key", key)
    try:
        context.load_cert_chain(certificate, key, password="")  # nobody is there to be asked for one
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(
            f"{name}certificate and {name}key: {certificate} and {key} are no certificate and its "
            "unencrypted key in PEM."
        ) from None


def _check_readable(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}.") from None
