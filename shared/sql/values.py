"""Rows of ``attribute_value``: written and deleted in the transaction that writes or deletes their owner."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from shared.dicom.attributes import Level
from shared.dicom.indexed_values import IndexedValue
from shared.sql.engine import uid_table
from shared.sql.tables import attribute_value


@dataclass(frozen=True, slots=True)
class Owner:
    """The study, series or instance that has values, by the keys of its rows; 0 for those below it."""

    partition_key: int
    study_key: int
    series_key: int = 0
    instance_key: int = 0

    @property
    def level(self) -> Level:
        """What it is."""
        return Level.INSTANCE if self.instance_key else Level.SERIES if self.series_key else Level.STUDY

    @property
    def key(self) -> int:
        """The key of its own row."""
        return self.instance_key or self.series_key or self.study_key


def insert(connection: sa.Connection, rows: Sequence[tuple[Owner, Sequence[IndexedValue]]]) -> None:
    """Add the values of owners that have none of these attributes yet."""
    written = [_row(owner, value) for owner, found in rows for value in found]
    if written:
        connection.execute(sa.insert(attribute_value), written)


def _row(owner: Owner, value: IndexedValue) -> dict[str, Any]:
    return {
        "partition_key": owner.partition_key,
        "level": int(owner.level),
        "study_key": owner.study_key,
        "series_key": owner.series_key,
        "owner_key": owner.key,
        **asdict(value),
    }


def replace_of_parents(
    connection: sa.Connection, study_key: int, owners: Mapping[Owner, Sequence[IndexedValue]]
) -> None:
    """Make what is given all the values of a study and of some of its series.

    Nothing is written of those that have these values already: all but the first store into a series.
    """
    v = attribute_value
    columns = (v.c.series_key, v.c.attribute, v.c.item, v.c.text, v.c.words, v.c.utc, v.c.number)
    current: dict[int, set[IndexedValue]] = {}
    rows = connection.execute(
        sa.select(*columns).where(v.c.study_key == study_key, v.c.level <= int(Level.SERIES))
    )
    for series_key, *row in rows:
        current.setdefault(series_key, set()).add(IndexedValue(*row))
    changed = {
        owner: rows for owner, rows in owners.items() if current.get(owner.series_key, set()) != set(rows)
    }
    for owner in changed:
        if owner.series_key in current:
            delete(connection, owner)
    insert(connection, list(changed.items()))


def delete(
    connection: sa.Connection,
    owner: Owner,
    with_children: bool = False,
    attributes: Collection[str] | None = None,
) -> None:
    """Remove the values of an owner; ``with_children``, of what is below it too.

    Those of ``attributes`` alone where these are given.
    """
    conditions = _of(owner, with_children)
    if attributes is not None:
        given = uid_table(sorted(attributes))
        conditions.append(attribute_value.c.attribute.in_(sa.select(given.c.value)))
    connection.execute(sa.delete(attribute_value).where(*conditions))


def delete_of_instances(connection: sa.Connection, study_key: int) -> None:
    """Remove the values of all instances of a study, but not those of its series."""
    v = attribute_value
    connection.execute(sa.delete(v).where(v.c.study_key == study_key, v.c.level == int(Level.INSTANCE)))


def _of(owner: Owner, with_children: bool) -> list[sa.ColumnElement[bool]]:
    v = attribute_value
    conditions = [v.c.study_key == owner.study_key]
    if not with_children:
        return [
            *conditions,
            v.c.level == int(owner.level),
            v.c.series_key == owner.series_key,
            v.c.owner_key == owner.key,
        ]
    if owner.series_key:
        conditions += [
            v.c.level.in_([int(Level.SERIES), int(Level.INSTANCE)]),
            v.c.series_key == owner.series_key,
        ]
    return conditions
