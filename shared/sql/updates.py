"""Bulk update in the index: versions are prepared one by one and become visible a study at a time.

An update writes a new version of every instance of a study and notes it in ``prepared_update``; when there
is one of each, one transaction puts all of them in the place of what they were made of. A crash before
that leaves what the next attempt goes on with; one after it is seen by the row in ``updated_study``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import sqlalchemy as sa

from shared import faults
from shared.dicom.attributes import Level
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.indexed_values import IndexedValue
from shared.dicom.query_tags import TagSet, TagValues
from shared.sql import change_feed, query_tags, values
from shared.sql import tables as t
from shared.sql.change_feed import Change
from shared.sql.engine import SnapshotConflict, uid_table
from shared.sql.instances import (
    FILE_COLUMNS,
    NewInstance,
    PackMoved,
    Place,
    StoredInstance,
    deleted_row,
    find_existing,
    instance_row,
    lock_studies,
    locked_study,
    stored_instance,
    write_parents,
)

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Prepared:
    """A new version of an instance, made of the version ``replaces``."""

    new: NewInstance
    replaces: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """An instance an update has no new version of yet; ``original`` is the version before any update."""

    stored: StoredInstance
    original: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an update of a study is.

    ``committed`` is the number of instances it has updated, None before it is done; ``waiting`` are in the
    order they were stored in; ``instances`` is how many there are.
    """

    committed: int | None
    instances: int
    waiting: list[Waiting]


def progress(connection: sa.Connection, operation: str, partition: str, study: str) -> Progress:
    """How far the update ``operation`` of a study is."""
    committed = _committed(connection, operation, partition, study)
    if committed is not None:
        return Progress(committed, committed, [])
    i, o, p = t.instance, t.original_instance, t.prepared_update
    rows = connection.execute(
        sa.select(
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            p.c.version.label("prepared"),
            sa.func.coalesce(o.c.version, i.c.version),
            *(i.c[name] for name in FILE_COLUMNS),
        )
        .select_from(_instances_with_prepared(operation).outerjoin(o, o.c.instance_key == i.c.instance_key))
        .where(t.partition.c.partition_name == partition, t.study.c.study_instance_uid == study)
        .order_by(i.c.version)
    ).all()
    waiting = [
        Waiting(stored_instance(InstanceKey(partition, study, row[0], row[1]), row[4:]), row[3])
        for row in rows
        if row.prepared is None
    ]
    return Progress(None, len(rows), waiting)


def _instances_with_prepared(operation: str) -> sa.Join:
    """Instances with the version ``operation`` has made of the one they have now, if there is one."""
    i, p = t.instance, t.prepared_update
    return (
        t.partition.join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(i, i.c.series_key == t.series.c.series_key)
        .outerjoin(
            p,
            sa.and_(
                p.c.operation_id == operation,
                p.c.replaces == i.c.version,
                p.c.partition_name == t.partition.c.partition_name,
                p.c.study_instance_uid == t.study.c.study_instance_uid,
                p.c.series_instance_uid == t.series.c.series_instance_uid,
                p.c.sop_instance_uid == i.c.sop_instance_uid,
            ),
        )
    )


def _committed(
    connection: sa.Connection, operation: str, partition: str, study: str, lock: str = "HOLDLOCK"
) -> int | None:
    """The number of instances ``operation`` has updated of a study: 0 after its end if it did not come to
    the study, None while it may come to it."""
    u = t.updated_study
    rows = connection.execute(
        sa.select(u.c.partition_name, u.c.study_instance_uid, u.c.number_of_instances)
        .with_hint(u, f"WITH ({lock})", "mssql")
        .where(u.c.operation_id == operation)
    ).all()
    found = {(row[0], row[1]): row[2] for row in rows}
    return found.get((partition, study), 0 if _END in found else None)


_END = ("", "")
"""Partition and study of the row that says an operation has ended."""


# --- preparing ---------------------------------------------------------------------------------------


