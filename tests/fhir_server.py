"""A real FHIR R4 server on loopback, behind a proxy that validates what is sent and fails as it is told to.

The server is the router of Medplum (npm) with its repository in memory: searches, conditional creates,
versions and transactions are its work. Every resource that passes the proxy is validated by R4B's models.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp import web
from fhir.resources import get_fhir_model_class
from fhir.resources.R4B import get_fhir_model_class as get_r4b_class

from devhost.azurite import Installation
from tests.event_receiver import Fault, serving

ROOT = Path(__file__).resolve().parents[1]
VERSION = "5.2.13"
PACKAGES = [f"@medplum/{name}@{VERSION}" for name in ("core", "definitions", "fhir-router")]
Resource = dict[str, Any]


def installed() -> Path:
    """The folder of the packages, which are installed on first use."""
    folder = ROOT / ".dev" / "fhir-server"
    stamp = folder / "installed-version"
    if not stamp.exists() or stamp.read_text() != VERSION:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        npm, environment = Installation(ROOT / ".dev").npm(_run, "python3")
        options = ["--no-fund", "--no-audit", "--ignore-scripts", "--loglevel=error"]
        _run("", [*npm, "install", "--prefix", str(folder), *options, *PACKAGES], environment)
        stamp.write_text(VERSION)
    return folder


def _run(_what: str, command: list[str], environment: dict[str, str] | None) -> None:
    subprocess.run(command, env=environment, check=True, capture_output=True)


def validated(resource: Resource, version: str = "R4") -> Resource:
    """``resource``, which the models of the specification accept. R4B has R4's forms of what we make."""
    find = get_fhir_model_class if version == "R5" else get_r4b_class
    find(resource["resourceType"]).model_validate(resource)
    return resource


@dataclass
class Fhir:
    """``url`` is the proxy's; ``direct`` the server's own. ``fault`` decides what becomes of a request."""

    direct: str
    url: str = ""
    fault: Callable[[str, Resource | None], Fault] = lambda method, body: None
    requests: int = 0
    faults: int = 0
    invalid: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def all(self, type: str) -> list[Resource]:
        """Every resource of a type, straight from the server."""
        bundle = httpx.get(f"{self.direct}/{type}", params={"_count": "10000"}, timeout=60).json()
        return [entry["resource"] for entry in bundle.get("entry", [])]

    def clear(self) -> None:
        """Empty the server."""
        httpx.post(f"{self.direct}/clear").raise_for_status()
        self.fault = lambda method, body: None
        self.requests = self.faults = 0
        self.tokens.clear()

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Validate, fail where that is due, else ask the server."""
        content = await request.read()
        body = json.loads(content) if content else None
        self.requests += 1
        self.tokens.add(request.headers.get("Authorization", ""))
        self._validate(body)
        fault = self.fault(request.method, body)
        self.faults += fault is not None
        if isinstance(fault, int):
            return web.json_response({}, status=fault, headers={"Retry-After": "1"} if fault == 429 else {})
        if fault != "cut":
            async with (
                aiohttp.ClientSession() as session,
                session.request(
                    request.method,
                    f"{self.direct}{request.path_qs}",
                    data=content or None,
                    headers={"Content-Type": "application/fhir+json"},
                ) as answer,
            ):
                status, text = answer.status, await answer.text()
            if fault is None:
                return web.Response(text=text, status=status, content_type="application/fhir+json")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _validate(self, body: Resource | None) -> None:
        for entry in (body or {}).get("entry", []):
            try:
                if "resource" in entry:
                    validated(entry["resource"])
            except ValueError as error:
                self.invalid.append(str(error))


@contextmanager
def fhir_server() -> Iterator[Fhir]:
    """A server with nothing in it."""
    node = Installation(ROOT / ".dev").node()
    assert node is not None
    command = [node, str(ROOT / "tests" / "fhir_server.cjs"), str(installed())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            state = Fhir(f"http://127.0.0.1:{int(process.stdout.readline())}")
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", state.pass_on)
            with serving(app) as port:
                state.url = f"http://127.0.0.1:{port}"
                yield state
        finally:
            process.kill()
