"""WADO-URI (PS3.18 §9): ``GET /v2/wado?requestType=WADO&studyUID=...&seriesUID=...&objectUID=...``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import http, routes, single_part
from shared import services
from shared.dicom.identifiers import DEFAULT_PARTITION, check_partition
from shared.dicom.render import MEDIA_TYPES, Options, Viewport
from shared.errors import DicomServerError, NotAcceptable
from shared.web import negotiate, wado_uri
from shared.web.accept import MediaRange, matches

if TYPE_CHECKING:
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()


@http.route(blueprint, routes.WADO_URI, ["GET", "HEAD"])
async def retrieve_by_wado_uri(request: Request) -> Response:
    """One instance, an image of one of its frames, or the document or video it holds."""
    partition = check_partition(request.path_params.get("partition", DEFAULT_PARTITION))
    asked = wado_uri.parse(partition, request.query_params.multi_items())
    (stored,) = await services.retrieve.find(asked.resource)
    document = await services.rendered.read_document(stored)
    offered = [document[0]] if document else []
    if services.rendered.is_renderable(stored):
        offered += MEDIA_TYPES
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
    return await _image(request, stored, asked, chosen)


async def _instance(request: Request, stored: StoredInstance, transfer_syntax: str) -> Response:
    syntaxes = (transfer_syntax,) if transfer_syntax else ()
    accepted = [MediaRange(negotiate.DICOM, transfer_syntaxes=syntaxes)]
    choices = negotiate.instances(accepted, [stored.transfer_syntax], single_allowed=True)
    targets = [choice.transfer_syntaxes[0] for choice in choices]
    target = targets[await services.transcoded.first_possible(stored, targets)]
    payload = await services.transcoded.read_instance(stored, target)
    content_type = f"{negotiate.DICOM}; transfer-syntax={target}"
    return await single_part.respond(
        request, payload, content_type, services.retrieve.digest([stored], content_type)
    )


async def _image(
    request: Request, stored: StoredInstance, asked: wado_uri.WadoUri, media_type: str
) -> Response:
    options = await _options(stored, asked)
    digest = services.retrieve.digest([stored], f"{asked.frame} {media_type} {options}")
    image = await anext(services.rendered.render_frames(stored, [asked.frame], media_type, options))
    if isinstance(image, DicomServerError):
        raise image
    return await single_part.respond(request, services.retrieve.in_memory(image), media_type, digest)


async def _options(stored: StoredInstance, asked: wado_uri.WadoUri) -> Options:
    """The options with the region in pixels, which scales to fit rows and columns."""
    if asked.region is None:
        return asked.options
    document = await services.retrieve.read_document(stored)
    height, width = (document.get(tag, {}).get("Value", [0])[0] or 0 for tag in ("00280010", "00280011"))
    left, top, right, bottom = asked.region
    region = left * width, top * height, (right - left) * width, (bottom - top) * height
    size = asked.options.viewport or Viewport(max(1, round(region[2])), max(1, round(region[3])))
    return replace(asked.options, viewport=replace(size, region=region))
