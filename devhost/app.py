"""The functions of an app, loaded as the platform's Python worker loads them.

Follows ``index_function_app`` of Microsoft's ``azure-functions-runtime`` (loader.py): import
``function_app``, take its one FunctionRegister, call ``get_functions()``. A test compares the outcome.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devhost.azurite import PORTS, connection_string
from devhost.settings import expand, is_disabled


@dataclass(frozen=True)
class Function:
    """One function: what fires it and what to call."""

    name: str
    trigger: str
    binding: dict[str, Any]
    call: Callable[..., Any]

    async def invoke(self, argument: Any) -> Any:
        """Run the function with its trigger's argument; one that blocks runs on a thread."""
        arguments = {self.binding["name"]: argument}
        if inspect.iscoroutinefunction(self.call):
            return await self.call(**arguments)
        return await asyncio.to_thread(self.call, **arguments)

    def text(self, key: str) -> str:
        """A value of the trigger with ``%SETTING%`` replaced. Raises ValueError for unknown settings."""
        return expand(str(self.binding[key]))

    @property
    def route(self) -> str:
        """The route template without the prefix; the function's name when it has none."""
        return str(self.binding.get("route") or self.name)

    @property
    def methods(self) -> list[str]:
        """The HTTP methods; none means all."""
        return [str(method) for method in self.binding.get("methods") or ()]

    @property
    def connection(self) -> str:
        """The connection string of the storage account the trigger listens to. Raises ValueError."""
        setting = str(self.binding.get("connection") or "AzureWebJobsStorage")
        value = os.environ.get(setting) or os.environ.get(f"AzureWebJobs{setting}", "")
        if not value:
            raise ValueError(f"{self.name}: the setting {setting} holds no connection string.")
        return connection_string(PORTS) if value == "UseDevelopmentStorage=true" else value


def load_functions(root: Path) -> list[Function]:
    """The enabled functions of the app in ``root``, in alphabetical order of their names.

    Raises ValueError when ``function_app.py`` defines no app or several, and whatever its import raises.
    """
    sys.path.insert(0, str(root))
    module = importlib.import_module("function_app")

    from azure.functions import FunctionRegister

    apps = {id(value): value for value in vars(module).values() if isinstance(value, FunctionRegister)}
    if len(apps) != 1:
        raise ValueError(f"function_app.py must define one function app at its top level, not {len(apps)}.")
    (app,) = apps.values()
    functions = [_describe(indexed) for indexed in app.get_functions()]
    return sorted((f for f in functions if not is_disabled(f.name)), key=lambda f: f.name.lower())


def _describe(indexed: Any) -> Function:
    name = indexed.get_function_name()
    bindings = [json.loads(binding) for binding in indexed.get_raw_bindings()]
    triggers = [binding for binding in bindings if binding["type"].endswith("Trigger")]
    if len(triggers) != 1:
        raise ValueError(f"The function {name} must have one trigger.")
    return Function(name, triggers[0]["type"], triggers[0], indexed.get_user_function())
