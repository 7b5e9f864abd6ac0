"""The Accept header and what it is answered with (PS3.18 §8.7): pure decisions."""

from __future__ import annotations

import pytest

from shared.errors import NotAcceptable
from shared.web import negotiate
from shared.web.accept import MediaRange, accepts, matches, parse_accept
from shared.web.negotiate import Representation

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
J2K, J2K_LOSSY = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_LS, HTJ2K, RLE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"
MPEG2, VIDEO = "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102"
JPEG_2000_PART_2 = "1.2.840.10008.1.2.4.92"
DICOM, OCTETS = "application/dicom", "application/octet-stream"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, [MediaRange("*/*")]),
        ("", [MediaRange("*/*")]),
        ("  ", [MediaRange("*/*")]),
        ("application/dicom", [MediaRange(DICOM)]),
        ("APPLICATION/DICOM", [MediaRange(DICOM)]),
        ("application/dicom; transfer-syntax=*", [MediaRange(DICOM, False, ("*",))]),
        ('application/dicom;transfer-syntax="*"', [MediaRange(DICOM, False, ("*",))]),
        (
            "multipart/related; type=image/jls; transfer-syntax=1.2; transfer-syntax=1.3",
            [MediaRange("image/jls", True, ("1.2", "1.3"))],
        ),
        ('multipart/related; type="image/jls"', [MediaRange("image/jls", True)]),
        ("multipart/related", [MediaRange("*/*", True)]),
        ("multipart/*", [MediaRange("*/*", True)]),
        (
            'multipart/related ; Type = "application/dicom" ; Transfer-Syntax = 1.2',
            [MediaRange(DICOM, True, ("1.2",))],
        ),
        (
            "a/b; q=0.1, c/d; q=0.9, e/f",
            [MediaRange("e/f"), MediaRange("c/d", quality=0.9), MediaRange("a/b", quality=0.1)],
        ),
        ("*/*, image/*, image/jls", [MediaRange("image/jls"), MediaRange("image/*"), MediaRange("*/*")]),
        ("a/b; q=0, c/d", [MediaRange("c/d")]),
        ("a/b; q=nonsense", [MediaRange("a/b")]),
        ("a/b; q=7", [MediaRange("a/b")]),
        ("nonsense, , ;;, a/b", [MediaRange("a/b")]),
        ("multipart/mixed, multipart/form-data", []),
        ('x/y; a="b, c; d"; q=0.5', [MediaRange("x/y", quality=0.5)]),
        ('x/y; a="unclosed', [MediaRange("x/y")]),
        ("image/jls; transfer-syntax=", [MediaRange("image/jls")]),
    ],
)
def test_ranges_are_read_in_every_spelling(header: str | None, expected: list[MediaRange]) -> None:
    assert parse_accept(header) == expected


def test_a_huge_header_is_read_in_linear_time() -> None:
    for text in ('"' * 100_000, "a/b," * 100_000, "a/b;" * 100_000, 'a/b;x="' * 20_000, "," * 100_000):
        assert len(parse_accept(text)) < 10_000


@pytest.mark.parametrize(
    ("given", "media_type", "expected"),
    [
        ("*/*", "a/b", True),
        ("a/*", "a/b", True),
        ("a/b", "a/b", True),
        ("a/*", "ab/c", False),
        ("a/bc", "a/b", False),
        ("video/h265", "video/H265", True),
    ],
)
def test_a_range_matches(given: str, media_type: str, expected: bool) -> None:
    assert matches(given, media_type) is expected


def test_single_part_types_are_chosen_by_quality_then_by_the_servers_order() -> None:
    assert accepts(parse_accept("*/*"), "a/b", "c/d") == "a/b"
    assert accepts(parse_accept("c/d, */*; q=0.5"), "a/b", "c/d") == "c/d"
    assert accepts(parse_accept("e/f"), "a/b", "c/d") == ""
    assert accepts(parse_accept("multipart/related; type=a/b"), "a/b") == ""


def _instances(header: str, *stored: str, single: bool = True) -> Representation | None:
    try:
        return negotiate.instances(parse_accept(header), stored, single)[0]
    except NotAcceptable:
        return None


