"""Partitions: name spaces of studies, each made by the first store in it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from shared.sql import change_feed
from shared.sql import tables as t


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition; ``created`` is a timestamp."""

    key: int
    name: str
    created: str


def find_all(connection: sa.Connection) -> list[Partition]:
    """Every partition, oldest first."""
    partition = t.partition
    rows = connection.execute(
        sa.select(partition.c.partition_key, partition.c.partition_name, partition.c.created).order_by(
            partition.c.partition_key
        )
    )
    return [Partition(*row) for row in rows]


def find(connection: sa.Connection, name: str) -> int | None:
    """The key of a partition, or None where there is none of that name."""
    partition = t.partition
    return connection.execute(
        sa.select(partition.c.partition_key).where(partition.c.partition_name == name)
    ).scalar()


def key_of(connection: sa.Connection, name: str) -> int:
    """The key of a partition, which is made where there is none of that name."""
    partition = t.partition
    found = connection.execute(
        sa.select(partition.c.partition_key).where(partition.c.partition_name == name)
    ).scalar()
    if found is not None:
        return int(found)
    row = {"partition_name": name, "created": change_feed.timestamp()}
    return int(connection.execute(sa.insert(partition), row).inserted_primary_key[0])  # type: ignore[index]
