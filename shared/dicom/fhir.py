"""From DICOM attributes to FHIR Patient, ImagingStudy and Endpoint, R4 and R5: pure, no server is asked.

The mappings are those of the ancestor's converter, which follow the DICOM mappings of the specification
(https://hl7.org/fhir/R4/imagingstudy-mappings.html). ``MAPPINGS`` names the elements; the tables of
``docs/fhir.md`` are compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any, Literal

from pydicom.datadict import tag_for_keyword

Version = Literal["R4", "R5"]
Resource = dict[str, Any]

STUDY_SYSTEM = "urn:dicom:uid"
MODALITY_SYSTEM = "http://dicom.nema.org/resources/ontology/DCM"
UID_SYSTEM = "urn:ietf:rfc:3986"
ACCESSION_TYPE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
CONNECTION_SYSTEM = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
CONNECTION_CODE = "dicom-wado-rs"
ENDPOINT_NAME = "DICOM WADO-RS endpoint"

MAPPINGS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Patient": (
        ("identifier", "PatientID", "system: `DICOM_FHIR_PATIENT_SYSTEM`, or IssuerOfPatientID"),
        ("name[use=usual]", "PatientName", "family, given, prefix and suffix of the first group"),
        ("gender", "PatientSex", "M: male, F: female, O: other"),
        ("birthDate", "PatientBirthDate", ""),
    ),
    "ImagingStudy": (
        ("identifier[system=urn:dicom:uid]", "StudyInstanceUID", "with prefix `urn:oid:`"),
        ("identifier[type=ACSN]", "AccessionNumber", ""),
        ("status", "", "`available`"),
        ("subject", "", "the Patient"),
        ("endpoint", "", "the Endpoint, beside those of others"),
        ("modality", "Modality", "those of its series"),
        ("started", "StudyDate, StudyTime, TimezoneOffsetFromUTC", "the date alone without an offset"),
        ("description, note", "StudyDescription", ""),
        ("numberOfSeries, numberOfInstances", "", "counted"),
        ("series.uid", "SeriesInstanceUID", ""),
        ("series.number", "SeriesNumber", ""),
        ("series.modality", "Modality", "a CodeableConcept in R5; `OT` where it is missing"),
        ("series.description", "SeriesDescription", ""),
        ("series.started", "SeriesDate, SeriesTime, TimezoneOffsetFromUTC", "as above"),
        ("series.bodySite", "BodyPartExamined", "its text; a CodeableReference in R5"),
        ("series.numberOfInstances", "", "counted"),
        ("series.instance.uid", "SOPInstanceUID", ""),
        ("series.instance.sopClass", "SOPClassUID", "with prefix `urn:oid:`"),
        ("series.instance.number", "InstanceNumber", ""),
    ),
    "Endpoint": (
        ("identifier[system=urn:ietf:rfc:3986]", "", "the address: several servers may share a FHIR server"),
        ("name", "", f"`{ENDPOINT_NAME}`"),
        ("status", "", "`active`"),
        ("connectionType", "", "`dicom-wado-rs`; a list of CodeableConcept in R5"),
        ("payloadType, payloadMimeType", "", "`application/dicom`; `payload` in R5"),
        ("address", "", "this server's base URL"),
    ),
}
"""Resource -> element, attribute, note."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What FHIR's strings may not hold, and what would be no value of one line."""


class MissingPatient(ValueError):
    """A study without a PatientID has no subject."""


