"""The engine of long-running operations, with a kind of its own: what is planned is done, whatever happens.

Messages are worked off in this process, on real queues and tables, so that each test decides what comes
twice, late or never. ``tests/test_operations_killed.py`` does the same to real servers with real kinds.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shared import container, faults
from shared.errors import Conflict, DependencyUnavailable, InvalidRequest, NotFound
from shared.operations import queue
from shared.services import operations
from shared.services.operations import Operation, OperationFailed, Page, Tally
from shared.settings import settings
from tests.conftest import _Storage
from tests.operations_harness import COORDINATOR_POINTS, STEP_POINTS, Worker

CACHED = (
    settings,
    container.database,
    container.blob_store,
    container.table_service,
    container.state,
    container.operation_table,
    container.operation_queue,
)


class Squares(types.ModuleType):
    """A kind: squares the numbers below ``input["count"]``, a few a step; it notes what it did."""

    def __init__(self) -> None:
        super().__init__("squares")
        self.squares: dict[int, int] = {}
        self.runs: list[int] = []
        self.finished: list[tuple[str, Tally]] = []
        self.trouble: dict[int, list[Exception]] = {}
        self.plan_trouble: list[Exception] = []
        self.finish_trouble: list[Exception] = []

    async def plan(self, operation: Operation, cursor: str) -> Page:
        if self.plan_trouble:
            raise self.plan_trouble.pop()
        start, count = int(cursor or 0), operation.input["count"]
        stop = min(start + 10, count)
        steps = [list(range(n, min(n + 2, stop))) for n in range(start, stop, 2)]
        return Page(steps, str(stop) if stop < count else None, total=count)

    async def step(self, operation: Operation, number: int, items: list[Any]) -> Tally:
        self.runs.append(number)
        if self.trouble.get(number):
            raise self.trouble[number].pop()
        for item in items:
            self.squares[item] = item * item
        return Tally(done=len(items), errors=("13 is unlucky.",) if 13 in items else ())

    async def finish(self, operation: Operation, tally: Tally) -> Any:
        if self.finish_trouble:
            raise self.finish_trouble.pop()
        self.finished.append((operation.status, tally))
        return {"squares": tally.done}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Storage]:
    with contextlib.closing(_Storage(tmp_path_factory.mktemp("operations"))) as own:
        yield own


@pytest.fixture
async def worker(storage: _Storage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setenv("AzureWebJobsStorage", storage.azurite.connection_string)
    monkeypatch.setattr(operations, "_LONGEST_DELAY", 0)
    monkeypatch.setattr(operations, "_BEAT_SECONDS", 0)
    for cached in CACHED:
        cached.cache_clear()
    worker = Worker(storage.azurite.connection_string)
    yield worker
    await worker.lose()
    await worker.close()
    await container.table_service().close()
    await container.operation_queue().close()
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> Squares:
    kind = Squares()
    monkeypatch.setitem(sys.modules, "shared.services.squares", kind)
    monkeypatch.setitem(operations.KINDS, "squares", "squares")
    return kind


async def test_all_steps_are_done_once_and_the_status_says_so(worker: Worker, squares: Squares) -> None:
    started = await operations.start("squares", {"count": 45}, ["things/1"])
    assert (started.status, started.percent_complete) == ("notStarted", 0)
    await worker.turn()
    running = await operations.get(started.id)
    assert running.status == "running"
    assert running.percent_complete < 100
    await worker.run()
    ended = await operations.get(started.id)
    assert (ended.status, ended.percent_complete, ended.results) == ("succeeded", 100, {"squares": 45})
    assert ended.errors == ("13 is unlucky.",)
    assert ended.resources == ("things/1",)
    assert ended.created <= ended.last_updated
    assert squares.squares == {n: n * n for n in range(45)}
    assert sorted(squares.runs) == list(range(23))
    assert [status for status, _ in squares.finished] == ["succeeded"]


async def test_an_operation_without_anything_to_do_succeeds(worker: Worker, squares: Squares) -> None:
    started = await operations.start("squares", {"count": 0})
    await worker.run()
    assert (await operations.get(started.id)).status == "succeeded"


async def test_messages_that_come_again_change_nothing(worker: Worker, squares: Squares) -> None:
    started = await operations.start("squares", {"count": 100})
    for _ in range(3):
        await worker.turn(keep=True)
    await worker.run(60)
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("succeeded", {"squares": 100})
    assert await worker.waiting() == 0


@pytest.mark.parametrize("point", COORDINATOR_POINTS)
async def test_a_coordinator_that_is_cut_off_is_taken_up_by_its_message(
    worker: Worker, squares: Squares, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    started = await operations.start("squares", {"count": 45})
    monkeypatch.setattr(faults, "_armed", {point: "fail"})
    await worker.run()
    assert not faults._armed
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("succeeded", {"squares": 45})


@pytest.mark.parametrize("point", STEP_POINTS)
async def test_a_step_that_is_cut_off_is_taken_up(
    worker: Worker, squares: Squares, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    started = await operations.start("squares", {"count": 45})
    monkeypatch.setattr(faults, "_armed", {point: "fail"})
    await worker.run()
    assert not faults._armed
    assert (await operations.get(started.id)).results == {"squares": 45}


async def test_an_operation_whose_first_message_was_never_sent_is_woken(
    worker: Worker, squares: Squares, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_armed", {"operations.created": "fail"})
    with pytest.raises(DependencyUnavailable):
        await operations.start("squares", {"count": 6}, id="a" * 32)
    assert await worker.waiting() == 0
    monkeypatch.setattr(operations, "_STALLED_SECONDS", -1)
    assert await operations.revive() == 1
    await worker.run()
    assert (await operations.get("a" * 32)).status == "succeeded"


async def test_lost_messages_are_sent_again(
    worker: Worker, squares: Squares, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await operations.start("squares", {"count": 45})
    await worker.lose()
    assert await operations.revive() == 0  # it may be about to move
    monkeypatch.setattr(operations, "_STALLED_SECONDS", -1)
    assert await operations.revive() == 1
    await operations.handle(json.dumps({"operation": started.id, "beat": 0}).encode(), False)
    await worker.lose()  # of the steps, too
    monkeypatch.setattr(operations, "_LOST_SECONDS", -1)
    await operations.revive()
    await worker.turn()
    monkeypatch.setattr(operations, "_LOST_SECONDS", 900)
    await worker.run()
    assert (await operations.get(started.id)).results == {"squares": 45}
    assert await operations.revive() == 0


async def test_an_outage_of_a_dependency_is_waited_for(worker: Worker, squares: Squares) -> None:
    away = DependencyUnavailable("away")
    squares.trouble = {3: [away] * 9}
    squares.plan_trouble = [away] * 7
    squares.finish_trouble = [away] * 6
    started = await operations.start("squares", {"count": 20})
    await worker.run(90)
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("succeeded", {"squares": 20})
    assert squares.runs.count(3) == 10


async def test_a_step_that_always_fails_fails_the_operation_and_the_others_are_done(
    worker: Worker, squares: Squares
) -> None:
    squares.trouble = {1: [ValueError("a bug")] * 99}
    started = await operations.start("squares", {"count": 20})
    await worker.run()
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("failed", {"squares": 18})
    assert ended.percent_complete < 100
    assert ended.errors[0].startswith("Step 1:")
    assert "a bug" not in str(ended.errors)
    assert squares.squares.keys() == set(range(20)) - {2, 3}


async def test_a_plan_that_always_fails_fails_the_operation_and_finishes_it(
    worker: Worker, squares: Squares
) -> None:
    squares.plan_trouble = [ValueError("a bug")] * 99
    started = await operations.start("squares", {"count": 20})
    await worker.run()
    assert (await operations.get(started.id)).status == "failed"
    assert [status for status, _ in squares.finished] == ["failed"]


async def test_an_end_that_always_fails_is_a_failure(worker: Worker, squares: Squares) -> None:
    squares.finish_trouble = [ValueError("a bug")] * 99
    started = await operations.start("squares", {"count": 20})
    await worker.run(60)
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("failed", None)


async def test_a_kind_may_say_that_the_outcome_is_a_failure(worker: Worker, squares: Squares) -> None:
    squares.finish_trouble = [OperationFailed("Nothing was square.", {"squares": 0})]
    started = await operations.start("squares", {"count": 20})
    await worker.run()
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("failed", {"squares": 0})
    assert ended.errors[0] == "Nothing was square."


async def test_a_message_that_kills_its_workers_is_given_up_in_the_end(
    worker: Worker, squares: Squares
) -> None:
    started = await operations.start("squares", {"count": 20})
    message = {"operation": started.id, "beat": 0}
    await operations.handle(json.dumps(message).encode(), False)
    await worker.lose()
    deadly = {"operation": started.id, "step": 2}
    for expected in range(1, 10):
        await operations.give_up(json.dumps(deadly).encode())
        (deadly,) = await worker.peek(queue.STEPS)
        assert deadly["poisoned"] == expected
        await worker.lose()
    await operations.give_up(json.dumps(deadly).encode())
    for number in set(range(10)) - {2}:
        await operations.handle(json.dumps({"operation": started.id, "step": number}).encode(), False)
    await operations.handle(json.dumps({"operation": started.id, "beat": 1}).encode(), False)
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("failed", {"squares": 18})


async def test_a_coordinator_that_kills_its_workers_fails_the_operation(
    worker: Worker, squares: Squares
) -> None:
    started = await operations.start("squares", {"count": 20})
    await worker.lose()
    body = json.dumps({"operation": started.id, "beat": 0, "poisoned": 9}).encode()
    await operations.give_up(body)
    await worker.run()
    assert (await operations.get(started.id)).status == "failed"


async def test_messages_of_somebody_else_are_dropped(worker: Worker) -> None:
    for body in (b"x", b"[]", b"{}", b'{"operation": "1", "step": 1}', b"\xff", b'{"operation": 1}'):
        await operations.handle(body, False)
        await operations.give_up(body)
    await operations.handle(json.dumps({"operation": "0" * 32, "step": 1}).encode(), False)
    await operations.handle(json.dumps({"operation": "0" * 32, "beat": 1}).encode(), False)
    assert await worker.waiting() == 0


async def test_a_canceled_operation_ends_what_runs_and_begins_nothing(
    worker: Worker, squares: Squares
) -> None:
    started = await operations.start("squares", {"count": 5000})
    await operations.handle(json.dumps({"operation": started.id, "beat": 0}).encode(), False)
    await operations.handle(json.dumps({"operation": started.id, "step": 0}).encode(), False)
    assert (await operations.cancel(started.id)).canceling
    assert (await operations.cancel(started.id)).canceling
    assert (await operations.get(started.id)).status == "running"
    await worker.run(60)
    ended = await operations.get(started.id)
    assert (ended.status, ended.results) == ("canceled", {"squares": 2})
    assert squares.runs == [0]
    assert squares.finished[0][0] == "canceled"
    assert (await operations.cancel(started.id)).status == "canceled"


async def test_an_operation_that_has_ended_cannot_be_canceled(worker: Worker, squares: Squares) -> None:
    started = await operations.start("squares", {"count": 2})
    await worker.run()
    with pytest.raises(Conflict):
        await operations.cancel(started.id)


async def test_only_so_many_steps_wait_at_once(worker: Worker, squares: Squares) -> None:
    started = await operations.start("squares", {"count": 5000})
    await operations.handle(json.dumps({"operation": started.id, "beat": 0}).encode(), False)
    assert await worker.waiting() <= 300
    await operations.cancel(started.id)
    await worker.run(60)


async def test_an_operation_may_be_given_its_id_and_started_again(worker: Worker, squares: Squares) -> None:
    id = "0123456789abcdef" * 2
    await operations.start("squares", {"count": 4}, id=id)
    assert (await operations.start("squares", {"count": 4}, id=id)).id == id
    await worker.run()
    assert (await operations.start("squares", {"count": 4}, id=id)).status == "succeeded"
    with pytest.raises(Conflict):
        await operations.start("squares", {"count": 5}, id=id)
    assert squares.runs in ([0, 1], [1, 0])
    assert await operations.revive() == 0


async def test_an_id_that_is_none_is_not_found(worker: Worker) -> None:
    for id in ("0" * 32, "x", "", "../x"):
        with pytest.raises(NotFound):
            await operations.get(id)
        with pytest.raises(NotFound):
            await operations.cancel(id)


async def test_a_large_input_is_kept_and_one_too_large_is_refused(worker: Worker, squares: Squares) -> None:
    text = random.Random(1).randbytes(150_000).hex()
    started = await operations.start("squares", {"count": 2, "text": text})
    await worker.run()
    assert (await operations.get(started.id)).input["text"] == text
    with pytest.raises(InvalidRequest, match="larger"):
        await operations.start("squares", {"count": 2, "text": random.Random(1).randbytes(900_000).hex()})


async def test_ended_operations_are_forgotten_after_their_days(
    worker: Worker, squares: Squares, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await operations.start("squares", {"count": 2})
    await worker.run()
    await operations.remove_old()
    assert (await operations.get(started.id)).status == "succeeded"
    monkeypatch.setattr(settings(), "operation_days", -1)
    assert await operations.remove_old() >= 1
    with pytest.raises(NotFound):
        await operations.get(started.id)
    assert await operations.remove_old() == 0
