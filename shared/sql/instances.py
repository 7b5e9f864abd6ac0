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
from shared.dicom.query_tags import NO_TAGS, TagSet, TagValues
from shared.sql import change_feed, partitions, patients, query_tags, values
from shared.sql import tables as t
from shared.sql.change_feed import Change
from shared.sql.engine import uid_table
from shared.sql.values import Owner


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

    ``indexed_values`` are the rows of ``attribute_value`` that it makes for itself, its series and its study,
    ``tag_values`` those of query tags.
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
    tag_values: dict[Level, TagValues] = field(default_factory=dict)

    def rows(self, level: Level) -> tuple[IndexedValue, ...]:
        """The rows of ``attribute_value`` it makes at a level."""
        return self.indexed_values.get(level, ()) + self._tags(level).rows

    def tag_attributes(self, level: Level) -> str | None:
        """What its query tags have at a level, as DICOM JSON."""
        return self._tags(level).json or None

    def _tags(self, level: Level) -> TagValues:
        return self.tag_values.get(level, NO_TAGS)


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

    ``instance_number`` is None where it is missing or no number; ``modality`` is in lower case. ``original``
    says that it is what an instance was before its first update.
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
    original: bool = False


@dataclass(frozen=True, slots=True)
class PackRecord:
    """A record of a pack that something refers to: an instance, an original or a prepared update."""

    version: str
    place: Place


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


_PLACE = ("pack", "document_offset", "document_length", "bulkdata_length", "frames_length")
FILE_COLUMNS = (
    "version",
    "size",
    "transfer_syntax_uid",
    "number_of_frames",
    "frame_offset",
    "frame_bits",
    *_PLACE,
)
"""What is kept of a version's file and its record, in the order of StoredInstance and Place."""


def find_instances(
    connection: sa.Connection,
    resource: Resource,
    original: bool = False,
    among: Collection[str] | None = None,
) -> list[StoredInstance]:
    """The instances of a study, a series or one instance, in order of storing; one statement.

    ``original`` gives of each instance that has been updated the version before its first update;
    ``among`` are SOP Instance UIDs: those of them alone.
    """
    i, o = t.instance, t.original_instance
    columns: list[sa.ColumnElement[Any]] = [i.c[name] for name in FILE_COLUMNS]
    if original:
        columns = [sa.func.coalesce(o.c[name], i.c[name]) for name in FILE_COLUMNS] + [o.c.version]
    statement = _with_parents(columns).where(_addressed(resource)).order_by(i.c.instance_key)
    if original:
        statement = statement.outerjoin(o, o.c.instance_key == i.c.instance_key)
    if among is not None:
        # Their keys first: SQLite would rather walk the partition in the order asked for.
        named, partition = i.alias("named"), t.partition
        own = sa.select(partition.c.partition_key).where(partition.c.partition_name == resource.partition)
        keys = sa.select(named.c.instance_key).where(
            named.c.partition_key == own.scalar_subquery().correlate(None),
            named.c.sop_instance_uid.in_(sa.select(uid_table(sorted(among)).c.value)),
        )
        statement = statement.where(i.c.instance_key.in_(keys))
    return [
        _of_row(resource.partition, row, original and row[17] is not None)
        for row in connection.execute(statement)
    ]


def last_instances(
    connection: sa.Connection, partition: str, level: Level, keys: Sequence[int]
) -> dict[int, StoredInstance]:
    """Of each study, series or instance (by its key) the instance that was added to it last."""
    rows = connection.execute(last_instances_statement(partition, level, keys))
    return {int(row[17]): _of_row(partition, row) for row in rows}


def last_instances_statement(partition: str, level: Level, keys: Sequence[int]) -> sa.Select[Any]:
    """The statement of :func:`last_instances`."""
    i, other = t.instance, t.instance.alias("other")
    owner = {Level.STUDY: i.c.study_key, Level.SERIES: i.c.series_key, Level.INSTANCE: i.c.instance_key}
    given = uid_table([str(key) for key in keys])
    newest = sa.select(sa.func.max(other.c.instance_key)).where(
        other.c[owner[level].name] == sa.cast(given.c.value, sa.BigInteger)
    )
    last = sa.select(newest.correlate(given).scalar_subquery()).select_from(given)
    columns: list[sa.ColumnElement[Any]] = [*(i.c[name] for name in FILE_COLUMNS), owner[level]]
    return _with_parents(columns).where(t.partition.c.partition_name == partition, i.c.instance_key.in_(last))