@dataclass(slots=True)
class Reader:
    """Reads attributes of a DICOM JSON object; collects ``problems``, sentences without values."""

    attributes: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def text(self, keyword: str) -> str:
        """The first value as text, or empty."""
        element = self.attributes.get(f"{tag_for_keyword(keyword):08X}") or {}
        values = element.get("Value") or []
        value = values[0] if values else None
        if isinstance(value, dict):
            value = value.get("Alphabetic") or value.get("Ideographic") or value.get("Phonetic")
        return "" if value is None else _CONTROL.sub(" ", str(value)).strip()

    def number(self, keyword: str) -> int | None:
        """A number that FHIR's unsignedInt takes, or None."""
        text = self.text(keyword)
        if not text:
            return None
        try:
            number = int(float(text)) if float(text).is_integer() else -1
        except (ValueError, OverflowError):
            number = -1
        if not 0 <= number < 2**31:
            self.problems.append(f"{keyword} is no number from 0 to 2147483647.")
            return None
        return number

    def modality(self) -> str:
        """The modality as a code, or empty."""
        text = self.text("Modality").upper()
        if text and re.fullmatch(r"\S+( \S+)*", text) is None:
            self.problems.append("Modality is no code.")
            return ""
        return text

    def day(self, keyword: str) -> str:
        """A date as FHIR writes it, or empty."""
        text = self.text(keyword).replace(".", "")
        if not text:
            return ""
        try:
            if re.fullmatch(r"\d{8}", text) is None:
                raise ValueError
            return date(int(text[:4]), int(text[4:6]), int(text[6:])).isoformat()
        except ValueError:
            self.problems.append(f"{keyword} is no date.")
            return ""

    def moment(self, day: str, clock: str, offset: str) -> str:
        """Date and time with offset as FHIR writes them: a dateTime with a time must have an offset."""
        started, zone = self.day(day), self._offset(offset)
        at = self._clock(clock) if started else ""
        return f"{started}T{at}{zone}" if at and zone else started

    def _clock(self, keyword: str) -> str:
        text = self.text(keyword).replace(":", "")
        if not text:
            return ""
        match = re.fullmatch(r"(\d\d)(\d\d)?(\d\d)?(?:\.(\d{1,6}))?", text)
        try:
            if match is None:
                raise ValueError
            hour, minute, second = (int(part or 0) for part in match.groups()[:3])
            # DICOM allows a leap second, which FHIR does not have in a time with an offset.
            return time(hour, minute, min(second, 59)).isoformat()
        except ValueError:
            self.problems.append(f"{keyword} is no time.")
            return ""

    def _offset(self, keyword: str) -> str:
        text = self.text(keyword)
        if not text:
            return ""
        match = re.fullmatch(r"([+-])(0\d|1[0-4])([0-5]\d)", text)
        if match is None:
            self.problems.append(f"{keyword} is no offset.")
            return ""
        sign, hours, minutes = match.groups()
        return f"{sign}{hours}:{minutes}"


@dataclass(frozen=True, slots=True)
class PatientIdentity:
    """What a Patient is found by."""

    system: str
    value: str

    @property
    def query(self) -> str:
        """The value of the search parameter ``identifier``."""
        return f"{escaped(self.system)}|{escaped(self.value)}"


def escaped(value: str) -> str:
    """A part of the value of a search parameter (https://hl7.org/fhir/R4/search.html#escaping)."""
    return re.sub(r"([\\$,|])", r"\\\1", value)


def patient_identity(reader: Reader, system: str, by_issuer: bool) -> PatientIdentity:
    """Raises MissingPatient where there is no PatientID."""
    value = reader.text("PatientID")
    if not value:
        raise MissingPatient("PatientID is missing.")
    issuer = reader.text("IssuerOfPatientID") if by_issuer else ""
    return PatientIdentity(issuer or system, value)


def patient(reader: Reader, identity: PatientIdentity, existing: Resource | None = None) -> Resource:
    """A Patient, or an existing one brought up to date; what DICOM does not know stays as it is."""
    made: Resource = dict(existing) if existing else {"resourceType": "Patient"}
    if existing is None:
        made["identifier"] = [_identifier(identity.system, identity.value)]
    name = _human_name(reader.text("PatientName"))
    if name:
        others = [one for one in made.get("name", []) if one.get("use") != "usual"]
        made["name"] = [*others, name]
    sex = reader.text("PatientSex").upper()
    if sex:
        gender = {"M": "male", "F": "female", "O": "other"}.get(sex)
        if gender is None:
            reader.problems.append("PatientSex is none of M, F and O.")
        else:
            made["gender"] = gender
    born = reader.day("PatientBirthDate")
    if born:
        made["birthDate"] = born
    return made


def _identifier(system: str, value: str) -> Resource:
    return {"system": system, "value": value} if system else {"value": value}


def _human_name(text: str) -> Resource | None:
    """PS3.5 §6.2: family, given, middle, prefix, suffix; several of a kind with spaces between them."""
    family, given, middle, prefix, suffix = [part.strip() for part in (text.split("^") + [""] * 5)[:5]]
    name: Resource = {"use": "usual"}
    if family:
        name["family"] = family
    for key, parts in (("given", [*given.split(), *middle.split()]), ("prefix", prefix.split())):
        if parts:
            name[key] = parts
    if suffix:
        name["suffix"] = suffix.split()
    return name if len(name) > 1 else None


