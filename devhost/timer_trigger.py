"""Timer triggers: six-field NCRONTAB in UTC; a run is never overtaken by the next one.

One process of the host runs the timers. Unlike the platform, ticks missed while the host was down are not
made up for.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from devhost import arguments
from devhost.app import Function
from devhost.executions import execute
from devhost.settings import HostSettings

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("second", 0, 59, []),
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)


@dataclass(frozen=True)
class Schedule:
    """The values each field may have. Day and day of the week must both fit, as in NCrontab."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """``{second} {minute} {hour} {day} {month} {day of the week}``. Raises ValueError."""
        fields = text.split()
        if len(fields) == 5:
            fields.insert(0, "0")
        if len(fields) != 6:
            raise ValueError(f"The schedule {text!r} must have six fields.")
        return cls(*(_field(value, *limits) for value, limits in zip(fields, _FIELDS, strict=True)))

    def next(self, after: datetime) -> datetime:
        """The first tick later than ``after``. Raises ValueError when there is none in eight years."""
        time = after.replace(microsecond=0) + timedelta(seconds=1)
        end = after + timedelta(days=8 * 366)
        while time < end:
            if time.month not in self.months:
                next_month = time.replace(day=1, hour=0, minute=0, second=0) + timedelta(days=31)
                time = next_month.replace(day=1)
            elif time.day not in self.days or (time.weekday() + 1) % 7 not in self.weekdays:
                time = time.replace(hour=0, minute=0, second=0) + timedelta(days=1)
            elif time.hour not in self.hours:
                time = time.replace(minute=0, second=0) + timedelta(hours=1)
            elif time.minute not in self.minutes:
                time = time.replace(second=0) + timedelta(minutes=1)
            elif time.second not in self.seconds:
                time += timedelta(seconds=1)
            else:
                return time
        raise ValueError("The schedule has no tick.")


def _field(text: str, label: str, low: int, high: int, names: list[str]) -> frozenset[int]:
    values: set[int] = set()
    for item in text.lower().split(","):
        match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", item)
        if match is None:
            raise ValueError(f"{text!r} is not a {label} of a schedule.")
        first, last, step = match.groups()
        start = low if first == "*" else _number(first, low, names, label)
        if last is not None:
            stop = _number(last, low, names, label)
        else:
            stop = high if first == "*" or step else start
        if not low <= start <= stop <= high or step == "0":
            raise ValueError(f"{text!r} is out of range for a {label} of a schedule.")
        values.update(range(start, stop + 1, int(step or 1)))
    return frozenset(values)


def _number(text: str, low: int, names: list[str], label: str) -> int:
    if text[:3] in names:
        return names.index(text[:3]) + low
    if not text.isdigit():
        raise ValueError(f"{text!r} is not a {label} of a schedule.")
    return int(text)


class TimerTrigger:
    """Runs one function on its schedule."""

    def __init__(self, function: Function, settings: HostSettings) -> None:
        self._function = function
        self._settings = settings
        self._schedule = Schedule.parse(function.text("schedule"))

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until ``stop``."""
        if self._function.binding.get("runOnStartup"):
            await execute(self._function, arguments.timer(), self._settings)
        while not stop.is_set():
            tick = self._schedule.next(datetime.now(UTC))
            while (left := (tick - datetime.now(UTC)).total_seconds()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(left, 60))  # the clock may be set
                    return
            await execute(self._function, arguments.timer(last=tick), self._settings)
