"""The operation that indexes what is stored already by new extended query tags.

Instances stored since the tags were added have been indexed by the store, so the plan ends at the greatest
key there was. Values of a study or series come from the last instance stored, as in a store.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import orjson

from shared import container, faults
from shared.dicom.attributes import Level
from shared.dicom.query_tags import ADDING, QueryTag, TagSet, TagValues, values_of
from shared.errors import DependencyUnavailable, NotFound
from shared.services import query_tags, retrieve
from shared.services.operations import Json, Operation, Page, Tally
from shared.sql import query_tags as tags_index
from shared.sql import tag_values
from shared.sql.query_tags import TagsChanged
from shared.sql.tag_values import Source

_STEP = 100
_STEPS = 40
_RACES = 8
_MADE_WITHIN = 120.0  # seconds: a request announces its operation, and then adds its tags
_UNREADABLE = "The metadata of the instance could not be read."


async def plan(operation: Operation, cursor: str) -> Page:
    """Owners of values: level by level, by their keys."""
    tags = await container.database().read(tags_index.read_set)
    levels = sorted({tag.level for tag in _mine(operation, tags)}, reverse=True)
    if not levels:
        waiting = not cursor and _age(operation) < _MADE_WITHIN
        return Page([], "" if waiting else None)
    total = None
    if not cursor:
        total = sum([await container.database().read(tag_values.count, level) for level in levels])
        cursor = await _begin(levels[0])
    level, after, top = (int(part) for part in cursor.split(":"))
    if Level(level) not in levels:  # its tags have been deleted
        return Page([], await _next(levels, level), total)
    keys = await container.database().read(tag_values.keys_after, Level(level), after, top, _STEP * _STEPS)
    steps = [[[level, key] for key in keys[start : start + _STEP]] for start in range(0, len(keys), _STEP)]
    full = len(keys) == _STEP * _STEPS
    return Page(steps, f"{level}:{keys[-1]}:{top}" if full else await _next(levels, level), total)


async def _begin(level: Level) -> str:
    return f"{int(level)}:0:{await container.database().read(tag_values.last_key, level)}"


async def _next(levels: Sequence[Level], done: int) -> str | None:
    left = [level for level in levels if level < done]
    return await _begin(left[0]) if left else None


def _age(operation: Operation) -> float:
    return time.time() - datetime.fromisoformat(operation.created).timestamp()


def _mine(operation: Operation, tags: TagSet) -> list[QueryTag]:
    return [tag for tag in tags.tags if tag.operation == operation.id and tag.status == ADDING]


async def step(operation: Operation, number: int, items: list[Json]) -> Tally:
    """Index some owners, all of one level. Those that have gone since need no values."""
    level, keys = Level(items[0][0]), [key for _, key in items]
    failed: set[int] = set()
    for _ in range(_RACES):
        tags = await container.database().read(tags_index.read_set)
        mine = [tag for tag in _mine(operation, tags) if tag.level is level]
        if not mine:
            return Tally(skipped=len(items))
        found = await container.database().read(tag_values.sources, level, keys)
        valued = [
            (source, await _values(source, document, tags.at(level)))
            async for source, document in _read(found)
        ]
        faults.point("reindex.read")
        try:
            keys = await container.database().write(tag_values.write, tags.version, level, mine, valued)
        except TagsChanged:
            continue
        faults.point("reindex.written")
        added = {tag.key for tag in mine}
        failed |= {s.owner_key for s, v in valued if any(key in added for key, _ in v.failed)} - set(keys)
        if not keys:
            errors = ("Values of some instances cannot be indexed; see the errors of the tags.",)
            return Tally(len(items) - len(failed), len(failed), errors=errors if failed else ())
    raise DependencyUnavailable("The studies are changing; try again later.")


async def _values(source: Source, document: bytes | None, tags: Sequence[QueryTag]) -> TagValues:
    if document is None:
        return TagValues(failed=tuple((tag.key, _UNREADABLE) for tag in tags))
    dataset: dict[str, Any] = orjson.loads(document)
    return values_of(dataset, tags)


async def _read(found: Sequence[Source]) -> AsyncIterator[tuple[Source, bytes | None]]:
    """The metadata of each; None where there is none. One that is deleted meanwhile is left out."""
    waiting = {source.stored.key: source for source in found}
    try:
        async for key, document in retrieve.read_documents([source.stored for source in found]):
            yield waiting.pop(key), document
    except NotFound:
        for source in list(waiting.values()):
            yield source, await _read_one(source)


async def _read_one(source: Source) -> bytes | None:
    try:
        async for _, document in retrieve.read_documents([source.stored]):
            return document
    except NotFound:
        pass
    return None


async def finish(operation: Operation, tally: Tally) -> Json:
    """The tags are ready when all of it was planned and done; else they stay as they are, to be deleted."""
    tags = await container.database().read(tags_index.read_set)
    paths = [tag.path for tag in tags.tags if tag.operation == operation.id]
    if operation.status == "succeeded":
        await container.database().write(tags_index.end_adding, operation.id)
    faults.point("reindex.ready")
    await query_tags.save_definitions()
    return {"queryTags": paths, "indexed": tally.done, "failed": tally.failed}
