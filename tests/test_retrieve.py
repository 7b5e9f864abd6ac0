"""Retrieve over HTTP (PS3.18 §10.4): instances, frames and bulk data, as stored and converted."""

from __future__ import annotations

import random
from typing import Any

import httpx
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.pixels import pack_bits
from pydicom.uid import (
    JPEG2000,
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    generate_uid,
)

from tests.conftest import Server
from tests.dicom_files import codestream, frame, make_dataset, make_file, real_files, to_file
from tests.partition import Partition, path_of, problem
from tests.test_part10 import deflated

IMPLICIT, EXPLICIT, BIG, DEFLATED = (
    str(uid)
    for uid in (
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    )
)
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
SINGLE_AS_STORED = "application/dicom; transfer-syntax=*"
FRAMES_AS_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
REAL = {path.name: path for path in real_files()}


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def read(data: bytes) -> Dataset:
    return dcmread(DicomBytesIO(data))


# --- instances ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(archive: Partition) -> dict[str, bytes]:
    """A study of two series, of two instances and one: files by the path of the instance."""
    uid, first, second = (str(generate_uid()) for _ in range(3))
    files = [make_file(uid, series) for series in (first, first, second)]
    return dict(zip(archive.keep(*files), files, strict=True))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_level_comes_as_multipart_with_a_header_block_a_part(
    archive: Partition, study: dict[str, bytes], levels: int
) -> None:
    path = "/".join(next(iter(study)).split("/")[: 2 * levels])
    expected = {p: data for p, data in study.items() if p.startswith(path)}
    for accept in (AS_STORED, "*/*", 'multipart/related;type=application/dicom;transfer-syntax="*"', ""):
        response = archive.get(path, accept)
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith(
            'multipart/related; type="application/dicom"; boundary='
        )
        parts = {
            headers["content-location"]: (headers, data) for headers, data in archive.parts(path, accept)
        }
        assert {u.removeprefix(f"{archive.root}/"): data for u, (_, data) in parts.items()} == expected
        for headers, data in parts.values():
            assert headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
            assert int(headers["content-length"]) == len(data)


def test_an_instance_alone_comes_as_a_single_part(archive: Partition, study: dict[str, bytes]) -> None:
    path, data = next(iter(study.items()))
    response = archive.get(path, SINGLE_AS_STORED)
    assert response.content == data
    assert response.headers["Content-Type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
    assert response.headers["Content-Length"] == str(len(data))


def test_a_study_or_series_does_not_come_as_a_single_part(
    archive: Partition, study: dict[str, bytes]
) -> None:
    path = next(iter(study))
    for levels in (2, 4):
        above = "/".join(path.split("/")[:levels])
        assert "multipart" in problem(archive.get(above, "application/dicom"), 406)


@pytest.mark.parametrize("accept", ["image/png", "text/html", "application/dicom+json", "multipart/mixed"])
def test_another_media_type_is_406(archive: Partition, study: dict[str, bytes], accept: str) -> None:
    assert problem(archive.get(next(iter(study)), accept), 406)


def test_several_accept_headers_count_as_one(archive: Partition, study: dict[str, bytes]) -> None:
    url = f"{archive.root}/{next(iter(study))}"
    response = archive.http.get(url, headers=[("Accept", "text/html"), ("Accept", SINGLE_AS_STORED)])
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "studies/{new}",
        "studies/{study}/series/{new}",
        "studies/{study}/series/{series}/instances/{new}",
        "studies/{new}/series/{series}/instances/{instance}",
    ],
)
def test_what_does_not_exist_is_404(archive: Partition, study: dict[str, bytes], path: str) -> None:
    steps = next(iter(study)).split("/")
    path = path.format(new=generate_uid(), study=steps[1], series=steps[3], instance=steps[5])
    for below in ("", "/metadata", *(("/frames/1", "/bulkdata/7FE00010") if "instances" in path else ())):
        assert "does not exist" in problem(archive.get(path + below), 404)
        assert archive.request("HEAD", path + below).status_code == 404


def test_the_same_instance_of_another_partition_is_404(
    server: Server, archive: Partition, study: dict[str, bytes]
) -> None:
    assert problem(Partition(server).get(next(iter(study))), 404)


