"""What becomes of which attribute under the Basic Application Level Confidentiality Profile (PS3.15 Annex E).

The actions of PS3.15 Table E.1-1 come from ``dicom-anonymizer``, whose tables follow the editions of the
standard. It has no columns of options; what those retain is listed here, as far as it is offered.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import cache

from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from pydicom.datadict import dictionary_has_tag, dictionary_VR, repeater_has_tag, tag_for_keyword

from shared.errors import InvalidRequest

EDITION = "2026c"
"""The edition of the standard whose table is applied."""

BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
"""Code and meaning of the profile itself (PS3.16 CID 7050)."""


class Option(Enum):
    """The options that can be asked for: name in requests, code of CID 7050 and its meaning (PS3.16)."""

    PATIENT_CHARACTERISTICS = (
        "retainPatientCharacteristics",
        "113108",
        "Retain Patient Characteristics Option",
    )
    DEVICE_IDENTITY = ("retainDeviceIdentity", "113109", "Retain Device Identity Option")
    UIDS = ("retainUids", "113110", "Retain UIDs Option")
    INSTITUTION_IDENTITY = ("retainInstitutionIdentity", "113112", "Retain Institution Identity Option")
    FULL_DATES = (
        "retainLongitudinalFullDates",
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    )
    MODIFIED_DATES = (
        "retainLongitudinalModifiedDates",
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    )

    @property
    def code(self) -> str:
        """The value in DeidentificationMethodCodeSequence."""
        return self.value[1]

    @property
    def meaning(self) -> str:
        """The meaning of the code."""
        return self.value[2]


def options_of(names: Iterable[str]) -> frozenset[Option]:
    """The options by their names in requests. Raises InvalidRequest."""
    known = {option.value[0]: option for option in Option}
    try:
        chosen = frozenset(known[name] for name in names)
    except (KeyError, TypeError):
        raise InvalidRequest(f"The options of the profile are {', '.join(sorted(known))}.") from None
    if chosen >= {Option.FULL_DATES, Option.MODIFIED_DATES}:
        raise InvalidRequest("Dates are either retained in full or modified, not both.")
    return chosen


# --- the table ---------------------------------------------------------------------------------------


class Action(Enum):
    """What becomes of an attribute; the letters are those of PS3.15 Table E.1-1a."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    KEEP = "K"  # of a sequence: its items are cleaned like a data set
    SHIFT = "C"  # of dates: by the patient's number of days


_BASIC_ACTIONS = {
    "X_TAGS": Action.REMOVE,
    "Z_TAGS": Action.EMPTY,
    "D_TAGS": Action.DUMMY,
    "U_TAGS": Action.UID,
    # Of alternatives the one that is valid whatever the type of the attribute is in the IOD.
    "Z_D_TAGS": Action.DUMMY,
    "X_Z_TAGS": Action.EMPTY,
    "X_D_TAGS": Action.DUMMY,
    "X_Z_D_TAGS": Action.DUMMY,
    "X_Z_U_STAR_TAGS": Action.KEEP,  # references to images, whose UIDs are replaced within
}

_RETAINED: dict[Option, str] = {
    Option.PATIENT_CHARACTERISTICS: """
        EthnicGroup EthnicGroupCodeSequence PatientAge PatientSex PatientSexNeutered PatientSize PatientWeight
        PregnancyStatus SelectorASValue SmokingStatus""",
    Option.INSTITUTION_IDENTITY: """
        ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialSiteID
        ClinicalTrialSiteName InstitutionAddress InstitutionalDepartmentName
        InstitutionalDepartmentTypeCodeSequence InstitutionCodeSequence InstitutionName
        SourceOfPreviousValues""",
    Option.DEVICE_IDENTITY: """
        BeamHoldTransitionDateTime CalibrationDate CalibrationDateTime CalibrationTime CassetteID
        DateOfInstallation DateOfLastCalibration DateOfLastDetectorCalibration DateOfManufacture
        DateTimeOfLastCalibration DetectorID DeviceDescription DeviceLabel DeviceSerialNumber DeviceUID
        GantryID GeneratorID LensMake LensModel LensSerialNumber LensSpecification
        ManufacturerDeviceClassUID ManufacturerDeviceIdentifier ModifyingDeviceID ModifyingSystem
        PerformedStationGeographicLocationCodeSequence PerformedStationName
        PerformedStationNameCodeSequence PlateID ScheduledProcedureStepLocation
        ScheduledStationGeographicLocationCodeSequence ScheduledStationName
        ScheduledStationNameCodeSequence ScheduledStudyLocation SourceManufacturer SourceSerialNumber
        StationName TimeOfLastCalibration TimeOfLastDetectorCalibration TransducerIdentificationSequence
        TreatmentMachineName UDISequence UniqueDeviceIdentifier XRayDetectorID XRayDetectorLabel
        XRaySourceID""",
    Option.UIDS: """
        AnnotationGroupUID ReferencedImageSequence ReferencedPatientSequence ReferencedStudySequence
        ReferencedPerformedProcedureStepSequence SourceImageSequence""",
}
"""Attributes marked K in the column of an option, besides the UIDs and dates found by their VR."""

