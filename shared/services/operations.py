"""Long-running operations: work that is planned in pages, fanned out over a queue and worked off in steps.

An operation has a *coordinator*: a message that, beat after beat, counts the steps that are over, plans
further ones, sends their messages, and sends the message of its own next beat. Steps are worked off by
whichever worker gets their message. Table Storage holds what was planned and what is over; every change of
it is one transaction guarded by an entity tag, so that messages may come twice, late, at once or never:

* planning moves the cursor and inserts the steps in one transaction;
* a step keeps its first outcome, and counting it deletes its row in the transaction that adds it up;
* a beat that was overtaken reads again; a message of an old beat is dropped;
* the timer sends a message to each operation that has not moved for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

from shared import container, faults, telemetry
from shared.errors import Conflict, DependencyUnavailable, NotFound, without_message
from shared.operations.operation import (
    CANCELED,
    FAILED,
    MAX_STEP_BYTES,
    MAX_STEPS,
    NOT_STARTED,
    SUCCEEDED,
    Json,
    Operation,
    OperationFailed,
    Page,
    Progress,
    Step,
    Tally,
    Unfinished,
)
from shared.operations.queue import OPERATIONS, STEPS
from shared.operations.table import Overtaken, Record, now
from shared.settings import settings

__all__ = ["Json", "Kind", "Operation", "OperationFailed", "Page", "Tally", "cancel", "get", "start"]

log = logging.getLogger(__name__)


class Kind(Protocol):
    """What a type of operation does: a module of ``shared/services`` that has these functions.

    All may run again, and at once with themselves, after a crash or a lost answer. DependencyUnavailable
    makes the engine try again later, for a day; Unfinished, from a step, at once and as often as it takes;
    any other exception is a bug, tried a few times.
    """

    async def plan(self, operation: Operation, cursor: str) -> Page:
        """The next steps. ``cursor`` is empty at first, then what the last page said."""

    async def step(self, operation: Operation, number: int, items: list[Json]) -> Tally:
        """Work off the items of a step."""

    async def finish(self, operation: Operation, tally: Tally) -> Json:
        """Called when no step is left to run, also after a failure or a cancellation: the results.

        May raise OperationFailed. ``operation.status`` says what the operation is about to become.
        """


KINDS: dict[str, str] = {
    "deletetag": "tag_deletion",
    "export": "export",
    "import": "imports",
    "reindex": "tag_reindex",
    "update": "update",
}
"""Types of operations, and the module of ``shared/services`` that does their work."""

_OUTSTANDING = 256  # steps planned and not counted: bounds rows, messages and what a beat reads
_BEAT_SECONDS = 1
_LONGEST_BEAT = 5
_PLANNING_SECONDS = 20.0
_FOLDED_AT_ONCE = 99  # of the 100 entities of a transaction
_LONGEST_DELAY = 60
_ATTEMPTS = 1440  # of a step whose dependency is away: about a day
_FAILURES = 5  # of what raises an unexpected exception
_POISONED = 10  # times that a message may kill its worker until it is given up, each five deliveries
_RACES = 5
_LOST_SECONDS = 900
_STALLED_SECONDS = 120
_ALIVE_SECONDS = 120
_NEVER_CREATED_SECONDS = 3600

_ID = re.compile("[0-9a-f]{32}")

NONE_SUCH = "There is no such operation."
"""What a caller is told of an unknown id, and of an operation that is none of the caller's business."""

Message = dict[str, Any]


# --- what clients do ---------------------------------------------------------------------------------


async def start(type: str, input: Json, resources: Sequence[str] = (), id: str | None = None) -> Operation:
    """Start an operation; one that was started with the same ``id``, type and input before is returned.

    ``input`` is kept in Table Storage: no secrets. Its ``partition`` says which callers see the operation;
    without, those who may act on the whole server. ``resources`` are paths below the base path. Raises
    InvalidRequest where the input is too large, Conflict where ``id`` is another operation's.
    """
    operation = await announce(type, input, resources, id or uuid.uuid4().hex)
    faults.point("operations.created")
    if not operation.ended:
        await begin(operation)
    return operation


async def announce(type: str, input: Json, resources: Sequence[str], id: str) -> Operation:
    """Keep an operation without beginning it; where nobody does, the timer begins it after some minutes.

    So what an operation works on can be made after its status and before its work: whatever is cut off,
    none of them is left without the other. Raises as :func:`start`.
    """
    if type not in KINDS or not _ID.fullmatch(id):
        raise ValueError(f"No operation {type} {id}")
    moment = now()
    trace = telemetry.carried({}).get("traceparent", "")
    operation = Operation(
        id, type, NOT_STARTED, input, moment, moment, resources=tuple(resources), traceparent=trace
    )
    table = container.operation_table()
    if await table.create(operation):
        return operation
    record = await table.find(id)
    if record is None or (record.operation.type, record.operation.input) != (type, input):
        raise Conflict("There is another operation with this id.")
    if record.operation.ended:
        await table.close_index(record)
    return record.operation


