"""What a bulk update changes: attributes of patient, study and series, given as DICOM JSON (PS3.18 Annex F).

Everything is checked before anything is changed: tags, VRs, values and their number. What passes can be
encoded in any transfer syntax; whether a text fits the character set of a file is known only there.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword

from shared.dicom import convert
from shared.dicom.identifiers import check_uid
from shared.dicom.json_model import BINARY_VRS, TEXT_VRS, CharacterSet
from shared.dicom.transfer_syntaxes import EXPLICIT_BE
from shared.dicom.validation import CHECKS
from shared.errors import InvalidRequest

MOST_STUDIES = 50
"""Studies one update may name, as in the ancestor."""

SPECIFIC_CHARACTER_SET = 0x00080005

_PATIENT = """
    PatientName PatientID IssuerOfPatientID TypeOfPatientID IssuerOfPatientIDQualifiersSequence
    SourcePatientGroupIdentificationSequence GroupOfPatientsIdentificationSequence
    PatientBirthDate PatientBirthTime PatientBirthDateInAlternativeCalendar
    PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar
    PatientSex QualityControlSubject StrainDescription StrainNomenclature StrainStockSequence
    StrainAdditionalInformation StrainCodeSequence GeneticModificationsSequence
    ReferencedPatientPhotoSequence OtherPatientIDs OtherPatientNames OtherPatientIDsSequence PatientBirthName
    PatientAddress PatientMotherBirthName MilitaryRank BranchOfService MedicalRecordLocator
    ReferencedPatientSequence CountryOfResidence RegionOfResidence PatientTelephoneNumbers
    PatientTelecomInformation EthnicGroup EthnicGroupCodeSequence PatientSpeciesDescription
    PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence BreedRegistrationSequence
    BreedRegistrationNumber ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientReligiousPreference PatientComments PatientInsurancePlanCodeSequence
    PatientPrimaryLanguageCodeSequence ConfidentialityConstraintOnPatientDataDescription
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID
    ClinicalTrialSiteName ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialProtocolEthicsCommitteeApprovalNumber
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
"""
_STUDY = """
    StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence StudyID StudyDescription
    ReferringPhysicianName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers
    ReferringPhysicianIdentificationSequence ConsultingPhysicianName ConsultingPhysicianIdentificationSequence
    ProcedureCodeSequence PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence
    NameOfPhysiciansReadingStudy PhysiciansReadingStudyIdentificationSequence RequestingService
    RequestingServiceCodeSequence RequestingPhysician RequestingPhysicianIdentificationSequence
    RequestedProcedureDescription RequestedProcedureCodeSequence RequestedContrastAgent
    ReferencedStudySequence ReasonForPerformedProcedureCodeSequence
    AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize
    PatientSizeCodeSequence PatientWeight PatientBodyMassIndex MeasuredAPDimension MeasuredLateralDimension
    MedicalAlerts Allergies
    SmokingStatus PregnancyStatus LastMenstrualDate PatientState Occupation AdditionalPatientHistory
    PatientSexNeutered AdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID
    IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription ReasonForVisit ReasonForVisitCodeSequence
    CurrentPatientLocation PatientInstitutionResidence InstitutionalDepartmentName
    ClinicalTrialTimePointID ClinicalTrialTimePointDescription ClinicalTrialTimePointTypeCodeSequence
    LongitudinalTemporalOffsetFromEvent LongitudinalTemporalEventType ConsentForClinicalTrialUseSequence
    StudyStatusID StudyPriorityID StudyComments TimezoneOffsetFromUTC
"""
_SERIES = """
    Modality SeriesNumber SeriesDate SeriesTime SeriesDescription SeriesDescriptionCodeSequence Laterality
    PerformingPhysicianName PerformingPhysicianIdentificationSequence OperatorsName
    OperatorIdentificationSequence ProtocolName BodyPartExamined PatientPosition
    ReferencedPerformedProcedureStepSequence RelatedSeriesSequence RequestAttributesSequence
    PerformedProcedureStepID PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedProcedureStepEndDate PerformedProcedureStepEndTime PerformedProcedureStepDescription
    PerformedProtocolCodeSequence CommentsOnThePerformedProcedureStep AnatomicalOrientationType
    ClinicalTrialCoordinatingCenterName ClinicalTrialSeriesID ClinicalTrialSeriesDescription
    Manufacturer InstitutionName InstitutionAddress InstitutionCodeSequence StationName
    InstitutionalDepartmentTypeCodeSequence ManufacturerModelName DeviceSerialNumber SoftwareVersions
