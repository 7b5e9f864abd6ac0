"""A reader of the Native DICOM Model (PS3.19 §A.1) written apart from the server's writer, and strict."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

NAMESPACE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
SPACE = "{http://www.w3.org/XML/1998/namespace}space"
COMPONENTS = ["FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix"]
TEXTS = {"AE", "AS", "AT", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}


def read(xml: bytes) -> dict[str, Any]:
    """The DICOM JSON object an XML document stands for, its numbers as text.

    Private attributes are keyed by tag and creator. Asserts that the document keeps to the model.
    """
    root = ElementTree.fromstring(xml)
    assert root.tag == f"{NAMESPACE}NativeDicomModel"
    assert root.attrib == {SPACE: "preserve"}
    return _data_set(root)


def _data_set(parent: ElementTree.Element) -> dict[str, Any]:
    assert not (parent.text or "").strip()
    found: dict[str, Any] = {}
    for element in parent:
        assert element.tag == f"{NAMESPACE}DicomAttribute"
        assert {"tag", "vr"} <= set(element.attrib) <= {"tag", "vr", "keyword", "privateCreator"}
        tag, creator = element.attrib["tag"], element.attrib.get("privateCreator")
        private = int(tag[:4], 16) % 2 == 1
        assert not private or "keyword" not in element.attrib
        key = f"{tag} {creator}" if creator else tag
        assert key not in found, key
        found[key] = {"vr": element.attrib["vr"]} | _value(element)
    return found


def _value(attribute: ElementTree.Element) -> dict[str, Any]:
    children = list(attribute)
    if not children:
        assert not attribute.text
        return {}
    kinds = {child.tag.removeprefix(NAMESPACE) for child in children}
    assert len(kinds) == 1, kinds
    (kind,) = kinds
    if kind == "BulkData":
        (child,) = children
        assert set(child.attrib) == {"uri"}
        return {"BulkDataURI": child.attrib["uri"]}
    if kind == "InlineBinary":
        (child,) = children
        return {"InlineBinary": child.text}
    assert [child.attrib for child in children] == [{"number": str(n + 1)} for n in range(len(children))]
    if kind == "Item":
        assert attribute.attrib["vr"] == "SQ"
        return {"Value": [_data_set(child) for child in children]}
    if kind == "PersonName":
        assert attribute.attrib["vr"] == "PN"
        return {"Value": [_person_name(child) for child in children]}
    assert kind == "Value"
    assert not any(list(child) for child in children)
    return {"Value": [child.text for child in children]}


def _person_name(name: ElementTree.Element) -> dict[str, str] | None:
    groups = {}
    for group in name:
        kind = group.tag.removeprefix(NAMESPACE)
        assert kind in ("Alphabetic", "Ideographic", "Phonetic")
        parts = {part.tag.removeprefix(NAMESPACE): part.text or "" for part in group}
        assert list(parts) == [component for component in COMPONENTS if component in parts]
        groups[kind] = "^".join(parts.get(component, "") for component in COMPONENTS).rstrip("^")
    return groups or None


def keywordless(xml: bytes) -> list[str]:
    """Tags of the standard attributes, at any depth, that come without a keyword."""
    found = ElementTree.fromstring(xml).iter(f"{NAMESPACE}DicomAttribute")
    tags = [element.attrib["tag"] for element in found if "keyword" not in element.attrib]
    return [tag for tag in tags if int(tag[:4], 16) % 2 == 0]


def expected(document: dict[str, Any]) -> dict[str, Any]:
    """What :func:`read` makes of the XML of a DICOM JSON object that was loaded with numbers as text."""
    creators = {
        tag[:4] + tag[6:]: element["Value"][0]
        for tag, element in document.items()
        if int(tag[:4], 16) % 2 == 1 and tag[4:6] == "00" and tag[6] != "0" and element.get("Value")
    }
    return {_key(tag, creators): _expected(element) for tag, element in document.items()}


def _key(tag: str, creators: dict[str, str]) -> str:
    creator = creators.get(tag[:6]) if int(tag[:4], 16) % 2 == 1 and tag[4:6] != "00" else None
    return f"{tag[:4]}00{tag[6:]} {_legal(creator)}" if creator else tag


def _expected(element: dict[str, Any]) -> dict[str, Any]:
    if "Value" not in element:
        return element
    return {"vr": element["vr"], "Value": [_expected_value(element["vr"], v) for v in element["Value"]]}


def _expected_value(vr: str, value: Any) -> Any:
    if value is None:
        return None
    if vr == "SQ":
        return expected(value)
    if vr == "PN":
        return {name: _legal(group).rstrip("^") for name, group in value.items() if group.strip("^")} or None
    return _legal(value)


def _legal(text: str) -> str:
    return "".join(c if c in "\t\n\r" or " " <= c not in "\ufffe\uffff" else "\ufffd" for c in text)
