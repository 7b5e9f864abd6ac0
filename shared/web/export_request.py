"""The body of ``POST /v2/export``: what to export, where to, and in which form.

The ancestor's form, to which this server adds a source by query, de-identification and a table of metadata.
Names are matched as they are written here; those of a destination's settings without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import orjson

from shared.dicom.attributes import Level
from shared.dicom.identifiers import Resource, check_uid
from shared.dicom.query_tags import TagSet
from shared.dicom.search_terms import SearchQuery
from shared.errors import InvalidRequest
from shared.web.query_params import search_query

MAX_BYTES = 2 * 1024 * 1024
"""Bytes of a body."""
MAX_IDENTIFIERS = 10_000

_UID = "([^/]*)"
_PATHS: tuple[tuple[re.Pattern[str], Level], ...] = (
    (re.compile("studies"), Level.STUDY),
    (re.compile("series"), Level.SERIES),
    (re.compile("instances"), Level.INSTANCE),
    (re.compile(f"studies/{_UID}/series"), Level.SERIES),
    (re.compile(f"studies/{_UID}/instances"), Level.INSTANCE),
    (re.compile(f"studies/{_UID}/series/{_UID}/instances"), Level.INSTANCE),
)


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What a client asks for: either ``identifiers``, each one to three UIDs, or ``query``.

    ``profile_options`` is None where nothing is de-identified.
    """

    partition: str
    identifiers: tuple[tuple[str, ...], ...]
    query: SearchQuery | None
    destination: Mapping[str, Any]
    profile_options: tuple[str, ...] | None = None
    allow_burned_in: bool = False
    parquet: bool = False


def parse(body: bytes, partition: str, query_tags: TagSet | None = None) -> ExportRequest:
    """The request of a body; a query may name ``query_tags``.

    Raises InvalidRequest, whose message quotes nothing of a destination.
    """
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is no JSON.") from None
    given = _object(given, "The body", {"source", "destination", "deidentification", "metadata"})
    source = _object(given.get("source"), "source", {"type", "settings"})
    destination = _object(given.get("destination"), "destination", {"type", "settings"})
    if str(destination.get("type")).lower() != "azureblob":
        raise InvalidRequest("The destination's type must be azureblob.")
    where = destination.get("settings")
    if not isinstance(where, dict):
        raise InvalidRequest("The destination's settings must be a JSON object.")
    identifiers: tuple[tuple[str, ...], ...] = ()
    query = None
    match str(source.get("type")).lower():
        case "identifiers":
            identifiers = _identifiers(_object(source.get("settings"), "The source's settings", {"values"}))
        case "query":
            settings = _object(source.get("settings"), "The source's settings", {"query"})
            query = _query(settings.get("query"), partition, query_tags)
        case _:
            raise InvalidRequest("The source's type must be identifiers or query.")
    options, allow = _profile(given.get("deidentification"))
    return ExportRequest(
        partition, identifiers, query, where, options, allow, _parquet(given.get("metadata"))
    )


def _object(value: Any, name: str, members: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object.")
    if not value.keys() <= members:
        raise InvalidRequest(f"{name} may have the members {', '.join(sorted(members))} and no other.")
    return value


def _identifiers(given: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Each once, and none that another one includes."""
    values = given.get("values")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_IDENTIFIERS:
        raise InvalidRequest(f"values must be an array of 1 to {MAX_IDENTIFIERS} identifiers.")
    found = {_identifier(value): None for value in values}
    return tuple(one for one in found if not any(one[:length] in found for length in range(1, len(one))))


def _identifier(value: Any) -> tuple[str, ...]:
    parts = tuple(value.split("/")) if isinstance(value, str) else ()
    if not 1 <= len(parts) <= 3:
        raise InvalidRequest("An identifier is a Study, Series and SOP Instance UID, separated by slashes.")
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return tuple(check_uid(uid, keyword) for uid, keyword in zip(parts, keywords, strict=False))


def _query(text: Any, partition: str, query_tags: TagSet | None) -> SearchQuery:
    if not isinstance(text, str) or len(text) > 8192:
        raise InvalidRequest(
            "query must be the path and the parameters of a search, as in studies?Modality=CT."
        )
    path, _, parameters = text.partition("?")
    matches = ((pattern.fullmatch(path.strip("/")), level) for pattern, level in _PATHS)
    match, level = next(((match, level) for match, level in matches if match), (None, Level.STUDY))
    if match is None:
        raise InvalidRequest("query must begin with the path of a search, as in studies?Modality=CT.")
    uids = [
        check_uid(uid, keyword)
        for uid, keyword in zip(match.groups(), ("StudyInstanceUID", "SeriesInstanceUID"), strict=False)
    ]
    resource = Resource(partition, *uids)
    pairs = tuple(parse_qsl(parameters, keep_blank_values=True))
    for name, _ in pairs:
        if name.lower() in ("limit", "offset", "includefield", "orderby", "cursor", "count"):
            raise InvalidRequest(f"{name} has no meaning for an export: everything that matches is exported.")
    return search_query(level, resource, pairs, query_tags)


def _profile(given: Any) -> tuple[tuple[str, ...] | None, bool]:
    if given is None:
        return None, False
    given = _object(given, "deidentification", {"profile", "options", "allowBurnedInAnnotation"})
    if given.get("profile") != "basic":
        raise InvalidRequest("The profile must be basic.")
    options = given.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidRequest("The options of the profile must be an array of strings.")
    allow = given.get("allowBurnedInAnnotation", False)
    if not isinstance(allow, bool):
        raise InvalidRequest("allowBurnedInAnnotation must be a boolean.")
    return tuple(options), allow


def _parquet(given: Any) -> bool:
    if given is None:
        return False
    if _object(given, "metadata", {"type"}).get("type") != "parquet":
        raise InvalidRequest("The type of metadata must be parquet.")
    return True
