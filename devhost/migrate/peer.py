"""A DICOMweb server on either side: requests that are tried again, and instances spooled to files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from devhost.follow import problem
from shared.dicom.identifiers import InstanceKey
from shared.dicom.part10 import LONG_VRS, Part10Parser
from shared.errors import InvalidInstance, InvalidRequest
from shared.web.multipart import MultipartReader, parse_content_type

_DELAYS = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_LONGEST_DELAY = 60.0
_AGAIN = frozenset({401, 408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others in a moment; 401, because the file of a token may be renewed meanwhile."""
_CHUNK = 1024 * 1024
_DICOM = "application/dicom"
_RETRIEVE = f'multipart/related; type="{_DICOM}"; transfer-syntax=*'
_T = TypeVar("_T")
PAGE = 200
"""Results of one request: what the ancestor answers at most."""


class Unusable(Exception):
    """A server cannot be used at all, so that the run ends; the message says why."""


class Failed(Exception):
    """One request failed; the message says why. ``again``: another attempt may do."""

    def __init__(self, message: str, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Received:
    """A retrieved instance in a file of its own; ``key`` has no partition.

    ``digest`` is of its transfer syntax and of the bytes of its data set, so without the file meta
    information, which servers write anew.
    """

    path: Path
    size: int
    key: InstanceKey
    digest: str


class Peer:
    """A DICOMweb service at ``url``; ``token_file`` is read for every request: tokens are short-lived."""

    def __init__(self, url: str, token_file: Path | None, connections: int) -> None:
        self.url = url.rstrip("/")
        self._token_file = token_file
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(300, connect=10),
            limits=httpx.Limits(max_connections=connections),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def get(self, path: str, **parameters: str | int) -> httpx.Response:
        """A GET of JSON, tried again; any answer that is no fault of the moment. Raises Failed, Unusable."""

        async def send() -> httpx.Response:
            headers = {"Accept": "application/dicom+json, application/json;q=0.9"}
            return await self.send("GET", path, headers, params=parameters)

        return await attempts(send)

    async def page(self, path: str, **parameters: str | int) -> list[dict[str, Any]]:
        """The results of one search or page. Raises Failed, Unusable."""
        response = await self.get(path, **parameters)
        if response.status_code == 204:
            return []
        if response.status_code != 200:
            raise Failed(problem(response))
        try:
            results = response.json()
        except ValueError:
            results = None
        if not isinstance(results, list):
            raise Failed(f"{self.url} does not answer a search with a JSON array.")
        return results

    async def pages(
        self, path: str, attribute: str, **parameters: str
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """All pages of a search (PS3.18 §8.3.4.4); ``attribute`` tells results apart.

        The end is a page without anything new: servers may return fewer than asked for, and some know no
        ``offset``. Raises Failed, Unusable.
        """
        seen: set[str] = set()
        offset = 0
        while True:
            results = await self.page(path, limit=PAGE, offset=offset, **parameters)
            new = {value(result, attribute) for result in results} - seen
            if not new:
                return
            seen |= new
            offset += len(results)
            yield results

    async def send(self, method: str, path: str, headers: dict[str, str], **arguments: Any) -> httpx.Response:
        """One request, one attempt. Raises Failed with ``again`` for a fault of the moment, and Unusable."""
        try:
            response = await self._client.request(
                method, f"{self.url}/{path}", headers=headers | self._authorization(), **arguments
            )
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        self._check(response)
        return response

    async def retrieve(self, key: InstanceKey, folder: Path) -> AsyncIterator[Received]:
        """Retrieve what ``key`` names, an instance or (``instance`` empty) a series, part by part.

        Parts that are no instances are passed over: nobody could say what they should have been. Raises
        Failed, also in the midst, and Unusable.
        """
        path = f"studies/{_segment(key.study)}/series/{_segment(key.series)}"
        path += f"/instances/{_segment(key.instance)}" if key.instance else ""
        headers = {"Accept": _RETRIEVE} | self._authorization()
        try:
            async with self._client.stream("GET", f"{self.url}/{path}", headers=headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._check(response)
                    raise Failed(problem(response))
                async for chunks in _parts(response):
                    received = await _spool(chunks, folder)
                    if received is not None:
                        yield received
        except httpx.TransportError as error:
            raise self._unreached(error) from error
        except InvalidRequest as error:
            raise Failed(f"The answer to a retrieve is damaged: {error}", again=True) from error

    def _authorization(self) -> dict[str, str]:
        """The token of the file, or a whole value such as ``Basic ...``. Raises Unusable."""
        if self._token_file is None:
            return {}
        try:
            text = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise Unusable(f"The token file {self._token_file} cannot be read.") from error
        return {"Authorization": text if " " in text else f"Bearer {text}"}

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 403:
            raise Unusable(f"{self.url} refuses access ({problem(response)}).")
        if response.status_code in _AGAIN:
            failed = Failed(problem(response), again=True)
            failed.__cause__ = httpx.HTTPStatusError("", request=response.request, response=response)
            raise failed

    def _unreached(self, error: httpx.TransportError) -> Failed:
        what = f"{self.url} cannot be reached" if isinstance(error, httpx.ConnectError) else "cut off"
        failed = Failed(f"{what} ({type(error).__name__})", again=True)
        failed.__cause__ = error
        return failed


async def attempts(action: Callable[[], Awaitable[_T]]) -> _T:
    """The result of ``action``, tried again while its failures are of the moment.

    Raises Failed; Unusable where in the end nobody answers or the token is not accepted.
    """
    for delay in _DELAYS:
        try:
            return await action()
        except Failed as failed:
            if not failed.again:
                raise
            await asyncio.sleep(_wait(failed.__cause__, delay))
    try:
        return await action()
    except Failed as failed:
        cause = failed.__cause__
        unauthorized = isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == 401
        if unauthorized or isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
            raise Unusable(str(failed)) from failed
        raise


async def each(items: Iterable[_T], at_once: int, action: Callable[[_T], Awaitable[None]]) -> None:
    """Run ``action`` for every item, some at a time; the first that raises ends the others."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await action(item)

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _wait(cause: BaseException | None, delay: float) -> float:
    """Seconds until the next attempt: what the server asks for, else growing ones, never quite the same."""
    if isinstance(cause, httpx.HTTPStatusError):
        asked = cause.response.headers.get("Retry-After", "")
        if asked.isdigit():
            return min(_LONGEST_DELAY, int(asked)) + random.uniform(0, 0.1)
    return delay * random.uniform(0.5, 1.0)


async def _parts(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The parts of an answer, one after the other; an answer may also be a single instance."""
    content_type = parse_content_type(response.headers.get("Content-Type"))
    if content_type.media_type == _DICOM:
        yield response.aiter_bytes(_CHUNK)
        return
    if content_type.media_type != "multipart/related":
        raise Failed(f"A retrieve was answered with {content_type.media_type or 'no Content-Type'}.")
    reader = MultipartReader(response.aiter_bytes(), content_type.parameters.get("boundary", ""))
    async for part in reader.parts():
        yield part.chunks


async def _spool(chunks: AsyncIterator[bytes], folder: Path) -> Received | None:
    """Write an instance to a file; None, and no file, where it cannot be identified."""
    parser, readable = Part10Parser(), True
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            async for chunk in chunks:
                file.write(chunk)
                try:
                    if readable and not parser.identity_known:
                        parser.feed(chunk)
                except InvalidInstance:
                    readable = False
        except BaseException:
            os.unlink(file.name)
            raise
    return await asyncio.to_thread(_identified, Path(file.name), parser if readable else None)


def _identified(path: Path, parser: Part10Parser | None) -> Received | None:
    if parser is None or not parser.identity_known:
        path.unlink()
        return None
    identity = parser.result.identity
    key = InstanceKey(
        "", identity["StudyInstanceUID"], identity["SeriesInstanceUID"], identity["SOPInstanceUID"]
    )
    return Received(path, path.stat().st_size, key, _digest(path, parser.result.transfer_syntax))


def _digest(path: Path, transfer_syntax: str) -> str:
    digest = hashlib.md5(transfer_syntax.encode(), usedforsecurity=False)
    with path.open("rb") as file:
        file.seek(132)
        while len(head := file.read(8)) == 8 and head.startswith(b"\x02\x00"):
            # The file meta information: Explicit VR Little Endian (PS3.10 §7.1).
            if head[4:6] in LONG_VRS:
                (length,) = struct.unpack("<I", file.read(4))
            else:
                (length,) = struct.unpack_from("<H", head, 6)
            file.seek(length, 1)
        file.seek(-len(head), 1)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _segment(uid: str) -> str:
    return quote(uid, safe="")


def value(result: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON, empty where there is none."""
    values = result.get(tag, {}).get("Value") or [""]
    return str(values[0])
