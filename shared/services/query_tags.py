"""Extended query tags: what operators make searchable beside the attribute table.

SQL holds the tags that count; a copy of their definitions in Table Storage lets them survive a rebuilding of
the index. Adding one starts an operation that indexes what is stored already, deleting one an operation that
removes its values.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from shared import container, faults
from shared.dicom.attributes import Level
from shared.dicom.query_tags import DELETING, Definition, Json, QueryTag, TagSet, definitions, tag_path
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.services import operations
from shared.services.operations import Operation
from shared.sql import query_tags as index
from shared.sql.engine import Database
from shared.sql.query_tags import TagError

__all__ = ["QueryTag", "TagError"]


@dataclass(frozen=True, slots=True)
class Described:
    """A tag, and for how many instances it lacks the values."""

    tag: QueryTag
    errors: int


async def add(entries: object) -> Operation:
    """Add tags; the operation that indexes what is stored already. What is stored from now on is indexed.

    Raises InvalidRequest and Conflict, and adds none of the tags then.
    """
    wanted = definitions(entries)
    paths = [f"extendedquerytags/{definition.path}" for definition in wanted]
    operation = await operations.announce("reindex", {}, paths, uuid.uuid4().hex)
    faults.point("query_tags.announced")
    try:
        await container.database().write(index.add, wanted, operation.id)
    except (Conflict, InvalidRequest):
        await operations.discard(operation)
        raise
    faults.point("query_tags.added")
    await operations.begin(operation)
    await save_definitions()
    return operation


async def listed(limit: int, offset: int) -> list[Described]:
    """A page of the tags, in the order in which they were added."""
    tags = (await container.database().read(index.read_set)).tags[offset : offset + limit]
    return await _described(tags)


async def get(name: str) -> Described:
    """The tag of a path. Raises InvalidRequest, NotFound."""
    return (await _described([await _find(name)]))[0]


async def _find(name: str) -> QueryTag:
    tag = (await container.database().read(index.read_set)).find(tag_path(name))
    if tag is None:
        raise NotFound("There is no such extended query tag.")
    return tag


async def _described(tags: Sequence[QueryTag]) -> list[Described]:
    counts: dict[int, int] = {}
    if any(tag.erroneous for tag in tags):
        counts = await container.database().read(index.count_errors)
    return [Described(tag, counts.get(tag.key, 0)) for tag in tags]


async def enable(name: str, enabled: bool) -> Described:
    """Allow or forbid queries by a tag. Raises InvalidRequest, NotFound, and Conflict while it is deleted."""
    tag = await _find(name)
    if not await container.database().write(index.enable, tag.path, enabled):
        raise Conflict("The extended query tag is being deleted.")
    await save_definitions()
    return await get(tag.path)


async def delete(name: str) -> None:
    """Delete a tag; its values are removed by an operation. Raises InvalidRequest, NotFound."""
    tag = await _find(name)
    if tag.status == DELETING and not await _has_ended(tag.operation):
        return
    operation = await operations.announce(
        "deletetag", {}, [f"extendedquerytags/{tag.path}"], uuid.uuid4().hex
    )
    if not await container.database().write(index.begin_deleting, tag.path, tag.operation, operation.id):
        await operations.discard(operation)
        return  # somebody else was faster
    faults.point("query_tags.deleting")
    await operations.begin(operation)
    await save_definitions()


async def _has_ended(operation: str) -> bool:
    try:
        return (await operations.get(operation)).ended
    except NotFound:
        return True


async def errors(name: str, limit: int, offset: int) -> list[TagError]:
    """A page of the instances whose values a tag lacks. Raises InvalidRequest, NotFound."""
    tag = await _find(name)
    return await container.database().read(index.errors, tag.key, limit, offset)


# --- the tags that stores know -----------------------------------------------------------------------

_known: tuple[Database, TagSet] | None = None


async def current() -> TagSet:
    """The tags as this process knows them; a transaction that writes values says when they are not so."""
    return _known[1] if _known is not None and _known[0] is container.database() else await refreshed()


async def refreshed() -> TagSet:
    """The tags as they are now."""
    global _known
    database = container.database()
    _known = database, await database.read(index.read_set)
    return _known[1]


async def for_search() -> TagSet:
    """The tags as a search needs them: as they are now."""
    return await container.database().read(index.read_set)


# --- definitions -------------------------------------------------------------------------------------


async def save_definitions() -> None:
    """Copy the definitions to Table Storage."""
    tags = await container.database().read(index.read_set)
    text = json.dumps(
        [
            {
                "path": tag.path,
                "vr": tag.definition.vr,
                "privateCreator": tag.definition.creator,
                "level": int(tag.level),
                "enabled": tag.enabled,
            }
            for tag in tags.tags
            if tag.active
        ]
    )
    await container.state().save_query_tags(tags.version, text)


async def restore_definitions() -> int:
    """Give an empty index the tags that its predecessor had; how many. What is indexed next has them."""
    _, text = await container.state().query_tags()
    saved: list[Json] = json.loads(text or "[]")
    if not saved or (await container.database().read(index.read_set)).tags:
        return 0
    wanted = [Definition(tag["path"], tag["vr"], Level(tag["level"]), tag["privateCreator"]) for tag in saved]
    disabled = [tag["path"] for tag in saved if not tag["enabled"]]
    await container.database().write(index.restore, wanted, disabled)
    return len(saved)
