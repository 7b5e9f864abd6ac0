"""An event as publishers take it; apart from them, so that a server that sends none does not load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event in neither of its two forms yet. ``time`` is ISO 8601 in UTC."""

    id: str
    type: str
    source: str
    subject: str
    time: str
    data: dict[str, Any]
