"""The OpenAPI document as a WADL application (PS3.18 §8.9, Annex H)."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

Json = dict[str, Any]

_NAMESPACE = "http://wadl.dev.java.net/2009/02"
_SCHEMA = "http://www.w3.org/2001/XMLSchema"
_TYPES = {"integer": "xsd:integer", "boolean": "xsd:boolean"}


def application(document: Json) -> bytes:
    """The same resources and methods, in WADL."""
    root = ET.Element("application", {"xmlns": _NAMESPACE, "xmlns:xsd": _SCHEMA})
    ET.SubElement(root, "doc", {"title": document["info"]["title"]})
    resources = ET.SubElement(root, "resources", {"base": document["servers"][0]["url"] + "/"})
    known = document["components"]["parameters"]
    for path, item in document["paths"].items():
        resource = ET.SubElement(resources, "resource", {"path": path.lstrip("/")})
        for parameter in item.get("parameters", []):
            _add_parameter(resource, _resolved(parameter, known))
        for method, operation in item.items():
            if method != "parameters":
                _add_method(resource, method.upper(), operation, known)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _add_method(resource: ET.Element, name: str, operation: Json, known: Json) -> None:
    method = ET.SubElement(resource, "method", {"name": name, "id": operation["operationId"]})
    ET.SubElement(method, "doc", {"title": operation["summary"]})
    request = ET.Element("request")
    for parameter in operation.get("parameters", []):
        _add_parameter(request, _resolved(parameter, known))
    _add_representations(request, operation.get("requestBody", {}))
    if len(request):
        method.append(request)
    for status, answer in operation["responses"].items():
        response = ET.SubElement(method, "response", {"status": status})
        ET.SubElement(response, "doc", {"title": answer["description"]})
        _add_representations(response, answer)


def _add_parameter(parent: ET.Element, parameter: Json) -> None:
    schema = parameter["schema"]
    attributes = {
        "name": parameter["name"],
        "style": "template" if parameter["in"] == "path" else parameter["in"],
        "type": _TYPES.get(schema.get("type", ""), "xsd:string"),
    }
    if parameter.get("required"):
        attributes["required"] = "true"
    if schema.get("type") == "array":
        attributes["repeating"] = "true"
    if "default" in schema:
        default = schema["default"]
        attributes["default"] = str(default).lower() if isinstance(default, bool) else str(default)
    ET.SubElement(parent, "param", attributes)


def _add_representations(parent: ET.Element, holder: Json) -> None:
    for media_type in holder.get("content", {}):
        ET.SubElement(parent, "representation", {"mediaType": media_type})


def _resolved(parameter: Json, known: Json) -> Json:
    reference = parameter.get("$ref", "")
    found: Json = known[reference.rpartition("/")[2]] if reference else parameter
    return found
