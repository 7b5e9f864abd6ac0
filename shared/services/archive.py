"""A study, series or instance as one Zip archive, streamed: a folder a study, in it a folder a series."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from shared.errors import NotAcceptable
from shared.services.retrieve import Payload
from shared.sql.instances import StoredInstance


class _Pipe(io.RawIOBase):
    """Takes what the archive writes, until it is taken out."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        data, self._pieces = b"".join(self._pieces), []
        return data


async def archived(
    found: Sequence[StoredInstance], payloads: AsyncIterator[Payload | NotAcceptable]
) -> AsyncIterator[bytes]:
    """The archive of ``payloads``, the files of ``found`` in the same order, as it grows.

    Files are not compressed again, sizes follow their bytes, and ZIP64 takes any number and size of them
    (APPNOTE 4.3.9, 4.3.14). An instance that cannot be had has a text in its place that says why.
    """
    pipe = _Pipe()
    turn = iter(found)
    with ZipFile(pipe, "w", ZIP_STORED) as archive:
        async for payload in payloads:
            name = file_name(next(turn))
            if isinstance(payload, NotAcceptable):
                archive.writestr(ZipInfo(f"{name}.txt"), str(payload))
                continue
            with archive.open(ZipInfo(f"{name}.dcm"), "w", force_zip64=True) as file:
                async for chunk in payload.chunks:
                    file.write(chunk)
                    yield pipe.take()
    yield pipe.take()


def file_name(stored: StoredInstance) -> str:
    """``{study}/{series}/{instance}``, of names that stay in the folder they are unpacked to.

    Identifiers are letters, digits, dots and hyphens; one with dots at an end gets a tilde, which none has.
    """
    key = stored.key
    return "/".join(
        f"{uid}~" if uid.strip(".") != uid else uid for uid in (key.study, key.series, key.instance)
    )
