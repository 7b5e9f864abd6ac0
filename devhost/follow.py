"""Follows a long-running operation of a server to its end, with a progress bar."""

from __future__ import annotations

import time
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Json = dict[str, Any]

_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0


class Refused(Exception):
    """The server refuses to start an operation; the message says why."""


class OperationLost(Exception):
    """The server no longer tells about an operation; the message says what it said."""


def start(client: httpx.Client, url: str, body: Json) -> str:
    """Start an operation; where it can be followed. Raises Refused, and httpx.HTTPError without an answer."""
    response = client.post(url, json=body)
    if response.status_code != 202:
        raise Refused(problem(response))
    return response.headers["Location"]


def follow(client: httpx.Client, href: str, title: str, console: Console) -> Json:
    """The operation at ``href`` when it has ended. A server that is away for a while is waited for.

    Raises OperationLost.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)  # a bar that swings, until something is known
        heard = time.monotonic()
        while True:
            operation = _ask(client, href)
            if operation is not None:
                heard = time.monotonic()
                percent = operation["percentComplete"]
                progress.update(task, total=100 if percent else None, completed=percent)
                if operation["status"] in ("succeeded", "failed", "canceled"):
                    return operation
            elif time.monotonic() - heard > _PATIENCE_SECONDS:
                raise OperationLost("The server does not answer any more.")
            time.sleep(_POLL_SECONDS)


def _ask(client: httpx.Client, href: str) -> Json | None:
    """The operation as it is now, or None when the server cannot say at the moment."""
    try:
        response = client.get(href)
    except httpx.TransportError:
        return None
    if response.status_code == 503:
        return None
    if response.status_code not in (200, 202):
        raise OperationLost(problem(response))
    operation: Json = response.json()
    return operation


def problem(response: httpx.Response) -> str:
    """What is wrong, as the server says it."""
    try:
        return f"HTTP {response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.reason_phrase}"