def prepare(
    connection: sa.Connection,
    operation: str,
    partition: str,
    study: str,
    prepared: Sequence[Prepared],
    fresh_packs: frozenset[str],
    cleanup_after: str,
) -> None:
    """Note versions of a study whose files and records are written.

    Those whose instance has another version by now, is gone, or has been prepared by another run of the
    same step are left to the clean-up. Raises PackMoved where a record lies in a pack that may vanish:
    only those the caller made itself (``fresh_packs``), the series' current ones and those of one
    record are safe.
    """
    key = locked_study(connection, Resource(partition, study))
    existing = find_existing(connection, partition, (p.new.key for p in prepared))
    known = _known(connection, [p.new.version for p in prepared])
    todo = [p for p in prepared if p.new.version not in known]
    over = key is None or _committed(connection, operation, partition, study) is not None
    there = _prepared_of(connection, operation, [p.replaces for p in todo])
    fit = [
        p
        for p in todo
        if not over
        and existing.versions.get(p.new.key) == p.replaces
        and (p.new.key, p.replaces) not in there
    ]
    moved: dict[tuple[str, str], str | None] = {}
    for p in fit:
        series, pack = (study, p.new.key.series), p.new.place.pack
        if pack not in fresh_packs and pack not in (p.new.version, existing.packs.get(series)):
            moved[series] = existing.packs.get(series)
    if moved:
        raise PackMoved(moved)
    if fit:
        connection.execute(sa.insert(t.prepared_update), [_row(operation, p) for p in fit])
    taken = {p.new.version for p in fit}
    unfit = [p.new for p in todo if p.new.version not in taken]
    if unfit:
        connection.execute(
            sa.insert(t.deleted_instance),
            [deleted_row(new.key, new.version, new.place.pack, cleanup_after) for new in unfit],
        )


def _known(connection: sa.Connection, versions: list[str]) -> set[str]:
    """Those of ``versions`` that an earlier attempt, whose answer got lost, has noted."""
    given = uid_table(sorted(versions))
    tables = (t.prepared_update, t.deleted_instance, t.instance)
    rows = connection.execute(
        sa.union_all(
            *(sa.select(table.c.version).join(given, table.c.version == given.c.value) for table in tables)
        )
    )
    return {row[0] for row in rows}


def _prepared_of(
    connection: sa.Connection, operation: str, replaced: list[str]
) -> set[tuple[InstanceKey, str]]:
    p, given = t.prepared_update, uid_table(sorted(set(replaced)))
    rows = connection.execute(
        sa.select(
            p.c.partition_name,
            p.c.study_instance_uid,
            p.c.series_instance_uid,
            p.c.sop_instance_uid,
            p.c.replaces,
        )
        .join(given, p.c.replaces == given.c.value)
        .where(p.c.operation_id == operation)
    )
    return {(InstanceKey(*row[:4]), row[4]) for row in rows}


def _row(operation: str, prepared: Prepared) -> dict[str, Any]:
    new = prepared.new
    content = {
        "size": new.size,
        "transferSyntax": new.transfer_syntax,
        "numberOfFrames": new.number_of_frames,
        "frameOffset": new.frame_offset,
        "frameBits": new.frame_bits,
        "attributes": {level.name: text for level, text in new.attributes.items()},
        "values": new.values,
        "indexedValues": {
            level.name: [astuple(value) for value in found] for level, found in new.indexed_values.items()
        },
    }
    return {
        "version": new.version,
        "operation_id": operation,
        "partition_name": new.key.partition,
        "study_instance_uid": new.key.study,
        "series_instance_uid": new.key.series,
        "sop_instance_uid": new.key.instance,
        "replaces": prepared.replaces,
        "pack": new.place.pack,
        "document_offset": new.place.offset,
        "document_length": new.place.document_length,
        "bulkdata_length": new.place.bulkdata_length,
        "frames_length": new.place.frames_length,
        "content": json.dumps(content, separators=(",", ":")),
    }


