"""Extended query tags in SQL: the set of them, and what could not be indexed.

The set has a version that every change of it raises. A transaction that writes values holds the version it
knows until its end: so nothing that is committed after a tag was added lacks its values, and nothing that is
committed after one was deleted has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from shared.dicom import normalise
from shared.dicom.attributes import Level
from shared.dicom.identifiers import InstanceKey
from shared.dicom.query_tags import (
    ADDING,
    DELETING,
    MOST_TAGS,
    NO_TAGS,
    READY,
    Definition,
    QueryTag,
    TagSet,
    TagValues,
)
from shared.errors import Conflict, InvalidRequest
from shared.sql import tables as t
from shared.sql.change_feed import timestamp
from shared.sql.engine import SnapshotConflict, uid_table
from shared.sql.values import Owner


class TagsChanged(SnapshotConflict):
    """The set of tags is not the one that was given any more."""


@dataclass(frozen=True, slots=True)
class TagError:
    """An instance whose values a tag does not have."""

    key: InstanceKey
    created: str
    message: str


def read_set(connection: sa.Connection) -> TagSet:
    """All tags; one statement."""
    tag, failed = t.query_tag, t.query_tag_error
    erroneous = sa.exists().where(failed.c.tag_key == tag.c.tag_key)
    rows = connection.execute(
        sa.select(
            t.query_tag_set.c.version,
            tag,
            sa.case((erroneous, 1), else_=0).label("erroneous"),
        )
        .select_from(t.query_tag_set)
        .outerjoin(tag, sa.true())
        .order_by(tag.c.tag_key)
    ).all()
    tags = [
        QueryTag(
            key=row.tag_key,
            definition=Definition(row.path, row.vr, Level(row.level), row.private_creator),
            status=row.status,
            enabled=bool(row.enabled),
            version=row.changed_version,
            operation=row.operation,
            erroneous=bool(row.erroneous),
        )
        for row in rows
        if row.tag_key is not None
    ]
    return TagSet(rows[0].version, tuple(tags))


def hold(connection: sa.Connection, version: int) -> None:
    """Keep the set from changing until the end of the transaction. Raises TagsChanged.

    A transaction begins with this, before it locks anything else.
    """
    tag_set = t.query_tag_set
    found = connection.execute(
        sa.select(tag_set.c.version).with_hint(tag_set, "WITH (HOLDLOCK)", "mssql")
    ).scalar_one()
    if found != version:
        raise TagsChanged


def _raise_version(connection: sa.Connection, keys: int = 0) -> tuple[int, int]:
    """Wait for the transactions that hold the set; the new version, and the last key given out before."""
    tag_set = t.query_tag_set
    connection.execute(
        sa.update(tag_set).values(version=tag_set.c.version + 1, last_key=tag_set.c.last_key + keys)
    )
    row = connection.execute(sa.select(tag_set)).one()
    return row.version, row.last_key - keys


def add(
    connection: sa.Connection, definitions: Sequence[Definition], operation: str, status: str = ADDING
) -> None:
    """Add tags. Raises Conflict where there is one with the same path, InvalidRequest beyond the limit."""
    version, last_key = _raise_version(connection, len(definitions))
    there = {
        row.path: row.status
        for row in connection.execute(sa.select(t.query_tag.c.path, t.query_tag.c.status))
    }
    for definition in definitions:
        if definition.path in there:
            deleting = there[definition.path] == DELETING
            raise Conflict(
                f"The extended query tag {definition.path} "
                + ("is being deleted; try again later." if deleting else "exists already.")
            )
    if len(there) + len(definitions) > MOST_TAGS:
        raise InvalidRequest(f"There can be no more than {MOST_TAGS} extended query tags.")
    connection.execute(
        sa.insert(t.query_tag),
        [
            {
                "tag_key": last_key + number,
                "path": definition.path,
                "vr": definition.vr,
                "private_creator": definition.creator,
                "level": int(definition.level),
                "status": status,
                "enabled": 1,
                "changed_version": version,
                "operation": operation,
            }
            for number, definition in enumerate(definitions, 1)
        ],
    )


def restore(connection: sa.Connection, definitions: Sequence[Definition], disabled: Collection[str]) -> None:
    """Add tags to an empty index, which has the values of all it holds: none."""
    add(connection, definitions, "", READY)
    for path in disabled:
        enable(connection, path, False)


def enable(connection: sa.Connection, path: str, enabled: bool) -> bool:
    """Allow or forbid queries by a tag; False where there is none that is not being deleted."""
    version, _ = _raise_version(connection)
    tag = t.query_tag
    changed = connection.execute(
        sa.update(tag)
        .where(tag.c.path == path, tag.c.status != DELETING)
        .values(enabled=int(enabled), changed_version=version)
    )
    return changed.rowcount > 0


def begin_deleting(connection: sa.Connection, path: str, former: str, operation: str) -> bool:
    """From here on nothing is indexed by a tag; False where its operation is another than ``former``."""
    version, _ = _raise_version(connection)
    tag = t.query_tag
    changed = connection.execute(
        sa.update(tag)
        .where(tag.c.path == path, tag.c.operation == former)
        .values(status=DELETING, operation=operation, changed_version=version)
    )
    return changed.rowcount > 0


def end_adding(connection: sa.Connection, operation: str) -> None:
    """The tags of an operation have the values of all instances; what has errors is not for queries yet."""
    version, _ = _raise_version(connection)
    tag, failed = t.query_tag, t.query_tag_error
    mine = (tag.c.operation == operation, tag.c.status == ADDING)
    erroneous = sa.exists().where(failed.c.tag_key == tag.c.tag_key)
    connection.execute(sa.update(tag).where(*mine, erroneous).values(enabled=0))
    connection.execute(sa.update(tag).where(*mine).values(status=READY, changed_version=version))


def end_deleting(connection: sa.Connection, operation: str) -> None:
    """Forget the tags of an operation that has deleted their values."""
    _raise_version(connection)
    tag, failed = t.query_tag, t.query_tag_error
    mine = sa.select(tag.c.tag_key).where(tag.c.operation == operation, tag.c.status == DELETING)
    connection.execute(sa.delete(failed).where(failed.c.tag_key.in_(mine)))
    connection.execute(sa.delete(tag).where(tag.c.operation == operation, tag.c.status == DELETING))


# --- errors ------------------------------------------------------------------------------------------


def write_errors(
    connection: sa.Connection, tags: TagSet, stored: Sequence[tuple[Owner, Mapping[Level, TagValues]]]
) -> None:
    """Note what could not be indexed of new instances: their own values, and those that the last of them
    gives its series and its study."""
    last: dict[Owner, tuple[Owner, Level, TagValues]] = {}
    for instance, found in stored:
        for level, owner in (
            (Level.STUDY, Owner(instance.partition_key, instance.study_key)),
            (Level.SERIES, Owner(instance.partition_key, instance.study_key, instance.series_key)),
            (Level.INSTANCE, instance),
        ):
            last[owner] = instance, level, found.get(level, NO_TAGS)
    for owner, (_, level, _) in last.items():
        keys = {tag.key for tag in tags.at(level)}
        if level is not Level.INSTANCE and keys:
            forget_errors(connection, owner, keys)
    record_errors(
        connection,
        [(instance, key, text) for instance, _, found in last.values() for key, text in found.failed],
    )


def record_errors(connection: sa.Connection, errors: Iterable[tuple[Owner, int, str]]) -> None:
    """Note (instance, key of a tag, sentence); there must be none of the instance and the tag yet."""
    moment = timestamp()
    rows = [
        {
            "tag_key": tag_key,
            "instance_key": owner.instance_key,
            "series_key": owner.series_key,
            "study_key": owner.study_key,
            "created": moment,
            "message": normalise.cut(message, 200),
        }
        for owner, tag_key, message in errors
    ]
    if rows:
        connection.execute(sa.insert(t.query_tag_error), rows)


def forget_errors(connection: sa.Connection, owner: Owner, tags: Collection[int] | None = None) -> None:
    """The errors of a study, series or instance are no more; of ``tags`` alone where they are given."""
    e = t.query_tag_error
    conditions = [e.c.study_key == owner.study_key]
    if owner.series_key:
        conditions.append(e.c.series_key == owner.series_key)
    if owner.instance_key:
        conditions.append(e.c.instance_key == owner.instance_key)
    if tags is not None:
        given = uid_table([str(tag) for tag in sorted(tags)])
        conditions.append(e.c.tag_key.in_(sa.select(sa.cast(given.c.value, sa.BigInteger))))
    connection.execute(sa.delete(e).where(*conditions))


def count_errors(connection: sa.Connection) -> dict[int, int]:
    """Instances that tags do not have the values of, by key of the tag."""
    e = t.query_tag_error
    rows = connection.execute(sa.select(e.c.tag_key, sa.func.count()).group_by(e.c.tag_key))
    return {row[0]: row[1] for row in rows}


def errors(connection: sa.Connection, tag_key: int, limit: int, offset: int) -> list[TagError]:
    """A page of the errors of a tag, in order of the instances."""
    e, i = t.query_tag_error, t.instance
    rows = connection.execute(
        sa.select(
            t.partition.c.partition_name,
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            e.c.created,
            e.c.message,
        )
        .select_from(e)
        .join(i, i.c.instance_key == e.c.instance_key)
        .join(t.series, t.series.c.series_key == i.c.series_key)
        .join(t.study, t.study.c.study_key == i.c.study_key)
        .join(t.partition, t.partition.c.partition_key == i.c.partition_key)
        .where(e.c.tag_key == tag_key)
        .order_by(e.c.instance_key)
        .limit(limit)
        .offset(offset)
    )
    return [TagError(InstanceKey(*row[:4]), row[4], row[5]) for row in rows]
