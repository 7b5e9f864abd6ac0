"""Rendered resources and thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): images of 8 bits, ready to be seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import frames, http, multi_part, routes, single_part
from shared import services
from shared.dicom.render import Options, thumbnail_options
from shared.errors import DicomServerError, NotAcceptable
from shared.web import rendering, urls
from shared.web.accept import matches

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()

Images = Sequence[tuple["StoredInstance", Sequence[int]]]
"""Instances, and the numbers of their frames to render."""


@http.route(blueprint, routes.STUDY_RENDERED, ["GET", "HEAD"])
async def render_study(request: Request) -> Response:
    """Images of all instances of a study."""
    return await _rendered(request)


@http.route(blueprint, routes.SERIES_RENDERED, ["GET", "HEAD"])
async def render_series(request: Request) -> Response:
    """Images of all instances of a series."""
    return await _rendered(request)


@http.route(blueprint, routes.INSTANCE_RENDERED, ["GET", "HEAD"])
async def render_instance(request: Request) -> Response:
    """Images of all frames of an instance."""
    return await _rendered(request)


@http.route(blueprint, routes.FRAMES_RENDERED, ["GET", "HEAD"])
async def render_frames(request: Request) -> Response:
    """Images of frames of an instance, in the order of the list."""
    return await _rendered(request)


@http.route(blueprint, routes.STUDY_THUMBNAIL, ["GET", "HEAD"])
async def study_thumbnail(request: Request) -> Response:
    """A small image that stands for a study."""
    return await _thumbnail(request)


@http.route(blueprint, routes.SERIES_THUMBNAIL, ["GET", "HEAD"])
async def series_thumbnail(request: Request) -> Response:
    """A small image that stands for a series."""
    return await _thumbnail(request)


@http.route(blueprint, routes.INSTANCE_THUMBNAIL, ["GET", "HEAD"])
async def instance_thumbnail(request: Request) -> Response:
    """A small image of the middle frame of an instance."""
    return await _thumbnail(request)


@http.route(blueprint, routes.FRAMES_THUMBNAIL, ["GET", "HEAD"])
async def frames_thumbnail(request: Request) -> Response:
    """A small image of the first frame of the list."""
    return await _thumbnail(request)


async def _rendered(request: Request) -> Response:
    resource = http.resource(request)
    options = rendering.parse_options(request.query_params.multi_items(), thumbnail=False)
    numbers = frames.numbers(request.path_params["frames"]) if "frames" in request.path_params else None
    found = await services.retrieve.find(resource)
    document = await services.rendered.read_document(found[0]) if len(found) == 1 and not numbers else None
    if document:
        return await _document(request, found[0], *document)
    found = services.rendered.renderable(found)
    images: Images = [(s, numbers or range(1, s.number_of_frames + 1)) for s in found]
    return await _respond(request, images, options)


async def _document(request: Request, stored: StoredInstance, media_type: str, payload: Payload) -> Response:
    """What is rendered as it is: an encapsulated document or a video."""
    chosen = next((given for given in http.accepted(request) if matches(given.media_type, media_type)), None)
    if chosen is None:
        raise NotAcceptable(f"The instance is rendered as {media_type}.")
    url = f"{urls.instance_url(http.service_root(request, stored.key.partition), stored.key)}/rendered"
    digest = services.retrieve.digest([stored], f"{url} {media_type}")
    return await single_part.respond(request, payload, media_type, digest, url if chosen.multipart else "")


async def _thumbnail(request: Request) -> Response:
    resource = http.resource(request)
    asked = rendering.parse_options(request.query_params.multi_items(), thumbnail=True)
    numbers = frames.numbers(request.path_params["frames"]) if "frames" in request.path_params else None
    stored, number = services.rendered.representative(await services.retrieve.find(resource))
    images: Images = [(stored, numbers[:1] if numbers else [number])]
    return await _respond(request, images, thumbnail_options(asked, services.rendered.THUMBNAIL_SIDE))


async def _respond(request: Request, images: Images, options: Options) -> Response:
    count = sum(len(numbers) for _, numbers in images)
    media_type, multipart = rendering.choose(http.accepted(request), count)
    root = http.service_root(request, images[0][0].key.partition)
    if count == 1:
        ((stored, numbers),) = images
        location = f"{urls.instance_url(root, stored.key)}/frames/{numbers[0]}/rendered"
        digest = services.retrieve.digest([stored], f"{location} {media_type} {options}")
        if not multipart and http.not_modified(request, f'"{digest}"'):
            return Response(status_code=304, headers=single_part.validators(digest))
        at = location if multipart else ""
        return await respond_image(request, stored, numbers[0], media_type, options, digest, at)
    return await multi_part.respond(_parts(images, media_type, options, root), media_type)


async def respond_image(
    request: Request,
    stored: StoredInstance,
    number: int,
    media_type: str,
    options: Options,
    digest: str,
    location: str = "",
) -> Response:
    """Answer with the image of one frame; see :func:`single_part.respond`."""
    image = await anext(services.rendered.render_frames(stored, [number], media_type, options))
    if isinstance(image, DicomServerError):
        raise image
    return await single_part.respond(request, image, media_type, digest, location)


async def _parts(
    images: Images, media_type: str, options: Options, root: str
) -> AsyncIterator[multi_part.Part]:
    """The images; in the place of one that cannot be made is a problem."""
    for stored, numbers in images:
        url = f"{urls.instance_url(root, stored.key)}/frames"
        turn = iter(numbers)
        try:
            async for image in services.rendered.render_frames(stored, numbers, media_type, options):
                yield multi_part.Part(media_type, f"{url}/{next(turn)}/rendered", image)
        except DicomServerError as error:
            if len(images) == 1:
                raise
            yield multi_part.Part(media_type, urls.instance_url(root, stored.key), error)