def without_tags(
    connection: sa.Connection, operation: str, partition: str, study: str, version: int
) -> list[StoredInstance]:
    """Prepared versions of a study that do not have the values of the query tags as of ``version``."""
    p = t.prepared_update
    rows = connection.execute(
        sa.select(p).where(
            p.c.operation_id == operation,
            p.c.partition_name == partition,
            p.c.study_instance_uid == study,
            sa.or_(p.c.tag_version.is_(None), p.c.tag_version != version),
        )
    )
    found = map(_new_instance, rows)
    return [
        StoredInstance(
            new.key,
            new.version,
            new.size,
            new.transfer_syntax,
            new.number_of_frames,
            new.frame_offset,
            new.frame_bits,
            new.place,
        )
        for new in found
    ]


def give_tags(
    connection: sa.Connection, version: int, found: Mapping[str, Mapping[Level, TagValues]]
) -> None:
    """Note the values of the query tags as of ``version`` of prepared versions."""
    p = t.prepared_update
    for prepared, tag_values in found.items():
        content = {
            level.name: [[astuple(row) for row in of.rows], of.json, of.failed]
            for level, of in tag_values.items()
        }
        text = json.dumps(content, separators=(",", ":"))
        connection.execute(
            sa.update(p).where(p.c.version == prepared).values(tag_version=version, tag_values=text)
        )


def _tag_values(text: str | None) -> dict[Level, TagValues]:
    return {
        Level[name]: TagValues(
            tuple(IndexedValue(*row) for row in rows), kept, tuple((key, error) for key, error in failed)
        )
        for name, (rows, kept, failed) in json.loads(text or "{}").items()
    }


def _new_instance(row: sa.Row[Any]) -> NewInstance:
    content = json.loads(row.content)
    return NewInstance(
        key=InstanceKey(
            row.partition_name, row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid
        ),
        version=row.version,
        size=content["size"],
        transfer_syntax=content["transferSyntax"],
        number_of_frames=content["numberOfFrames"],
        frame_offset=content["frameOffset"],
        frame_bits=content["frameBits"],
        place=Place(
            row.pack, row.document_offset, row.document_length, row.bulkdata_length, row.frames_length
        ),
        attributes={Level[name]: text for name, text in content["attributes"].items()},
        values=content["values"],
        indexed_values={
            Level[name]: tuple(IndexedValue(*value) for value in found)
            for name, found in content["indexedValues"].items()
        },
        tag_values=_tag_values(row.tag_values),
    )


# --- committing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    """An instance and the version that takes the place of what it has."""

    instance_key: int
    series_key: int
    replaces: str
    version: str


