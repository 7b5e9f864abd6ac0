"""What a long-running operation is, and what its kind hands to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Any
"""What JSON can say: None, bool, int, float, str, lists and objects of these."""

NOT_STARTED = "notStarted"
RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELED = "canceled"

ENDED = frozenset({SUCCEEDED, FAILED, CANCELED})

MAX_ERRORS = 20
"""Sentences that an operation keeps about what went wrong; its counts are of all."""
_MAX_SENTENCE = 300


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the items of a step: counts that add up, and a few sentences without patient data."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    errors: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        errors = tuple(dict.fromkeys(error[:_MAX_SENTENCE] for error in self.errors + other.errors))
        return Tally(
            self.done + other.done,
            self.failed + other.failed,
            self.skipped + other.skipped,
            errors[:MAX_ERRORS],
        )


@dataclass(frozen=True, slots=True)
class Page:
    """What planning yields: steps, each the items that one queue message works off.

    At most MAX_STEPS steps of MAX_STEP_BYTES as JSON; a page without steps goes on at ``cursor``, which is
    None at the end. ``total`` is the number of items the whole operation will have, where that is known.
    """

    steps: Sequence[Sequence[Json]]
    cursor: str | None
    total: int | None = None


MAX_STEPS = 40
MAX_STEP_BYTES = 48 * 1024


@dataclass(frozen=True, slots=True)
class Operation:
    """A long-running operation as its clients see it, and what its kind needs.

    ``id`` is 32 hexadecimal digits, ``input`` what it was started with, ``resources`` paths below the base
    path. ``percent_complete`` is 100 only when it has succeeded. ``traceparent`` is the trace of the request
    that started it, where there is telemetry (W3C Trace Context). An operation on one partition has its name
    in ``input`` as ``partition``.
    """

    id: str
    type: str
    status: str
    input: Json
    created: str
    last_updated: str
    percent_complete: int = 0
    resources: tuple[str, ...] = ()
    results: Json = None
    errors: tuple[str, ...] = ()
    canceling: bool = False
    traceparent: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDED

    @property
    def partition(self) -> str | None:
        """The partition it works on; None: the whole server, as that of one whose input names none."""
        return self.input.get("partition") if isinstance(self.input, dict) else None


class Unfinished(Exception):
    """What a step of a kind raises that leaves the rest for another run, which comes after ``delay`` seconds.

    It may do so any number of times: unlike a failure or a death of its worker, that says nothing against it.
    """

    def __init__(self, delay: int = 0) -> None:
        super().__init__("unfinished")
        self.delay = delay


class OperationFailed(Exception):
    """What ``finish`` of a kind raises where the work is done but its outcome is a failure.

    The message is a sentence for the client, ``results`` is what it may know nevertheless.
    """

    def __init__(self, message: str, results: Json = None) -> None:
        super().__init__(message)
        self.results = results


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation has come: the state that its coordinator moves on.

    ``planned`` steps exist, of which the messages up to ``sent`` went out and the first ``folded`` are over
    and counted in ``tally``. Planning goes on at ``cursor``; None: it has ended.
    """

    beat: int = 0
    idle: int = 0
    failures: int = 0
    planned: int = 0
    sent: int = 0
    folded: int = 0
    items_planned: int = 0
    items_over: int = 0
    total: int = 0
    cursor: str | None = ""
    tally: Tally = field(default_factory=Tally)
    broken: bool = False

    def percent(self) -> int:
        """Of all items those that are over, as far as they are known; 99 until the very end."""
        known = max(self.total, self.items_planned)
        if not known or (self.cursor is not None and not self.total):
            return 0
        return min(99, 100 * self.items_over // known)


@dataclass(frozen=True, slots=True)
class Step:
    """A planned step; ``tally`` is None until it is over. ``broken``: it could not be brought to an end.

    ``due`` is when its message was last sent or a worker last said that it works on it.
    """

    number: int
    count: int
    due: str
    tally: Tally | None = None
    broken: bool = False