@pytest.mark.parametrize(
    "path", ["studies/1_2", "studies/1/series/{x}", "studies/1/series/2/instances/a%20b"]
)
def test_a_malformed_identifier_is_400(archive: Partition, path: str) -> None:
    assert problem(archive.get(path.replace("{x}", "x" * 65)), 400)


# --- conversions --------------------------------------------------------------------------------------

NATIVE_FILES = [
    "CT_small.dcm",  # explicit, 16 bits, private elements, trailing padding
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "OBXXXX1A_expb_2frame.dcm",  # big endian, palette
    "SC_rgb_expb_16bit_2frame.dcm",
    "SC_rgb_32bit_2frame.dcm",
    "image_dfl.dcm",  # deflated
    "liver_expb_1frame.dcm",  # one bit
    "rtdose_expb.dcm",  # 32 bits, 15 frames
    "rtplan.dcm",  # implicit, no pixels, sequences
    "waveform_ecg.dcm",
    "mlut_18.dcm",
    "chrJapMultiExplicitIR6.dcm",
]


def alone(server: Server, data: bytes) -> tuple[Partition, str]:
    """A partition with one file, for many of the real files have the same identifiers; and its path."""
    archive = Partition(server)
    return archive, archive.keep(data)[0]


@pytest.fixture(scope="module")
def native(server: Server) -> dict[str, tuple[Partition, str, bytes]]:
    """Where real native files are stored, and their bytes, by name."""
    files = {name: REAL[name].read_bytes() for name in NATIVE_FILES}
    return {name: (*alone(server, data), bytes(128) + data[128:]) for name, data in files.items()}


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("name", NATIVE_FILES)
def test_native_data_converts_without_loss(
    server: Server, native: dict[str, tuple[Partition, str, bytes]], name: str, target: str
) -> None:
    archive, path, data = native[name]
    response = archive.get(path, f"application/dicom; transfer-syntax={target}")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == f"application/dicom; transfer-syntax={target}"
    assert response.headers["Content-Length"] == str(len(response.content))
    stored, got = read(data), read(response.content)
    assert got.file_meta.TransferSyntaxUID == target
    if stored.file_meta.TransferSyntaxUID == target:
        assert response.content == data
    assert _values(got, target) == _values(stored, target)
    if "PixelData" in stored:
        assert np.array_equal(got.pixel_array, stored.pixel_array)
    again, _ = alone(server, response.content)  # the server reads what it writes
    assert _plain_frames(again, path, stored) == _plain_frames(archive, path, stored)


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize(("keyword", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_float_pixel_data_converts_and_has_frames(
    archive: Partition, target: str, keyword: str, bits: int
) -> None:
    values = np.linspace(-1, 1, 48, dtype=f"f{bits // 8}").tobytes()
    ds = make_dataset(frames=2, PixelData=None, BitsAllocated=bits, **{keyword: values})
    (path,) = archive.keep(to_file(ds, IMPLICIT))
    got = read(archive.get(path, f"application/dicom; transfer-syntax={target}").content)
    swapped = np.frombuffer(values, f">f{bits // 8}").astype(f"<f{bits // 8}").tobytes()
    assert got[keyword].value == (swapped if target == BIG else values)
    parts = archive.parts(f"{path}/frames/2,1", FRAMES_AS_STORED)
    assert [data for _, data in parts] == [values[len(values) // 2 :], values[: len(values) // 2]]


def _plain_frames(archive: Partition, path: str, ds: Dataset) -> list[bytes]:
    if not any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return []
    numbers = ",".join(str(n + 1) for n in range(int(ds.get("NumberOfFrames") or 1)))
    parts = archive.parts(f"{path}/frames/{numbers}", 'multipart/related; type="application/octet-stream"')
    return [data for _, data in parts]


def _values(ds: Dataset, target: str) -> list[tuple[Any, ...]]:
    """Tags and values; where Implicit VR does not tell the VR (private ones, OB or OW, US or OW) the tags."""
    result: list[tuple[Any, ...]] = []
    for element in ds:
        if element.tag.element == 0 or element.keyword == "PixelData":
            continue
        if element.VR == "SQ":
            result.append((element.tag, [_values(item, target) for item in element.value]))
        elif element.tag.is_private or element.keyword == "LUTData" or element.VR in ("OW", "OB"):
            result.append((element.tag,))
        else:
            result.append((element.tag, repr(element.value)))
    return result


def test_lookup_tables_are_swapped_with_the_pixels(
    native: dict[str, tuple[Partition, str, bytes]],
) -> None:
    archive, path, data = native["OBXXXX1A_expb_2frame.dcm"]
    table = read(data)[0x00281201].value
    swapped = np.frombuffer(table, ">u2").astype("<u2").tobytes()
    for target in (EXPLICIT, IMPLICIT):
        got = read(archive.get(path, f"application/dicom; transfer-syntax={target}").content)
        assert got[0x00281201].value == swapped


def test_the_default_of_application_dicom_is_explicit_vr_little_endian(archive: Partition) -> None:
    study = str(generate_uid())
    files = [make_file(study, transfer_syntax=syntax) for syntax in (IMPLICIT, EXPLICIT, BIG)]
    archive.keep(*files)
    for accept in ('multipart/related; type="application/dicom"', "multipart/related;type=application/dicom"):
        parts = archive.parts(f"studies/{study}", accept)
        assert [headers["content-type"] for headers, _ in parts] == [
            f"application/dicom; transfer-syntax={EXPLICIT}"
        ] * 3
        for file, (headers, data) in zip(files, parts, strict=True):
            assert int(headers["content-length"]) == len(data)
            assert _values(read(data), EXPLICIT) == _values(read(file), EXPLICIT)
            assert np.array_equal(read(data).pixel_array, read(file).pixel_array)


def test_data_that_cannot_be_decoded_comes_as_stored_by_default(archive: Partition) -> None:
    study = str(generate_uid())
    native_file = make_file(study, transfer_syntax=IMPLICIT)
    compressed = make_file(study, encapsulated=True, transfer_syntax=MPEG4HP41)
    archive.keep(native_file, compressed)
    parts = archive.parts(f"studies/{study}", 'multipart/related; type="application/dicom"')
    assert [headers["content-type"].partition("=")[2] for headers, _ in parts] == [EXPLICIT, MPEG4HP41]
    assert parts[1][1] == compressed
    single = archive.get(path_of(compressed), "application/dicom")
    assert single.content == compressed
    assert single.headers["Content-Type"] == f"application/dicom; transfer-syntax={MPEG4HP41}"


def test_compressed_data_in_another_syntax_is_406_with_a_reason(archive: Partition) -> None:
    (path,) = archive.keep(make_file(encapsulated=True))
    for wanted in (BIG, JPEG2000, "1.2.3"):
        detail = problem(archive.get(path, f"application/dicom; transfer-syntax={wanted}"), 406)
        assert JPEG2000Lossless in detail
        assert "transfer-syntax=*" in detail


def test_the_first_acceptable_syntax_is_chosen(archive: Partition) -> None:
    (path,) = archive.keep(make_file(transfer_syntax=IMPLICIT))
    for accept, expected in (
        (f"application/dicom; transfer-syntax={JPEG2000}; transfer-syntax={BIG}", BIG),
        (f"application/dicom; transfer-syntax={BIG}; transfer-syntax={IMPLICIT}", IMPLICIT),
        (f"application/dicom; transfer-syntax={BIG}; q=0.5, application/dicom", EXPLICIT),
        (f'application/dicom; transfer-syntax="{JPEG2000}", {SINGLE_AS_STORED}; q=0.1', IMPLICIT),
    ):
        assert archive.get(path, accept).headers["Content-Type"].endswith(f"={expected}"), accept


@pytest.mark.parametrize("padding", [2, 7, 100])
@pytest.mark.parametrize("frames", [0, 1])
def test_padding_does_not_hinder_conversion(archive: Partition, padding: int, frames: int) -> None:
    (path,) = archive.keep(make_file(frames=frames, transfer_syntax=BIG) + bytes(padding))
    got = read(archive.get(path, "application/dicom").content)
    assert got.PatientName == "Doe^Jane"
    assert ("PixelData" in got) is bool(frames)


def test_values_that_break_their_vr_survive_conversion(archive: Partition) -> None:
    ds = make_dataset(frames=0)
    ds.add_new(0x00080020, "LO", "tomorrow")
    ds.add_new(0x00280030, "LO", "wide\\1e")
    ds.add_new(0x00104000, "LO", "caf?")
    file = to_file(ds, IMPLICIT).replace(b"caf?", b"caf\xe9")
    (path,) = archive.keep(file)
    got = archive.get(path, f"application/dicom; transfer-syntax={EXPLICIT}").content
    for value in (b"DA\x08\0tomorrow", b"DS\x08\0wide\\1e ", b"LT\x04\0caf\xe9"):
        assert value in got


# --- frames: native -----------------------------------------------------------------------------------


def test_frames_come_in_the_order_asked_for(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=12))
    orders = [[1], [12], [1, 2, 3], [3, 2, 1], [5, 5, 1, 12, 5], list(range(1, 13)), [12, 1, 6, 7]]
    for numbers in orders:
        parts = archive.parts(f"{path}/frames/{','.join(map(str, numbers))}", FRAMES_AS_STORED)
        assert [data for _, data in parts] == [frame(number) for number in numbers]
        for number, (headers, data) in zip(numbers, parts, strict=True):
            assert headers == {
                "content-type": f"application/octet-stream; transfer-syntax={EXPLICIT}",
                "content-length": str(len(data)),
                "content-location": f"{archive.root}/{path}/frames/{number}",
            }
    assert archive.parts(f"{path}/frames/%201%20,%203", FRAMES_AS_STORED)[1][1] == frame(3)
    assert archive.parts(f"{path}/frames/1%2C3", FRAMES_AS_STORED)[1][1] == frame(3)


def test_one_frame_comes_as_a_single_part_where_asked(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=3))
    response = archive.get(f"{path}/frames/2", "application/octet-stream")
    assert response.content == frame(2)
    assert response.headers["Content-Type"] == f"application/octet-stream; transfer-syntax={EXPLICIT}"
    assert response.headers["Content-Length"] == str(len(frame(2)))
    assert "multipart" in problem(archive.get(f"{path}/frames/1,2", "application/octet-stream"), 406)


@pytest.mark.parametrize(
    "numbers", ["0", "-1", "1,0", "a", "1,,2", ",", "1;2", "1.5", "9999999999", "%00", "١"]
)
def test_a_malformed_frame_list_is_400(archive: Partition, numbers: str) -> None:
    (path,) = archive.keep(make_file(frames=3))
    assert "frame list" in problem(archive.get(f"{path}/frames/{numbers}"), 400)


def test_a_frame_list_beyond_reason_is_400(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=3))
    assert "10000" in problem(archive.get(f"{path}/frames/{'1,' * 10_000}1"), 400)


def test_a_frame_that_does_not_exist_is_404(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=3))
    assert problem(archive.get(f"{path}/frames/1,4"), 404) == "The instance has 3 frames."
    (path,) = archive.keep(make_file(frames=0))
    assert problem(archive.get(f"{path}/frames/1"), 404) == "The instance has no pixel data."


