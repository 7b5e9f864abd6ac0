"""Each place of ``shared/sql`` that executes a statement is reached here, where all that is executed must be
T-SQL (``tests/t_sql.py``).

A function added there, or a further statement of one, fails the test until a scenario reaches it. That holds
for places, not for the forms that a statement may take by what it is asked for: those of searches are the
matter of ``tests/test_sql_search.py`` and ``tests/test_workitems.py``. ``engine.py`` is left out: what it
executes is ``SELECT 1``, or for SQLite alone; migrations are compiled in ``tests/test_migrations.py``.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.dicom.attributes import Level
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.indexed_values import IndexedValue
from shared.dicom.query_tags import Definition, TagSet, TagValues
from shared.sql import (
    change_feed,
    export,
    imaging_study,
    instances,
    partitions,
    query_tags,
    search,
    tag_values,
    updates,
    workitem_events,
    workitem_subscriptions,
    workitems,
)
from shared.sql.engine import Database
from shared.sql.instances import NewInstance, Place
from shared.sql.updates import Prepared
from shared.web.query_params import search_query, workitem_request
from tests import t_sql
from tests import workitems as documents
from tests.conftest import NewSqlUrl

FOLDER = Path(change_feed.__file__).parent
FILES = [path for path in sorted(FOLDER.glob("*.py")) if path.name != "engine.py"]
P, OPERATION, LATER = "p", "0" * 32, "9"
TAG = Definition("00180050", "DS", Level.INSTANCE)

_versions = map("{:032}".format, itertools.count(1))


class Executed:
    """Functions and lines of ``shared/sql`` from which statements were executed while it listened."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.lines: set[tuple[str, int]] = set()

    def __call__(self, _connection: sa.Connection, statement: object, *_: object) -> None:
        frame = sys._getframe(1)
        found = []
        while frame.f_back is not None:
            path = Path(frame.f_code.co_filename)
            if path in FILES:
                found.append((path.name, frame.f_code.co_qualname, frame.f_lineno))
            frame = frame.f_back
        assert isinstance(statement, t_sql.CHECKED) or not found, f"{found[0]} is not looked at"
        self.functions.update((file, name) for file, name, _ in found)
        self.lines.update((file, line) for file, _, line in found[:1])


def emitters() -> Iterator[tuple[str, str, list[range]]]:
    """Every function that takes a connection: its file, its name, and the lines of the statements in it."""
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(a.arg == "connection" for a in node.args.args):
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call) and _executes(call)]
                yield path.name, node.name, [range(c.lineno, (c.end_lineno or 0) + 1) for c in calls]


