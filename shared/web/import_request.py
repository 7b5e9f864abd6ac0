"""The body of ``POST /v2/import``: where the files are, and what to do with duplicates and sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from shared.errors import InvalidRequest

MAX_BYTES = 64 * 1024
"""Bytes of a body."""
_LONGEST_PREFIX = 1024


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What a client asks for; ``where`` are the settings of a container, None stands for the inbox."""

    where: Mapping[str, Any] | None
    prefix: str
    replace: bool
    delete_sources: bool


def parse(body: bytes) -> ImportRequest:
    """Raises InvalidRequest, whose message quotes nothing of the source."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is no JSON.") from None
    given = _object(given, "The body", {"source", "duplicates", "deleteSources"})
    source = _object(given.get("source"), "source", {"type", "settings"})
    settings = source.get("settings", {})
    if not isinstance(settings, dict):
        raise InvalidRequest("The source's settings must be a JSON object.")
    where = {name: value for name, value in settings.items() if name.lower() != "prefix"}
    prefixes = [value for name, value in settings.items() if name.lower() == "prefix"]
    kind = str(source.get("type")).lower()
    if kind not in ("azureblob", "inbox"):
        raise InvalidRequest("The source's type must be azureblob or inbox.")
    if kind == "inbox" and where:
        raise InvalidRequest("The inbox has no setting but prefix.")
    return ImportRequest(
        where if kind == "azureblob" else None,
        _prefix(prefixes),
        _duplicates(given.get("duplicates", "skip")),
        _delete_sources(given.get("deleteSources", False)),
    )


def _object(value: Any, name: str, members: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object.")
    if not value.keys() <= members:
        raise InvalidRequest(f"{name} may have the members {', '.join(sorted(members))} and no other.")
    return value


def _prefix(given: list[Any]) -> str:
    prefix = given[0] if given else ""
    if len(given) > 1 or not isinstance(prefix, str) or len(prefix) > _LONGEST_PREFIX:
        raise InvalidRequest(f"prefix must be given once, as a string of up to {_LONGEST_PREFIX} characters.")
    if not prefix.isprintable():
        raise InvalidRequest("prefix holds characters that names of blobs do not have.")
    return prefix


def _duplicates(given: Any) -> bool:
    if given not in ("skip", "replace"):
        raise InvalidRequest("duplicates must be skip or replace.")
    return bool(given == "replace")


def _delete_sources(given: Any) -> bool:
    if not isinstance(given, bool):
        raise InvalidRequest("deleteSources must be a boolean.")
    return given
