"""What DICOM attributes become in FHIR R4 and R5, validated by the models of the specification."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlglot
from pydicom.dataset import Dataset
from sqlalchemy.dialects import mssql

from shared.dicom import fhir
from shared.dicom.fhir import MAPPINGS, PatientIdentity, Reader, SeriesToMap, Version
from shared.sql import imaging_study
from tests.fhir_server import validated

ROOT = Path(__file__).resolve().parents[1]
VERSIONS: list[Version] = ["R4", "R5"]


def reader(**attributes: Any) -> Reader:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return Reader(ds.to_json_dict())


def raw(tag: str, vr: str, value: Any) -> Reader:
    return Reader({tag: {"vr": vr, "Value": [value]}})


def study(version: Version, of_study: Reader, *series: SeriesToMap, existing: Any = None) -> dict[str, Any]:
    made = fhir.imaging_study("1.2.3", of_study, series, "Patient/p", "Endpoint/e", version, existing)
    return validated(made, version)


def series(**attributes: Any) -> SeriesToMap:
    instances = [
        (f"1.2.3.4.{i}", reader(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", InstanceNumber=i)) for i in (1, 2)
    ]
    return SeriesToMap("1.2.3.4", reader(**attributes), instances)


def test_a_patient_has_identifier_name_gender_and_birth_date() -> None:
    of = reader(
        PatientID="P-1", PatientName="Doe^Jane Ann^M^Dr.^MD", PatientSex="F", PatientBirthDate="19700102"
    )
    made = validated(fhir.patient(of, fhir.patient_identity(of, "urn:hospital", False)))
    assert made == {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:hospital", "value": "P-1"}],
        "name": [
            {
                "use": "usual",
                "family": "Doe",
                "given": ["Jane", "Ann", "M"],
                "prefix": ["Dr."],
                "suffix": ["MD"],
            }
        ],
        "gender": "female",
        "birthDate": "1970-01-02",
    }
    assert of.problems == []


def test_an_existing_patient_keeps_what_dicom_does_not_know() -> None:
    existing = {
        "resourceType": "Patient",
        "id": "7",
        "identifier": [{"value": "P-1"}, {"system": "urn:other", "value": "9"}],
        "name": [{"use": "official", "family": "Doe-Smith"}, {"use": "usual", "family": "Old"}],
        "birthDate": "1970-01-02",
        "telecom": [{"value": "1"}],
    }
    of = reader(PatientName="Doe")
    made = validated(fhir.patient(of, PatientIdentity("", "P-1"), existing))
    usual = {"use": "usual", "family": "Doe"}
    assert made == {**existing, "name": [{"use": "official", "family": "Doe-Smith"}, usual]}


def test_the_issuer_is_the_system_where_that_is_asked_for() -> None:
    of = reader(PatientID="a|b", IssuerOfPatientID="urn:issuer")
    assert fhir.patient_identity(of, "urn:default", True) == PatientIdentity("urn:issuer", "a|b")
    assert fhir.patient_identity(of, "urn:default", False).query == "urn:default|a\\|b"
    with pytest.raises(fhir.MissingPatient):
        fhir.patient_identity(reader(PatientName="Doe"), "", False)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_study_with_everything_is_valid(version: Version) -> None:
    of_study = reader(
        StudyDate="20240229",
        StudyTime="101112.5",
        TimezoneOffsetFromUTC="+0130",
        StudyDescription="CT of the chest",
        AccessionNumber="A-1",
    )
    of_series = series(
        Modality="CT",
        SeriesNumber=3,
        SeriesDescription="thin",
        SeriesDate="20240229",
        SeriesTime="1012",
        TimezoneOffsetFromUTC="+0130",
        BodyPartExamined="CHEST",
    )
    made = study(version, of_study, of_series)
    assert made["started"] == "2024-02-29T10:11:12+01:30"
    assert made["identifier"][0] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}
    assert made["identifier"][1]["value"] == "A-1"
    assert (made["numberOfSeries"], made["numberOfInstances"]) == (1, 2)
    (one,) = made["series"]
    assert one["started"] == "2024-02-29T10:12:00+01:30"
    assert [i["number"] for i in one["instance"]] == [1, 2]
    assert one["instance"][0]["sopClass"]["code"] == "urn:oid:1.2.840.10008.5.1.4.1.1.2"
    coding = one["modality"]["coding"][0] if version == "R5" else one["modality"]
    assert coding == {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}
    assert made["modality"] == [one["modality"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_study_with_almost_nothing_is_valid(version: Version) -> None:
    made = study(version, reader(), series())
    assert "started" not in made
    assert "modality" not in made
    validated(fhir.endpoint("https://imaging.example.org/v2", version), version)


def test_without_an_offset_the_time_is_left_out() -> None:
    assert study("R4", reader(StudyDate="20240229", StudyTime="1011"), series())["started"] == "2024-02-29"


def test_what_others_said_of_a_study_stays_and_what_we_said_goes() -> None:
    existing = study(
        "R4", reader(AccessionNumber="OLD", StudyDescription="old", StudyDate="20200101"), series()
    )
    other = {"system": "urn:ris", "value": "5"}
    existing |= {"id": "1", "reasonCode": [{"text": "cough"}]}
    existing["identifier"].append(other)
    existing["endpoint"].insert(0, {"reference": "Endpoint/other"})
    made = study("R4", reader(), series(), existing=existing)
    assert made["reasonCode"] == [{"text": "cough"}]
    assert made["identifier"] == [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}, other]
    assert made["endpoint"] == [{"reference": "Endpoint/other"}, {"reference": "Endpoint/e"}]
    assert not {"note", "description", "started"} & set(made)
    assert study("R4", reader(), series(), existing=made) == made


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (raw("00080020", "DA", "20241399"), "StudyDate is no date."),
        (raw("00080020", "DA", "yesterday"), "StudyDate is no date."),
    ],
)
def test_a_value_that_is_none_is_left_out_and_named_without_it(of: Reader, sentence: str) -> None:
    made = study("R4", of, series())
    assert "started" not in made
    assert of.problems == [sentence]


@pytest.mark.parametrize("value", ["-1", "1.5", "9999999999", "abc", "1e400"])
def test_a_number_that_fhir_cannot_take_is_left_out(value: str) -> None:
    of = raw("00200011", "IS", value)
    made = study("R4", reader(), SeriesToMap("1.2", of, []))
    assert "number" not in made["series"][0]
    assert of.problems == ["SeriesNumber is no number from 0 to 2147483647."]


def test_control_characters_and_odd_codes_do_not_make_a_resource_invalid() -> None:
    of = raw("00081030", "LO", "a\x00b\x1b")
    made = study("R4", of, SeriesToMap("1.2", raw("00080060", "CS", "C  T"), []))
    assert made["description"] == "a b"
    assert made["series"][0]["modality"]["code"] == "OT"


def test_the_document_has_the_mappings_of_the_code() -> None:
    text = (ROOT / "docs" / "fhir.md").read_text()
    for resource, rows in MAPPINGS.items():
        table = [f"| `{element}` | {attribute} | {note} |" for element, attribute, note in rows]
        wanted = "\n".join(re.sub(r"\|  \|", "| |", re.sub(r"\|  \|", "| |", row)) for row in table)
        assert f"### {resource}\n\n| element | attribute | |\n|---|---|---|\n{wanted}\n" in text, wanted


def test_statements_are_t_sql() -> None:
    for statement in (
        imaging_study.study_statement("p", "1.2"),
        imaging_study.series_statement(1),
        imaging_study.instances_statement(1),
    ):
        sql = str(statement.compile(dialect=mssql.dialect()))
        (parsed,) = sqlglot.parse(re.sub(r"(?<!:):(\w+)", r"@\1", sql), dialect="tsql")
        assert parsed is not None
        assert isinstance(statement, sa.Select)