async def begin(operation: Operation) -> None:
    """Send the first message of an operation, or another one."""
    record = await container.operation_table().find(operation.id)
    if record is not None and not record.operation.ended:
        await _send_beat(operation.id, record.progress.beat, 0)


async def discard(operation: Operation) -> None:
    """End an announced operation that must not begin."""
    record = await container.operation_table().find(operation.id)
    if record is not None and not record.operation.ended:
        with contextlib.suppress(Overtaken):
            await _end(record, record.progress, CANCELED, None, ())


async def get(id: str) -> Operation:
    """The operation. Raises NotFound."""
    return (await _find(id)).operation


async def cancel(id: str) -> Operation:
    """Ask for the end of an operation: what has not begun will not, what runs comes to its end.

    Its status becomes ``canceled`` when nothing of it runs any more. Raises NotFound, and Conflict where
    it has ended otherwise.
    """
    for _ in range(_RACES):
        record = await _find(id)
        if record.operation.ended and record.operation.status != CANCELED:
            raise Conflict("The operation has ended already.")
        if record.operation.ended or record.operation.canceling:
            return record.operation
        with contextlib.suppress(Overtaken):
            await container.operation_table().request_cancel(record)
            return replace(record.operation, canceling=True)
    raise DependencyUnavailable("The operation is changing; try again.", retry_after=1)


async def _find(id: str) -> Record:
    record = await container.operation_table().find(id.lower()) if _ID.fullmatch(id.lower()) else None
    if record is None:
        raise NotFound(NONE_SUCH)
    return record


# --- messages ----------------------------------------------------------------------------------------


async def handle(body: bytes, redelivered: bool) -> None:
    """Work off a message of either queue. Raises only where it could not even be sent again."""
    message = _parse(body)
    if message is None:
        return
    try:
        if "step" in message:
            await _work(message)
        else:
            await _coordinate(message, redelivered or len(message) > 2)
    except Unfinished as unfinished:
        await _go_on(message, unfinished.delay)
    except DependencyUnavailable as error:
        log.warning("Operation %s waits: %s", message["operation"], error)
        await _send_again(message, "attempt")
    except Exception as error:
        log.error("Operation %s: %s", message["operation"], without_message(error))
        await _send_again(message, "failures")


async def give_up(body: bytes) -> None:
    """Deal with a message that its workers have died of, again and again.

    Workers die for other reasons, too: it gets further rounds before its step, or the planning, is broken.
    """
    message = _parse(body)
    if message is None:
        return
    message["poisoned"] = message.get("poisoned", 0) + 1
    log.error("A message of operation %s was poisonous %d times.", message["operation"], message["poisoned"])
    if message["poisoned"] >= _POISONED:
        await _break(message, "A worker ended each time it worked on this.")
    else:
        await container.operation_queue().send(_queue_of(message), message)


def _parse(body: bytes) -> Message | None:
    try:
        message = json.loads(body)
        message.pop("traceparent", None)  # its trigger has gone on with it
        if _ID.fullmatch(message["operation"]) and isinstance(message.get("step", message.get("beat")), int):
            return cast(Message, message)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    log.error("A message in a queue of operations is none of theirs; it is dropped.")
    return None


def _queue_of(message: Message) -> str:
    return STEPS if "step" in message else OPERATIONS


async def _go_on(message: Message, delay: int) -> None:
    """Send a step that goes on, without what has been counted against it."""
    id, number = message["operation"], message["step"]
    await container.operation_queue().send(STEPS, {"operation": id, "step": number}, delay)
    with contextlib.suppress(DependencyUnavailable):
        await container.operation_table().touch_step(id, number)


async def _send_again(message: Message, counter: str) -> None:
    count = message.get(counter, 0) + 1
    limit = _ATTEMPTS if counter == "attempt" else _FAILURES
    if count >= limit:
        reason = "A dependency was away for too long." if counter == "attempt" else "Unexpected failure."
        await _break(message, f"{reason} See the log.")
        return
    delay = min(_LONGEST_DELAY, 2 ** min(count, 6))
    await container.operation_queue().send(_queue_of(message), message | {counter: count}, delay)
    with contextlib.suppress(DependencyUnavailable):  # it waits, it is not lost
        if "step" in message:
            await container.operation_table().touch_step(message["operation"], message["step"])
        else:
            await container.operation_table().touch(message["operation"])


