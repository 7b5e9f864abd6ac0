"""Delete: out of the index at once, the bytes later (``shared/services/cleanup.py``)."""

from __future__ import annotations

from shared import container, faults
from shared.dicom.identifiers import Resource
from shared.errors import NotFound
from shared.services.store import cleanup_time
from shared.sql import instances


async def delete(resource: Resource) -> int:
    """Delete what ``resource`` addresses; the number of instances deleted.

    From the return on no search, retrieve or metadata shows them, and the change feed says so. Raises
    NotFound where there is nothing.
    """
    faults.point("delete.started")
    count = await container.database().write(instances.delete, resource, cleanup_time())
    faults.point("delete.committed")
    if not count:
        kind = "instance" if resource.instance else "series" if resource.series else "study"
        raise NotFound(f"The {kind} does not exist.")
    return count
