"""A search for workitems (PS3.18 §11.8)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.dicom.search_terms import Order, Position, Term


@dataclass(frozen=True)
class WorkitemQuery:
    """What is searched for, as :class:`shared.dicom.search_terms.SearchQuery` says it of studies.

    ``requested`` are the tags returned beyond those that always are; ``include_all`` returns all there are.
    """

    partition: str
    terms: tuple[Term, ...] = ()
    requested: frozenset[str] = frozenset()
    include_all: bool = False
    limit: int = 100
    offset: int = 0
    order: tuple[Order, ...] = ()
    after: Position | None = None
