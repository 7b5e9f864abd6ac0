"""Store (STOW-RS, PS3.18 §10.5): files in, outcomes out.

Order: files to blobs, metadata to packs, then one SQL transaction, which is the commit point. A crash
before it leaves blobs that the blob trigger or the clean-up deals with; nothing half-stored is visible.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson

from shared import container, faults, telemetry
from shared.blobs import names
from shared.blobs.store import BLOCK, BlobStore
from shared.dicom import failure_reasons, normalise
from shared.dicom.attributes import Level, in_values
from shared.dicom.identifiers import InstanceKey, check_partition, check_uid, is_uid
from shared.dicom.indexed_values import IndexedValue, indexed_values
from shared.dicom.part10 import ParsedInstance, Part10Parser, Warned
from shared.dicom.query_tags import NO_TAG_SET, TagSet, TagValues, all_values_of
from shared.errors import DependencyUnavailable, InvalidInstance
from shared.services import packs, query_tags
from shared.services.packs import SeriesPacks
from shared.settings import settings
from shared.sql import instances
from shared.sql.change_feed import timestamp
from shared.sql.instances import NewInstance, PackMoved
from shared.sql.query_tags import TagsChanged

log = logging.getLogger(__name__)

SMALL_FILE = 8 * 1024 * 1024
"""Files up to this many bytes go to storage in one request, larger ones in blocks while they arrive."""

_HELD_BYTES = 16 * 1024 * 1024
"""Bytes of small files that wait for the existence check; beyond them uploads start at once."""

_BLOCKS_IN_FLIGHT = 4
_UPLOADS_IN_FLIGHT = 16
_COMMIT_ATTEMPTS = 6

OURS = {"origin": "store"}
"""Metadata of blobs this service uploads: the clean-up may delete such a blob when nothing refers to it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    ``failure`` is a failure reason (None: stored), ``message`` a sentence about it; ``warnings`` are
    attributes that break their VR; ``mismatched_meta`` says that file meta information and data set
    name different SOP classes or instances.
    """

    sop_class: str = ""
    key: InstanceKey | None = None
    sop_instance: str = ""
    failure: int | None = None
    message: str = ""
    warnings: tuple[Warned, ...] = ()
    mismatched_meta: bool = False


@dataclass
class _Candidate:
    """A parsed file on its way; ``body`` is its bytes until they are uploaded."""

    key: InstanceKey
    version: str
    parsed: ParsedInstance
    body: bytes | None
    failure: int | None = None
    message: str = ""

    @property
    def name(self) -> str:
        return names.file_name(self.key, self.version)


@dataclass
class _Batch:
    """The files of one request in order; failures are outcomes already."""

    results: list[_Candidate | Outcome] = field(default_factory=list)

    def candidates(self) -> list[_Candidate]:
        """Those that may still be stored."""
        return [r for r in self.results if isinstance(r, _Candidate) and r.failure is None]


async def store(
    files: AsyncIterator[AsyncIterator[bytes]],
    partition: str,
    study: str = "",
    replace: bool = False,
    cause: str = "",
) -> list[Outcome]:
    """Store files, each a stream of bytes, and say what became of each, in order.

    ``study`` restricts them to one study (failure reason 43265 otherwise); ``replace`` puts a file in
    the place of an instance with the same identifiers instead of refusing it (45070). ``cause`` goes with
    the blobs: who stores again after a crash can tell what the first attempt stored. Raises
    DependencyUnavailable when nothing could be committed, and what ``files`` raises; then nothing is stored.
    """
    check_partition(partition)
    if study:
        check_uid(study, "StudyInstanceUID")
    blobs = container.blob_store()
    batch = _Batch()
    metadata = OURS | ({"cause": cause} if cause else {})
    try:
        async for chunks in files:
            batch.results.append(await _receive(blobs, chunks, partition, study, metadata))
            if sum(len(c.body) for c in batch.candidates() if c.body is not None) > _HELD_BYTES:
                await _upload(blobs, batch.candidates(), metadata)
        faults.point("store.received")
        _refuse_repeated(batch)
        known = await container.database().read(
            instances.find_existing, partition, [c.key for c in batch.candidates()]
        )
        if not replace:
            _refuse(batch, known.versions, failure_reasons.ALREADY_EXISTS)
        await _upload(blobs, batch.candidates(), metadata)
        faults.point("store.uploaded")
    except BaseException:
        await _discard(blobs, (r for r in batch.results if isinstance(r, _Candidate)))
        raise
    if batch.candidates():
        await _commit(blobs, batch.candidates(), partition, SeriesPacks(dict(known.packs)), replace)
        faults.point("store.committed")
    await _discard(blobs, (r for r in batch.results if isinstance(r, _Candidate) and r.failure))
    outcomes = [_outcome(r) if isinstance(r, _Candidate) else r for r in batch.results]
    for outcome in outcomes:
        if outcome.failure is not None:
            telemetry.add(telemetry.STORE_FAILURES, reason=outcome.failure)
    return outcomes


# --- receiving ---------------------------------------------------------------------------------------


async def _receive(
    blobs: BlobStore, chunks: AsyncIterator[bytes], partition: str, study: str, metadata: dict[str, str]
) -> _Candidate | Outcome:
    """Parse one file while it arrives; a large one goes to storage in blocks meanwhile."""
    parser = Part10Parser()
    upload = BlockUpload(blobs, partition, metadata=metadata)
    try:
        async for chunk in chunks:
            parser.feed(chunk)
            await upload.add(chunk, parser)
        parsed = parser.close()
        if study and parsed.identity["StudyInstanceUID"] != study:
            raise InvalidInstance(
                "The instance belongs to another study than the one in the path.",
                failure_reasons.STUDY_MISMATCH,
            )
        body = await upload.finish()
    except InvalidInstance as error:
        await upload.abandon()
        identity = parser.result.identity
        return Outcome(
            sop_class=identity.get("SOPClassUID", ""),
            sop_instance=identity.get("SOPInstanceUID", ""),
            failure=error.failure_reason,
            message=str(error),
        )
    except BaseException:
        await upload.abandon()
        raise
    return _Candidate(key_of(parsed, partition), upload.version, parsed, body)


def key_of(parsed: ParsedInstance, partition: str) -> InstanceKey:
    """The key of a parsed file."""
    identity = parsed.identity
    return InstanceKey(
        partition, identity["StudyInstanceUID"], identity["SeriesInstanceUID"], identity["SOPInstanceUID"]
    )


class BlockUpload:
    """Collects a file; once it is larger than SMALL_FILE, sends it in blocks, a few at a time.

    Staged blocks are invisible until the block list is committed, which happens only for a whole file.
    The preamble is replaced by zeros (PS3.10 §7.5).
    """

    def __init__(
        self, blobs: BlobStore, partition: str, version: str = "", metadata: dict[str, str] | None = None
    ) -> None:
        self.version = version or names.new_version()
        self._metadata = metadata or OURS
        self._blobs = blobs
        self._partition = partition
        self._pieces: list[bytes] = []
        self._held = 0
        self._seen = 0
        self._name = ""
        self._blocks = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, chunk: bytes, parser: Part10Parser) -> None:
        """Take the next bytes of the file."""
        if self._seen < 128:
            zeros = min(128 - self._seen, len(chunk))
            chunk = bytes(zeros) + chunk[zeros:]
        self._seen += len(chunk)
        self._pieces.append(chunk)
        self._held += len(chunk)
        if self._held >= (BLOCK if self._name else SMALL_FILE):
            await self._send(parser)

    async def _send(self, parser: Part10Parser) -> None:
        if not self._name:
            if not parser.identity_known:
                if self._held > 4 * SMALL_FILE:
                    raise InvalidInstance(
                        "The identifying UIDs do not come within the first 32 MiB.",
                        failure_reasons.PROCESSING_FAILURE,
                    )
                return
            key = key_of(parser.result, self._partition)
            for uid, keyword in ((key.study, "StudyInstanceUID"), (key.series, "SeriesInstanceUID")):
                _check(uid, keyword)
            _check(key.instance, "SOPInstanceUID")
            self._name = names.file_name(key, self.version)
        data = b"".join(self._pieces)
        self._pieces, self._held = [], 0
        for start in range(0, len(data), BLOCK):
            await self._stage(data[start : start + BLOCK])

    async def _stage(self, block: bytes) -> None:
        while len(self._tasks) >= _BLOCKS_IN_FLIGHT:
            done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        self._tasks.add(
            asyncio.create_task(self._blobs.stage_block(names.DICOM, self._name, self._blocks, block))
        )
        self._blocks += 1

    async def finish(self) -> bytes | None:
        """The whole of a small file, or None when a large one has been committed to storage."""
        if not self._name:
            return b"".join(self._pieces)
        if self._pieces:
            await self._stage(b"".join(self._pieces))
        await asyncio.gather(*self._tasks)
        await self._blobs.commit_blocks(names.DICOM, self._name, self._blocks, self._metadata)
        faults.point("store.blocks_committed")
        return None

    async def abandon(self) -> None:
        """Forget the file; blocks that were staged vanish by themselves."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _check(uid: str, keyword: str) -> None:
    if not is_uid(uid):
        raise InvalidInstance(
            f"{keyword} is not 1 to 64 letters, digits, '.' or '-'.", failure_reasons.VALIDATION_FAILURE
        )


