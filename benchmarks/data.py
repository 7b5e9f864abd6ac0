"""The files the benchmarks move: CT images of 0.5 MB with noise for pixels, as real ones compress badly."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def ct_series(count: int, study: str = "", series: str = "") -> list[bytes]:
    """``count`` CT images of one series, 512 x 512 pixels of 16 bits, with the header of a real one."""
    template = ct_image(512)
    template.StudyInstanceUID = study or template.StudyInstanceUID
    template.SeriesInstanceUID = series or template.SeriesInstanceUID
    random = np.random.default_rng(1)
    files = []
    for number in range(count):
        template.SOPInstanceUID = generate_uid()
        template.InstanceNumber = number + 1
        template.PixelData = random.integers(0, 4096, 512 * 512, dtype=np.uint16).tobytes()
        files.append(written(template, ExplicitVRLittleEndian))
    return files


def ct_image(side: int, frames: int = 1) -> Dataset:
    """The header of a real CT image in a study of its own, for ``side`` x ``side`` pixels of 16 bits."""
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    ds.remove_private_tags()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = generate_uid()
    ds.Rows = ds.Columns = side
    if frames > 1:
        ds.NumberOfFrames = frames
    if "DataSetTrailingPadding" in ds:
        del ds.DataSetTrailingPadding
    return ds


def written(ds: Dataset, transfer_syntax: str) -> bytes:
    """The data set as a file."""
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()
