"""Steps and ends of exports in the test's own process: repeated, at once, cut off, too late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid

from shared import container, faults
from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey, Resource
from shared.errors import DependencyUnavailable, InvalidRequest
from shared.operations.operation import MAX_STEPS
from shared.security.secrets import SecretNotFound
from shared.services import delete, export, operations, store
from shared.services.export import Form, Source
from shared.services.operations import Operation, OperationFailed, Tally
from shared.settings import settings
from shared.sql import instances
from tests.conftest import NewSqlUrl
from tests.dicom_files import make_file
from tests.export_target import Target
from tests.test_export import identifier

CACHED = (
    settings,
    container.database,
    container.blob_store,
    container.table_service,
    container.operation_table,
    container.operation_queue,
    container.secret_store,
)


@pytest.fixture
async def services(
    azurite: Any, tmp_path: Path, new_sql_url: NewSqlUrl, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[pytest.MonkeyPatch]:
    """The services in this process on a database of their own."""
    monkeypatch.setenv("AzureWebJobsStorage", azurite.connection_string)
    monkeypatch.setenv("DICOM_SQL_URL", new_sql_url("export"))
    monkeypatch.setenv("DICOM_SECRETS_FOLDER", str(tmp_path / "secrets"))
    monkeypatch.setenv("DICOM_ORPHAN_GRACE_SECONDS", "0")
    for cached in CACHED:
        cached.cache_clear()
    await container.operation_queue().prepare()
    yield monkeypatch
    await container.blob_store().close()
    await container.table_service().close()
    await container.operation_queue().close()
    container.database().close()
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture
def target(azurite: Any) -> Target:
    return Target(azurite.connection_string)


async def keep(*files: bytes, replaces: bool = False) -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def each() -> AsyncIterator[AsyncIterator[bytes]]:
        for data in files:
            yield chunks(data)

    outcomes = await store.store(each(), DEFAULT_PARTITION, replace=replaces)
    assert all(outcome.failure is None for outcome in outcomes), outcomes


async def started(target: Target, *studies: str, form: Form | None = None) -> Operation:
    source = Source(DEFAULT_PARTITION, tuple((study,) for study in studies))
    return await export.start(source, target.sas(), form or Form())


async def planned(operation: Operation) -> list[list[Any]]:
    steps: list[list[Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await export.plan(operation, cursor)
        steps += page.steps
        cursor = page.cursor
    return steps


async def log_of(operation: Operation, target: Target) -> list[dict[str, Any]]:
    data = await asyncio.to_thread(lambda: target.blobs()[f"{operation.id}/errors.log"])
    return [json.loads(line) for line in data.splitlines()]


async def gone(operation: Operation) -> bool:
    """Whether nothing is kept for an operation any more."""
    try:
        await container.secret_store().read(f"export-{operation.id}")
    except SecretNotFound:
        page, _ = await container.blob_store().list_page("operations", f"{operation.id}/")
        return not page
    return False


async def test_steps_have_up_to_16_instances_and_every_instance_is_in_one(
    services: Any, target: Target
) -> None:
    one, two = generate_uid(), generate_uid()
    await keep(*(make_file(study=one, frames=0) for _ in range(130)))
    await keep(*(make_file(study=two, frames=0) for _ in range(90)))
    services.setattr(export, "_PAGE", 60)
    operation = await started(target, one, two, "1.2.3")
    steps = await planned(operation)
    assert max(map(len, steps)) == 16
    items = [item for step in steps for item in step]
    assert len(items) == 221
    assert len({tuple(item) for item in items if isinstance(item, list)}) == 220
    assert {"missing": "1.2.3"} in items
    services.setattr(export, "_STEP_BYTES", 1)
    page = await export.plan(operation, "")
    assert len(page.steps) == MAX_STEPS
    assert [len(step) for step in await planned(operation)] == [1] * 221
    await export.finish(operation, Tally())


async def test_a_step_that_runs_several_times_at_once_has_one_outcome_and_one_line_a_failure(
    services: Any, target: Target
) -> None:
    study = generate_uid()
    files = [make_file(study=study) for _ in range(6)]
    await keep(*files)
    operation = await started(target, study)
    (items,) = await planned(operation)
    key = InstanceKey(DEFAULT_PARTITION, *identifier(files[2]).split("/"))

    async def later() -> Tally:
        await delete.delete(Resource(key.partition, key.study, key.series, key.instance))
        return await export.step(operation, 0, items)

    tallies = await asyncio.gather(
        export.step(operation, 0, items), later(), export.step(operation, 0, items)
    )
    assert len(set(tallies)) == 1
    tally = tallies[0]
    assert tally == await export.step(operation, 0, items)
    results = await export.finish(operation, tally)
    assert results["exported"] + results["skipped"] == 6
    logged = await log_of(operation, target)
    assert len(logged) == results["skipped"] <= 1
    assert await gone(operation)


async def test_an_instance_deleted_after_planning_is_skipped_and_logged(
    services: Any, target: Target
) -> None:
    study = generate_uid()
    files = [make_file(study=study) for _ in range(2)]
    await keep(*files)
    operation = await started(target, study)
    (items,) = await planned(operation)
    await delete.delete(Resource(DEFAULT_PARTITION, *identifier(files[0]).split("/")))
    tally = await export.step(operation, 0, items)
    assert (tally.done, tally.failed, tally.errors) == (1, 1, ("The instance has been deleted.",))
    assert (await export.finish(operation, tally))["skipped"] == 1
    (line,) = await log_of(operation, target)
    assert (line["identifier"], line["error"]) == (identifier(files[0]), "The instance has been deleted.")


async def test_an_instance_replaced_while_it_is_copied_is_copied_anew(services: Any, target: Target) -> None:
    file = make_file()
    await keep(file)
    study = identifier(file).split("/")[0]
    operation = await started(target, study)
    key = InstanceKey(DEFAULT_PARTITION, *identifier(file).split("/"))
    (stored,) = await container.database().read(instances.find_instances, Resource(DEFAULT_PARTITION, study))
    secret = await export._secret(operation)
    async with export._opened(export._address(operation, secret)) as destination:
        stale = replace(stored, version="0" * 20)
        outcome = await export._export_one(operation, key, stale, destination, None)
        assert outcome.error == ""
        await container.blob_store().delete("dicom", export.names.file_name(key, stored.version))
        outcome = await export._export_one(operation, key, stored, destination, None)
        assert "missing in Blob Storage" in outcome.error
    assert target.blobs()[f"{operation.id}/results/{identifier(file)}.dcm"] == file
    await export.finish(operation, Tally())


async def test_an_end_that_is_cut_off_or_comes_twice_leaves_the_log_as_it_is(
    services: Any, target: Target
) -> None:
    operation = await started(target, "1.2.3", "1.2.4")
    tally = Tally()
    for number, items in enumerate(await planned(operation)):
        tally += await export.step(operation, number, items)
    assert tally.failed == 2
    services.setitem(faults._armed, "export.log_written", "fail")
    with pytest.raises(DependencyUnavailable):
        await export.finish(operation, tally)
    assert not await gone(operation)
    before = await log_of(operation, target)
    assert {line["identifier"] for line in before} == {"1.2.3", "1.2.4"}
    record = export.names.operation_blob(operation.id, "step-00000000")
    await container.blob_store().delete("operations", record)  # as if it was cut off while it tidied up
    first, second = await asyncio.gather(export.finish(operation, tally), export.finish(operation, tally))
    assert first == second == await export.finish(operation, tally)
    assert first["errorHref"] == f"{target.client.url}/{operation.id}/errors.log"
    assert await log_of(operation, target) == before
    assert await gone(operation)


async def test_a_step_that_comes_after_the_end_does_nothing(services: Any, target: Target) -> None:
    file = make_file()
    await keep(file)
    operation = await started(target, identifier(file).split("/")[0])
    (items,) = await planned(operation)
    await export.finish(operation, Tally())
    assert await export.step(operation, 0, items) == Tally(skipped=1, errors=("The export has ended.",))
    assert (await export.plan(operation, "")).steps == []
    assert list(target.blobs()) == [f"{operation.id}/errors.log"]


async def test_a_destination_that_refuses_meanwhile_fails_the_operation_with_a_reason(
    services: Any, target: Target
) -> None:
    file = make_file()
    await keep(file)
    operation = await started(target, identifier(file).split("/")[0])
    (items,) = await planned(operation)
    target.client.delete_container()
    tally = await export.step(operation, 0, items)
    assert (tally.done, tally.failed) == (0, 1)
    assert tally.errors == ("The destination's container does not exist.",)
    with pytest.raises(OperationFailed, match="does not exist") as raised:
        await export.finish(operation, tally)
    assert "sig" not in str(raised.value)
    assert raised.value.results == {"exported": 0, "skipped": 1}
    assert await gone(operation)


async def test_a_destination_that_does_not_answer_is_waited_for(services: Any, target: Target) -> None:
    file = make_file()
    await keep(file)
    operation = await started(target, identifier(file).split("/")[0])
    (items,) = await planned(operation)
    nowhere = replace(operation, input=operation.input | {"uri": "http://127.0.0.1:9/account/c"})
    with pytest.raises(DependencyUnavailable):
        await export.step(nowhere, 0, items)
    with pytest.raises(DependencyUnavailable):
        await export.finish(nowhere, Tally())
    assert not await gone(operation)
    assert (await export.step(operation, 0, items)).done == 1
    await export.finish(operation, Tally())


async def test_a_start_that_fails_keeps_no_secret(services: Any, target: Target) -> None:
    async def fail(*_: Any, **__: Any) -> Operation:
        raise DependencyUnavailable("away")

    services.setattr(operations, "start", fail)
    with pytest.raises(DependencyUnavailable):
        await started(target, "1.2.3")
    assert [name async for name, _ in container.secret_store().names()] == []
    with pytest.raises(InvalidRequest):
        await export.start(Source(DEFAULT_PARTITION, (("1",),)), target.sas("r"), Form())


async def test_secrets_left_behind_are_swept_and_those_of_running_exports_are_not(
    services: Any, target: Target
) -> None:
    running = await started(target, "1.2.3")
    services.setitem(faults._armed, "export.secret_saved", "fail")
    with pytest.raises(DependencyUnavailable):  # a crash: nobody cleans up
        await started(target, "1.2.3")
    await container.secret_store().save("of-others", "x")
    left = {name async for name, _ in container.secret_store().names()}
    assert len(left) == 3
    assert await export.sweep() == 1
    assert {name async for name, _ in container.secret_store().names()} == {
        f"export-{running.id}",
        "of-others",
    }
    services.setenv("DICOM_ORPHAN_GRACE_SECONDS", "3600")
    settings.cache_clear()
    assert await export.sweep() == 0


async def test_pseudonyms_are_the_same_in_every_step_and_differ_between_operations(
    services: Any, target: Target
) -> None:
    study = generate_uid()
    await keep(*(make_file(study=study) for _ in range(2)))
    found = []
    for _ in range(2):
        operation = await started(target, study, form=Form(options=()))
        (items,) = await planned(operation)
        for number, item in enumerate(items):
            assert (await export.step(operation, number, [item])).done == 1
        await export.finish(operation, Tally(2))
        names = [name.split("/")[2] for name in target.blobs() if name.startswith(f"{operation.id}/results/")]
        assert len(set(names)) == 1
        found.append(names[0])
    assert found[0] != found[1] != study
