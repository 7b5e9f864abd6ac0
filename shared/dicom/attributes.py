"""THE attribute table: what the index knows, at which level, and how it is matched and returned.

It drives storing (what is extracted), searching (what may be matched), QIDO responses (what is
returned by default or with ``includefield=all``) and the conformance statement. Tags and VRs come
from pydicom's dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cache

from pydicom.datadict import dictionary_VR, tag_for_keyword


class Level(IntEnum):
    """The resource level an attribute is kept at; patient attributes are kept at the study."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3


class Matching(Enum):
    """Kind of matching a searchable attribute has (PS3.4 §C.2.2.2)."""

    UID = "UID list"
    TEXT = "exact, wildcard"
    PERSON_NAME = "exact, wildcard, fuzzy prefix"
    DATE = "exact, range of dates"
    TIME = "exact, range of times"
    DATETIME = "exact, range of dates and times"
    NUMBER = "exact"


@dataclass(frozen=True)
class Attribute:
    """One row of the table.

    ``column`` names the SQL column (empty: kept in the level's JSON alone and not searchable);
    ``default`` says that QIDO returns it unasked; ``computed`` that the server maintains it instead
    of reading it from the file.
    """

    keyword: str
    level: Level
    matching: Matching | None = None
    default: bool = False
    computed: bool = False
    length: int = 64

    @property
    def tag(self) -> str:
        """The tag as DICOM JSON writes it: eight upper-case hexadecimal digits."""
        return f"{tag_for_keyword(self.keyword):08X}"

    @property
    def vr(self) -> str:
        """The VR; of the dictionary's alternatives the first."""
        return str(dictionary_VR(tag_for_keyword(self.keyword) or 0)).split(" ")[0]

    @property
    def column(self) -> str:
        """The SQL column: the keyword in snake case, or empty where the attribute is not searchable."""
        if self.matching is None:
            return ""
        words = "".join("_" + c.lower() if c.isupper() else c for c in self.keyword)
        for acronym in ("_u_i_d", "_i_d", "_s_o_p"):
            words = words.replace(acronym, "_" + acronym.replace("_", ""))
        return words.lstrip("_")

    @property
    def column_length(self) -> int:
        """Characters the SQL column holds; longer shadow values are cut."""
        return 32 if self.matching in (Matching.DATE, Matching.TIME, Matching.DATETIME) else self.length


def _study(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.STUDY, matching, **options)  # type: ignore[arg-type]


def _series(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.SERIES, matching, **options)  # type: ignore[arg-type]


def _instance(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.INSTANCE, matching, **options)  # type: ignore[arg-type]


ATTRIBUTES: tuple[Attribute, ...] = (
    _study("StudyInstanceUID", Matching.UID, default=True),
    _study("PatientName", Matching.PERSON_NAME, default=True, length=324),
    _study("PatientID", Matching.TEXT, default=True),
    _study("PatientBirthDate", Matching.DATE, default=True, length=8),
    _study("PatientSex", Matching.TEXT, default=True, length=16),
    _study("AccessionNumber", Matching.TEXT, default=True, length=64),
    _study("ReferringPhysicianName", Matching.PERSON_NAME, default=True, length=324),
    _study("StudyDate", Matching.DATE, default=True, length=8),
    _study("StudyTime", Matching.TIME, default=True, length=16),
    _study("StudyDescription", Matching.TEXT, default=True),
    _study("StudyID", Matching.TEXT, default=True, length=64),
    _study("IssuerOfPatientID", Matching.TEXT),
    _study("ModalitiesInStudy", Matching.TEXT, default=True, computed=True),
    _study("NumberOfStudyRelatedSeries", default=True, computed=True),
    _study("NumberOfStudyRelatedInstances", default=True, computed=True),
    _study("InstanceAvailability", default=True, computed=True),
    _study("TimezoneOffsetFromUTC", default=True),
    _study("SpecificCharacterSet"),
    _study("AnatomicRegionsInStudyCodeSequence"),
    _study("ProcedureCodeSequence"),
    _study("NameOfPhysiciansReadingStudy"),
    _study("AdmittingDiagnosesDescription"),
    _study("ReferencedStudySequence"),
    _study("PatientAge"),
    _study("PatientSize"),
    _study("PatientWeight"),
    _study("Occupation"),
    _study("AdditionalPatientHistory"),
    _study("OtherPatientIDsSequence"),
    _study("InstitutionName"),
    _series("SeriesInstanceUID", Matching.UID, default=True),
    _series("Modality", Matching.TEXT, default=True, length=16),
    _series("SeriesNumber", Matching.NUMBER, default=True),
    _series("SeriesDate", Matching.DATE, default=True, length=8),
    _series("SeriesTime", Matching.TIME, default=True, length=16),
    _series("SeriesDescription", Matching.TEXT, default=True),
    _series("ManufacturerModelName", Matching.TEXT, default=True),
    _series("PerformedProcedureStepStartDate", Matching.DATE, default=True, length=8),
    _series("PerformedProcedureStepStartTime", Matching.TIME, default=True, length=16),
    _series("BodyPartExamined", Matching.TEXT, default=True, length=16),
    _series("NumberOfSeriesRelatedInstances", default=True, computed=True),
    _series("RequestAttributesSequence", default=True),
    _series("Laterality"),
    _series("Manufacturer"),
    _series("StationName"),
    _series("ProtocolName"),
    _series("FrameOfReferenceUID"),
    _instance("SOPInstanceUID", Matching.UID, default=True),
    _instance("SOPClassUID", Matching.UID, default=True),
    _instance("InstanceNumber", Matching.NUMBER, default=True),
    _instance("NumberOfFrames", default=True),
    _instance("Rows", default=True),
    _instance("Columns", default=True),
    _instance("BitsAllocated", default=True),
    _instance("AvailableTransferSyntaxUID", default=True, computed=True),
    _instance("ContentDate", Matching.DATE, length=8),
    _instance("ContentTime", Matching.TIME, length=16),
    _instance("AcquisitionDateTime", Matching.DATETIME, length=32),
    _instance("ImageType"),
    _instance("ContentLabel"),
    _instance("ContentDescription"),
    _instance("ConceptNameCodeSequence"),
    _instance("DocumentTitle"),
)


@cache
def by_tag() -> dict[str, Attribute]:
    """The table keyed by tag (``"0020000D"``)."""
    return {attribute.tag: attribute for attribute in ATTRIBUTES}


@cache
def at_level(level: Level) -> tuple[Attribute, ...]:
    """The attributes kept at ``level``."""
    return tuple(attribute for attribute in ATTRIBUTES if attribute.level is level)


@cache
def indexed(level: Level) -> tuple[Attribute, ...]:
    """The attributes of ``level`` that have a SQL column filled from the file."""
    return tuple(a for a in at_level(level) if a.matching is not None and not a.computed)
