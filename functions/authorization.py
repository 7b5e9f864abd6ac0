"""Who may call what: the access token of a request, and the data action its route declares.

Fail-closed: without an authority the app serves nobody, unless anonymous access is switched on, which
works on the loopback interface alone. ``X-MS-CLIENT-PRINCIPAL`` is never looked at: where the platform does
not authenticate, anybody can send it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from azurefunctions.extensions.http.fastapi import Request

from shared.dicom.identifiers import DEFAULT_PARTITION
from shared.errors import Forbidden, Unauthenticated
from shared.services.access import ALL_PARTITIONS, Action, Caller, identify
from shared.settings import settings

_FORWARDED_FOR = re.compile(r'(?i)(?:^|[;,])\s*for\s*=\s*("[^"]*"|[^;,\s]*)')
"""Whom a request was forwarded for, in a Forwarded header (RFC 7239 §4)."""
_ADDRESS = re.compile(r"\[(?P<v6>[^\]]*)\](:\d+)?|(?P<other>[0-9.]+)(:\d+)?|(?P<bare>[0-9A-Fa-f:.]+)")


@dataclass(frozen=True, slots=True)
class Access:
    """What a route needs: a data action (None: nothing, everybody may call), in the partition of the path,
    in all partitions, or in any."""

    action: Action | None
    scope: Literal["partition", "all", "any"]


class NoToken(Unauthenticated):
    """The request carries no access token."""


async def check(request: Request, access: Access) -> None:
    """Let a request pass that may do what its route does.

    Raises Unauthenticated, Forbidden, and DependencyUnavailable while tokens cannot be validated.
    """
    if access.action is None:
        return
    if not settings().auth_authority:
        _check_anonymous(request)
        return
    caller = await identify(_bearer(request))
    request.state.caller = caller  # for the audit trail
    partition = request.path_params.get("partition", DEFAULT_PARTITION)
    if not _allowed(caller, access, access.action, partition):
        raise Forbidden(f"The caller has no role that allows the data action {access.action} here.")


def may(request: Request, action: Action, partition: str | None) -> bool:
    """Whether the caller of a request that :func:`check` let pass may do ``action`` in a partition, too.

    None stands for all of them. For routes that learn from what they find which partition they act in.
    """
    if not settings().auth_authority:
        return True
    caller: Caller = request.state.caller
    return caller.may(action, ALL_PARTITIONS if partition is None else partition)


def _allowed(caller: Caller, access: Access, action: Action, partition: str) -> bool:
    if access.scope == "any":
        return caller.may_somewhere(action)
    return caller.may(action, ALL_PARTITIONS if access.scope == "all" else partition)


def challenge(error: Unauthenticated) -> str:
    """The WWW-Authenticate header for an error (RFC 6750 §3)."""
    said = ['realm="DICOMweb"', f'authorization_uri="{settings().auth_authority}"']
    if not isinstance(error, NoToken):
        said += ['error="invalid_token"', f'error_description="{error}"']
    return f"Bearer {', '.join(said)}"


def _bearer(request: Request) -> str:
    """The token of the Authorization header (RFC 6750 §2.1)."""
    scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
    if not token:
        raise NoToken("The request needs an access token.")
    if scheme.lower() != "bearer":
        raise Unauthenticated("The Authorization header must carry a bearer token.")
    return str(token.strip())


def _check_anonymous(request: Request) -> None:
    if not settings().auth_anonymous:
        raise Forbidden("No authority is configured, so that nobody can be authenticated.")
    if not _is_local(request):
        raise Forbidden("Anonymous requests are served on the loopback interface alone.")


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine: its peer, and whom a proxy says it forwards for.

    Behind the platform's host process the peer always is, but in Azure nobody is served so.
    """
    peer = request.client.host if request.client else ""
    given = [
        address for header in request.headers.getlist("x-forwarded-for") for address in header.split(",")
    ]
    given += _FORWARDED_FOR.findall(",".join(request.headers.getlist("forwarded")))
    return not settings().azure_instance_id and all(map(_is_loopback, [peer, *given]))


def _is_loopback(address: str) -> bool:
    """Whether an address, perhaps with a port, is of the loopback interface."""
    match = _ADDRESS.fullmatch(address.strip().strip('"'))
    try:
        return (
            match is not None
            and ipaddress.ip_address(match["v6"] or match["other"] or match["bare"] or "").is_loopback
        )
    except ValueError:
        return False
