"""What a workitem must hold, by transaction: PS3.4 Table CC.2.5-3 as data.

A row has the requirement types for N-CREATE and N-SET (user/provider), the final state code, those for N-GET,
and the matching and return key types of C-FIND. Conditional types (1C, 2C, RC) are treated as optional, as
the ancestor does: the server cannot judge the conditions. Macros stand once and are expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from shared.errors import Conflict, InvalidRequest

Json = dict[str, Any]

COMPLETED = "COMPLETED"
CANCELED = "CANCELED"

NOT_ALLOWED = "not allowed"
EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row. ``path`` is the keywords on the way to the attribute, with dots between them."""

    path: str
    create: str
    update: str
    final: str
    retrieve: str
    match: str
    returned: str

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the path."""
        return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in self.path.split("."))

    @property
    def vr(self) -> str:
        """The VR of the attribute."""
        return str(dictionary_VR(int(self.tags[-1], 16))).split(" ")[0]


_CODE = """
CodeValue 1C/1C 1C/1C O -/1C * 1C
CodingSchemeDesignator 1C/1C 1C/1C O -/1C * 1C
CodingSchemeVersion 1C/1C 1C/1C O -/1C - 1C
CodeMeaning 1/1 1/1 O -/1 - 1
LongCodeValue 1C/1C 1C/1C O -/1C * 1C
URNCodeValue 1C/1C 1C/1C O -/1C * 1C
MappingResource 3/3 3/3 O -/3 - 3
MappingResourceUID 3/3 3/3 O -/3 - 3
ContextGroupVersion 3/3 3/3 O -/3 - 3
ContextGroupExtensionFlag 3/3 3/3 O -/3 - 3
ContextGroupLocalVersion 3/3 3/3 O -/3 - 3
ContextGroupExtensionCreatorUID 3/3 3/3 O -/3 - 3
"""
_DESIGNATOR = """
LocalNamespaceEntityID 1C/1 X O -/1 * 1C
UniversalEntityID 1C/1 X O -/1 * 1C
UniversalEntityIDType 1C/1 X O -/1 * 1C
"""
_INSTANCE = """
ReferencedSOPClassUID 1/1 1/1 O -/1 * 1
ReferencedSOPInstanceUID 1/1 1/1 O -/1 * 1
"""
_INSTANCES = """
TypeOfInstances 1/1 1/1 O -/1 O 1
StudyInstanceUID 1C/1 1C/1 O -/1 O 1C
SeriesInstanceUID 1C/1 1C/1 O -/1 O 1C
ReferencedSOPSequence 1/1 1/1 O -/1 O 1
>ReferencedSOPClassUID 1/1 1/1 O -/1 O 1
>ReferencedSOPInstanceUID 1/1 1/1 O -/1 O 1
>HL7InstanceIdentifier 1C/1 1C/1 O -/1 O 1C
>ReferencedFrameNumber 1C/1 1C/1 O -/1 O 1C
>ReferencedSegmentNumber 1C/1 1C/1 O -/1 O 1C
DICOMRetrievalSequence 1C/1 1C/1 O -/1 O 1C
>RetrieveAETitle 1/1 1/1 O -/1 O 1
DICOMMediaRetrievalSequence 1C/1 1C/1 O -/1 O 1C
>StorageMediaFileSetID 2/2 2/2 O -/2 O 2
>StorageMediaFileSetUID 1/1 1/1 O -/1 O 1
WADORetrievalSequence 1C/1 1C/1 O -/1 O 1C
>RetrieveURI 1/1 1/1 O -/1 O 1
XDSRetrievalSequence 1C/1 1C/1 O -/1 O 1C
>RepositoryUniqueID 1/1 1/1 O -/1 O 1
>HomeCommunityID 3/2 3/2 O -/2 O 3
WADORSRetrievalSequence 1C/1 1C/1 O -/1 O 1C
>RetrieveURL 1/1 1/1 O -/1 O 1
"""
_CONTENT = """
ValueType 1/1 1/1 O -/1 * 1
ConceptNameCodeSequence 1/1 1/1 O -/1 * 1 =CODE
DateTime 1C/1C 1C/1C O -/1C - 1C
Date 1C/1C 1C/1C O -/1C - 1C
Time 1C/1C 1C/1C O -/1C - 1C
PersonName 1C/1C 1C/1C O -/1C - 1C
UID 1C/1C 1C/1C O -/1C - 1C
TextValue 1C/1C 1C/1C O -/1C - 1C
ConceptCodeSequence 1C/1C 1C/1C O -/1C - 1C =CODE
NumericValue 1C/1C 1C/1C O -/1C - 1C
MeasurementUnitsCodeSequence 1C/1C 1C/1C O -/1C - 1C =CODE
"""
_ISSUER = """
IssuerOfPatientID 2/2 X O 3/2 R 2
IssuerOfPatientIDQualifiersSequence 2/2 X O 3/2 O 2
"""
_STORAGE = """
ReferencedSOPClassUID 1C/1 1C/1 O -/1 O 1C
DICOMStorageSequence 1C/1 1C/1 O -/1 O 1C
>DestinationAE 1/1 1/1 O -/1 * 1
STOWRSStorageSequence 1C/1 1C/1 O -/1 O 1C
>StorageURL 1/1 1/1 O -/1 * 1
XDSStorageSequence 1C/1 1C/1 O -/1 O 1C
>RepositoryUniqueID 1/1 1/1 O -/1 * 1
>HomeCommunityID 3/2 3/2 O -/2 * 3
"""
_MACROS = {
    "=CODE": _CODE,
    "=DESIGNATOR": _DESIGNATOR,
    "=INSTANCE": _INSTANCE,
    "=INSTANCES": _INSTANCES,
    "=CONTENT": _CONTENT,
    "=STORAGE": _STORAGE,
}

# X in a column of types: not allowed; E: allowed if it is empty. > is in the sequence above.
_TABLE = (
    """