@pytest.mark.parametrize(
    ("header", "stored", "expected"),
    [
        ("", IMPLICIT, (True, IMPLICIT)),
        ("*/*", BIG, (True, BIG)),
        ("*/*", J2K, (True, J2K)),
        ("application/*", IMPLICIT, (False, EXPLICIT)),
        (DICOM, IMPLICIT, (False, EXPLICIT)),
        (DICOM, EXPLICIT, (False, EXPLICIT)),
        (DICOM, BIG, (False, EXPLICIT)),
        (DICOM, DEFLATED, (False, EXPLICIT)),
        (DICOM, J2K, (False, EXPLICIT)),
        (DICOM, VIDEO, (False, VIDEO)),
        (DICOM, JPEG_2000_PART_2, (False, JPEG_2000_PART_2)),
        (DICOM, "1.2.3.4", (False, "1.2.3.4")),
        (f"{DICOM}; transfer-syntax=*", BIG, (False, BIG)),
        (f"{DICOM}; transfer-syntax={EXPLICIT}", IMPLICIT, (False, EXPLICIT)),
        (f"{DICOM}; transfer-syntax={EXPLICIT}", J2K, (False, EXPLICIT)),
        (f"{DICOM}; transfer-syntax={IMPLICIT}", J2K, (False, IMPLICIT)),
        (f"{DICOM}; transfer-syntax={BIG}", J2K, None),
        (f"{DICOM}; transfer-syntax={EXPLICIT}", VIDEO, None),
        (f"{DICOM}; transfer-syntax=1.2.3; transfer-syntax={RLE}", J2K, (False, RLE)),
        (f"{DICOM}; transfer-syntax={J2K}", J2K, (False, J2K)),
        (f"{DICOM}; transfer-syntax={J2K}", EXPLICIT, (False, J2K)),
        (f"{DICOM}; transfer-syntax={J2K_LOSSY}", EXPLICIT, None),
        (f"{DICOM}; transfer-syntax={J2K}; transfer-syntax={EXPLICIT}", IMPLICIT, (False, J2K)),
        (f"{DICOM}; transfer-syntax={DEFLATED}", DEFLATED, (False, DEFLATED)),
        (f"{DICOM}; transfer-syntax={DEFLATED}", EXPLICIT, None),
        (f"{DICOM}; transfer-syntax={J2K}; q=0.1, {DICOM}; transfer-syntax=*", BIG, (False, BIG)),
        ("multipart/related; type=application/dicom", BIG, (True, EXPLICIT)),
        ("multipart/related", IMPLICIT, (True, IMPLICIT)),
        ("image/jpeg", JPEG_BASELINE, None),
        ("multipart/related; type=image/jpeg", JPEG_BASELINE, None),
        ("application/dicom+json", EXPLICIT, None),
    ],
)
def test_the_syntax_of_an_instance(header: str, stored: str, expected: tuple[bool, str] | None) -> None:
    got = _instances(header, stored)
    assert got == (Representation(expected[0], DICOM, (expected[1],)) if expected else None)


def test_each_instance_of_a_study_has_its_own_syntax() -> None:
    stored = (IMPLICIT, J2K, BIG)
    related = "multipart/related; type=application/dicom"
    assert _instances(related, *stored, single=False) == Representation(
        True, DICOM, (EXPLICIT, EXPLICIT, EXPLICIT)
    )
    assert _instances(related, J2K, VIDEO, single=False) == Representation(True, DICOM, (EXPLICIT, VIDEO))
    assert _instances(f"{related}; transfer-syntax={EXPLICIT}", *stored, VIDEO, single=False) is None
    assert _instances(f"{related}; transfer-syntax={J2K}", *stored, single=False) == Representation(
        True, DICOM, (J2K, J2K, J2K)
    )
    assert _instances(DICOM, *stored, single=False) is None
    assert _instances(f"{DICOM}, {related}; q=0.1", IMPLICIT, single=False) == Representation(
        True, DICOM, (EXPLICIT,)
    )


