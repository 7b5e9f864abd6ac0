"""Every kind of matching, at every level, against the reference of ``tests/reference.py``, on generated data.

Files are parsed and committed as a store does it; searches are parsed, run in SQL and read page by page, by
cursor. The data are drawn from small alphabets, so that queries often match.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage

from shared.dicom.attributes import Level, by_path
from shared.dicom.identifiers import InstanceKey, Resource
from shared.dicom.part10 import Part10Parser
from shared.dicom.search_terms import is_known
from shared.services.store import new_instance
from shared.sql import search as index
from shared.sql.engine import Database
from shared.sql.instances import Place, commit_store, delete
from shared.sql.query_tags import read_set
from shared.web.query_params import cursor, search_request
from tests import databases
from tests.dicom_files import make_dataset, to_file
from tests.reference import Options, Path, matches

SERVERS = ["", *filter(None, [databases.SERVER])]
ATTRIBUTES = {tuple(a.keyword.split(".")): a for a in by_path().values()}

UIDS_OF = {
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}
TEXTS = ["a", "b", "A", "ä", "ß", " ", "%", "_", "[", "]", "!", "^", "-", ",", "山", "𝒳", "'"]
NAMES = ["a", "b", "ab", "á", "ß", "山", "田", "^", " ", "=", "A", "x_", "%", "["]
CODES = ["A", "B", "AB", "A_1", "B 2"]
DATES = [f"20{y:02d}{m:02d}{d:02d}" for y in (19, 20) for m in (1, 2, 12) for d in (1, 28)]
TIMES = ["00", "10", "1015", "101530", "101530.5", "101530.000001", "235959.999999", "23"]
MOMENTS = [
    "2020", "202001", "20200101", "2020010110", "20200101103015.25", "2020010110+0200", "2019123123-0300",
    "20200101093015+0000", "202001010000+1400", "2019123112-1200",
]  # fmt: skip
ZONES = ["", "+0100", "-0500", "+1400"]
UIDS = ["1.2.3", "1.2.4", "1.2.33"]


def text(chance: random.Random, letters: list[str], most: int) -> str:
    return "".join(chance.choices(letters, k=chance.randint(0, most))).strip()


def dataset(chance: random.Random, study: str, series: str, instance: str) -> Dataset:
    """A data set with values of every VR, within sequences and several at once; some are missing."""
    values: dict[str, Any] = {
        "PatientID": text(chance, TEXTS, 3),
        "IssuerOfPatientID": text(chance, TEXTS, 1),
        "PatientName": text(chance, NAMES, 7),
        "ReferringPhysicianName": text(chance, NAMES, 4),
        "PatientBirthDate": chance.choice(DATES),
        "PatientSex": chance.choice("MFO"),
        "OtherPatientNames": [text(chance, NAMES, 4) for _ in range(2)],
        "NameOfPhysiciansReadingStudy": [text(chance, NAMES, 3) for _ in range(2)],
        "PatientWeight": chance.choice(["70", "70.0", "7E1", "71.5"]),
        "StudyDate": chance.choice(DATES),
        "StudyTime": chance.choice(TIMES),
        "AccessionNumber": text(chance, TEXTS, 2),
        "StudyDescription": text(chance, TEXTS, 5),
        "ProcedureCodeSequence": [code(chance) for _ in range(chance.randint(0, 3))],
        "OtherPatientIDsSequence": [other_identifier(chance) for _ in range(chance.randint(0, 2))],
        "Modality": chance.choice(["CT", "MR", "SEG"]),
        "SeriesNumber": str(chance.randint(-1, 2)),
        "SeriesDate": chance.choice(DATES),
        "Laterality": chance.choice("LR"),
        "FrameOfReferenceUID": chance.choice(UIDS),
        "RequestAttributesSequence": [request(chance) for _ in range(chance.randint(0, 3))],
        "InstanceNumber": str(chance.randint(-1, 3)),
        "ContentTime": chance.choice(TIMES),
        "AcquisitionDateTime": chance.choice(MOMENTS),
        "ImageType": chance.choices(CODES, k=chance.randint(1, 3)),
        "ConceptNameCodeSequence": [code(chance)],
        "TimezoneOffsetFromUTC": chance.choice(ZONES) or None,
    }
    for keyword in chance.sample(sorted(values), chance.randint(0, 6)):
        values[keyword] = "" if keyword == "PatientID" else None
    made = make_dataset(study, series, instance, frames=0, SpecificCharacterSet="ISO_IR 192", **values)
    made.SOPClassUID = chance.choice([CTImageStorage, MRImageStorage])
    return made


def code(chance: random.Random) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = text(chance, TEXTS, 1), chance.choice(["LN", "SCT"])
    return item


def other_identifier(chance: random.Random) -> Dataset:
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = text(chance, TEXTS, 1), chance.choice(["TEXT", "RFID"])
    return item


def request(chance: random.Random) -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID = chance.choice(["1", "2", ""])
    item.RequestedProcedureID = chance.choice(["1", "2"])
    item.StudyInstanceUID = chance.choice(UIDS)
    item.RequestedProcedureCodeSequence = [code(chance) for _ in range(chance.randint(0, 2))]
    return item


@dataclass(repr=False, eq=False)
class Archive:
    """A partition with what was stored in it, in the order of storing."""

    database: Database
    partition: str = field(default_factory=lambda: f"r-{uuid.uuid4().hex}")
    stored: dict[str, Dataset] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """SOP Instance UIDs, the one stored or replaced last at the end."""

    def store(self, ds: Dataset) -> None:
        parser = Part10Parser()
        parser.feed(to_file(ds))
        parsed = parser.close()
        key = InstanceKey(self.partition, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        version = uuid.uuid4().hex
        tags = self.database.run(False, read_set)
        new = new_instance(key, version, parsed, Place(version, 0, 1, 0, 0), tags)
        done = self.database.run(True, commit_store, self.partition, [new], frozenset(), True, "", tags)
        assert done == {key: True}
        if ds.SOPInstanceUID in self.order:
            self.order.remove(ds.SOPInstanceUID)
        self.order.append(ds.SOPInstanceUID)
        self.stored[ds.SOPInstanceUID] = ds

    def delete(self, ds: Dataset) -> None:
        resource = Resource(self.partition, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        assert self.database.run(True, delete, resource, "") == 1
        self.order.remove(ds.SOPInstanceUID)
        del self.stored[ds.SOPInstanceUID]

    def last(self, ds: Dataset, level: Level) -> Dataset:
        """The data set that speaks for the study or series of ``ds``: the one stored last."""
        return self.spoken_for[level, str(ds.get(UIDS_OF[level]))]

    @cached_property
    def spoken_for(self) -> dict[tuple[Level, str], Dataset]:
        """The last data set by the UIDs of its study, series and instance, when all is stored."""
        ordered = [self.stored[uid] for uid in self.order]
        return {(level, str(ds.get(keyword))): ds for ds in ordered for level, keyword in UIDS_OF.items()}

    def search(self, level: Level, query: dict[str, str]) -> list[str]:
        """UIDs of all results, page by page."""
        found: list[str] = []
        asked = search_request(level, Resource(self.partition), query.items())
        while True:
            rows = self.database.run(False, index.search, asked.query)
            found += [self._uid(level, row) for row in rows]
            if len(rows) < asked.query.limit:
                return found
            position = cursor(asked, rows[-1].position)
            asked = search_request(level, Resource(self.partition), (query | {"cursor": position}).items())

    @staticmethod
    def _uid(level: Level, row: index.Found) -> str:
        part = {Level.STUDY: row.study, Level.SERIES: row.series, Level.INSTANCE: row.instance}[level]
        assert part is not None
        return part.uid

    def expected(self, level: Level, conditions: dict[Path, str], options: Options) -> set[str]:
        """UIDs of what the reference finds."""
        return {
            str(ds.get(UIDS_OF[level]))
            for ds in self.stored.values()
            if all(
                matches(
                    self.last(ds, at),
                    {p: q for p, q in conditions.items() if ATTRIBUTES[p].level is at},
                    options,
                )
                for at in (Level.STUDY, Level.SERIES, Level.INSTANCE)
                if at <= level
            )
        }


@pytest.fixture(scope="module", params=SERVERS, ids=lambda url: url.split(":")[0] or "file")
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """25 studies of up to two series of up to three instances; some were replaced later, some deleted."""
    with databases.new(tmp_path_factory.mktemp("sql") / "dicom.db", request.param) as url:
        database = Database(url)
        yield filled(database)
        database.close()


def filled(database: Database) -> Archive:
    chance = random.Random(20)
    made = Archive(database)
    places = [
        (f"1.{study}", f"1.{study}.{series}", f"1.{study}.{series}.{instance}")
        for study in range(25)
        for series in range(chance.randint(1, 2))
        for instance in range(chance.randint(1, 3))
    ]
    chance.shuffle(places)
    for place in places + chance.sample(places, 10):
        made.store(dataset(chance, *place))
    doomed = dataset(chance, "1.99", "1.99.1", "1.99.1.1")
    made.store(doomed)
    made.delete(doomed)
    return made


# --- queries ---------------------------------------------------------------------------------------------


def strings(letters: list[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from([*letters, "*", "?", "*"]), min_size=1, max_size=most).map("".join)


def ranges(values: list[str]) -> st.SearchStrategy[str]:
    one = st.sampled_from(values)
    both = st.tuples(one, one).map("-".join)
    return one | both | one.map(lambda value: value + "-") | one.map(lambda value: "-" + value)


TEXT, NAME = strings(TEXTS, 3), strings(NAMES, 4)
CODE = st.lists(st.sampled_from([*CODES, "A*", "?", "*B*", "LN", "SCT", "TEXT"]), min_size=1, max_size=2).map(
    ",".join
)
UID_LIST = st.lists(st.sampled_from([*UIDS, "9.9"]), min_size=1, max_size=3).map("\\".join)
QUERIES: dict[str, st.SearchStrategy[str]] = {
    "PatientID": TEXT,
    "IssuerOfPatientID": TEXT,
    "PatientName": NAME,
    "ReferringPhysicianName": NAME,
    "PatientBirthDate": ranges(DATES),
    "PatientSex": st.sampled_from(["M", "F", "M,O", "*"]),
    "OtherPatientNames": NAME,
    "NameOfPhysiciansReadingStudy": NAME,
    "PatientWeight": st.sampled_from(["70", "70.00", "71.5", "71.4"]),
    "StudyDate": ranges(DATES),
    "StudyTime": ranges(TIMES),
    "AccessionNumber": TEXT,
    "StudyDescription": TEXT | st.tuples(TEXT, TEXT).map("\\".join),
    "ProcedureCodeSequence.CodeValue": TEXT,
    "ProcedureCodeSequence.CodingSchemeDesignator": st.sampled_from(["LN", "sct", "S*", ""]),
    "OtherPatientIDsSequence.PatientID": TEXT,
    "OtherPatientIDsSequence.TypeOfPatientID": st.sampled_from(["TEXT", "R*"]),
    "Modality": st.sampled_from(["CT", "MR,SEG", "S*", "?T"]),
    "SeriesNumber": st.integers(-2, 3).map(str),
    "SeriesDate": ranges(DATES),
    "Laterality": st.sampled_from(["L", "r", "L,R"]),
    "FrameOfReferenceUID": UID_LIST,
    "RequestAttributesSequence.ScheduledProcedureStepID": st.sampled_from(["1", "2", "*", "?"]),
    "RequestAttributesSequence.RequestedProcedureID": st.sampled_from(["1", "2", "1\\2"]),
    "RequestAttributesSequence.StudyInstanceUID": UID_LIST,
    "RequestAttributesSequence.RequestedProcedureCodeSequence.CodeValue": TEXT,
    "RequestAttributesSequence.RequestedProcedureCodeSequence.CodingSchemeDesignator": st.sampled_from(
        ["LN", "SCT"]
    ),
    "InstanceNumber": st.integers(-2, 4).map(str),
    "SOPClassUID": st.lists(st.sampled_from([CTImageStorage, MRImageStorage, "1.2"]), min_size=1).map(
        ",".join
    ),
    "ContentTime": ranges(TIMES),
    "AcquisitionDateTime": ranges(MOMENTS),
    "ImageType": CODE,
    "ConceptNameCodeSequence.CodeValue": TEXT,
    "ConceptNameCodeSequence.CodingSchemeDesignator": st.sampled_from(["LN", "SCT"]),
}
IN_SEQUENCES = [name for name in QUERIES if "." in name]


def check(
    archive: Archive, level: Level, conditions: dict[str, str], fuzzy: bool = False, zone: str = ""
) -> None:
    query = conditions | {"fuzzymatching": str(fuzzy), "TimezoneOffsetFromUTC": zone, "limit": "17"}
    found = archive.search(level, query)
    by_keywords = {tuple(name.split(".")): value for name, value in conditions.items()}
    assert len(set(found)) == len(found)
    assert set(found) == archive.expected(level, by_keywords, Options(fuzzy, zone))


def levels(names: list[str]) -> list[Level]:
    """The levels at which all of ``names`` can be matched."""
    lowest = max(ATTRIBUTES[tuple(name.split("."))].level for name in names)
    below = [level for level in (Level.STUDY, Level.SERIES, Level.INSTANCE) if level >= lowest]
    return [Level.SERIES, Level.INSTANCE] if below[0] is Level.STUDY and "Modality" in names else below


RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("name", QUERIES)
@given(data=st.data())
@settings(deadline=None, max_examples=20, suppress_health_check=RELAXED)
def test_one_attribute(archive: Archive, name: str, data: st.DataObject) -> None:
    query = data.draw(QUERIES[name])
    level = data.draw(st.sampled_from(levels([name])))
    fuzzy = data.draw(st.booleans())
    check(archive, level, {name: query}, fuzzy, data.draw(st.sampled_from(ZONES)))


@given(data=st.data(), names=st.lists(st.sampled_from(list(QUERIES)), min_size=2, max_size=4, unique=True))
@settings(deadline=None, max_examples=100, suppress_health_check=RELAXED)
def test_several_attributes(archive: Archive, data: st.DataObject, names: list[str]) -> None:
    check(
        archive,
        data.draw(st.sampled_from(levels(names))),
        {name: data.draw(QUERIES[name]) for name in names},
        data.draw(st.booleans()),
    )


@given(data=st.data(), names=st.lists(st.sampled_from(IN_SEQUENCES), min_size=2, max_size=4, unique=True))
@settings(deadline=None, max_examples=100, suppress_health_check=RELAXED)
def test_items_of_sequences(archive: Archive, data: st.DataObject, names: list[str]) -> None:
    check(
        archive,
        data.draw(st.sampled_from(levels(names))),
        {name: data.draw(QUERIES[name]) for name in names},
    )


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=RELAXED)
def test_orders(archive: Archive, data: st.DataObject) -> None:
    """Sorted by any column, whatever is matched, page by page: all there is, once, in an order that holds."""
    level = data.draw(st.sampled_from([Level.STUDY, Level.SERIES, Level.INSTANCE]))
    columns = [a.keyword for a in by_path().values() if a.column and not a.computed and is_known(a, level)]
    keys = data.draw(st.lists(st.sampled_from(columns), min_size=1, max_size=3, unique=True))
    signs = data.draw(st.lists(st.sampled_from(["", "-"]), min_size=len(keys), max_size=len(keys)))
    order = ",".join(sign + key for sign, key in zip(signs, keys, strict=True))
    condition = data.draw(st.sampled_from([{}, {"StudyDate": "20190201-"}, {"PatientSex": "M"}]))
    pages = archive.search(level, condition | {"orderby": order, "limit": "7"})
    whole = archive.search(level, condition | {"orderby": order, "limit": "200"})
    assert pages == whole
    assert sorted(pages) == sorted(archive.search(level, condition))
    turned = ",".join(("" if sign else "-") + key for sign, key in zip(signs, keys, strict=True))
    if len(set(signs)) == 1:
        assert archive.search(level, condition | {"orderby": turned}) == pages[::-1]


# --- patients --------------------------------------------------------------------------------------------

OF_PATIENTS = [
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "OtherPatientNames", "OtherPatientIDsSequence.PatientID", "OtherPatientIDsSequence.TypeOfPatientID",
]  # fmt: skip


def patients(archive: Archive) -> dict[tuple[str, str], list[Dataset]]:
    """Of each patient the data sets that speak for its studies, the one stored last at the end."""
    found: dict[tuple[str, str], list[Dataset]] = {}
    for uid in archive.order:
        ds = archive.stored[uid]
        if archive.last(ds, Level.STUDY) is ds and ds.PatientID:
            found.setdefault((ds.PatientID, str(ds.get("IssuerOfPatientID") or "")), []).append(ds)
    return found


@given(data=st.data(), names=st.lists(st.sampled_from(OF_PATIENTS), max_size=2, unique=True))
@settings(deadline=None, max_examples=100, suppress_health_check=RELAXED)
def test_patients(archive: Archive, data: st.DataObject, names: list[str]) -> None:
    """Attributes of their own are those of the last instance; values those of any of their studies."""
    conditions = {name: data.draw(QUERIES[name]) for name in names}
    asked = search_request(
        Level.PATIENT, Resource(archive.partition), (conditions | {"limit": "200"}).items()
    )
    rows = archive.database.run(False, index.search_patients, asked.query)
    own = {(n,): q for n, q in conditions.items() if ATTRIBUTES[tuple(n.split("."))].column}
    of_values = {tuple(n.split(".")): q for n, q in conditions.items() if tuple(n.split(".")) not in own}
    groups = [{p: q for p, q in of_values.items() if p[0] == first} for first in {p[0] for p in of_values}]
    expected = [
        studies
        for studies in patients(archive).values()
        if matches(studies[-1], own, Options())
        and all(any(matches(ds, group, Options()) for ds in studies) for group in groups)
    ]
    assert len(rows) == len(expected)
    assert sorted(row.patient.number_of_studies for row in rows) == sorted(map(len, expected))