"""


@cache
def updatable() -> dict[int, str]:
    """Tags of the attributes an update may change, and the level of each; none is a UID, none describes
    pixels, and none decides how the file is to be read."""
    found: dict[int, str] = {}
    for level, keywords in (("Patient", _PATIENT), ("Study", _STUDY), ("Series", _SERIES)):
        for keyword in keywords.split():
            tag = tag_for_keyword(keyword)
            if tag is None:
                raise LookupError(f"{keyword} is no attribute of the dictionary")
            found[tag] = level
    return found


class _Digits(str):
    """A JSON number as it was written: DS and IS keep their digits."""


@dataclass(frozen=True, slots=True)
class Element:
    """An attribute and its new value.

    ``value`` is a text (values separated by backslashes), bytes (numbers little endian, not padded) or the
    items of a sequence. Empty in each case: the attribute stays, without a value.
    """

    tag: int
    vr: str
    value: str | bytes | tuple[tuple[Element, ...], ...]


class Unencodable(Exception):
    """A text that the character set in force cannot express."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a request asks for: studies (each once), and the elements that change in them, by tag."""

    studies: tuple[str, ...]
    changes: tuple[Element, ...]


def parse_update(body: bytes) -> Update:
    """The request of a bulk update. Raises InvalidRequest that names what is wrong with it."""
    request = _loads(body)
    if not isinstance(request, dict):
        raise InvalidRequest("The body must be a JSON object with studyInstanceUids and changeDataset.")
    unknown = sorted(set(request) - {"studyInstanceUids", "changeDataset"})
    if unknown:
        raise InvalidRequest(f"The body's property {unknown[0][:64]!r} is unknown.")
    return Update(_studies(request.get("studyInstanceUids")), _changes(request.get("changeDataset")))


