"""What each transaction takes and answers, once: for the OpenAPI document and the conformance statement.

A transaction is named by the module of ``functions/`` that serves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

_IMAGES = ("image/jpeg", "image/png", "image/gif")
_PAGE = "text/html"
_DOCUMENTS = ("application/pdf", "text/xml", "model/*", "video/*")
_PART = "the part that Range asks for, of a body whose length is known"
_OUTSIDE = "no byte of the Range exists; Content-Range says how many bytes there are"
_UNCHANGED = "If-None-Match names the current ETag"
_MALFORMED = "a path or query parameter or the partition's name is malformed"
_UNKNOWN = "the request has no access token or one that is not valid; WWW-Authenticate says what is expected"
_UNSAFE = "the caller has no role that allows this, or the server has no authority that could tell"
_ABSENT = "the study, series or instance does not exist"
_ACCEPT = "Accept allows nothing that can be sent"
_BUG = "a defect of the server; the body names an incident of its log"
_UNAVAILABLE = "Blob Storage or SQL does not answer; Retry-After says when to try again"
_NO_OPERATION = "there is no such operation, it has been forgotten, or the caller has no role for it"
_NO_WORKITEM = "the workitem does not exist"
_LARGE_WORKITEM = "the body is larger than 1 MiB"
_NO_DATA_SET = "the body is neither application/dicom+json nor application/dicom+xml"
_NO_SQL = "SQL does not answer; Retry-After says when to try again"
_DATA_SETS = ("application/dicom+json", "application/json", "application/dicom+xml")


@dataclass(frozen=True)
class Transaction:
    """``statuses`` say when each is answered; ``schema`` is the OpenAPI schema of JSON answers,
    ``request`` that of JSON bodies.

    ``produces`` are the media types of successful answers, ``consumes`` those of the request's body;
    ``answered`` the statuses whose bodies are of those types. Others are problems or have no body.
    """

    name: str
    source: str
    statuses: dict[int, str]
    produces: tuple[str, ...] = ()
    consumes: tuple[str, ...] = ()
    schema: str = ""
    request: str = ""
    answered: frozenset[int] = field(default=frozenset({200}))
    empty: frozenset[int] = field(default=frozenset({204, 304}))


TRANSACTIONS = {
    "store": Transaction(
        "Store",
        "STOW-RS, PS3.18 §10.5",
        {
            200: "all instances are stored",
            202: "some instances failed, or some were stored with a warning",
            204: "the body holds no instance",
            400: "the body is malformed multipart, or a UID or the partition in the path is malformed",
            403: _UNSAFE,
            406: _ACCEPT,
            409: "no instance is stored; the body says why",
            413: "the body has more bytes or parts than the server takes; nothing is stored",
            415: "the media type of the body or of a part is not application/dicom; nothing is stored",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/dicom+json",),
        consumes=('multipart/related; type="application/dicom"', "application/dicom"),
        schema="DicomObject",
        answered=frozenset({200, 202, 409}),
    ),
    "retrieve": Transaction(
        "Retrieve instances",
        "WADO-RS, PS3.18 §10.4",
        {
            200: "the instances",
            206: f"one instance alone: {_PART}",
            304: f"one instance alone: {_UNCHANGED}",
            400: _MALFORMED,
            403: _UNSAFE,
            404: _ABSENT,
            406: _ACCEPT,
            416: _OUTSIDE,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=('multipart/related; type="application/dicom"', "application/dicom", "application/zip"),
        answered=frozenset({200, 206}),
    ),
    "metadata": Transaction(
        "Retrieve metadata",
        "WADO-RS, PS3.18 §10.4.1.1.2",
        {
            200: "one object or XML document an instance",
            304: _UNCHANGED,
            400: _MALFORMED,
            403: _UNSAFE,
            404: _ABSENT,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=(
            "application/dicom+json",
            "application/json",
            'multipart/related; type="application/dicom+xml"',
            "application/dicom+xml",
        ),
        schema="DicomArray",
    ),
    "frames": Transaction(
        "Retrieve frames",
        "WADO-RS, PS3.18 §10.4.1.1.6",
        {
            200: "the frames, in the order of the list",
            206: f"one frame: {_PART}",
            304: f"one frame: {_UNCHANGED}",
            400: "the list is malformed or too long, or a UID or the partition is malformed",
            403: _UNSAFE,
            404: "the instance does not exist, or has no such frame that could be told apart",
            406: _ACCEPT,
            416: _OUTSIDE,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("multipart/related", "application/octet-stream", "image/*", "video/*"),
        answered=frozenset({200, 206}),
    ),
    "rendered": Transaction(
        "Rendered and thumbnails",
        "WADO-RS, PS3.18 §10.4.1.1.3, §10.4.1.1.4",
        {
            200: "the images and pages",
            206: f"one image or page: {_PART}",
            304: f"one image or page: {_UNCHANGED}",
            400: "a query parameter, the frame list, a UID or the partition is malformed or not supported",
            403: _UNSAFE,
            404: "the study, series or instance does not exist, or the instance has no such frame",
            406: "Accept allows nothing that can be sent, or there is nothing that can be rendered",
            416: _OUTSIDE,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=(*_IMAGES, _PAGE, "multipart/related", *_DOCUMENTS),
        answered=frozenset({200, 206}),
    ),
    "wado_uri": Transaction(
        "WADO-URI",
        "PS3.18 §9",
        {
            200: "the instance, an image of a frame, the page of a report, or the document or video it holds",
            206: _PART,
            304: _UNCHANGED,
            400: "a parameter is missing, unknown, malformed or not supported, or the partition is malformed",
            403: _UNSAFE,
            404: "the instance or the frame does not exist",
            406: "the object cannot be had as contentType or transferSyntax asks",
            416: _OUTSIDE,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=(*_IMAGES, _PAGE, "application/dicom", *_DOCUMENTS),
        answered=frozenset({200, 206}),
    ),
    "bulkdata": Transaction(
        "Retrieve bulk data",
        "WADO-RS, PS3.18 §10.4.1.1.5",
        {
            200: "the value",
            206: _PART,
            304: _UNCHANGED,
            400: _MALFORMED,
            403: _UNSAFE,
            404: "the instance does not exist or has no such bulk data",
            406: _ACCEPT,
            416: _OUTSIDE,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=(
            'multipart/related; type="application/octet-stream"',
            "application/octet-stream",
            *_DOCUMENTS,
        ),
        answered=frozenset({200, 206}),
    ),
    "search": Transaction(
        "Search",
        "QIDO-RS, PS3.18 §10.6",
        {
            200: "a page of results",
            204: "nothing matches",
            304: _UNCHANGED,
            400: "a parameter is unknown, malformed, given twice or not searchable at the level",
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/dicom+json", "application/json"),
        schema="DicomArray",
    ),
    "delete": Transaction(
        "Delete",
        "an extension of this server",
        {
            204: "deleted: no later request finds it",
            400: _MALFORMED,
            403: _UNSAFE,
            404: _ABSENT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
    ),
    "change_feed": Transaction(
        "Change feed",
        "an extension of this server",
        {
            200: "entries in order of Sequence; an empty array at the end of the feed",
            304: _UNCHANGED,
            400: _MALFORMED,
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        schema="ChangeFeed",
    ),
    "read_latest_change": Transaction(
        "Change feed",
        "an extension of this server",
        {
            200: "the entry with the highest Sequence",
            204: "the feed is empty",
            304: _UNCHANGED,
            400: _MALFORMED,
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        schema="ChangeFeedEntry",
    ),
    "partitions": Transaction(
        "Partitions",
        "an extension of this server",
        {
            200: "every partition, oldest first",
            204: "nothing has been stored yet",
            304: _UNCHANGED,
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        schema="Partitions",
    ),
    "imports": Transaction(
        "Import",
        "an extension of this server",
        {
            202: "the import has begun: an operation",
            400: "the body or the partition is malformed, or the source cannot be read",
            403: _UNSAFE,
            413: "the body is larger than 64 KiB",
            415: "the body is not application/json",
            500: _BUG,
            503: "storage, secret store or source does not answer; Retry-After says when to try again",
        },
        produces=("application/json",),
        consumes=("application/json",),
        schema="OperationReference",
        request="Import",
        answered=frozenset({202}),
    ),
    "read_import_report": Transaction(
        "Import",
        "an extension of this server",
        {
            200: "a line of JSON for every file that was not stored",
            400: "the partition's name is malformed",
            403: _UNSAFE,
            404: "the partition has no such import, or it ended longer ago than such are kept",
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/x-ndjson",),
    ),
    "query_tags": Transaction(
        "Extended query tags",
        "an extension of this server",
        {
            200: "the tags, the tag, or the instances whose values it lacks",
            304: _UNCHANGED,
            400: "the path in the URL names no attribute, or a parameter is malformed or unknown",
            403: _UNSAFE,
            404: "there is no such tag",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        schema="Document",
    ),
    "add_query_tags": Transaction(
        "Extended query tags",
        "an extension of this server",
        {
            202: "the tags are added, and an operation indexes what is stored already",
            400: "the body is no array of tags that make sense, or there would be too many; none is added",
            403: _UNSAFE,
            409: "a tag exists already, or its attribute is searchable without one; none is added",
            413: "the body is larger than 4 MiB",
            415: "the body is not application/json",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        consumes=("application/json",),
        schema="OperationReference",
        answered=frozenset({202}),
    ),
    "update_query_tag": Transaction(
        "Extended query tags",
        "an extension of this server",
        {
            200: "the tag as it is now",
            400: "the path in the URL names no attribute, or the body is not a queryStatus",
            403: _UNSAFE,
            404: "there is no such tag",
            409: "the tag is being deleted",
            413: "the body is larger than 4 MiB",
            415: "the body is not application/json",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/json",),
        consumes=("application/json",),
        schema="ExtendedQueryTag",
    ),
    "delete_query_tag": Transaction(
        "Extended query tags",
        "an extension of this server",
        {
            204: "the tag is of no use any more, and an operation removes its values",
            400: "the path in the URL names no attribute",
            403: _UNSAFE,
            404: "there is no such tag",
            500: _BUG,
            503: _UNAVAILABLE,
        },
    ),
    "operations": Transaction(
        "Operations",
        "an extension of this server",
        {
            200: "the operation has ended: succeeded, failed or canceled",
            202: "the operation runs; Retry-After says when to ask again",
            403: _UNSAFE,
            404: _NO_OPERATION,
            500: _BUG,
            503: "Table Storage does not answer; Retry-After says when to try again",
        },
        produces=("application/json",),
        schema="Operation",
        answered=frozenset({200, 202}),
    ),
    "cancel_operation": Transaction(
        "Operations",
        "an extension of this server",
        {
            200: "the operation is canceled",
            202: "the operation ends as soon as nothing of it runs any more",
            403: _UNSAFE,
            404: _NO_OPERATION,
            409: "the operation has succeeded or failed already",
            500: _BUG,
            503: "Table Storage does not answer; Retry-After says when to try again",
        },
        produces=("application/json",),
        schema="Operation",
        answered=frozenset({200, 202}),
    ),
    "update": Transaction(
        "Bulk update",
        "an extension of this server",
        {
            202: "an operation has started; its URL is in the body and in Location",
            400: "the body is malformed, names what cannot be updated, or holds a value that its VR forbids",
            403: _UNSAFE,
            413: "the body has more than 1 MiB; nothing is updated",
            415: "the media type of the body is not application/json; nothing is updated",
            500: _BUG,
            503: "Blob, Table or Queue Storage does not answer; Retry-After says when to try again",
        },
        produces=("application/json",),
        consumes=("application/json",),
        schema="OperationReference",
        request="UpdateSpecification",
        answered=frozenset({202}),
    ),
    "export": Transaction(
        "Export",
        "an extension of this server",
        {
            202: "the export has begun; Location says where to follow it",
            400: "the body, an identifier, the query, an option or the partition is malformed, or the "
            "destination cannot be written to",
            403: _UNSAFE,
            413: "the body is larger than 2 MiB",
            415: "the body is not application/json",
            500: _BUG,
            503: "storage, the secret store or the destination does not answer; Retry-After says when to try "
            "again",
        },
        produces=("application/json",),
        consumes=("application/json",),
        schema="OperationReference",
        answered=frozenset({202}),
    ),
    "create_workitem": Transaction(
        "Create Workitem",
        "UPS-RS, PS3.18 §11.4",
        {
            201: "the workitem is created; Location is its URL, Warning says whether the server changed it",
            400: "the body is malformed, lacks an attribute or holds one that it must not, or a UID or the "
            "partition is malformed",
            403: _UNSAFE,
            409: "there is a workitem of this UID",
            413: _LARGE_WORKITEM,
            415: _NO_DATA_SET,
            500: _BUG,
            503: _NO_SQL,
        },
        consumes=_DATA_SETS,
        request="DicomObject",
        answered=frozenset(),
        empty=frozenset({201}),
    ),
    "retrieve_workitem": Transaction(
        "Retrieve Workitem",
        "UPS-RS, PS3.18 §11.5",
        {
            200: "the workitem, without its Transaction UID",
            304: f"as JSON: {_UNCHANGED}",
            400: _MALFORMED,
            403: _UNSAFE,
            404: _NO_WORKITEM,
            406: _ACCEPT,
            500: _BUG,
            503: _NO_SQL,
        },
        produces=(*_DATA_SETS, 'multipart/related; type="application/dicom+xml"'),
        schema="DicomObject",
    ),
    "search_workitems": Transaction(
        "Search for Workitems",
        "UPS-RS, PS3.18 §11.9",
        {
            200: "a page of workitems",
            204: "nothing matches",
            304: f"as JSON: {_UNCHANGED}",
            400: "a parameter is unknown, malformed, given twice or not searchable",
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _NO_SQL,
        },
        produces=(
            "application/dicom+json",
            "application/json",
            'multipart/related; type="application/dicom+xml"',
        ),
        schema="DicomArray",
    ),
    "update_workitem": Transaction(
        "Update Workitem",
        "UPS-RS, PS3.18 §11.6",
        {
            200: "the workitem is updated",
            400: "the body is malformed or changes what it must not; the Transaction UID is not that of the "
            "workitem, or it is COMPLETED or CANCELED: Warning says which",
            403: _UNSAFE,
            404: _NO_WORKITEM,
            413: _LARGE_WORKITEM,
            415: _NO_DATA_SET,
            500: _BUG,
            503: _NO_SQL,
        },
        consumes=_DATA_SETS,
        request="DicomObject",
        answered=frozenset(),
        empty=frozenset({200}),
    ),
    "change_workitem_state": Transaction(
        "Change Workitem State",
        "UPS-RS, PS3.18 §11.7",
        {
            200: "the workitem is in the state; Warning says whether it was so before",
            400: "the body is malformed, or the Transaction UID is missing or incorrect: Warning says which",
            403: _UNSAFE,
            404: _NO_WORKITEM,
            409: "the state does not allow the change, or an attribute lacks the value a final state needs",
            413: _LARGE_WORKITEM,
            415: _NO_DATA_SET,
            500: _BUG,
            503: _NO_SQL,
        },
        consumes=_DATA_SETS,
        request="DicomObject",
        answered=frozenset(),
        empty=frozenset({200}),
    ),
    "request_workitem_cancellation": Transaction(
        "Request Cancellation",
        "UPS-RS, PS3.18 §11.8",
        {
            202: "the workitem is canceled, was so before (Warning says so), or its subscribers are told",
            400: "the body, the UID or the partition is malformed",
            403: _UNSAFE,
            404: _NO_WORKITEM,
            409: "the workitem is COMPLETED, or it is IN PROGRESS and has no subscriber who would hear of it",
            413: _LARGE_WORKITEM,
            415: _NO_DATA_SET,
            500: _BUG,
            503: _NO_SQL,
        },
        consumes=_DATA_SETS,
        request="DicomObject",
        answered=frozenset(),
        empty=frozenset({202}),
    ),
    "subscribe": Transaction(
        "Subscribe",
        "UPS-RS, PS3.18 §11.10",
        {
            201: "the subscription stands; Content-Location says where the subscriber connects",
            400: "the query, a UID, the AE title or the partition's name is malformed, or a filter is "
            "missing or not for this worklist",
            403: _UNSAFE,
            404: "the workitem does not exist",
            500: _BUG,
            503: "SQL or the service that sends events does not answer; Retry-After says when to try again",
        },
        answered=frozenset(),
        empty=frozenset({201}),
    ),
    "unsubscribe": Transaction(
        "Unsubscribe",
        "UPS-RS, PS3.18 §11.11",
        {
            200: "the subscription has ended",
            400: "a UID, the AE title or the partition's name is malformed",
            403: _UNSAFE,
            404: "there is no such subscription",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        answered=frozenset(),
        empty=frozenset({200}),
    ),
    "suspend_subscription": Transaction(
        "Suspend Global Subscription",
        "UPS-RS, PS3.18 §11.12",
        {
            200: "new workitems are not subscribed to any more",
            400: "the UID is not that of a worklist, or the AE title or the partition's name is malformed",
            403: _UNSAFE,
            404: "there is no such subscription",
            500: _BUG,
            503: _UNAVAILABLE,
        },
        answered=frozenset(),
        empty=frozenset({200}),
    ),
    "read_subscriber": Transaction(
        "Open Notification Connection",
        "PS3.18 §8.10.4",
        {
            200: "where the subscriber connects, and the Event ID of its newest event report",
            400: "the AE title or the partition's name is malformed",
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: "SQL or the service that sends events does not answer; Retry-After says when to try again",
        },
        produces=("application/json",),
        schema="Subscriber",
    ),
    "read_events": Transaction(
        "Fetch event reports",
        "an extension of this server",
        {
            200: "event reports in order; Warning says how many before them are no longer kept",
            204: "there is none",
            400: "a query parameter, the AE title or the partition's name is malformed",
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
            503: _UNAVAILABLE,
        },
        produces=("application/dicom+json",),
        schema="DicomArray",
    ),
    "health": Transaction(
        "Health",
        "an extension of this server",
        {
            200: "every dependency answers",
            500: _BUG,
            503: "a dependency does not answer; the body says which",
        },
        produces=("application/json",),
        schema="Health",
        answered=frozenset({200, 503}),
    ),
    "retrieve_capabilities": Transaction(
        "Retrieve capabilities",
        "PS3.18 §8.9",
        {
            200: "what the server can do: an OpenAPI 3.1 document, or WADL",
            403: _UNSAFE,
            406: _ACCEPT,
            500: _BUG,
        },
        produces=("application/json", "application/vnd.sun.wadl+xml"),
        schema="Document",
    ),
    "openapi": Transaction(
        "OpenAPI document",
        "an extension of this server",
        {200: "an OpenAPI 3.1 document", 403: _UNSAFE, 500: _BUG},
        produces=("application/json",),
        schema="Document",
    ),
}
"""By module of ``functions/``, or by handler where one differs from the others of its module."""

for _name, _transaction in TRANSACTIONS.items():
    if 403 in _transaction.statuses:  # what needs a role needs a token first
        _statuses = _transaction.statuses | {401: _UNKNOWN}
        TRANSACTIONS[_name] = replace(_transaction, statuses=dict(sorted(_statuses.items())))


def transaction_of(module: str, handler: str) -> str:
    """The key in :data:`TRANSACTIONS` of a handler. Raises KeyError where the table lacks it."""
    for key in (handler, module.rpartition(".")[2]):
        if key in TRANSACTIONS:
            return key
    raise KeyError(f"{module}.{handler} is in no transaction of shared/web/transactions.py")
