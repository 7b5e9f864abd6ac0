"""What an export lists page by page, and what it reads of the instances it was told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.search_terms import Term
from shared.sql import search
from shared.sql import tables as t
from shared.sql.instances import StoredInstance, find_instances


@dataclass(frozen=True, slots=True)
class Listed:
    """An instance of a listing: ``place`` orders the listing, ``size`` is the file's in bytes."""

    place: int
    key: InstanceKey
    size: int


def page(
    connection: sa.Connection, resource: Resource, terms: Sequence[Term], after: int, limit: int
) -> list[Listed]:
    """Up to ``limit`` instances of ``resource`` whose study, series and itself match ``terms``, in the order
    in which they were first stored and after the place ``after``. What is stored meanwhile comes last."""
    rows = connection.execute(statement(resource, terms, after, limit))
    return [
        Listed(place, InstanceKey(resource.partition, study, series, instance), size)
        for place, study, series, instance, size in rows
    ]


def statement(resource: Resource, terms: Sequence[Term], after: int, limit: int) -> sa.Select[Any]:
    """The statement of a page."""
    i = t.instance
    rows, conditions = search.matching_instances(resource, terms)
    return (
        sa.select(
            i.c.instance_key,
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            i.c.size,
        )
        .select_from(rows)
        .where(i.c.instance_key > after, *conditions)
        .order_by(i.c.instance_key)
        .limit(limit)
    )


def find_listed(connection: sa.Connection, keys: Iterable[InstanceKey]) -> dict[InstanceKey, StoredInstance]:
    """Those of ``keys``, all of one partition, that are stored; one statement."""
    wanted = set(keys)
    (partition,) = {key.partition for key in wanted}
    uids = {key.instance for key in wanted}
    found = find_instances(connection, Resource(partition), among=uids)
    return {stored.key: stored for stored in found if stored.key in wanted}
