"""A structured report as a page of HTML (PS3.3 §C.17.3, PS3.18 §8.7.4): the content tree, item by item.

Nothing of the document is markup: every text is escaped, the page has no script, and its one style sheet is
known by :data:`STYLE_HASH`, so that a policy can forbid all others. Items are numbered as references within
the tree count them (ReferencedContentItemIdentifier), and ``#item-1.2`` leads to one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any

from shared.dicom.document import value_of, values_of

MEDIA_TYPE = "text/html"

LARGEST = 8 * 1024 * 1024
"""Bytes of metadata beyond which a document is not rendered: as objects they take fifteen times as much."""

_STORAGE = "1.2.840.10008.5.1.4.1.1.88."  # Basic Text SR to Key Object Selection (PS3.4 §B.5)

STYLE = """
body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;
background:#fff}
h1,h2,h3,h4,h5,h6{line-height:1.25;margin:1.2rem 0 .3rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}
dt{font-weight:600}dd{margin:0}
ul{list-style:none;margin:0;padding-left:1.25rem;border-left:2px solid #d5d9dd}
main>section>ul{padding-left:0;border:0}
li{margin:.25rem 0}
.concept{font-weight:600}.relation{font-style:italic;color:#555}
.text{white-space:pre-wrap;overflow-wrap:anywhere}
small{color:#555}
a{color:#0b57d0}
@media (prefers-color-scheme:dark){body{background:#16191c;color:#e8e8e8}small,.relation{color:#a9b0b6}
ul{border-color:#3a4046}a{color:#8ab4f8}}
@media print{body{max-width:none;margin:0}}
"""
STYLE_HASH = "sha256-" + base64.b64encode(sha256(STYLE.encode()).digest()).decode()

_RELATIONSHIPS = {
    "CONTAINS": "",
    "HAS OBS CONTEXT": "Observation context",
    "HAS CONCEPT MOD": "Concept modifier",
    "HAS PROPERTIES": "Has properties",
    "HAS ACQ CONTEXT": "Acquisition context",
    "INFERRED FROM": "Inferred from",
    "SELECTED FROM": "Selected from",
}
_SEXES = {"M": "male", "F": "female", "O": "other"}
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_UID = re.compile(r"[0-9A-Za-z.-]{1,64}")
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)")
_TIME = re.compile(r"(\d\d)(\d\d)?(\d\d(?:\.\d+)?)?")
_DATETIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d(?:\d\d(?:\d\d(?:\.\d+)?)?)?)?([+-]\d{4})?")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_LANGUAGE_CODES = frozenset({"121049"})  # Language of Content Item and Descendants (TID 1204)
_FEW_POINTS = 12
_DEEPEST_HEADING = 6

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Links:
    """Where references lead: the URL of the Studies service, and that of the document's own instance."""

    root: str
    instance: str


def is_report(sop_class: str) -> bool:
    """Whether instances of the SOP class are documents with a content tree."""
    return sop_class.startswith(_STORAGE)


def render(document: bytes, links: Links) -> str:
    """The page for a DICOM JSON object. Raises ValueError, with a sentence, where there is no content."""
    content = json.loads(document, parse_float=str, parse_int=str)  # digits are shown as they are stored
    if not values_of(content, "0040A043") and not _items(content, "0040A730"):
        raise ValueError("The document has no content that could be rendered.")
    return "".join(_Page(content, links).pieces())


class _Page:
    def __init__(self, document: Json, links: Links) -> None:
        self._document = document
        self._links = links
        self._series = _series_of_references(document)

    def pieces(self) -> Iterator[str]:
        title = _meaning(self._document, "0040A043") or _uid_name(_text(self._document, "00080016"))
        yield f'<!DOCTYPE html>\n<html lang="{_language(self._document)}"><head><meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
        yield f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body><header><dl>\n"
        for label, value in self._header():
            if value:
                yield f"<dt>{label}</dt><dd>{value}</dd>\n"
        yield "</dl></header>\n<main>"
        yield from self._container(self._document, "1", 1, title)
        yield "</main></body></html>\n"

    # --- the head of the page ------------------------------------------------------------------------

    def _header(self) -> Iterator[tuple[str, str]]:
        d = self._document
        yield "Patient", _joined(_name(value_of(d, "00100010")), _labelled("ID", _text(d, "00100020")))
        yield "Born", _date(_text(d, "00100030"))
        yield "Sex", _safe(_SEXES.get(_text(d, "00100040"), _text(d, "00100040")))
        yield "Referring physician", _name(value_of(d, "00080090"))
        yield "Study", _joined(_safe(_text(d, "00081030")), _moment(d, "00080020", "00080030"))
        yield "Accession number", _safe(_text(d, "00080050"))
        number = _text(d, "00200011")
        yield "Series", _joined(_safe(_text(d, "0008103E")), _safe(f"#{number}" if number else ""))
        yield "Manufacturer", _joined(_safe(_text(d, "00080070")), _safe(_text(d, "00081090")))
        yield "Institution", _safe(_text(d, "00080080"))
        yield "Document", _safe(_uid_name(_text(d, "00080016")))
        yield "Content date", _moment(d, "00080023", "00080033")
        yield "Completion", _joined(_safe(_text(d, "0040A491")), _safe(_text(d, "0040A492")))
        yield "Preliminary", _safe(_text(d, "0040A496"))
        yield "Verification", _safe(_text(d, "0040A493"))
        for observer in _items(d, "0040A073"):
            yield "Verified by", self._observer(observer)
        for author in _items(d, "0040A078"):
            name = _name(value_of(author, "0040A123")) or _safe(_text(author, "00081090"))
            yield "Author", _joined(name, _safe(_text(author, "00080080")))
        for label, tag in (("Replaces", "0040A360"), ("Identical to", "0040A525")):
            for uid, sop_class in _references(d, tag):
                yield label, self._reference(sop_class, uid, "")

    def _observer(self, observer: Json) -> str:
        code = _code(next(iter(_items(observer, "0040A088")), {}))
        name = _joined(_name(value_of(observer, "0040A075")), code)
        return _joined(name, _safe(_text(observer, "0040A027")), _datetime(_text(observer, "0040A030")))

    # --- the content tree ----------------------------------------------------------------------------

    def _container(self, item: Json, place: str, depth: int, title: str) -> Iterator[str]:
        level = min(depth, _DEEPEST_HEADING)
        yield f'<section id="item-{place}">'
        if title:
            yield f"<h{level}{_code_title(item)}>{_safe(title)}</h{level}>"
        yield _observed(item)
        yield from self._children(item, place, depth)
        yield "</section>"

    def _children(self, item: Json, place: str, depth: int) -> Iterator[str]:
        children = _items(item, "0040A730")
        if not children:
            return
        yield "\n<ul>"
        for number, child in enumerate(children, 1):
            yield "\n<li>"
            yield from self._item(child, f"{place}.{number}", depth + 1)
            yield "</li>"
        yield "</ul>"

    def _item(self, item: Json, place: str, depth: int) -> Iterator[str]:
        relationship = _text(item, "0040A010")
        relation = _safe(_RELATIONSHIPS.get(relationship, relationship.capitalize()))
        if relation:
            yield f'<span class="relation">{relation}:</span> '
        referenced = [str(number) for number in values_of(item, "0040DB73")]
        if referenced:
            target = _safe(".".join(referenced))
            yield f'<a href="#item-{target}">item {target}</a>'
            return
        title = _meaning(item, "0040A043")
        if _text(item, "0040A040") == "CONTAINER":
            yield from self._container(item, place, depth, title)
            return
        yield f'<span id="item-{place}">'
        if title:
            yield f'<span class="concept"{_code_title(item)}>{_safe(title)}:</span> '
        yield f"{self._value(item)}</span>{_observed(item)}"
        yield from self._children(item, place, depth)

    def _value(self, item: Json) -> str:
        match _text(item, "0040A040"):
            case "TEXT":
                return self._long_text(item)
            case "CODE":
                return _code(next(iter(_items(item, "0040A168")), {}))
            case "NUM":
                return _measurement(item)
            case "PNAME":
                return _name(value_of(item, "0040A123"))
            case "DATE":
                return _date(_text(item, "0040A121"))
            case "TIME":
                return _time(_text(item, "0040A122"))
            case "DATETIME":
                return _datetime(_text(item, "0040A120"))
            case "UIDREF":
                uid = _text(item, "0040A124")
                name = _uid_name(uid)
                return _safe(uid if name == uid else f"{name} ({uid})")
            case "IMAGE" | "COMPOSITE" | "WAVEFORM":
                return self._object(item)
            case "SCOORD" | "SCOORD3D":
                return _coordinates(item)
            case "TCOORD":
                return _times(item)
            case other:
                return f"<small>A value of type {_safe(other or 'unknown')} is not shown.</small>"

    def _long_text(self, item: Json) -> str:
        element = item.get("0040A160", {})
        if "BulkDataURI" in element:  # longer than metadata keeps in place
            url = f"{self._links.instance}/bulkdata{element['BulkDataURI']}"
            return f'<a href="{_safe(url)}">A long text</a>'
        return f'<span class="text">{_safe(_text(item, "0040A160"))}</span>'

    def _object(self, item: Json) -> str:
        reference = next(iter(_items(item, "00081199")), {})
        frames = [str(number) for number in values_of(reference, "00081160")]
        parts = [
            self._reference(_text(reference, "00081150"), _text(reference, "00081155"), ",".join(frames))
        ]
        for label, tag in (("frames", "00081160"), ("segments", "0062000B"), ("channels", "0040A0B0")):
            numbers = ", ".join(str(number) for number in values_of(reference, tag))
            parts.append(_labelled(label, numbers))
        for state in _items(reference, "00081199"):
            shown_with = self._reference(_text(state, "00081150"), _text(state, "00081155"), "")
            parts.append(f"shown with {shown_with}")
        return _joined(*parts)

    def _reference(self, sop_class: str, uid: str, frames: str) -> str:
        """An instance by the name of its class and its UID, with a link where its series is known."""
        name = _safe(_uid_name(sop_class) or "Instance")
        shown = f"{name} <small>{_safe(uid)}</small>"
        if uid not in self._series or not _UID.fullmatch(uid):
            return shown
        study, series = self._series[uid]
        path = f"/frames/{frames}/rendered" if re.fullmatch(r"[0-9,]+", frames) else "/rendered"
        url = f"{self._links.root}/studies/{study}/series/{series}/instances/{uid}{path}"
        return f'<a href="{_safe(url)}">{name}</a> <small>{_safe(uid)}</small>'


# --- references --------------------------------------------------------------------------------------


def _series_of_references(document: Json) -> dict[str, tuple[str, str]]:
    """Study and series of every instance that the document says it refers to (PS3.3 §C.18.4.1)."""
    found: dict[str, tuple[str, str]] = {}
    for tag in ("0040A375", "0040A385", "0040A360", "0040A525"):
        for study in _items(document, tag):
            for series in _items(study, "00081115"):
                place = _text(study, "0020000D"), _text(series, "0020000E")
                if all(_UID.fullmatch(uid) for uid in place):
                    found |= {_text(of, "00081155"): place for of in _items(series, "00081199")}
    return found


def _references(document: Json, tag: str) -> Iterator[tuple[str, str]]:
    for study in _items(document, tag):
        for series in _items(study, "00081115"):
            for reference in _items(series, "00081199"):
                yield _text(reference, "00081155"), _text(reference, "00081150")


# --- values ------------------------------------------------------------------------------------------


def _code(code: Json) -> str:
    """The meaning of a code, and the code."""
    meaning, value = _text(code, "00080104"), _code_value(code)
    scheme = " ".join(filter(None, (_text(code, "00080102"), _text(code, "00080103"))))
    coded = ", ".join(filter(None, (value, scheme)))
    return _joined(_safe(meaning), f"<small>({_safe(coded)})</small>" if coded else "", separator=" ")


def _code_value(code: Json) -> str:
    """CodeValue, LongCodeValue or URNCodeValue (PS3.3 §8.1)."""
    return next(filter(None, (_text(code, tag) for tag in ("00080100", "00080119", "00080120"))), "")


def _code_title(item: Json) -> str:
    """The code of the concept's name, as a tooltip."""
    code = next(iter(_items(item, "0040A043")), {})
    coded = ", ".join(filter(None, (_code_value(code), _text(code, "00080102"))))
    return f' title="{_safe(coded)}"' if coded else ""


def _meaning(item: Json, tag: str) -> str:
    code = next(iter(_items(item, tag)), {})
    return _text(code, "00080104") or _code_value(code)


def _measurement(item: Json) -> str:
    measured = next(iter(_items(item, "0040A300")), {})
    numbers = " ".join(str(number) for number in values_of(measured, "0040A30A"))
    unit = next(iter(_items(measured, "004008EA")), {})
    short, meaning, scheme = _code_value(unit), _text(unit, "00080104"), _text(unit, "00080102")
    shown = "" if short == "1" else short
    more = ", ".join(filter(None, (meaning if meaning != shown else "", scheme)))
    qualifier = _code(next(iter(_items(item, "0040A301")), {}))
    if not numbers:
        return _joined("<small>no value</small>", qualifier)
    value = " ".join(filter(None, (numbers, shown)))
    return _joined(_safe(value) + (f" <small>({_safe(more)})</small>" if more else ""), qualifier)


def _coordinates(item: Json) -> str:
    size = 3 if _text(item, "0040A040") == "SCOORD3D" else 2
    numbers = [str(number) for number in values_of(item, "00700022")]
    points = [f"({', '.join(numbers[at : at + size])})" for at in range(0, len(numbers), size)]
    graphic = _safe(_text(item, "00700023").capitalize())
    frame = _labelled("frame of reference", _text(item, "30060024"))
    listed = _safe(", ".join(points))
    if len(points) > _FEW_POINTS:
        listed = f"<details><summary>{len(points)} points</summary>{listed}</details>"
    elif "00700022" in item and "BulkDataURI" in item["00700022"]:
        listed = "<small>very many points</small>"
    return _joined(f"{graphic} {listed}", frame)


def _times(item: Json) -> str:
    kinds = (
        ("sample positions", "0040A132", _safe),
        ("time offsets", "0040A138", _safe),
        ("", "0040A13A", _datetime),
    )
    parts = [_safe(_text(item, "0040A130").capitalize())]
    for label, tag, shown in kinds:
        listed = ", ".join(shown(str(value)) for value in values_of(item, tag))
        parts.append(f"{label} {listed}".strip() if listed else "")
    return _joined(*parts)


def _name(value: object) -> str:
    """A person's name as it is spoken; the groups of other writings in parentheses."""
    if not isinstance(value, Mapping):
        return _safe(value) if isinstance(value, str) else ""
    groups = (_spoken(str(value.get(group, ""))) for group in ("Alphabetic", "Ideographic", "Phonetic"))
    first, *others = filter(None, groups) or [""]
    return first + (f" ({', '.join(others)})" if others else "")


def _spoken(group: str) -> str:
    family, given, middle, prefix, suffix = [*group.split("^", 4), "", "", "", ""][:5]
    spoken = " ".join(filter(None, (prefix, given, middle, family)))
    return _safe(", ".join(filter(None, (spoken, suffix.replace("^", " ")))))


def _date(value: str) -> str:
    match = _DATE.fullmatch(value)
    return f'<time datetime="{(iso := "-".join(match.groups()))}">{iso}</time>' if match else _safe(value)


def _time(value: str) -> str:
    match = _TIME.fullmatch(value)
    return ":".join(filter(None, match.groups())) if match else _safe(value)


def _datetime(value: str) -> str:
    match = _DATETIME.fullmatch(value)
    if not match:
        return _safe(value)
    year, month, day, clock, offset = match.groups()
    date = "-".join(filter(None, (year, month, day)))
    zone = f"{offset[:3]}:{offset[3:]}" if offset else ""
    return " ".join(filter(None, (date, _time(clock) if clock else "", zone)))


def _moment(item: Json, date: str, time: str) -> str:
    return _joined(_date(_text(item, date)), _time(_text(item, time)), separator=" ")


def _observed(item: Json) -> str:
    moment = _datetime(_text(item, "0040A032"))
    return f" <small>observed {moment}</small>" if moment else ""


def _labelled(label: str, value: str) -> str:
    return f"{label} {_safe(value)}" if value else ""


def _joined(*parts: str, separator: str = ", ") -> str:
    return separator.join(filter(None, parts))


# --- attributes and text -----------------------------------------------------------------------------


def _items(document: Json, tag: str) -> list[Json]:
    return [item for item in values_of(document, tag) if isinstance(item, Mapping)]


def _text(document: Json, tag: str) -> str:
    value = value_of(document, tag, "")
    return str(value) if isinstance(value, str) else ""


def _uid_name(uid: str) -> str:
    """The name the standard gives a UID, or the UID."""
    from pydicom.uid import UID

    return UID(uid).name if uid else ""


def _language(document: Json) -> str:
    """The language the document says it is written in (TID 1204); English, as the labels are, without."""
    for item in _items(document, "0040A730"):
        names = _items(item, "0040A043")
        codes = _items(item, "0040A168")
        if names and codes and _code_value(names[0]) in _LANGUAGE_CODES:
            spoken = _code_value(codes[0])
            return spoken if _LANGUAGE.fullmatch(spoken) else "en"
    return "en"


def _safe(text: str) -> str:
    """Text as HTML, in elements and attributes."""
    return escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))
