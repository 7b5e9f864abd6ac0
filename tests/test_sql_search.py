"""Searches against a real database: SQLite, and the one of ``DICOM_TEST_SQL_URL`` where it is set.

Rows are inserted with the shadow values that storing makes. A slow and obvious matcher in Python says
what each kind of matching must find.
"""

from __future__ import annotations

import random
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
import sqlalchemy as sa
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mssql, sqlite

from shared.dicom import normalise
from shared.dicom.attributes import Level, Matching, indexed
from shared.dicom.identifiers import Resource
from shared.dicom.search_terms import Position
from shared.sql import search as index
from shared.sql import tables
from shared.sql.engine import Database
from shared.sql.instances import last_instances_statement
from shared.sql.search import Found
from shared.web.query_params import search_query
from tests import databases

SERVERS = ["", *filter(None, [databases.SERVER])]
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4")


def columns(level: Level, values: dict[str, str]) -> dict[str, Any]:
    """The shadow columns of a level, as storing fills them."""
    result: dict[str, Any] = {}
    for attribute in indexed(level):
        if attribute.matching is Matching.UID and attribute.keyword != "SOPClassUID":
            continue
        value = values.get(attribute.keyword, "")
        assert attribute.matching is not None
        result[attribute.column] = normalise.shadow(attribute.matching, value)
        if attribute.matching is Matching.DATETIME:
            result[f"{attribute.column}_utc"] = normalise.instant(value)
        if attribute.matching is Matching.PERSON_NAME:
            result[f"{attribute.column}_words"] = normalise.name_words(value) or None
    return result


@dataclass
class Index:
    """One partition of a database."""

    database: Database
    partition: str = field(default_factory=lambda: f"p-{uuid.uuid4().hex}")

    def __post_init__(self) -> None:
        self.partition_key = self.insert(tables.partition, partition_name=self.partition, created="")

    def insert(self, table: sa.Table, **values: Any) -> int:
        def work(connection: sa.Connection) -> int:
            key = connection.execute(sa.insert(table), values).inserted_primary_key
            assert key is not None
            return int(key[0])

        return self.database.run(True, work)

    def study(self, uid: str, *series: int, modality: str = "CT", **values: str) -> int:
        """A study with as many series as there are numbers, each of that many instances."""
        key = self.insert(
            tables.study,
            partition_key=self.partition_key,
            study_instance_uid=uid,
            number_of_series=len(series),
            number_of_instances=sum(series),
            modalities_in_study=modality,
            attributes=f'{{"study":"{uid}"}}',
            **columns(Level.STUDY, values),
        )
        for number, instances in enumerate(series, 1):
            self.series(key, f"{uid}.{number}", instances, modality=modality, SeriesNumber=str(number))
        return key

    def series(self, study_key: int, uid: str, instances: int, modality: str = "CT", **values: str) -> None:
        key = self.insert(
            tables.series,
            study_key=study_key,
            partition_key=self.partition_key,
            series_instance_uid=uid,
            number_of_instances=instances,
            metadata_pack="",
            attributes=f'{{"series":"{uid}"}}',
            **columns(Level.SERIES, {"Modality": modality, **values}),
        )
        for number in range(1, instances + 1):
            self.instance(study_key, key, f"{uid}.{number}", InstanceNumber=str(number))

    def instance(self, study_key: int, series_key: int, uid: str, **values: str) -> None:
        values = {"SOPClassUID": SOP_CLASSES[0], **values}
        zero = dict.fromkeys(
            ("size", "number_of_frames", "frame_offset", "frame_bits", "document_offset", "document_length"),
            0,
        )
        self.insert(
            tables.instance,
            series_key=series_key,
            study_key=study_key,
            partition_key=self.partition_key,
            sop_instance_uid=uid,
            version=uuid.uuid4().hex,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            pack="",
            bulkdata_length=0,
            frames_length=0,
            attributes=f'{{"instance":"{uid}"}}',
            **zero,
            **columns(Level.INSTANCE, values),
        )

    def search(self, level: Level, query: str, study: str = "", series: str = "") -> list[Found]:
        parsed = search_query(
            level, Resource(self.partition, study, series), parse_qsl(query, keep_blank_values=True)
        )
        return self.database.run(False, index.search, parsed)

    def uids(self, level: Level, query: str, study: str = "", series: str = "") -> list[str]:
        """The UIDs found, in order."""
        found = self.search(level, query, study, series)
        rows = [(row.study, row.series, row.instance)[level - 1] for row in found]
        return [row.uid for row in rows if row is not None]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda url: url.split(":")[0] or "file")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with databases.new(tmp_path_factory.mktemp("sql") / "dicom.db", request.param) as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def empty(database: Database) -> Index:
    return Index(database)


