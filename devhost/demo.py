"""Sample studies worth looking at, made here: no picture of any patient, the same UIDs every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    VLPhotographicImageStorage,
    generate_uid,
)

Array = np.ndarray[Any, Any]

_SLICES, _SIDE = 60, 256
_AIR, _LUNG, _FAT, _MUSCLE, _BLOOD, _BONE = -1000, -820, -90, 45, 130, 700


def write(folder: Path) -> list[Path]:
    """Write the studies into ``folder``; the paths of the files."""
    paths = []
    for number, ds in enumerate(_datasets()):
        path = folder / f"{number:03}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _datasets() -> Iterator[Dataset]:
    volume, heart = _chest()
    slices = list(_ct(volume))
    yield from slices
    segmentation = _segmentation(slices, heart)
    yield segmentation
    yield _measurement(slices, segmentation, heart)
    yield _ultrasound()
    yield _photograph()
    yield _report()


def uid(*names: object) -> str:
    """The UID of a study, by its name, or of what else ``names`` say."""
    return str(generate_uid(entropy_srcs=["demo", *map(str, names)]))


def _dataset(sop_class: str, study: str, modality: str, instance: int = 1, **attributes: Any) -> Dataset:
    """A data set of the demo patient of ``study``."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid(study, modality, instance)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, modality)
    ds.PatientName, ds.PatientID = f"Demo^{study}", f"DEMO-{modality}"
    ds.PatientBirthDate, ds.PatientSex = "19700101", "O"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20240229"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "101500"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", f"A-{modality}", ""
    ds.StudyDescription, ds.SeriesDescription = f"Demo: {study}", study
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, instance
    ds.Manufacturer = "Medical Imaging Server for DICOM"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _set_pixels(ds: Dataset, pixels: Array, colour: bool) -> None:
    bits = pixels.dtype.itemsize * 8
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"


# --- a chest in CT, and its heart as a segmentation --------------------------------------------------


def _chest() -> tuple[Array, Array]:
    """A chest of ellipsoids in Hounsfield units (slices, rows, columns), and which voxels are heart."""
    z, y, x = np.meshgrid(
        np.linspace(-1, 1, _SLICES), np.linspace(-1, 1, _SIDE), np.linspace(-1, 1, _SIDE), indexing="ij"
    )

    def inside(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        return np.array(
            ((z - centre[0]) / radii[0]) ** 2
            + ((y - centre[1]) / radii[1]) ** 2
            + ((x - centre[2]) / radii[2]) ** 2
            < 1
        )

    volume = np.full(x.shape, float(_AIR))
    volume[inside((0, 0, 0), (3, 0.66, 0.9))] = _FAT
    volume[inside((0, 0, 0), (3, 0.6, 0.84))] = _MUSCLE
    ribs = inside((0, 0, 0), (3, 0.57, 0.8)) & ~inside((0, 0, 0), (3, 0.52, 0.75))
    volume[ribs & (np.sin(z * 18 + np.abs(x) * 4) > 0.5)] = _BONE
    for side in (-1, 1):
        volume[inside((0.1, -0.03, 0.38 * side), (0.95, 0.42, 0.3))] = _LUNG
        for vessel in range(9):
            way = vessel / 9 * 2 * np.pi
            at = (0.1 + 0.5 * np.sin(way * 2), 0.22 * np.sin(way), side * (0.38 + 0.16 * np.cos(way)))
            volume[inside(at, (0.3, 0.018, 0.018))] = _BLOOD
    heart = inside((0.25, -0.1, 0.12), (0.5, 0.27, 0.25))
    volume[heart] = _MUSCLE
    volume[inside((0.28, -0.1, 0.18), (0.32, 0.15, 0.12))] = _BLOOD
    volume[inside((0, 0.18, 0.1), (3, 0.07, 0.07))] = _BLOOD
    volume[inside((0, 0.36, 0), (3, 0.13, 0.13))] = _BONE
    volume[inside((0, 0.38, 0), (3, 0.06, 0.06))] = _MUSCLE
    noise = np.random.default_rng(1).normal(0, 12, volume.shape)
    return np.rint(volume + noise).astype("<i2"), heart


def _ct(volume: Array) -> Iterator[Dataset]:
    for number, pixels in enumerate(volume, 1):
        ds = _dataset(CTImageStorage, "CT Chest", "CT", number)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("chest frame"), ""
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-192, -192, -5 * number]
        ds.PixelSpacing, ds.SliceThickness, ds.KVP = [1.5, 1.5], 5, 120
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
        ds.WindowCenter, ds.WindowWidth = [40, -600], [400, 1500]
        ds.WindowCenterWidthExplanation = ["Soft tissue", "Lung"]
        _set_pixels(ds, pixels, colour=False)
        yield ds