def _frames(header: str, stored: str, count: int) -> tuple[bool, str, str] | None:
    try:
        got = negotiate.frames(parse_accept(header), stored, count)[0]
    except NotAcceptable:
        return None
    return got.multipart, got.media_type, got.transfer_syntaxes[0]


RELATED_OCTETS = "multipart/related; type=application/octet-stream"


@pytest.mark.parametrize(
    ("header", "stored", "count", "expected"),
    [
        # native
        ("*/*", IMPLICIT, 1, (True, OCTETS, EXPLICIT)),
        ("*/*", EXPLICIT, 3, (True, OCTETS, EXPLICIT)),
        ("*/*", DEFLATED, 1, (True, OCTETS, EXPLICIT)),
        ("*/*", BIG, 1, (True, OCTETS, BIG)),
        (OCTETS, EXPLICIT, 1, (False, OCTETS, EXPLICIT)),
        (OCTETS, EXPLICIT, 2, None),
        (OCTETS, BIG, 1, (False, OCTETS, EXPLICIT)),
        (RELATED_OCTETS, IMPLICIT, 2, (True, OCTETS, EXPLICIT)),
        (f"{RELATED_OCTETS}; transfer-syntax=*", IMPLICIT, 2, (True, OCTETS, EXPLICIT)),
        (f'{RELATED_OCTETS}; transfer-syntax="*"', BIG, 2, (True, OCTETS, BIG)),
        (f"{RELATED_OCTETS}; transfer-syntax={EXPLICIT}", BIG, 2, (True, OCTETS, EXPLICIT)),
        (f"{RELATED_OCTETS}; transfer-syntax={BIG}", EXPLICIT, 2, None),
        ("image/jpeg", EXPLICIT, 1, (False, "image/jpeg", JPEG_LOSSLESS)),
        ("image/jpeg", EXPLICIT, 2, None),
        ("image/jls", BIG, 1, (False, "image/jls", JPEG_LS)),
        ("image/jp2", DEFLATED, 1, (False, "image/jp2", J2K)),
        ("image/jphc", IMPLICIT, 1, (False, "image/jphc", HTJ2K)),
        ("image/dicom-rle", EXPLICIT, 1, (False, "image/dicom-rle", RLE)),
        ("image/*", EXPLICIT, 1, (False, "image/jls", JPEG_LS)),
        ("image/jpx", EXPLICIT, 1, None),
        ("image/jxl", EXPLICIT, 1, None),
        ("video/mp4", EXPLICIT, 1, None),
        (f"image/jls; q=0.5, {RELATED_OCTETS}", EXPLICIT, 1, (True, OCTETS, EXPLICIT)),
        # compressed
        ("*/*", J2K, 1, (True, "image/jp2", J2K)),
        ("image/*", J2K, 1, (False, "image/jp2", J2K)),
        ("image/jp2", J2K, 1, (False, "image/jp2", J2K)),
        ("image/jp2", J2K, 2, None),
        ("multipart/related; type=image/jp2", J2K, 2, (True, "image/jp2", J2K)),
        ("image/jp2", J2K_LOSSY, 1, (False, "image/jp2", J2K_LOSSY)),
        (f"image/jp2; transfer-syntax={J2K_LOSSY}", J2K, 1, None),
        (f"image/jp2; transfer-syntax={J2K_LOSSY}; transfer-syntax={J2K}", J2K, 1, (False, "image/jp2", J2K)),
        ("image/jpeg", JPEG_BASELINE, 1, (False, "image/jpeg", JPEG_BASELINE)),
        ("image/jpeg", JPEG_LOSSLESS, 1, (False, "image/jpeg", JPEG_LOSSLESS)),
        ("image/jpeg", J2K, 1, (False, "image/jpeg", JPEG_LOSSLESS)),
        ("image/jls", J2K, 1, (False, "image/jls", JPEG_LS)),
        ("image/jpeg", VIDEO, 1, None),
        ("video/mpeg", MPEG2, 1, (False, "video/mpeg", MPEG2)),
        ("video/mp4", MPEG2, 1, None),
        (f"image/jpeg; transfer-syntax={JPEG_LS}", J2K, 1, None),
        (f"image/*; transfer-syntax={JPEG_LS}", J2K, 1, (False, "image/jls", JPEG_LS)),
        (f"*/*; transfer-syntax={HTJ2K}", J2K, 1, (True, "image/jphc", HTJ2K)),
        (
            f"image/jpeg; transfer-syntax={JPEG_BASELINE}",
            JPEG_LOSSLESS,
            1,
            (False, "image/jpeg", JPEG_BASELINE),
        ),
        (RELATED_OCTETS, J2K, 1, (True, OCTETS, EXPLICIT)),
        (RELATED_OCTETS, VIDEO, 1, None),
        (f"{RELATED_OCTETS}; transfer-syntax={EXPLICIT}", J2K, 1, (True, OCTETS, EXPLICIT)),
        (f"{RELATED_OCTETS}; transfer-syntax={EXPLICIT}", VIDEO, 1, None),
        (f"{RELATED_OCTETS}; transfer-syntax=*", J2K, 1, (True, OCTETS, J2K)),
        (f"{RELATED_OCTETS}; transfer-syntax={J2K}", J2K, 1, (True, OCTETS, J2K)),
        ("image/png", J2K, 1, None),
        (f"{OCTETS}; transfer-syntax=*", "1.2.3.4", 1, (False, OCTETS, "1.2.3.4")),
        ("*/*", "1.2.3.4", 1, (True, OCTETS, "1.2.3.4")),
        ("video/mp4", "1.2.840.10008.1.2.4.102", 1, (False, "video/mp4", "1.2.840.10008.1.2.4.102")),
        ("multipart/related", J2K, 3, (True, "image/jp2", J2K)),
    ],
)
def test_the_type_and_syntax_of_frames(
    header: str, stored: str, count: int, expected: tuple[bool, str, str] | None
) -> None:
    assert _frames(header, stored, count) == expected