# --- levels, paths, paging -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(database: Database) -> Index:
    """Study 1 of series 1.1 (2 instances) and 1.2 (1); study 2 of series 2.1 (1)."""
    result = Index(database)
    result.study("1", 2, 1, modality="CT", PatientID="A", StudyDate="20200101")
    result.study("2", 1, modality="MR", PatientID="B", StudyDate="20210101")
    return result


@pytest.mark.parametrize(
    ("level", "study", "series", "query", "uids"),
    [
        (Level.STUDY, "", "", "", "2 1"),
        (Level.SERIES, "", "", "", "2.1 1.2 1.1"),
        (Level.SERIES, "1", "", "", "1.2 1.1"),
        (Level.SERIES, "3", "", "", ""),
        (Level.INSTANCE, "", "", "", "2.1.1 1.2.1 1.1.2 1.1.1"),
        (Level.INSTANCE, "1", "", "", "1.2.1 1.1.2 1.1.1"),
        (Level.INSTANCE, "1", "1.1", "", "1.1.2 1.1.1"),
        (Level.INSTANCE, "2", "1.1", "", ""),
        (Level.SERIES, "", "", "PatientID=a", "1.2 1.1"),
        (Level.SERIES, "2", "", "PatientID=a", ""),
        (Level.SERIES, "", "", "SeriesNumber=1&PatientID=A", "1.1"),
        (Level.INSTANCE, "", "", "PatientID=A&Modality=CT&InstanceNumber=1", "1.2.1 1.1.1"),
        (Level.INSTANCE, "", "", "StudyInstanceUID=1,2&InstanceNumber=1", "2.1.1 1.2.1 1.1.1"),
        (Level.INSTANCE, "1", "", "SeriesNumber=2", "1.2.1"),
        (Level.INSTANCE, "", "", "SeriesInstanceUID=1.1&SOPInstanceUID=1.1.2\\1.2.1", "1.1.2"),
        (Level.INSTANCE, "1", "1.1", "SOPInstanceUID=1.1.2,1.2.1", "1.1.2"),
        (Level.STUDY, "", "", "StudyDate=20200601-", "2"),
        (Level.STUDY, "", "", "limit=1", "2"),
        (Level.STUDY, "", "", "limit=1&offset=1", "1"),
        (Level.STUDY, "", "", "offset=2", ""),
        (Level.INSTANCE, "", "", "limit=2&offset=1", "1.2.1 1.1.2"),
    ],
)
def test_levels_and_paths(small: Index, level: Level, study: str, series: str, query: str, uids: str) -> None:
    assert small.uids(level, query, study, series) == uids.split()


def test_rows_carry_their_parents(small: Index) -> None:
    (row,) = small.search(Level.INSTANCE, "SOPInstanceUID=2.1.1")
    assert row.series is not None
    assert row.instance is not None
    assert (row.study.uid, row.series.uid, row.instance.uid) == ("2", "2.1", "2.1.1")
    assert (row.study.number_of_series, row.study.number_of_instances, row.study.modalities) == (1, 1, "MR")
    assert row.series.number_of_instances == 1
    assert row.instance.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert [row.study.attributes, row.series.attributes, row.instance.attributes] == [
        '{"study":"2"}',
        '{"series":"2.1"}',
        '{"instance":"2.1.1"}',
    ]


def test_json_of_a_level_that_is_not_returned_is_not_read(small: Index) -> None:
    (row,) = small.search(Level.INSTANCE, "InstanceNumber=2", study="1", series="1.1")
    assert row.series is not None
    assert (row.study.attributes, row.series.attributes) == ("{}", "{}")
    (row,) = small.search(Level.INSTANCE, "InstanceNumber=2&PatientID=A", study="1", series="1.1")
    assert row.study.attributes == '{"study":"1"}'


