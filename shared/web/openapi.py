"""The OpenAPI 3.1 document, made from the registered routes, the transactions and the attribute table.

Route templates of the app are OpenAPI path templates already. Every searchable attribute is a query
parameter of the searches whose level has it (PS3.18 §8.3.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shared.dicom import workitem_attributes
from shared.dicom.attributes import Attribute, Level, by_path
from shared.dicom.changes import MOST_STUDIES
from shared.dicom.identifiers import DEFAULT_PARTITION
from shared.dicom.search_terms import is_known
from shared.web import query_params
from shared.web.transactions import TRANSACTIONS, Transaction

Json = dict[str, Any]

VERSION = "0.1.0"
"""The server's version, equal to that of ``pyproject.toml``."""

_DESCRIPTION = f"""\
DICOMweb (PS3.18) over Blob Storage and SQL: store, retrieve, search, delete, and a change feed.

Every path below `/v2/studies`, `/v2/series` and `/v2/instances` exists under `/v2/partitions/{{partition}}`
too; without it the partition is `{DEFAULT_PARTITION}`. HEAD answers as GET does, without a body. A path or
method that is not listed is answered with 404."""

_PARTITION_NAME = {"type": "string", "pattern": "^[0-9A-Za-z._-]{1,64}$"}
_UID = {"type": "string", "pattern": "^[0-9A-Za-z.-]{1,64}$"}
_PATH_PARAMETERS: dict[str, tuple[Json, str]] = {
    "partition": (_PARTITION_NAME, "Name of a partition."),
    "study": (_UID, "Study Instance UID (0020,000D)."),
    "series": (_UID, "Series Instance UID (0020,000E)."),
    "instance": (_UID, "SOP Instance UID (0008,0018)."),
    "frames": ({"type": "string", "examples": ["1", "1,2,3"]}, "Frame numbers from 1, separated by commas."),
    "tag": (
        {"type": "string", "examples": ["SliceThickness", "00180050", "ViewCodeSequence.CodeValue"]},
        "Keyword or tag of an attribute, inside sequences preceded by theirs.",
    ),
    "operation": ({"type": "string", "pattern": "^[0-9a-f]{32}$"}, "Id of a long-running operation."),
    "workitem": (_UID, "SOP Instance UID (0008,0018) of a workitem."),
    "subscriber": (
        {"type": "string", "minLength": 1, "maxLength": 16},
        "AE title of a subscriber of workitems.",
    ),
    "path": (
        {"type": "string", "examples": ["7FE00010"]},
        "The value within the instance: its tag, below sequences preceded by tag and item of each; "
        "as a BulkDataURI gives it.",
    ),
}
_ORIGINAL_OPTION: tuple[Json, str] = (
    {"type": "boolean", "default": False},
    "Instances that a bulk update has changed as they were before the first one.",
)
_SEARCH_OPTIONS: dict[str, tuple[Json, str]] = {
    "limit": (
        {
            "type": "integer",
            "minimum": 1,
            "maximum": query_params.MAX_LIMIT,
            "default": query_params.DEFAULT_LIMIT,
        },
        "The most results to return.",
    ),
    "offset": ({"type": "integer", "minimum": 0, "default": 0}, "Results to pass over."),
    "cursor": (
        {"type": "string"},
        "Where to go on: from the Link header of the page before; instead of offset.",
    ),
    "orderby": (
        {"type": "string", "examples": ["-StudyDate,PatientName"]},
        f"Up to {query_params.MAX_ORDER} attributes to sort by, by keyword or tag, descending after `-`; "
        "the newest first unless told.",
    ),
    "count": (
        {"type": "boolean", "default": False},
        "Whether X-Total-Count says how many results there are in all; it reads all that matches.",
    ),
    "TimezoneOffsetFromUTC": (
        {"type": "string", "pattern": "^[+-][0-9]{4}$"},
        "The time zone of date-times to match that have none themselves.",
    ),
    "fuzzymatching": (
        {"type": "boolean", "default": False},
        "Person names match by the beginnings of their words, too.",
    ),
    "includefield": (
        {"type": "array", "items": {"type": "string"}},
        "Further attributes to return, by keyword or tag; `all` for every indexed one.",
    ),
}
_MOMENT = {"type": "string", "examples": ["2026-01-31T12:00:00Z"]}
_METADATA_OPTION: tuple[Json, str] = (
    {"type": "boolean", "default": True},
    "Whether entries hold the metadata of instances that exist.",
)
_METADATA_OPTIONS: dict[str, tuple[Json, str]] = {
    "includefield": (
        {"type": "array", "items": {"type": "string"}},
        "Attributes to leave, by keyword or tag, with dots below sequences; `all` for every one.",
    ),
}
_VIEWPORT: tuple[Json, str] = (
    {"type": "string", "examples": ["512,512", "256,256,0,0,128,128"]},
    "Width and height to scale to, and the region of the image: left, top, width, height.",
)
_RENDERING_OPTIONS: dict[str, tuple[Json, str]] = {
    "viewport": _VIEWPORT,
    "window": (
        {"type": "string", "examples": ["40,400,linear"]},
        "Centre, width and function: linear, linear-exact or sigmoid.",
    ),
    "quality": ({"type": "integer", "minimum": 1, "maximum": 100, "default": 90}, "Quality of a JPEG."),
    "iccprofile": ({"enum": ["no"]}, "ICC profiles are neither applied nor sent."),
}
_SUBSCRIPTION_OPTIONS: dict[str, tuple[Json, str]] = {
    "deletionlock": (
        {"type": "boolean", "default": False},
        "Whether workitems are kept, while the subscription stands, after their end.",
    ),
    "filter": (
        {"type": "string", "examples": ["WorklistLabel=CT*,ProcedureStepState=SCHEDULED"]},
        "Of the filtered worklist: matching keys. Each may be a query parameter of its own, as in a search.",
    ),
}
_EVENT_OPTIONS: dict[str, tuple[Json, str]] = {
    "after": (
        {"type": "integer", "minimum": 0, "default": 0},
        "The Event ID after which to begin: the last one that was seen.",
    ),
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000},
        "The most event reports to return.",
    ),
}
_CHANGE_FEED_OPTIONS: dict[str, tuple[Json, str]] = {
    "offset": (
        {"type": "integer", "minimum": 0, "default": 0},
        "The Sequence after which to begin; with a time window the entries of it to pass over.",
    ),
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": 200, "default": 100},
        "The most entries to return.",
    ),
    "startTime": (_MOMENT, "Entries from this time on (ISO 8601; UTC where no offset is given)."),
    "endTime": (_MOMENT, "Entries before this time."),
    "includeMetadata": _METADATA_OPTION,
}