def _segmentation(slices: list[Dataset], heart: Array) -> Dataset:
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )
    from pydicom.sr.codedict import codes

    segment = SegmentDescription(
        1, "Heart", codes.SCT.Organ, codes.SCT.Heart, SegmentAlgorithmTypeValues.MANUAL
    )
    ds: Dataset = Segmentation(
        slices,
        heart.astype(np.uint8),
        SegmentationTypeValues.BINARY,
        [segment],
        uid("CT Chest", "SEG"),
        2,
        uid("CT Chest", "SEG", 1),
        1,
        "Medical Imaging Server for DICOM",
        "Demo",
        "1",
        "1",
        series_description="Heart",
    )
    return ds


def _measurement(slices: list[Dataset], segmentation: Dataset, heart: Array) -> Dataset:
    """The volume of the heart as a structured report (PS3.16 TID 1500)."""
    from highdicom import sr
    from pydicom.sr.codedict import Code, codes

    observer = sr.ObservationContext(
        observer_person_context=sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes("Demo^Reader"),
        )
    )
    series = sr.SourceSeriesForSegmentation(slices[0].SeriesInstanceUID)
    spacing = slices[0].PixelSpacing[0] * slices[0].PixelSpacing[1] * slices[0].SliceThickness
    volume = sr.Measurement(
        name=codes.SCT.Volume,
        value=round(float(heart.sum()) * float(spacing) / 1000, 1),
        unit=Code("ml", "UCUM", "milliliter"),
    )
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid("CT Chest", "heart"), "Heart"),
        referenced_segment=sr.ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, 1, source_series=series
        ),
        finding_type=codes.SCT.Heart,
        measurements=[volume],
    )
    report = sr.MeasurementReport(
        observation_context=observer,
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    ds: Dataset = sr.ComprehensiveSR(
        evidence=[*slices, segmentation],
        content=report,
        series_instance_uid=uid("CT Chest", "SR"),
        series_number=3,
        sop_instance_uid=uid("CT Chest", "SR", 1),
        instance_number=1,
        manufacturer="Medical Imaging Server for DICOM",
        series_description="Volume of the heart",
        is_complete=True,
        is_final=True,
        is_verified=False,
    )
    return ds


# --- others ------------------------------------------------------------------------------------------


def _ultrasound() -> Dataset:
    """A fan of speckle with a chamber that beats, 30 frames in colour."""
    ds = _dataset(UltrasoundMultiFrameImageStorage, "US Cine", "US")
    y, x = np.mgrid[0:240, 0:320]
    depth, angle = np.hypot(x - 160, y + 20), np.arctan2(x - 160, y + 20)
    fan = (depth < 250) & (np.abs(angle) < 0.6)
    speckle = np.random.default_rng(2).gamma(2.0, 30, y.shape) * np.exp(-depth / 260)
    frames = []
    for number in range(30):
        beat = 1 + 0.25 * np.sin(2 * np.pi * number / 30)
        chamber = np.hypot((x - 160) / 52, (y - 135) / 62) / beat
        grey = np.where(chamber < 1, speckle * 0.15, np.where(chamber < 1.25, speckle * 2.2, speckle))
        image = np.repeat(np.where(fan, np.clip(grey, 0, 255), 0)[..., None], 3, 2)
        flow = fan & (np.hypot(x - 160, y - 120 - 25 * np.cos(2 * np.pi * number / 30)) < 22)
        image[flow] = [200, 60, 30] if np.cos(2 * np.pi * number / 30) > 0 else [40, 70, 210]
        frames.append(image.astype(np.uint8))
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = len(frames), 40, 0x00181063
    _set_pixels(ds, np.stack(frames), colour=True)
    return ds


def _photograph() -> Dataset:
    """Skin with a mole."""
    ds = _dataset(VLPhotographicImageStorage, "Photograph", "XC", ImageType=["ORIGINAL", "PRIMARY"])
    y, x = np.mgrid[0:480, 0:640]
    grain = np.random.default_rng(3).normal(0, 5, (480, 640))
    skin = np.stack([225 + grain, 178 + grain, 150 + grain], 2) - (np.hypot(x - 320, y - 240) / 9)[..., None]
    edge = np.hypot((x - 320) / 95, (y - 240) / 70) + 0.12 * np.sin(7 * np.arctan2(y - 240, x - 320))
    mole = np.clip(1.25 - edge, 0, 1)[..., None]
    image = skin * (1 - mole) + np.array([70, 38, 28]) * mole
    _set_pixels(ds, np.clip(image, 0, 255).astype(np.uint8), colour=True)
    return ds


def _report() -> Dataset:
    pdf = _pdf("Demo report: nothing was found, because nobody was examined.")
    return _dataset(
        EncapsulatedPDFStorage,
        "PDF Report",
        "DOC",
        BurnedInAnnotation="YES",
        DocumentTitle="Demo report",
        MIMETypeOfEncapsulatedDocument="application/pdf",
        EncapsulatedDocumentLength=len(pdf),
        EncapsulatedDocument=pdf + b"\0" * (len(pdf) % 2),
        ConceptNameCodeSequence=[],
    )


def _pdf(text: str) -> bytes:
    """One page of text (ISO 32000-1 §7.5)."""
    content = f"BT /F1 16 Tf 60 760 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % count + table + trailer
