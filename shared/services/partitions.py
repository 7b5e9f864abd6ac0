"""Partitions: which there are."""

from __future__ import annotations

from shared import container
from shared.sql import partitions as index
from shared.sql.partitions import Partition


async def find_all() -> list[Partition]:
    """Every partition, oldest first."""
    return await container.database().read(index.find_all)