TransactionUID E X O X - -
SpecificCharacterSet 1C/1C 1C/1C RC 3/1 - 1C
SOPClassUID -/1 X R X O 1
SOPInstanceUID -/1 X R X U 1
ScheduledProcedureStepPriority 1/1 3/1 R 3/1 R 1
ScheduledProcedureStepModificationDateTime -/1 -/1 R 3/1 O 3
ProcedureStepLabel 1/1 3/1 O 3/1 R 1
WorklistLabel 2/1 3/1 O 3/1 R 1
ScheduledProcessingParametersSequence 2/2 3/2 O 3/2 - 2 =CONTENT
ScheduledStationNameCodeSequence 2/2 3/2 O 3/2 R 2 =CODE
ScheduledStationClassCodeSequence 2/2 3/2 O 3/2 R 2 =CODE
ScheduledStationGeographicLocationCodeSequence 2/2 3/2 O 3/2 R 2 =CODE
ScheduledHumanPerformersSequence 2C/2C 3/2 O 3/2 R 2
>HumanPerformerCodeSequence 1/1 1/1 O -/1 R 1 =CODE
>HumanPerformerName 1/1 1/1 O -/1 O 3
>HumanPerformerOrganization 1/1 1/1 O -/1 O 3
ScheduledProcedureStepStartDateTime 1/1 3/1 R 3/1 R 1
ExpectedCompletionDateTime 3/1 3/1 O 3/1 R 3
ScheduledProcedureStepExpirationDateTime 3/3 3/3 O 3/3 O 3
ScheduledWorkitemCodeSequence 2/2 3/1 O 3/1 R 2 =CODE
CommentsOnTheScheduledProcedureStep 2/2 3/1 O 3/1 O 3
InputReadinessState 1/1 3/1 R 3/1 R 1
InputInformationSequence 2/2 3/2 O 3/2 O 2 =INSTANCES
StudyInstanceUID 1C/2 3/2 O 3/2 O 2
OutputDestinationSequence 3/3 3/3 O 3/3 O 3 =STORAGE
PatientName 2/2 X O 3/2 R 2
PatientID 1C/2 X O 3/2 R 2
"""
    + _ISSUER
    + """
