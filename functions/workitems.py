"""Worklist Service (UPS-RS, PS3.18 §11): workitems, their states, and searches for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import azure.functions as func
import orjson
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from functions import http, multi_part, routes
from shared import services
from shared.dicom.identifiers import check_uid, is_uid
from shared.errors import InvalidRequest, UnsupportedMediaType
from shared.services.access import Action
from shared.web import negotiate

blueprint = func.Blueprint()

_LARGEST_BODY = 1024 * 1024
_JSON_TYPES = ("application/dicom+json", "application/json")
_TRANSACTION_NAMES = ("transaction-uid", "transaction", "transactionuid", "00081195")
_COERCED = "The Workitem was created with modifications."


@http.route(blueprint, routes.WORKITEMS, ["POST"], action=Action.WRITE)
async def create_workitem(request: Request) -> Response:
    """Create a workitem (§11.4): 201 with its URL."""
    partition = http.resource(request).partition
    uid = _bare_uid(request, ("workitem", "affectedsopinstanceuid", "00001000"))
    created = await services.workitems.create(partition, uid, await _data_set(request))
    location = f"{http.service_root(request, partition)}/workitems/{created.uid}"
    headers = {"Location": location, "Content-Location": location}
    if created.coerced:
        headers["Warning"] = http.warning(_COERCED)
    request.state.instances = [created.uid]  # for the audit trail
    return Response(status_code=201, headers=headers)


@http.route(blueprint, routes.WORKITEMS, ["GET", "HEAD"], action=Action.READ)
async def search_workitems(request: Request) -> Response:
    """Search for workitems (§11.8): 200 with a page of them, 204 where none matches."""
    from shared.web import query_params

    form = negotiate.metadata(http.accepted(request), single=False)
    parameters = [pair for pair in request.query_params.multi_items() if pair[0] != "accept"]
    asked = query_params.workitem_request(http.resource(request).partition, parameters)
    page = await services.workitems.search(asked.query, asked.count)
    response = await _answer(request, page.results, form) if page.results else Response(status_code=204)
    cursor = query_params.cursor(asked, page.last) if page.last is not None else ""
    http.describe_page(request, response, page.total, cursor)
    return response


@http.route(blueprint, routes.WORKITEM, ["GET", "HEAD"], action=Action.READ)
async def retrieve_workitem(request: Request) -> Response:
    """Retrieve a workitem (§11.5)."""
    form = negotiate.metadata(http.accepted(request), single=True)
    found = await services.workitems.retrieve(http.resource(request).partition, _uid(request))
    return await _answer(request, found, form)


@http.route(blueprint, routes.WORKITEM, ["POST"], action=Action.WRITE)
async def update_workitem(request: Request) -> Response:
    """Update a workitem (§11.6)."""
    partition, uid = http.resource(request).partition, _uid(request)
    transaction = _bare_uid(request, _TRANSACTION_NAMES)
    await services.workitems.update(partition, uid, transaction, await _data_set(request))
    return Response(status_code=200, headers={"Content-Location": _url(request, partition, uid)})


@http.route(blueprint, routes.WORKITEM_STATE, ["PUT"], action=Action.WRITE)
async def change_workitem_state(request: Request) -> Response:
    """Claim, complete or cancel a workitem (§11.7)."""
    partition, uid = http.resource(request).partition, _uid(request)
    warning = await services.workitems.change_state(partition, uid, await _data_set(request))
    headers = {"Content-Location": _url(request, partition, uid)}
    return Response(status_code=200, headers=headers | _warned(warning))


@http.route(blueprint, routes.WORKITEM_CANCELLATION, ["POST"], action=Action.WRITE)
async def request_workitem_cancellation(request: Request) -> Response:
    """Cancel a workitem, or ask whoever has claimed it to do so: 202."""
    partition, uid = http.resource(request).partition, _uid(request)
    given = await _data_set(request, optional=True)
    warning = await services.workitems.request_cancellation(partition, uid, given)
    headers = {"Content-Location": _url(request, partition, uid)}
    return Response(status_code=202, headers=headers | _warned(warning))


def _uid(request: Request) -> str:
    return check_uid(request.path_params["workitem"], "The workitem's UID")


def _url(request: Request, partition: str, uid: str) -> str:
    return f"{http.service_root(request, partition)}/workitems/{uid}"


def _warned(sentence: str) -> dict[str, str]:
    return {"Warning": http.warning(sentence)} if sentence else {}


def _bare_uid(request: Request, names: tuple[str, ...]) -> str:
    """The UID of the query, after a name or, as the standard has it, alone; empty where there is none."""
    pairs = [pair for pair in request.query_params.multi_items() if pair[0] != "accept"]
    if len(pairs) > 1:
        raise InvalidRequest("The URL takes one query parameter, a UID.")
    for name, value in pairs:
        if name.lower() in names:
            return check_uid(value, name)
        if value or not is_uid(name):
            raise InvalidRequest(f"The query parameter {name[:64]!r} is unknown.")
        return str(name)
    return ""


async def _data_set(request: Request, optional: bool = False) -> dict[str, Any]:
    """The data set of the body. Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest."""
    given = request.headers.get("content-type", _JSON_TYPES[0]).partition(";")[0].strip().lower()
    if given not in (*_JSON_TYPES, negotiate.DICOM_XML):
        raise UnsupportedMediaType("The body must be application/dicom+json or application/dicom+xml.")
    body = await http.body(request, _LARGEST_BODY)
    if optional and not body.strip():
        return {}
    found: dict[str, Any] = services.workitems.read_body(body, given == negotiate.DICOM_XML)
    return found


async def _answer(request: Request, found: Any, form: negotiate.Representation) -> Response:
    """A workitem or several, in the form that was negotiated."""
    if form.media_type != negotiate.DICOM_XML:
        return await http.json_response(request, orjson.dumps(found), form.media_type)

    async def documents() -> AsyncIterator[bytes]:
        for one in found if isinstance(found, list) else [found]:
            yield orjson.dumps(one)

    bodies = services.metadata.in_xml(documents())
    if form.multipart:
        parts = (multi_part.Part(form.media_type, "", body) async for body in bodies)
        return await multi_part.respond(parts, form.media_type)
    return StreamingResponse((await anext(bodies)).chunks, media_type=form.media_type)
