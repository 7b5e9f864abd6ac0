"""Azure Web PubSub through its real client: over TLS, with the app's identity, its paths and its refusals."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from shared.errors import DependencyUnavailable
from shared.operations import event_channel
from shared.operations.event_channel import EventChannel
from tests.key_vault import HOST, TOKEN, Identity, over_tls

TEXT = '{"a": "\u00e4"}'.encode()


@dataclass
class Service:
    """What was asked for, and the status of the next answers (0 for success)."""

    requests: list[tuple[str, str, dict[str, str], str, bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    authorized: list[bool] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.authorized.append(request.headers.get("Authorization") == f"Bearer {TOKEN}")
        query = dict(request.query)
        assert query.pop("api-version")
        self.requests.append((request.method, request.path, query, request.content_type, body))
        if self.statuses and (status := self.statuses.pop(0)):
            return web.Response(status=status)
        if request.path.endswith(":generateToken"):
            return web.json_response({"token": "a-token-of-the-subscriber"})
        return web.Response(status=202)


@contextlib.asynccontextmanager
async def service(folder: Path) -> AsyncIterator[tuple[Service, EventChannel, Identity, str]]:
    state, identity, app = Service(), Identity(), web.Application()
    app.router.add_route("*", "/{path:.*}", state.answer)
    async with over_tls(folder, app) as (port, transport):
        host = f"{HOST}:{port}"
        options = {"transport": transport, "retry_backoff_factor": 0.001}
        channel = event_channel.connect("", f"https://{host}", identity, **options)
        yield state, channel, identity, host
        await channel.close()


async def test_an_event_is_sent_as_text_to_one_subscriber_with_the_identity_of_the_app(
    tmp_path: Path,
) -> None:
    async with service(tmp_path) as (state, channel, identity, _):
        await channel.send("clinic", "READER 1", TEXT)
    user = event_channel.user_id("clinic", "READER 1")
    assert state.requests == [("POST", f"/api/hubs/workitems/users/{user}/:send", {}, "text/plain", TEXT)]
    assert state.authorized == [True]
    assert set(identity.scopes) == {"https://webpubsub.azure.com/.default"}


async def test_a_connection_has_a_token_for_one_subscriber_who_may_only_listen(tmp_path: Path) -> None:
    async with service(tmp_path) as (state, channel, _, host):
        url = await channel.url("clinic", "READER")
    assert url == f"wss://{host}/client/hubs/workitems?access_token=a-token-of-the-subscriber"
    (request,) = state.requests
    user = event_channel.user_id("clinic", "READER")
    assert request[:2] == ("POST", "/api/hubs/workitems/:generateToken")
    assert request[2]["userId"] == user
    assert request[2]["minutesToExpire"] == "60"
    assert not {"role", "group"} & set(request[2])


def test_subscribers_of_the_same_name_differ_by_partition() -> None:
    users = {event_channel.user_id(*of) for of in (("a", "B"), ("a", "C"), ("c", "B"))}
    assert len(users) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_what_passes_is_an_unavailable_dependency(tmp_path: Path, status: int) -> None:
    async with service(tmp_path) as (state, channel, _, _host):
        state.statuses += [status] * 8
        with pytest.raises(DependencyUnavailable):
            await channel.send("clinic", "READER", b"{}")
        with pytest.raises(DependencyUnavailable):
            await channel.url("clinic", "READER")


@pytest.mark.parametrize("status", [400, 413])
async def test_an_event_the_service_refuses_for_itself_does_not_hold_up_others(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path) as (state, channel, _, _host):
        state.statuses.append(status)
        await channel.send("clinic", "READER", b"{}")
        await channel.send("clinic", "READER", b"{}")
    assert len(state.requests) == 2
    assert str(status) in caplog.text


async def test_a_service_that_is_not_there_is_an_unavailable_dependency() -> None:
    connection = "Endpoint=http://127.0.0.1:1;AccessKey=0123456789abcdef0123456789abcdef;Version=1.0;"
    channel = event_channel.connect(connection, "", None, retry_total=0)
    with pytest.raises(DependencyUnavailable):
        await channel.send("clinic", "READER", b"{}")
    await channel.close()
