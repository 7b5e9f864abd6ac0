"""Rendered resources and thumbnails (PS3.18 §10.4.1.1.3, §10.4.1.1.4): images of 8 bits, and pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from functions import frames, http, multi_part, routes, single_part
from shared import services
from shared.dicom import report
from shared.dicom.render import Options, Region, thumbnail_options
from shared.errors import DicomServerError, InvalidRequest, NotAcceptable
from shared.services.access import Action
from shared.web import rendering, urls
from shared.web.accept import matches

if TYPE_CHECKING:
    from shared.services.retrieve import Payload
    from shared.sql.instances import StoredInstance

blueprint = func.Blueprint()

Images = Sequence[tuple["StoredInstance", Sequence[int]]]
"""Instances, and the numbers of their frames to render."""


@http.route(blueprint, routes.STUDY_RENDERED, ["GET", "HEAD"], action=Action.READ)
async def render_study(request: Request) -> Response:
    """Images of all instances of a study."""
    return await _rendered(request)


@http.route(blueprint, routes.SERIES_RENDERED, ["GET", "HEAD"], action=Action.READ)
async def render_series(request: Request) -> Response:
    """Images of all instances of a series."""
    return await _rendered(request)


@http.route(blueprint, routes.INSTANCE_RENDERED, ["GET", "HEAD"], action=Action.READ)
async def render_instance(request: Request) -> Response:
    """Images of all frames of an instance."""
    return await _rendered(request)


@http.route(blueprint, routes.FRAMES_RENDERED, ["GET", "HEAD"], action=Action.READ)
async def render_frames(request: Request) -> Response:
    """Images of frames of an instance, in the order of the list."""
    return await _rendered(request)


@http.route(blueprint, routes.STUDY_THUMBNAIL, ["GET", "HEAD"], action=Action.READ)
async def study_thumbnail(request: Request) -> Response:
    """A small image that stands for a study."""
    return await _thumbnail(request)


@http.route(blueprint, routes.SERIES_THUMBNAIL, ["GET", "HEAD"], action=Action.READ)
async def series_thumbnail(request: Request) -> Response:
    """A small image that stands for a series."""
    return await _thumbnail(request)


@http.route(blueprint, routes.INSTANCE_THUMBNAIL, ["GET", "HEAD"], action=Action.READ)
async def instance_thumbnail(request: Request) -> Response:
    """A small image of the middle frame of an instance."""
    return await _thumbnail(request)


@http.route(blueprint, routes.FRAMES_THUMBNAIL, ["GET", "HEAD"], action=Action.READ)
async def frames_thumbnail(request: Request) -> Response:
    """A small image of the first frame of the list."""
    return await _thumbnail(request)


async def _rendered(request: Request) -> Response:
    resource = http.resource(request)
    options = rendering.parse_options(request.query_params.multi_items(), thumbnail=False)
    numbers = frames.numbers(request.path_params["frames"]) if "frames" in request.path_params else None
    found = await services.retrieve.find(resource, http.wants_original(request))
    document = await services.rendered.read_document(found[0]) if len(found) == 1 and not numbers else None
    if document:
        return await _document(request, found[0], *document)
    usable = services.rendered.renderable(found, reports=not numbers)
    return await _respond(request, [(s, numbers or _all_frames(s)) for s in usable], options)


def _all_frames(stored: StoredInstance) -> range:
    return range(1, stored.number_of_frames + 1)


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
    found = await services.retrieve.find(resource, http.wants_original(request))
    stored, number = services.rendered.representative(found)
    images: Images = [(stored, numbers[:1] if numbers else [number])]
    return await _respond(request, images, thumbnail_options(asked, services.rendered.THUMBNAIL_SIDE))


async def _respond(request: Request, images: Images, options: Options) -> Response:
    reports = [services.rendered.is_report(stored) for stored, _ in images]
    candidates = [
        rendering.Candidate(len(numbers), is_report)
        for (_, numbers), is_report in zip(images, reports, strict=True)
    ]
    types, multipart = rendering.choose(http.accepted(request), candidates)
    root = http.service_root(request, images[0][0].key.partition)
    renditions = [
        Rendition(stored, numbers, media_type, options, root)
        for (stored, numbers), media_type in zip(images, types, strict=True)
        if media_type
    ]
    if len(renditions) > 1 or renditions[0].bodies > 1:
        return await multi_part.respond(_parts(renditions), renditions[0].media_type)
    (rendition,) = renditions
    if rendition.numbers:
        services.retrieve.check_frames(rendition.stored, rendition.numbers)
    digest = services.retrieve.digest([rendition.stored], rendition.identity)
    location = rendition.location(0) if multipart else ""
    unchanged = single_part.unchanged(request, digest, location)
    if unchanged is not None:
        return unchanged
    payload = await anext(rendition.payloads())
    if isinstance(payload, DicomServerError):
        raise payload
    return await single_part.respond(request, payload, rendition.content_type, digest, location)


@dataclass(frozen=True, slots=True)
class Rendition:
    """One instance in the media type it is rendered as: an image of each frame, an animation, or a page."""

    stored: StoredInstance
    numbers: Sequence[int]
    media_type: str
    options: Options
    root: str

    @property
    def bodies(self) -> int:
        """How many bodies it makes."""
        return 1 if self.media_type in (rendering.GIF, rendering.REPORT) else len(self.numbers)

    @property
    def content_type(self) -> str:
        """The media type, with the character set of a page."""
        return f"{self.media_type}; charset=utf-8" if self.media_type == rendering.REPORT else self.media_type

    @property
    def identity(self) -> str:
        """Equal for equal bodies of one version of the instance."""
        return f"{self.location(0)} {self.media_type} {self.options}"

    @property
    def links(self) -> report.Links:
        """Where the references of a page lead."""
        return report.Links(self.root, self._url)

    @property
    def _url(self) -> str:
        return urls.instance_url(self.root, self.stored.key)

    def location(self, index: int) -> str:
        """Where the body is by itself."""
        if self.bodies == len(self.numbers):
            return f"{self._url}/frames/{self.numbers[index]}/rendered"
        if list(self.numbers) == list(_all_frames(self.stored)):
            return f"{self._url}/rendered"
        return f"{self._url}/frames/{','.join(map(str, self.numbers))}/rendered"

    async def payloads(self) -> AsyncIterator[Payload | DicomServerError]:
        """The bodies; in the place of a frame that cannot be rendered is why. Raises DicomServerError."""
        if self.media_type == rendering.REPORT:
            yield await services.rendered.render_report(self.stored, self.links)
        elif self.media_type == rendering.GIF and len(self.numbers) > 1:
            yield await services.rendered.render_animation(self.stored, self.numbers, self.options)
        elif len(self.numbers) == 1:
            try:
                yield await services.rendered.render_frame(
                    self.stored, self.numbers[0], self.media_type, self.options
                )
            except (InvalidRequest, NotAcceptable) as error:
                yield error
        else:
            images = services.rendered.render_frames(self.stored, self.numbers, self.media_type, self.options)
            async for image in images:
                yield image


async def respond_image(
    request: Request,
    stored: StoredInstance,
    number: int,
    media_type: str,
    options: Options,
    region: Region | None,
) -> Response:
    """Answer with the image of one frame, or the ``region`` of it; see :func:`single_part.respond`."""
    services.retrieve.check_frames(stored, [number])
    digest = services.retrieve.digest([stored], f"{number} {media_type} {options} {region}")
    unchanged = single_part.unchanged(request, digest)
    if unchanged is not None:
        return unchanged
    image = await services.rendered.render_frame(stored, number, media_type, options, region)
    return await single_part.respond(request, image, media_type, digest)


async def _parts(renditions: Sequence[Rendition]) -> AsyncIterator[multi_part.Part]:
    """The bodies; in the place of one that cannot be made is a problem."""
    for rendition in renditions:
        index = 0
        try:
            async for payload in rendition.payloads():
                yield multi_part.Part(rendition.content_type, rendition.location(index), payload)
                index += 1
        except DicomServerError as error:
            if len(renditions) == 1:
                raise
            url = urls.instance_url(rendition.root, rendition.stored.key)
            yield multi_part.Part(rendition.media_type, url, error)
