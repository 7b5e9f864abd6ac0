"""``python3 dev.py bench --scale``: the usual searches on 1,000,000 instances beside the same on 10,000.

Both indexes are written straight into SQL, 100 instances a study: no file is stored. A hospital makes so many
studies a day whatever it holds already, so both have the same number a day and the larger one more days, and
each search finds as much in one as in the other. What is measured is the search in this process: parameters
to rows. Both take turns at every search; medians (p50) and their ratio are reported.

With ``DICOM_TEST_SQL_URL`` the same is measured there: the small index first, then the large one beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.report import write_table
from shared.dicom.attributes import MATCHING_OF_VR, Attribute, Level
from shared.dicom.identifiers import Resource
from shared.dicom.search_terms import SearchQuery, parse_term
from shared.sql import search, tables
from shared.sql.engine import Database
from shared.web.query_params import search_query

STUDIES, SMALL_STUDIES = 10_000, 100
SERIES, INSTANCES = 2, 50
"""Series of a study and instances of a series."""

STUDIES_A_DAY = 20
AIM = 1.5

_FIRST_DAY = date(2020, 1, 1)
_BATCH = 100  # studies a transaction
_IMAGE_TYPES = ("original", "primary", "axial")
_TAG = Attribute(
    "DeviceSerialNumber", Level.SERIES, MATCHING_OF_VR["LO"], in_values=True, path="00181000", name="#1"
)
"""An extended query tag."""


@dataclass(frozen=True)
class Index:
    """A partition of a database with so many studies."""

    database: Database
    partition: str
    studies: int


# --- data ------------------------------------------------------------------------------------------------


def generate(index: Index, progress: Callable[[int], None]) -> None:
    """Write the index: every level's rows with the values that storing would have made of files."""
    partition_key = index.database.run(True, _insert_partition, index.partition)
    for first in range(0, index.studies, _BATCH):
        numbers = range(first, min(first + _BATCH, index.studies))
        index.database.run(True, _insert_studies, partition_key, numbers, index.partition)
        progress(len(numbers))


def _insert_partition(connection: sa.Connection, name: str) -> int:
    row = {"partition_name": name, "created": "2020-01-01T00:00:00Z"}
    return int(connection.execute(sa.insert(tables.partition), row).inserted_primary_key[0])  # type: ignore[index]