def test_choices_follow_the_order_of_accept_for_what_only_attributes_decide() -> None:
    header = (
        f"image/jpeg; transfer-syntax={JPEG_BASELINE}; transfer-syntax={JPEG_LOSSLESS}, "
        f"image/jls; q=0.9, image/jpeg; q=0.1, {OCTETS}; q=0.5"
    )
    got = negotiate.frames(parse_accept(header), EXPLICIT, 1)
    assert [choice.transfer_syntaxes[0] for choice in got] == [
        JPEG_BASELINE,
        JPEG_LOSSLESS,
        JPEG_LS,
        EXPLICIT,
    ]
    header = f"{DICOM}; transfer-syntax={JPEG_BASELINE}; transfer-syntax={RLE}, {DICOM}; q=0.1"
    choices = negotiate.instances(parse_accept(header), [EXPLICIT], True)
    assert [choice.transfer_syntaxes for choice in choices] == [(JPEG_BASELINE,), (RLE,), (EXPLICIT,)]


def test_bulk_data_and_metadata() -> None:
    assert negotiate.bulkdata(parse_accept("*/*")) == Representation(False, OCTETS)
    assert negotiate.bulkdata(parse_accept("multipart/related")) == Representation(True, OCTETS)
    with pytest.raises(NotAcceptable):
        negotiate.bulkdata(parse_accept("image/png"))


@pytest.mark.parametrize("single", [True, False])
def test_metadata_is_json_unless_xml_is_asked_for(single: bool) -> None:
    def chosen(header: str) -> tuple[bool, str]:
        form = negotiate.metadata(parse_accept(header), single)
        return form.multipart, form.media_type

    xml = "application/dicom+xml"
    assert chosen("*/*") == (False, "application/dicom+json")
    assert chosen("application/json") == (False, "application/json")
    assert chosen(f'multipart/related; type="{xml}"') == (True, xml)
    assert chosen(f"{xml};q=0.5, application/dicom+json;q=0.4, multipart/related;q=0.1") == (
        (False, xml) if single else (False, "application/dicom+json")
    )
    refused = ['multipart/related; type="application/dicom+json"', "image/png"]
    for header in refused if single else [*refused, xml]:
        with pytest.raises(NotAcceptable):
            negotiate.metadata(parse_accept(header), single)
