"""The DICOMweb client: STOW-RS, QIDO-RS, WADO-RS and UPS-RS of one server, with an access token."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from adapters.dimse.config import Server

Json = dict[str, Any]

_CHUNK = 1024 * 1024
_PAGE = 200
_CONNECT_SECONDS = 10


class Unavailable(Exception):
    """The server cannot be reached, is overloaded, or does not let the adapter in: try again later."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(Exception):
    """The server will not do what was asked, however often it is asked."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DicomWeb:
    """One server; partitions are an argument of every call, empty for the default one."""

    def __init__(self, server: Server) -> None:
        self._root = str(server.url).rstrip("/")
        self._token = _token(server)
        timeout = httpx.Timeout(server.timeout_seconds, connect=_CONNECT_SECONDS)
        self._client = httpx.Client(timeout=timeout, trust_env=False, limits=httpx.Limits(max_connections=64))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def store(self, partition: str, files: Sequence[Path]) -> tuple[int, Json]:
        """Status and answer of a store (PS3.18 §10.5), streamed from the files.

        Raises Unavailable, and Refused when nothing of the request was looked at.
        """
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"--{boundary}--\r\n".encode()
        length = sum(len(head) + file.stat().st_size + 2 for file in files) + len(tail)

        def body() -> Iterator[bytes]:
            for file in files:
                yield head
                with file.open("rb") as content:
                    while chunk := content.read(_CHUNK):
                        yield chunk
                yield b"\r\n"
            yield tail

        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(length),
            "Accept": "application/dicom+json",
        }
        request = self._request("POST", f"{self._base(partition)}/studies", headers, content=body())
        response = self._send(request)
        if response.status_code in (200, 202, 409):
            try:
                return response.status_code, dict(response.json())
            except ValueError:
                raise Unavailable("the answer of a store is no JSON") from None
        raise _failure(response)

    def search(self, partition: str, path: str, query: Sequence[tuple[str, str]]) -> Iterator[Json]:
        """The results of a search, page after page by the server's Link. Raises Unavailable, Refused."""
        url = f"{self._base(partition)}/{path}"
        parameters: Sequence[tuple[str, str]] | None = [*query, ("limit", str(_PAGE))]
        while url:
            headers = {"Accept": "application/dicom+json"}
            response = self._send(self._request("GET", url, headers, params=parameters))
            if response.status_code == 204:
                return
            if response.status_code != 200:
                raise _failure(response)
            yield from response.json()
            following = response.links.get("next", {}).get("url", "")
            url, parameters = self._own(url, following) if following else "", None

    def retrieve(self, partition: str, path: str, syntax: str, target: Path) -> None:
        """Stream an instance into a file, in a transfer syntax or as it is (``*``)."""
        headers = {"Accept": f"application/dicom; transfer-syntax={syntax}"}
        request = self._request("GET", f"{self._base(partition)}/{path}", headers)
        try:
            response = self._client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    response.read()
                    raise _failure(response)
                with target.open("wb") as file:
                    for chunk in response.iter_bytes(_CHUNK):
                        file.write(chunk)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error

    def _base(self, partition: str) -> str:
        return f"{self._root}/partitions/{partition}" if partition else self._root

    def _own(self, url: str, following: str) -> str:
        """The next page at the server as the adapter knows it, whatever name the server gives itself."""
        following = str(httpx.URL(urljoin(url, following)))
        return str(httpx.URL(url).copy_with(query=httpx.URL(following).query))

    def _request(self, method: str, url: str, headers: dict[str, str], **options: Any) -> httpx.Request:
        token = self._token()
        if token:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        return self._client.build_request(method, url, headers=headers, **options)

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._client.send(request)
        except httpx.TransportError as error:
            raise Unavailable(type(error).__name__) from error


class _token:
    """The bearer token: a file's, which may change, or one that azure-identity gets and renews."""

    def __init__(self, server: Server) -> None:
        self._file = server.token_file
        self._scope = server.scope
        self._credential: Any = None

    def __call__(self) -> str:
        if self._file is not None:
            try:
                return self._file.read_text().strip()
            except OSError as error:
                raise Unavailable(f"the token file cannot be read: {error.strerror}") from error
        if not self._scope:
            return ""
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        if self._credential is None:
            self._credential = DefaultAzureCredential(exclude_interactive_browser_credential=True)
        try:
            return str(self._credential.get_token(self._scope).token)
        except ClientAuthenticationError as error:
            raise Unavailable("no access token can be had") from error


def _failure(response: httpx.Response) -> Exception:
    """Unavailable or Refused. Only the server's words about the request go on, never a body of values."""
    status = response.status_code
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    if status in (401, 403, 404, 408, 425, 429) or status >= 500:
        if status == 404:
            return Refused(f"HTTP {status}: {detail}", status)
        try:
            retry_after = float(response.headers.get("Retry-After", "0"))
        except ValueError:
            retry_after = 0.0
        return Unavailable(f"HTTP {status}", retry_after)
    return Refused(f"HTTP {status}: {detail}", status)