def test_partitions_never_mix(database: Database) -> None:
    one, other = Index(database), Index(database)
    one.study("1", 1, PatientID="A")
    other.study("1", 2, PatientID="A")
    for query in ("", "PatientID=A", "StudyInstanceUID=1", "StudyInstanceUID=1,2", "ModalitiesInStudy=CT"):
        for level in (Level.STUDY, Level.SERIES, Level.INSTANCE):
            for study in ("", "1") if level > Level.STUDY else ("",):
                uids = one.uids(level, query, study)
                assert len(uids) == 1, (level, query)
                assert len(other.uids(level, query, study)) == (2 if level is Level.INSTANCE else 1)
    one.partition = "nowhere"
    assert one.uids(Level.STUDY, "") == []


# --- matching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("joh", True),
        ("do", True),
        ("jo do", True),
        ("Doe", True),
        ("John Doe", True),
        ("DOE^JOHN", True),
        ("Doe, J", True),
        ("ohn", False),
        ("john smith", False),
        ("*ohn*", True),
        ("jöhn", True),
        ("j%", False),
    ],
)
def test_fuzzy_matching_finds_prefixes_of_words(empty: Index, query: str, found: bool) -> None:
    empty.study("1", PatientName="John^Doe", ReferringPhysicianName="Who^Doctor")
    assert bool(empty.uids(Level.STUDY, f"PatientName={quote(query)}&fuzzymatching=true")) is found
    assert not empty.uids(Level.STUDY, "ReferringPhysicianName=John&fuzzymatching=true")
    assert empty.uids(Level.STUDY, "ReferringPhysicianName=doc&fuzzymatching=true")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("Yamada^Tarou", True),
        ("yamada*", True),
        ("山田^太郎", True),
        ("山*", True),
        ("やまだ^たろう", True),
        ("=山田^太郎", True),
        ("==やまだ^たろう", True),
        ("Yamada^Tarou=山田^太郎", True),
        ("Yamada^Tarou=山本*", False),
        ("Tarou", False),
        ("太郎", False),
        ("Yamada", False),
        ("Yam?da^*", True),
        ("YAMADA^TAROU^^", True),
    ],
)
def test_component_groups_of_names(empty: Index, query: str, found: bool) -> None:
    empty.study("1", PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")
    assert bool(empty.uids(Level.STUDY, f"PatientName={quote(query)}")) is found


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("100%", "100%"),
        ("100_", ""),
        ("a[b]c", "A[b]c"),
        ("a[bx]c", ""),
        ("abc", ""),
        ("a_c", ""),
        ("x!y", "x!y"),
        ("*%", "100%"),
        ("*[*", "A[b]c"),
        ("?!?", "x!y"),
        ("1??%", "100%"),
        ("??", "äß"),
        ("STRASSE", "Straße"),
    ],
)
def test_special_characters_stand_for_themselves(empty: Index, query: str, found: str) -> None:
    values = {f"1.{i}": value for i, value in enumerate(["100%", "A[b]c", "x!y", "Straße", "1000", "äß"])}
    for uid, value in values.items():
        empty.study(uid, PatientID=value)
    uids = empty.uids(Level.STUDY, f"PatientID={quote(query)}")
    assert [values[uid] for uid in uids] == ([found] if found and found != "äß" else [])


def test_modalities_in_study(empty: Index) -> None:
    key = empty.study("1", 1, modality="CT")
    empty.series(key, "1.9", 0, modality="SEG")
    empty.study("2", 1, modality="MR")
    for query, found in (("CT", "1"), ("seg", "1"), ("M?", "2"), ("*", "2 1"), ("CT\\MR", "2 1"), ("US", "")):
        for name in ("ModalitiesInStudy", "Modality"):
            assert empty.uids(Level.STUDY, f"{name}={query}") == found.split()
    assert empty.uids(Level.SERIES, "ModalitiesInStudy=SEG") == ["1.9", "1.1"]
    assert empty.uids(Level.INSTANCE, "ModalitiesInStudy=SEG&Modality=CT") == ["1.1.1"]


