"""What the server can match, as its conformance statement lists it; a test compares the two.

Keys beyond these are optional ones that are not supported: they are returned, and not matched
(PS3.4 §C.2.2.1.3), and the answers say so by the status 0xFF01.
"""

from __future__ import annotations

PATIENT = frozenset(
    {
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "IssuerOfPatientID",
        "OtherPatientNames",
    }
)
STUDY = PATIENT | frozenset(
    {
        "StudyInstanceUID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
        "StudyID",
        "ModalitiesInStudy",
        "NameOfPhysiciansReadingStudy",
        "AdmittingDiagnosesDescription",
        "PatientAge",
        "PatientSize",
        "PatientWeight",
        "Occupation",
        "InstitutionName",
    }
)
SERIES = STUDY | frozenset(
    {
        "SeriesInstanceUID",
        "Modality",
        "SeriesNumber",
        "SeriesDate",
        "SeriesTime",
        "SeriesDescription",
        "ManufacturerModelName",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "BodyPartExamined",
        "Laterality",
        "Manufacturer",
        "StationName",
        "ProtocolName",
        "FrameOfReferenceUID",
    }
)
IMAGE = SERIES | frozenset(
    {
        "SOPInstanceUID",
        "SOPClassUID",
        "InstanceNumber",
        "ContentDate",
        "ContentTime",
        "AcquisitionDateTime",
        "ImageType",
        "ContentLabel",
        "ContentDescription",
    }
)
MATCHED = {"PATIENT": PATIENT, "STUDY": STUDY | {"Modality"}, "SERIES": SERIES, "IMAGE": IMAGE}
"""The keywords that are matched at each level."""