def _executes(call: ast.Call) -> bool:
    """Whether a call is one of a method of the connection."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="connection")):
            return True
    return False


def test_statements_are_executed_by_functions_that_take_a_connection_alone() -> None:
    """So that :func:`emitters` finds all of them."""
    known = {(file, line) for file, _, ranges in emitters() for lines in ranges for line in lines}
    for path in FILES:
        text = path.read_text()
        assert set(re.findall(r"(\w+): sa\.Connection", text)) <= {"connection"}, path.name
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"\.execute\(|\bconnection\.\w+\(", line):
                assert (path.name, number) in known, f"{path.name}:{number}"


@pytest.fixture
def executed(new_sql_url: NewSqlUrl) -> Iterator[tuple[Database, Executed]]:
    database, executed = Database(new_sql_url("dicom"), threads=1), Executed()
    assert database.run(False, partitions.find_all) == []
    sa.event.listen(database.engine, "before_execute", executed)
    yield database, executed
    database.close()


def test_every_statement_of_the_index_is_executed_as_t_sql(executed: tuple[Database, Executed]) -> None:
    database, seen = executed
    for scenario in SCENARIOS:
        database.run(True, scenario)
    names = {(file, name) for file, name, _ in emitters()}
    assert sorted(names - seen.functions) == []
    missed = [
        f"{file}:{lines.start} in {name}"
        for file, name, ranges in emitters()
        for lines in ranges
        if not any((file, line) in seen.lines for line in lines)
    ]
    assert missed == []


# --- scenarios ---------------------------------------------------------------------------------------


def new(
    study: str, series: str, instance: str, pack: str = "pack", patient: str = "A", **tags: Any
) -> NewInstance:
    """A further version of an instance, with an indexed value at each level."""
    version = next(_versions)
    values = {"PatientID": patient, "PatientName": f"Name^{version}", "Modality": "CT"}
    return NewInstance(
        InstanceKey(P, study, series, instance),
        version,
        1,
        "1.2.840.10008.1.2.1",
        1,
        0,
        8,
        Place(pack, 0, 1, 0, 0),
        {level: json.dumps({"00100020": {"vr": "LO", "Value": [patient]}}) for level in Level},
        values | {"SOPClassUID": "1.2"},
        {level: (IndexedValue("OtherPatientIDs", "", text=patient),) for level in Level},
        **tags,
    )


def commit(connection: sa.Connection, *given: NewInstance, tags: TagSet | None = None) -> None:
    tags = tags or query_tags.read_set(connection)
    outcome = instances.commit_store(connection, P, given, frozenset({"pack"}), True, LATER, tags)
    assert all(outcome.values())


def of_resources(connection: sa.Connection) -> None:
    """Store, replace, retrieve, search, follow, export, clean up, delete."""
    first = [
        new("1", "1.1", "1.1.1"),
        new("1", "1.1", "1.1.2"),
        new("1", "1.2", "1.2.1"),
        new("2", "2.1", "2.1.1"),
    ]
    commit(connection, *first)
    commit(connection, new("1", "1.1", "1.1.1", patient="B"))
    commit(connection, new("2", "2.1", "2.1.1", patient="B"))
    keys = [one.key for one in first]
    study = Resource(P, "1")
    assert partitions.find(connection, P) == partitions.key_of(connection, P)
    assert len(partitions.find_all(connection)) == 1
    assert instances.any_stored(connection)
    assert len(instances.find_existing(connection, P, keys).versions) == 4
    assert len(instances.find_instances(connection, study)) == 3
    assert len(instances.find_instances(connection, study, original=True, among=["1.1.1"])) == 1
    for level in (Level.STUDY, Level.SERIES, Level.INSTANCE):
        assert instances.last_instances(connection, P, level, [1])
        query = search_query(level, Resource(P), [])
        assert len(search.search(connection, query)) == search.count(connection, query)
    assert len(search.search_patients(connection, search_query(Level.PATIENT, Resource(P), []))) == 1
    assert len(export.page(connection, study, (), 0, 10)) == 3
    assert len(export.find_listed(connection, keys)) == 4
    assert imaging_study.find(connection, P, "1") is not None
    assert imaging_study.find_patient(connection, P, "1")
    assert len(change_feed.read(connection, 0, 10, None, None)) == 6
    assert change_feed.read(connection, 0, 10, "3", "4") == []
    assert change_feed.latest(connection) is not None
    assert instances.changed_since(connection, keys[0], "2")
    versions = [one.version for one in first]
    assert len(instances.known_files(connection, versions)) == 4
    assert len(instances.indexed_files(connection, versions)) == 2
    assert len(instances.committed_files(connection, versions)) == 4
    assert instances.pack_of_series(connection, P, "1", "1.1") == "pack"
    assert instances.move_pack(connection, P, "1", "1.1", "pack", "other") == "other"
    assert len(instances.find_records(connection, P, "1", "1.1", "pack")) == 2
    assert (
        instances.relocate(connection, P, "1", "1.1", [(versions[1], "pack", Place("other", 5, 1, 0, 0))])
        == 1
    )
    assert instances.referenced_bytes(connection, ["pack", "other"]) == {"pack": 3, "other": 1}
    assert instances.count_due_deletions(connection, LATER) == 2
    (due, _) = instances.due_deletions(connection, LATER, 10)
    instances.postpone_deletions(connection, [due.version], LATER)
    instances.finish_deletions(connection, [due.version])
    for path in (
        Resource(P, "1", "1.1", "1.1.1"),
        Resource(P, "1", "1.1"),
        Resource(P, "1", "1.2"),
        Resource(P, "2"),
    ):
        assert instances.delete(connection, path, LATER) == 1
    assert not instances.any_stored(connection)


def of_updates(connection: sa.Connection) -> None:
    """An update of a study, one that is abandoned, and what replaces and deletes do to both."""
    stored = [new("1", "1.1", "1.1.1"), new("1", "1.1", "1.1.2")]
    commit(connection, *stored)

    def prepare(operation: str, *replaced: NewInstance) -> list[NewInstance]:
        found = [new(one.key.study, one.key.series, one.key.instance, "pack", "C") for one in replaced]
        pairs = [Prepared(one, of.version) for one, of in zip(found, replaced, strict=True)]
        updates.prepare(connection, operation, P, "1", pairs, frozenset({"pack"}), LATER)
        return found

    assert len(updates.progress(connection, OPERATION, P, "1").waiting) == 2
    prepared = prepare(OPERATION, *stored)
    prepare(OPERATION, *stored)  # by another run of the step: left to the clean-up
    tags = query_tags.read_set(connection)
    assert len(updates.without_tags(connection, OPERATION, P, "1", 7)) == 2
    updates.give_tags(connection, tags.version, {one.version: {Level.STUDY: TagValues()} for one in prepared})
    assert updates.commit(connection, OPERATION, P, "1", LATER, tags) == 2
    prepare("1" * 32, *prepared)
    assert updates.end(connection, "1" * 32, LATER) == (0, 0)
    updates.forget(connection, LATER)
    commit(connection, new("1", "1.1", "1.1.1"))  # its original goes with it
    updates.add_originals(connection, [new("1", "1.1", "1.1.1")])
    prepare("2" * 32, prepared[1])
    assert instances.delete(connection, Resource(P, "1", "1.1", "1.1.2"), LATER) == 1
    assert instances.delete(connection, Resource(P, "1"), LATER) == 1


def of_query_tags(connection: sa.Connection) -> None:
    """A tag is added, indexed for what there is, fails at an instance, and is deleted."""
    before = new("1", "1.1", "1.1.1")
    commit(connection, before)
    query_tags.add(connection, [TAG, replace(TAG, path="00080090", vr="PN", level=Level.STUDY)], OPERATION)
    tags = query_tags.read_set(connection)
    tag, of_study = tags.tags
    kept = TagValues((IndexedValue(of_study.attribute.value_name, "", text="x"),), '{"00080090":{"vr":"PN"}}')
    failed = TagValues(failed=((tag.key, "No number."),))
    commit(
        connection,
        new("1", "1.1", "1.1.2", tag_values={Level.STUDY: kept, Level.INSTANCE: failed}),
        tags=tags,
    )
    assert query_tags.count_errors(connection) == {tag.key: 1}
    assert len(query_tags.errors(connection, tag.key, 10, 0)) == 1
    assert tag_values.count(connection, Level.INSTANCE) == 2
    (owner, _) = tag_values.keys_after(
        connection, Level.INSTANCE, 0, tag_values.last_key(connection, Level.INSTANCE), 9
    )
    found = [(one, failed) for one in tag_values.sources(connection, Level.INSTANCE, [owner])]
    assert tag_values.write(connection, tags.version, Level.INSTANCE, [tag], found) == []
    query_tags.end_adding(connection, OPERATION)
    assert query_tags.enable(connection, TAG.path, True)
    for one in tags.tags:
        assert query_tags.begin_deleting(connection, one.path, OPERATION, "1" * 32)
    tags = query_tags.read_set(connection)
    for study_key in tag_values.studies_after(connection, 0, 10):
        tag_values.remove(connection, study_key, tags.tags, tags)
    query_tags.end_deleting(connection, "1" * 32)
    assert query_tags.read_set(connection).tags == ()
    query_tags.restore(connection, [TAG], [TAG.path])


def of_workitems(connection: sa.Connection) -> None:
    """Workitems are created, changed, watched, found and removed."""
    subscriptions, uid = workitem_subscriptions, "1.2.3"
    query = workitem_request(P, [("WorklistLabel", "Ch*")]).query
    document = {
        tag: value for tag, value in documents.new(WorklistLabel="Chest").items() if tag != "00081195"
    }
    subscriptions.subscribe_to_worklist(connection, P, "A", False, None)
    subscriptions.subscribe_to_worklist(connection, P, "A", True, query.terms)
    workitems.create(connection, P, uid, document)
    assert workitems.find(connection, P, uid).data_set == document
    changed = document | documents.data_set(WorklistLabel="Chest 2")
    workitems.change(connection, P, uid, lambda found: workitems.Change(found.owner, changed))
    assert len(workitems.search(connection, query)) == workitems.count(connection, query) == 1
    subscriptions.subscribe_to_worklist(connection, P, "B", True, query.terms)
    subscriptions.subscribe(connection, P, uid, "B", True)
    assert workitem_events.is_pending(connection)
    assert workitem_events.take(connection, "run", 0, "2000", "2001", 2)
    workitem_events.release(connection, "run")
    assert len(workitem_events.read_missed(connection, P, "B", 0, 10)[0]) == 2
    workitem_events.prune(connection, "1999")
    subscriptions.suspend(connection, P, "B", True)
    subscriptions.unsubscribe(connection, P, uid, "B")
    subscriptions.unsubscribe_from_worklist(connection, P, "A", False)
    ended = changed | documents.data_set(ProcedureStepState="CANCELED")
    workitems.change(connection, P, uid, lambda found: workitems.Change(found.owner, ended))
    assert subscriptions.remove_final(connection, LATER, 10) == 1


SCENARIOS: tuple[Callable[[sa.Connection], None], ...] = (
    of_resources,
    of_updates,
    of_query_tags,
    of_workitems,
)