NAMES = ["a", "b", "ab", "á", "ß", "山", "田", "^", " ", "=", "A", "x_", "%", "["]
TEXTS = ["a", "b", "A", "ä", "ß", " ", "%", "_", "[", "]", "!", "^", "-", ",", "山", "𝒳", "'", '"']
DATES = [f"20{y:02d}{m:02d}{d:02d}" for y in (19, 20) for m in (1, 2, 12) for d in (1, 28)]
TIMES = ["00", "10", "1015", "101530", "101530.5", "101530.000001", "235959.999999", "23"]
MOMENTS = [
    "2020",
    "202001",
    "20200101",
    "2020010110",
    "20200101103015.25",
    "2020010110+0200",
    "2019123123-0300",
]


@dataclass(repr=False)
class Sample:
    """Raw values of one instance in a study of its own."""

    uid: str
    values: dict[str, str]


@dataclass(repr=False)
class Samples:
    """A partition and the raw values of what is in it."""

    index: Index
    rows: list[Sample]


@pytest.fixture(scope="module")
def samples(database: Database) -> Samples:
    """150 studies of one instance with values from small alphabets, so that queries often match."""
    chance = random.Random(7)
    target = Index(database)
    found = []
    for number in range(150):
        values = {
            "PatientName": "".join(chance.choices(NAMES, k=chance.randint(0, 7))),
            "PatientID": "".join(chance.choices(TEXTS, k=chance.randint(0, 4))),
            "StudyDate": chance.choice(DATES),
            "StudyTime": chance.choice(TIMES),
            "AcquisitionDateTime": chance.choice(MOMENTS),
            "InstanceNumber": str(chance.randint(-2, 5)),
            "SOPClassUID": chance.choice(SOP_CLASSES),
        }
        for keyword in chance.sample(sorted(values), chance.randint(0, 2)):
            values[keyword] = ""
        uid = f"1.{number}"
        key = target.study(uid, **values)
        target.series(key, f"{uid}.1", 0)
        with database.engine.connect() as connection:
            statement = sa.select(tables.series.c.series_key).where(tables.series.c.study_key == key)
            series_key = connection.execute(statement).scalar_one()
        target.instance(key, series_key, f"{uid}.1.1", **values)
        found.append(Sample(f"{uid}.1.1", values))
    return Samples(target, found)


def check(samples: Samples, keyword: str, query: str, match: Callable[[str], bool]) -> None:
    """The search finds exactly the samples whose value of ``keyword`` matches."""
    target, rows = samples.index, samples.rows
    options = f"{keyword}={quote(query)}&limit=200"
    expected = {row.uid for row in rows if match(row.values[keyword])}
    assert set(target.uids(Level.INSTANCE, options)) == expected


def glob(pattern: str) -> str:
    """The regular expression of a pattern."""
    return "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)


def folded(value: str) -> str:
    return unicodedata.normalize("NFKC", value.strip()).casefold()


def plain(value: str) -> str:
    decomposed = unicodedata.normalize("NFKD", value)
    return unicodedata.normalize(
        "NFC", "".join(c for c in decomposed if not unicodedata.combining(c))
    ).casefold()


@given(st.lists(st.sampled_from([*TEXTS, "*", "?", "*"]), min_size=1, max_size=4).map("".join))
@settings(deadline=None, max_examples=150)
def test_text_against_the_reference(samples: Samples, query: str) -> None:
    pattern = folded(query)

    def match(value: str) -> bool:
        if not pattern.strip("*"):
            return True
        return bool(value) and re.fullmatch(glob(pattern), folded(value), re.DOTALL) is not None

    check(samples, "PatientID", query, match)


@given(st.lists(st.sampled_from([*NAMES, "*", "?", "*"]), min_size=1, max_size=6).map("".join))
@settings(deadline=None, max_examples=200)
def test_person_names_against_the_reference(samples: Samples, query: str) -> None:
    def name(value: str) -> str:
        return "=".join(plain(group.strip().rstrip("^ ")) for group in value.split("=")).rstrip("=")

    pattern = name(query)
    options = [pattern, re.sub(r"(\^\**)+$", "", pattern)]
    if "=" in pattern:
        options = ["=".join(group or "*" for group in option.split("=")) for option in options]
    before = "" if "=" in pattern or pattern.isascii() else "(.*=)?"
    everything = not pattern or any(option and not option.strip("*") for option in options)

    def match(value: str) -> bool:
        if everything:
            return True
        return bool(value) and any(
            re.fullmatch(f"{before}({glob(option)})(=.*)?", name(value), re.DOTALL)
            for option in options
            if option
        )

    check(samples, "PatientName", query, match)