def _insert_studies(connection: sa.Connection, partition_key: int, numbers: range, root: str) -> None:
    keys = {
        table.name: (connection.execute(sa.select(sa.func.max(key))).scalar() or 0) + 1
        for table, key in (
            (tables.patient, tables.patient.c.patient_key),
            (tables.study, tables.study.c.study_key),
            (tables.series, tables.series.c.series_key),
            (tables.instance, tables.instance.c.instance_key),
        )
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*keys, "attribute_value")}
    for number in numbers:
        _add_study(rows, keys, partition_key, number, uuid.uuid5(uuid.NAMESPACE_OID, root).int % 10**9)
    for name in ("patient", "study", "series", "instance", "attribute_value"):
        _insert(connection, tables.metadata.tables[name], rows[name])


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Rows with their keys, which SQL Server takes when asked to."""
    identity = connection.dialect.name == "mssql" and table.name != "attribute_value"
    if identity:
        connection.exec_driver_sql(f"SET IDENTITY_INSERT {table.name} ON")
    connection.execute(sa.insert(table), rows)
    if identity:
        connection.exec_driver_sql(f"SET IDENTITY_INSERT {table.name} OFF")


def _add_study(
    rows: dict[str, list[dict[str, Any]]], keys: dict[str, int], partition_key: int, number: int, root: int
) -> None:
    patient = {
        "patient_name": f"surname{number // 20:05d}^given{number % 20}",
        "patient_name_words": f" surname{number // 20:05d} given{number % 20}",
        "patient_id": f"p{number:07d}",
        "patient_birth_date": f"19{number % 100:02d}0101",
        "patient_sex": "fm"[number % 2],
        "issuer_of_patient_id": None,
    }
    name = f"Surname{number // 20:05d}^Given{number % 20}"
    attributes = (
        f'{{"00100010":{{"vr":"PN","Value":[{{"Alphabetic":"{name}"}}]}},'
        f'"00100020":{{"vr":"LO","Value":["P{number:07d}"]}}}}'
    )
    patient_key, study_key = keys["patient"], keys["study"]
    keys["patient"] += 1
    keys["study"] += 1
    rows["patient"].append(
        {
            "patient_key": patient_key,
            "partition_key": partition_key,
            "identifier": f"P{number:07d}",
            "issuer": "",
            "attributes": attributes,
            **patient,
        }
    )
    modality = ("ct", "mr")[number % 2]
    day = _FIRST_DAY + timedelta(days=number // STUDIES_A_DAY)
    uid = f"1.2.{root}.{number}"
    rows["study"].append(
        {
            "study_key": study_key,
            "partition_key": partition_key,
            "patient_key": patient_key,
            "study_instance_uid": uid,
            "number_of_series": SERIES,
            "number_of_instances": SERIES * INSTANCES,
            "modalities_in_study": modality.upper(),
            "attributes": attributes,
            "accession_number": f"a{number:07d}",
            "referring_physician_name": f"doctor{number % 50}",
            "referring_physician_name_words": f" doctor{number % 50}",
            "study_date": f"{day:%Y%m%d}",
            "study_time": f"{8 + number % 10:02d}{number % 60:02d}00.000000",
            "study_description": f"protocol {number % 30}",
            "study_id": f"{number}",
            **patient,
        }
    )
    for series in range(SERIES):
        _add_series(rows, keys, partition_key, study_key, f"{uid}.{series}", number, modality)


def _add_series(
    rows: dict[str, list[dict[str, Any]]],
    keys: dict[str, int],
    partition_key: int,
    study_key: int,
    uid: str,
    number: int,
    modality: str,
) -> None:
    series_key = keys["series"]
    keys["series"] += 1
    rows["series"].append(
        {
            "series_key": series_key,
            "study_key": study_key,
            "partition_key": partition_key,
            "series_instance_uid": uid,
            "number_of_instances": INSTANCES,
            "metadata_pack": "1",
            "attributes": f'{{"00080060":{{"vr":"CS","Value":["{modality.upper()}"]}}}}',
            "modality": modality,
            "series_number": series_key % 10,
        }
    )
    owner = {"partition_key": partition_key, "study_key": study_key, "series_key": series_key}
    tag = {"attribute": _TAG.value_name, "text": f"device {number // 10}"}
    rows["attribute_value"].append(owner | {"level": 2, "owner_key": series_key, "item": ""} | tag)
    for instance in range(INSTANCES):
        key = keys["instance"]
        keys["instance"] += 1
        rows["instance"].append(
            {
                "instance_key": key,
                "series_key": series_key,
                "study_key": study_key,
                "partition_key": partition_key,
                "sop_instance_uid": f"{uid}.{instance}",
                "version": f"{key:032x}",
                "size": 524288,
                "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                "number_of_frames": 1,
                "frame_offset": 1024,
                "frame_bits": 4194304,
                "pack": "1",
                "document_offset": instance * 4096,
                "document_length": 4096,
                "bulkdata_length": 0,
                "frames_length": 0,
                "attributes": f'{{"00200013":{{"vr":"IS","Value":[{instance + 1}]}}}}',
                "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
                "instance_number": instance + 1,
            }
        )
        rows["attribute_value"] += [
            owner | {"level": 3, "owner_key": key, "item": "", "attribute": "00080008", "text": text}
            for text in _IMAGE_TYPES
        ]


# --- searches --------------------------------------------------------------------------------------------


def _parsed(index: Index, level: Level, **parameters: str) -> SearchQuery:
    return search_query(level, Resource(index.partition), parameters.items())


def _by_tag(index: Index, value: str) -> SearchQuery:
    term = parse_term(_TAG, value)
    assert term is not None
    return replace(_parsed(index, _TAG.level), terms=(term,))


def _some_study(index: Index, chance: random.Random) -> int:
    return chance.randrange(index.studies)


def searches(index: Index, chance: random.Random) -> Iterator[tuple[str, SearchQuery]]:
    """The usual searches, each about another study every time."""
    number = _some_study(index, chance)
    last_day = _FIRST_DAY + timedelta(days=(index.studies - 1) // STUDIES_A_DAY)
    range_of_days = f"{last_day - timedelta(days=4):%Y%m%d}-{last_day:%Y%m%d}"
    yield "Patient ID", _parsed(index, Level.STUDY, PatientID=f"P{number:07d}")
    yield "Name prefix (20 studies)", _parsed(index, Level.STUDY, PatientName=f"Surname{number // 20:05d}*")
    yield (
        "Dates of 5 days and a modality (50 studies)",
        _parsed(index, Level.STUDY, StudyDate=range_of_days, ModalitiesInStudy="CT"),
    )
    yield "Accession number", _parsed(index, Level.STUDY, AccessionNumber=f"A{number:07d}")
    yield (
        "Extended query tag (20 series)",
        _by_tag(index, f"Device {number // 10}"),
    )
    yield "Newest page of studies", _parsed(index, Level.STUDY, limit="100")
    yield "Newest page of patients", _parsed(index, Level.PATIENT, limit="100")
    yield "Studies by date, descending", _parsed(index, Level.STUDY, orderby="-StudyDate")
    yield "Instances of a common image type", _parsed(index, Level.INSTANCE, ImageType="PRIMARY")
    yield "Page 50 of instances, by offset", _parsed(index, Level.INSTANCE, limit="100", offset="4900")
    yield "Page 50 of instances, by cursor", _page_by_cursor(index)


def _page_by_cursor(index: Index) -> SearchQuery:
    query = _parsed(index, Level.INSTANCE, limit="100")
    before = replace(query, offset=4899, limit=1)
    (last,) = index.database.run(False, search.search, before)
    return replace(query, after=last.position)


def run_search(index: Index, query: SearchQuery) -> float:
    """Milliseconds that a search takes, statement and rows."""
    work = search.search_patients if query.level is Level.PATIENT else search.search
    started = time.perf_counter()
    found = index.database.run(False, work, query)
    elapsed = time.perf_counter() - started
    assert found
    return 1000 * elapsed


def measure(indexes: Sequence[Index], rounds: int) -> list[dict[str, float]]:
    """The median of each search, by index; a tenth of the rounds do not count.

    The indexes take turns, and who goes first changes from round to round: the second finds a warm processor.
    """
    chance = random.Random(7)
    times: list[dict[str, list[float]]] = [{} for _ in indexes]
    for number in range(-(rounds // 10), rounds):
        for turn in zip(*(searches(index, chance) for index in indexes), strict=True):
            of_turn = list(zip(indexes, times, turn, strict=True))
            for index, taken, (name, query) in of_turn if number % 2 else reversed(of_turn):
                milliseconds = run_search(index, query)
                if number >= 0:
                    taken.setdefault(name, []).append(milliseconds)
    return [{name: statistics.median(of_one) for name, of_one in taken.items()} for taken in times]


def run(studies: int, small: int, rounds: int) -> list[dict[str, float]]:
    """Medians of the small and of the large index."""
    url = os.environ.get("DICOM_TEST_SQL_URL", "")
    with (
        tempfile.TemporaryDirectory(prefix="dicom-scale-") as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("Studies written", total=studies + small)

        def filled(name: str, count: int) -> Index:
            database = Database(url or f"sqlite:///{Path(folder)}/{name}.db")
            index = Index(database, f"scale-{name}-{uuid.uuid4().hex[:8]}", count)
            generate(index, lambda done: progress.advance(task, done))
            return index

        if not url:
            indexes = [filled("small", small), filled("large", studies)]
            result = measure(indexes, rounds)
        else:
            indexes = [filled("small", small)]
            result = measure(indexes, rounds)
            indexes.append(filled("large", studies))
            result += measure(indexes[1:], rounds)
        for index in indexes:
            index.database.close()
        return result


HEADINGS = ["search", "10,000 instances (ms)", "1,000,000 instances (ms)", "ratio"]


def report(result: Sequence[dict[str, float]]) -> list[list[str]]:
    """Rows: search, medians, ratio."""
    small, large = result
    return [
        [name, f"{small[name]:.2f}", f"{large[name]:.2f}", f"{large[name] / small[name]:.2f}"]
        for name in small
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure and report; a ratio above the aim ends with status 1."""
    parser = argparse.ArgumentParser(prog="dev.py bench --scale", description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--small", type=int, default=SMALL_STUDIES)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args(arguments)
    result = run(options.studies, options.small, options.rounds)
    rows = report(result)
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.write:
        write_table("scale", HEADINGS, rows)
    sys.exit(any(float(row[-1]) > AIM for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