def _with_parents(columns: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """Rows of instances for :func:`_of_row`: what is of them and their parents, then ``columns``."""
    i = t.instance
    return (
        sa.select(
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            i.c.sop_class_uid,
            i.c.instance_number,
            t.series.c.modality,
            *columns,
        )
        .select_from(t.partition)
        .join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(i, i.c.series_key == t.series.c.series_key)
    )


def _of_row(partition: str, row: Sequence[Any], original: bool = False) -> StoredInstance:
    key = InstanceKey(partition, row[0], row[1], row[2])
    return stored_instance(key, row[6:17], row[3] or "", row[4], row[5] or "", original)


def stored_instance(key: InstanceKey, columns: Sequence[Any], *others: Any) -> StoredInstance:
    """An instance of the values of :data:`FILE_COLUMNS` and ``others`` that follow them."""
    version, size, transfer_syntax, number_of_frames, frame_offset, frame_bits, *place = columns
    return StoredInstance(
        key,
        version,
        size,
        transfer_syntax,
        number_of_frames,
        frame_offset,
        frame_bits,
        Place(*place),
        *others,
    )


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
    """The files of these versions that are indexed, originals of updated instances, prepared by an update
    that runs, or wait for clean-up; one statement.

    A version made here belongs to one file, but a copied blob brings its version along.
    """
    given = uid_table(sorted(versions))

    def waiting(table: sa.Table) -> sa.Select[Any]:
        c = table.c
        return sa.select(
            c.partition_name, c.study_instance_uid, c.series_instance_uid, c.sop_instance_uid, c.version
        ).join(given, c.version == given.c.value)

    return _files(
        connection,
        sa.union_all(*_indexed(given), waiting(t.prepared_update), waiting(t.deleted_instance)),
    )


def indexed_files(connection: sa.Connection, versions: Collection[str]) -> set[File]:
    """The files of these versions that are indexed, or originals: neither deleted nor replaced; one
    statement."""
    return _files(connection, sa.union_all(*_indexed(uid_table(sorted(versions)))))


def _indexed(given: sa.TableValuedAlias) -> tuple[sa.Select[Any], sa.Select[Any]]:
    """The files of instances, and those of originals."""
    i, o = t.instance, t.original_instance

    def named(version: sa.ColumnElement[str], table: sa.FromClause) -> sa.Select[Any]:
        return (
            sa.select(
                t.partition.c.partition_name,
                t.study.c.study_instance_uid,
                t.series.c.series_instance_uid,
                i.c.sop_instance_uid,
                version,
            )
            .select_from(table)
            .join(given, version == given.c.value)
            .join(t.series, t.series.c.series_key == i.c.series_key)
            .join(t.study, t.study.c.study_key == t.series.c.study_key)
            .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
        )

    originals = o.join(i, i.c.instance_key == o.c.instance_key)
    return named(i.c.version, i), named(o.c.version, originals)


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
    tags: TagSet,
) -> dict[InstanceKey, bool]:
    """Make ``instances`` part of the index; True for each that is now stored under its version.

    False means that another version has the identifiers and ``replace`` is off. A version that was ever
    committed counts as stored and nothing is done: the blob trigger came first, or an earlier attempt
    whose answer got lost; what has happened to it since (a delete, a replacement) must not be undone.
    Raises PackMoved when a document lies in a pack that a clean-up has sealed since, or in one of a series
    that has been deleted since; only packs that the caller made itself (``fresh_packs``) may begin a
    series, because no clean-up knows them. Raises TagsChanged where the query tags are not ``tags``, whose
    values the instances have.
    """
    query_tags.hold(connection, tags.version)
    partition_key = partitions.key_of(connection, partition)
    studies = lock_studies(connection, partition_key, {new.key.study for new in instances})
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
    written = write_parents(connection, partition_key, studies, writes, {new.key for new in added})
    if added:
        connection.execute(sa.insert(t.instance), [instance_row(new, *written[new.key]) for new in added])
    for new in writes:
        if new.key in existing.versions:
            _replace(connection, new, written[new.key], existing.versions[new.key], cleanup_after)
    _write_values_of_instances(connection, writes, written, tags)
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


