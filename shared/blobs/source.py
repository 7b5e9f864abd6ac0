"""A blob container from which files are imported: somebody else's, or one of the server's account.

A blob is read and deleted in the version that was listed, so that what is written meanwhile is neither
imported by halves nor lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob.aio import ContainerClient, LinearRetry

from shared.blobs.destination import Address
from shared.blobs.store import BLOCK, error_code
from shared.errors import Conflict, DependencyUnavailable


@dataclass(frozen=True, slots=True)
class SourceBlob:
    """One version of a blob; ``size`` in bytes."""

    name: str
    etag: str
    size: int


class SourceBlobChanged(Exception):
    """The version that was listed is no more: the blob was deleted or written anew."""


class Source:
    """A container to read from. Every method raises DependencyUnavailable when it does not answer, and
    Conflict when it is not there or refuses: trying again will not help then."""

    def __init__(self, client: ContainerClient) -> None:
        self._client = client

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def list_page(self, prefix: str, token: str, size: int) -> tuple[list[SourceBlob], str]:
        """Up to ``size`` blobs by name, and the token that continues the listing; an empty one ends it."""
        async with _translated():
            listing = self._client.list_blobs(name_starts_with=prefix or None, results_per_page=size)
            pages = listing.by_page(continuation_token=token or None)
            page = await anext(pages, None)
            if page is None:
                return [], ""
            blobs = [SourceBlob(blob.name, str(blob.etag), blob.size or 0) async for blob in page]
            return blobs, str(getattr(pages, "continuation_token", "") or "")

    async def stream(self, blob: SourceBlob, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, block by block. Raises SourceBlobChanged."""
        if blob.size <= offset:
            return
        async with _translated():
            download = await self._client.get_blob_client(blob.name).download_blob(
                offset=offset or None,
                etag=blob.etag,
                match_condition=MatchConditions.IfNotModified,
                max_concurrency=1,
            )
            async for chunk in download.chunks():
                yield chunk

    async def delete(self, blob: SourceBlob) -> None:
        """Delete a blob; one that is gone or has been written anew is left as it is."""
        with contextlib.suppress(SourceBlobChanged):
            async with _translated():
                await self._client.get_blob_client(blob.name).delete_blob(
                    etag=blob.etag, match_condition=MatchConditions.IfNotModified
                )


@contextlib.asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Exceptions of the SDK in terms of this module; none of its messages goes on, they may quote a SAS."""
    try:
        yield
    except ResourceModifiedError:
        raise SourceBlobChanged from None
    except ResourceNotFoundError as error:
        if error_code(error) == "BlobNotFound":
            raise SourceBlobChanged from None
        raise Conflict("The source's container does not exist.") from None
    except ClientAuthenticationError:
        raise Conflict("The source refuses the credential: it is wrong or has expired.") from None
    except HttpResponseError as error:
        status = error.status_code or 0
        if status == 403:
            raise Conflict("The source refuses: the credential does not allow it.") from None
        if error_code(error) == "BlobArchived":
            raise Conflict("The blob is in the archive tier and must be rehydrated first.") from None
        if status in (400, 404, 405, 409):
            raise Conflict(f"The source refuses (status {status}).") from None
        raise DependencyUnavailable("The source is unavailable; try again later.") from None
    except (TimeoutError, AzureError, OSError):
        raise DependencyUnavailable("The source is unavailable; try again later.") from None


def open_source(address: Address, credential: Any) -> Source:
    """A client of the container. ``credential`` is the app's identity, used where the address says so."""
    timing: dict[str, Any] = {"backoff": 0.5, "retry_total": 3, "random_jitter_range": 0.3}
    common: dict[str, Any] = {
        "max_single_get_size": BLOCK,
        "max_chunk_get_size": BLOCK,
        "retry_policy": LinearRetry(**timing),
        "connection_timeout": 5,
        "read_timeout": 60,
        "logging_enable": False,
        "permit_redirects": False,
    }
    if address.connection:
        client = ContainerClient.from_connection_string(address.connection, address.container, **common)
    else:
        uri = f"{address.uri}?{address.sas}" if address.sas else address.uri
        client = ContainerClient.from_container_url(
            uri, credential if address.uses_identity else None, **common
        )
    return Source(client)