@given(st.lists(st.sampled_from([*NAMES, "*"]), min_size=1, max_size=4).map("".join))
@settings(deadline=None, max_examples=100)
def test_fuzzy_names_against_the_reference(samples: Samples, query: str) -> None:
    if "*" in query:
        return  # literal matching comes on top; it has a test of its own
    target, rows = samples.index, samples.rows

    def words(value: str) -> list[str]:
        return re.split(r"[\s^=\\,]+", plain(value))

    wanted = [word for word in words(query) if word]
    found = target.uids(Level.INSTANCE, f"PatientName={quote(query)}&fuzzymatching=true&limit=200")
    assert set(found) == {
        row.uid
        for row in rows
        if all(any(word.startswith(prefix) for word in words(row.values["PatientName"])) for prefix in wanted)
    }


def spans(parse: Callable[[str], tuple[Any, Any]], query: str, value: str) -> bool:
    """Whether ``value`` is within ``query``, ``/`` standing for the hyphen of a range."""
    if not value:
        return False
    first, _, last = query.partition("/") if "/" in query else (query, "", query)
    moment = parse(value)[0]
    return (not first or parse(first)[0] <= moment) and (not last or moment <= parse(last)[1])


def date_span(value: str) -> tuple[str, str]:
    return value, value


def time_span(value: str) -> tuple[int, int]:
    """First and last microsecond of the day that a TM means."""
    whole, _, fraction = value.partition(".")
    unit = {2: 3600, 4: 60, 6: 1}[len(whole)] * 10**6
    start = sum(
        int(whole[i : i + 2]) * 60**power for i, power in ((0, 2), (2, 1), (4, 0)) if whole[i : i + 2]
    )
    if fraction:
        unit = 10 ** (6 - len(fraction))
    first = start * 10**6 + int(fraction.ljust(6, "0") or 0)
    return first, first + unit - 1


Moments = tuple[datetime, datetime]


def moment_spans(value: str) -> tuple[Moments, Moments | None]:
    """First and last moment that a DT means: as it is written, and in UTC where it has an offset."""
    value, sign, offset = re.fullmatch(r"([\d.]+)(?:([+-])(\d{4}))?", value).groups()  # type: ignore[union-attr]
    whole, _, fraction = value.partition(".")
    parts = [int(whole[:4]), *(int(whole[i : i + 2]) for i in range(4, len(whole), 2))]
    first = datetime(*(parts + [1, 1, 0, 0, 0][len(parts) - 1 :]))  # type: ignore[arg-type]
    if len(parts) == 1:
        after = first.replace(year=first.year + 1)
    elif len(parts) == 2:
        after = (first.replace(day=1) + timedelta(days=32)).replace(day=1)
    else:
        after = first + {3: timedelta(days=1), 4: timedelta(hours=1), 5: timedelta(minutes=1)}.get(
            len(parts), timedelta(seconds=1)
        )
    if fraction:
        first += timedelta(microseconds=int(fraction.ljust(6, "0")))
        after = first + timedelta(microseconds=10 ** (6 - len(fraction)))
    last = after - timedelta(microseconds=1)
    shift = timedelta(hours=int((offset or "00")[:2])) * (-1 if sign == "+" else 1)
    return (first, last), (first + shift, last + shift) if offset else None


def within(query: str, value: str) -> bool:
    """Whether a DT is within a range of them: instants where both have an offset, else what is written."""
    if not value:
        return False
    first, _, last = query.partition("/") if "/" in query else (query, "", query)
    written, instant = moment_spans(value)

    def after(bound: str, index: int) -> bool:
        bound_written, bound_instant = moment_spans(bound)
        one, other = (bound_instant, instant) if bound_instant and instant else (bound_written, written)
        return one[0] <= other[0] if index == 0 else other[0] <= one[1]

    return (not first or after(first, 0)) and (not last or after(last, 1))


def ranges(values: list[str]) -> st.SearchStrategy[str]:
    one = st.sampled_from(values)
    both = st.tuples(one, one).map("/".join)
    return one | both | one.map(lambda value: value + "/") | one.map(lambda value: "/" + value)


@given(ranges(DATES))
@settings(deadline=None, max_examples=60)
def test_dates_against_the_reference(samples: Samples, query: str) -> None:
    check(samples, "StudyDate", query.replace("/", "-"), lambda value: spans(date_span, query, value))