def commit(
    connection: sa.Connection,
    operation: str,
    partition: str,
    study: str,
    cleanup_after: str,
    tags: TagSet,
) -> int:
    """Put the prepared versions of a study in the place of the present ones; the number of instances.

    0 where the study does not exist, or the operation has ended. A study that ``operation`` has updated
    before is left alone, whatever has become of it since. Raises SnapshotConflict where no version is
    prepared of an instance: it has been stored or replaced meanwhile; also where the prepared versions do
    not have the values of ``tags``, or there are other tags by now.
    """
    query_tags.hold(connection, tags.version)
    study_key = locked_study(connection, Resource(partition, study))
    # Two that both hold a shared lock and then add their row would wait for each other.
    done = _committed(connection, operation, partition, study, "UPDLOCK, HOLDLOCK")
    if done is not None or study_key is None:
        abandon(connection, operation, partition, study, cleanup_after)
        return done or 0
    pairs = _pairs(connection, operation, study_key)
    if tags.active and without_tags(connection, operation, partition, study, tags.version):
        raise SnapshotConflict
    _keep_originals(connection, study_key, partition, study, cleanup_after)
    values.delete_of_instances(connection, study_key)
    newest: dict[int, tuple[_Pair, NewInstance]] = {}
    changes: list[Change] = []
    tagged: list[tuple[values.Owner, Mapping[Level, TagValues]]] = []
    partition_key = connection.execute(
        sa.select(t.study.c.partition_key).where(t.study.c.study_key == study_key)
    ).scalar_one()
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        found = _take(connection, [pair.version for pair in batch])
        rows, indexed = [], []
        for pair in batch:
            new = found[pair.version]
            row = instance_row(new, partition_key, study_key, pair.series_key)
            rows.append(row | {"updated_key": pair.instance_key})
            owner = values.Owner(partition_key, study_key, pair.series_key, pair.instance_key)
            indexed.append((owner, new.rows(Level.INSTANCE)))
            tagged.append((owner, new.tag_values))
            newest[pair.series_key] = pair, new
            changes.append(Change(change_feed.UPDATE, new.key, new.version))
        i = t.instance
        connection.execute(sa.update(i).where(i.c.instance_key == sa.bindparam("updated_key")), rows)
        values.insert(connection, indexed)
    _write_parents(connection, partition_key, study, newest)
    if tags.tags:
        query_tags.forget_errors(connection, values.Owner(partition_key, study_key))
        query_tags.write_errors(connection, tags, tagged)
    abandon(connection, operation, partition, study, cleanup_after)
    connection.execute(sa.insert(t.updated_study), _updated(operation, partition, study, len(pairs)))
    faults.point("update.in_transaction")
    change_feed.append(connection, changes)
    return len(pairs)


def _pairs(connection: sa.Connection, operation: str, study_key: int) -> list[_Pair]:
    """The instances of a study in the order they were stored in. Raises SnapshotConflict."""
    i, p = t.instance, t.prepared_update
    rows = connection.execute(
        sa.select(i.c.instance_key, i.c.series_key, i.c.version, p.c.version)
        .select_from(_instances_with_prepared(operation))
        .where(t.study.c.study_key == study_key)
        .order_by(i.c.version)
    ).all()
    if any(row[3] is None for row in rows):
        raise SnapshotConflict
    return [_Pair(*row) for row in rows]


def _keep_originals(
    connection: sa.Connection, study_key: int, partition: str, study: str, cleanup_after: str
) -> None:
    """What an instance has becomes its original, or goes where it has one already."""
    i, o, d = t.instance, t.original_instance, t.deleted_instance
    has_original = sa.exists().where(o.c.instance_key == i.c.instance_key)
    superseded = (
        sa.select(
            i.c.version,
            sa.literal(partition),
            sa.literal(study),
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            i.c.pack,
            sa.literal(cleanup_after),
            sa.literal(0),
        )
        .join(t.series, t.series.c.series_key == i.c.series_key)
        .where(i.c.study_key == study_key, has_original)
    )
    connection.execute(sa.insert(d).from_select(_DELETED_COLUMNS, superseded))
    first = sa.select(i.c.instance_key, *(i.c[name] for name in FILE_COLUMNS)).where(
        i.c.study_key == study_key, ~has_original
    )
    connection.execute(sa.insert(o).from_select(["instance_key", *FILE_COLUMNS], first))


_DELETED_COLUMNS = [
    "version",
    "partition_name",
    "study_instance_uid",
    "series_instance_uid",
    "sop_instance_uid",
    "pack",
    "cleanup_after",
    "retries",
]


def _take(connection: sa.Connection, versions: list[str]) -> dict[str, NewInstance]:
    """The prepared ``versions``, which are waiting no longer."""
    p, given = t.prepared_update, uid_table(versions)
    rows = connection.execute(sa.select(p).join(given, p.c.version == given.c.value)).all()
    connection.execute(sa.delete(p).where(p.c.version.in_(sa.select(given.c.value))))
    return {row.version: _new_instance(row) for row in rows}