async def _break(message: Message, reason: str) -> None:
    """A step, or the planning, cannot be brought to an end: the operation fails, its other steps run."""
    id, table = message["operation"], container.operation_table()
    if "step" in message:
        found = await table.items(id, message["step"])
        if found is not None:
            tally = Tally(failed=found[1].count, errors=(f"Step {message['step']}: {reason}",))
            await table.finish_step(id, message["step"], tally, broken=True)
        return
    for _ in range(_RACES):
        record = await table.find(id)
        if record is None or record.operation.ended or record.progress.beat != message["beat"]:
            return
        progress = record.progress
        tally = progress.tally + Tally(errors=(reason,))
        with contextlib.suppress(Overtaken):
            if progress.broken and progress.cursor is None:  # what fails is the end of it
                await _end(record, progress, FAILED, None, tally.errors)
                return
            beat = progress.beat + 1
            await table.move(record, replace(progress, beat=beat, cursor=None, broken=True, tally=tally))
            await _send_beat(id, beat, 0)
            return
    raise DependencyUnavailable("The operation is changing; try again.")


async def _send_beat(id: str, beat: int, delay: int, traceparent: str = "") -> None:
    """Send a beat, in the trace of its sender or in that of ``traceparent``."""
    message: Message = {"operation": id, "beat": beat}
    if traceparent:
        message["traceparent"] = traceparent
    await container.operation_queue().send(OPERATIONS, message, delay)


# --- steps -------------------------------------------------------------------------------------------


async def _work(message: Message) -> None:
    id, number, table = message["operation"], message["step"], container.operation_table()
    record, found = await asyncio.gather(table.find(id), table.items(id, number))
    if record is None or found is None or found[1].tally is not None:
        return
    items, _ = found
    if record.operation.canceling:
        await table.finish_step(id, number, Tally(skipped=len(items)))
        return
    async with _shown_alive(id, number):
        faults.point("operations.step_started")
        tally = await _kind(record.operation).step(record.operation, number, items)
    faults.point("operations.step_worked")
    await table.finish_step(id, number, tally)
    faults.point("operations.step_finished")
    if number == record.progress.planned - 1 and record.progress.cursor is None:
        await begin(record.operation)  # perhaps it was the last: the coordinator need not wait for its beat


@contextlib.asynccontextmanager
async def _shown_alive(id: str, number: int) -> AsyncIterator[None]:
    """Keep the coordinator from sending a long step again while it runs."""

    async def show() -> None:
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            with contextlib.suppress(DependencyUnavailable):
                await container.operation_table().touch_step(id, number)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()


def _kind(operation: Operation) -> Kind:
    return cast(Kind, importlib.import_module(f"shared.services.{KINDS[operation.type]}"))


# --- the coordinator ---------------------------------------------------------------------------------


async def _coordinate(message: Message, again: bool) -> None:
    """A beat. ``again``: the message has been worked on before, which may have been cut off anywhere."""
    id, beat = message["operation"], message["beat"]
    for _ in range(_RACES):
        found = await container.operation_table().with_steps(id)
        if found is None:
            return
        record, steps = found
        if record.operation.ended:
            await container.operation_table().close_index(record)
            return
        if record.progress.beat != beat:
            if again and record.progress.beat == beat + 1:  # the next beat may not have been sent
                await _send_beat(id, beat + 1, 0)
            return
        with contextlib.suppress(Overtaken):
            await _beat(record, steps)
            return
    raise DependencyUnavailable("The operation is changing; try again.")


