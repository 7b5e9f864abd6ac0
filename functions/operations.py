"""Long-running operations (the ancestor's extension): ``GET`` and ``DELETE /v2/operations/{id}``.

The path names no partition, the operation does: a caller needs the action there. To others the operation is
one that does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import authorization, http, routes
from shared import services
from shared.errors import NotFound
from shared.services.access import Action

if TYPE_CHECKING:
    from shared.services.operations import Operation

blueprint = func.Blueprint()

_RETRY_AFTER = "2"


@http.route(
    blueprint, routes.OPERATION, ["GET", "HEAD"], action=Action.READ, partitioned=False, any_partition=True
)
async def read_operation(request: Request) -> Response:
    """200 with the outcome of an operation that has ended, 202 while it runs."""
    return _status(request, await _find(request, Action.READ))


@http.route(
    blueprint, routes.OPERATION, ["DELETE"], action=Action.MANAGE, partitioned=False, any_partition=True
)
async def cancel_operation(request: Request) -> Response:
    """Cancel an operation: 202 until nothing of it runs any more, 200 where it is canceled already."""
    operation = await _find(request, Action.MANAGE)
    return _status(request, await services.operations.cancel(operation.id))


async def _find(request: Request, action: Action) -> Operation:
    """The operation of the path. Raises NotFound, also where the caller may not do this to it."""
    operation = await services.operations.get(request.path_params["operation"])
    if operation.partition is not None:
        request.state.resource = {"partition": operation.partition}  # for the audit trail
    if not authorization.may(request, action, operation.partition):
        raise NotFound(services.operations.NONE_SUCH)
    return operation


def accepted(request: Request, operation: Operation) -> Response:
    """202: the operation that a transaction has started."""
    import orjson

    body = reference(request, operation.id)
    headers = {"Location": body["href"], "Retry-After": _RETRY_AFTER}
    return Response(orjson.dumps(body), status_code=202, media_type="application/json", headers=headers)


def reference(request: Request, id: str) -> dict[str, str]:
    """Id and URL of an operation."""
    return {"id": id, "href": f"{http.base_url(request)}/{routes.OPERATION.replace('{operation}', id)}"}


def _status(request: Request, operation: Operation) -> Response:
    import orjson

    body: dict[str, Any] = {
        "operationId": operation.id,
        "type": operation.type,
        "status": operation.status,
        "percentComplete": operation.percent_complete,
        "createdTime": operation.created,
        "lastUpdatedTime": operation.last_updated,
        "resources": [f"{http.base_url(request)}/{routes.BASE}/{path}" for path in operation.resources],
        "results": operation.results,
        "errors": list(operation.errors),
    }
    headers = {"Cache-Control": "no-store"}
    if not operation.ended:
        headers |= {"Retry-After": _RETRY_AFTER, "Location": reference(request, operation.id)["href"]}
    status = 200 if operation.ended else 202
    return Response(orjson.dumps(body), status_code=status, media_type="application/json", headers=headers)
