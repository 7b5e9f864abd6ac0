"""Structured reports as HTML (PS3.18 §8.7.4): all that dcmtk shows, and nothing that runs."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from shared.dicom import report as pages
from tests import reports
from tests.conftest import Server
from tests.dicom_files import make_file, read_multipart, to_file
from tests.partition import Partition, problem

HTML = "text/html"
PAGE = "text/html; charset=utf-8"
OF_DCMTK = frozenset(
    re.findall(
        r"\w+",
        """patient study series manufacturer completion preliminary verification flag docs predecessor
        verifying observers content item date time this page was generated from a dicom structured
        reporting document by offis dcmtk annex footnote for more details see unknown image reference
        3 6 7 graphic data referenced frame number empty""",
    )
)
"""Words of dcmtk's own; and classes of instances, which it calls otherwise."""


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


class Page(HTMLParser):
    """What a page shows, and whether its elements are closed as they should."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("dt", "dd", "li", "h1", "h2"):
            self.shown.append(" ")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.shown.append(data)

    @property
    def text(self) -> str:
        """All of it, with single blanks."""
        return " ".join("".join(self.shown).split())


def shown(archive: Partition, ds: Dataset | bytes) -> Page:
    """The page of a report that is stored."""
    (path,) = archive.keep(ds if isinstance(ds, bytes) else to_file(ds))
    response = archive.get(f"{path}/rendered", HTML)
    assert (response.status_code, response.headers["Content-Type"]) == (200, PAGE)
    return Page(response.text)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def real(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def files() -> dict[str, bytes]:
    study, series, image = generate_uid(), generate_uid(), generate_uid()
    everything = reports.every_value_type(study, series, image)
    everything.ContentSequence = [i for i in everything.ContentSequence if i.get("ValueType") != "TABLE"]
    return {
        "basic text": to_file(reports.basic_text()),
        "every value type": to_file(everything),
        "key objects": to_file(reports.key_objects(study, series, image)),
        "TID 1500": to_file(reports.measurement_report()),
        "reportsi.dcm": real("reportsi.dcm"),
        "test-SR.dcm": real("test-SR.dcm"),
    }


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.filterwarnings("ignore::UserWarning:highdicom")
def test_everything_that_dcmtk_shows_is_shown(archive: Partition, tmp_path: Path) -> None:
    tool = shutil.which("dsr2html")
    if tool is None:
        pytest.skip("dcmtk is not installed: its pages are what ours are compared with")
    for name, file in files().items():
        (tmp_path / "in.dcm").write_bytes(file)
        options = ["-q", "-Er", "-Ev", "-Ec", "-Ee", "+U8", "+Ra", "+Rd"]
        subprocess.run([tool, *options, tmp_path / "in.dcm", tmp_path / "out.html"], check=True)
        theirs = re.sub(r"<title>.*?</title>|<style.*?</style>|<[^>]*>", " ", _body(tmp_path / "out.html"))
        expected = {w for w in words(html.unescape(theirs)) if w not in OF_DCMTK and "storage" not in w}
        assert expected <= set(words(shown(archive, file).text)), name


def _body(path: Path) -> str:
    return path.read_text("utf-8").partition("<body>")[2]


def test_the_tree_is_shown_with_its_names_values_and_relationships(archive: Partition) -> None:
    study, series, image = generate_uid(), generate_uid(), generate_uid()
    page = shown(archive, reports.every_value_type(study, series, image))
    for expected in (
        "Diameter: 3.50 mm (millimeter, UCUM)",
        "Inferred from: Outline: Polyline (1.5, 2.0), (3.0, 4.25)",
        "Selected from: Source: CT Image Storage",
        "frames 1, 2",
        "Concept modifier: Laterality: Left (7771000, SCT)",
        "Day: 2024-03-01",
        "Hour: 13:14:15.5",
        "Moment: 2024-03-01 13:14:15 +01:00",
        "Tracking: 1.2.3.4.5.6",
        "Reader: Richard Roe",
        "Volume: Point (1.0, 2.0, 3.0), frame of reference 1.2.3.4",
        "Beats: Point, time offsets 1.50, 2.25",
        "channels 1, 2",
        "Earlier report: Basic Text SR Storage 1.2.3.6",
        "Inferred from: item 1.1",
        "Absent: no value, Measurement failure (114006, DCM)",
        "New: A value of type TABLE is not shown.",
        "Patient Jane Doe, ID P-1",
    ):
        assert expected in page.text, expected
    ids = {attributes.get("id") for _, attributes in page.elements}
    links = [str(attributes["href"]) for tag, attributes in page.elements if tag == "a"]
    frames = f"{archive.root}/studies/{study}/series/{series}/instances/{image}/frames/1,2/rendered"
    assert links == [frames, "#item-1.1"]
    assert "item-1.1" in ids


def test_a_reference_leads_to_the_picture(archive: Partition) -> None:
    study, series, image = str(generate_uid()), str(generate_uid()), str(generate_uid())
    archive.keep(make_file(study, series, image))
    page = shown(archive, reports.key_objects(study, series, image))
    assert "Of Interest" in page.text
    assert "For the conference" in page.text
    (link,) = (str(attributes["href"]) for tag, attributes in page.elements if tag == "a")
    assert archive.http.get(link).headers["Content-Type"] == "image/jpeg"


def test_nothing_of_a_document_is_markup_and_no_script_runs(archive: Partition) -> None:
    (path,) = archive.keep(to_file(reports.basic_text()))
    response = archive.get(f"{path}/rendered")
    assert response.headers["Content-Type"] == PAGE
    policy = response.headers["Content-Security-Policy"]
    assert policy == f"sandbox; default-src 'none'; style-src '{pages.STYLE_HASH}'"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    page = Page(response.text)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "b"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "Größe < 3 cm & > 1 cm <script>alert('x')</script>" in page.text
    assert "<b>Tarou</b> Yamada (太郎 山田)" in page.text
    assert ("html", {"lang": "en"}) in page.elements


def test_headings_follow_the_containers(archive: Partition) -> None:
    page = shown(archive, reports.basic_text())
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings == ["h1", "h2", "h2"]


def test_a_report_says_the_language_it_is_written_in(archive: Partition) -> None:
    language = reports.item("CODE", "Language of Content Item and Descendants", "HAS CONCEPT MOD")
    language.ConceptNameCodeSequence = [reports.code("121049", "Language", "DCM")]
    language.ConceptCodeSequence = [reports.code("de", "German", "RFC5646")]
    page = shown(archive, reports.report(reports.COMPREHENSIVE, language))
    assert ("html", {"lang": "de"}) in page.elements


def test_a_very_long_text_is_behind_a_link(archive: Partition) -> None:
    text = "x" * 300_000
    page = shown(archive, reports.report(reports.BASIC_TEXT, reports.item("TEXT", "Finding", TextValue=text)))
    (link,) = (str(attributes["href"]) for tag, attributes in page.elements if tag == "a")
    assert archive.http.get(link).text == text


def test_a_page_has_an_etag_ranges_and_a_head(archive: Partition) -> None:
    (path,) = archive.keep(to_file(reports.basic_text()))
    path += "/rendered"
    whole = archive.get(path, HTML)
    again = archive.get(path, HTML, If_None_Match=whole.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    head = archive.request("HEAD", path, Accept=HTML)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    part = archive.get(path, HTML, Range="bytes=0-8")
    assert (part.status_code, part.content) == (206, b"<!DOCTYPE")
    (single,) = archive.parts(path, f"multipart/related; type={HTML}")
    assert single == ({**single[0], "content-type": PAGE}, whole.content)


def test_a_page_is_what_wado_uri_gives_too(archive: Partition) -> None:
    ds = reports.basic_text()
    archive.keep(to_file(ds))
    uids = {
        "requestType": "WADO",
        "studyUID": ds.StudyInstanceUID,
        "seriesUID": ds.SeriesInstanceUID,
        "objectUID": ds.SOPInstanceUID,
    }
    url = f"{archive.root}/wado"
    response = archive.http.get(url, params=uids)
    assert response.headers["Content-Type"] == PAGE
    assert response.headers["Content-Security-Policy"].startswith("sandbox")
    assert archive.http.get(url, params=uids | {"contentType": "image/jpeg"}).status_code == 406
    file = archive.http.get(url, params=uids | {"contentType": "application/dicom"})
    assert file.headers["Content-Type"].startswith("application/dicom")


@pytest.fixture(scope="module")
def mixed(archive: Partition) -> str:
    """A study of two images, the second of three frames, and two reports."""
    study = str(generate_uid())
    ds = [reports.basic_text(), reports.basic_text()]
    for one in ds:
        one.StudyInstanceUID = study
    archive.keep(make_file(study), make_file(study, frames=3), *map(to_file, ds))
    return f"studies/{study}"


@pytest.mark.parametrize(
    ("accept", "types"),
    [
        ("*/*", ["image/jpeg"] * 4 + [PAGE] * 2),
        (f"multipart/related; type={HTML}", [PAGE] * 2),
        ("multipart/related; type=image/png", ["image/png"] * 4),
        ("multipart/related; type=image/gif", ["image/gif"] * 2),
        (
            f"multipart/related; type=image/png, multipart/related; type={HTML}; q=0.5",
            ["image/png"] * 4 + [PAGE] * 2,
        ),
    ],
)
def test_images_and_reports_come_together_where_both_are_asked_for(
    archive: Partition, mixed: str, accept: str, types: list[str]
) -> None:
    response = archive.get(f"{mixed}/rendered", accept)
    assert response.status_code == 200, response.text
    parts = read_multipart(response.headers["Content-Type"], response.content)
    assert [headers["content-type"] for headers, _ in parts] == types
    for headers, body in parts:
        again: httpx.Response = archive.http.get(
            headers["content-location"], headers={"Accept": headers["content-type"].partition(";")[0]}
        )
        assert again.content == body


def test_what_cannot_be_had_of_a_report_is_406(archive: Partition, mixed: str) -> None:
    assert "multipart/related" in problem(archive.get(f"{mixed}/rendered", HTML), 406)
    (path,) = archive.keep(to_file(reports.basic_text()))
    assert "text/html" in problem(archive.get(f"{path}/rendered", "image/jpeg"), 406)
    assert problem(archive.get(f"{path}/rendered", "text/plain"), 406)
    assert "no image" in problem(archive.get(f"{path}/thumbnail"), 406)
    assert problem(archive.get(f"{path}/frames/1/rendered"), 406)
    assert problem(archive.get(f"{path}/rendered?nothing=1"), 400)
    many = [reports.item("TEXT", "Finding", TextValue="x" * 250_000) for _ in range(34)]
    large = reports.report(reports.BASIC_TEXT, *many)
    assert "MiB" in problem(archive.get(f"{archive.keep(to_file(large))[0]}/rendered"), 406)
    empty = reports.report(reports.BASIC_TEXT, ConceptNameCodeSequence=[])
    assert "content" in problem(archive.get(f"{archive.keep(to_file(empty))[0]}/rendered"), 406)


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [
        ({"Alphabetic": "A^B^C^Dr.^Jr.^x"}, "Dr. B C A, Jr. x"),
        ({"Ideographic": "山田^太郎"}, "太郎 山田"),
        ("odd", "odd"),
        (None, ""),
    ],
)
def test_a_name_is_shown_as_it_is_spoken(value: Any, shown_as: str) -> None:
    assert pages._name(value) == shown_as
