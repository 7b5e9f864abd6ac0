"""Query parameters of QIDO-RS, parsed without a server."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from shared.dicom.attributes import Level
from shared.dicom.identifiers import DEFAULT_PARTITION, Resource
from shared.dicom.search_terms import Between, Equal, Like, SearchQuery, Words
from shared.errors import InvalidRequest
from shared.web.query_params import search_query

ALL = Resource(DEFAULT_PARTITION)
STUDY = Resource(DEFAULT_PARTITION, "1.2")
SERIES = Resource(DEFAULT_PARTITION, "1.2", "1.2.3")


def parse(query: str, level: Level = Level.STUDY, resource: Resource = ALL) -> SearchQuery:
    return search_query(level, resource, parse_qsl(query, keep_blank_values=True))


def test_no_parameters_ask_for_the_first_hundred() -> None:
    assert parse("") == SearchQuery(Level.STUDY, ALL, limit=100, offset=0)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("PatientName", "00100010"),
        ("00100010", "00100010"),
        ("0020000D", "0020000D"),
        ("0020000d", "0020000D"),
    ],
)
def test_attributes_are_named_by_keyword_and_by_tag_in_any_case(name: str, tag: str) -> None:
    query = parse(f"{name}=1.2")
    assert [term.attribute.tag for term in query.terms] == [tag]
    assert query.requested == {tag}


def test_an_empty_value_matches_everything_and_is_returned() -> None:
    query = parse("IssuerOfPatientID=&PatientName=*")
    assert query.terms == ()
    assert query.requested == {"00100021", "00100010"}
    assert "IssuerOfPatientID" in {attribute.keyword for attribute in query.returned}


def test_kinds_of_matching_follow_the_attribute_table() -> None:
    query = parse(
        "StudyInstanceUID=1.2,1.3&PatientID=A*&StudyDate=20200101-&SeriesNumber=7&ContentTime=10",
        Level.INSTANCE,
    )
    assert [type(term) for term in query.terms] == [Equal, Like, Between, Equal, Between]


def test_fuzzymatching_changes_person_names_alone() -> None:
    query = parse("PatientName=jo&ReferringPhysicianName=do&PatientID=1&fuzzymatching=true")
    assert [type(term) for term in query.terms] == [Words, Words, Like]
    assert isinstance(parse("PatientName=jo&fuzzymatching=false").terms[0], Like)


def test_modality_of_studies_is_modalities_in_study() -> None:
    for name in ("Modality", "00080060"):
        (term,) = parse(f"{name}=CT").terms
        assert term.attribute.keyword == "ModalitiesInStudy"
    (term,) = parse("Modality=CT", Level.SERIES).terms
    assert term.attribute.keyword == "Modality"
    assert len(parse("Modality=CT&ModalitiesInStudy=MR").terms) == 2


@pytest.mark.parametrize("options", ["limit=1&offset=0", "limit=200&offset=2147483647"])
def test_limit_and_offset_within_bounds(options: str) -> None:
    query = parse(options)
    assert f"limit={query.limit}&offset={query.offset}" == options


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=-1", "limit=ten", "limit=", "limit=１０", "limit=1e1",
        "offset=-1", "offset=x", "offset=99999999999999999999",
        "fuzzymatching=maybe", "fuzzymatching=", "limit=1&limit=2",
    ],
)  # fmt: skip
def test_a_malformed_option_is_refused_by_name(query: str) -> None:
    with pytest.raises(InvalidRequest, match=query.split("=")[0]):
        parse(query)


@pytest.mark.parametrize(
    ("fields", "tags"),
    [
        (
            "includefield=00081030,00080060,00080090,00100030",
            {"00081030", "00080060", "00080090", "00100030"},
        ),
        ("includefield=PatientAge&includefield=patientage", None),
        ("includefield=PatientAge&includefield=OtherPatientNames", {"00101010", "00101001"}),
        ("includefield=00091001,60003000", {"00091001", "60003000"}),
        ("includefield=", set()),
        ("includefield=RequestAttributesSequence.AccessionNumber", {"00400275"}),
        ("includefield=all,PatientAge", {"00101010"}),
        ("includefield=garbage", None),
        ("includefield=PatientAge.garbage", None),
        ("includefield=PatientAge.", None),
        ("includefield=0010101", None),
    ],
)
def test_includefield(fields: str, tags: set[str] | None) -> None:
    if tags is None:
        with pytest.raises(InvalidRequest, match="includefield"):
            parse(fields)
        return
    query = parse(fields)
    assert query.requested == tags
    assert query.include_all == ("all" in fields)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("foo=1", "foo"),
        ("orderby=colour", "orderby"),
        ("orderby=SeriesNumber", "SeriesNumber"),
        ("orderby=ModalitiesInStudy", "ModalitiesInStudy"),
        ("orderby=--StudyDate", "orderby"),
        ("orderby=StudyDate,", "orderby"),
        ("orderby=StudyDate,-StudyDate", "orderby"),
        ("orderby=StudyDate,StudyTime,PatientID,PatientName", "orderby"),
        ("cursor=", "cursor"),
        ("cursor=abc", "cursor"),
        ("cursor=!", "cursor"),
        ("cursor=W10", "cursor"),
        ("count=yes", "count"),
        ("Limit=1", "Limit"),
        ("x.y=1", "x.y"),
        ("patientname=Doe", "patientname"),
        ("AdditionalPatientHistory=x", "AdditionalPatientHistory"),
        ("001021B0=x", "AdditionalPatientHistory"),
        ("00091001=1", "00091001"),
        ("NumberOfStudyRelatedInstances=1", "NumberOfStudyRelatedInstances"),
        ("SeriesNumber=1", "SeriesNumber"),
        ("SOPInstanceUID=1", "SOPInstanceUID"),
        ("PatientName=a&00100010=b", "PatientName"),
        ("PatientName=&PatientName=b", "PatientName"),
        ("RequestAttributesSequence.AccessionNumber=1", "RequestAttributesSequence.AccessionNumber"),
        ("ProcedureCodeSequence.PatientID=1", "ProcedureCodeSequence.PatientID"),
        ("ProcedureCodeSequence=1", "ProcedureCodeSequence"),
        ("TimezoneOffsetFromUTC=1", "TimezoneOffsetFromUTC"),
    ],
)
def test_a_parameter_that_cannot_be_matched_is_named(query: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named.replace(".", r"\.")):
        parse(query)


def test_the_attributes_of_parents_are_matched_below_them() -> None:
    assert len(parse("PatientID=1&Modality=CT&SOPInstanceUID=1.2", Level.INSTANCE).terms) == 3
    assert len(parse("PatientID=1&Modality=CT", Level.SERIES, STUDY).terms) == 2
    with pytest.raises(InvalidRequest, match="InstanceNumber"):
        parse("InstanceNumber=1", Level.SERIES)


@pytest.mark.parametrize(
    ("level", "resource", "levels"),
    [
        (Level.STUDY, ALL, "1"),
        (Level.SERIES, ALL, "12"),
        (Level.INSTANCE, ALL, "123"),
        (Level.SERIES, STUDY, "2"),
        (Level.INSTANCE, STUDY, "23"),
        (Level.INSTANCE, SERIES, "3"),
    ],
)
def test_defaults_are_those_of_the_levels_the_path_does_not_name(
    level: Level, resource: Resource, levels: str
) -> None:
    query = SearchQuery(level, resource)
    assert "".join(str(level.value) for level in query.levels) == levels
    assert {attribute.level for attribute in query.returned} == set(query.levels)
    assert all(attribute.default for attribute in query.returned)


def test_attributes_of_parents_that_were_asked_for_are_returned() -> None:
    query = parse("PatientID=1&includefield=PatientAge,SOPClassUID", Level.SERIES, STUDY)
    keywords = [attribute.keyword for attribute in query.returned]
    assert "PatientID" in keywords
    assert "PatientAge" in keywords
    assert "SOPClassUID" not in keywords
    assert [a.tag for a in query.returned] == sorted(a.tag for a in query.returned)