_SCHEMAS: Json = {
    "Problem": {
        "description": "RFC 9457.",
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong, in one sentence."},
        },
    },
    "DicomObject": {
        "description": "A DICOM JSON object (PS3.18 Annex F): attributes by tag.",
        "type": "object",
        "propertyNames": {"pattern": "^[0-9A-F]{8}$"},
        "additionalProperties": {"$ref": "#/components/schemas/DicomAttribute"},
    },
    "DicomAttribute": {
        "type": "object",
        "required": ["vr"],
        "properties": {
            "vr": {"type": "string", "pattern": "^[A-Z]{2}$"},
            "Value": {"type": "array"},
            "InlineBinary": {"type": "string", "contentEncoding": "base64"},
            "BulkDataURI": {"type": "string", "format": "uri"},
        },
    },
    "DicomArray": {"type": "array", "items": {"$ref": "#/components/schemas/DicomObject"}},
    "ChangeFeedEntry": {
        "type": "object",
        "required": [
            "Sequence",
            "StudyInstanceUid",
            "SeriesInstanceUid",
            "SopInstanceUid",
            "PartitionName",
            "Action",
            "Timestamp",
            "State",
        ],
        "properties": {
            "Sequence": {"type": "integer", "minimum": 1},
            "StudyInstanceUid": _UID,
            "SeriesInstanceUid": _UID,
            "SopInstanceUid": _UID,
            "PartitionName": _PARTITION_NAME,
            "Action": {"enum": ["create", "update", "delete"]},
            "Timestamp": {"type": "string", "format": "date-time"},
            "State": {"enum": ["current", "replaced", "deleted"]},
            "Metadata": {"$ref": "#/components/schemas/DicomObject"},
        },
    },
    "ChangeFeed": {"type": "array", "items": {"$ref": "#/components/schemas/ChangeFeedEntry"}},
    "Partitions": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["partitionKey", "partitionName", "createdDate"],
            "properties": {
                "partitionKey": {"type": "integer"},
                "partitionName": _PARTITION_NAME,
                "createdDate": {"type": "string", "format": "date-time"},
            },
        },
    },
    "Operation": {
        "type": "object",
        "required": [
            "operationId",
            "type",
            "status",
            "percentComplete",
            "createdTime",
            "lastUpdatedTime",
            "resources",
            "results",
            "errors",
        ],
        "properties": {
            "operationId": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "type": {"type": "string"},
            "status": {"enum": ["notStarted", "running", "succeeded", "failed", "canceled"]},
            "percentComplete": {"type": "integer", "minimum": 0, "maximum": 100},
            "createdTime": {"type": "string", "format": "date-time"},
            "lastUpdatedTime": {"type": "string", "format": "date-time"},
            "resources": {"type": "array", "items": {"type": "string", "format": "uri"}},
            "results": {"description": "What came of it, by type; null while it runs."},
            "errors": {"type": "array", "items": {"type": "string"}},
        },
    },
    "UpdateSpecification": {
        "type": "object",
        "required": ["studyInstanceUids", "changeDataset"],
        "additionalProperties": False,
        "properties": {
            "studyInstanceUids": {"type": "array", "minItems": 1, "maxItems": MOST_STUDIES, "items": _UID},
            "changeDataset": {"$ref": "#/components/schemas/DicomObject"},
        },
    },
    "Import": {
        "type": "object",
        "required": ["source"],
        "additionalProperties": False,
        "properties": {
            "source": {
                "type": "object",
                "required": ["type"],
                "additionalProperties": False,
                "properties": {
                    "type": {"enum": ["azureblob", "inbox"]},
                    "settings": {
                        "type": "object",
                        "properties": {
                            "blobContainerUri": {"type": "string", "format": "uri"},
                            "useManagedIdentity": {"type": "boolean"},
                            "connectionString": {"type": "string"},
                            "blobContainerName": {"type": "string"},
                            "prefix": {"type": "string", "maxLength": 1024},
                        },
                    },
                },
            },
            "duplicates": {"enum": ["skip", "replace"], "default": "skip"},
            "deleteSources": {"type": "boolean", "default": False},
        },
    },
    "ExtendedQueryTag": {
        "type": "object",
        "required": ["path", "vr", "level", "status", "queryStatus", "version"],
        "properties": {
            "path": {"type": "string"},
            "vr": {"type": "string", "pattern": "^[A-Z]{2}$"},
            "privateCreator": {"type": "string"},
            "level": {"enum": ["Study", "Series", "Instance"]},
            "status": {"enum": ["Adding", "Ready", "Deleting"]},
            "queryStatus": {"enum": ["Enabled", "Disabled"]},
            "version": {"type": "integer"},
            "errors": {
                "type": "object",
                "properties": {"count": {"type": "integer"}, "href": {"type": "string", "format": "uri"}},
            },
            "operation": {"$ref": "#/components/schemas/OperationReference"},
        },
    },
    "OperationReference": {
        "description": "The operation that a request has started.",
        "type": "object",
        "required": ["id", "href"],
        "properties": {"id": {"type": "string"}, "href": {"type": "string", "format": "uri"}},
    },
    "Subscriber": {
        "type": "object",
        "required": ["subscriber", "webSocketUrl", "lastEventId"],
        "properties": {
            "subscriber": {"type": "string"},
            "webSocketUrl": {
                "type": "string",
                "description": "Good for an hour and this subscriber; empty where events are only fetched.",
            },
            "lastEventId": {"type": "integer", "minimum": 0},
        },
    },
    "Health": {
        "type": "object",
        "required": ["overallStatus", "dependencies"],
        "properties": {
            "overallStatus": {"enum": ["Healthy", "Degraded", "Unhealthy"]},
            "dependencies": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "status", "description"],
                    "properties": {
                        "name": {"type": "string"},
                        "status": {"enum": ["Healthy", "Degraded", "Unhealthy"]},
                        "description": {"type": "string"},
                    },
                },
            },
        },
    },
    "Document": {"type": "object"},
}


