"""Roles: which data actions a caller may do, and in which partitions.

``roles.json`` at the root of the app lists them; an access token names those of its caller (claim
``roles``, Microsoft Entra ID's app roles). The file is a JSON object::

    {"roles": [{"name": "DICOM Data Reader", "dataActions": ["read"], "partitions": ["*"]}]}

``partitions`` may be left out and is then all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ALL_PARTITIONS = "*"


class Action(StrEnum):
    """What a transaction does with data; every route declares one."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    MANAGE = "manage"


@dataclass(frozen=True, slots=True)
class Role:
    """A role: ``partitions`` are names of partitions, or ``*`` for all."""

    name: str
    actions: frozenset[Action]
    partitions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request: ``id`` is the object id of a user or application, ``client`` the application."""

    id: str
    client: str
    roles: tuple[Role, ...]

    def may(self, action: Action, partition: str) -> bool:
        """Whether a role allows ``action`` in ``partition``; ``*`` asks for all partitions."""
        return any(
            action in role.actions and not role.partitions.isdisjoint({partition, ALL_PARTITIONS})
            for role in self.roles
        )

    def may_somewhere(self, action: Action) -> bool:
        """Whether a role allows ``action`` in any partition."""
        return any(action in role.actions for role in self.roles)


class Roles:
    """The roles of ``roles.json``, by name."""

    def __init__(self, roles: Iterable[Role]) -> None:
        self._roles = {role.name: role for role in roles}

    @classmethod
    def load(cls, path: Path) -> Roles:
        """Read the file. Raises ValueError, which says what is wrong in it, and OSError."""
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("roles"), list):
            raise ValueError(f"{path.name} must be an object with a list named roles.")
        return cls(_role(entry, path.name) for entry in content["roles"])

    def of(self, names: Iterable[str]) -> tuple[Role, ...]:
        """The roles that a token names; names which the file lacks grant nothing."""
        return tuple(self._roles[name] for name in names if name in self._roles)


def _role(entry: object, file: str) -> Role:
    match entry:
        case {"name": str(name), "dataActions": [*actions], **rest} if name and rest.keys() <= {"partitions"}:
            partitions = rest.get("partitions", [ALL_PARTITIONS])
        case _:
            raise ValueError(f"{file}: a role has a name, dataActions and, optionally, partitions.")
    unknown = set(actions) - set(Action)
    if unknown:
        raise ValueError(f"{file}: {name} has a data action other than {', '.join(Action)}.")
    if not isinstance(partitions, list) or not all(isinstance(p, str) and p for p in partitions):
        raise ValueError(f"{file}: partitions of {name} must be a list of names.")
    return Role(name, frozenset(map(Action, actions)), frozenset(partitions))