def lock_studies(connection: sa.Connection, partition_key: int, uids: set[str]) -> dict[str, _Study]:
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
    locked_study(connection, Resource(partition, study))
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


def write_parents(
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
        owners = {Owner(partition_key, study_key): of_study[-1].rows(Level.STUDY)}
        for series_uid in sorted(by_series):
            series_key, is_new = _write_series(
                connection, partition_key, study_key, by_series[series_uid], added
            )
            new_series += is_new
            owners[Owner(partition_key, study_key, series_key)] = by_series[series_uid][-1].rows(Level.SERIES)
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
    columns["tag_attributes"] = last.tag_attributes(Level.STUDY)
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
    columns["tag_attributes"] = last.tag_attributes(Level.SERIES)
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
    connection: sa.Connection,
    instances: Sequence[NewInstance],
    written: dict[InstanceKey, Keys],
    tags: TagSet,
) -> None:
    """The rows of ``attribute_value`` of instances that are in the index already, and the errors of tags."""
    if not tags.tags and not any(new.rows(Level.INSTANCE) for new in instances):
        return
    by_version = {new.version: new for new in instances}
    given = uid_table(sorted(by_version))
    keys = connection.execute(
        sa.select(t.instance.c.instance_key, t.instance.c.series_key, t.instance.c.version).join(
            given, t.instance.c.version == given.c.value
        )
    )
    owners: dict[InstanceKey, Owner] = {}
    for instance_key, series_key, version in keys:
        key = by_version[version].key
        if series_key == written[key][2]:  # a copied blob brings its version along
            owners[key] = Owner(*written[key], instance_key)
    values.insert(connection, [(owners[new.key], new.rows(Level.INSTANCE)) for new in instances])
    if tags.tags:
        query_tags.write_errors(connection, tags, [(owners[new.key], new.tag_values) for new in instances])


def _summarise_study(connection: sa.Connection, study_key: int, new_series: int) -> None:
    """Bring the study's number of series and its modalities up to date."""
    modalities = connection.execute(
        sa.select(t.series.c.modality)
        .where(t.series.c.study_key == study_key, t.series.c.modality.is_not(None))
        .distinct()
        .order_by(t.series.c.modality)
    ).scalars()
    summary: dict[str, Any] = {
        "modalities_in_study": normalise.cut("\\".join(m.upper() for m in modalities), 1024)
    }
    if new_series:
        summary["number_of_series"] = t.study.c.number_of_series + new_series
    connection.execute(sa.update(t.study).where(t.study.c.study_key == study_key).values(summary))


def _replace(
    connection: sa.Connection, new: NewInstance, keys: Keys, version: str, cleanup_after: str
) -> None:
    """What is there goes, its original with it: the new file is another one, not an update of it."""
    i, o = t.instance, t.original_instance
    where = sa.and_(i.c.series_key == keys[2], i.c.sop_instance_uid == new.key.instance)
    found = connection.execute(
        sa.select(i.c.pack, i.c.instance_key, o.c.version, o.c.pack)
        .outerjoin(o, o.c.instance_key == i.c.instance_key)
        .where(where)
    ).one()
    _delete_values(connection, Owner(*keys, found.instance_key))
    rows = [deleted_row(new.key, version, found[0], cleanup_after)]
    if found[2] is not None:
        rows.append(deleted_row(new.key, found[2], found[3], cleanup_after))
        connection.execute(sa.delete(o).where(o.c.instance_key == found.instance_key))
    connection.execute(sa.insert(t.deleted_instance), rows)
    connection.execute(sa.update(i).where(where).values(instance_row(new, *keys)))


