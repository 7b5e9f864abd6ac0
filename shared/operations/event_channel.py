"""The way events reach their subscribers: WebSockets of Azure Web PubSub, or of what speaks like it.

A function app holds no WebSockets; the service does. A subscriber connects to it by a URL whose token is good
for that subscriber alone. The development host has a small server of the same protocol.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from azure.core.exceptions import AzureError, HttpResponseError
from azure.messaging.webpubsubservice.aio import WebPubSubServiceClient

from shared.errors import DependencyUnavailable

log = logging.getLogger(__name__)

HUB = "workitems"
TOKEN_MINUTES = 60
_PASSING = frozenset({401, 403, 404, 408, 429})
"""Statuses below 500 that say nothing about the message: rights and hubs come late, throttling ends."""


class EventChannel:
    """Sends to subscribers and lets them connect."""

    def __init__(self, service: WebPubSubServiceClient) -> None:
        self._service = service

    async def url(self, partition: str, subscriber: str) -> str:
        """A URL by which this subscriber, and nobody else, connects. Raises DependencyUnavailable.

        It can be used for an hour; a connection stays open after that.
        """
        try:
            token = await self._service.get_client_access_token(
                user_id=user_id(partition, subscriber), minutes_to_expire=TOKEN_MINUTES
            )
        except (AzureError, OSError) as error:
            raise _unavailable() from error
        return str(token["url"])

    async def send(self, partition: str, subscriber: str, text: bytes) -> None:
        """Send ``text`` (UTF-8) to every connection of the subscriber. Raises DependencyUnavailable.

        What the service refuses for its own sake, such as its size, is not tried again.
        """
        # As bytes, which its types do not know: of a string the client counts characters, not bytes.
        message: Any = text
        try:
            await self._service.send_to_user(
                user_id(partition, subscriber), message=message, content_type="text/plain"
            )
        except HttpResponseError as error:
            status = error.status_code or 0
            if 400 <= status < 500 and status not in _PASSING:
                log.error("An event was refused with %d; its subscriber can fetch it.", status)
                return
            raise _unavailable() from error
        except (AzureError, OSError) as error:
            raise _unavailable() from error

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()


def user_id(partition: str, subscriber: str) -> str:
    """What the service knows a subscriber of a partition by: characters that need no escape in a URL."""
    return hashlib.sha256(f"{partition}\n{subscriber}".encode()).hexdigest()


def connect(connection: str, endpoint: str, credential: Any, **options: Any) -> EventChannel:
    """The channel of a connection string (the development host's) or of an endpoint and an identity."""
    retries: dict[str, Any] = {
        "retry_total": 2,
        "retry_backoff_factor": 0.2,
        "connection_timeout": 5,
        "read_timeout": 15,
    } | options
    if connection:
        return EventChannel(WebPubSubServiceClient.from_connection_string(connection, HUB, **retries))
    return EventChannel(WebPubSubServiceClient(endpoint, HUB, credential, **retries))


def _unavailable() -> DependencyUnavailable:
    return DependencyUnavailable("The service that sends events is unavailable; try again later.")
