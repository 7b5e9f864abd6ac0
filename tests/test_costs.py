"""What a transaction may cost: the table of SQL round trips and blob requests, counted.

Blob requests are counted on the wire of the SDK, SQL statements at the driver. A change that adds a round
trip fails here rather than on a stopwatch.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from azure.core.pipeline.transport import AioHttpTransport
from azurefunctions.extensions.http.fastapi import Request, StreamingResponse
from pydicom.uid import generate_uid

import function_app  # noqa: F401 - registers the endpoints
from functions import http
from shared import container
from shared.dicom.identifiers import DEFAULT_PARTITION, Resource
from shared.dicom.render import Options
from shared.dicom.report import Links
from shared.services import change_feed, delete, frame_cache, rendered, retrieve, store, workitems
from shared.settings import settings
from shared.web.query_params import workitem_request
from tests import reports, slides
from tests import workitems as made
from tests.audit import path_of
from tests.dicom_files import make_file, to_file
from tests.images import compressed


@dataclass
class Costs:
    """Calls made within a ``with counted()`` block."""

    statements: list[str] = field(default_factory=list)
    reads: int = 0
    writes: int = 0
    blob: list[str] = field(default_factory=list)


class Counter:
    """Counts calls while a block is open."""

    def __init__(self) -> None:
        self.open: Costs | None = None

    @contextmanager
    def __call__(self) -> Iterator[Costs]:
        self.open = Costs()
        yield self.open
        self.open = None


@pytest.fixture
async def counted(in_process: None, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """The services in this process, their calls counted."""
    counter = Counter()
    monkeypatch.setattr(settings(), "cleanup_delay_seconds", 300)
    send = AioHttpTransport.send

    async def counting_send(self: Any, request: Any, **options: Any) -> Any:
        if counter.open is not None:
            append = "comp=appendblock" in request.url
            counter.open.blob.append("APPEND" if append else request.method)
        return await send(self, request, **options)

    monkeypatch.setattr(AioHttpTransport, "send", counting_send)
    database = container.database()
    run = database.run

    def counting_run(write: bool, work: Any, *args: Any, **kwargs: Any) -> Any:
        if counter.open is not None:
            counter.open.writes += write
            counter.open.reads += not write
        return run(write, work, *args, **kwargs)

    monkeypatch.setattr(database, "run", counting_run)

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def count_statement(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if counter.open is not None and not statement.startswith(("PRAGMA", "BEGIN")):
            counter.open.statements.append(statement)

    await _store([make_file()])  # everything is loaded and migrated now
    return counter


async def _store(files: list[bytes], replace: bool = False) -> list[store.Outcome]:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async def each() -> AsyncIterator[AsyncIterator[bytes]]:
        for data in files:
            yield chunks(data)

    outcomes = await store.store(each(), DEFAULT_PARTITION, replace=replace)
    assert all(outcome.failure is None for outcome in outcomes), outcomes
    return outcomes


def _files(study: str, series: list[str], count: int) -> list[bytes]:
    return [make_file(study=study, series=uid) for uid in series for _ in range(count)]


async def test_store_costs_one_check_one_transaction_an_upload_each_and_an_append_a_series(
    counted: Counter,
) -> None:
    study, series = generate_uid(), [generate_uid(), generate_uid()]
    await _store(_files(study, series, 1))
    with counted() as costs:
        await _store(_files(study, series, 5))
    assert (costs.reads, costs.writes) == (1, 1)
    assert costs.blob.count("APPEND") == 2
    assert costs.blob.count("PUT") == 10
    assert len(costs.blob) == 12
    assert len(costs.statements) <= 19  # the check, and the transaction of two series


async def test_the_first_store_of_a_series_makes_its_pack(counted: Counter) -> None:
    with counted() as costs:
        await _store(_files(generate_uid(), [generate_uid()], 5))
    assert (costs.reads, costs.writes) == (1, 1)
    assert (costs.blob.count("APPEND"), costs.blob.count("PUT")) == (1, 6)


async def test_refused_duplicates_are_not_uploaded(counted: Counter) -> None:
    data = make_file()
    await _store([data])
    with counted() as costs, pytest.raises(AssertionError):
        await _store([data])
    assert (costs.reads, costs.writes, costs.blob) == (1, 0, [])


async def test_retrieving_an_instance_costs_one_statement_and_one_read(counted: Counter) -> None:
    (outcome,) = await _store([make_file()])
    with counted() as costs:
        found = await retrieve.find(_resource(outcome, 3))
        async for payload in retrieve.read_instances(found):
            assert b"".join([chunk async for chunk in payload.chunks])
    assert (len(costs.statements), costs.blob) == (1, ["GET"])


async def test_retrieving_native_frames_costs_one_statement_and_one_ranged_read(counted: Counter) -> None:
    (outcome,) = await _store([make_file(frames=20)])
    with counted() as costs:
        (found,) = await retrieve.find(_resource(outcome, 3))
        frames = [frame async for frame in retrieve.read_frames(found, [3, 4, 5], found.transfer_syntax)]
    assert len(frames) == 3
    assert (len(costs.statements), costs.blob) == (1, ["GET"])


async def test_retrieving_encapsulated_frames_costs_a_read_more_for_the_frame_table(counted: Counter) -> None:
    (outcome,) = await _store([make_file(frames=20, encapsulated=True)])
    with counted() as costs:
        (found,) = await retrieve.find(_resource(outcome, 3))
        frames = [frame async for frame in retrieve.read_frames(found, [7], found.transfer_syntax)]
    assert len(frames) == 1
    assert (len(costs.statements), costs.blob) == (1, ["GET", "GET"])


@pytest.mark.parametrize("positions", [False, True])
async def test_a_frame_of_a_slide_costs_as_much_as_any_other(counted: Counter, positions: bool) -> None:
    count = 20_000 if positions else 100_000  # with positions the metadata has a blob of its own
    (outcome,) = await _store([b"".join(slides.slide(count, positions=positions))])
    for number in (1, count):
        with counted() as costs:
            (found,) = await retrieve.find(_resource(outcome, 3))
            payloads = retrieve.read_frames(found, [number], found.transfer_syntax)
            data = [b"".join([chunk async for chunk in payload.chunks]) async for payload in payloads]
        assert data == [slides.tile(number)]
        assert (len(costs.statements), costs.blob) == (1, ["GET", "GET"])


async def _answer(counted: Counter, path: str, query: str = "", **headers: str) -> tuple[Costs, Any, bytes]:
    """What a GET below the base costs, all of it, with what is done after the answer; status and body."""
    endpoint, parameters = next(
        (endpoint, found.groupdict())
        for endpoint in http.ENDPOINTS
        for template in [re.sub(r"{(\w+)(:[^}]*)?}", r"(?P<\1>[^/]+)", endpoint.template)]
        if "GET" in endpoint.methods and (found := re.fullmatch(template, f"v2/{path}"))
    )
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/v2/{path}",
        "query_string": query.encode(),
        "path_params": parameters,
        "headers": [(b"host", b"server"), *((k.lower().encode(), v.encode()) for k, v in headers.items())],
        "scheme": "http",
        "server": ("server", 80),
    }
    with counted() as costs:
        response = await endpoint.handler(Request(scope))
        if isinstance(response, StreamingResponse):
            body = b"".join([bytes(chunk) async for chunk in response.body_iterator])  # type: ignore[arg-type]
        else:
            body = bytes(response.body)
        await frame_cache.written()
    return costs, response, body


@pytest.mark.parametrize("target", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"])
async def test_a_transcoded_frame_costs_its_sources_once_and_one_read_from_then_on(
    counted: Counter, target: str
) -> None:
    file, _ = compressed(3)
    (outcome,) = await _store([file])
    path = f"{_path(outcome)}/frames/2"
    accept = f'multipart/related; type="application/octet-stream"; transfer-syntax={target}'
    if target.endswith("80"):
        accept = f'multipart/related; type="image/jls"; transfer-syntax={target}'
    made, response, body = await _answer(counted, path, Accept=accept)
    assert len(made.statements) == 1
    assert made.blob == ["GET"] * 4 + ["PUT"], (
        "the cache, the metadata, the frame table, the frame; the cache"
    )
    had, _, again = await _answer(counted, path, Accept=accept)
    assert (len(had.statements), had.blob, again) == (1, ["GET"], body)
    tag = {"Accept": accept, "If-None-Match": response.headers["ETag"]}
    unchanged, response, _ = await _answer(counted, path, **tag)
    assert (response.status_code, len(unchanged.statements), unchanged.blob) == (304, 1, [])


@pytest.mark.parametrize("of", ["rendered", "thumbnail", "series/thumbnail", "study/thumbnail", "wado"])
async def test_an_image_costs_metadata_and_frame_once_and_one_read_from_then_on(
    counted: Counter, of: str
) -> None:
    outcomes = await _store(_files(generate_uid(), [generate_uid()], 3))
    path, query = _path(outcomes[1]), ""
    if of == "wado":
        path, query = "wado", _wado(outcomes[1], contentType="image/jpeg", region="0,0,0.5,0.5")
    elif of.startswith("study"):
        path = f"{path.partition('/series')[0]}/thumbnail"
    elif of.startswith("series"):
        path = f"{path.partition('/instances')[0]}/thumbnail"
    else:
        path = f"{path}/{of}"
    made, response, body = await _answer(counted, path, query, Accept="image/jpeg")
    assert len(made.statements) == 1
    assert made.blob == ["GET"] * 3 + ["PUT"], "cache, metadata, frame; cache"
    had, _, again = await _answer(counted, path, query, Accept="image/jpeg")
    assert (len(had.statements), had.blob, again) == (1, ["GET"], body)
    tag = {"Accept": "image/jpeg", "If-None-Match": response.headers["ETag"]}
    unchanged, response, _ = await _answer(counted, path, query, **tag)
    assert (response.status_code, len(unchanged.statements), unchanged.blob) == (304, 1, [])


async def test_a_window_costs_metadata_and_frame_every_time(counted: Counter) -> None:
    (outcome,) = await _store([make_file()])
    for _ in range(2):
        path, query = f"{_path(outcome)}/rendered", "window=40,400,linear"
        costs, _, _ = await _answer(counted, path, query, Accept="image/jpeg")
        assert (len(costs.statements), costs.blob) == (1, ["GET", "GET"])


async def test_a_zip_archive_costs_one_statement_and_one_read_an_instance(counted: Counter) -> None:
    outcomes = await _store(_files(generate_uid(), [generate_uid(), generate_uid()], 4))
    path = _path(outcomes[0]).partition("/series")[0]
    costs, _, body = await _answer(counted, path, Accept="application/zip")
    assert (len(costs.statements), costs.blob) == (1, ["GET"] * 8)
    assert body.startswith(b"PK")


async def test_an_instance_by_wado_uri_costs_as_much_as_any_other_way(counted: Counter) -> None:
    (outcome,) = await _store([make_file()])
    costs, _, body = await _answer(counted, "wado", _wado(outcome, contentType="application/dicom"))
    assert (len(costs.statements), costs.blob, body[128:132]) == (1, ["GET"], b"DICM")


async def test_bulk_data_costs_one_statement_its_index_and_one_read(counted: Counter) -> None:
    (outcome,) = await _store([make_file()])
    path = f"{_path(outcome)}/bulkdata/7FE00010"
    costs, _, body = await _answer(counted, path, Accept="application/octet-stream")
    assert (len(costs.statements), costs.blob, len(body)) == (1, ["GET", "GET"], 48)


async def test_one_frame_of_an_instance_costs_the_same_by_either_way_of_asking(counted: Counter) -> None:
    (outcome,) = await _store([make_file(frames=4)])
    for accept in ("*/*", "application/octet-stream"):
        costs, _, _ = await _answer(counted, f"{_path(outcome)}/frames/3", Accept=accept)
        assert (len(costs.statements), costs.blob) == (1, ["GET"])


async def test_metadata_of_a_series_costs_one_statement_and_two_reads_however_it_was_stored(
    counted: Counter,
) -> None:
    study, series = generate_uid(), generate_uid()
    for file in _files(study, [series], 40):
        await _store([file])
    with counted() as costs:
        found = await retrieve.find(Resource(DEFAULT_PARTITION, study, series))
        documents = [d async for d in retrieve.read_metadata(found, "http://server/v2")]
    assert len(documents) == 40
    assert len(costs.statements) == 1
    assert len(costs.blob) <= 2


async def test_metadata_of_a_study_costs_one_statement_and_two_reads_a_series(counted: Counter) -> None:
    study, series = generate_uid(), [generate_uid() for _ in range(3)]
    await _store(_files(study, series, 3))
    with counted() as costs:
        found = await retrieve.find(Resource(DEFAULT_PARTITION, study))
        assert len([d async for d in retrieve.read_metadata(found, "http://server/v2")]) == 9
    assert len(costs.statements) == 1
    assert len(costs.blob) <= 2 * len(series)


async def test_a_thumbnail_of_a_study_and_a_page_cost_no_more_than_their_instance(counted: Counter) -> None:
    study, series = generate_uid(), generate_uid()
    files = [make_file(study, series, InstanceNumber=number) for number in range(9)]
    await _store(files)
    with counted() as costs:
        stored, frame = rendered.representative(await retrieve.find(Resource(DEFAULT_PARTITION, study)))
        images = rendered.render_frames(stored, [frame], "image/jpeg", Options())
        assert [image async for image in images]
    assert (stored.instance_number, len(costs.statements), len(costs.blob)) == (4, 1, 2)
    page = reports.basic_text()
    await _store([to_file(page)])
    with counted() as costs:
        found = await retrieve.find(Resource(DEFAULT_PARTITION, page.StudyInstanceUID))
        assert await rendered.read_document(found[0]) is None
        assert await rendered.render_report(found[0], Links("http://server/v2", "http://server/v2/i"))
    assert (len(costs.statements), costs.blob) == (1, ["GET"])


async def test_delete_costs_one_transaction_and_no_blob_request(counted: Counter) -> None:
    study = generate_uid()
    await _store(_files(study, [generate_uid()], 3))
    with counted() as costs:
        await delete.delete(Resource(DEFAULT_PARTITION, study))
    assert (costs.reads, costs.writes, costs.blob) == (0, 1, [])


async def test_the_change_feed_costs_one_statement(counted: Counter) -> None:
    with counted() as costs:
        assert await change_feed.read(0, 100, None, None, include_metadata=False)
    assert (len(costs.statements), costs.blob) == (1, [])


def _resource(outcome: store.Outcome, level: int) -> Resource:
    key = outcome.key
    assert key is not None
    return Resource(key.partition, key.study, key.series, key.instance if level == 3 else "")


def _path(outcome: store.Outcome) -> str:
    assert outcome.key is not None
    return path_of(outcome.key).lstrip("/")


def _wado(outcome: store.Outcome, **parameters: str) -> str:
    key = outcome.key
    assert key is not None
    uids = {"studyUID": key.study, "seriesUID": key.series, "objectUID": key.instance}
    return urlencode({"requestType": "WADO", **uids, **parameters})


async def test_a_transaction_of_a_workitem_costs_one_of_sql_and_a_search_one_statement(
    counted: Counter,
) -> None:
    uid, owner = str(generate_uid()), made.OWNER
    claim = made.data_set(ProcedureStepState="IN PROGRESS", TransactionUID=owner)
    with counted() as create:
        await workitems.create(DEFAULT_PARTITION, uid, made.new())
    with counted() as read:
        await workitems.retrieve(DEFAULT_PARTITION, uid)
    with counted() as state:
        await workitems.change_state(DEFAULT_PARTITION, uid, claim)
    with counted() as update:
        await workitems.update(DEFAULT_PARTITION, uid, owner, made.LABEL)
    asked = workitem_request(DEFAULT_PARTITION, [("PatientID", "P1"), ("orderby", "-ProcedureStepState")])
    with counted() as search:
        page = await workitems.search(asked.query)
    assert [one["00080018"]["Value"] for one in page.results] == [[uid]]
    assert [(cost.writes, cost.reads) for cost in (create, state, update)] == [(1, 0)] * 3
    assert [(cost.writes, cost.reads, len(cost.statements)) for cost in (read, search)] == [(0, 1, 1)] * 2
    assert not any(cost.blob for cost in (create, read, state, update, search))