def test_too_little_pixel_data_is_stored_with_a_warning_and_has_no_frames(archive: Partition) -> None:
    file = make_file(frames=2, NumberOfFrames=3)
    response = archive.store(file)
    assert response.status_code == 202
    assert "fewer bytes than its frames need" in response.text
    assert problem(archive.get(f"{path_of(file)}/frames/1"), 404)


def test_frames_of_a_big_endian_instance_are_swapped_unless_asked_for_as_stored(archive: Partition) -> None:
    ds = make_dataset(frames=3)
    stored = [frame(n) for n in (1, 2, 3)]
    ds.PixelData = np.frombuffer(b"".join(stored), "<u2").astype(">u2").tobytes()
    (path,) = archive.keep(to_file(ds, BIG))
    plain = archive.parts(f"{path}/frames/3,1", 'multipart/related; type="application/octet-stream"')
    assert [data for _, data in plain] == [frame(3), frame(1)]
    assert plain[0][0]["content-type"].endswith(f"={EXPLICIT}")
    raw = archive.parts(f"{path}/frames/2", FRAMES_AS_STORED)
    assert raw[0][1] == np.frombuffer(frame(2), "<u2").astype(">u2").tobytes()
    assert raw[0][0]["content-type"].endswith(f"={BIG}")


@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_big_endian_frames_of_an_odd_number_of_bytes_are_cut_after_swapping(
    archive: Partition, vr: str
) -> None:
    pixels = bytes(range(1, 46))  # 3 frames of 3 x 5 pixels of one byte
    ds = make_dataset(Rows=3, Columns=5, NumberOfFrames=3, BitsAllocated=8, BitsStored=8, HighBit=7)
    padded = pixels + b"\0"
    ds.PixelData = padded if vr == "OB" else np.frombuffer(padded, "<u2").astype(">u2").tobytes()
    ds["PixelData"].VR = vr
    (path,) = archive.keep(to_file(ds, BIG))
    parts = archive.parts(f"{path}/frames/1,2,3", 'multipart/related; type="application/octet-stream"')
    assert [data for _, data in parts] == [pixels[0:15], pixels[15:30], pixels[30:45]]


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_frames_of_single_bits_are_cut_out_at_bit_boundaries(archive: Partition, syntax: str) -> None:
    """Frames of one-bit pixels follow each other without padding (PS3.5 §8.1.1)."""
    rows, columns, count = 3, 7, 5
    bits = np.random.default_rng(1).integers(0, 2, (count, rows * columns), dtype="u1")
    ds = make_dataset(
        Rows=rows, Columns=columns, NumberOfFrames=count, BitsAllocated=1, BitsStored=1, HighBit=0
    )
    packed = pack_bits(bits.reshape(-1), pad=True)
    ds.PixelData = packed if syntax == EXPLICIT else np.frombuffer(packed, "<u2").astype(">u2").tobytes()
    ds["PixelData"].VR = "OW"
    (path,) = archive.keep(to_file(ds, syntax))
    parts = archive.parts(f"{path}/frames/1,2,3,4,5", 'multipart/related; type="application/octet-stream"')
    assert [data for _, data in parts] == [pack_bits(row, pad=False) for row in bits]


