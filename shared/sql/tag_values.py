"""Values of extended query tags for what is stored already: what the re-index operation reads and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shared.dicom.attributes import Level
from shared.dicom.identifiers import InstanceKey
from shared.dicom.query_tags import QueryTag, TagSet, TagValues, returned
from shared.sql import query_tags, values
from shared.sql import tables as t
from shared.sql.engine import uid_table
from shared.sql.instances import Place, StoredInstance
from shared.sql.values import Owner

_TABLES = {Level.STUDY: t.study, Level.SERIES: t.series, Level.INSTANCE: t.instance}
_KEYS: dict[Level, sa.Column[int]] = {
    Level.STUDY: t.study.c.study_key,
    Level.SERIES: t.series.c.series_key,
    Level.INSTANCE: t.instance.c.instance_key,
}


@dataclass(frozen=True, slots=True)
class Source:
    """The instance whose values an owner has: the last one stored of a study or series, or itself.

    ``owner_key`` is the key of the owner's row, ``owner`` the instance with its parents.
    """

    owner_key: int
    owner: Owner
    stored: StoredInstance


def last_key(connection: sa.Connection, level: Level) -> int:
    """The greatest key of the rows of a level."""
    return connection.execute(sa.select(sa.func.max(_KEYS[level]))).scalar() or 0


def count(connection: sa.Connection, level: Level) -> int:
    """Rows of a level."""
    return connection.execute(sa.select(sa.func.count()).select_from(_TABLES[level])).scalar_one()


def keys_after(connection: sa.Connection, level: Level, after: int, top: int, limit: int) -> list[int]:
    """Keys of a level's rows between ``after`` and ``top``, that included, in order."""
    key = _KEYS[level]
    rows = connection.execute(
        sa.select(key).where(key > after, key <= top).order_by(key).limit(limit)
    ).scalars()
    return list(rows)


def sources(connection: sa.Connection, level: Level, keys: Sequence[int]) -> list[Source]:
    """Where the values of these owners come from; owners that are gone are left out."""
    i, owner_key = t.instance, t.instance.c[_KEYS[level].name]
    given = uid_table([str(key) for key in keys])
    wanted = sa.select(sa.cast(given.c.value, sa.BigInteger))
    statement = (
        sa.select(
            owner_key,
            i.c.partition_key,
            i.c.study_key,
            i.c.series_key,
            i.c.instance_key,
            t.partition.c.partition_name,
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            i.c.version,
            i.c.size,
            i.c.transfer_syntax_uid,
            i.c.number_of_frames,
            i.c.frame_offset,
            i.c.frame_bits,
            i.c.pack,
            i.c.document_offset,
            i.c.document_length,
            i.c.bulkdata_length,
            i.c.frames_length,
        )
        .select_from(i)
        .join(t.series, t.series.c.series_key == i.c.series_key)
        .join(t.study, t.study.c.study_key == i.c.study_key)
        .join(t.partition, t.partition.c.partition_key == i.c.partition_key)
        .where(owner_key.in_(wanted))
    )
    if level is not Level.INSTANCE:
        last = _last_versions(level, wanted)
        statement = statement.join(last, (owner_key == last.c.owner_key) & (i.c.version == last.c.version))
    found: dict[int, Source] = {}
    for row in connection.execute(statement):
        columns: tuple[Any, ...] = tuple(row)
        key, place = InstanceKey(*columns[5:9]), Place(*columns[15:20])
        version, size, transfer_syntax, frames, frame_offset, frame_bits = columns[9:15]
        stored = StoredInstance(key, version, size, transfer_syntax, frames, frame_offset, frame_bits, place)
        source = Source(columns[0], Owner(*columns[1:5]), stored)
        other = found.setdefault(row[0], source)
        if source.owner.instance_key > other.owner.instance_key:
            found[row[0]] = source
    return list(found.values())


def _last_versions(level: Level, wanted: sa.Select[Any]) -> sa.Subquery:
    """The last version stored below each owner: versions are in the order of their times."""
    i, owner_key = t.instance, t.instance.c[_KEYS[level].name]
    return (
        sa.select(owner_key.label("owner_key"), sa.func.max(i.c.version).label("version"))
        .where(owner_key.in_(wanted))
        .group_by(owner_key)
        .subquery("last_versions")
    )