@dataclass(frozen=True)
class Route:
    """A registered route; ``transaction`` is a key of TRANSACTIONS, ``summary`` one line."""

    name: str
    template: str
    methods: tuple[str, ...]
    transaction: str
    summary: str


def document(routes: Iterable[Route]) -> Json:
    """The document without ``servers``, which depend on the request."""
    paths: dict[str, Json] = {}
    for route in routes:
        path = paths.setdefault("/" + route.template, {})
        if "{" in route.template:
            path["parameters"] = [_parameter_reference(name) for name in _names(route.template)]
        for method in route.methods:
            path[method.lower()] = _operation(route, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Medical Imaging Server for DICOM",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": name, "description": source}
            for name, source in {t.name: t.source for t in TRANSACTIONS.values()}.items()
        ],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "schemas": _SCHEMAS,
            "parameters": {
                name: _parameter(name, "path", *of) | {"required": True}
                for name, of in _PATH_PARAMETERS.items()
            }
            | {a.keyword: _attribute_parameter(a) for a in by_path().values()},
        },
    }


def _names(template: str) -> list[str]:
    return re.findall(r"{(\w+)}", template)


def _operation(route: Route, method: str) -> Json:
    transaction = TRANSACTIONS[route.transaction]
    head = method == "HEAD"
    operation: Json = {
        "operationId": f"{route.name}_{method.lower()}" if method in ("HEAD", "OPTIONS") else route.name,
        "tags": [transaction.name],
        "summary": route.summary,
        "responses": {
            str(status): _response(transaction, status, head) for status in sorted(transaction.statuses)
        },
    }
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if transaction.consumes:
        content = {media_type: _body(transaction.request) for media_type in transaction.consumes}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _response(transaction: Transaction, status: int, head: bool) -> Json:
    sentence = transaction.statuses[status]
    response: Json = {"description": sentence[0].upper() + sentence[1:] + "."}
    if status in transaction.answered:
        content = {
            media_type: _body(transaction.schema if "json" in media_type else "")
            for media_type in transaction.produces
        }
    elif status in transaction.empty:
        content = {}
    else:
        content = {"application/problem+json": _body("Problem")}
    if content and not head:
        response["content"] = content
    if transaction is TRANSACTIONS["metadata"] and status in (200, 304):
        response["headers"] = {"ETag": {"schema": {"type": "string"}}}
    if status == 503:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return response


