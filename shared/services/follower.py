"""Follows the change feed for a consumer: at least once, each study in order, several studies at a time.

A consumer's cursor is the last Sequence that is delivered, or given up and kept in a table. It moves with
each batch, as far as all before it is over, so that a crash anywhere delivers again but leaves nothing out.
While a neighbour is down the cursor stays: the feed itself is the queue. One host follows at a time; if it
dies, another one goes on when its hold of the cursor has run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from shared import container, faults
from shared.errors import DependencyUnavailable, without_message
from shared.neighbours.errors import NeighbourFailed, NeighbourRefused, NeighbourUnavailable
from shared.operations.followers import FollowerTable, GivenUp, LostHold, Position
from shared.settings import settings
from shared.sql import change_feed
from shared.sql.change_feed import Entry, timestamp

log = logging.getLogger(__name__)

_BATCH = 100  # what is done of a batch counts at its end: it must be over well within a run
_STUDIES_AT_ONCE = 8
_TRIES = 6
_REFUSALS = 2
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0


class Consumer(Protocol):
    """What is to be done with changes.

    ``name`` names its cursor. ``from_start`` says whether a new one begins with the oldest change, or after
    the newest. ``alone`` says whether a batch of a study can be told apart into changes that are delivered
    one by one. ``tables`` keep what is given up.
    """

    name: str
    from_start: bool
    alone: bool
    tables: Sequence[str]

    async def deliver(self, entries: Sequence[Entry]) -> None:
        """Deliver changes of one study, in order.

        Raises NeighbourUnavailable, NeighbourFailed or NeighbourRefused, or DependencyUnavailable.
        """

    def table_of(self, error: Exception) -> str:
        """The table that keeps what was given up because of ``error``."""

    async def on_retry(self, entries: Sequence[Entry], error: Exception) -> None:
        """Told before a delivery is tried again."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a consumer is; ``oldest`` is the time of the oldest change not delivered."""

    changes: int
    oldest: str
    failing_since: str
    failure: str

    def __str__(self) -> str:
        if not self.changes:
            return "Up to date."
        text = f"{self.changes} changes behind, the oldest of {self.oldest}."
        return f"{text} Failing since {self.failing_since}: {self.failure}" if self.failing_since else text


async def follow(consumer: Consumer, seconds: float = 50.0) -> int:
    """Deliver what has changed until nothing is left or ``seconds`` are over; how many changes.

    Does nothing where another host follows. Raises DependencyUnavailable.
    """
    table = container.followers()
    newest = await _newest()
    start = 0 if consumer.from_start else newest
    holder = uuid.uuid4().hex
    hold = settings().follower_hold_seconds
    position = await table.take(consumer.name, holder, hold, start)
    if position is None:
        return 0
    if position.sequence > newest and position.sequence > await _newest():
        log.warning("The change feed was made anew; it is followed for %s after %d.", consumer.name, start)
        position = replace(position, sequence=start)
    run = _Run(consumer, table, position, holder, time.monotonic() + seconds)
    try:
        return await run.work()
    except LostHold:
        log.warning("Another host follows the change feed for %s by now.", consumer.name)
        return 0


async def lag(name: str) -> Lag:
    """How far behind a consumer is. Raises DependencyUnavailable."""
    position = await container.followers().find(name)
    newest = await _newest()
    if position is None:
        return Lag(0, "", "", "")
    behind = newest - position.sequence
    oldest = ""
    if behind > 0:
        waiting = await container.database().read(change_feed.read, position.sequence, 1, None, None)
        oldest = waiting[0].timestamp if waiting else ""
    return Lag(max(behind, 0), oldest, position.failing_since, position.failure)


async def _newest() -> int:
    entry = await container.database().read(change_feed.latest)
    return entry.sequence if entry else 0