# --- refusing ----------------------------------------------------------------------------------------


def _refuse_repeated(batch: _Batch) -> None:
    """Of several files with the same identifiers in one request the first counts."""
    seen: dict[InstanceKey, str] = {}
    for candidate in batch.candidates():
        if seen.setdefault(candidate.key, candidate.version) != candidate.version:
            _fail(candidate, failure_reasons.ALREADY_EXISTS)


def _refuse(batch: _Batch, versions: dict[InstanceKey, str], reason: int) -> None:
    for candidate in batch.candidates():
        if versions.get(candidate.key, candidate.version) != candidate.version:
            _fail(candidate, reason)


_MESSAGES = {
    failure_reasons.ALREADY_EXISTS: "An instance with the same identifiers has been stored already.",
    failure_reasons.BEING_CREATED: "An instance with the same identifiers is being created at the same time.",
}


def _fail(candidate: _Candidate, reason: int) -> None:
    candidate.failure = reason
    candidate.message = _MESSAGES[reason]


# --- writing -----------------------------------------------------------------------------------------


async def _upload(blobs: BlobStore, candidates: Iterable[_Candidate], metadata: dict[str, str]) -> None:
    """Send the bodies still held, in parallel; all have ended when this returns or raises."""
    slots = asyncio.Semaphore(_UPLOADS_IN_FLIGHT)

    async def send(candidate: _Candidate) -> None:
        async with slots:
            assert candidate.body is not None
            await blobs.upload(names.DICOM, candidate.name, candidate.body, metadata)
            candidate.body = None

    results = await asyncio.gather(
        *(send(c) for c in candidates if c.body is not None), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _commit(
    blobs: BlobStore,
    candidates: Sequence[_Candidate],
    partition: str,
    series_packs: SeriesPacks,
    replace: bool,
) -> None:
    """Commit what is uploaded. From here on nothing is deleted on failure: a commit whose answer got
    lost may have happened."""
    files = [(c.key, c.version, c.parsed) for c in candidates]
    stored = await commit(blobs, files, partition, series_packs, replace)
    for candidate in candidates:
        if not stored[candidate.key]:
            _fail(candidate, failure_reasons.BEING_CREATED)


async def commit(
    blobs: BlobStore,
    files: Sequence[tuple[InstanceKey, str, ParsedInstance]],
    partition: str,
    series_packs: SeriesPacks,
    replace: bool,
) -> dict[InstanceKey, bool]:
    """Append the metadata of ``(key, version, parsed)`` whose blobs are there, and commit them to the index.

    True for each key that is stored under its version now. Documents are appended again where a
    clean-up has moved a pack meanwhile.
    """
    records = [packs.record_of(key, version, parsed) for key, version, parsed in files]
    places: dict[str, instances.Place] = {}
    tags = await query_tags.current()
    for _ in range(_COMMIT_ATTEMPTS):
        if not places:
            places = await packs.write_records(blobs, records, series_packs)
            faults.point("store.appended")
        new = [new_instance(key, version, parsed, places[version], tags) for key, version, parsed in files]
        fresh = frozenset(series_packs.fresh)
        try:
            stored = await container.database().write(
                instances.commit_store, partition, new, fresh, replace, cleanup_time(), tags
            )
        except PackMoved as moved:
            series_packs.moved(moved.packs)
            places = {}
        except TagsChanged:
            tags = await query_tags.refreshed()
        else:
            telemetry.add(telemetry.INSTANCES_STORED, sum(stored.values()))
            telemetry.add(telemetry.BYTES_STORED, sum(p.size for key, _, p in files if stored[key]))
            return stored
    raise DependencyUnavailable("The study or the query tags are being reorganised; try again later.")


def new_instance(
    key: InstanceKey, version: str, parsed: ParsedInstance, place: instances.Place, tags: TagSet = NO_TAG_SET
) -> NewInstance:
    """What the index keeps of a parsed file."""
    frames = parsed.frames
    return NewInstance(
        key=key,
        version=version,
        size=parsed.size,
        transfer_syntax=parsed.transfer_syntax,
        number_of_frames=frames.number_of_frames,
        frame_offset=frames.offset,
        frame_bits=frames.bits,
        place=place,
        attributes=parsed.attributes,
        values=parsed.values | {"SOPClassUID": parsed.identity["SOPClassUID"]},
        indexed_values=_indexed_values(parsed),
        tag_values=_tag_values(parsed, tags),
    )


def _tag_values(parsed: ParsedInstance, tags: TagSet) -> dict[Level, TagValues]:
    """What the query tags have in a parsed file."""
    return all_values_of(orjson.loads(parsed.document), tags) if tags.active else {}


def _indexed_values(parsed: ParsedInstance) -> dict[Level, tuple[IndexedValue, ...]]:
    """The rows of ``attribute_value`` of a parsed file."""
    zone = normalise.offset(parsed.values.get("TimezoneOffsetFromUTC", ""))
    return {
        level: indexed_values(orjson.loads(text), in_values(level), zone)
        for level, text in parsed.attributes.items()
    }


def cleanup_time() -> str:
    """From when on the bytes of what is deleted now may go."""
    return timestamp(datetime.now(UTC) + timedelta(seconds=settings().cleanup_delay_seconds))


async def _discard(blobs: BlobStore, candidates: Iterable[_Candidate]) -> None:
    """Delete what was uploaded of refused files; what cannot be deleted now the clean-up finds."""
    for candidate in candidates:
        if candidate.body is None:
            with suppress(DependencyUnavailable):
                await blobs.delete(names.DICOM, candidate.name)


# --- outcomes ----------------------------------------------------------------------------------------


def _outcome(candidate: _Candidate) -> Outcome:
    parsed = candidate.parsed
    sop_class = parsed.identity["SOPClassUID"]
    mismatched = (parsed.media_storage_sop_class or sop_class) != sop_class or (
        parsed.media_storage_sop_instance or candidate.key.instance
    ) != candidate.key.instance
    return Outcome(
        sop_class=sop_class,
        key=candidate.key,
        sop_instance=candidate.key.instance,
        failure=candidate.failure,
        message=candidate.message,
        warnings=tuple(parsed.warnings),
        mismatched_meta=mismatched,
    )