@given(ranges(TIMES))
@settings(deadline=None, max_examples=60)
def test_times_against_the_reference(samples: Samples, query: str) -> None:
    check(samples, "StudyTime", query.replace("/", "-"), lambda value: spans(time_span, query, value))


@given(ranges(MOMENTS))
@settings(deadline=None, max_examples=60)
def test_dates_with_times_against_the_reference(samples: Samples, query: str) -> None:
    check(
        samples,
        "AcquisitionDateTime",
        query.replace("/", "-"),
        lambda value: within(query, value),
    )


@given(st.integers(-3, 6))
@settings(deadline=None, max_examples=10)
def test_numbers_against_the_reference(samples: Samples, query: int) -> None:
    check(samples, "InstanceNumber", f"{query:+03d}", lambda value: bool(value) and int(value) == query)


@given(st.lists(st.sampled_from([*SOP_CLASSES, "1.2.3"]), min_size=1, max_size=3), st.sampled_from(",\\"))
@settings(deadline=None, max_examples=20)
def test_uid_lists_against_the_reference(samples: Samples, uids: list[str], separator: str) -> None:
    check(samples, "SOPClassUID", separator.join(uids), lambda value: value in uids)


@given(st.lists(st.integers(0, 160), min_size=1, max_size=80))
@settings(deadline=None, max_examples=20)
def test_long_uid_lists(samples: Samples, numbers: list[int]) -> None:
    target, rows = samples.index, samples.rows
    found = target.uids(Level.STUDY, "StudyInstanceUID=" + ",".join(f"1.{n}" for n in numbers) + "&limit=200")
    assert found == [f"1.{n}" for n in sorted(set(numbers), reverse=True) if n < len(rows)]


# --- the statements ------------------------------------------------------------------------------------

QUERIES = [
    (Level.STUDY, "", "", ""),
    (Level.STUDY, "", "", "PatientID=A"),
    (Level.STUDY, "", "", "PatientName=Doe^John"),
    (Level.STUDY, "", "", "PatientName=Do*"),
    (Level.STUDY, "", "", "PatientName=*o*&offset=100"),
    (Level.STUDY, "", "", "PatientName=山*"),
    (Level.STUDY, "", "", "PatientName=jo do&fuzzymatching=true"),
    (Level.STUDY, "", "", "PatientName=*jo&fuzzymatching=true"),
    (Level.STUDY, "", "", "AccessionNumber=1"),
    (Level.STUDY, "", "", "StudyDate=20200101"),
    (Level.STUDY, "", "", "StudyDate=20200101-20200131"),
    (Level.STUDY, "", "", "StudyDate=20200101-20200131&ModalitiesInStudy=CT,MR"),
    (Level.STUDY, "", "", "StudyInstanceUID=1.2"),
    (Level.STUDY, "", "", "StudyInstanceUID=1.2,1.3"),
    (Level.SERIES, "1.2", "", "Modality=CT"),
    (Level.SERIES, "", "", "PatientID=A&Modality=CT"),
    (Level.SERIES, "", "", "Modality=CT"),
    (Level.SERIES, "", "", "ModalitiesInStudy=CT&SeriesNumber=1"),
    (Level.INSTANCE, "1.2", "", "InstanceNumber=1"),
    (Level.INSTANCE, "1.2", "1.3", ""),
    (Level.INSTANCE, "", "", "SOPInstanceUID=1.2"),
    (Level.INSTANCE, "", "", "PatientID=A&InstanceNumber=1&offset=7"),
    (Level.INSTANCE, "", "", "SOPClassUID=1.2,1.3&SeriesInstanceUID=1.4,1.5"),
    (Level.STUDY, "", "", "ProcedureCodeSequence.CodeValue=A&ProcedureCodeSequence.CodeMeaning=B*"),
    (Level.STUDY, "", "", "PatientWeight=70.5&PatientSex=M"),
    (Level.STUDY, "", "", "OtherPatientNames=jo&fuzzymatching=true&PatientID=A"),
    (Level.STUDY, "", "", "orderby=-StudyDate,PatientName"),
    (Level.SERIES, "", "", "orderby=PatientName&Modality=CT"),
    (Level.SERIES, "", "", "FrameOfReferenceUID=1.2,1.3"),
    (Level.INSTANCE, "", "", "ImageType=A"),
    (Level.INSTANCE, "", "", "ImageType=A&PatientID=B&Laterality=L"),
    (Level.INSTANCE, "", "", "AcquisitionDateTime=2020%2B0100-2021"),
    (Level.INSTANCE, "", "", "AcquisitionDateTime=2020%2B0100-"),
    (Level.PATIENT, "", "", ""),
    (Level.PATIENT, "", "", "PatientName=Do*&orderby=PatientName"),
    (Level.PATIENT, "", "", "OtherPatientIDsSequence.PatientID=A"),
]


