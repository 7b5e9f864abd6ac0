"""Query parameters of QIDO-RS (PS3.18 §8.3.4, §10.6.1.2): name and value pairs to a SearchQuery."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shared.dicom import normalise
from shared.dicom.attributes import Attribute, Level
from shared.dicom.identifiers import Resource
from shared.dicom.projection import Projection
from shared.dicom.search_terms import SearchQuery, name_of, parse_term, path_of, searchable, tag_of
from shared.errors import InvalidRequest

DEFAULT_LIMIT = 100
MAX_LIMIT = 200
MAX_OFFSET = 2**31 - 1

_TIME_ZONE = "00080201"

_OPTIONS = frozenset({"limit", "offset", "fuzzymatching"})


def search_query(
    level: Level,
    resource: Resource,
    parameters: Iterable[tuple[str, str]],
    query_tags: Mapping[str, Attribute] | None = None,
) -> SearchQuery:
    """The search that ``parameters``, decoded and in their order, ask for.

    ``query_tags`` are attributes that may be matched beyond those of the table, by path.

    Raises InvalidRequest that names a parameter which is unknown, malformed, given twice or not
    searchable at ``level``.
    """
    options: dict[str, str] = {}
    values: dict[str, str] = {}
    included: list[str] = []
    for name, value in parameters:
        if name == "includefield":
            included += value.split(",")
            continue
        known, key = (options, name) if name in _OPTIONS else (values, _matched_path(name))
        if key in known:
            raise InvalidRequest(f"The query parameter {_shown(name)} is given twice.")
        known[key] = value

    fuzzy = _boolean("fuzzymatching", options.get("fuzzymatching", "false"))
    zone = _time_zone(values.pop(_TIME_ZONE, ""))
    attributes = {path: searchable(path, level, query_tags) for path in values}
    terms = [parse_term(attributes[path], value, fuzzy, zone) for path, value in values.items()]
    fields = [field.strip() for field in included if field.strip()]
    return SearchQuery(
        level=level,
        resource=resource,
        terms=tuple(term for term in terms if term is not None),
        requested=frozenset(attribute.tag for attribute in attributes.values())
        | {_field(field) for field in fields if field.lower() != "all"},
        include_all=any(field.lower() == "all" for field in fields),
        limit=_integer("limit", options.get("limit", str(DEFAULT_LIMIT)), 1, MAX_LIMIT),
        offset=_integer("offset", options.get("offset", "0"), 0, MAX_OFFSET),
    )


def projection(parameters: Iterable[tuple[str, str]]) -> Projection | None:
    """What ``includefield`` leaves of metadata: attributes by keyword or tag, below sequences with dots.

    None is all of it: where the parameter is absent, empty or ``all``. Raises InvalidRequest that names a
    parameter or an attribute which is unknown.
    """
    fields: list[str] = []
    for name, value in parameters:
        if name != "includefield":
            raise InvalidRequest(f"The query parameter {_shown(name)} is unknown.")
        fields += (field.strip() for field in value.split(","))
    fields = [field for field in fields if field]
    if not fields or any(field.lower() == "all" for field in fields):
        return None
    return Projection(_path(field) for field in fields)


def _path(name: str) -> tuple[str, ...]:
    """The tags of a dotted path."""
    tags = [tag_of(part) for part in name.split(".")]
    if None in tags:
        raise InvalidRequest(f"includefield does not know the attribute {_shown(name)}.")
    return tuple(tag for tag in tags if tag is not None)


def _matched_path(name: str) -> str:
    """The tags of the attribute that a parameter matches."""
    path = path_of(name)
    if path is None:
        raise InvalidRequest(f"The query parameter {_shown(name)} is unknown.")
    return path


def _field(name: str) -> str:
    """The tag that a value of ``includefield`` names; a path into a sequence names the whole of it.

    An attribute that the index does not hold is accepted and not returned.
    """
    return _path(name)[0]


def _integer(name: str, value: str, low: int, high: int) -> int:
    if re.fullmatch("[0-9]{1,10}", value) is None or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} must be a number from {low} to {high}.")
    return int(value)


def _time_zone(value: str) -> str:
    """The time zone of a query's date-times; a ``+`` may have arrived as a space."""
    value = re.sub("^ ", "+", value)
    if value and not normalise.offset(value):
        raise InvalidRequest("TimezoneOffsetFromUTC must be +HHMM or -HHMM.")
    return normalise.offset(value)


def _boolean(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false.")
    return value.lower() == "true"


def _shown(name: str) -> str:
    """A parameter's name for a message: an attribute's keyword, or what was sent, shortened."""
    tag = tag_of(name)
    return name_of(tag) if tag else repr(name[:64])
