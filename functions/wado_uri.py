"""WADO-URI (PS3.18 §9): ``GET /v2/wado?requestType=WADO&studyUID=...&seriesUID=...&objectUID=...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, rendered, retrieve, routes, single_part
from shared import services
from shared.dicom.identifiers import DEFAULT_PARTITION, check_partition
from shared.dicom.render import MEDIA_TYPES, Options
from shared.errors import NotAcceptable
from shared.services.access import Action
from shared.web import negotiate, wado_uri
from shared.web.accept import MediaRange, matches
from shared.web.rendering import REPORT

if TYPE_CHECKING:
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()


@http.route(blueprint, routes.WADO_URI, ["GET", "HEAD"], action=Action.READ)
async def retrieve_by_wado_uri(request: Request) -> Response:
    """One instance, an image of one of its frames, or the document or video it holds."""
    partition = check_partition(request.path_params.get("partition", DEFAULT_PARTITION))
    asked = wado_uri.parse(partition, request.query_params.multi_items())
    request.state.resource = http.identifiers(asked.resource)
    (stored,) = await services.retrieve.find(asked.resource)
    document = await services.rendered.read_document(stored)
    offered = [document[0]] if document else []
    if services.rendered.is_renderable(stored):
        offered += MEDIA_TYPES
    elif services.rendered.is_report(stored):
        offered.append(REPORT)
    offered.append(negotiate.DICOM)
    wanted = asked.content_types or (offered[0],)
    chosen = next((o for w in wanted for o in offered if matches(w, o)), "")
    if not chosen:
        raise NotAcceptable(f"The object is available as {', '.join(offered)}.")
    if document and chosen == document[0]:
        digest = services.retrieve.digest([stored], chosen)
        return await single_part.respond(request, document[1], chosen, digest)
    if chosen == negotiate.DICOM:
        return await _instance(request, stored, asked.transfer_syntax)
    if chosen == REPORT:
        return await _report(request, stored)
    return await _image(request, stored, asked, chosen)


async def _report(request: Request, stored: StoredInstance) -> Response:
    root = http.service_root(request, stored.key.partition)
    page = rendered.Rendition(stored, (), REPORT, Options(), root)
    digest = services.retrieve.digest([stored], page.identity)
    unchanged = single_part.unchanged(request, digest)
    if unchanged is not None:
        return unchanged
    payload = await services.rendered.render_report(stored, page.links)
    return await single_part.respond(request, payload, page.content_type, digest)


async def _instance(request: Request, stored: StoredInstance, transfer_syntax: str) -> Response:
    syntaxes = (transfer_syntax,) if transfer_syntax else ()
    accepted = [MediaRange(negotiate.DICOM, transfer_syntaxes=syntaxes)]
    choices = negotiate.instances(accepted, [stored.transfer_syntax], single_allowed=True)
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    index, payload = await services.transcoded.open_instance(stored, targets)
    return await retrieve.respond_alone(request, stored, payload, targets[index])


async def _image(
    request: Request, stored: StoredInstance, asked: wado_uri.WadoUri, media_type: str
) -> Response:
    return await rendered.respond_image(request, stored, asked.frame, media_type, asked.options, asked.region)