def write(
    connection: sa.Connection,
    version: int,
    level: Level,
    tags: Sequence[QueryTag],
    found: Sequence[tuple[Source, TagValues]],
) -> list[int]:
    """Give owners the values of ``tags``; the keys of those whose source is another one by now.

    ``json`` of the values has those of all tags of the level. Raises TagsChanged.
    """
    query_tags.hold(connection, version)
    for uid, study_key in sorted({(s.stored.key.study, s.owner.study_key) for s, _ in found}):
        del uid  # studies are locked in the order in which stores lock them
        connection.execute(
            sa.select(t.study.c.study_key)
            .with_hint(t.study, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
            .where(t.study.c.study_key == study_key)
        )
    now = {s.owner_key: s for s in sources(connection, level, [s.owner_key for s, _ in found])}
    same = [
        (source, what)
        for source, what in found
        if source.owner_key in now and now[source.owner_key].stored.version == source.stored.version
    ]
    _write(connection, level, tags, same)
    written = {source.owner_key for source, _ in same}
    return [key for key in now if key not in written]


def _write(
    connection: sa.Connection,
    level: Level,
    tags: Sequence[QueryTag],
    found: Sequence[tuple[Source, TagValues]],
) -> None:
    names, keys = {tag.attribute.value_name for tag in tags}, {tag.key for tag in tags}
    owners = [(_owner(level, source.owner), source, what) for source, what in found]
    for owner, source, what in owners:
        values.delete(connection, owner, attributes=names)
        query_tags.forget_errors(connection, owner, keys)
        connection.execute(
            sa.update(_TABLES[level])
            .where(_KEYS[level] == source.owner_key)
            .values(tag_attributes=what.json or None)
        )
    values.insert(
        connection,
        [(owner, [row for row in what.rows if row.attribute in names]) for owner, _, what in owners],
    )
    query_tags.record_errors(
        connection,
        [
            (source.owner, tag_key, message)
            for _, source, what in owners
            for tag_key, message in what.failed
            if tag_key in keys
        ],
    )


def _owner(level: Level, instance: Owner) -> Owner:
    return Owner(
        instance.partition_key,
        instance.study_key,
        instance.series_key if level >= Level.SERIES else 0,
        instance.instance_key if level is Level.INSTANCE else 0,
    )


# --- deleting ----------------------------------------------------------------------------------------


def studies_after(connection: sa.Connection, after: int, limit: int) -> list[int]:
    """Keys of studies after ``after``, in order."""
    return keys_after(connection, Level.STUDY, after, last_key(connection, Level.STUDY), limit)


def remove(connection: sa.Connection, study_key: int, tags: Sequence[QueryTag], all_tags: TagSet) -> None:
    """Delete the values that ``tags`` have in a study; ``all_tags`` says which stay. Raises TagsChanged."""
    query_tags.hold(connection, all_tags.version)
    connection.execute(
        sa.select(t.study.c.study_key)
        .with_hint(t.study, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
        .where(t.study.c.study_key == study_key)
    )
    v = t.attribute_value
    given = uid_table(sorted(tag.attribute.value_name for tag in tags))
    connection.execute(
        sa.delete(v).where(v.c.study_key == study_key, v.c.attribute.in_(sa.select(given.c.value)))
    )
    for level in sorted({tag.level for tag in tags}):
        _cut(connection, study_key, level, all_tags.at(level))


def _cut(connection: sa.Connection, study_key: int, level: Level, kept: Sequence[QueryTag]) -> None:
    """Leave of the JSON of tags' values, of a study and what is below it, that of ``kept``."""
    table, key = _TABLES[level], _KEYS[level]
    rows = connection.execute(
        sa.select(key, table.c.tag_attributes).where(
            table.c.study_key == study_key, table.c.tag_attributes.is_not(None)
        )
    ).all()
    for row_key, text in rows:
        left = returned(json.loads(text), kept)
        shorter = json.dumps(left, separators=(",", ":"), ensure_ascii=False) if left else None
        if shorter != text:
            connection.execute(sa.update(table).where(key == row_key).values(tag_attributes=shorter))