def _loads(body: bytes) -> Any:
    def refuse(_text: str) -> Any:
        raise ValueError

    try:
        return json.loads(body, parse_float=_Digits, parse_int=_Digits, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not JSON.") from None


def _studies(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise InvalidRequest("studyInstanceUids must be an array of at least one StudyInstanceUID.")
    if len(given) > MOST_STUDIES:
        raise InvalidRequest(f"studyInstanceUids may name {MOST_STUDIES} studies; send several requests.")
    return tuple(dict.fromkeys(check_uid(_plain(uid), "A value of studyInstanceUids") for uid in given))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and not isinstance(value, _Digits) else ""


def _changes(given: Any) -> tuple[Element, ...]:
    if not isinstance(given, dict) or not given:
        raise InvalidRequest("changeDataset must be a DICOM JSON object of at least one attribute.")
    elements: dict[int, Element] = {}
    for name, attribute in given.items():
        tag = _tag(name)
        _check_updatable(tag)
        if tag in elements:
            raise InvalidRequest(f"{_shown(tag)} is given twice.")
        elements[tag] = _element(tag, attribute, 0)
    return tuple(elements[tag] for tag in sorted(elements))


def _tag(name: str) -> int:
    if len(name) != 8 or not all(character in "0123456789abcdefABCDEF" for character in name):
        raise InvalidRequest(f"{name[:64]!r} is no tag of eight hexadecimal digits.")
    return int(name, 16)


def _shown(tag: int) -> str:
    return f"{keyword_for_tag(tag) or 'The attribute'} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _known_vr(tag: int) -> str:
    if tag >> 16 & 1:
        raise InvalidRequest(f"{_shown(tag)} is private; an update changes standard attributes only.")
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        raise InvalidRequest(f"{_shown(tag)} is not in the DICOM dictionary.") from None


def _check_updatable(tag: int) -> None:
    vr = _known_vr(tag)
    if vr == "UI":
        raise InvalidRequest(f"{_shown(tag)} is a UID; an update changes no identifiers.")
    if tag not in updatable():
        raise InvalidRequest(
            f"{_shown(tag)} is none of the patient, study and series attributes an update may change."
        )


# --- values ------------------------------------------------------------------------------------------


_MOST_DEPTH = 16


def _element(tag: int, given: Any, depth: int) -> Element:
    """One attribute of DICOM JSON, checked."""
    allowed = _known_vr(tag).split(" or ")
    if not isinstance(given, dict) or not set(given) <= {"vr", "Value", "InlineBinary"}:
        raise InvalidRequest(f"{_shown(tag)} must be an object of vr and Value.")
    vr = given.get("vr")
    if vr not in allowed:
        raise InvalidRequest(f"{_shown(tag)} has the VR {' or '.join(allowed)}, which vr must say.")
    assert isinstance(vr, str)
    if "InlineBinary" in given:
        return Element(tag, vr, _inline(tag, vr, given))
    values = given.get("Value", [])
    if not isinstance(values, list):
        raise InvalidRequest(f"The Value of {_shown(tag)} must be an array.")
    if vr == "SQ":
        return Element(tag, vr, tuple(_item(tag, item, depth) for item in values))
    if vr in BINARY_VRS and values:
        raise InvalidRequest(f"{_shown(tag)} of VR {vr} must be given as InlineBinary.")
    _check_multiplicity(tag, values)
    if vr in TEXT_VRS:
        text = "\\".join(_text(tag, vr, value) for value in values)
        return Element(tag, vr, text)
    return Element(tag, vr, b"".join(_number(tag, vr, value) for value in values))


def _inline(tag: int, vr: str, given: Mapping[str, Any]) -> bytes:
    try:
        if vr not in BINARY_VRS or "Value" in given:
            raise ValueError
        return base64.b64decode(_plain(given["InlineBinary"]), validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"The InlineBinary of {_shown(tag)} is not base64 of a binary VR.") from None


def _item(sequence: int, given: Any, depth: int) -> tuple[Element, ...]:
    if depth >= _MOST_DEPTH:
        raise InvalidRequest(f"{_shown(sequence)} is nested too deep.")
    if not isinstance(given, dict):
        raise InvalidRequest(f"An item of {_shown(sequence)} is no object.")
    elements: dict[int, Element] = {}
    for name, attribute in given.items():
        tag = _tag(name)
        if tag >> 16 in (0x0002, 0x7FE0, 0xFFFE) or tag & 0xFFFF == 0 or tag == SPECIFIC_CHARACTER_SET:
            raise InvalidRequest(f"{_shown(tag)} has no place in an item of {_shown(sequence)}.")
        elements[tag] = _element(tag, attribute, depth + 1)
    return tuple(elements[tag] for tag in sorted(elements))


def _check_multiplicity(tag: int, values: Sequence[Any]) -> None:
    most = dictionary_VM(tag).rpartition("-")[2]
    if most.isdigit() and len(values) > int(most):
        raise InvalidRequest(f"{_shown(tag)} takes {most} value{'s' if most != '1' else ''} at most.")


def _text(tag: int, vr: str, value: Any) -> str:
    """One value of a string VR. Raises InvalidRequest, which does not quote it."""
    if value is None:
        return ""
    text = _person_name(tag, value) if vr == "PN" else value
    number = isinstance(text, _Digits)
    if not isinstance(text, str) or (number and vr not in ("DS", "IS")):
        raise InvalidRequest(f"A value of {_shown(tag)} is no {'string or number' if number else 'string'}.")
    problem = CHECKS[vr](text) if text else ""
    single = vr in ("LT", "ST", "UT", "UR")
    if "\x1b" in text or ("\\" in text and not single):
        problem = problem or "holds a backslash or an escape character"
    if not text.isascii() and vr not in ("LO", "LT", "PN", "SH", "ST", "UC", "UT"):
        problem = problem or f"holds characters that {vr} does not allow"
    if problem:
        raise InvalidRequest(f"A value of {_shown(tag)} {problem}.")
    return str(text)


_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def _person_name(tag: int, value: Any) -> str:
    if not isinstance(value, dict) or not set(value) <= set(_GROUPS):
        raise InvalidRequest(f"A value of {_shown(tag)} must be an object of {', '.join(_GROUPS)}.")
    groups = [value.get(group, "") for group in _GROUPS]
    if not all(isinstance(group, str) and "=" not in group for group in groups):
        raise InvalidRequest(f"A component group of {_shown(tag)} is no string without '='.")
    return "=".join(groups).rstrip("=")


_INTEGERS = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i", "UV": "<Q", "SV": "<q"}
_FLOATS = {"FL": "<f", "FD": "<d"}


def _number(tag: int, vr: str, value: Any) -> bytes:
    """One value of a binary number VR or of AT, little endian."""
    try:
        if vr == "AT":
            pair = _tag(_plain(value))
            return struct.pack("<HH", pair >> 16, pair & 0xFFFF)
        if not isinstance(value, _Digits):
            raise ValueError
        if vr in _FLOATS:
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return struct.pack(_FLOATS[vr], number)
        return struct.pack(_INTEGERS[vr], int(value))
    except (ValueError, KeyError, OverflowError, struct.error, InvalidRequest):
        raise InvalidRequest(f"A value of {_shown(tag)} is no {vr}.") from None


# --- encoding ----------------------------------------------------------------------------------------


def encode(elements: Sequence[Element], target: str, characters: CharacterSet) -> dict[int, bytes]:
    """The elements, by tag, in the encoding of the transfer syntax ``target``. Raises Unencodable."""
    return {element.tag: _encoded(element, target, characters) for element in elements}


def _encoded(element: Element, target: str, characters: CharacterSet) -> bytes:
    value = element.value
    if isinstance(value, str):
        raw = characters.encode(element.vr, value)
        if raw is None:
            raise Unencodable
        raw += (b"\0" if element.vr == "UI" else b" ") * (len(raw) % 2)
    elif isinstance(value, bytes):
        raw = value + b"\0" * (len(value) % 2)
        if target == EXPLICIT_BE:
            raw = convert.swap(raw, convert.word_size(element.vr, 0))
    else:
        raw = b"".join(_encoded_items(value, target, characters))
    return convert.element(element.tag, element.vr, raw, target)


def _encoded_items(
    items: Sequence[Sequence[Element]], target: str, characters: CharacterSet
) -> Iterator[bytes]:
    order = ">" if target == EXPLICIT_BE else "<"
    for item in items:
        content = b"".join(_encoded(element, target, characters) for element in item)
        yield struct.pack(order + "HHI", 0xFFFE, 0xE000, len(content)) + content
