"""Values of queries as search terms (PS3.4 §C.2.2.2)."""

from __future__ import annotations

import pytest

from shared.dicom.attributes import Attribute, by_path
from shared.dicom.search_terms import Between, Equal, Like, Moment, Term, Within, Words, parse_term
from shared.errors import InvalidRequest


def attribute(keyword: str) -> Attribute:
    return next(a for a in by_path().values() if a.keyword == keyword)


def parse(keyword: str, value: str, fuzzy: bool = False) -> Term | None:
    return parse_term(attribute(keyword), value, fuzzy)


@pytest.mark.parametrize(
    ("value", "uids"),
    [
        ("1.2.3", ("1.2.3",)),
        ("1.2,1.3", ("1.2", "1.3")),
        ("1.2\\1.3\\1.2", ("1.2", "1.3")),
        (" 1.2 , 1.3,", ("1.2", "1.3")),
    ],
)
def test_uid_lists(value: str, uids: tuple[str, ...]) -> None:
    assert parse("StudyInstanceUID", value) == Equal(attribute("StudyInstanceUID"), uids)


@pytest.mark.parametrize(
    ("keyword", "value", "patterns"),
    [
        ("PatientID", " Abc ", ("abc",)),
        ("PatientID", "A?c**D", ("a?c*d",)),
        ("PatientID", "ＡＢ", ("ab",)),
        ("PatientID", "x" * 70, ("x" * 64,)),
        ("PatientID", "a,b", ("a,b",)),
        ("PatientID", "a\\b", ("a", "b")),
        ("ModalitiesInStudy", "CT,mr\\us", ("ct", "mr", "us")),
        ("Modality", "C*", ("c*",)),
    ],
)
def test_text(keyword: str, value: str, patterns: tuple[str, ...]) -> None:
    assert parse(keyword, value) == Like(attribute(keyword), patterns)


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("Doe^John", ("doe^john", "doe^john=*")),
        ("DOE^John^^", ("doe^john", "doe^john=*")),
        ("Müller*", ("muller*", "muller*=*")),
        ("Doe^*", ("doe^*", "doe^*=*", "doe", "doe=*")),
        ("山田*", ("山田*", "山田*=*", "*=山田*", "*=山田*=*")),
        ("Yamada=山田", ("yamada=山田", "yamada=山田=*")),
        ("=山田", ("*=山田", "*=山田=*")),
    ],
)
def test_person_names(value: str, patterns: tuple[str, ...]) -> None:
    assert parse("PatientName", value) == Like(attribute("PatientName"), patterns)


