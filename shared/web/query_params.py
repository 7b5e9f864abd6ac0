"""Query parameters of QIDO-RS (PS3.18 §8.3.4, §10.6.1.2): name and value pairs to a SearchQuery."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from shared.dicom import normalise, workitem_attributes
from shared.dicom.attributes import Attribute, Level, Matching, by_path, by_tag
from shared.dicom.identifiers import Resource
from shared.dicom.projection import Projection
from shared.dicom.query_tags import READY, QueryTag, TagSet
from shared.dicom.search_terms import (
    Order,
    Position,
    SearchQuery,
    name_of,
    parse_term,
    path_of,
    searchable,
    sortable,
    tag_of,
)
from shared.dicom.workitem_query import WorkitemQuery
from shared.errors import InvalidRequest

DEFAULT_LIMIT = 100
MAX_LIMIT = 200
MAX_OFFSET = 2**31 - 1

_TIME_ZONE = "00080201"

MAX_ORDER = 3
"""Attributes that results are sorted by."""

_OPTIONS = frozenset({"limit", "offset", "fuzzymatching", "orderby", "cursor", "count"})


@dataclass(frozen=True)
class SearchRequest:
    """A search and what else its answer has: ``count`` asks for the number of all results.

    ``fingerprint`` names what is searched for and in which order: cursors are good for that alone.
    """

    query: SearchQuery
    count: bool
    fingerprint: str


@dataclass(frozen=True)
class WorkitemRequest:
    """The same for a search for workitems."""

    query: WorkitemQuery
    count: bool
    fingerprint: str


def search_query(
    level: Level,
    resource: Resource,
    parameters: Iterable[tuple[str, str]],
    query_tags: TagSet | None = None,
) -> SearchQuery:
    """The search alone that :func:`search_request` gives."""
    return search_request(level, resource, parameters, query_tags).query


def search_request(
    level: Level,
    resource: Resource,
    parameters: Iterable[tuple[str, str]],
    query_tags: TagSet | None = None,
) -> SearchRequest:
    """The search that ``parameters``, decoded and in their order, ask for.

    ``query_tags`` are what may be matched beyond the attribute table; see :func:`names_query_tags`.

    Raises InvalidRequest that names a parameter which is unknown, malformed, given twice or not
    searchable at ``level``.
    """
    options, values, fields = _sorted_out(parameters)
    fuzzy = _boolean("fuzzymatching", options.get("fuzzymatching", "false"))
    zone = _time_zone(values.pop(_TIME_ZONE, ""))
    tags = query_tags or TagSet()
    extra = {path: _queried(tag) for path in values if (tag := tags.find(path)) is not None}
    attributes = {path: searchable(path, level, extra) for path in values}
    terms = [parse_term(attributes[path], value, fuzzy, zone) for path, value in values.items()]
    returned = tuple(tag for tag in tags.tags if tag.level <= level and _returns(tag, values, fields))
    query = SearchQuery(
        level=level,
        resource=resource,
        terms=tuple(term for term in terms if term is not None),
        requested=_requested(attributes, fields, returned),
        include_all=any(field.lower() == "all" for field in fields),
        query_tags=returned,
        limit=_integer("limit", options.get("limit", str(DEFAULT_LIMIT)), 1, MAX_LIMIT),
        offset=_integer("offset", options.get("offset", "0"), 0, MAX_OFFSET),
        order=_order(options.get("orderby", ""), lambda path: sortable(path, level)),
    )
    fingerprint = _fingerprint(query.level, query.resource, query.terms, query.order)
    query = replace(query, after=_after(options, fingerprint, query.order))
    return SearchRequest(query, _boolean("count", options.get("count", "false")), fingerprint)


def workitem_request(partition: str, parameters: Iterable[tuple[str, str]]) -> WorkitemRequest:
    """The search for workitems that ``parameters``, decoded and in their order, ask for (PS3.18 §11.8).

    Raises InvalidRequest that names a parameter which is unknown, malformed, given twice or not searchable.
    """
    options, values, fields = _sorted_out(parameters)
    fuzzy = _boolean("fuzzymatching", options.get("fuzzymatching", "false"))
    zone = _time_zone(values.pop(_TIME_ZONE, ""))
    attributes = {path: workitem_attributes.searchable(path) for path in values}
    terms = [parse_term(attributes[path], value, fuzzy, zone) for path, value in values.items()]
    named = {_field(field) for field in fields if field.lower() != "all"}
    query = WorkitemQuery(
        partition=partition,
        terms=tuple(term for term in terms if term is not None),
        requested=frozenset(named | {attribute.tag for attribute in attributes.values()}),
        include_all=any(field.lower() == "all" for field in fields),
        limit=_integer("limit", options.get("limit", str(DEFAULT_LIMIT)), 1, MAX_LIMIT),
        offset=_integer("offset", options.get("offset", "0"), 0, MAX_OFFSET),
        order=_order(options.get("orderby", ""), workitem_attributes.sortable),
    )
    fingerprint = _fingerprint("workitems", partition, query.terms, query.order)
    query = replace(query, after=_after(options, fingerprint, query.order))
    return WorkitemRequest(query, _boolean("count", options.get("count", "false")), fingerprint)


def _sorted_out(
    parameters: Iterable[tuple[str, str]],
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Options, values by the path of the attribute they match, and what ``includefield`` names."""
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
    return options, values, [field.strip() for field in included if field.strip()]