OtherPatientIDsSequence 2/2 3/3 O 3/2 O 2
>PatientID 1/1 1/1 O -/1 O 1
>TypeOfPatientID 3/3 3/3 O 3/3 O 3
PatientBirthDate 2/2 X O 3/2 R 2
PatientSex 2/2 X O 3/2 R 2
ReferencedPatientPhotoSequence 3/3 3/3 O 3/3 - 3 =INSTANCES
AdmissionID 2/2 X O 3/2 R 2
IssuerOfAdmissionIDSequence 2/2 X O 3/2 R 2 =DESIGNATOR
AdmittingDiagnosesDescription 2/2 X O 3/2 O 2
AdmittingDiagnosesCodeSequence 2/2 X O 3/2 O 2 =CODE
ReferencedRequestSequence 2/2 X O 3/2 R 2
>StudyInstanceUID 1/1 X O -/1 O 1
>AccessionNumber 2/2 X O -/2 R 2
>IssuerOfAccessionNumberSequence 2/2 X O -/2 R 2 =DESIGNATOR
>PlacerOrderNumberImagingServiceRequest 3/1 X O -/1 O 1C
>OrderPlacerIdentifierSequence 2/2 X O -/2 O 2 =DESIGNATOR
>FillerOrderNumberImagingServiceRequest 3/1 X O -/1 O 1C
>OrderFillerIdentifierSequence 2/2 X O -/2 O 2 =DESIGNATOR
>RequestedProcedureID 2/2 X O -/2 R 2
>RequestedProcedureDescription 2/2 X O -/2 O 2
>RequestedProcedureCodeSequence 2/2 X O -/2 O 2 =CODE
>RequestingService 3/1 3/1 O -/3 R 3
ReplacedProcedureStepSequence 1C/1C X O 3/2 R 3 =INSTANCE
MedicalAlerts 3/2 3/2 O 3/2 O 2C
PregnancyStatus 3/2 3/2 O 3/2 O 2C
SpecialNeeds 3/2 3/2 O 3/2 O 2C
ProcedureStepState 1/1 X R 3/1 R 1
ProcedureStepProgressInformationSequence E 3/2 X 3/2 - 2
>ProcedureStepProgress X 3/1 O -/1 - -
>ProcedureStepProgressDescription X 3/1 O -/1 - -
>ProcedureStepProgressParametersSequence X 3/3 O -/3 - - =CONTENT
>ProcedureStepCommunicationsURISequence X 3/1 O -/1 - -
>>ContactURI X 1/1 O -/1 - -
>>ContactDisplayName X 3/1 O -/1 - -
>ProcedureStepCancellationDateTime X 3/1 X -/1 - -
>ReasonForCancellation X 3/1 O -/1 - -
>ProcedureStepDiscontinuationReasonCodeSequence X 3/1 X -/1 - - =CODE
UnifiedProcedureStepPerformedProcedureSequence E 3/2 P 3/2 - -
>ActualHumanPerformersSequence X 3/1 RC -/1 O 1C
>PerformedStationNameCodeSequence X 3/2 P -/2 O 3 =CODE
>PerformedStationClassCodeSequence X 3/2 O -/2 - - =CODE
>PerformedStationGeographicLocationCodeSequence X 3/2 O -/2 - - =CODE
>PerformedProcedureStepStartDateTime X 3/1 P -/1 - -
>PerformedProcedureStepDescription X 3/1 O -/1 - -
>CommentsOnThePerformedProcedureStep X 3/1 O -/1 - -
>PerformedWorkitemCodeSequence X 3/1 P -/1 - - =CODE
>PerformedProcessingParametersSequence X 3/1 O -/1 - - =CONTENT
>PerformedProcedureStepEndDateTime X 3/1 P -/1 O 1C
>OutputInformationSequence X 2/2 P -/2 - - =INSTANCES
"""
)
_SHORT = {"X": NOT_ALLOWED, "E": EMPTY}
_MAY_HAVE_NO_ITEMS = "OutputInformationSequence"


def _rows(table: str, prefix: str = "", above: str = "O") -> Iterator[Requirement]:
    within: list[str] = []
    for line in filter(None, table.splitlines()):
        name, create, update, final, retrieve, match, returned, *macro = line.split()
        keyword = name.lstrip(">")
        within[len(name) - len(keyword) :] = [keyword]
        path = prefix + ".".join(within)
        match = above if match == "*" else match
        yield Requirement(
            path,
            _SHORT.get(create, create),
            _SHORT.get(update, update),
            final,
            _SHORT.get(retrieve, retrieve),
            match,
            returned,
        )
        for macro_name in macro:
            yield from _rows(_MACROS[macro_name], f"{path}.", match)


@cache
def requirements() -> tuple[Requirement, ...]:
    """Every row of the table."""
    return tuple(_rows(_TABLE))


@cache
def default_tags() -> tuple[tuple[str, str], ...]:
    """Attributes of every search result, with their VRs: return key types 1 and 2."""
    top = (row for row in requirements() if "." not in row.path)
    return tuple(sorted((row.tags[0], row.vr) for row in top if row.returned in ("1", "2")))


@cache
def conditional_tags() -> frozenset[str]:
    """Attributes of a search result that has them: return key types 1C and 2C."""
    top = (row for row in requirements() if "." not in row.path)
    return frozenset(row.tags[0] for row in top if row.returned in ("1C", "2C"))


def check_create(document: Json) -> None:
    """Raise InvalidRequest that names what a new workitem lacks, or must not have."""
    for row in requirements():
        for item in _items(document, row.tags[:-1]):
            _check(row, row.create, item)


def check_update(document: Json) -> None:
    """Raise InvalidRequest that names what an update must not hold, or holds without a value."""
    for row in requirements():
        for item in _items(document, row.tags[:-1]):
            _check(row, row.update, item)


def check_final(document: Json, state: str) -> None:
    """Raise Conflict that names what a workitem lacks to become ``state`` (PS3.4 §CC.2.5.1.1)."""
    needed = {"R", "P"} if state == COMPLETED else {"R", "X"}
    for row in requirements():
        if row.final not in needed:
            continue
        for item in _items(document, row.tags[:-1]):
            there = row.tags[-1] in item
            if not (there if row.path.endswith(_MAY_HAVE_NO_ITEMS) else has_value(item, row.tags[-1])):
                raise Conflict(f"The workitem cannot become {state}: {_shown(row)} has no value.")


def _check(row: Requirement, code: str, item: Json) -> None:
    tag = row.tags[-1]
    if code == NOT_ALLOWED:
        if tag in item:
            raise InvalidRequest(f"{_shown(row)} must not be given.")
        return
    if code == EMPTY:
        if has_value(item, tag):
            raise InvalidRequest(f"{_shown(row)} must be empty.")
        return
    user, _, provider = code.partition("/")
    if user == "-":
        return
    if user == "1" and not has_value(item, tag):
        raise InvalidRequest(f"{_shown(row)} must have a value.")
    if user == "2" and tag not in item:
        raise InvalidRequest(f"{_shown(row)} must be present; it may be empty.")
    if user != "2" and provider == "1" and tag in item and not has_value(item, tag):
        raise InvalidRequest(f"{_shown(row)} must have a value where it is given.")


def has_value(item: Json, tag: str) -> bool:
    """Whether an attribute has a value that says something; an item of a sequence does."""
    element = item.get(tag, {})
    values = element.get("Value", [])
    return "InlineBinary" in element or any(value not in (None, "") for value in values)


def _items(document: Json, tags: tuple[str, ...]) -> Iterator[Json]:
    if not tags:
        yield document
        return
    for item in document.get(tags[0], {}).get("Value", []):
        yield from _items(item, tags[1:])


def _shown(row: Requirement) -> str:
    tag = row.tags[-1]
    return f"{row.path} ({tag[:4]},{tag[4:]})"