@pytest.mark.parametrize("name", ["liver.dcm", "liver_1frame.dcm", "rtdose.dcm", "SC_rgb_32bit_2frame.dcm"])
def test_frames_of_real_native_files_are_slices_of_pixel_data(server: Server, name: str) -> None:
    data = REAL[name].read_bytes()
    ds = read(data)
    archive, path = alone(server, data)
    count = int(ds.get("NumberOfFrames") or 1)
    bits = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated
    whole = int.from_bytes(ds.PixelData, "little")
    parts = archive.parts(f"{path}/frames/{','.join(str(n + 1) for n in range(count))}", FRAMES_AS_STORED)
    for number, (_, got) in enumerate(parts):
        assert got == (whole >> number * bits & (1 << bits) - 1).to_bytes((bits + 7) // 8, "little")


def test_frames_of_a_deflated_instance(archive: Partition) -> None:
    ds = make_dataset(frames=40)
    (path,) = archive.keep(deflated(ds))
    parts = archive.parts(f"{path}/frames/40,1,7", FRAMES_AS_STORED)
    assert [data for _, data in parts] == [frame(40), frame(1), frame(7)]
    assert parts[0][0]["content-type"].endswith(f"={EXPLICIT}")


def test_a_large_frame_streams(archive: Partition) -> None:
    pixels = random.Random(1).randbytes(9 * 1024 * 1024)
    ds = make_dataset(Rows=3 * 1024, Columns=1536, NumberOfFrames=None, PixelData=pixels)
    (path,) = archive.keep(to_file(ds))
    assert archive.get(f"{path}/frames/1", "application/octet-stream").content == pixels
    assert archive.parts(f"{path}/frames/1", FRAMES_AS_STORED)[0][1] == pixels
    swapped = np.frombuffer(pixels, "<u2").astype(">u2").tobytes()
    converted = archive.get(path, f"application/dicom; transfer-syntax={BIG}").content
    assert read(converted).PixelData == swapped


# --- frames: encapsulated -----------------------------------------------------------------------------


def _encapsulated(frames: list[bytes], value: bytes, syntax: str = JPEG2000Lossless, **more: Any) -> bytes:
    ds = make_dataset(frames=len(frames), **more)
    ds.PixelData = value
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return to_file(ds, syntax)


STREAMS = [codestream(n) + bytes(2 * n) for n in range(1, 8)]


@pytest.mark.parametrize(
    "value",
    [
        encapsulate(STREAMS, has_bot=True),
        encapsulate(STREAMS, has_bot=False),
        encapsulate(STREAMS, fragments_per_frame=3, has_bot=True),
        encapsulate(STREAMS, fragments_per_frame=3, has_bot=False),  # told apart by their codestreams
    ],
    ids=["offsets", "no offsets", "fragments and offsets", "fragments"],
)
def test_encapsulated_frames_are_found(archive: Partition, value: bytes) -> None:
    (path,) = archive.keep(_encapsulated(STREAMS, value))
    for numbers in ([1], [7], [3, 1, 3], [1, 2, 3, 4, 5, 6, 7]):
        parts = archive.parts(f"{path}/frames/{','.join(map(str, numbers))}", FRAMES_AS_STORED)
        assert [data.rstrip(b"\0") for _, data in parts] == [STREAMS[n - 1].rstrip(b"\0") for n in numbers]
        assert parts[0][0]["content-type"].endswith(f"octet-stream; transfer-syntax={JPEG2000Lossless}")


def test_the_extended_offset_table_tells_frames_apart(archive: Partition) -> None:
    streams = [bytes(10 * n) + b"no magic number" for n in range(1, 5)]
    value, offsets, lengths = encapsulate_extended(streams)
    file = _encapsulated(
        streams, value, "1.2.840.10008.1.2.5", ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths
    )
    (path,) = archive.keep(file)
    parts = archive.parts(f"{path}/frames/4,2", FRAMES_AS_STORED)
    assert [data[: len(streams[i])] for (_, data), i in zip(parts, (3, 1), strict=True)] == [
        streams[3],
        streams[1],
    ]


def test_frames_that_cannot_be_told_apart_are_404_and_the_instance_is_stored_with_a_warning(
    archive: Partition,
) -> None:
    value = encapsulate([b"no magic number "] * 5, has_bot=False)
    file = _encapsulated(STREAMS[:3], value, "1.2.840.10008.1.2.5")
    response = archive.store(file)
    assert response.status_code == 202
    assert "cannot be assigned to its frames" in response.text
    assert "cannot be told apart" in problem(archive.get(f"{path_of(file)}/frames/1"), 404)
    assert archive.get(path_of(file), SINGLE_AS_STORED).content == file


ENCAPSULATED = [
    "JPEG2000.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle_2frame.dcm",
    "color3d_jpeg_baseline.dcm",
    "emri_small_jpeg_ls_lossless.dcm",
    "examples_ybr_color.dcm",
    "JPEG-lossy.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
]


@pytest.mark.parametrize("name", ENCAPSULATED)
def test_frames_of_real_encapsulated_files_are_those_of_pydicom(server: Server, name: str) -> None:
    data = REAL[name].read_bytes()
    ds = read(data)
    archive, path = alone(server, data)
    count = int(ds.get("NumberOfFrames") or 1)
    expected = list(generate_frames(ds.PixelData, number_of_frames=count))
    assert len(expected) == count
    numbers = ",".join(str(n + 1) for n in range(count))
    assert [got for _, got in archive.parts(f"{path}/frames/{numbers}", FRAMES_AS_STORED)] == expected
    assert archive.get(f"{path}/frames/{count}", "*/*").status_code == 200


@pytest.mark.parametrize(
    ("syntax", "accept", "content_type"),
    [
        (JPEG2000Lossless, "image/jp2", "image/jp2"),
        (JPEG2000Lossless, "image/*", "image/jp2"),
        (JPEG2000Lossless, "*/*", "image/jp2"),
        (JPEG2000Lossless, 'multipart/related; type="image/jp2"', "image/jp2"),
        (JPEG2000Lossless, f"image/jp2; transfer-syntax={JPEG2000Lossless}", "image/jp2"),
        (JPEG2000Lossless, f"image/jls; q=0.5, {FRAMES_AS_STORED}", "application/octet-stream"),
        (JPEG2000Lossless, "application/octet-stream; transfer-syntax=*", "application/octet-stream"),
        (
            JPEGLSLossless,
            'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.81; '
            "transfer-syntax=1.2.840.10008.1.2.4.80",
            "image/jls",
        ),
        (MPEG4HP41, "video/mp4", "video/mp4"),
        ("1.2.840.10008.1.2.4.107", "video/H265", "video/H265"),
        ("1.2.840.10008.1.2.4.57", "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.57", "image/jpeg"),
        ("1.2.840.10008.1.2.5", 'multipart/related; type="image/dicom-rle"', "image/dicom-rle"),
    ],
)
def test_frames_are_served_as_what_accept_allows(
    archive: Partition, syntax: str, accept: str, content_type: str
) -> None:
    (path,) = archive.keep(_encapsulated(STREAMS[:1], encapsulate(STREAMS[:1]), syntax))
    response = archive.get(f"{path}/frames/1", accept)
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"].startswith("multipart/related"):
        ((headers, data),) = archive.parts(f"{path}/frames/1", accept)
        assert response.headers["Content-Type"].startswith(
            f'multipart/related; type="{content_type}"; boundary='
        )
    else:
        headers, data = {"content-type": response.headers["Content-Type"]}, response.content
    assert headers["content-type"] == f"{content_type}; transfer-syntax={syntax}"
    assert data == STREAMS[0]


@pytest.mark.parametrize(
    "accept",
    [
        "image/jls",
        "image/png",
        'multipart/related; type="application/octet-stream"',
        "application/octet-stream",
        f"application/octet-stream; transfer-syntax={EXPLICIT}",
        "image/jp2; transfer-syntax=1.2.840.10008.1.2.4.91",
        "application/dicom",
    ],
)
def test_frames_that_accept_does_not_allow_are_406_with_a_reason(archive: Partition, accept: str) -> None:
    (path,) = archive.keep(make_file(encapsulated=True))
    assert JPEG2000Lossless in problem(archive.get(f"{path}/frames/1", accept), 406)


def test_a_large_compressed_frame_streams(archive: Partition) -> None:
    stream = b"\xff\x4f\xff\x51" + random.Random(2).randbytes(9 * 1024 * 1024)
    for fragments in (1, 5):
        value = encapsulate([stream], fragments_per_frame=fragments)
        (path,) = archive.keep(_encapsulated([stream], value))
        assert archive.get(f"{path}/frames/1", "image/jp2").content == stream
        assert archive.parts(f"{path}/frames/1", FRAMES_AS_STORED)[0][1] == stream
        assert archive.get(f"{path}/bulkdata/7FE00010").content == stream


# --- bulk data ----------------------------------------------------------------------------------------


def _bulk_data(dataset: dict[str, Any]) -> list[tuple[str, str]]:
    """VR and URI of every bulk data reference, nested ones too."""
    found = []
    for attribute in dataset.values():
        if "BulkDataURI" in attribute:
            found.append((attribute["vr"], attribute["BulkDataURI"]))
        if attribute["vr"] == "SQ":
            for item in attribute.get("Value", []):
                found += _bulk_data(item)
    return found


def test_every_bulk_data_uri_is_answered_also_nested(archive: Partition) -> None:
    big, small = random.Random(3).randbytes(50_000), b"\1\2\3\4"
    item, inner = Dataset(), Dataset()
    inner.add_new(0x00281201, "OW", big)
    item.ReferencedSeriesSequence = [Dataset(), inner]
    item.add_new(0x00420011, "OB", big[::-1])
    item.add_new(0x00281202, "OW", small)
    item.add_new(0x0040A160, "UT", "x" * 300_000)
    ds = make_dataset(ReferencedStudySequence=[item])
    for syntax in (EXPLICIT, IMPLICIT):
        ds.SOPInstanceUID = generate_uid()
        (path,) = archive.keep(to_file(ds, syntax))
        (metadata,) = archive.get(f"{path}/metadata").json()
        uris = [uri for _, uri in _bulk_data(metadata)]
        prefix = f"{archive.root}/{path}/bulkdata/"
        tails = ["00081110.1.00081115.2.00281201", "00081110.1.0040A160", "00081110.1.00420011", "7FE00010"]
        assert uris == [prefix + tail for tail in tails]
        contents = [big, b"x" * 300_000, big[::-1], frame(1)]
        for uri, content in zip(uris, contents, strict=True):
            response = archive.http.get(uri)
            assert (response.status_code, response.content) == (200, content)
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Length"] == str(len(content))
            assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"


def test_bulk_data_comes_as_multipart_where_asked(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=2))
    url = f"{path}/bulkdata/7FE00010"
    for accept in (FRAMES_AS_STORED, "multipart/related", 'multipart/related; type="*/*"'):
        ((headers, data),) = archive.parts(url, accept)
        assert data == frame(1) + frame(2)
        assert headers["content-location"] == f"{archive.root}/{url}"
    forwarded = archive.get(url, "multipart/related", Forwarded="host=pacs.example;proto=https")
    assert f"Content-Location: https://pacs.example/v2/partitions/{archive.name}/{url}" in forwarded.text


