"""Values in a DICOM JSON object (PS3.18 Annex F), whatever the object holds in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def values_of(document: Mapping[str, Any], tag: str) -> list[Any]:
    """The values of an attribute; none where it is absent, empty or has no Value."""
    element = document.get(tag)
    found = element.get("Value") if isinstance(element, Mapping) else None
    return found if isinstance(found, list) else []


def value_of(document: Mapping[str, Any], tag: str, default: Any = None) -> Any:
    """The first value of an attribute, or ``default`` where there is none."""
    found = values_of(document, tag)
    return found[0] if found and found[0] is not None else default
