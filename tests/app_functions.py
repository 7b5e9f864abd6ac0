"""The app's functions as the platform indexes them; ``get_functions`` works once in a process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class IndexedFunction:
    """A function: its unique name and its trigger's binding."""

    name: str
    binding: dict[str, Any]

    @property
    def template(self) -> str:
        """The route template."""
        return str(self.binding["route"])

    @property
    def methods(self) -> frozenset[str]:
        """The HTTP methods."""
        return frozenset(self.binding["methods"])


@cache
def all_functions() -> tuple[IndexedFunction, ...]:
    """Every function of the app."""
    import function_app

    return tuple(
        IndexedFunction(function.get_function_name(), binding)
        for function in function_app.app.get_functions()
        for binding in map(json.loads, function.get_raw_bindings())
        if binding["type"].endswith("Trigger")
    )


def http_functions() -> list[IndexedFunction]:
    """Those that HTTP triggers."""
    return [function for function in all_functions() if function.binding["type"] == "httpTrigger"]
