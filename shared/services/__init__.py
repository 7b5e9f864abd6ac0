"""What the server does, one module a transaction; no request, header or status code is seen here.

Modules load on first use (PEP 562): importing the app must not pay for SQL, storage and codecs.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = frozenset(
    {
        "access",
        "archive",
        "audit",
        "backlog",
        "change_feed",
        "cleanup",
        "delete",
        "events",
        "export",
        "fhir",
        "follower",
        "frame_cache",
        "health",
        "imports",
        "inbox",
        "ingest",
        "metadata",
        "partitions",
        "operations",
        "query_tags",
        "reindex",
        "rendered",
        "retrieve",
        "search",
        "store",
        "transcoded",
        "update",
        "workitem_events",
        "workitem_subscriptions",
        "workitems",
    }
)


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(name)
    return importlib.import_module(f"{__name__}.{name}")
