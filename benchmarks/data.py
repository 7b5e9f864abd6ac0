"""The files the benchmarks move: CT images of 0.5 MB with noise for pixels, as real ones compress badly."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def ct_series(count: int, study: str = "", series: str = "") -> list[bytes]:
    """``count`` CT images of one series, 512 x 512 pixels of 16 bits, with the header of a real one."""
    template = dcmread(get_testdata_file("CT_small.dcm"))
    template.remove_private_tags()
    template.StudyInstanceUID = study or generate_uid()
    template.SeriesInstanceUID = series or generate_uid()
    template.Rows = template.Columns = 512
    template.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "DataSetTrailingPadding" in template:
        del template.DataSetTrailingPadding
    random = np.random.default_rng(1)
    files = []
    for number in range(count):
        template.SOPInstanceUID = generate_uid()
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.InstanceNumber = number + 1
        template.PixelData = random.integers(0, 4096, 512 * 512, dtype=np.uint16).tobytes()
        buffer = BytesIO()
        dcmwrite(buffer, template, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files
