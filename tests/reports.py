"""Structured reports for tests, made with pydicom and highdicom."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.uid import generate_uid

from tests.dicom_files import make_dataset, make_file

BASIC_TEXT = "1.2.840.10008.5.1.4.1.1.88.11"
COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
CT = "1.2.840.10008.5.1.4.1.1.2"
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def code(value: str, meaning: str, scheme: str = "99TEST") -> Dataset:
    """A code item."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def item(value_type: str, name: str = "", relationship: str = "CONTAINS", **attributes: Any) -> Dataset:
    """A content item."""
    ds = Dataset()
    ds.RelationshipType, ds.ValueType = relationship, value_type
    if name:
        ds.ConceptNameCodeSequence = [code("1", name)]
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    if value_type == "CONTAINER":
        ds.ContinuityOfContent = "SEPARATE"
    return ds


def reference(sop_class: str, instance: str, **attributes: Any) -> Dataset:
    """An item of ReferencedSOPSequence."""
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = sop_class, instance
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def evidence(study: str, series: str, *references: Dataset) -> Dataset:
    """An item of CurrentRequestedProcedureEvidenceSequence."""
    of_series, of_study = Dataset(), Dataset()
    of_series.SeriesInstanceUID, of_series.ReferencedSOPSequence = series, list(references)
    of_study.StudyInstanceUID, of_study.ReferencedSeriesSequence = study, [of_series]
    return of_study


def report(sop_class: str, *content: Dataset, title: str = "Imaging Report", **attributes: Any) -> Dataset:
    """A structured report."""
    ds = make_dataset(frames=0, SOPClassUID=sop_class, Modality="SR", SpecificCharacterSet="ISO_IR 192")
    ds.PatientSex, ds.PatientBirthDate = "F", "19700102"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.ContentDate, ds.ContentTime = "20240229", "101112"
    ds.StudyTime, ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "", "", ""
    ds.Manufacturer = "Acme"
    if sop_class != KEY_OBJECTS:
        ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [code("126000", title, "DCM")]
    ds.ContentSequence = list(content)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def measurement(name: str, value: str, unit: str, meaning: str, *children: Dataset) -> Dataset:
    """A NUM item."""
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = value, [code(unit, meaning, "UCUM")]
    num = item("NUM", name, MeasuredValueSequence=[measured])
    if children:
        num.ContentSequence = list(children)
    return num


def basic_text() -> Dataset:
    """Sections of text with what is hard to show."""
    observation = item(
        "TEXT", "Finding", TextValue=f"Fracture of the 3rd rib.\r\n  Größe < 3 cm & > 1 cm {SCRIPT}"
    )
    section = item("CONTAINER", "Findings", ContentSequence=[observation])
    observer = item("PNAME", "Person Observer Name", "HAS OBS CONTEXT", PersonName="Doe^Jane^M^Dr.^PhD")
    impression = item("CONTAINER", f"Impression {SCRIPT}")
    return report(BASIC_TEXT, observer, section, impression, PatientName="Yamada^<b>Tarou</b>=山田^太郎")


def every_value_type(study: str, series: str, image: str) -> Dataset:
    """A Comprehensive 3D SR with an item of each value type and each relationship."""
    point = item("SCOORD", "Outline", "INFERRED FROM", GraphicType="POLYLINE", GraphicData=[1.5, 2, 3, 4.25])
    seen = item("IMAGE", "Source", "SELECTED FROM")
    seen.ReferencedSOPSequence = [reference(CT, image, ReferencedFrameNumber=[1, 2])]
    point.ContentSequence = [seen]
    space = item(
        "SCOORD3D",
        "Volume",
        GraphicType="POINT",
        GraphicData=[1, 2, 3],
        ReferencedFrameOfReferenceUID="1.2.3.4",
    )
    times = item("TCOORD", "Beats", TemporalRangeType="POINT", ReferencedTimeOffsets=["1.50", "2.25"])
    wave = item("WAVEFORM", "Trace")
    wave.ReferencedSOPSequence = [
        reference("1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.3.5", ReferencedWaveformChannels=[1, 2])
    ]
    other = item("COMPOSITE", "Earlier report", ReferencedSOPSequence=[reference(BASIC_TEXT, "1.2.3.6")])
    again = Dataset()
    again.RelationshipType, again.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 1]
    nothing = item("NUM", "Absent", MeasuredValueSequence=[])
    nothing.NumericValueQualifierCodeSequence = [code("114006", "Measurement failure", "DCM")]
    return report(
        COMPREHENSIVE_3D,
        measurement("Diameter", "3.50", "mm", "millimeter", point),
        item("CODE", "Laterality", "HAS CONCEPT MOD", ConceptCodeSequence=[code("7771000", "Left", "SCT")]),
        item("DATE", "Day", Date="20240301"),
        item("TIME", "Hour", Time="131415.5"),
        item("DATETIME", "Moment", DateTime="20240301131415+0100"),
        item("UIDREF", "Tracking", UID="1.2.3.4.5.6"),
        item("PNAME", "Reader", PersonName="Roe^Richard"),
        space,
        times,
        wave,
        other,
        again,
        nothing,
        item("TABLE", "New"),
        StudyInstanceUID=study,
        CurrentRequestedProcedureEvidenceSequence=[evidence(study, series, reference(CT, image))],
    )


def key_objects(study: str, series: str, image: str) -> Dataset:
    """A Key Object Selection: images without concept names."""
    chosen = item("IMAGE", ReferencedSOPSequence=[reference(CT, image)])
    described = item("TEXT", "Key Object Description", TextValue="For the conference")
    ds = report(
        KEY_OBJECTS,
        described,
        chosen,
        title="Of Interest",
        StudyInstanceUID=study,
        Modality="KO",
        CurrentRequestedProcedureEvidenceSequence=[evidence(study, series, reference(CT, image))],
    )
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "2010"
    ds.ContentTemplateSequence = [template]
    return ds


def measurement_report() -> Dataset:
    """A TID 1500 measurement report made with highdicom."""
    from highdicom.sr import (
        CodedConcept,
        Comprehensive3DSR,
        FindingSite,
        ImageRegion,
        Measurement,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
        PersonObserverIdentifyingAttributes,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
        TrackingIdentifier,
    )
    from highdicom.sr.enum import GraphicTypeValues
    from pydicom.sr.codedict import codes

    image = dcmread(DicomBytesIO(make_file(InstanceNumber=1, SeriesNumber=1)))
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime"):
        setattr(image, keyword, "")
    image.ReferringPhysicianName = ""
    person = PersonObserverIdentifyingAttributes(name="Roe^Richard")
    context = ObservationContext(
        observer_person_context=ObserverContext(codes.DCM.Person, observer_identifying_attributes=person)
    )
    outline = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 1.0]])
    region = ImageRegion(GraphicTypeValues.POLYLINE, outline, SourceImageForRegion.from_source_image(image))
    group = PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier="Lesion 7"),
        referenced_region=region,
        finding_type=CodedConcept("4147007", "SCT", "Mass"),
        finding_sites=[FindingSite(CodedConcept("39607008", "SCT", "Lung structure"))],
        measurements=[Measurement(codes.SCT.Area, 12.5, codes.UCUM.SquareMillimeter)],
    )
    content = MeasurementReport(
        observation_context=context,
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
    )
    return Comprehensive3DSR(
        evidence=[image],
        content=content[0],
        series_number=2,
        series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Acme",
        is_complete=True,
        is_final=True,
    )
