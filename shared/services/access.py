"""Who a caller is, by its access token, and what it may do."""

from __future__ import annotations

import asyncio

from shared import container
from shared.security.roles import ALL_PARTITIONS, Action, Caller

__all__ = ["ALL_PARTITIONS", "Action", "Caller", "identify"]


async def identify(token: str) -> Caller:
    """The caller that an access token stands for, with its roles.

    Raises Unauthenticated where the token is not valid, DependencyUnavailable where the authority that
    issues tokens cannot be reached.
    """
    claims = await asyncio.to_thread(container.tokens().validate, token)
    names = claims.get("roles")
    return Caller(
        id=str(claims.get("oid") or claims.get("sub") or ""),
        client=str(claims.get("azp") or claims.get("appid") or ""),
        roles=container.roles().of(map(str, names) if isinstance(names, list) else ()),
    )
