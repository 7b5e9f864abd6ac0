"""A data set that a client sends as JSON or XML: read, checked, and put into one form.

The form is a DICOM JSON object (PS3.18 Annex F) with tags in upper case, in order. VRs must be those of the
dictionary, values must keep to them. Nothing here quotes a value: it may be patient data.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import orjson
from pydicom.datadict import dictionary_VR, keyword_for_tag

from shared.dicom.json_model import BINARY_VRS
from shared.dicom.native_model import NAMESPACE
from shared.dicom.validation import CHECKS
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Json = dict[str, Any]

MOST_DEPTH = 16
_LONGEST_NUMBER = 32
_TAG = re.compile(r"[0-9A-F]{8}")
_INTEGERS: dict[str, tuple[int, int]] = {
    "US": (0, 2**16),
    "SS": (-(2**15), 2**15),
    "UL": (0, 2**32),
    "SL": (-(2**31), 2**31),
    "UV": (0, 2**64),
    "SV": (-(2**63), 2**63),
}
_FLOATS = ("FL", "FD")
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_VRS = frozenset({*CHECKS, *_INTEGERS, *_FLOATS, *BINARY_VRS, "AT", "SQ"})


def from_json(body: bytes) -> Json:
    """The data set of a JSON body: an object, or an array of one. Raises InvalidRequest."""
    try:
        given = orjson.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not JSON.") from None
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    if not isinstance(given, dict):
        raise InvalidRequest("The body must be one DICOM JSON object, or an array of one.")
    return _checked(given, "", 0)


def _checked(given: Json, path: str, depth: int) -> Json:
    if depth > MOST_DEPTH:
        raise InvalidRequest(f"{path[:64]} is nested too deep.")
    found: Json = {}
    for name, element in given.items():
        tag = name.upper()
        if not _TAG.fullmatch(tag):
            raise InvalidRequest(f"{name[:64]!r} is no tag of eight hexadecimal digits.")
        if tag in found:
            raise InvalidRequest(f"{path}{_shown(tag)} is given twice.")
        if tag[:4] in ("0000", "0002", "7FE0", "FFFE") or tag.endswith("0000"):
            raise InvalidRequest(f"{path}{_shown(tag)} has no place in a workitem.")
        found[tag] = _element(tag, element, path, depth)
    return {tag: found[tag] for tag in sorted(found)}


def _shown(tag: str) -> str:
    return keyword_for_tag(int(tag, 16)) or f"({tag[:4]},{tag[4:]})"


def _element(tag: str, given: Any, path: str, depth: int) -> Json:
    name = path + _shown(tag)
    if not isinstance(given, dict) or not set(given) <= {"vr", "Value", "InlineBinary"}:
        raise InvalidRequest(f"{name} must be an object of vr and Value, or InlineBinary.")
    vr = _vr(tag, given.get("vr"), name)
    if "InlineBinary" in given:
        return {"vr": vr, "InlineBinary": _inline(vr, given, name)}
    values = given.get("Value", [])
    if not isinstance(values, list):
        raise InvalidRequest(f"The Value of {name} must be an array.")
    if vr in BINARY_VRS and values:
        raise InvalidRequest(f"{name} of VR {vr} must be given as InlineBinary.")
    checked = [_value(vr, value, name, depth) for value in values]
    return {"vr": vr, "Value": checked} if any(value is not None for value in checked) else {"vr": vr}


def _vr(tag: str, given: Any, name: str) -> str:
    """The VR, which must be one that the dictionary has for the attribute."""
    try:
        known = str(dictionary_VR(int(tag, 16))).split(" or ")
    except KeyError:
        known = ["LO"] if int(tag[:4], 16) % 2 and tag[4:6] == "00" else []
    if given is None and len(known) == 1:
        return known[0]
    if not isinstance(given, str) or (known and given not in known) or given not in _VRS:
        wanted = f"has the VR {' or '.join(known)}, which vr must say" if known else "needs a VR"
        raise InvalidRequest(f"{name} {wanted}.")
    return given


def _inline(vr: str, given: Json, name: str) -> str:
    try:
        if vr not in BINARY_VRS or "Value" in given:
            raise ValueError
        base64.b64decode(given["InlineBinary"], validate=True)
    except (ValueError, TypeError, binascii.Error):
        raise InvalidRequest(f"The InlineBinary of {name} is not base64 of a binary VR.") from None
    return str(given["InlineBinary"])


def _value(vr: str, value: Any, name: str, depth: int) -> Any:
    """One value in its form, None where it is empty."""
    if vr == "SQ":
        if not isinstance(value, dict):
            raise InvalidRequest(f"An item of {name} is no object.")
        return _checked(value, f"{name}.", depth + 1)
    if value is None or value == "":
        return None
    if vr == "PN":
        return _person_name(value, name)
    if vr in _INTEGERS or vr in _FLOATS or (vr in ("DS", "IS") and not isinstance(value, str)):
        return _number(vr, value, name)
    if not isinstance(value, str):
        raise InvalidRequest(f"A value of {name} is no string.")
    text = value if vr in ("LT", "ST", "UT") else value.strip(" ")
    if vr == "AT":
        if not _TAG.fullmatch(text.upper()):
            raise InvalidRequest(f"A value of {name} is no tag.")
        return text.upper()
    _check_text(vr, text, name)
    if vr in ("DS", "IS") and text:
        return _number(vr, float(text) if re.search("[.eE]", text) else int(text), name)
    return text or None


def _check_text(vr: str, text: str, name: str) -> None:
    problem = CHECKS[vr](text) if text else ""
    if "\\" in text and vr not in ("LT", "ST", "UT", "UR"):
        problem = problem or "holds a backslash"
    if problem:
        raise InvalidRequest(f"A value of {name} {problem}.")


def _person_name(value: Any, name: str) -> Json | None:
    given = {"Alphabetic": value} if isinstance(value, str) else value
    known = isinstance(given, dict) and set(given) <= set(_GROUPS)
    groups: list[Any] = [given.get(group, "") for group in _GROUPS] if known else [None]
    if not all(isinstance(group, str) and "=" not in group for group in groups):
        raise InvalidRequest(f"A value of {name} must be an object of {', '.join(_GROUPS)}.")
    _check_text("PN", "=".join(groups), name)
    return {name: group for name, group in zip(_GROUPS, groups, strict=True) if group} or None


def _number(vr: str, value: Any, name: str) -> int | float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    low, high = _INTEGERS.get(vr, (-(2**31), 2**31))
    whole = vr in _INTEGERS or vr == "IS"
    if not number or (whole and (value != int(value) or not low <= value < high)):
        raise InvalidRequest(f"A value of {name} is no {vr}.")
    return int(value) if whole else value


# --- XML ---------------------------------------------------------------------------------------------


def from_xml(body: bytes) -> Json:
    """The data set of a Native DICOM Model (PS3.19 §A.1). Raises InvalidRequest."""
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise InvalidRequest("The body is not XML, or has a document type.") from None
    if root.tag != f"{{{NAMESPACE}}}NativeDicomModel":
        raise InvalidRequest("The body is no NativeDicomModel.")
    return _checked(_attributes(root, 0), "", 0)


def _attributes(parent: Element, depth: int) -> Json:
    if depth > MOST_DEPTH:
        raise InvalidRequest("The body is nested too deep.")
    found: Json = {}
    blocks: dict[str, int] = {}
    for attribute in parent:
        if attribute.tag != f"{{{NAMESPACE}}}DicomAttribute":
            raise InvalidRequest("The body has an element that is no DicomAttribute where one should be.")
        tag, vr = attribute.get("tag", "").upper(), attribute.get("vr", "")
        creator = attribute.get("privateCreator", "")
        if creator and _TAG.fullmatch(tag):
            block = blocks.setdefault(creator, 0x10 + len(blocks))
            found[f"{tag[:4]}00{block:02X}"] = {"vr": "LO", "Value": [creator]}
            tag = f"{tag[:4]}{block:02X}{tag[6:]}"
        if tag in found:
            raise InvalidRequest("The body has an attribute twice.")
        found[tag] = {"vr": vr} | _xml_value(attribute, vr, depth)
    return found


def _xml_value(attribute: Element, vr: str, depth: int) -> Json:
    children = sorted(attribute, key=_number_of)
    kinds = {child.tag.removeprefix(f"{{{NAMESPACE}}}") for child in children}
    if not kinds:
        return {}
    readers: dict[str, Callable[[Iterable[Element]], Json]] = {
        "Value": lambda them: {"Value": [_xml_text(vr, child.text or "") for child in them]},
        "Item": lambda them: {"Value": [_attributes(child, depth + 1) for child in them]},
        "PersonName": lambda them: {"Value": [_xml_name(child) for child in them]},
        "InlineBinary": lambda them: {"InlineBinary": "".join((next(iter(them)).text or "").split())},
    }
    if len(kinds) > 1 or not kinds <= readers.keys():
        raise InvalidRequest("The body has an attribute whose content is not that of the Native DICOM Model.")
    return readers[kinds.pop()](children)


def _number_of(child: Element) -> int:
    """Where a value comes among the others of its attribute; those without a number stay as they are."""
    number = child.get("number", "0")
    if not re.fullmatch("[0-9]{1,6}", number):
        raise InvalidRequest("The body has a value whose number is none.")
    return int(number)


def _xml_text(vr: str, text: str) -> Any:
    """A value as JSON has it: numbers of binary VRs are numbers."""
    try:
        if vr in _INTEGERS and len(text) <= _LONGEST_NUMBER:
            return int(text)
        return float(text) if vr in _FLOATS else text
    except ValueError:
        return text  # the check that follows names the attribute


def _xml_name(name: Element) -> Json:
    components = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    groups = {}
    for group in name:
        texts = [group.findtext(f"{{{NAMESPACE}}}{component}") or "" for component in components]
        groups[group.tag.removeprefix(f"{{{NAMESPACE}}}")] = "^".join(texts).rstrip("^")
    return groups
