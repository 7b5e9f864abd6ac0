"""Studies, series and instances: find, commit a store, delete.

Everything a store or a delete changes is changed in one transaction, change feed included; counts and
modalities are kept up to date there, so that searches never count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from shared import faults
from shared.dicom import normalise
from shared.dicom.attributes import Level, Matching, indexed
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.indexed_values import IndexedValue
from shared.sql import change_feed, partitions, patients, values
from shared.sql import tables as t
from shared.sql.change_feed import Change
from shared.sql.engine import uid_table


@dataclass(frozen=True, slots=True)
class Place:
    """Where the metadata document of an instance lies in its pack, and what follows it there."""

    pack: str
    offset: int
    document_length: int
    bulkdata_length: int
    frames_length: int


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance to commit. ``attributes`` are JSON objects and ``values`` texts keyed by keyword.

    ``indexed_values`` are the rows of ``attribute_value`` that it makes for itself, its series and its study.
    """

    key: InstanceKey
    version: str
    size: int
    transfer_syntax: str
    number_of_frames: int
    frame_offset: int
    frame_bits: int
    place: Place
    attributes: dict[Level, str]
    values: dict[str, str]
    indexed_values: dict[Level, tuple[IndexedValue, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Existing:
    """What the index holds of the identifiers somebody wants to store under.

    ``versions`` by instance; ``packs`` by (study, series): the pack that takes new documents.
    """

    versions: dict[InstanceKey, str]
    packs: dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """What retrieving an instance needs to know of it.

    ``instance_number`` is None where it is missing or no number; ``modality`` is in lower case.
    """

    key: InstanceKey
    version: str
    size: int
    transfer_syntax: str
    number_of_frames: int
    frame_offset: int
    frame_bits: int
    place: Place
    sop_class: str = ""
    instance_number: int | None = None
    modality: str = ""


class PackMoved(Exception):
    """Documents were appended to a pack that no longer takes new ones.

    ``packs`` names the ones that do, by (study, series); None: the series is gone and needs a new one.
    """

    def __init__(self, packs: dict[tuple[str, str], str | None]) -> None:
        super().__init__("pack moved")
        self.packs = packs


# --- finding -----------------------------------------------------------------------------------------


def find_existing(connection: sa.Connection, partition: str, keys: Iterable[InstanceKey]) -> Existing:
    """What is there under ``keys`` (all of one partition), in one statement."""
    wanted = set(keys)
    studies = uid_table(sorted({key.study for key in wanted}), "studies")
    series = uid_table(sorted({key.series for key in wanted}), "serieses")
    instances = uid_table(sorted({key.instance for key in wanted}), "instances")
    matched = (
        sa.select(t.instance.c.series_key, t.instance.c.sop_instance_uid, t.instance.c.version)
        .join(instances, t.instance.c.sop_instance_uid == instances.c.value)
        .join(t.partition, t.partition.c.partition_key == t.instance.c.partition_key)
        .where(t.partition.c.partition_name == partition)
        .subquery("matched")
    )
    statement = (
        sa.select(
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            t.series.c.metadata_pack,
            matched.c.sop_instance_uid,
            matched.c.version,
        )
        .select_from(t.partition)
        .join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(studies, t.study.c.study_instance_uid == studies.c.value)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(series, t.series.c.series_instance_uid == series.c.value)
        .outerjoin(matched, matched.c.series_key == t.series.c.series_key)
        .where(t.partition.c.partition_name == partition)
    )
    versions: dict[InstanceKey, str] = {}
    packs: dict[tuple[str, str], str] = {}
    for row in connection.execute(statement):
        packs[row.study_instance_uid, row.series_instance_uid] = row.metadata_pack
        if row.version is not None:
            key = InstanceKey(
                partition, row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid
            )
            if key in wanted:
                versions[key] = row.version
    return Existing(versions, packs)


def find_instances(connection: sa.Connection, resource: Resource) -> list[StoredInstance]:
    """The instances of a study, a series or one instance, in order of storing; one statement."""
    i = t.instance
    statement = (
        sa.select(
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
            i.c.sop_class_uid,
            i.c.instance_number,
            t.series.c.modality,
        )
        .select_from(t.partition)
        .join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(i, i.c.series_key == t.series.c.series_key)
        .where(_addressed(resource))
        .order_by(i.c.instance_key)
    )
    return [
        StoredInstance(
            InstanceKey(resource.partition, row[0], row[1], row[2]),
            *row[3:9],
            Place(*row[9:14]),
            row[14] or "",
            row[15],
            row[16] or "",
        )
        for row in connection.execute(statement)
    ]


def _addressed(resource: Resource) -> sa.ColumnElement[bool]:
    """The condition on partition, study, series and instance that a path stands for."""
    conditions = [t.partition.c.partition_name == resource.partition]
    for value, column in (
        (resource.study, t.study.c.study_instance_uid),
        (resource.series, t.series.c.series_instance_uid),
        (resource.instance, t.instance.c.sop_instance_uid),
    ):
        if value:
            conditions.append(column == value)
    return sa.and_(*conditions)


File = tuple[InstanceKey, str]
"""Instance and version: what the name of a file's blob says."""


def known_files(connection: sa.Connection, versions: Collection[str]) -> set[File]:
    """The files of these versions that are indexed or wait for clean-up; one statement.

    A version made here belongs to one file, but a copied blob brings its version along.
    """
    given, d = uid_table(sorted(versions)), t.deleted_instance
    waiting = sa.select(
        d.c.partition_name, d.c.study_instance_uid, d.c.series_instance_uid, d.c.sop_instance_uid, d.c.version
    ).join(given, d.c.version == given.c.value)
    return _files(connection, sa.union_all(_indexed(given), waiting))


def indexed_files(connection: sa.Connection, versions: Collection[str]) -> set[File]:
    """The files of these versions that are indexed: neither deleted nor replaced; one statement."""
    return _files(connection, _indexed(uid_table(sorted(versions))))


def _indexed(given: sa.TableValuedAlias) -> sa.Select[Any]:
    return (
        sa.select(
            t.partition.c.partition_name,
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            t.instance.c.sop_instance_uid,
            t.instance.c.version,
        )
        .join(given, t.instance.c.version == given.c.value)
        .join(t.series, t.series.c.series_key == t.instance.c.series_key)
        .join(t.study, t.study.c.study_key == t.series.c.study_key)
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
    )


def _files(connection: sa.Connection, statement: sa.Executable) -> set[File]:
    rows = connection.execute(statement)
    return {(InstanceKey(row[0], row[1], row[2], row[3]), row[4]) for row in rows}


def committed_files(connection: sa.Connection, versions: Collection[str]) -> set[File]:
    """The files of these versions that were ever committed: the change feed remembers every one."""
    given, feed = uid_table(sorted(versions)), t.change_feed
    columns = feed.c.partition_name, feed.c.study_instance_uid, feed.c.series_instance_uid
    statement = sa.select(*columns, feed.c.sop_instance_uid, feed.c.version)
    return _files(connection, statement.join(given, feed.c.version == given.c.value))


def changed_since(connection: sa.Connection, key: InstanceKey, moment: str) -> bool:
    """Whether an instance was stored, replaced or deleted at ``moment`` (a timestamp) or later."""
    feed = t.change_feed
    found = connection.execute(
        sa.select(feed.c.sequence)
        .where(
            feed.c.timestamp >= moment,
            feed.c.partition_name == key.partition,
            feed.c.study_instance_uid == key.study,
            feed.c.series_instance_uid == key.series,
            feed.c.sop_instance_uid == key.instance,
        )
        .limit(1)
    )
    return found.first() is not None


def any_stored(connection: sa.Connection) -> bool:
    """Whether the index holds anything."""
    return connection.execute(sa.select(t.study.c.study_key).limit(1)).first() is not None


# --- storing -----------------------------------------------------------------------------------------


def commit_store(
    connection: sa.Connection,
    partition: str,
    instances: Sequence[NewInstance],
    fresh_packs: frozenset[str],
    replace: bool,
    cleanup_after: str,
) -> dict[InstanceKey, bool]:
    """Make ``instances`` part of the index; True for each that is now stored under its version.

    False means that another version has the identifiers and ``replace`` is off. A version that was ever
    committed counts as stored and nothing is done: the blob trigger came first, or an earlier attempt
    whose answer got lost; what has happened to it since (a delete, a replacement) must not be undone.
    Raises PackMoved when a document lies in a pack that a clean-up has sealed since, or in one of a series
    that has been deleted since; only packs that the caller made itself (``fresh_packs``) may begin a
    series, because no clean-up knows them.
    """
    partition_key = partitions.key_of(connection, partition)
    studies = _lock_studies(connection, partition_key, {new.key.study for new in instances})
    existing = find_existing(connection, partition, (new.key for new in instances))
    committed = committed_files(connection, [new.version for new in instances])
    outcome: dict[InstanceKey, bool] = {}
    writes: list[NewInstance] = []
    for new in instances:
        done, exists = (new.key, new.version) in committed, new.key in existing.versions
        outcome[new.key] = done or replace or not exists
        if not done and outcome[new.key]:
            writes.append(new)
    if not writes:
        return outcome
    _check_packs(writes, existing, fresh_packs)
    added = [new for new in writes if new.key not in existing.versions]
    written = _write_parents(connection, partition_key, studies, writes, {new.key for new in added})
    if added:
        connection.execute(sa.insert(t.instance), [_instance_row(new, *written[new.key]) for new in added])
    for new in writes:
        if new.key in existing.versions:
            _replace(connection, new, written[new.key], existing.versions[new.key], cleanup_after)
    _write_values_of_instances(connection, writes, written)
    faults.point("store.in_transaction")
    change_feed.append(
        connection,
        [
            Change(
                change_feed.UPDATE if new.key in existing.versions else change_feed.CREATE,
                new.key,
                new.version,
            )
            for new in writes
        ],
    )
    return outcome


def _check_packs(instances: Sequence[NewInstance], existing: Existing, fresh_packs: frozenset[str]) -> None:
    """Large documents have a pack of their own, named after their version; others share the series'."""
    moved: dict[tuple[str, str], str | None] = {}
    for new in instances:
        pack, series = new.place.pack, (new.key.study, new.key.series)
        if pack == new.version or existing.packs.get(series) == pack:
            continue
        if series in existing.packs or pack not in fresh_packs:
            moved[series] = existing.packs.get(series)
    if moved:
        raise PackMoved(moved)


class _Study(NamedTuple):
    """A study that exists: its key and its patient's."""

    key: int
    patient_key: int | None


def _lock_studies(connection: sa.Connection, partition_key: int, uids: set[str]) -> dict[str, _Study]:
    """Those studies that exist. From here on writers of one study take turns.

    Every transaction that changes rows below a study begins so, before it reads what it decides by:
    SQL Server reads without locks see the past, and two writers that decide by it undo each other.
    In order of UIDs, so that two transactions with several studies do not wait for each other.
    """
    study = t.study
    found: dict[str, _Study] = {}
    for uid in sorted(uids):
        row = connection.execute(
            sa.select(study.c.study_key, study.c.patient_key)
            .with_hint(study, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
            .where(study.c.partition_key == partition_key, study.c.study_instance_uid == uid)
        ).first()
        if row is not None:
            found[uid] = _Study(row.study_key, row.patient_key)
    return found


def move_pack(
    connection: sa.Connection, partition: str, study: str, series: str, old: str, new: str
) -> str | None:
    """Make ``new`` the pack of a series where it is still ``old``; the pack it has then (None: no series)."""
    _locked_study(connection, Resource(partition, study))
    found = connection.execute(
        sa.select(t.series.c.series_key, t.series.c.metadata_pack)
        .join(t.study, t.study.c.study_key == t.series.c.study_key)
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        .where(
            t.partition.c.partition_name == partition,
            t.study.c.study_instance_uid == study,
            t.series.c.series_instance_uid == series,
        )
    ).first()
    if found is None:
        return None
    if found.metadata_pack != old:
        return str(found.metadata_pack)
    connection.execute(
        sa.update(t.series).where(t.series.c.series_key == found.series_key).values(metadata_pack=new)
    )
    return new


Keys = tuple[int, int, int]
"""partition_key, study_key, series_key"""


def _write_parents(
    connection: sa.Connection,
    partition_key: int,
    studies: dict[str, _Study],
    instances: Sequence[NewInstance],
    added: set[InstanceKey],
) -> dict[InstanceKey, Keys]:
    """Insert or update the studies and series of ``instances``: attributes of the last one, and counts.

    ``studies`` are those that exist.
    """
    by_study: dict[str, list[NewInstance]] = {}
    for new in instances:
        by_study.setdefault(new.key.study, []).append(new)
    keys: dict[InstanceKey, Keys] = {}
    for study_uid in sorted(by_study):
        of_study = by_study[study_uid]
        study_key = _write_study(connection, partition_key, studies.get(study_uid), of_study, added)
        by_series: dict[str, list[NewInstance]] = {}
        for new in of_study:
            by_series.setdefault(new.key.series, []).append(new)
        new_series = 0
        owners = {values.Owner(partition_key, study_key): of_study[-1].indexed_values.get(Level.STUDY, ())}
        for series_uid in sorted(by_series):
            series_key, is_new = _write_series(
                connection, partition_key, study_key, by_series[series_uid], added
            )
            new_series += is_new
            owner = values.Owner(partition_key, study_key, series_key)
            owners[owner] = by_series[series_uid][-1].indexed_values.get(Level.SERIES, ())
            for new in by_series[series_uid]:
                keys[new.key] = partition_key, study_key, series_key
        _summarise_study(connection, study_key, new_series)
        values.replace_of_parents(connection, study_key, owners)
    return keys


def _write_study(
    connection: sa.Connection,
    partition_key: int,
    found: _Study | None,
    instances: list[NewInstance],
    added: set[InstanceKey],
) -> int:
    study, last = t.study, instances[-1]
    count = sum(new.key in added for new in instances)
    columns = {"attributes": last.attributes[Level.STUDY], **_columns(Level.STUDY, last.values)}
    columns["patient_key"] = patients.patient_key(
        connection, partition_key, last.values, last.attributes[Level.STUDY], columns
    )
    if found is not None:
        columns["number_of_instances"] = study.c.number_of_instances + count
        connection.execute(sa.update(study).where(study.c.study_key == found.key).values(columns))
        if found.patient_key != columns["patient_key"]:
            patients.forget(connection, found.patient_key)
        return found.key
    columns |= {
        "partition_key": partition_key,
        "study_instance_uid": last.key.study,
        "number_of_series": 0,
        "number_of_instances": count,
        "modalities_in_study": "",
    }
    return int(connection.execute(sa.insert(study), columns).inserted_primary_key[0])  # type: ignore[index]


def _write_series(
    connection: sa.Connection,
    partition_key: int,
    study_key: int,
    instances: list[NewInstance],
    added: set[InstanceKey],
) -> tuple[int, bool]:
    series, last = t.series, instances[-1]
    count = sum(new.key in added for new in instances)
    columns = {"attributes": last.attributes[Level.SERIES], **_columns(Level.SERIES, last.values)}
    found = connection.execute(
        sa.select(series.c.series_key).where(
            series.c.study_key == study_key, series.c.series_instance_uid == last.key.series
        )
    ).scalar()
    if found is not None:
        columns["number_of_instances"] = series.c.number_of_instances + count
        connection.execute(sa.update(series).where(series.c.series_key == found).values(columns))
        return int(found), False
    shared = (new.place.pack for new in instances if new.place.pack != new.version)
    columns |= {
        "study_key": study_key,
        "partition_key": partition_key,
        "series_instance_uid": last.key.series,
        "number_of_instances": count,
        "metadata_pack": next(shared, "0" + last.version),
    }
    return int(connection.execute(sa.insert(series), columns).inserted_primary_key[0]), True  # type: ignore[index]


def _write_values_of_instances(
    connection: sa.Connection, instances: Sequence[NewInstance], written: dict[InstanceKey, Keys]
) -> None:
    """The rows of ``attribute_value`` of instances that are in the index already."""
    by_version = {new.version: new for new in instances if new.indexed_values.get(Level.INSTANCE)}
    if not by_version:
        return
    given = uid_table(sorted(by_version))
    keys = connection.execute(
        sa.select(t.instance.c.instance_key, t.instance.c.series_key, t.instance.c.version).join(
            given, t.instance.c.version == given.c.value
        )
    )
    rows = []
    for instance_key, series_key, version in keys:
        new = by_version[version]
        if series_key == written[new.key][2]:  # a copied blob brings its version along
            owner = values.Owner(*written[new.key], instance_key)
            rows.append((owner, new.indexed_values[Level.INSTANCE]))
    values.insert(connection, rows)


def _summarise_study(connection: sa.Connection, study_key: int, new_series: int) -> None:
    """Bring the study's number of series and its modalities up to date."""
    modalities = connection.execute(
        sa.select(t.series.c.modality)
        .where(t.series.c.study_key == study_key, t.series.c.modality.is_not(None))
        .distinct()
        .order_by(t.series.c.modality)
    ).scalars()
    summary: dict[str, Any] = {"modalities_in_study": "\\".join(m.upper() for m in modalities)[:1024]}
    if new_series:
        summary["number_of_series"] = t.study.c.number_of_series + new_series
    connection.execute(sa.update(t.study).where(t.study.c.study_key == study_key).values(summary))


def _replace(
    connection: sa.Connection, new: NewInstance, keys: Keys, version: str, cleanup_after: str
) -> None:
    i = t.instance
    where = sa.and_(i.c.series_key == keys[2], i.c.sop_instance_uid == new.key.instance)
    pack, instance_key = connection.execute(sa.select(i.c.pack, i.c.instance_key).where(where)).one()
    values.delete(connection, values.Owner(*keys, instance_key))
    connection.execute(sa.insert(t.deleted_instance), _deleted_row(new.key, version, pack, cleanup_after))
    connection.execute(sa.update(i).where(where).values(_instance_row(new, *keys)))


def _instance_row(new: NewInstance, partition_key: int, study_key: int, series_key: int) -> dict[str, Any]:
    return {
        "partition_key": partition_key,
        "study_key": study_key,
        "series_key": series_key,
        "sop_instance_uid": new.key.instance,
        "version": new.version,
        "size": new.size,
        "transfer_syntax_uid": new.transfer_syntax,
        "number_of_frames": new.number_of_frames,
        "frame_offset": new.frame_offset,
        "frame_bits": new.frame_bits,
        "pack": new.place.pack,
        "document_offset": new.place.offset,
        "document_length": new.place.document_length,
        "bulkdata_length": new.place.bulkdata_length,
        "frames_length": new.place.frames_length,
        "attributes": new.attributes[Level.INSTANCE],
        **_columns(Level.INSTANCE, new.values),
    }


def _columns(level: Level, texts: dict[str, str]) -> dict[str, Any]:
    """The shadow columns of a level; None where the file has no (valid) value."""
    columns: dict[str, Any] = {}
    for attribute in indexed(level):
        if attribute.matching is Matching.UID and attribute.keyword != "SOPClassUID":
            continue
        value = texts.get(attribute.keyword, "")
        shadow = normalise.shadow(attribute.matching, value) if attribute.matching else None
        columns[attribute.column] = shadow[: attribute.column_length] if isinstance(shadow, str) else shadow
        if attribute.matching is Matching.DATETIME:
            zone = normalise.offset(texts.get("TimezoneOffsetFromUTC", ""))
            columns[f"{attribute.column}_utc"] = normalise.instant(value, zone)
        if attribute.matching is Matching.PERSON_NAME:
            columns[f"{attribute.column}_words"] = normalise.name_words(value)[: attribute.length] or None
    return columns


# --- deleting ----------------------------------------------------------------------------------------


def delete(connection: sa.Connection, resource: Resource, cleanup_after: str) -> int:
    """Remove a study, a series or an instance from the index; the number of instances removed.

    The bytes are left to the clean-up, which finds them in ``deleted_instance``.
    """
    study_key = _locked_study(connection, resource)
    if study_key is None:
        return 0
    doomed = find_keys(connection, resource)
    if not doomed:
        return 0
    connection.execute(
        sa.insert(t.deleted_instance),
        [_deleted_row(key, version, pack, cleanup_after) for key, version, pack, _, _ in doomed],
    )
    _delete_rows(
        connection,
        resource,
        study_key,
        {series_key for *_, series_key in doomed},
        [instance_key for *_, instance_key, _ in doomed],
    )
    faults.point("delete.in_transaction")
    change_feed.append(connection, [Change(change_feed.DELETE, key, version) for key, version, *_ in doomed])
    return len(doomed)


def _locked_study(connection: sa.Connection, resource: Resource) -> int | None:
    return connection.execute(
        sa.select(t.study.c.study_key)
        .with_hint(t.study, "WITH (UPDLOCK, HOLDLOCK)", "mssql")
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        .where(
            t.partition.c.partition_name == resource.partition, t.study.c.study_instance_uid == resource.study
        )
    ).scalar()


def find_keys(connection: sa.Connection, resource: Resource) -> list[tuple[InstanceKey, str, str, int, int]]:
    """(key, version, pack, instance_key, series_key) of what ``resource`` addresses."""
    i = t.instance
    rows = connection.execute(
        sa.select(
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            i.c.version,
            i.c.pack,
            i.c.instance_key,
            i.c.series_key,
        )
        .select_from(t.partition)
        .join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(i, i.c.series_key == t.series.c.series_key)
        .where(_addressed(resource))
        .order_by(i.c.instance_key)
    )
    return [(InstanceKey(resource.partition, r[0], r[1], r[2]), r[3], r[4], r[5], r[6]) for r in rows]


def _delete_rows(
    connection: sa.Connection,
    resource: Resource,
    study_key: int,
    series_keys: set[int],
    instance_keys: Sequence[int],
) -> None:
    i, series = t.instance, t.series
    if not resource.series:
        values.delete(connection, values.Owner(0, study_key), with_children=True)
        connection.execute(sa.delete(i).where(i.c.study_key == study_key))
        connection.execute(sa.delete(series).where(series.c.study_key == study_key))
        _delete_study(connection, study_key)
        return
    (series_key,) = series_keys
    for instance_key in instance_keys if resource.instance else ():
        values.delete(connection, values.Owner(0, study_key, series_key, instance_key))
    of_series = i.c.series_key == series_key
    connection.execute(
        sa.delete(i).where(
            of_series, i.c.sop_instance_uid == resource.instance if resource.instance else sa.true()
        )
    )
    left = connection.execute(sa.select(sa.func.count()).select_from(i).where(of_series)).scalar_one()
    if left:
        connection.execute(
            sa.update(series).where(series.c.series_key == series_key).values(number_of_instances=left)
        )
    else:
        values.delete(connection, values.Owner(0, study_key, series_key), with_children=True)
        connection.execute(sa.delete(series).where(series.c.series_key == series_key))
    _recount_study(connection, study_key)


def _delete_study(connection: sa.Connection, study_key: int) -> None:
    """Remove the row of a study, and its patient with the last of its studies."""
    patient_key = patients.of_study(connection, study_key)
    connection.execute(sa.delete(t.study).where(t.study.c.study_key == study_key))
    patients.forget(connection, patient_key)


def _recount_study(connection: sa.Connection, study_key: int) -> None:
    series, study = t.series, t.study
    counted = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(series.c.number_of_instances)).where(
            series.c.study_key == study_key
        )
    ).one()
    if not counted[0]:
        values.delete(connection, values.Owner(0, study_key), with_children=True)
        _delete_study(connection, study_key)
        return
    connection.execute(
        sa.update(study)
        .where(study.c.study_key == study_key)
        .values(number_of_series=counted[0], number_of_instances=counted[1])
    )
    _summarise_study(connection, study_key, 0)


def _deleted_row(key: InstanceKey, version: str, pack: str, cleanup_after: str) -> dict[str, Any]:
    return {
        "version": version,
        "partition_name": key.partition,
        "study_instance_uid": key.study,
        "series_instance_uid": key.series,
        "sop_instance_uid": key.instance,
        "pack": pack,
        "cleanup_after": cleanup_after,
        "retries": 0,
    }


# --- clean-up ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deleted or replaced version whose bytes are still there."""

    key: InstanceKey
    version: str
    pack: str


def due_deletions(connection: sa.Connection, now: str, limit: int) -> list[Deleted]:
    """Versions whose bytes may go, the longest waiting first."""
    d = t.deleted_instance
    rows = connection.execute(
        sa.select(d).where(d.c.cleanup_after <= now).order_by(d.c.cleanup_after).limit(limit)
    )
    return [
        Deleted(
            InstanceKey(r.partition_name, r.study_instance_uid, r.series_instance_uid, r.sop_instance_uid),
            r.version,
            r.pack,
        )
        for r in rows
    ]


def finish_deletions(connection: sa.Connection, versions: Sequence[str]) -> None:
    """No byte of ``versions`` is left."""
    given = uid_table(list(versions))
    d = t.deleted_instance
    connection.execute(sa.delete(d).where(d.c.version.in_(sa.select(given.c.value))))


def postpone_deletions(connection: sa.Connection, versions: Sequence[str], cleanup_after: str) -> None:
    """Cleaning ``versions`` failed; try again later."""
    given = uid_table(list(versions))
    d = t.deleted_instance
    connection.execute(
        sa.update(d)
        .where(d.c.version.in_(sa.select(given.c.value)))
        .values(retries=d.c.retries + 1, cleanup_after=cleanup_after)
    )


def pack_of_series(connection: sa.Connection, partition: str, study: str, series: str) -> str | None:
    """The pack that takes new documents of a series; None where the series does not exist."""
    return connection.execute(
        sa.select(t.series.c.metadata_pack)
        .join(t.study, t.study.c.study_key == t.series.c.study_key)
        .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        .where(_addressed(Resource(partition, study, series)))
    ).scalar()


def relocate(
    connection: sa.Connection,
    partition: str,
    study: str,
    series: str,
    moves: Sequence[tuple[str, str, Place]],
) -> int:
    """Documents were copied: ``(version, old pack, new place)``; the number of instances moved.

    Those that are gone meanwhile are not, and none is where the new pack takes no documents any more:
    another clean-up has sealed it and is about to delete it.
    """
    _locked_study(connection, Resource(partition, study))
    current = pack_of_series(connection, partition, study, series)
    i = t.instance
    return sum(
        connection.execute(
            sa.update(i)
            .where(i.c.version == version, i.c.pack == old)
            .values(pack=place.pack, document_offset=place.offset)
        ).rowcount
        for version, old, place in moves
        if place.pack == current
    )


def referenced_bytes(connection: sa.Connection, packs: Sequence[str]) -> dict[str, int]:
    """Bytes of each pack that instances refer to; packs nobody refers to are left out."""
    given, i = uid_table(list(packs)), t.instance
    size = sa.func.sum(i.c.document_length + i.c.bulkdata_length + i.c.frames_length)
    rows = connection.execute(
        sa.select(i.c.pack, size).join(given, i.c.pack == given.c.value).group_by(i.c.pack)
    )
    return {row[0]: int(row[1]) for row in rows}