def _after(options: Mapping[str, str], fingerprint: str, order: tuple[Order, ...]) -> Position | None:
    """Where the page begins that ``cursor`` asks for."""
    if "cursor" not in options:
        return None
    if options.get("offset", "0").strip("0"):
        raise InvalidRequest("cursor and offset exclude each other.")
    return _position(options["cursor"], fingerprint, order)


def _order(value: str, sortable: Callable[[str], Attribute]) -> tuple[Order, ...]:
    """What ``orderby`` names: attributes, each after ``+`` (which may have arrived as a space) or ``-``."""
    orders = []
    for name in value.split(",") if value.strip() else ():
        bare = name.strip().lstrip("+-")
        path = path_of(bare) if len(name.strip()) - len(bare) <= 1 else None
        if path is None:
            raise InvalidRequest(f"orderby does not know the attribute {_shown(name.strip())}.")
        orders.append(Order(sortable(path), name.strip().startswith("-")))
    if len(orders) > MAX_ORDER or len({order.attribute for order in orders}) < len(orders):
        raise InvalidRequest(f"orderby takes up to {MAX_ORDER} attributes, each once.")
    return tuple(orders)


def _fingerprint(*searched: object) -> str:
    """The same for searches whose results are the same, in the same order."""
    return sha256(repr(searched).encode()).hexdigest()[:16]


def cursor(request: SearchRequest | WorkitemRequest, position: Position) -> str:
    """The text that stands for ``position`` in the results of this search, whatever is stored meanwhile."""
    text = json.dumps([request.fingerprint, position.key, *position.values], ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _position(text: str, fingerprint: str, order: tuple[Order, ...]) -> Position:
    """The position that a cursor stands for. Raises InvalidRequest unless it was made for this search."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        made_for, key, *values = json.loads(data)
    except (ValueError, TypeError):
        made_for, key, values = "", 0, []
    texts = (one.attribute.matching is not Matching.NUMBER for one in order)
    fits = len(values) == len(order) and all(
        value is None or type(value) is (str if is_text else int)
        for value, is_text in zip(values, texts, strict=True)
    )
    if made_for != fingerprint or type(key) is not int or abs(key) >= 2**63 or not fits:
        raise InvalidRequest("cursor is not one that a page of this search gave.")
    return Position(tuple(values), key)


def names_query_tags(parameters: Iterable[tuple[str, str]]) -> bool:
    """Whether a search may name extended query tags: only then it needs to know what there is."""
    for name, value in parameters:
        if name == "includefield":
            fields = [field.strip() for field in value.split(",")]
            if any(field.lower() == "all" or tag_of(field) not in by_tag() for field in fields if field):
                return True
        elif name not in _OPTIONS and path_of(name) not in (_TIME_ZONE, *by_path()):
            return True
    return False


def _queried(tag: QueryTag) -> Attribute:
    """The attribute of a tag that a search matches. Raises InvalidRequest where it must not be asked for."""
    if tag.status != READY:
        raise InvalidRequest(f"The extended query tag {tag.path} is {tag.status.lower()}; try again later.")
    if not tag.enabled:
        raise InvalidRequest(f"The extended query tag {tag.path} is disabled.")
    return tag.attribute


def _returns(tag: QueryTag, values: Mapping[str, str], fields: Iterable[str]) -> bool:
    """Whether a search that matches ``values`` and includes ``fields`` returns a tag."""
    if tag.status != READY:
        return False
    named = [".".join(_path(field)) for field in fields if field.lower() != "all"]
    return tag.path in values or any(field.lower() == "all" for field in fields) or tag.path in named


def _requested(
    attributes: Mapping[str, Attribute], fields: Iterable[str], returned: Iterable[QueryTag]
) -> frozenset[str]:
    """The tags asked for by matching or naming them, but for what extended query tags give."""
    given = {tag.path for tag in returned}
    matched = {attribute.tag for path, attribute in attributes.items() if path not in given}
    named = [field for field in fields if field.lower() != "all" and ".".join(_path(field)) not in given]
    return frozenset(matched | {_field(field) for field in named})


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
