"""The migration: enumerate, copy, check; several studies at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from devhost.migrate import source as enumeration
from devhost.migrate.journal import Journal
from devhost.migrate.peer import Failed, Peer, Received, attempts, each
from devhost.migrate.target import Target
from shared.dicom.identifiers import InstanceKey

_BATCH_FILES = 10
_BATCH_BYTES = 20 * 1024 * 1024
_ROUNDS = 10
FOUND, COMPARED = 1, 2
"""How far an instance is verified."""


@dataclass(frozen=True)
class Peers:
    """The source; the same without its partition, whose change feed it is; and the target."""

    source: Peer
    feed: Peer
    target: Peer


class Migration:
    """One run. ``folder`` is of the journal; instances on their way are spooled below it."""

    def __init__(
        self, peers: Peers, journal: Journal, spool: Path, console: Console, *, replace: bool, at_once: int
    ) -> None:
        self._source = peers.source
        self._feed = peers.feed
        self._target = Target(peers.target, spool, replace=replace)
        self._journal = journal
        self._spool = spool
        self._console = console
        self._at_once = at_once
        self.lost_studies: dict[str, str] = {}
        """Studies whose instances the source does not tell, and why."""

    async def run(self, verify: int, *, by_search: bool) -> None:
        """Enumerate and copy until the source has nothing new, then verify. Raises Failed, Unusable."""
        run = self._journal.begin_run()
        for _ in range(_ROUNDS):
            if not by_search:
                by_search = not await self._follow()
            if by_search:
                self.lost_studies = await self._search(run)
            if not self._journal.counts().get("pending"):
                break
            await self._copy()
            if by_search:
                break
        if verify:
            await self._verify(verify)

    # --- enumerate -------------------------------------------------------------------------------------

    async def _follow(self) -> bool:
        with self._progress("Reading the change feed", None) as advance:
            try:
                await enumeration.read_change_feed(self._source, self._feed, self._journal, advance)
            except enumeration.NoChangeFeed:
                return False
        return True

    async def _search(self, run: int) -> dict[str, str]:
        with self._progress("Searching", None) as advance:
            return await enumeration.search(self._source, self._journal, run, advance)

    # --- copy ------------------------------------------------------------------------------------------

    async def _copy(self) -> None:
        counts = self._journal.counts()
        done, todo = counts.get("stored", 0), counts.get("pending", 0)
        with self._progress("Copying", done + todo, done) as advance:

            async def copy(study: str) -> None:
                await _Study(self, study, advance).copy()

            await each(self._journal.studies("pending"), self._at_once, copy)

    # --- verify ----------------------------------------------------------------------------------------

    async def _verify(self, level: int) -> None:
        with self._progress("Verifying", self._journal.unverified(level)) as advance:

            async def verify(study: str) -> None:
                await self._verify_study(study, level, advance)

            await each(self._journal.studies("stored", level), self._at_once, verify)

    async def _verify_study(self, study: str, level: int, advance: enumeration.Report) -> None:
        """Whether a search finds each instance; for COMPARED, whether each reads back as it was sent."""
        expected = self._journal.stored(study, level)
        try:
            found = await self._target.instances(study)
        except Failed as failed:
            for key in expected:
                self._journal.failed(key, f"The target cannot be searched for it: {failed}")
            return
        missing = expected.keys() - found
        for key in missing:
            self._journal.failed(key, "A search of the target does not find it.")
        present = expected.keys() - missing
        if level >= COMPARED:
            await each(sorted(present, key=str), 1, lambda key: self._compare(key, expected[key]))
        else:
            self._journal.verified(present, FOUND)
        advance(len(expected))

    async def _compare(self, key: InstanceKey, digest: str) -> None:
        if reason := await self._target.compare(key, digest):
            self._journal.failed(key, reason)
        else:
            self._journal.verified([key], COMPARED)

    @contextlib.contextmanager
    def _progress(self, title: str, total: int | None, done: int = 0) -> Iterator[enumeration.Report]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda count: progress.advance(task, count)


class _Study:
    """Copies one study: retrieved series by series, stored in batches that go across series."""

    def __init__(self, migration: Migration, study: str, advance: enumeration.Report) -> None:
        self._source = migration._source
        self._target = migration._target
        self._journal = migration._journal
        self._spool = migration._spool
        self._study = study
        self._advance = advance
        self._batch: list[Received] = []

    async def copy(self) -> None:
        """Every pending instance becomes stored or failed. Raises Unusable."""
        try:
            for series, wanted, done in self._journal.series(self._study):
                left = set(wanted)
                if 1 < len(wanted) >= done:
                    await self._copy_series(series, left)
                for instance in sorted(left):
                    await self._copy_instance(InstanceKey("", self._study, series, instance))
            await self._store()
        finally:
            for received in self._batch:
                received.path.unlink(missing_ok=True)

    async def _copy_series(self, series: str, left: set[str]) -> None:
        """Retrieve a series at once; what does not come stays in ``left``, to be retrieved one by one."""
        with contextlib.suppress(Failed):
            async for received in self._source.retrieve(
                InstanceKey("", self._study, series, ""), self._spool
            ):
                key = received.key
                if (key.study, key.series) != (self._study, series) or self._journal.is_stored(key):
                    received.path.unlink()
                    continue
                left.discard(key.instance)
                await self._add(received)

    async def _copy_instance(self, key: InstanceKey) -> None:
        async def once() -> Received | None:
            found = None
            async for received in self._source.retrieve(key, self._spool):
                if received.key == key and found is None:
                    found = received
                else:
                    received.path.unlink()
            return found

        try:
            received = await attempts(once)
        except Failed as failed:
            self._fail(key, f"It cannot be retrieved from the source: {failed}")
            return
        if received is None:
            self._fail(key, "The source answers with something else than this instance.")
        else:
            await self._add(received)

    def _fail(self, key: InstanceKey, reason: str) -> None:
        self._journal.failed(key, reason)
        self._advance(1)

    async def _add(self, received: Received) -> None:
        size = sum(one.size for one in self._batch) + received.size
        known = any(one.key.instance == received.key.instance for one in self._batch)
        if self._batch and (len(self._batch) == _BATCH_FILES or size > _BATCH_BYTES or known):
            try:
                await self._store()
            except BaseException:
                received.path.unlink(missing_ok=True)
                raise
        self._batch.append(received)

    async def _store(self) -> None:
        if not self._batch:
            return
        for stored in await self._target.store(self._batch):
            key = stored.received.key
            if stored.reason:
                self._journal.failed(key, stored.reason)
            else:
                self._journal.done(key, stored.received.digest, COMPARED if stored.compared else 0)
            self._advance(1)
        for received in self._batch:
            received.path.unlink()
        self._batch = []
