"""Stores instances at the target by STOW-RS, and looks whether they are there."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from devhost.load import File, read_outcomes
from devhost.migrate.peer import Failed, Peer, Received, attempts, value
from shared.dicom.identifiers import InstanceKey

_CHUNK = 1024 * 1024
_SERIES, _INSTANCE = "0020000E", "00080018"


@dataclass(frozen=True)
class Stored:
    """What became of an instance at the target: ``compared`` is whether it was read back; ``reason`` says
    why it is not there, empty when it is."""

    received: Received
    reason: str = ""
    compared: bool = False


class Target:
    """Stores at one server; ``replace`` takes the place of instances that have other content."""

    def __init__(self, peer: Peer, folder: Path, *, replace: bool) -> None:
        self._peer = peer
        self._folder = folder
        self._method = "PUT" if replace else "POST"

    async def store(self, batch: Sequence[Received]) -> list[Stored]:
        """Store instances with one request. A duplicate is done when its content is the same.

        A batch that is refused as a whole is sent again one by one, so that one file does not keep others
        away. Raises Unusable.
        """
        files = {File(one.path, one.size, one.key.instance): one for one in batch}
        try:
            response = await attempts(lambda: self._send(list(files)))
        except Failed as failed:
            if len(batch) > 1:
                return [stored for one in batch for stored in await self.store([one])]
            return [Stored(batch[0], str(failed))]
        if response.status_code not in (200, 202, 409) and len(batch) > 1:
            return [stored for one in batch for stored in await self.store([one])]
        try:
            outcomes = read_outcomes(list(files), response)
        except (ValueError, AttributeError, TypeError):
            return [Stored(one, "The target's answer to a store cannot be read.") for one in batch]
        results = []
        for outcome in outcomes:
            received = files[outcome.file]
            if outcome.status == "duplicate":
                results.append(Stored(received, await self.compare(received.key, received.digest), True))
            else:
                results.append(Stored(received, outcome.reason if outcome.status == "refused" else ""))
        return results

    async def compare(self, key: InstanceKey, digest: str) -> str:
        """Why the target's instance is not the one with this digest; empty when it is. Raises Unusable."""

        async def once() -> str:
            found = ""
            async for received in self._peer.retrieve(key, self._folder):
                received.path.unlink()
                if received.key == key:
                    found = received.digest
            return found

        try:
            found = await attempts(once)
        except Failed as failed:
            return f"It cannot be read back from the target: {failed}"
        return "" if found == digest else "The target holds other content under these identifiers."

    async def instances(self, study: str) -> set[InstanceKey]:
        """The instances of a study that a search finds. Raises Failed, Unusable."""
        path = f"studies/{quote(study, safe='')}/instances"
        return {
            InstanceKey("", study, value(result, _SERIES), value(result, _INSTANCE))
            async for results in self._peer.pages(path, _INSTANCE, includefield=_SERIES)
            for result in results
        }

    async def _send(self, files: list[File]) -> httpx.Response:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(sum(len(head) + file.size + 2 for file in files) + len(tail)),
            "Accept": "application/dicom+json",
        }

        async def body() -> AsyncIterator[bytes]:
            for file in files:
                yield head
                with file.path.open("rb") as content:
                    while chunk := content.read(_CHUNK):
                        yield chunk
                yield b"\r\n"
            yield tail

        return await self._peer.send(self._method, "studies", headers, content=body())
