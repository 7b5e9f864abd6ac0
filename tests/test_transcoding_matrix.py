"""Every source syntax to every target, by kind of image: pixels are equal, or within a stated error."""

from __future__ import annotations

import numpy as np
import pytest

from shared.dicom import transcode
from shared.dicom.pixel_data import CorruptFrame, decode
from shared.dicom.transfer_syntaxes import EXPLICIT_LE, JPEG_2000_SYNTAXES, JPEG_BASELINE
from tests.images import KINDS, made

LOSSLESS = sorted(transcode.ENCODED_TARGETS - {JPEG_BASELINE})
BASELINE_ERROR = 12
"""The most a sample may differ after JPEG Baseline: its quality on a slope with noise."""


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
