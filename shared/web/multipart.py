"""multipart/related as streams: request bodies in (RFC 2387, PS3.18 §8.6), responses out.

Parsing is python-multipart's; this module turns its callbacks into parts whose bytes are read one after
the other, so that no part is ever held as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from shared.errors import InvalidRequest

_PREAMBLE_LIMIT = 64 * 1024
_MOST_HEADERS = 64  # of one part


@dataclass(frozen=True)
class ContentType:
    """A Content-Type header: the media type in lower case and its parameters."""

    media_type: str
    parameters: dict[str, str]


def parse_content_type(header: str | None) -> ContentType:
    """Parse a Content-Type header; an absent one has an empty media type."""
    media_type, parameters = parse_options_header(header)
    return ContentType(
        media_type.decode("latin-1").strip().lower(),
        {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in parameters.items()},
    )


class Part:
    """One part: its content type and, once, its bytes."""

    def __init__(self, content_type: ContentType, chunks: AsyncIterator[bytes]) -> None:
        self.content_type = content_type
        self.chunks = chunks


@dataclass(frozen=True)
class _Begin:
    content_type: ContentType


class _End:
    pass


class MultipartReader:
    """Reads the parts of a multipart body from a stream of bytes."""

    def __init__(self, body: AsyncIterator[bytes], boundary: str) -> None:
        self._body = body
        self._events: deque[_Begin | bytes | _End] = deque()
        self._header = [b"", b""]
        self._headers: dict[str, str] = {}
        self._opening = b"--" + boundary.encode("latin-1", "replace")
        try:
            self._parser = MultipartParser(
                self._opening[2:],
                self._callbacks(),  # type: ignore[arg-type]
                max_header_count=_MOST_HEADERS,
            )
        except FormParserError as error:
            raise InvalidRequest("The boundary of the multipart body is malformed.") from error

    def _callbacks(self) -> dict[str, object]:
        return {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
            "on_part_end": lambda: self._events.append(_End()),
        }

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
        self._header = [b"", b""]

    def _on_headers_finished(self) -> None:
        # One chunk may hold many parts, so that each must carry its own headers.
        self._events.append(_Begin(parse_content_type(self._headers.get("content-type"))))
        self._headers = {}

    async def parts(self) -> AsyncIterator[Part]:
        """The parts in order; what a consumer leaves unread of one is passed over.

        Raises InvalidRequest where the body is no well-formed multipart body.
        """
        await self._skip_preamble()
        while True:
            event = await self._next()
            if event is None:
                return
            if not isinstance(event, _Begin):
                continue
            chunks = self._chunks()
            yield Part(event.content_type, chunks)
            async for _ in chunks:
                pass

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            event = await self._next()
            if not isinstance(event, bytes):
                return
            yield event

    async def _skip_preamble(self) -> None:
        """RFC 2046 allows text before the first boundary; it means nothing."""
        seen = b""
        async for chunk in self._body:
            seen += chunk
            start = seen.find(self._opening)
            if start >= 0:
                self._parse(seen[start:])
                return
            if len(seen) > _PREAMBLE_LIMIT:
                break
        if seen.strip():
            raise InvalidRequest("The body does not hold the boundary that Content-Type names.")

    async def _next(self) -> _Begin | bytes | _End | None:
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                if self._parser.state not in (MultipartState.END, MultipartState.START):
                    raise InvalidRequest("The body ends before the closing boundary.")
                return None
            self._parse(chunk)
        return self._events.popleft()

    def _parse(self, chunk: bytes) -> None:
        if self._parser.state == MultipartState.END:
            return  # an epilogue means nothing
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest("The multipart body is malformed.") from error


class MultipartWriter:
    """Frames the parts of a response: CRLF throughout and a closing boundary."""

    def __init__(self, boundary: str) -> None:
        self._boundary = boundary.encode()

    def begin(self, content_type: str, length: int | None = None, location: str = "") -> bytes:
        """The delimiter and headers that precede a part's bytes."""
        lines = [b"--" + self._boundary, b"Content-Type: " + content_type.encode("latin-1")]
        if length is not None:
            lines.append(b"Content-Length: " + str(length).encode())
        if location:
            lines.append(b"Content-Location: " + location.encode("latin-1"))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    end = b"\r\n"
    """What follows a part's bytes."""

    def close(self) -> bytes:
        """The closing boundary."""
        return b"--" + self._boundary + b"--\r\n"
