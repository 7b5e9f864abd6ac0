"""Every source syntax to every target, by kind of image: pixels are equal, or within a stated error.

First the codecs alone, then the running server, then what becomes of damaged frames.
"""

from __future__ import annotations

import io
from dataclasses import replace

import httpx
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, generate_uid

from shared.dicom import transcode
from shared.dicom.pixel_data import CorruptFrame, DecodedFrame, decode
from shared.dicom.transfer_syntaxes import (
    EXPLICIT_LE,
    JPEG_2000_SYNTAXES,
    JPEG_BASELINE,
    JPEG_LOSSY_SYNTAXES,
    JPEG_LS_LOSSLESS,
    NATIVE,
    RLE,
    media_type,
)
from tests.conftest import Server
from tests.dicom_files import make_file, to_file
from tests.images import KINDS, Pixels, made
from tests.partition import Partition, problem
from tests.transcoding import (
    BASELINE_ERROR,
    NAMES,
    PAGE,
    SOURCES,
    TARGETS,
    WIRE_KINDS,
    Source,
    compared,
    decoded,
    decoded_by_others,
    impossible,
    original,
    outcome,
    render,
    source_error,
    source_file,
)

LOSSLESS = sorted(transcode.ENCODED_TARGETS - {JPEG_BASELINE})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [EXPLICIT_LE, *LOSSLESS])
def test_lossless_targets_keep_every_pixel(kind: str, source: str) -> None:
    frame = made(KINDS[kind])
    if transcode.refusal(frame.image, source):
        with pytest.raises(ValueError, match=r"\.$"):
            transcode.encode(frame, source)
        return
    start = transcode.encode(frame, source)
    for target in (EXPLICIT_LE, *LOSSLESS):
        if transcode.refusal(frame.image, target):
            continue
        got = transcode.transcode(start.data, start.image, source, target)
        back = decode(got.data, got.image, target)
        assert back.pixels.dtype == frame.pixels.dtype
        np.testing.assert_array_equal(back.pixels, frame.pixels)
        assert back.image == frame.image


@pytest.mark.parametrize("source", [EXPLICIT_LE, *LOSSLESS])
@pytest.mark.parametrize("kind", ["grey 8", "RGB 8"])
def test_jpeg_baseline_stays_within_its_error(kind: str, source: str) -> None:
    frame = made(KINDS[kind])
    start = transcode.encode(frame, source)
    got = transcode.transcode(start.data, start.image, source, JPEG_BASELINE)
    back = decode(got.data, got.image, JPEG_BASELINE)
    assert np.abs(back.pixels.astype(int) - frame.pixels.astype(int)).max() <= BASELINE_ERROR


@pytest.mark.parametrize("kind", ["grey 12 of 16", "RGB 8"])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_codestream_that_ends_early_is_refused(kind: str, syntax: str) -> None:
    encoded = transcode.encode(made(KINDS[kind]), syntax)
    for length in (0, 3, len(encoded.data) // 4, len(encoded.data) // 2):
        with pytest.raises(CorruptFrame, match=r"\.$"):
            decode(encoded.data[:length], encoded.image, syntax)


@pytest.mark.parametrize("syntax", sorted(JPEG_2000_SYNTAXES))
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(syntax: str) -> None:
    encoded = transcode.encode(made(KINDS["grey 8"]), "1.2.840.10008.1.2.4.90")
    huge = bytearray(encoded.data)
    huge[8:16] = b"\0\1\0\0\0\1\0\0"
    with pytest.raises(CorruptFrame, match="announces"):
        decode(bytes(huge), encoded.image, syntax)


MADE = [(kind, syntax) for kind in KINDS for syntax in SOURCES if not impossible(kind, syntax)]


def difference(one: Pixels, other: Pixels) -> int:
    """The most by which samples differ."""
    return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())


@pytest.mark.parametrize(("kind", "syntax"), MADE)
def test_files_of_other_makers_decode_to_what_was_compressed(kind: str, syntax: str) -> None:
    file = source_file(kind, syntax, 3)
    pixels = decoded(Source.of(file))
    assert difference(pixels, original(kind, 3)) <= source_error(syntax, KINDS[kind])
    rounding = 2 if syntax in JPEG_LOSSY_SYNTAXES else 0
    assert difference(pixels, decoded_by_others(file)) <= rounding