def test_bulk_data_of_big_endian_instances_is_little_endian(archive: Partition) -> None:
    item = Dataset()
    words = np.arange(20_000, dtype="u2")
    item.add_new(0x00281201, "OW", words.astype(">u2").tobytes())
    floats = np.arange(10_000, dtype="f4")
    ds = make_dataset(ReferencedStudySequence=[item], VectorGridData=floats.astype(">f4").tobytes())
    ds.PixelData = np.frombuffer(frame(1), "<u2").astype(">u2").tobytes()
    (path,) = archive.keep(to_file(ds, BIG))
    for tail, content in (
        ("00081110.1.00281201", words.astype("<u2").tobytes()),
        ("00640009", floats.astype("<f4").tobytes()),
        ("7FE00010", frame(1)),
    ):
        assert archive.get(f"{path}/bulkdata/{tail}").content == content


def test_bulk_data_of_a_deflated_instance(archive: Partition) -> None:
    values = random.Random(4).randbytes(3 * 1024 * 1024)
    ds = make_dataset(frames=5)
    ds.add_new(0x00420011, "OB", values)
    (path,) = archive.keep(deflated(ds))
    assert archive.get(f"{path}/bulkdata/00420011").content == values
    assert archive.get(f"{path}/bulkdata/7FE00010").content == ds.PixelData


