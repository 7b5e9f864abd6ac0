"""Every file that pydicom packages and pydicom-data holds, through the loader and back.

Each is stored, comes back byte for byte but for its preamble, is found by search, and has metadata and
frames; or it is refused with a reason, and listed here by name, so that a change is noticed.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.encaps import generate_frames
from rich.console import Console

from devhost.load import load
from tests.conftest import Server, StartServer
from tests.dicom_files import read_multipart, real_files
from tests.partition import path_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

NO_PREFIX = "The file is no DICOM Part 10 file: the prefix DICM is missing."
NO_PATIENT = "PatientID is missing."
NO_SOP_CLASS = "SOPClassUID is missing."
NO_STUDY = "StudyInstanceUID is missing."
CUT_OFF = "The file ends before the value of its last element."

REFUSED = {
    "DICOMDIR": NO_SOP_CLASS,
    "DICOMDIR-bigEnd": NO_SOP_CLASS,
    "DICOMDIR-empty.dcm": NO_SOP_CLASS,
    "DICOMDIR-implicit": NO_SOP_CLASS,
    "DICOMDIR-nooffset": "The file ends within an element's header.",
    "DICOMDIR-nopatient": NO_SOP_CLASS,
    "DICOMDIR-reordered": NO_SOP_CLASS,
    "ExplVR_BigEnd.dcm": NO_PATIENT,
    "ExplVR_BigEndNoMeta.dcm": NO_PREFIX,
    "ExplVR_LitEndNoMeta.dcm": NO_PREFIX,
    "GDCMJ2K_TextGBR.dcm": NO_PATIENT,
    "JPEGLSNearLossless_08.dcm": NO_STUDY,
    "JPEGLSNearLossless_16.dcm": NO_STUDY,
    "MR_truncated.dcm": CUT_OFF,
    "OT-PAL-8-face.dcm": NO_PREFIX,
    "README": NO_PREFIX,
    "SC_rgb_jls_lossy_line.dcm": NO_STUDY,
    "SC_rgb_jls_lossy_sample.dcm": NO_STUDY,
    "UN_sequence.dcm": NO_SOP_CLASS,
    "chrSQEncoding.dcm": NO_SOP_CLASS,
    "chrSQEncoding1.dcm": NO_SOP_CLASS,
    "color-pl.dcm": NO_PATIENT,
    "color-px.dcm": NO_PATIENT,
    "crayons.icc": NO_PREFIX,
    "emri_small_jpeg_2k_lossless_too_short.dcm": CUT_OFF,
    "empty_charset_LEI.dcm": NO_SOP_CLASS,
    "fall.dcm": NO_STUDY,
    "hotiron.dcm": NO_STUDY,
    "hotmetalblue.dcm": NO_STUDY,
    "meta_missing_tsyntax.dcm": "TransferSyntaxUID (0002,0010) is missing or malformed.",
    "nested_priv_SQ.dcm": NO_SOP_CLASS,
    "no_meta.dcm": NO_PREFIX,
    "no_meta_group_length.dcm": NO_SOP_CLASS,
    "pet.dcm": NO_STUDY,
    "pet20step.dcm": NO_STUDY,
    "priv_SQ.dcm": NO_SOP_CLASS,
    "rtplan.dump": NO_PREFIX,
    "rtplan_truncated.dcm": CUT_OFF,
    "rtstruct.dcm": NO_PREFIX,
    "rtstruct.dump": NO_PREFIX,
    "spring.dcm": NO_STUDY,
    "summer.dcm": NO_STUDY,
    "winter.dcm": NO_STUDY,
    "zipMR.gz": NO_PREFIX,
}


def load_files(server: Server, paths: list[Path], concurrency: int = 2) -> tuple[int, str]:
    """Exit code and output of the loader."""
    out = io.StringIO()
    code = load(paths, server.url, concurrency, Console(file=out, width=500))
    return code, out.getvalue()


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    return start_server(workers=2)


def rounds() -> list[list[Path]]:
    """The files that are not refused; those with the same identifiers are in different rounds."""
    seen: Counter[str] = Counter()
    result: list[list[Path]] = []
    for path in real_files():
        if path.name in REFUSED:
            continue
        where = path_of(path.read_bytes())
        if seen[where] == len(result):
            result.append([])
        result[seen[where]].append(path)
        seen[where] += 1
    return result


def test_files_that_are_no_instances_are_refused_with_a_reason(server: Server) -> None:
    paths = [path for path in real_files() if path.name in REFUSED]
    assert {path.name for path in paths} == REFUSED.keys()
    code, output = load_files(server, paths)
    assert code == 1
    for path in paths:
        assert f"refused {path}: 43264: DICOM100: {REFUSED[path.name]}" in output.splitlines()
    assert f"{len(paths)} files: 0 stored, 0 warned, 0 duplicate, {len(paths)} refused" in output


def test_every_other_file_is_stored_whole_found_and_served(server: Server) -> None:
    with httpx.Client(base_url=server.v2, timeout=60) as http:
        count = 0
        for paths in rounds():
            code, output = load_files(server, paths)
            assert code == 0, output
            assert "0 duplicate, 0 refused" in output
            for path in paths:
                _assert_served(http, path)
            _delete_all(http)
            count += len(paths)
        assert count == len(real_files()) - len([p for p in real_files() if p.name in REFUSED]) == 220


def _assert_served(http: httpx.Client, path: Path) -> None:
    data = path.read_bytes()
    where = path_of(data)
    instance = where.rpartition("/")[2]

    stored = http.get(where, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert stored.status_code == 200, path.name
    assert stored.content == bytes(128) + data[128:], path.name

    found = http.get(f"instances?SOPInstanceUID={instance}")
    assert found.status_code == 200, path.name
    assert [item["00080018"]["Value"] for item in found.json()] == [[instance]], path.name

    (metadata,) = http.get(f"{where}/metadata").json()
    assert metadata["00080018"]["Value"] == [instance], path.name
    uris = [attribute["BulkDataURI"] for attribute in metadata.values() if "BulkDataURI" in attribute]
    for uri in uris:
        assert http.get(uri).status_code == 200, (path.name, uri)
    if not {"7FE00010", "7FE00008", "7FE00009"} & metadata.keys():
        assert http.get(f"{where}/frames/1").status_code == 404, path.name
        return
    assert uris, path.name
    (frames,) = metadata.get("00280008", {}).get("Value", [1])
    frames = 1 if frames == "1A" else frames  # badVR.dcm
    response = http.get(f"{where}/frames/{','.join(str(n + 1) for n in range(frames))}")
    assert response.status_code == 200, (path.name, response.text)
    parts = read_multipart(response.headers["Content-Type"], response.content)
    assert [content for _, content in parts] == _frames(data, frames), path.name


def _frames(data: bytes, count: int) -> list[bytes]:
    """The bytes of the frames as pydicom finds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(io.BytesIO(data))
    value = ds.PixelData
    if ds["PixelData"].is_undefined_length:
        return list(generate_frames(value, number_of_frames=count))
    samples = 2 if ds.PhotometricInterpretation == "YBR_FULL_422" else ds.SamplesPerPixel
    bits = ds.Rows * ds.Columns * samples * ds.BitsAllocated
    number = int.from_bytes(value, "little")
    frames = (number >> index * bits & (1 << bits) - 1 for index in range(count))
    return [frame.to_bytes((bits + 7) // 8, "little") for frame in frames]


def _delete_all(http: httpx.Client) -> None:
    while (found := http.get("studies?limit=200")).status_code == 200:
        for study in found.json():
            assert http.delete(f"studies/{study['0020000D']['Value'][0]}").status_code == 204


def test_all_of_them_at_once_are_stored_or_reported_as_duplicates(server: Server) -> None:
    code, output = load_files(server, real_files(), 1)  # of two at a time one may be told 45071
    assert code == 1
    summary = next(line for line in output.splitlines() if " files: " in line)
    numbers = [int(word) for word in summary.replace(":", "").split() if word.isdigit()]
    files, stored, warned, duplicates, refused = numbers
    assert files == stored + warned + duplicates + refused == len(real_files())
    assert stored + warned == len(rounds()[0])
    assert refused == len([path for path in real_files() if path.name in REFUSED])