def endpoint(address: str, version: Version) -> Resource:
    """The Endpoint of this server."""
    made: Resource = {
        "resourceType": "Endpoint",
        "identifier": [_identifier(UID_SYSTEM, address)],
        "name": ENDPOINT_NAME,
        "status": "active",
        "address": address,
    }
    kind = {"system": CONNECTION_SYSTEM, "code": CONNECTION_CODE}
    payload = [{"text": "DICOM WADO-RS"}]
    if version == "R5":
        made["connectionType"] = [{"coding": [kind]}]
        made["payload"] = [{"type": payload, "mimeType": ["application/dicom"]}]
    else:
        made["connectionType"] = kind
        made["payloadType"] = payload
        made["payloadMimeType"] = ["application/dicom"]
    return made


@dataclass(frozen=True, slots=True)
class SeriesToMap:
    """A series: its UID, its attributes, and UID and attributes of each instance."""

    uid: str
    reader: Reader
    instances: Sequence[tuple[str, Reader]]


def study_identifier(uid: str) -> str:
    """The value of the identifier of an ImagingStudy."""
    return f"urn:oid:{uid}"


_OURS = ("status", "modality", "subject", "started", "endpoint", "description", "note", "series")
_COUNTS = ("numberOfSeries", "numberOfInstances")


def imaging_study(
    uid: str,
    reader: Reader,
    series: Sequence[SeriesToMap],
    subject: str,
    endpoint: str,
    version: Version,
    existing: Resource | None = None,
) -> Resource:
    """An ImagingStudy, or an existing one brought up to date.

    All elements of ``MAPPINGS`` are made anew; others that somebody else gave it stay, and so do identifiers
    of other kinds. ``subject`` and ``endpoint`` are references.
    """
    made: Resource = {key: value for key, value in (existing or {}).items() if key not in (*_OURS, *_COUNTS)}
    made["resourceType"] = "ImagingStudy"
    others = [one for one in made.get("identifier", []) if not _is_ours(one)]
    made["identifier"] = [_identifier(STUDY_SYSTEM, study_identifier(uid)), *others]
    accession = reader.text("AccessionNumber")
    if accession:
        made["identifier"].append({"type": ACCESSION_TYPE, "value": accession})
    made |= {"status": "available", "subject": {"reference": subject}}
    elsewhere = [one for one in (existing or {}).get("endpoint", []) if one.get("reference") != endpoint]
    made["endpoint"] = [*elsewhere, {"reference": endpoint}]
    mapped = [_series(one, version) for one in series]
    codes = sorted({one.reader.modality() for one in series} - {""})
    _put(made, "modality", [_modality(code, version) for code in codes])
    _put(made, "started", reader.moment("StudyDate", "StudyTime", "TimezoneOffsetFromUTC"))
    description = reader.text("StudyDescription")
    _put(made, "description", description)
    _put(made, "note", [{"text": description}] if description else [])
    made["numberOfSeries"] = len(mapped)
    made["numberOfInstances"] = sum(len(one.instances) for one in series)
    _put(made, "series", mapped)
    return made


def _is_ours(identifier: Resource) -> bool:
    codes = [coding.get("code") for coding in (identifier.get("type") or {}).get("coding") or []]
    return identifier.get("system") == STUDY_SYSTEM or "ACSN" in codes


def _series(one: SeriesToMap, version: Version) -> Resource:
    reader = one.reader
    made: Resource = {"uid": one.uid}
    _put(made, "number", reader.number("SeriesNumber"))
    made["modality"] = _modality(reader.modality() or "OT", version)
    _put(made, "description", reader.text("SeriesDescription"))
    made["numberOfInstances"] = len(one.instances)
    body = reader.text("BodyPartExamined")
    if body:
        made["bodySite"] = {"concept": {"text": body}} if version == "R5" else {"display": body}
    _put(made, "started", reader.moment("SeriesDate", "SeriesTime", "TimezoneOffsetFromUTC"))
    _put(made, "instance", [_instance(uid, reader) for uid, reader in one.instances])
    return made


def _instance(uid: str, reader: Reader) -> Resource:
    sop_class = study_identifier(reader.text("SOPClassUID"))
    made: Resource = {"uid": uid, "sopClass": {"system": UID_SYSTEM, "code": sop_class}}
    _put(made, "number", reader.number("InstanceNumber"))
    return made


def _modality(code: str, version: Version) -> Resource:
    coding = {"system": MODALITY_SYSTEM, "code": code}
    return {"coding": [coding]} if version == "R5" else coding


def _put(made: Resource, element: str, value: Any) -> None:
    """Set an element that has a value: FHIR has no empty ones."""
    if value is not None and value not in ("", []):
        made[element] = value