def _write_parents(
    connection: sa.Connection, partition_key: int, study: str, newest: dict[int, tuple[_Pair, NewInstance]]
) -> None:
    """The attributes of the study and its series: of the instance stored last, as ever."""
    ordered = sorted(newest.values(), key=lambda found: found[0].replaces)
    studies = lock_studies(connection, partition_key, {study})
    write_parents(connection, partition_key, studies, [new for _, new in ordered], added=set())
    for pair, new in ordered:
        if new.place.pack != new.version:
            of_series = t.series.c.series_key == pair.series_key
            connection.execute(sa.update(t.series).where(of_series).values(metadata_pack=new.place.pack))


def abandon(
    connection: sa.Connection, operation: str, partition: str, study: str, cleanup_after: str
) -> None:
    """Leave to the clean-up what ``operation`` has prepared of a study and will not need."""
    p = t.prepared_update
    of_study = sa.and_(
        p.c.operation_id == operation, p.c.partition_name == partition, p.c.study_instance_uid == study
    )
    columns = (p.c[name] for name in _DELETED_COLUMNS[:-2])
    left = sa.select(*columns, sa.literal(cleanup_after), sa.literal(0)).where(of_study)
    connection.execute(sa.insert(t.deleted_instance).from_select(_DELETED_COLUMNS, left))
    connection.execute(sa.delete(p).where(of_study))


def end(connection: sa.Connection, operation: str, cleanup_after: str) -> tuple[int, int]:
    """From here on ``operation`` updates nothing; how many studies and instances it has updated."""
    u, p = t.updated_study, t.prepared_update
    rows = connection.execute(
        sa.select(u.c.partition_name, u.c.study_instance_uid, u.c.number_of_instances)
        .with_hint(u, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
        .where(u.c.operation_id == operation)
    ).all()
    if not any((row[0], row[1]) == _END for row in rows):
        connection.execute(sa.insert(u), _updated(operation, *_END, 0))
    left = connection.execute(
        sa.select(p.c.partition_name, p.c.study_instance_uid).where(p.c.operation_id == operation).distinct()
    ).all()
    for partition, study in left:
        abandon(connection, operation, partition, study, cleanup_after)
    studies = [row for row in rows if (row[0], row[1]) != _END]
    return len(studies), sum(row[2] for row in studies)


def _updated(operation: str, partition: str, study: str, instances: int) -> dict[str, Any]:
    return {
        "operation_id": operation,
        "partition_name": partition,
        "study_instance_uid": study,
        "number_of_instances": instances,
        "committed": change_feed.timestamp(),
    }


def forget(connection: sa.Connection, before: str) -> None:
    """Forget which studies were updated before a moment (a timestamp): no step comes back so late."""
    u = t.updated_study
    connection.execute(sa.delete(u).where(u.c.committed < before))


def add_originals(connection: sa.Connection, originals: Sequence[NewInstance]) -> None:
    """Originals found in Blob Storage, of instances that have none yet."""
    i, o = t.instance, t.original_instance
    for original in originals:
        key, place = original.key, original.place
        found = connection.execute(
            sa.select(i.c.instance_key, o.c.instance_key)
            .select_from(
                t.partition.join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
                .join(t.series, t.series.c.study_key == t.study.c.study_key)
                .join(i, i.c.series_key == t.series.c.series_key)
                .outerjoin(o, o.c.instance_key == i.c.instance_key)
            )
            .where(
                t.partition.c.partition_name == key.partition,
                t.study.c.study_instance_uid == key.study,
                t.series.c.series_instance_uid == key.series,
                i.c.sop_instance_uid == key.instance,
            )
        ).first()
        if found is None or found[1] is not None:
            continue
        row = {
            "instance_key": found[0],
            "version": original.version,
            "size": original.size,
            "transfer_syntax_uid": original.transfer_syntax,
            "number_of_frames": original.number_of_frames,
            "frame_offset": original.frame_offset,
            "frame_bits": original.frame_bits,
            "pack": place.pack,
            "document_offset": place.offset,
            "document_length": place.document_length,
            "bulkdata_length": place.bulkdata_length,
            "frames_length": place.frames_length,
        }
        connection.execute(sa.insert(o), row)
