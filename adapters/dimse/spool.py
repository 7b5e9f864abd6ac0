"""The spool: objects that were acknowledged and are not in the server yet.

A file is first written below ``incoming``, synced, renamed into ``queue/{partition}`` and that folder
synced; then it is acknowledged. It is removed when the server has it, or moved to ``quarantine`` with the
reason beside it when the server refuses it for good. A crash leaves at most files below ``incoming`` that
nobody was promised, and files that the server has already: sending those again changes nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_NAME = re.compile(r"(\d{20})_([0-9.]{1,64})_([0-9a-f]{64})\.dcm")
_DEFAULT = "_default"
_CHUNK = 1024 * 1024


class SpoolFull(Exception):
    """There is no room for another object."""


class SpoolInUse(Exception):
    """Another process has the folder."""


@dataclass(frozen=True)
class Entry:
    """An object in the queue; ``received`` is in nanoseconds since 1970."""

    path: Path
    partition: str
    uid: str
    digest: str
    received: int
    size: int


@dataclass
class _Queue:
    """What waits for a partition: a heap of (not before, received, entry); none is due before ``resume``."""

    waiting: list[tuple[float, int, Entry]] = field(default_factory=list)
    resume: float = 0.0


class Spool:
    """The folder, for one process. Raises SpoolInUse."""

    def __init__(self, folder: Path, maximum_bytes: int) -> None:
        self.folder = folder
        self.maximum_bytes = maximum_bytes
        self.incoming = folder / "incoming"
        self._lock_file = _locked(folder)
        self._condition = threading.Condition()
        self._queues: dict[str, _Queue] = {}
        self._known: dict[tuple[str, str, str], Entry] = {}
        self._uids_under_way: set[tuple[str, str]] = set()
        self._bytes = 0
        self._quarantined = 0
        self._last = 0
        for name in ("incoming", "queue", "quarantine"):
            _make(folder / name)
        for left in self.incoming.iterdir():
            left.unlink()
        self._find()

    def close(self) -> None:
        """Give the folder free."""
        self._lock_file.close()

    # --- in ---

    def add(self, path: Path, partition: str, uid: str) -> bool:
        """Make a file of ``incoming`` durable in the queue; False when the same bytes are there already.

        Raises SpoolFull and OSError; the file is then left to the caller.
        """
        size = path.stat().st_size
        with self._condition:
            if self._bytes + size > self.maximum_bytes:
                raise SpoolFull
            self._bytes += size
        try:
            entry = self._place(path, partition, uid, size)
        except BaseException:
            with self._condition:
                self._bytes -= size
            raise
        if entry is None:
            with self._condition:
                self._bytes -= size
            return False
        with self._condition:
            self._known[(partition, uid, entry.digest)] = entry
            self._wait(entry, 0.0)
            self._condition.notify()
        return True

    def _place(self, path: Path, partition: str, uid: str, size: int) -> Entry | None:
        digest = _synced_digest(path)
        with self._condition:
            if (partition, uid, digest) in self._known:
                return None
            self._last = received = max(time.time_ns(), self._last + 1)
        folder = self.folder / "queue" / (partition or _DEFAULT)
        _make(folder)
        target = folder / f"{received:020d}_{uid}_{digest}.dcm"
        path.rename(target)
        _sync_folder(folder)
        return Entry(target, partition, uid, digest, received, size)

    # --- out ---

    def take(self, objects: int, size: int, timeout: float) -> list[Entry]:
        """The oldest objects of one partition that are due, no two of one UID; empty after ``timeout``."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while True:
                now = time.monotonic()
                for queue in sorted(self._queues.values(), key=_oldest):
                    if queue.resume <= now and (batch := self._batch(queue, now, objects, size)):
                        return batch
                if now >= deadline:
                    return []
                self._condition.wait(min(0.2, deadline - now))

    def _batch(self, queue: _Queue, now: float, objects: int, size: int) -> list[Entry]:
        batch: list[Entry] = []
        kept: list[tuple[float, int, Entry]] = []
        while queue.waiting and len(batch) < objects and len(kept) < 1000:
            due, _, entry = queue.waiting[0]
            if due > now or (batch and sum(e.size for e in batch) + entry.size > size):
                break
            item = heapq.heappop(queue.waiting)
            if (entry.partition, entry.uid) in self._uids_under_way:
                kept.append(item)
                continue
            self._uids_under_way.add((entry.partition, entry.uid))
            batch.append(entry)
        for item in kept:
            heapq.heappush(queue.waiting, item)
        return batch

    def put_back(self, entry: Entry, pause: float = 0.0) -> None:
        """Try an object again after ``pause`` seconds."""
        with self._condition:
            self._uids_under_way.discard((entry.partition, entry.uid))
            self._wait(entry, time.monotonic() + pause if pause else 0.0)

    def hold_back(self, partition: str, pause: float) -> None:
        """Send nothing of a partition for ``pause`` seconds."""
        with self._condition:
            self._queues.setdefault(partition, _Queue()).resume = time.monotonic() + pause

    def done(self, entry: Entry) -> None:
        """The server has it."""
        entry.path.unlink(missing_ok=True)
        with self._condition:
            self._forget(entry)
            self._bytes -= entry.size

    def quarantine(self, entry: Entry, reason: str) -> None:
        """The server will not take it: keep it aside, with the reason in a file of JSON beside it."""
        folder = self.folder / "quarantine" / (entry.partition or _DEFAULT)
        _make(folder)
        said = {"sopInstanceUid": entry.uid, "received": entry.received, "reason": reason}
        beside = folder / f"{entry.path.stem}.json"
        with beside.open("w") as file:
            json.dump(said, file)
            _sync(file)
        entry.path.rename(folder / entry.path.name)
        _sync_folder(folder)
        with self._condition:
            self._forget(entry)
            self._quarantined += 1

    def _forget(self, entry: Entry) -> None:
        self._uids_under_way.discard((entry.partition, entry.uid))
        self._known.pop((entry.partition, entry.uid, entry.digest), None)

    # --- figures ---

    @property
    def bytes(self) -> int:
        """Bytes of the queue and of the quarantine."""
        with self._condition:
            return self._bytes

    @property
    def objects(self) -> int:
        """Objects in the queue."""
        with self._condition:
            return len(self._known)

    @property
    def quarantined(self) -> int:
        """Objects in quarantine."""
        with self._condition:
            return self._quarantined

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest object in the queue; 0 when it is empty."""
        with self._condition:
            oldest = min((entry.received for entry in self._known.values()), default=0)
        return max(0.0, time.time() - oldest / 1e9) if oldest else 0.0

    # --- start ---

    def _find(self) -> None:
        for path in sorted((self.folder / "queue").glob("*/*.dcm")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            partition = "" if path.parent.name == _DEFAULT else path.parent.name
            entry = Entry(path, partition, match[2], match[3], int(match[1]), path.stat().st_size)
            self._known[(partition, entry.uid, entry.digest)] = entry
            self._bytes += entry.size
            self._last = max(self._last, entry.received)
            self._wait(entry, 0.0)
        for path in (self.folder / "quarantine").glob("*/*.dcm"):
            self._bytes += path.stat().st_size
            self._quarantined += 1

    def _wait(self, entry: Entry, due: float) -> None:
        queue = self._queues.setdefault(entry.partition, _Queue())
        heapq.heappush(queue.waiting, (due, entry.received, entry))


def _oldest(queue: _Queue) -> int:
    return queue.waiting[0][1] if queue.waiting else 0


def _locked(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SpoolInUse(f"The spool {folder} is in use by another adapter.") from None
    return file


def _make(folder: Path) -> None:
    """A folder that a power failure does not take away."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)


def _synced_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb+") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
