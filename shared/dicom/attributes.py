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
    """The level of a resource. Attributes are kept at the lower three: those of the patient at the study."""

    PATIENT = 0
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
    """One row of the table, or an extended query tag.

    ``keyword`` names the attribute in queries; within a sequence it is a dotted path of keywords. It is
    kept at ``level``, and matched as ``matching`` says (None: kept in the level's JSON alone). ``default``
    says that QIDO returns it unasked; ``computed`` that the server maintains it instead of reading it from
    the file; ``patient`` that it belongs to the patient. Values are indexed in a SQL column of the level's
    table, or ``in_values``: as rows of ``attribute_value``, which takes any number of values an instance.

    What a query tag defines and the dictionary does not know: ``path`` is the tags with dots between them,
    ``declared_vr`` the VR, ``creator`` the private creator of the last tag, and ``name`` what stands for the
    attribute in ``attribute_value``.
    """

    keyword: str
    level: Level
    matching: Matching | None = None
    default: bool = False
    computed: bool = False
    length: int = 64
    patient: bool = False
    in_values: bool = False
    path: str = ""
    declared_vr: str = ""
    creator: str = ""
    name: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags on the way to the attribute, as DICOM JSON writes them; but for its own, sequences."""
        if self.path:
            return tuple(self.path.split("."))
        return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in self.keyword.split("."))

    @property
    def tag(self) -> str:
        """The tag of the attribute in the data set: its own, or that of the outermost sequence it is in."""
        return self.tags[0]

    @property
    def vr(self) -> str:
        """The VR; of the dictionary's alternatives the first."""
        return self.declared_vr or str(dictionary_VR(int(self.tags[-1], 16))).split(" ")[0]

    @property
    def value_name(self) -> str:
        """What stands for the attribute in ``attribute_value``."""
        return self.name or ".".join(self.tags)

    @property
    def column(self) -> str:
        """The SQL column: the keyword in snake case, or empty where the attribute has none."""
        if self.matching is None or self.in_values:
            return ""
        words = "".join("_" + c.lower() if c.isupper() else c for c in self.keyword)
        for acronym in ("_u_i_d", "_i_d", "_s_o_p"):
            words = words.replace(acronym, "_" + acronym.replace("_", ""))
        return words.lstrip("_")

    @property
    def column_length(self) -> int:
        """Characters the SQL column holds; longer shadow values are cut."""
        return 32 if self.matching in (Matching.DATE, Matching.TIME, Matching.DATETIME) else self.length


MATCHING_OF_VR: dict[str, Matching] = {
    "UI": Matching.UID,
    "PN": Matching.PERSON_NAME,
    "DA": Matching.DATE,
    "TM": Matching.TIME,
    "DT": Matching.DATETIME,
    **dict.fromkeys(("AE", "AS", "AT", "CS", "LO", "SH", "UC", "UT"), Matching.TEXT),
    **dict.fromkeys(("DS", "FD", "FL", "IS", "SL", "SS", "UL", "US"), Matching.NUMBER),
}
"""How an attribute of a VR is matched, for attributes that are not rows of the table."""

LENGTH_OF_VR: dict[str, int] = {"PN": 324}
"""Characters of a value that are indexed; 64 of other VRs."""


def _study(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.STUDY, matching, **options)  # type: ignore[arg-type]


def _series(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.SERIES, matching, **options)  # type: ignore[arg-type]


def _instance(keyword: str, matching: Matching | None = None, **options: bool | int) -> Attribute:
    return Attribute(keyword, Level.INSTANCE, matching, **options)  # type: ignore[arg-type]