def test_bulk_data_that_was_not_given_out_is_404(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    for tail in ("00100010", "7FE00009", "nonsense", "7fe00010", "00081110.1.7FE00010", "%00", "a%2F.."):
        assert "no such bulk data" in problem(archive.get(f"{path}/bulkdata/{tail}"), 404)


def test_bulk_data_of_another_media_type_is_406(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    assert problem(archive.get(f"{path}/bulkdata/7FE00010", "application/pdf"), 406)


def test_many_tiny_fragments_are_served_in_linear_time(archive: Partition) -> None:
    fragment = b"\xfe\xff\x00\xe0\x02\0\0\0ab"
    items = b"\xfe\xff\x00\xe0\0\0\0\0" + fragment * 400_000
    ds = make_dataset(frames=1)
    ds.PixelData = items
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    (path,) = archive.keep(to_file(ds, JPEG2000Lossless))
    assert archive.get(f"{path}/bulkdata/7FE00010").content == b"ab" * 400_000
    assert archive.get(f"{path}/frames/1", "image/jp2").content == b"ab" * 400_000


# --- HEAD and headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "accept"),
    [
        ("", AS_STORED),
        ("", SINGLE_AS_STORED),
        ("", "application/dicom"),
        ("/metadata", "application/dicom+json"),
        ("/frames/1", FRAMES_AS_STORED),
        ("/frames/1", "application/octet-stream"),
        ("/bulkdata/7FE00010", "*/*"),
    ],
)
def test_head_has_the_headers_of_get_and_no_body(archive: Partition, below: str, accept: str) -> None:
    (path,) = archive.keep(make_file(transfer_syntax=IMPLICIT))
    get = archive.get(path + below, accept)
    head = archive.request("HEAD", path + below, Accept=accept)
    assert (head.status_code, head.content) == (200, b"")
    assert _comparable(head) == _comparable(get)


def _comparable(response: httpx.Response) -> dict[str, str]:
    left_out = ("date", "transfer-encoding")
    headers = {name: value for name, value in response.headers.items() if name not in left_out}
    headers["content-type"] = headers["content-type"].partition("boundary=")[0]
    return headers


def test_errors_too_have_the_headers_that_browsers_need(archive: Partition) -> None:
    """The host adds Access-Control-Allow-Origin to every response (tests/test_devhost.py)."""
    (path,) = archive.keep(make_file())
    for suffix, status in (("", 406), ("/frames/0", 400), ("/frames/9", 404)):
        response = archive.get(path + suffix, "image/png" if status == 406 else "*/*")
        assert problem(response, status)
        assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"Content-Location", "Content-Range", "ETag", "Retry-After"} <= set(exposed)
