"""Identifiers: UIDs, partitions and the keys of studies, series and instances."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import InvalidRequest

DEFAULT_PARTITION = "Microsoft.Default"

_UID = re.compile(r"[0-9A-Za-z.\-]{1,64}")
_PARTITION = re.compile(r"[0-9A-Za-z.\-_]{1,64}")


def is_uid(value: str) -> bool:
    """Whether ``value`` is 1-64 letters, digits, ``.`` or ``-``.

    PS3.5 §9.1 allows digits and ``.`` alone; letters and ``-`` are accepted as the ancestor does.
    """
    return _UID.fullmatch(value) is not None


def check_uid(value: str, keyword: str) -> str:
    """Return ``value`` or raise InvalidRequest naming the attribute ``keyword``."""
    if not is_uid(value):
        raise InvalidRequest(f"{keyword} must be 1 to 64 letters, digits, '.' or '-'.")
    return value


def is_partition(value: str) -> bool:
    """Whether ``value`` may name a partition: 1-64 letters, digits, ``.``, ``-`` or ``_``."""
    return _PARTITION.fullmatch(value) is not None


def check_partition(value: str) -> str:
    """Return a partition's name or raise InvalidRequest."""
    if not is_partition(value):
        raise InvalidRequest("A partition's name must be 1 to 64 letters, digits, '.', '-' or '_'.")
    return value


def check_ae_title(value: str) -> str:
    """Return an AE title without insignificant spaces (PS3.5 §6.2) or raise InvalidRequest."""
    title = value.strip(" ")
    if not (0 < len(title) <= 16 and title.isascii() and title.isprintable() and "\\" not in title):
        raise InvalidRequest("An AE title must be 1 to 16 printable ASCII characters without backslash.")
    return title


@dataclass(frozen=True, slots=True)
class Resource:
    """A study, series or instance: what a Studies-service path addresses (PS3.18 §10.1.1).

    ``series`` and ``instance`` are empty where the resource is a whole study or series; ``study`` is
    empty for "all studies".
    """

    partition: str
    study: str = ""
    series: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """Identifies one instance: partition and the three UIDs."""

    partition: str
    study: str
    series: str
    instance: str