def _body(schema: str) -> Json:
    """A JSON body, or bytes, which have no schema in OpenAPI 3.1."""
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}} if schema else {}


def _parameters(route: Route) -> list[Json]:
    match route.transaction:
        case "search":
            level = search_level(route.template)
            attributes = [a for a in by_path().values() if is_known(a, level)]
            options = [_parameter(name, "query", *of) for name, of in _SEARCH_OPTIONS.items()]
            return options + [_parameter_reference(a.keyword) for a in attributes]
        case "search_workitems":
            options = [_parameter(name, "query", *of) for name, of in _SEARCH_OPTIONS.items()]
            return options + [_attribute_parameter(a) for a in workitem_attributes.by_path().values()]
        case "create_workitem":
            return [_parameter("workitem", "query", _UID, "Its UID, where the data set does not have it.")]
        case "update_workitem":
            return [_parameter("transaction-uid", "query", _UID, "Transaction UID of its owner.")]
        case "metadata":
            return [_parameter(name, "query", *of) for name, of in _METADATA_OPTIONS.items()]
        case "rendered":
            thumbnail = route.template.endswith("/thumbnail")
            taken = {"viewport": _VIEWPORT} if thumbnail else _RENDERING_OPTIONS
            return [_parameter(name, "query", *of) for name, of in taken.items()]
        case "change_feed":
            return [_parameter(name, "query", *of) for name, of in _CHANGE_FEED_OPTIONS.items()]
        case "subscribe":
            return [_parameter(name, "query", *of) for name, of in _SUBSCRIPTION_OPTIONS.items()]
        case "read_events":
            return [_parameter(name, "query", *of) for name, of in _EVENT_OPTIONS.items()]
        case "read_latest_change":
            return [_parameter("includeMetadata", "query", *_METADATA_OPTION)]
        case "retrieve" | "metadata" | "frames" | "rendered" | "bulkdata":
            return [_parameter("msdicom-request-original", "header", *_ORIGINAL_OPTION)]
    return []


def search_level(template: str) -> Level:
    """The level of the results of a search's route, which its last segment names."""
    names = {
        "patients": Level.PATIENT,
        "studies": Level.STUDY,
        "series": Level.SERIES,
        "instances": Level.INSTANCE,
    }
    return names[template.rpartition("/")[2]]


def _parameter(name: str, place: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": place, "description": description, "schema": schema}


def _parameter_reference(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _attribute_parameter(attribute: Attribute) -> Json:
    matching = attribute.matching.value if attribute.matching else ""
    tags = "".join(f"({tag[:4]},{tag[4:]})" for tag in attribute.tags)
    description = f"{tags} {attribute.vr}: {matching}. `{'.'.join(attribute.tags)}` names it as well."
    return _parameter(attribute.keyword, "query", {"type": "string"}, description)