def statement(level: Level, study: str, series: str, query: str) -> sa.Select[Any]:
    parsed = search_query(level, Resource("p", study, series), parse_qsl(query, keep_blank_values=True))
    return index.patient_statement(parsed) if level is Level.PATIENT else index.statement(parsed)


@pytest.mark.parametrize(("level", "study", "series", "query"), QUERIES)
def test_statements_are_t_sql(level: Level, study: str, series: str, query: str) -> None:
    dialect = mssql.dialect()
    dialect._supports_offset_fetch = True  # SQL Server 2012 and later
    text = str(statement(level, study, series, query).compile(dialect=dialect))
    (parsed,) = sqlglot.parse(text.replace(":", "@"), dialect="tsql")
    assert parsed is not None
    assert parsed.find(sqlglot.exp.Command) is None
    assert "ORDER BY" in text.split(") AS page")[0], "a page must be ordered"
    assert "OPENJSON" in text or "1.2,1.3" not in query


def parsed_t_sql(statement: sa.Select[Any]) -> str:
    dialect = mssql.dialect()
    dialect._supports_offset_fetch = True
    text = str(statement.compile(dialect=dialect))
    (parsed,) = sqlglot.parse(text.replace(":", "@"), dialect="tsql")
    assert parsed is not None
    assert parsed.find(sqlglot.exp.Command) is None
    return text


@pytest.mark.parametrize(("level", "study", "series", "query"), QUERIES)
def test_counts_and_pages_by_cursor_are_t_sql(level: Level, study: str, series: str, query: str) -> None:
    parameters = parse_qsl(query, keep_blank_values=True)
    asked = search_query(level, Resource("p", study, series), [p for p in parameters if p[0] != "offset"])
    parsed_t_sql(index.count_statement(asked))
    for value in ("a", None):
        after = Position(tuple(value for _ in asked.order), 7)
        later = replace(asked, after=after)
        make = index.patient_statement if level is Level.PATIENT else index.statement
        assert re.search("[<>] ", parsed_t_sql(make(later)))


@pytest.mark.parametrize("level", [Level.STUDY, Level.SERIES, Level.INSTANCE])
def test_instances_that_speak_for_a_page_are_found_by_keys(database: Database, level: Level) -> None:
    found = last_instances_statement("p", level, [1, 2])
    assert "OPENJSON" in parsed_t_sql(found)
    if database.url.get_backend_name() != "sqlite":
        return
    compiled = found.compile(dialect=sqlite.dialect())
    values = tuple(compiled.params[name] for name in compiled.positiontup or ())

    def explain(connection: sa.Connection) -> list[str]:
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)]

    plan = database.run(False, explain)
    assert [step for step in plan if step.startswith("SCAN") and not step.startswith("SCAN given")] == []


def test_a_list_of_uids_is_one_parameter() -> None:
    short = statement(Level.STUDY, "", "", "StudyInstanceUID=1.2,1.3").compile(dialect=sqlite.dialect())
    long = statement(Level.STUDY, "", "", "StudyInstanceUID=" + ",".join(f"1.{n}" for n in range(500)))
    assert str(short) == str(long.compile(dialect=sqlite.dialect()))