@pytest.mark.parametrize(
    ("value", "words", "patterns"),
    [
        ("Jo Do", ("jo", "do"), ()),
        ("Doe^John", ("doe", "john"), ()),
        ("Doe, John", ("doe", "john"), ()),
        ("*ohn*", ("ohn",), ("*ohn*", "*ohn*=*")),
    ],
)
def test_fuzzy_person_names(value: str, words: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    assert parse("PatientName", value, fuzzy=True) == Words(attribute("PatientName"), words, patterns)


@pytest.mark.parametrize(
    ("keyword", "value", "low", "high"),
    [
        ("StudyDate", "20200131", "20200131", "20200131"),
        ("StudyDate", "2020.01.31", "20200131", "20200131"),
        ("StudyDate", "20200101-20200231", "20200101", "20200231"),
        ("StudyDate", "20200101 - 20200131", "20200101", "20200131"),
        ("StudyDate", "20200101-", "20200101", None),
        ("StudyDate", "-20200131", None, "20200131"),
        ("StudyTime", "10", "100000.000000", "105959.999999"),
        ("StudyTime", "101530.25", "101530.250000", "101530.259999"),
        ("StudyTime", "101530.250000", "101530.250000", "101530.250000"),
        ("StudyTime", "10-1130", "100000.000000", "113059.999999"),
        ("StudyTime", "10:15-", "101500.000000", None),
    ],
)
def test_moments(keyword: str, value: str, low: str | None, high: str | None) -> None:
    assert parse(keyword, value) == Between(attribute(keyword), low, high)


@pytest.mark.parametrize(
    ("value", "low", "high", "low_utc", "high_utc"),
    [
        ("2020", "20200101000000.000000", "20201231235959.999999", None, None),
        ("202002", "20200201000000.000000", "20200229235959.999999", None, None),
        ("2020-2021", "20200101000000.000000", "20211231235959.999999", None, None),
        *(
            (
                f"2020010112{offset}",
                "20200101120000.000000",
                "20200101125959.999999",
                f"20200101{hour}0000.000000",
                f"20200101{hour}5959.999999",
            )
            for offset, hour in (("+0200", "10"), (" 0200", "10"), ("-0200", "14"))
        ),
        ("2020010112-0500-", "20200101120000.000000", None, "20200101170000.000000", None),
        ("-2020010112-0500", None, "20200101125959.999999", None, "20200101175959.999999"),
        (
            "2020010112-0500-2020010113+0100",
            "20200101120000.000000",
            "20200101135959.999999",
            "20200101170000.000000",
            "20200101125959.999999",
        ),
        (
            "20200101-20200102-0500",
            "20200101000000.000000",
            "20200102235959.999999",
            None,
            "20200103045959.999999",
        ),
    ],
)
def test_date_times(
    value: str, low: str | None, high: str | None, low_utc: str | None, high_utc: str | None
) -> None:
    found = parse("AcquisitionDateTime", value)
    assert isinstance(found, Within)
    bounds = (found.low, found.high)
    assert [(b.local, b.utc) if b else None for b in bounds] == [
        (low, low_utc) if low else None,
        (high, high_utc) if high else None,
    ]
    assert found.low is None or found.low.reach <= found.low.local
    assert found.high is None or found.high.reach >= found.high.local


def test_a_time_zone_of_the_query_is_that_of_date_times_which_have_none() -> None:
    moment = attribute("AcquisitionDateTime")
    expected = Moment("20200101120000.000000", "20200101110000.000000", "20191231210000.000000")
    for value in ("20200101120000.000000", "20200101120000.000000+0100"):
        assert parse_term(moment, f"{value}-", time_zone="+0100") == Within(moment, expected, None)


def test_numbers() -> None:
    assert parse("SeriesNumber", " +07 ") == Equal(attribute("SeriesNumber"), (7,))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", "1.2.*"),
        ("StudyInstanceUID", "1.2 3"),
        ("StudyInstanceUID", "1" * 65),
        ("StudyDate", "-"),
        ("StudyDate", "--"),
        ("StudyDate", "2020"),
        ("StudyDate", "2020-01-01"),
        ("StudyDate", "20201301"),
        ("StudyDate", "20200101-20200102-20200103"),
        ("StudyDate", "20200101-x"),
        ("StudyDate", "２０２００１０１"),
        ("StudyTime", "-"),
        ("StudyTime", "25"),
        ("StudyTime", "1060"),
        ("StudyTime", "10.5"),
        ("StudyTime", "10-12-14"),
        ("AcquisitionDateTime", "-"),
        ("AcquisitionDateTime", "20201301"),
        ("AcquisitionDateTime", "20200230"),
        ("AcquisitionDateTime", "2020+9900"),
        ("AcquisitionDateTime", "yesterday"),
        ("SeriesNumber", "1.5"),
        ("SeriesNumber", "1_0"),
        ("SeriesNumber", "99999999999"),
        ("PatientID", "x" * 2000),
        ("PatientName", "x" * 2000),
        ("ModalitiesInStudy", ",".join(f"M{i}" for i in range(40))),
    ],
)
def test_a_malformed_value_is_refused_by_attribute_and_not_quoted(keyword: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=keyword) as caught:
        parse(keyword, value)
    assert len(value) <= 2 or value not in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", ""),
        ("StudyInstanceUID", " "),
        ("StudyInstanceUID", ","),
        ("StudyInstanceUID", "*"),
        ("PatientName", ""),
        ("PatientName", "*"),
        ("PatientName", "**"),
        ("PatientName", "^"),
        ("PatientName", "*^*"),
        ("PatientID", "*"),
        ("PatientID", "\\"),
        ("ModalitiesInStudy", "CT,*"),
        ("StudyDate", ""),
        ("SeriesNumber", ""),
    ],
)
def test_values_that_match_everything(keyword: str, value: str) -> None:
    assert parse(keyword, value) is None
    assert parse(keyword, value, fuzzy=True) is None
