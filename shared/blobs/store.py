"""Blob Storage, asynchronously: files, packs of metadata, and the inbox.

Thin over ``azure-storage-blob``: block sizes, retries and the translation of its exceptions are
decided here, once. Every method raises DependencyUnavailable when storage cannot be reached.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob import BlobBlock, BlobProperties, BlobSasPermissions, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient, ContainerClient, LinearRetry

from shared import telemetry
from shared.blobs import names
from shared.blobs.ranged_reads import RangedReads
from shared.errors import DependencyUnavailable

BLOCK = 4 * 1024 * 1024
"""Bytes moved by one request when a large blob is written or read."""

APPEND_LIMIT = 4 * 1024 * 1024
"""Bytes one append may carry (Put Block limits, service versions before 2022-11-02)."""


_BLOCKS_AHEAD = 2
"""Blocks read ahead of their turn: docs/benchmarks.md says what more of them gave."""

_BLOCKS_AHEAD_OF_ALL = 8
"""The same of all streams of this process: beyond, each reads only what it hands out next."""


class BlobNotFound(Exception):
    """There is no blob of that name."""


class ContainerMissing(DependencyUnavailable):
    """The account lacks a container that the app needs."""


class PackFull(Exception):
    """An append blob has its 50,000 blocks; documents must go to a new pack."""


class PackMissing(Exception):
    """The pack to append to does not exist."""


COPIED_BLOCK = 64 * 1024 * 1024
"""Bytes the service copies from one blob to another by one request."""

_COPIES_AT_ONCE = 4
_COPY_REFUSED = frozenset({400, 401, 403, 404, 409, 501})
_SOURCE_VALID = timedelta(hours=1)
_PEER = {"peer.service": "Blob Storage"}
_STORAGE_SCOPE = "https://storage.azure.com/.default"


@dataclass(frozen=True, slots=True)
class BlobRange:
    """A range of a blob, in bytes."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class BlobItem:
    """One blob of a listing; ``size`` in bytes, ``modified`` in UTC."""

    name: str
    size: int
    modified: datetime
    metadata: dict[str, str]


