"""Sends the spool to the server by STOW-RS, and decides what becomes of each object."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adapters.dimse.config import Forward
from adapters.dimse.dicomweb import DicomWeb, Json, Refused, Unavailable
from adapters.dimse.metrics import Metrics
from adapters.dimse.part10 import identity, same_dataset
from adapters.dimse.spool import Entry, Spool

_LOG = logging.getLogger("adapters.dimse.forward")

_PROCESSING_FAILURE = 0x0110
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_ALREADY_EXISTS = 45070
_BEING_CREATED = 45071


class Forwarder:
    """Threads that empty the spool until ``stop``."""

    def __init__(self, spool: Spool, server: DicomWeb, settings: Forward, metrics: Metrics) -> None:
        self._spool = spool
        self._server = server
        self._settings = settings
        self._metrics = metrics
        self._stopping = threading.Event()
        self._failures: Counter[str] = Counter()
        self._attempts: Counter[Path] = Counter()
        self._threads = [
            threading.Thread(target=self._run, name=f"forward-{number}", daemon=True)
            for number in range(settings.concurrency)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the requests under way; what is left stays in the spool."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._spool.take(self._settings.batch_objects, self._settings.batch_bytes, timeout=0.5)
            if not batch:
                continue
            try:
                self._send(batch)
            except Exception as error:  # a defect must not end the thread nor lose an object
                _LOG.error("forwarding failed: %s", type(error).__name__)
                for entry in batch:
                    if entry.path.exists():
                        self._spool.put_back(entry, self._settings.longest_pause_seconds)

    def _send(self, batch: list[Entry]) -> None:
        partition = batch[0].partition
        try:
            _, answer = self._server.store(partition, [entry.path for entry in batch])
        except Unavailable as error:
            self._pause(partition, batch, error)
        except Refused as error:
            self._refused(partition, batch, error)
        else:
            self._failures.pop(partition, None)
            self._settle(batch, answer)

    def _pause(self, partition: str, batch: Sequence[Entry], error: Unavailable) -> None:
        """The server does not answer as it should: nothing of the partition is sent for a while."""
        self._failures[partition] += 1
        pause = self._backoff(self._failures[partition])
        pause = max(pause, min(error.retry_after, 10 * self._settings.longest_pause_seconds))
        self._metrics.count("dimse_forward_requests_failed_total")
        _LOG.warning("the server does not take objects (%s); next try in %.0f s", error, pause)
        self._spool.hold_back(partition, pause)
        for entry in batch:
            self._spool.put_back(entry)

    def _refused(self, partition: str, batch: list[Entry], error: Refused) -> None:
        """The whole request was refused: find out which object is to blame by sending each alone."""
        if error.status == 404:  # the address or the partition is wrong: no object's fault
            self._pause(partition, batch, Unavailable(str(error)))
        elif len(batch) == 1:
            self._quarantine(batch[0], str(error))
        else:
            for number, entry in enumerate(batch):
                if self._stopping.is_set():
                    for left in batch[number:]:
                        self._spool.put_back(left)
                    return
                self._send([entry])

    def _settle(self, batch: Sequence[Entry], answer: Json) -> None:
        """What the answer says of each object (PS3.18 §10.5.3, Annex I.2)."""
        stored = {_value(item, "00081155") for item in _items(answer, "00081199")}
        failed = {_value(item, "00081155"): item for item in _items(answer, "00081198")}
        alone = len(batch) == 1
        for entry in batch:
            if entry.uid in stored or (alone and stored):
                self._done(entry)
                continue
            item = next(iter(failed.values()), None) if alone else failed.get(entry.uid)
            if item is None:  # not named: the data set's UID may differ from that of the message
                self._later(entry, "the server's answer does not name it")
            else:
                self._failed(entry, item)

    def _failed(self, entry: Entry, item: Json) -> None:
        code = int(_value(item, "00081197") or 0)
        if code == _ALREADY_EXISTS:
            self._compare(entry)
        elif code == _BEING_CREATED:
            self._spool.put_back(entry, self._settings.first_pause_seconds)
        elif code == _PROCESSING_FAILURE or code in _OUT_OF_RESOURCES:
            self._later(entry, f"failure reason {code}")
        else:
            self._quarantine(entry, f"failure reason {code}: {_comments(item)}")

    def _compare(self, entry: Entry) -> None:
        """The server has an instance of this UID: done if it is this one, byte for byte."""
        uids = identity(entry.path)
        path = f"studies/{uids.study}/series/{uids.series}/instances/{uids.instance}"
        with tempfile.NamedTemporaryFile(dir=self._spool.incoming, prefix="compare-") as file:
            try:
                self._server.retrieve(entry.partition, path, "*", Path(file.name))
            except Unavailable as error:
                self._pause(entry.partition, [entry], error)
                return
            except Refused as error:
                self._later(entry, f"it exists, and cannot be compared: {error}")
                return
            same = same_dataset(entry.path, Path(file.name))
        if same:
            self._metrics.count("dimse_objects_duplicate_total")
            self._done(entry)
        else:
            self._quarantine(entry, "another instance with this SOP Instance UID is stored already")

    def _later(self, entry: Entry, reason: str) -> None:
        self._attempts[entry.path] += 1
        attempts = self._attempts[entry.path]
        if attempts >= self._settings.attempts:
            self._quarantine(entry, f"{reason}, after {attempts} attempts")
        else:
            self._spool.put_back(entry, self._backoff(attempts))

    def _backoff(self, failures: int) -> float:
        pause = self._settings.first_pause_seconds * 2.0 ** min(failures - 1, 30)
        return min(pause, self._settings.longest_pause_seconds)

    def _done(self, entry: Entry) -> None:
        self._attempts.pop(entry.path, None)
        self._spool.done(entry)
        self._metrics.count("dimse_objects_forwarded_total")

    def _quarantine(self, entry: Entry, reason: str) -> None:
        self._attempts.pop(entry.path, None)
        self._spool.quarantine(entry, reason)
        self._metrics.count("dimse_objects_refused_total")
        _LOG.error("%s is in quarantine; the file beside it says why", entry.uid)


def _items(answer: Json, tag: str) -> list[Json]:
    return list(answer.get(tag, {}).get("Value", ()))


def _value(item: Json, tag: str) -> str:
    values = item.get(tag, {}).get("Value", ())
    return str(values[0]) if values else ""


def _comments(item: Json) -> str:
    return "; ".join(_value(failed, "00000902") for failed in _items(item, "00741048"))