def test_page_shows_what_becomes_of_every_kind_in_every_syntax() -> None:
    text = PAGE.read_text()
    assert render(text) == text, "run python -m tests.transcoding"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", LOSSLESS)
def test_noise_that_grows_when_it_is_compressed_is_kept_too(kind: str, target: str) -> None:
    image = replace(KINDS[kind], rows=200, columns=300)
    if transcode.refusal(image, target):
        return
    rng = np.random.default_rng(1)
    values = rng.integers(0, 1 << image.bits_stored, (200, 300, image.samples_per_pixel))
    shift = 64 - image.bits_stored if image.pixel_representation else 0
    values = (values << shift) >> shift  # the sign
    like = made(image).pixels
    frame = DecodedFrame(values.reshape(like.shape).astype(like.dtype), image)
    encoded = transcode.encode(frame, target)
    np.testing.assert_array_equal(decode(encoded.data, encoded.image, target).pixels, frame.pixels)


@pytest.mark.parametrize("value", [0x4F, 0xD8])
def test_pixels_that_look_like_a_marker_of_another_syntax_are_pixels(value: int) -> None:
    """Two runs of two equal bytes are FF 4F FF 51 in RLE, which in JPEG 2000 announces a size."""
    image = KINDS["grey 8"]
    pixels = np.zeros((image.rows, image.columns), "u1")
    pixels[:, :4] = [value, value, 0x51, 0x51]
    encoded = transcode.encode(DecodedFrame(pixels, image), RLE)
    assert bytes([0xFF, value, 0xFF, 0x51]) in encoded.data
    np.testing.assert_array_equal(decode(encoded.data, image, RLE).pixels, pixels)


def test_a_frame_that_a_codec_fails_on_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("the codec's own words")

    monkeypatch.setitem(transcode._ENCODERS, RLE, fail)
    with pytest.raises(ValueError, match=r"^A frame cannot be encoded in transfer syntax 1\.2.*\.$"):
        transcode.encode(made(KINDS["grey 8"]), RLE)


# --- over the wire -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


ON_THE_WIRE = [(kind, syntax) for kind, syntax in MADE if kind in WIRE_KINDS]


@pytest.mark.parametrize("count", [1, 3], ids=["single", "multi"])
@pytest.mark.parametrize(("kind", "syntax"), ON_THE_WIRE)
def test_every_target_is_retrieved_as_instance_and_as_frames(
    archive: Partition, kind: str, syntax: str, count: int
) -> None:
    file = source_file(kind, syntax, count)
    source = Source.of(file)
    pixels = decoded(source)
    (path,) = archive.keep(file)
    for target in TARGETS:
        expected = outcome(source, target)
        instance = archive.get(path, f"application/dicom; transfer-syntax={target}")
        if expected.startswith("refused"):
            assert expected.removeprefix("refused: ") in problem(instance, 406)
        else:
            assert instance.status_code == 200, (NAMES[target], instance.text)
            check_instance(instance.content, pixels, source, target)
        if syntax in NATIVE and target in NATIVE:
            continue  # frames of native instances have one form
        numbers = ",".join(str(number + 1) for number in range(count))
        accept = f'multipart/related; type="{media_type(target)}"; transfer-syntax={target}'
        if target in NATIVE and target != EXPLICIT_LE:
            assert archive.get(f"{path}/frames/{numbers}", accept).status_code == 406
            continue
        if expected.startswith("refused"):
            problem(archive.get(f"{path}/frames/{numbers}", accept), 406)
            continue
        parts = archive.parts(f"{path}/frames/{numbers}", accept)
        content_type = f"{media_type(target)}; transfer-syntax={target}"
        assert [headers["content-type"] for headers, _ in parts] == [content_type] * count
        padded = [body + b"\0" * (len(body) % 2) for _, body in parts]
        assert padded == frames_in(instance.content, count)


def check_instance(file: bytes, pixels: Pixels, source: Source, target: str) -> None:
    """The file is in ``target``, other makers read from it the pixels, and it says what happened to them."""
    ds = dcmread(io.BytesIO(file))
    assert ds.file_meta.TransferSyntaxUID == target
    assert int(ds.get("NumberOfFrames", 1)) == len(pixels)
    rounding = 2 if target == source.syntax == JPEG_BASELINE else 0
    theirs = decoded_by_others(file)
    if rounding:
        assert difference(theirs, pixels) <= rounding
    else:
        compared(pixels, theirs, target)
    if target != source.syntax and (target == JPEG_BASELINE or source.syntax in JPEG_LOSSY_SYNTAXES):
        assert ds.LossyImageCompression == "01"