async def _beat(record: Record, steps: list[Step]) -> None:
    before = record.progress
    record = await _send_steps(await _fold(record, steps))
    if not record.operation.canceling:
        record = await _plan(record)
    await _send_lost(record, steps)
    progress = record.progress
    if (progress.cursor is None or record.operation.canceling) and progress.folded == progress.planned:
        await _finish(record, progress)
        return
    moved = (progress.folded, progress.planned) != (before.folded, before.planned)
    idle = 0 if moved else progress.idle + 1
    progress = replace(progress, beat=progress.beat + 1, idle=idle)
    await container.operation_table().move(record, progress)
    faults.point("operations.beaten")
    delay = min(_LONGEST_BEAT, _BEAT_SECONDS + idle // 10)
    await _send_beat(record.operation.id, progress.beat, delay)


async def _fold(record: Record, steps: list[Step]) -> Record:
    """Count the steps that are over, as far as none before them is not."""
    while True:
        progress = record.progress
        over: list[Step] = []
        for step in steps:
            if step.number != progress.folded + len(over) or step.tally is None:
                continue
            over.append(step)
            if len(over) == _FOLDED_AT_ONCE:
                break
        if not over:
            return record
        tally = progress.tally
        for step in over:
            tally += step.tally or Tally()
        progress = replace(
            progress,
            folded=progress.folded + len(over),
            items_over=progress.items_over + sum(step.count for step in over),
            tally=tally,
            broken=progress.broken or any(step.broken for step in over),
        )
        record = await container.operation_table().fold(record, progress)
        faults.point("operations.folded")


async def _plan(record: Record) -> Record:
    """Plan pages and send their steps until enough of them wait, the plan ends, or it is time for a beat."""
    deadline = time.monotonic() + _PLANNING_SECONDS
    while (
        record.progress.cursor is not None
        and record.progress.planned - record.progress.folded < _OUTSTANDING
        and time.monotonic() < deadline
    ):
        progress = record.progress
        page = await _kind(record.operation).plan(record.operation, record.progress.cursor)
        if not page.steps and page.cursor == progress.cursor:
            return record  # there is nothing to plan yet
        _check(page)
        faults.point("operations.page_made")
        planned = replace(
            progress,
            planned=progress.planned + len(page.steps),
            items_planned=progress.items_planned + sum(map(len, page.steps)),
            total=page.total if page.total is not None else progress.total,
            cursor=page.cursor,
        )
        record = await container.operation_table().plan(record, planned, page.steps)
        faults.point("operations.planned")
        record = await _send_steps(record)
    return record


def _check(page: Page) -> None:
    if len(page.steps) > MAX_STEPS:
        raise ValueError("A page has too many steps.")
    if any(len(json.dumps(items)) > MAX_STEP_BYTES for items in page.steps):
        raise ValueError("A step is too large.")


async def _send_steps(record: Record) -> Record:
    """Send the messages of steps that none was sent of; after a crash, a second one of those of a page.

    The next change of the record says that they were sent.
    """
    progress = record.progress
    numbers = range(max(progress.sent, progress.folded), progress.planned)
    await _send_all(record.operation.id, numbers)
    if numbers:
        faults.point("operations.steps_sent")
    return replace(record, progress=replace(progress, sent=progress.planned))


async def _send_lost(record: Record, steps: list[Step]) -> None:
    """Send the messages of steps again that nobody has said anything about for long."""
    before = _moment(-_LOST_SECONDS)
    lost = [s.number for s in steps if s.tally is None and s.due < before and s.number < record.progress.sent]
    for number in lost:
        await container.operation_table().touch_step(record.operation.id, number)
    await _send_all(record.operation.id, lost)


async def _send_all(id: str, numbers: Sequence[int]) -> None:
    queue = container.operation_queue()
    for start_number in range(0, len(numbers), 16):
        batch = numbers[start_number : start_number + 16]
        await asyncio.gather(*(queue.send(STEPS, {"operation": id, "step": number}) for number in batch))


async def _finish(record: Record, progress: Progress) -> None:
    operation = record.operation
    planned_all = progress.cursor is None
    status = FAILED if progress.broken else SUCCEEDED if planned_all else CANCELED
    if operation.canceling and not progress.broken and progress.tally.skipped:
        status = CANCELED
    errors = progress.tally.errors
    try:
        about_to_be = replace(operation, status=status, errors=errors)
        results = await _kind(operation).finish(about_to_be, progress.tally)
    except OperationFailed as failure:
        status, results = FAILED, failure.results
        errors = (Tally(errors=(str(failure),)) + progress.tally).errors
    faults.point("operations.work_finished")
    await _end(record, progress, status, results, errors)


async def _end(record: Record, progress: Progress, status: str, results: Json, errors: Sequence[str]) -> None:
    table = container.operation_table()
    await table.end(record, progress, status, results, errors)
    telemetry.add(telemetry.OPERATIONS_ENDED, type=record.operation.type, status=status)
    faults.point("operations.ended")
    ended = await table.find(record.operation.id)
    if ended is not None:
        await table.close_index(ended)
    log.info("Operation %s (%s) has %s.", record.operation.id, record.operation.type, status)


# --- the timer ---------------------------------------------------------------------------------------


async def revive() -> int:
    """Send a message to every operation that has not moved for a while; how many."""
    table = container.operation_table()
    revived = 0
    stalled = _moment(-_STALLED_SECONDS)
    async for id, created in table.active():
        record = await table.find(id)
        if record is None:
            if created < _moment(-_NEVER_CREATED_SECONDS):
                await table.drop_index(id)
        elif record.operation.ended:
            await table.close_index(record)
        elif record.operation.last_updated < stalled:
            await _send_beat(id, record.progress.beat, 0, record.operation.traceparent)
            revived += 1
    return revived


async def remove_old() -> int:
    """Forget operations that ended longer ago than the setting says; how many."""
    table = container.operation_table()
    removed = 0
    async for key, id in table.ended_before(_moment(-86_400 * settings().operation_days)):
        await table.remove(key, id)
        removed += 1
    return removed


def _moment(seconds: float) -> str:
    """The time so many seconds from now, comparable with that of :func:`now`."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
