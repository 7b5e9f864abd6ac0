"""Content codings of responses (RFC 9110 §8.4, §12.5.3): zstd (RFC 8878, RFC 9659) and gzip (RFC 1952)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Protocol

from shared.errors import NotAcceptable

CODINGS = ("zstd", "gzip")
"""What can be made, best first; a client that takes ``*`` alone gets gzip, which everyone can read."""

WORTH_COMPRESSING = 1024
"""Bytes of a body below which compression gains nothing."""

_ALIASES = {"x-gzip": "gzip"}
_LEVEL = 1  # fast rather than small: 200 MB/s and more
_OWN_THREAD = 256 * 1024


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def choose(accept_encoding: str | None, worthwhile: bool = True) -> str:
    """``zstd``, ``gzip`` or, for none, an empty string.

    The coding of the highest weight; of equals zstd, then gzip. Identity is what a client gets that names
    neither, or weighs ``identity`` higher, or takes it where a coding is not ``worthwhile``. Raises
    NotAcceptable where the client refuses all of them.
    """
    weights = _weights(accept_encoding or "")
    others = weights.get("*")
    candidates = [(weights[coding], coding) for coding in CODINGS if coding in weights]
    if others is not None:
        candidates += [(others, coding) for coding in reversed(CODINGS) if coding not in weights]
    weight, coding = max(candidates, key=lambda candidate: candidate[0], default=(0.0, ""))
    identity = weights.get("identity", others if others == 0 else None)
    if weight > 0 and weight >= (identity or 0) and (worthwhile or identity == 0):
        return coding
    if identity == 0:
        raise NotAcceptable("Accept-Encoding refuses identity and allows neither zstd nor gzip.")
    return ""


def _weights(accept_encoding: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in accept_encoding.lower().split(","):
        name, *parameters = (piece.strip() for piece in text.split(";"))
        if name:
            weights[_ALIASES.get(name, name)] = _weight(parameters)
    return weights


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def _encoder(coding: str) -> _Encoder:
    if coding == "gzip":
        return zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    import zstandard  # loaded by the first response that needs it

    encoder: _Encoder = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    return encoder


async def encoded(chunks: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """The chunks in ``coding``, a result of :func:`choose`; without one as they are."""
    if not coding:
        async for chunk in chunks:
            yield chunk
        return
    encoder = _encoder(coding)
    async for chunk in chunks:
        data = await _compressed(encoder, chunk)
        if data:
            yield data
    yield encoder.flush()


async def encode(body: bytes, coding: str) -> bytes:
    """A whole body in ``coding``."""
    if not coding:
        return body
    encoder = _encoder(coding)
    return await _compressed(encoder, body) + encoder.flush()


async def _compressed(encoder: _Encoder, data: bytes) -> bytes:
    if len(data) < _OWN_THREAD:
        return encoder.compress(data)
    return await asyncio.to_thread(encoder.compress, data)
