"""The operation that removes the values of deleted extended query tags, study by study."""

from __future__ import annotations

import time
from datetime import datetime

from shared import container, faults
from shared.dicom.query_tags import DELETING, QueryTag, TagSet
from shared.errors import DependencyUnavailable
from shared.services import query_tags
from shared.services.operations import Json, Operation, OperationFailed, Page, Tally
from shared.sql import query_tags as tags_index
from shared.sql import tag_values
from shared.sql.query_tags import TagsChanged

_STEP = 50
_STEPS = 40
_RACES = 8
_MADE_WITHIN = 120.0  # seconds: a request announces its operation, and then marks its tag


async def plan(operation: Operation, cursor: str) -> Page:
    """All studies, by their keys."""
    if not _mine(operation, await container.database().read(tags_index.read_set)):
        age = time.time() - datetime.fromisoformat(operation.created).timestamp()
        return Page([], "" if not cursor and age < _MADE_WITHIN else None)
    keys = await container.database().read(tag_values.studies_after, int(cursor or 0), _STEP * _STEPS)
    steps = [keys[start : start + _STEP] for start in range(0, len(keys), _STEP)]
    return Page(steps, str(keys[-1]) if len(keys) == _STEP * _STEPS else None)


def _mine(operation: Operation, tags: TagSet) -> list[QueryTag]:
    return [tag for tag in tags.tags if tag.operation == operation.id and tag.status == DELETING]


async def step(operation: Operation, number: int, items: list[Json]) -> Tally:
    """Remove the values of some studies."""
    tags = await container.database().read(tags_index.read_set)
    for key in items:
        for _ in range(_RACES):
            try:
                await container.database().write(tag_values.remove, key, _mine(operation, tags), tags)
                break
            except TagsChanged:
                tags = await container.database().read(tags_index.read_set)
        else:
            raise DependencyUnavailable("The extended query tags are changing; try again later.")
        faults.point("tag_deletion.removed")
    return Tally(done=len(items))


async def finish(operation: Operation, tally: Tally) -> Json:
    """Forget the tags. Raises OperationFailed where values are left: then they stay, being deleted."""
    if operation.status != "succeeded":
        raise OperationFailed("Some values are left; delete the extended query tag again.")
    await container.database().write(tags_index.end_deleting, operation.id)
    faults.point("tag_deletion.forgotten")
    await query_tags.save_definitions()
    return {"studies": tally.done}