_UIDS_REPLACED_ALWAYS = frozenset({0x04000100, 0x0040A124})
_DATES_REMOVED_ALWAYS = frozenset({0x00100030, 0x00100032, 0x00160077})  # of birth, and of a position
_TIMES_OF_OTHER_VRS = frozenset({0x00080201, 0x04000310, 0x00340007})


class Rules:
    """What becomes of each attribute under the profile with ``options``."""

    def __init__(self, options: frozenset[Option]) -> None:
        self._by_tag: dict[int, Action] = {}
        self._ranges: list[tuple[int, int, int, int, Action]] = []
        for category, action in _BASIC_ACTIONS.items():
            for tag in dicom_anonymization_database_selector(f"dicomfields_{EDITION}")[category]:
                if len(tag) == 2:
                    self._by_tag[tag[0] << 16 | tag[1]] = action
                else:
                    self._ranges.append((*tag, action))
        self.basic = dict(self._by_tag)
        for option in options & _RETAINED.keys():
            for keyword in _RETAINED[option].split():
                self._set(tag_for_keyword(keyword) or 0, Action.KEEP)
        if Option.UIDS in options:
            for tag, action in self.basic.items():
                if action is Action.UID and tag not in _UIDS_REPLACED_ALWAYS:
                    self._set(tag, Action.KEEP)
        if Option.FULL_DATES in options:
            self._dates(dict.fromkeys(("DA", "TM", "DT"), Action.KEEP))
            for tag in _TIMES_OF_OTHER_VRS:
                self._set(tag, Action.KEEP)
        if Option.MODIFIED_DATES in options:
            self._dates({"DA": Action.SHIFT, "DT": Action.SHIFT, "TM": Action.KEEP})

    def _set(self, tag: int, action: Action) -> None:
        if tag not in self.basic:
            raise ValueError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is in no row of the table.")
        self._by_tag[tag] = action

    def _dates(self, actions: dict[str, Action]) -> None:
        for tag in self.basic:
            action = actions.get(_vr(tag))
            retained = self._by_tag[tag] is Action.KEEP  # a date of a device, for one: as it is
            if action is not None and not retained and tag not in _DATES_REMOVED_ALWAYS:
                self._by_tag[tag] = action

    def of(self, tag: int) -> Action | None:
        """The action for an attribute of the standard; None: the table does not have it."""
        action = self._by_tag.get(tag)
        if action is None:
            group, element = tag >> 16, tag & 0xFFFF
            for low, first, group_mask, element_mask, ranged in self._ranges:
                if group & group_mask == low & group_mask and element & element_mask == first & element_mask:
                    return ranged
        return action


@cache
def rules_of(options: frozenset[Option]) -> Rules:
    """The rules, made once."""
    return Rules(options)


@cache
def _vr(tag: int) -> str:
    return str(dictionary_VR(tag)) if dictionary_has_tag(tag) else ""


def is_known(tag: int) -> bool:
    """Whether the dictionary has the attribute: what is unknown may be anything, and is not kept."""
    return bool(dictionary_has_tag(tag) or repeater_has_tag(tag))