class _Run:
    """A consumer's run on this host."""

    def __init__(
        self, consumer: Consumer, table: FollowerTable, position: Position, holder: str, deadline: float
    ) -> None:
        self._consumer = consumer
        self._table = table
        self._position = position
        self._holder = holder
        self._deadline = deadline
        self._writing = asyncio.Lock()
        self._studies = asyncio.Semaphore(_STUDIES_AT_ONCE)

    async def work(self) -> int:
        delivered = 0
        async with self._held():
            await self._retry()
            while time.monotonic() < self._deadline:
                entries = await container.database().read(
                    change_feed.read, self._position.sequence, _BATCH, None, None
                )
                if not entries:
                    break
                done, failure = await self._batch(entries)
                faults.point("follower.delivered")
                await self._save(entries, done, failure)
                faults.point("follower.saved")
                delivered += done
                if failure is not None:
                    log.warning("The change feed cannot be followed for %s: %s", self._consumer.name, failure)
                    break
            await self._write(0)
        return delivered

    async def _batch(self, entries: Sequence[Entry]) -> tuple[int, Exception | None]:
        """How many of the first entries are over, and what the next one fails of."""
        studies: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            studies.setdefault((entry.key.partition, entry.key.study), []).append(entry)
        groups = list(studies.values())
        outcomes = await asyncio.gather(*map(self._study, groups), return_exceptions=True)
        failed = [
            (group, outcome) for group, outcome in zip(groups, outcomes, strict=True) if outcome is not None
        ]
        for _, outcome in failed:
            if not isinstance(outcome, DependencyUnavailable):
                raise outcome
        if not failed:
            return len(entries), None
        group, outcome = min(failed, key=lambda pair: pair[0][0].sequence)
        assert isinstance(outcome, Exception)
        return sum(entry.sequence < group[0].sequence for entry in entries), outcome

    async def _study(self, entries: Sequence[Entry]) -> None:
        """Deliver or give up changes of one study; DependencyUnavailable when there is no time left."""
        try:
            await self._deliver(entries)
            return
        except (NeighbourFailed, NeighbourRefused) as error:
            if not self._consumer.alone or len(entries) == 1:
                await self._give_up(entries, error)
                return
        for entry in entries:
            try:
                await self._deliver([entry])
            except (NeighbourFailed, NeighbourRefused) as error:
                await self._give_up([entry], error)

    async def _deliver(self, entries: Sequence[Entry]) -> None:
        """Try until it is done, is refused for good, or time is over."""
        failures = refusals = waits = 0
        while True:
            try:
                async with self._studies:  # a study that waits for its next try keeps no other one waiting
                    await self._consumer.deliver(entries)
                return
            except NeighbourRefused as error:
                refusals += 1
                if refusals >= _REFUSALS:
                    raise
                last: Exception = error
            except NeighbourFailed as error:
                failures += 1
                if failures >= _TRIES:
                    raise
                last = error
            except DependencyUnavailable as error:
                last = error
            except Exception as error:  # a bug must not hold up all other studies for ever
                log.error("A delivery for %s failed: %s", self._consumer.name, without_message(error))
                failures += 1
                last = NeighbourFailed(f"The delivery failed with {type(error).__name__}.")
                if failures >= _TRIES:
                    raise last from error
            waits += 1
            delay = min(_FIRST_DELAY * 2 ** (waits - 1), _LONGEST_DELAY) * random.uniform(0.75, 1.25)
            if isinstance(last, NeighbourUnavailable):
                delay = max(delay, last.retry_after)
            if time.monotonic() + delay > self._deadline:
                raise DependencyUnavailable(str(last)) from last
            await self._consumer.on_retry(entries, last)
            await asyncio.sleep(delay)

    async def _give_up(self, entries: Sequence[Entry], error: Exception) -> None:
        table = self._consumer.table_of(error)
        log.error("%d changes are given up for %s: %s", len(entries), self._consumer.name, error)
        for entry in entries if self._consumer.alone else entries[-1:]:
            change = GivenUp(entry.sequence, entry.action, entry.timestamp, entry.key, str(error), table)
            await self._table.keep(change)

    async def _retry(self) -> None:
        """Deliver again what an operator asked for, and forget it where that works."""
        for table in self._consumer.tables:
            async for change in self._table.given_up(table, asked_for=True):
                if time.monotonic() > self._deadline:
                    return
                entry = Entry(change.sequence, change.timestamp, change.action, change.key, "", "", 0, 0)
                try:
                    await self._consumer.deliver([entry])
                except (NeighbourFailed, NeighbourRefused) as error:
                    await self._table.keep(replace(change, error=str(error)))
                except DependencyUnavailable:
                    return
                else:
                    await self._table.forget(change)

    async def _save(self, entries: Sequence[Entry], done: int, failure: Exception | None) -> None:
        position = self._position
        since = (position.failing_since or timestamp()) if failure is not None else ""
        sequence = entries[done - 1].sequence if done else position.sequence
        self._position = replace(
            position, sequence=sequence, failing_since=since, failure=str(failure) if failure else ""
        )
        await self._write(settings().follower_hold_seconds)

    async def _write(self, seconds: float) -> None:
        async with self._writing:
            held = await self._table.hold(self._position, self._holder if seconds else "", seconds)
            self._position = replace(self._position, etag=held.etag)

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Keeps the hold of the cursor while the body runs, and stops the body where it is lost."""
        body = asyncio.current_task()
        lost = False

        async def keep() -> None:
            nonlocal lost
            seconds = settings().follower_hold_seconds
            try:
                while True:
                    await asyncio.sleep(seconds / 3)
                    await self._write(seconds)
            except (LostHold, DependencyUnavailable) as error:
                lost = True
                log.warning("The hold of the cursor is lost: %s", without_message(error))
                if body is not None:
                    body.cancel()

        keeper = asyncio.create_task(keep())
        try:
            yield
        except asyncio.CancelledError:
            if lost:
                raise LostHold from None
            raise
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