ATTRIBUTES: tuple[Attribute, ...] = (
    _study("StudyInstanceUID", Matching.UID, default=True),
    _study("PatientName", Matching.PERSON_NAME, default=True, length=324, patient=True),
    _study("PatientID", Matching.TEXT, default=True, patient=True),
    _study("PatientBirthDate", Matching.DATE, default=True, length=8, patient=True),
    _study("PatientSex", Matching.TEXT, default=True, length=16, patient=True),
    _study("AccessionNumber", Matching.TEXT, default=True, length=64),
    _study("ReferringPhysicianName", Matching.PERSON_NAME, default=True, length=324),
    _study("StudyDate", Matching.DATE, default=True, length=8),
    _study("StudyTime", Matching.TIME, default=True, length=16),
    _study("StudyDescription", Matching.TEXT, default=True),
    _study("StudyID", Matching.TEXT, default=True, length=64),
    _study("IssuerOfPatientID", Matching.TEXT, patient=True),
    _study("ModalitiesInStudy", Matching.TEXT, default=True, computed=True),
    _study("NumberOfStudyRelatedSeries", default=True, computed=True),
    _study("NumberOfStudyRelatedInstances", default=True, computed=True),
    _study("InstanceAvailability", default=True, computed=True),
    _study("TimezoneOffsetFromUTC", default=True),
    _study("SpecificCharacterSet"),
    _study("AnatomicRegionsInStudyCodeSequence"),
    _study("ProcedureCodeSequence"),
    _study("NameOfPhysiciansReadingStudy", Matching.PERSON_NAME, length=324, in_values=True),
    _study("AdmittingDiagnosesDescription", Matching.TEXT, in_values=True),
    _study("ReferencedStudySequence"),
    _study("PatientAge", Matching.TEXT, length=16, in_values=True),
    _study("PatientSize", Matching.NUMBER, in_values=True),
    _study("PatientWeight", Matching.NUMBER, in_values=True),
    _study("Occupation", Matching.TEXT, in_values=True),
    _study("AdditionalPatientHistory"),
    _study("OtherPatientIDsSequence", patient=True),
    _study("OtherPatientNames", Matching.PERSON_NAME, length=324, in_values=True, patient=True),
    _study("IssuerOfAccessionNumberSequence"),
    _study("InstitutionName", Matching.TEXT, in_values=True),
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
    _series("Laterality", Matching.TEXT, length=16, in_values=True),
    _series("Manufacturer", Matching.TEXT, in_values=True),
    _series("StationName", Matching.TEXT, in_values=True),
    _series("ProtocolName", Matching.TEXT, in_values=True),
    _series("FrameOfReferenceUID", Matching.UID, in_values=True),
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
    _instance("ImageType", Matching.TEXT, length=16, in_values=True),
    _instance("ContentLabel", Matching.TEXT, length=16, in_values=True),
    _instance("ContentDescription", Matching.TEXT, in_values=True),
    _instance("ConceptNameCodeSequence"),
    _instance("DocumentTitle"),
)


_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")

_ITEMS: dict[str, tuple[str, ...]] = {
    "ProcedureCodeSequence": _CODE,
    "AnatomicRegionsInStudyCodeSequence": _CODE,
    "OtherPatientIDsSequence": ("PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
    "IssuerOfAccessionNumberSequence": ("LocalNamespaceEntityID", "UniversalEntityID"),
    "ReferencedStudySequence": ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID"),
    "RequestAttributesSequence": (
        "AccessionNumber",
        "StudyInstanceUID",
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "ScheduledProcedureStepID",
        "ScheduledProcedureStepDescription",
        "RequestedProcedureCodeSequence.CodeValue",
        "RequestedProcedureCodeSequence.CodingSchemeDesignator",
        "ScheduledProtocolCodeSequence.CodeValue",
        "ScheduledProtocolCodeSequence.CodingSchemeDesignator",
    ),
    "ConceptNameCodeSequence": _CODE,
}
"""What is matched in the items of the sequences of the table (PS3.4 §C.2.2.2.6)."""


def _in_sequence(sequence: Attribute, keyword: str) -> Attribute:
    vr = str(dictionary_VR(tag_for_keyword(keyword.rpartition(".")[2]) or 0))
    return Attribute(
        f"{sequence.keyword}.{keyword}",
        sequence.level,
        MATCHING_OF_VR[vr],
        length=LENGTH_OF_VR.get(vr, 64),
        patient=sequence.patient,
        in_values=True,
    )


@cache
def in_sequences() -> tuple[Attribute, ...]:
    """The attributes that are matched within the sequences of the table; results hold whole sequences."""
    sequences = {attribute.keyword: attribute for attribute in ATTRIBUTES}
    return tuple(
        _in_sequence(sequences[sequence], keyword)
        for sequence, keywords in _ITEMS.items()
        for keyword in keywords
    )


@cache
def by_tag() -> dict[str, Attribute]:
    """The table keyed by tag (``"0020000D"``)."""
    return {attribute.tag: attribute for attribute in ATTRIBUTES}


@cache
def by_path() -> dict[str, Attribute]:
    """All that may be matched, by tag or by tags with dots between them (``"00400275.00400009"``)."""
    matched = (a for a in (*ATTRIBUTES, *in_sequences()) if a.matching is not None)
    return {".".join(attribute.tags): attribute for attribute in matched}


@cache
def at_level(level: Level) -> tuple[Attribute, ...]:
    """The attributes kept at ``level``."""
    return tuple(attribute for attribute in ATTRIBUTES if attribute.level is level)


@cache
def indexed(level: Level) -> tuple[Attribute, ...]:
    """The attributes of ``level`` that have a SQL column filled from the file."""
    return tuple(a for a in at_level(level) if a.column and not a.computed)


@cache
def in_values(level: Level) -> tuple[Attribute, ...]:
    """The attributes of ``level`` that are indexed as rows of ``attribute_value``."""
    return tuple(a for a in by_path().values() if a.in_values and a.level is level)