class BlobStore:
    """The containers of one storage account."""

    def __init__(self, service: BlobServiceClient, ranged_reads: RangedReads) -> None:
        self._service = service
        self._ranged_reads = ranged_reads
        self._containers: dict[str, ContainerClient] = {}
        self._blocks_ahead = 0

    async def prepare(self) -> None:
        """Create the containers that do not exist (locally; in Azure the deployment makes them)."""
        for name in names.CONTAINERS:
            async with _translated():
                with contextlib.suppress(ResourceExistsError):
                    await self._service.create_container(name)

    async def ping(self) -> None:
        """Raise DependencyUnavailable unless the account answers."""
        async with _translated("ping"):
            await self._container(names.DICOM).get_container_properties()

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    def _container(self, name: str) -> ContainerClient:
        if name not in self._containers:
            self._containers[name] = self._service.get_container_client(name)
        return self._containers[name]

    def client_of(self, name: str) -> ContainerClient:
        """The client of a container, for what reads it as it would read another account's."""
        return self._container(name)

    def is_own(self, uri: str) -> bool:
        """Whether a container's URI is that of one in which the server keeps its data."""
        account, container = _account(uri)
        return account == _account(f"{self._service.url.rstrip('/')}/-")[0] and container in names.CONTAINERS

    # --- whole blobs -------------------------------------------------------------------------------

    async def upload(self, container: str, name: str, data: bytes, metadata: dict[str, str]) -> None:
        """Write a blob in one request (``data`` is at most 64 MiB), replacing any of that name."""
        async with _translated("upload"):
            client = self._container(container).get_blob_client(name)
            await client.upload_blob(data, overwrite=True, metadata=metadata)

    async def create(
        self, container: str, name: str, data: bytes, metadata: dict[str, str] | None = None
    ) -> bool:
        """Write a blob in one request unless there is one of that name; whether it was written."""
        async with _translated("create"):
            client = self._container(container).get_blob_client(name)
            try:
                await client.upload_blob(data, overwrite=False, metadata=metadata)
            except ResourceExistsError:
                return False
            return True

    async def stage_block(self, container: str, name: str, number: int, data: bytes) -> None:
        """Send block ``number`` of a blob; nothing is visible before :meth:`commit_blocks`."""
        async with _translated("stage_block"):
            client = self._container(container).get_blob_client(name)
            await client.stage_block(_block_id(number), data, length=len(data))

    async def commit_blocks(self, container: str, name: str, count: int, metadata: dict[str, str]) -> None:
        """Make a blob of the blocks 0 to ``count - 1``."""
        async with _translated("commit_blocks"):
            client = self._container(container).get_blob_client(name)
            await client.commit_block_list(
                [BlobBlock(_block_id(number)) for number in range(count)], metadata=metadata
            )

    async def compose(
        self, container: str, name: str, pieces: Sequence[bytes | BlobRange], metadata: dict[str, str]
    ) -> None:
        """Make a blob of bytes and of ranges of other blobs of the container, which the service copies.

        Where it refuses to (a firewall, a credential that is none for that), they go through this process
        block by block. Raises BlobNotFound.
        """
        slots = asyncio.Semaphore(_COPIES_AT_ONCE)

        async def staged(number: int, piece: bytes | BlobRange) -> list[int]:
            async with slots:
                if isinstance(piece, bytes):
                    await self.stage_block(container, name, number, piece)
                    return [number]
                return await self._stage_range(container, name, number, piece)

        blocks = [block for piece in pieces for block in _blocks(piece)]
        results = await asyncio.gather(
            *(staged(index * (COPIED_BLOCK // BLOCK), block) for index, block in enumerate(blocks)),
            return_exceptions=True,
        )
        numbers: list[int] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            numbers += result
        async with _translated("compose"):
            client = self._container(container).get_blob_client(name)
            await client.commit_block_list(
                [BlobBlock(_block_id(number)) for number in numbers], metadata=metadata
            )

    async def _stage_range(self, container: str, name: str, number: int, part: BlobRange) -> list[int]:
        """Stage a range of another blob as block ``number``, or as several from there on."""
        async with _translated("stage_range"):
            client = self._container(container).get_blob_client(name)
            url, authorization = await self._readable(container, part.name)
            try:
                await client.stage_block_from_url(
                    _block_id(number), url, part.offset, part.length, **authorization
                )
                return [number]
            except HttpResponseError as error:
                if error.status_code not in _COPY_REFUSED:
                    raise
        numbers: list[int] = []
        for start in range(0, part.length, BLOCK):
            length = min(BLOCK, part.length - start)
            data = await self.read(container, part.name, part.offset + start, length)
            await self.stage_block(container, name, number + len(numbers), data)
            numbers.append(number + len(numbers))
        return numbers

    async def _readable(self, container: str, name: str) -> tuple[str, dict[str, Any]]:
        """A URL by which the service may read a blob, and what authorises it where the URL does not."""
        client = self._container(container).get_blob_client(name)
        credential: Any = self._service.credential
        if hasattr(credential, "account_key"):
            signature = generate_blob_sas(
                client.account_name or "",
                container,
                name,
                account_key=credential.account_key,
                permission=BlobSasPermissions(read=True),
                expiry=datetime.now(UTC) + _SOURCE_VALID,
            )
            return f"{client.url}?{signature}", {}
        if hasattr(credential, "get_token"):
            token = await credential.get_token(_STORAGE_SCOPE)
            return client.url, {"source_authorization": f"Bearer {token.token}"}
        return client.url, {}

    async def read(self, container: str, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, in one request where they fit a block. Raises BlobNotFound."""
        if length <= 0:
            return b""
        if length > BLOCK:
            return b"".join([chunk async for chunk in self.stream(container, name, offset, length)])
        async with _translated("read"):
            return await self._ranged_reads.read(container, name, offset, length)

    async def read_whole(self, container: str, name: str) -> bytes:
        """All of a blob that is known to be small, in one request. Raises BlobNotFound."""
        async with _translated("read_whole"):
            return await self._ranged_reads.read(container, name, 0, None)

    async def stream(
        self, container: str, name: str, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of a range (or of all from ``offset`` on), block by block. Raises BlobNotFound.

        With a length the blob must be one that nobody changes under its name: its blocks are read by
        themselves, and some ahead of their turn.
        """
        if length is not None:
            async with aclosing(self._blocks(container, name, offset, length)) as blocks:
                async for block in blocks:
                    yield block
            return
        async with _translated():
            client = self._container(container).get_blob_client(name)
            # a range of an empty blob is an error, all of it not
            download = await client.download_blob(offset=offset or None, max_concurrency=1)
            async for chunk in download.chunks():
                yield chunk

    async def _blocks(
        self, container: str, name: str, offset: int, length: int
    ) -> AsyncGenerator[bytes, None]:
        """The blocks of a range in order. The first is read alone, because somebody waits for it."""
        end = offset + length
        starts = iter(range(offset, end, BLOCK))
        waiting: deque[asyncio.Task[bytes]] = deque()

        def read_ahead(blocks: int) -> None:
            while len(waiting) < blocks and (not waiting or self._blocks_ahead < _BLOCKS_AHEAD_OF_ALL):
                start = next(starts, None)
                if start is None:
                    return
                reading = self.read(container, name, start, min(BLOCK, end - start))
                waiting.append(asyncio.create_task(reading))
                self._blocks_ahead += 1

        try:
            read_ahead(1)
            while waiting:
                block = await waiting[0]
                waiting.popleft()
                self._blocks_ahead -= 1
                read_ahead(_BLOCKS_AHEAD)
                yield block
        finally:
            self._blocks_ahead -= len(waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def delete(self, container: str, name: str) -> None:
        """Delete a blob; one that is gone already is fine."""
        async with _translated("delete"):
            with contextlib.suppress(ResourceNotFoundError):
                await self._container(container).delete_blob(name)

    async def list_page(
        self, container: str, prefix: str = "", token: str = ""
    ) -> tuple[list[BlobItem], str]:
        """Up to 5,000 blobs by name and the token that continues the listing; an empty token ends it."""
        async with _translated("list_page"):
            listing = self._container(container).list_blobs(
                name_starts_with=prefix or None, include=["metadata"], results_per_page=5000
            )
            pages = listing.by_page(continuation_token=token or None)
            page = await anext(pages, None)
            if page is None:
                return [], ""
            items = [_item(blob) async for blob in page]
            return items, str(getattr(pages, "continuation_token", "") or "")

    async def find(self, container: str, name: str) -> BlobItem:
        """Size, time and metadata of a blob. Raises BlobNotFound."""
        async with _translated("find"):
            return _item(await self._container(container).get_blob_client(name).get_blob_properties())

    async def move_to(self, name: str, source: str, target: str, metadata: dict[str, str]) -> None:
        """Copy a blob to the same name in another container with new metadata, then delete the source."""
        async with _translated("move_to"):
            client = self._container(target).get_blob_client(name)
            blocks = 0
            async for chunk in self.stream(source, name):
                await client.stage_block(_block_id(blocks), chunk, length=len(chunk))
                blocks += 1
            await client.commit_block_list(
                [BlobBlock(_block_id(number)) for number in range(blocks)], metadata=metadata
            )
        await self.delete(source, name)

    # --- packs of metadata documents ---------------------------------------------------------------

    async def create_pack(self, name: str, container: str = names.METADATA) -> None:
        """Make an empty append blob; one that exists is kept."""
        async with _translated("create_pack"):
            client = self._container(container).get_blob_client(name)
            with contextlib.suppress(ResourceExistsError, ResourceModifiedError):
                await client.create_append_blob(match_condition=MatchConditions.IfMissing)

    async def append(self, name: str, data: bytes, container: str = names.METADATA) -> int:
        """Append to a pack and return the offset at which ``data`` begins.

        Raises PackMissing or PackFull.
        """
        async with _translated("append"):
            client = self._container(container).get_blob_client(name)
            try:
                result = await client.append_block(data, length=len(data))
            except ResourceNotFoundError as error:
                raise PackMissing(name) from error
            except HttpResponseError as error:
                if error_code(error) == "BlockCountExceedsLimit":
                    raise PackFull(name) from error
                raise
            return int(str(result["blob_append_offset"]))


def _blocks(piece: bytes | BlobRange) -> Iterator[bytes | BlobRange]:
    """``piece`` in parts that one request stages."""
    if isinstance(piece, bytes):
        yield from (piece[start : start + BLOCK] for start in range(0, len(piece), BLOCK))
        return
    for start in range(0, piece.length, COPIED_BLOCK):
        length = min(COPIED_BLOCK, piece.length - start)
        yield BlobRange(piece.name, piece.offset + start, length)


def _item(blob: BlobProperties) -> BlobItem:
    return BlobItem(blob.name, blob.size or 0, blob.last_modified, blob.metadata or {})


def _account(uri: str) -> tuple[str, str]:
    """Account and container of a container's URI; an emulator has the account in the path."""
    parts = urlsplit(uri)
    segments = parts.path.strip("/").split("/")
    account = segments[0] if len(segments) > 1 else (parts.hostname or "").partition(".")[0]
    return account.lower().removesuffix("-secondary"), segments[-1]


def _block_id(number: int) -> str:
    return base64.b64encode(f"{number:08d}".encode()).decode()


def error_code(error: HttpResponseError) -> str:
    """The service's name of what went wrong, as in ``ContainerNotFound``."""
    code = getattr(error, "error_code", "")
    if not code:
        code = getattr(error.response, "headers", {}).get("x-ms-error-code", "")
    return str(getattr(code, "value", code))  # the client knows some of them as members of an enumeration


@contextlib.asynccontextmanager
async def _translated(call: str = "") -> AsyncIterator[None]:
    """Exceptions of the Azure SDK in terms of this module; a span where ``call`` has a name."""
    try:
        with telemetry.dependency(f"blob {call}", **_PEER) if call else contextlib.nullcontext():
            yield
    except ResourceNotFoundError as error:
        if error_code(error) == "ContainerNotFound":
            raise ContainerMissing("Blob Storage lacks a container; try again later.") from error
        raise BlobNotFound from error
    except ClientAuthenticationError as error:
        raise DependencyUnavailable("Blob Storage refused the server's credential.") from error
    except (TimeoutError, AzureError, OSError) as error:
        raise DependencyUnavailable("Blob Storage is unavailable; try again later.") from error


def _retries() -> LinearRetry:
    """Three more tries within two seconds. The SDK's exponential ones take 15 seconds and more."""
    timing: dict[str, Any] = {"backoff": 0.5, "retry_total": 3, "random_jitter_range": 0.3}
    return LinearRetry(**timing)


def connect(
    connection: str, uri: str, credential: Any, transport: AioHttpTransport | None = None
) -> BlobStore:
    """The account of a connection string (local), or of an account URI and a token credential (Azure).

    Single requests carry up to 8 MiB; larger blobs move in blocks of :data:`BLOCK`. Retries are few and
    fast because HTTP clients wait: what still fails is answered with 503. Only tests give a ``transport``.
    """
    transport = transport or AioHttpTransport(
        connection_timeout=5, read_timeout=60, connection_data_block_size=256 * 1024
    )
    options: dict[str, Any] = {
        "max_single_put_size": 64 * 1024 * 1024,
        "max_block_size": BLOCK,
        "max_single_get_size": BLOCK,
        "max_chunk_get_size": BLOCK,
        "retry_policy": _retries(),
        "transport": transport,
        "logging_enable": False,
    }
    if connection:
        service = BlobServiceClient.from_connection_string(connection, **options)
        return BlobStore(service, RangedReads(service, transport, _retries()))
    service = BlobServiceClient(uri, credential=credential, **options)
    return BlobStore(service, RangedReads(service, transport, _retries(), credential))