def instance_row(new: NewInstance, partition_key: int, study_key: int, series_key: int) -> dict[str, Any]:
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
        "tag_attributes": new.tag_attributes(Level.INSTANCE),
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
        if isinstance(shadow, str):
            shadow = normalise.cut(shadow, attribute.column_length)
        columns[attribute.column] = shadow
        if attribute.matching is Matching.DATETIME:
            zone = normalise.offset(texts.get("TimezoneOffsetFromUTC", ""))
            columns[f"{attribute.column}_utc"] = normalise.instant(value, zone)
        if attribute.matching is Matching.PERSON_NAME:
            columns[f"{attribute.column}_words"] = (
                normalise.cut(normalise.name_words(value), attribute.length) or None
            )
    return columns


# --- deleting ----------------------------------------------------------------------------------------


def delete(connection: sa.Connection, resource: Resource, cleanup_after: str) -> int:
    """Remove a study, a series or an instance from the index; the number of instances removed.

    The bytes are left to the clean-up, which finds them in ``deleted_instance``.
    """
    study_key = locked_study(connection, resource)
    if study_key is None:
        return 0
    doomed = find_keys(connection, resource)
    if not doomed:
        return 0
    files = [(key, version, pack) for key, version, pack, _, _ in doomed]
    files += _find_originals(connection, resource) + _take_prepared(connection, resource)
    connection.execute(
        sa.insert(t.deleted_instance),
        [deleted_row(key, version, pack, cleanup_after) for key, version, pack in files],
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


def locked_study(connection: sa.Connection, resource: Resource) -> int | None:
    """The key of a study whose writers wait from here on; None where it does not exist."""
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


def _find_originals(connection: sa.Connection, resource: Resource) -> list[tuple[InstanceKey, str, str]]:
    """(key, version, pack) of the originals of updated instances that ``resource`` addresses."""
    i, o = t.instance, t.original_instance
    rows = connection.execute(
        sa.select(
            t.study.c.study_instance_uid,
            t.series.c.series_instance_uid,
            i.c.sop_instance_uid,
            o.c.version,
            o.c.pack,
        )
        .select_from(t.partition)
        .join(t.study, t.study.c.partition_key == t.partition.c.partition_key)
        .join(t.series, t.series.c.study_key == t.study.c.study_key)
        .join(i, i.c.series_key == t.series.c.series_key)
        .join(o, o.c.instance_key == i.c.instance_key)
        .where(_addressed(resource))
    )
    return [(InstanceKey(resource.partition, r[0], r[1], r[2]), r[3], r[4]) for r in rows]


def _take_prepared(connection: sa.Connection, resource: Resource) -> list[tuple[InstanceKey, str, str]]:
    """Forget what updates that run have prepared of ``resource``: (key, version, pack) of it."""
    p = t.prepared_update
    conditions = [p.c.study_instance_uid == resource.study, p.c.partition_name == resource.partition]
    if resource.series:
        conditions.append(p.c.series_instance_uid == resource.series)
    if resource.instance:
        conditions.append(p.c.sop_instance_uid == resource.instance)
    rows = connection.execute(
        sa.select(p.c.series_instance_uid, p.c.sop_instance_uid, p.c.version, p.c.pack).where(*conditions)
    ).all()
    if rows:
        connection.execute(sa.delete(p).where(*conditions))
    return [(InstanceKey(resource.partition, resource.study, r[0], r[1]), r[2], r[3]) for r in rows]


def _delete_rows(
    connection: sa.Connection,
    resource: Resource,
    study_key: int,
    series_keys: set[int],
    instance_keys: Sequence[int],
) -> None:
    i, series, o = t.instance, t.series, t.original_instance
    doomed = sa.select(i.c.instance_key).where(i.c.study_key == study_key)
    if resource.series:
        doomed = doomed.where(i.c.series_key.in_(series_keys))
    if resource.instance:
        doomed = doomed.where(i.c.sop_instance_uid == resource.instance)
    connection.execute(sa.delete(o).where(o.c.instance_key.in_(doomed)))
    if not resource.series:
        _delete_values(connection, Owner(0, study_key))
        connection.execute(sa.delete(i).where(i.c.study_key == study_key))
        connection.execute(sa.delete(series).where(series.c.study_key == study_key))
        _delete_study(connection, study_key)
        return
    (series_key,) = series_keys
    for instance_key in instance_keys if resource.instance else ():
        _delete_values(connection, Owner(0, study_key, series_key, instance_key))
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
        _delete_values(connection, Owner(0, study_key, series_key))
        connection.execute(sa.delete(series).where(series.c.series_key == series_key))
    _recount_study(connection, study_key)


def _delete_values(connection: sa.Connection, owner: Owner) -> None:
    """Remove what is indexed of an owner and what is below it beside their own rows."""
    values.delete(connection, owner, with_children=not owner.instance_key)
    query_tags.forget_errors(connection, owner)


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
        _delete_values(connection, Owner(0, study_key))
        _delete_study(connection, study_key)
        return
    connection.execute(
        sa.update(study)
        .where(study.c.study_key == study_key)
        .values(number_of_series=counted[0], number_of_instances=counted[1])
    )
    _summarise_study(connection, study_key, 0)


def deleted_row(key: InstanceKey, version: str, pack: str, cleanup_after: str) -> dict[str, Any]:
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


def count_due_deletions(connection: sa.Connection, now: str) -> int:
    """How many versions :func:`due_deletions` would give without a limit."""
    d = t.deleted_instance
    counting = sa.select(sa.func.count()).select_from(d).where(d.c.cleanup_after <= now)
    return int(connection.execute(counting).scalar_one())


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
    locked_study(connection, Resource(partition, study))
    current = pack_of_series(connection, partition, study, series)
    return sum(
        connection.execute(
            sa.update(table)
            .where(table.c.version == version, table.c.pack == old)
            .values(pack=place.pack, document_offset=place.offset)
        ).rowcount
        for version, old, place in moves
        if place.pack == current
        for table in _WITH_RECORDS
    )


_WITH_RECORDS = (t.instance, t.original_instance, t.prepared_update)
"""Tables whose rows refer to records in packs; a version is in one of them at a time."""


def find_records(
    connection: sa.Connection, partition: str, study: str, series: str, pack: str
) -> list[PackRecord]:
    """The records of a pack that something refers to, as they lie in it; one statement."""
    i, o, p = _WITH_RECORDS
    addressed = _addressed(Resource(partition, study, series))

    def of(table: sa.Table) -> sa.Select[Any]:
        return sa.select(table.c.version, *(table.c[name] for name in _PLACE)).where(table.c.pack == pack)

    def of_series(statement: sa.Select[Any]) -> sa.Select[Any]:
        return (
            statement.join(t.series, t.series.c.series_key == i.c.series_key)
            .join(t.study, t.study.c.study_key == t.series.c.study_key)
            .join(t.partition, t.partition.c.partition_key == t.study.c.partition_key)
            .where(addressed)
        )

    prepared = of(p).where(
        p.c.partition_name == partition, p.c.study_instance_uid == study, p.c.series_instance_uid == series
    )
    originals = of_series(of(o).select_from(o).join(i, i.c.instance_key == o.c.instance_key))
    rows = connection.execute(sa.union_all(of_series(of(i).select_from(i)), originals, prepared))
    return sorted((PackRecord(row[0], Place(*row[1:])) for row in rows), key=lambda r: r.place.offset)


def referenced_bytes(connection: sa.Connection, packs: Sequence[str]) -> dict[str, int]:
    """Bytes of each pack that something refers to; packs nobody refers to are left out."""
    given = uid_table(list(packs))
    sizes = sa.union_all(
        *(
            sa.select(
                table.c.pack,
                (table.c.document_length + table.c.bulkdata_length + table.c.frames_length).label("size"),
            ).join(given, table.c.pack == given.c.value)
            for table in _WITH_RECORDS
        )
    ).subquery("sizes")
    rows = connection.execute(sa.select(sizes.c.pack, sa.func.sum(sizes.c.size)).group_by(sizes.c.pack))
    return {row[0]: int(row[1]) for row in rows}
