"""A FHIR server's RESTful API (https://hl7.org/fhir/R4/http.html): searches and transactions, R4 and R5.

Bodies hold patient data and so may the server's answers: neither is logged, nor part of an error.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp

from shared.errors import DependencyUnavailable
from shared.neighbours.errors import NeighbourFailed, NeighbourRefused, NeighbourUnavailable, of_status

Resource = dict[str, Any]

_TIMEOUT_SECONDS = 60
_NAME = "The FHIR server"
_JSON = "application/fhir+json"


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of a transaction: create unless something matches ``query``, or update or delete a version.

    ``full_url`` is what other entries refer to a new resource by.
    """

    resource: Resource
    query: Mapping[str, str] | None = None
    full_url: str = ""
    delete: bool = False

    def entry(self) -> Resource:
        """The entry of the Bundle."""
        type, request = self.resource["resourceType"], {}
        if self.query is not None:
            request = {"method": "POST", "url": type, "ifNoneExist": _query(self.query)}
            return {"fullUrl": self.full_url, "resource": self.resource, "request": request}
        request = {"method": "DELETE" if self.delete else "PUT", "url": f"{type}/{self.resource['id']}"}
        version = (self.resource.get("meta") or {}).get("versionId")
        if version:
            request["ifMatch"] = f'W/"{version}"'
        return {"request": request} if self.delete else {"resource": self.resource, "request": request}


class FhirServer:
    """One FHIR server by its base URL."""

    def __init__(self, url: str, token: Callable[[], Awaitable[str]]) -> None:
        """``token`` gives a bearer token, or nothing where the server wants none."""
        self._url = url
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def find(self, type: str, query: Mapping[str, str]) -> Resource | None:
        """The resource that matches. Raises NeighbourRefused where several do."""
        bundle = await self._request("GET", f"{self._url}/{type}", dict(query))
        found = [entry["resource"] for entry in bundle.get("entry") or [] if "resource" in entry]
        found = [resource for resource in found if resource.get("resourceType") == type]
        if len(found) > 1:
            raise NeighbourRefused(f"Several resources {type} of {_NAME.lower()} match.")
        return found[0] if found else None

    async def transact(self, changes: Sequence[Change]) -> list[bool]:
        """Do all changes or none; for each whether it was done. False is a resource that was there already.

        Raises NeighbourFailed where somebody else has changed one of them meanwhile.
        """
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [change.entry() for change in changes],
        }
        answer = await self._request("POST", self._url, {}, bundle)
        entries = answer.get("entry") or []
        if len(entries) != len(changes):
            raise NeighbourFailed(f"{_NAME} answered a transaction with another number of entries.")
        return [
            _done(change, entry.get("response") or {}) for change, entry in zip(changes, entries, strict=True)
        ]

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(
        self, method: str, url: str, query: dict[str, str], body: Resource | None = None
    ) -> Resource:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_SECONDS))
        headers = {"Accept": _JSON, "Prefer": "return=minimal"} if body else {"Accept": _JSON}
        data = None
        if body is not None:
            headers["Content-Type"] = f"{_JSON}; charset=utf-8"
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        token = await self._bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                method, url, params=query, data=data, headers=headers, allow_redirects=False
            ) as response:
                content = await response.read()
                if not 200 <= response.status < 300:
                    raise of_status(_NAME, response.status, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The exception is not kept: its text may quote the URL, and with it the patient's identifier.
            raise NeighbourUnavailable(f"{_NAME} does not answer.") from _nameless(error)
        try:
            answer: Resource = json.loads(content)
        except ValueError as error:
            raise NeighbourFailed(f"{_NAME} answered with something else than JSON.") from _nameless(error)
        return answer

    async def _bearer(self) -> str:
        try:
            return await self._token()
        except DependencyUnavailable:
            raise
        except Exception as error:
            raise NeighbourUnavailable("No token for the FHIR server could be got.") from _nameless(error)


def _done(change: Change, response: Mapping[str, Any]) -> bool:
    status = int(str(response.get("status") or "0")[:3])
    if status in (404, 410, 412):
        raise NeighbourFailed(f"{_NAME} answered an entry of a transaction with status {status}.")
    if not 200 <= status < 300:
        raise of_status(_NAME, status)
    return change.query is None or status == 201


def _query(parameters: Mapping[str, str]) -> str:
    """Parameters as ``ifNoneExist`` takes them."""
    return urlencode(parameters)


def _nameless(error: BaseException) -> BaseException:
    return RuntimeError(type(error).__name__)
