"""Partitions (the ancestor's extension): ``GET /v2/partitions``. A store makes one, nothing removes one."""

from __future__ import annotations

import azure.functions as func
import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes
from shared import services
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import accept

blueprint = func.Blueprint()


@http.route(blueprint, routes.PARTITIONS, ["GET", "HEAD"], action=Action.READ, partitioned=False)
async def list_partitions(request: Request) -> Response:
    """All partitions, oldest first; 204 while there is none."""
    if not accept.accepts(http.accepted(request), "application/json"):
        raise NotAcceptable("The list of partitions is application/json.")
    found = await services.partitions.find_all()
    if not found:
        return Response(status_code=204)
    entries = [
        {"partitionKey": partition.key, "partitionName": partition.name, "createdDate": partition.created}
        for partition in found
    ]
    return await http.json_response(request, orjson.dumps(entries), "application/json")