def frames_in(file: bytes, count: int) -> list[bytes]:
    """The frames of a file, of encapsulated ones each padded to an even length."""
    ds = dcmread(io.BytesIO(file))
    if ds.file_meta.TransferSyntaxUID not in NATIVE:
        return list(generate_frames(ds.PixelData, number_of_frames=count))
    length = Source.of(file).image.frame_length
    return [ds.PixelData[number * length : (number + 1) * length] for number in range(count)]


# --- damaged frames ----------------------------------------------------------------------------------

FRAME = "multipart/related; type=application/octet-stream"
INSTANCE = f"application/dicom; transfer-syntax={EXPLICIT_LE}"
PARTS = "multipart/related; type=application/dicom"


def damaged(syntax: str, frames: int, number: int, study: str | None = None, repeat: int = 1) -> bytes:
    """A file of ``frames`` frames, ``repeat`` times over, whose frame ``number`` ends after a third."""
    ds = dcmread(io.BytesIO(source_file("grey 12 of 16", syntax, frames)))
    codestreams = list(generate_frames(ds.PixelData, number_of_frames=frames)) * repeat
    codestreams[number - 1] = codestreams[number - 1][: len(codestreams[number - 1]) // 3 // 2 * 2]
    ds.PixelData = encapsulate(codestreams)
    ds.NumberOfFrames = len(codestreams)
    ds.SOPInstanceUID, ds.StudyInstanceUID = generate_uid(), study or generate_uid()
    return to_file(ds, UID(syntax))


DAMAGEABLE = [s for s in SOURCES if s not in NATIVE and not impossible("grey 12 of 16", s)]


@pytest.mark.parametrize("syntax", DAMAGEABLE)
def test_a_damaged_frame_fails_and_its_neighbours_do_not(archive: Partition, syntax: str) -> None:
    file = damaged(syntax, 3, 2)
    (path,) = archive.keep(file)
    good = [frame.tobytes() for frame in decoded(Source.of(source_file("grey 12 of 16", syntax, 3)))]
    sentence = problem(archive.get(f"{path}/frames/2", "application/octet-stream"), 406)
    assert f"(It is stored in transfer syntax {syntax}; ask with transfer-syntax=*.)" in sentence
    for number in (1, 3):
        answer = archive.get(f"{path}/frames/{number}", "application/octet-stream")
        assert answer.content == good[number - 1]
    parts = archive.parts(f"{path}/frames/1,2,3", FRAME)
    kinds = [headers["content-type"].partition(";")[0] for headers, _ in parts]
    assert kinds == ["application/octet-stream", "application/problem+json", "application/octet-stream"]
    assert (parts[0][1], parts[2][1]) == (good[0], good[2])
    assert problem(archive.get(f"{path}/frames/2/rendered", "image/png"), 406)
    assert archive.get(f"{path}/frames/3/rendered", "image/png").status_code == 200


def test_an_instance_with_a_damaged_frame_is_a_problem_among_others(archive: Partition) -> None:
    study = generate_uid()
    good = make_file(study)
    path, _ = archive.keep(damaged(RLE, 3, 2, study), good)
    assert problem(archive.get(path, INSTANCE), 406).startswith("Frame 2: ")
    parts = {
        headers["content-type"].partition(";")[0]: body
        for headers, body in archive.parts(f"studies/{study}", PARTS)
    }
    assert parts["application/dicom"] == good
    assert b"Frame 2: " in parts["application/problem+json"]


def test_a_damaged_frame_late_in_a_large_instance_cuts_the_answer(archive: Partition) -> None:
    """What has been sent cannot be taken back; a client that counts or parses sees that it is not whole."""
    repeat = 9 * 1024 * 1024 // (3 * KINDS["grey 12 of 16"].frame_length) + 1
    file = damaged(RLE, 3, 3 * repeat, repeat=repeat)
    (path,) = archive.keep(file)
    with pytest.raises(httpx.RemoteProtocolError):
        archive.get(path, INSTANCE)
    # compressed, all of it is made before the first byte leaves
    problem(archive.get(path, f"application/dicom; transfer-syntax={JPEG_LS_LOSSLESS}"), 406)
    assert archive.get(path, "application/dicom; transfer-syntax=*").content == file
    assert archive.get(f"{path}/frames/1", "application/octet-stream").status_code == 200
