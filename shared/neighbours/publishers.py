"""Publishers of events: to an Event Grid topic, or to a webhook by the CloudEvents HTTP protocol binding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import aiohttp
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.messaging import CloudEvent
from azure.eventgrid import EventGridEvent
from azure.eventgrid.aio import EventGridPublisherClient

from shared.neighbours.errors import NeighbourUnavailable, of_status
from shared.neighbours.events import Event

_TIMEOUT_SECONDS = 30
_TOPIC = "The Event Grid topic"
_WEBHOOK = "The webhook"


class Publisher(Protocol):
    """Sends events, in order, all or none as far as the receiver can tell."""

    async def publish(self, events: Sequence[Event]) -> None:
        """Raises NeighbourUnavailable, NeighbourFailed or NeighbourRefused."""

    async def close(self) -> None:
        """Close connections."""


class EventGridTopic:
    """A custom topic of Azure Event Grid, in its input schema: CloudEvents 1.0 or Event Grid's own."""

    def __init__(self, endpoint: str, credential: Any, cloud_events: bool) -> None:
        """``credential`` is an identity, or a key of the topic as text."""
        if isinstance(credential, str):
            credential = AzureKeyCredential(credential)
        # The follower tries again itself: it knows what the order of a study allows.
        self._client = EventGridPublisherClient(
            endpoint, credential, retry_total=0, connection_timeout=10, read_timeout=_TIMEOUT_SECONDS
        )
        self._form = _cloud_event if cloud_events else _event_grid_event

    async def publish(self, events: Sequence[Event]) -> None:
        """As the protocol says."""
        forms: list[Any] = [self._form(event) for event in events]
        try:
            await self._client.send(forms)
        except ClientAuthenticationError as error:
            raise NeighbourUnavailable(f"{_TOPIC} does not let the server in.") from error
        except HttpResponseError as error:
            headers: Any = getattr(error.response, "headers", {})
            raise of_status(_TOPIC, _status(error), headers.get("Retry-After", "")) from error
        except (AzureError, OSError) as error:
            raise NeighbourUnavailable(f"{_TOPIC} does not answer.") from error

    async def close(self) -> None:
        """As the protocol says."""
        await self._client.close()


def _status(error: HttpResponseError) -> int:
    """The status of an error; the library leaves it out of some of its classes."""
    if error.status_code:
        return error.status_code
    if isinstance(error, ResourceNotFoundError):
        return 404
    return 409 if isinstance(error, ResourceExistsError) else 500


class Webhook:
    """Whoever takes batches of CloudEvents by POST (CloudEvents 1.0, HTTP Protocol Binding and Web Hooks).

    Before the first batch the receiver is asked, by OPTIONS, whether it wants events of this origin.
    """

    def __init__(self, url: str, token: str, origin: str) -> None:
        """``token``, where there is one, is sent as a bearer token; ``origin`` is this server's host name."""
        self._url = url
        self._origin = origin
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self._allowed = False

    async def publish(self, events: Sequence[Event]) -> None:
        """As the protocol says."""
        batch = json.dumps([_json(event) for event in events], separators=(",", ":")).encode()
        headers = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}
        try:
            await self._ask()
            await self._request("POST", headers, batch)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NeighbourUnavailable(f"{_WEBHOOK} does not answer.") from error

    async def close(self) -> None:
        """As the protocol says."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self) -> None:
        if self._allowed:
            return
        answer = await self._request("OPTIONS", {"WebHook-Request-Origin": self._origin})
        if answer.get("WebHook-Allowed-Origin", "") not in ("*", self._origin):
            raise NeighbourUnavailable(f"{_WEBHOOK} does not allow events of this server.")
        self._allowed = True

    async def _request(self, method: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_SECONDS))
        async with self._session.request(
            method, self._url, data=body, headers=self._headers | headers, allow_redirects=False
        ) as response:
            await response.read()
            if not 200 <= response.status < 300:
                raise of_status(_WEBHOOK, response.status, response.headers.get("Retry-After", ""))
            return response.headers


def _json(event: Event) -> dict[str, Any]:
    """CloudEvents 1.0, JSON event format."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "dataschema": "#1",
        "datacontenttype": "application/json",
        "data": event.data,
    }


def _cloud_event(event: Event) -> CloudEvent[dict[str, Any]]:
    return CloudEvent.from_dict(_json(event))


def _event_grid_event(event: Event) -> EventGridEvent:
    return EventGridEvent(
        subject=event.subject,
        event_type=event.type,
        data=event.data,
        data_version="1",
        id=event.id,
        event_time=event.time,
    )
