"""A search for workitems (PS3.18 §11.8)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.dicom.search_terms import Query


@dataclass(frozen=True)
class WorkitemQuery(Query):
    """What is searched for in a partition."""

    partition: str
