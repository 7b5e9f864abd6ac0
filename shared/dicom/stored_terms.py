"""Search terms as JSON, and back: an operation that runs for long searches by what its start checked."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast, get_args

from shared.dicom import search_terms
from shared.dicom.attributes import Attribute, Level, Matching
from shared.dicom.search_terms import Term

_CLASSES: dict[str, Any] = {
    kind.__name__: kind for kind in (*get_args(Term), search_terms.Moment, Attribute, Level, Matching)
}


def dump(term: Term) -> Any:
    """What JSON can hold of a term."""
    return _dump(term)


def load(given: Any) -> Term:
    """The term that :func:`dump` was given."""
    return cast(Term, _load(given))


def _dump(value: Any) -> Any:
    if isinstance(value, Enum):
        return {"": type(value).__name__, "name": value.name}
    if is_dataclass(value):
        members = {field.name: _dump(getattr(value, field.name)) for field in fields(value)}
        return {"": type(value).__name__} | members
    if isinstance(value, tuple):
        return [_dump(item) for item in value]
    return value


def _load(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(_load(item) for item in given)
    if not isinstance(given, dict):
        return given
    kind = _CLASSES[given[""]]
    if issubclass(kind, Enum):
        return kind[given["name"]]
    return kind(**{name: _load(value) for name, value in given.items() if name})