@pytest.mark.parametrize(
    ("level", "study", "series", "query", "entered"),
    [
        (Level.STUDY, "", "", "PatientID=A", "ix_study_patient_id (partition_key=? AND patient_id=?)"),
        (
            Level.STUDY,
            "",
            "",
            "AccessionNumber=A",
            "ix_study_accession_number (partition_key=? AND accession_number=?)",
        ),
        (Level.STUDY, "", "", "PatientName=Do*", "ix_study_patient_name (partition_key=? AND patient_name>?"),
        (
            Level.STUDY,
            "",
            "",
            "PatientName=Doe^J",
            "ix_study_patient_name (partition_key=? AND patient_name>?",
        ),
        (
            Level.STUDY,
            "",
            "",
            "StudyDate=20200101-20200131",
            "ix_study_study_date (partition_key=? AND study_date>?",
        ),
        (Level.STUDY, "", "", "StudyDate=20200101", "ix_study_study_date (partition_key=? AND study_date=?)"),
        (
            Level.STUDY,
            "",
            "",
            "StudyDate=20200101-20200131&ModalitiesInStudy=CT",
            "ix_study_study_date (partition_key=? AND study_date>?",
        ),
        (Level.STUDY, "", "", "StudyInstanceUID=1.2,1.3", "(partition_key=? AND study_instance_uid=?)"),
        (Level.SERIES, "1.2", "", "Modality=CT", "(partition_key=? AND study_instance_uid=?)"),
        (
            Level.SERIES,
            "",
            "",
            "PatientID=A&Modality=CT",
            "ix_study_patient_id (partition_key=? AND patient_id=?)",
        ),
        (Level.SERIES, "", "", "Modality=CT", "ix_series_modality (partition_key=? AND modality=?)"),
        (Level.INSTANCE, "1.2", "", "InstanceNumber=1", "(partition_key=? AND study_instance_uid=?)"),
        (Level.INSTANCE, "", "", "SOPInstanceUID=1.2", "(partition_key=? AND sop_instance_uid=?)"),
        (
            Level.STUDY,
            "",
            "",
            "PatientSex=M&PatientID=A&StudyDate=20200101-&orderby=-StudyTime",
            "ix_study_patient_id (partition_key=? AND patient_id=?)",
        ),
        (Level.STUDY, "", "", "orderby=-StudyDate", "ix_study_study_date (partition_key=?)"),
        (
            Level.STUDY,
            "",
            "",
            "ProcedureCodeSequence.CodeValue=A&ProcedureCodeSequence.CodingSchemeDesignator=B",
            "ix_attribute_value_text (partition_key=? AND attribute=? AND text=?)",
        ),
        (Level.STUDY, "", "", "PatientWeight=70", "ix_attribute_value_number"),
        (
            Level.INSTANCE,
            "",
            "",
            "ImageType=A&PatientID=B",
            "ix_attribute_value_owner (study_key=? AND level=? AND series_key=? AND owner_key=?)",
        ),
        (Level.INSTANCE, "", "", "ImageType=A", "ix_attribute_value_text"),
        (Level.INSTANCE, "", "", "Modality=CT", "ix_instance_partition_key (partition_key=?)"),
        (Level.INSTANCE, "", "", "limit=100&offset=4900", "ix_instance_partition_key (partition_key=?)"),
        (
            Level.INSTANCE,
            "",
            "",
            "AcquisitionDateTime=2020%2B0100-2021%2B0100",
            "ix_instance_acquisition_date_time (partition_key=? AND acquisition_date_time>?",
        ),
        (Level.PATIENT, "", "", "", "ix_patient_partition_key (partition_key=?)"),
        (
            Level.PATIENT,
            "",
            "",
            "PatientName=Do*",
            "ix_patient_patient_name (partition_key=? AND patient_name>?",
        ),
        (
            Level.INSTANCE,
            "",
            "",
            "PatientID=A&InstanceNumber=1",
            "ix_study_patient_id (partition_key=? AND patient_id=?)",
        ),
    ],
)
def test_usual_searches_enter_by_an_index_and_scan_nothing(
    database: Database, level: Level, study: str, series: str, query: str, entered: str
) -> None:
    if database.url.get_backend_name() != "sqlite":
        pytest.skip("SQLite's plans")
    compiled = statement(level, study, series, query).compile(dialect=sqlite.dialect())
    values = tuple(compiled.params[name] for name in compiled.positiontup or ())

    def explain(connection: sa.Connection) -> list[str]:
        return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)]

    plan = database.run(False, explain)
    assert any(entered in step for step in plan), plan
    scanned = [
        step for step in plan if step.startswith("SCAN") and not step.startswith(("SCAN page", "SCAN given"))
    ]
    assert scanned == []
