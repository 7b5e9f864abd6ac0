"""The cache of frames: made once, served whole or not at all, kept within a bound, gone with the instance."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from pydicom.uid import JPEGLSLossless, RLELossless

from shared import container
from shared.blobs import names
from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey, Resource
from shared.errors import DependencyUnavailable, NotAcceptable
from shared.services import cleanup, delete, frame_cache, retrieve, store, transcoded
from shared.settings import settings
from shared.sql.instances import StoredInstance
from tests import audit
from tests.audit import key_of, path_of
from tests.conftest import Server, StartServer
from tests.dicom_files import make_file
from tests.images import compressed

OCTETS = {"Accept": "application/octet-stream"}


# --- on the wire -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Server:
    return start_server(
        own_storage=True,
        DICOM_CLEANUP_SCHEDULE="0 0 0 1 1 *",
        DICOM_RECONCILE_SCHEDULE="0 0 0 1 1 *",
    )


@pytest.fixture
def cache(server: Server) -> Iterator[ContainerClient]:
    with audit.container(server, names.CACHE) as client:
        yield client


def eventually(found: Callable[[], list[str]], count: int) -> list[str]:
    """What is found once it is ``count`` names: entries are written after the answer."""
    deadline = time.monotonic() + 10
    while len(result := found()) != count:
        assert time.monotonic() < deadline, result
        time.sleep(0.02)
    return result


def entries(cache: ContainerClient, file: bytes) -> list[str]:
    """Names of what is kept of the instance that a file holds."""
    wanted = key_of(file)
    blobs = ((blob.name, names.parse_cached_name(blob.name)) for blob in cache.list_blobs())
    return sorted(name for name, parsed in blobs if parsed and parsed[0] == wanted)


def get(server: Server, file: bytes, path: str, status: int = 200, **headers: str) -> bytes:
    response = audit.HTTP.get(f"{server.v2}{path_of(key_of(file))}{path}", headers=OCTETS | headers)
    assert response.status_code == status, response.text
    return response.content


def entry(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + data).digest() + data


def test_a_transcoded_frame_is_kept_and_comes_from_there_the_next_time(
    server: Server, cache: ContainerClient
) -> None:
    file, pixels = compressed()
    audit.send(server, file).raise_for_status()
    assert get(server, file, "/frames/2") == pixels[1].tobytes()
    (name,) = eventually(lambda: entries(cache, file), 1)
    assert name.endswith("/2/1.2.840.10008.1.2.1")
    assert cache.download_blob(name).readall() == entry(name, pixels[1].tobytes())
    cache.upload_blob(name, entry(name, b"kept"), overwrite=True)
    assert get(server, file, "/frames/2") == b"kept"
    assert get(server, file, "/frames/1") == pixels[0].tobytes()
    assert get(server, file, "/frames/1,2", 406)
    both = audit.HTTP.get(
        f"{server.v2}{path_of(key_of(file))}/frames/1,2",
        headers={"Accept": "multipart/related; type=application/octet-stream"},
    )
    assert pixels[1].tobytes() in both.content, "several frames come out of one stream"


@pytest.mark.parametrize(
    "damage",
    [
        lambda name, data: b"",
        lambda name, data: entry(name, data)[:20],
        lambda name, data: entry(name, data)[:-1],
        lambda name, data: entry(name, data)[:40] + b"\1" + entry(name, data)[41:],
        lambda name, data: entry(name.replace("/1/1.2", "/2/1.2"), data),
    ],
    ids=["empty", "no digest", "cut", "changed", "of another frame"],
)
def test_a_damaged_entry_is_not_served_but_made_again(
    server: Server, cache: ContainerClient, damage: Callable[[str, bytes], bytes]
) -> None:
    file, pixels = compressed()
    data = pixels[0].tobytes()
    audit.send(server, file).raise_for_status()
    assert get(server, file, "/frames/1") == data
    (name,) = eventually(lambda: entries(cache, file), 1)
    cache.upload_blob(name, damage(name, data), overwrite=True)
    assert get(server, file, "/frames/1") == data
    eventually(lambda: [name] if cache.download_blob(name).readall() == entry(name, data) else [], 1)


def test_only_what_takes_long_is_kept(server: Server, cache: ContainerClient) -> None:
    native, fast = make_file(), compressed(syntax=RLELossless)[0]
    slow = compressed(syntax=JPEGLSLossless)[0]
    for file in (native, fast, slow):
        audit.send(server, file).raise_for_status()
        get(server, file, "/frames/1")
        get(server, file, "/frames/1", Accept="*/*")
    get(server, native, "/frames/1", Accept="image/dicom-rle")
    eventually(lambda: entries(cache, slow), 1)
    assert entries(cache, native) == entries(cache, fast) == []
    get(server, native, "/frames/1", Accept="image/jls")
    assert eventually(lambda: entries(cache, native), 1)[0].endswith(JPEGLSLossless)


def test_rendered_images_and_thumbnails_are_kept_but_not_windows_somebody_tries_out(
    server: Server, cache: ContainerClient
) -> None:
    file = make_file()
    audit.send(server, file).raise_for_status()
    jpeg = {"Accept": "image/jpeg"}
    first = get(server, file, "/rendered", **jpeg)
    get(server, file, "/thumbnail", **jpeg)
    get(server, file, "/rendered?window=40,400,linear", **jpeg)
    found = eventually(lambda: entries(cache, file), 2)
    assert all("/1/rendered/" in name for name in found)
    assert get(server, file, "/rendered", **jpeg) == first
    assert get(server, file, "/frames/1/rendered", **jpeg) == first
    assert len(entries(cache, file)) == 2


def test_after_a_replacement_the_new_pixels_come_and_nothing_of_the_old_is_left(
    server: Server, cache: ContainerClient
) -> None:
    file, pixels = compressed()
    key = key_of(file)
    audit.send(server, file).raise_for_status()
    assert get(server, file, "/frames/1") == pixels[0].tobytes()
    old = eventually(lambda: entries(cache, file), 1)
    same = {
        "SOPInstanceUID": key.instance,
        "StudyInstanceUID": key.study,
        "SeriesInstanceUID": key.series,
    }
    other, others = compressed(1, JPEGLSLossless, PatientName="Other", **same)
    audit.send(server, other, method="PUT").raise_for_status()
    assert get(server, other, "/frames/1") == others[0].tobytes()
    eventually(lambda: entries(cache, file), 2)
    audit.clean(server)
    (left,) = entries(cache, file)
    assert left not in old


def test_after_a_delete_and_its_clean_up_nothing_is_left(server: Server, cache: ContainerClient) -> None:
    series = key_of(make_file())
    files = [
        compressed(2, StudyInstanceUID=series.study, SeriesInstanceUID=series.series)[0] for _ in range(3)
    ]
    audit.send(server, *files).raise_for_status()
    for file in files:
        get(server, file, "/frames/1")
        get(server, file, "/frames/2")
        eventually(lambda file=file: entries(cache, file), 2)  # type: ignore[misc]
    for file in files[:2]:
        audit.HTTP.delete(f"{server.v2}{path_of(key_of(file))}").raise_for_status()
    get(server, files[0], "/frames/1", 404)
    audit.clean(server)
    assert entries(cache, files[0]) == entries(cache, files[1]) == []
    assert len(entries(cache, files[2])) == 2
    audit.audit(server)


def test_many_clients_at_once_get_the_same_frame(server: Server, cache: ContainerClient) -> None:
    file, pixels = compressed()
    audit.send(server, file).raise_for_status()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: get(server, file, "/frames/1"), range(48)))
    assert set(answers) == {pixels[0].tobytes()}
    eventually(lambda: entries(cache, file), 1)


def test_a_frame_that_the_client_has_is_not_sent_again(server: Server) -> None:
    file, _ = compressed()
    audit.send(server, file).raise_for_status()
    url = f"{server.v2}{path_of(key_of(file))}/frames"
    for accept in ("application/octet-stream", "multipart/related; type=application/octet-stream"):
        tag = audit.HTTP.get(f"{url}/1", headers={"Accept": accept}).raise_for_status().headers["ETag"]
        again = audit.HTTP.get(f"{url}/1", headers={"Accept": accept, "If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    missing = audit.HTTP.get(f"{url}/3", headers=OCTETS | {"If-None-Match": "*"})
    assert missing.status_code == 404


# --- in this process ---------------------------------------------------------------------------------


@pytest.fixture
async def in_process(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache of its own, which the timers of other servers on the same storage do not empty."""
    monkeypatch.setattr(names, "CACHE", f"cache-{uuid.uuid4().hex}")
    monkeypatch.setattr(names, "CONTAINERS", (names.CACHE,))
    await container.blob_store().prepare()


async def kept(**attributes: Any) -> tuple[StoredInstance, list[Any]]:
    """A stored instance of two frames."""
    file, pixels = compressed(**attributes)

    async def chunks() -> AsyncIterator[bytes]:
        yield file

    async def each() -> AsyncIterator[AsyncIterator[bytes]]:
        yield chunks()

    (outcome,) = await store.store(each(), DEFAULT_PARTITION)
    assert outcome.failure is None
    assert outcome.key is not None
    (stored,) = await retrieve.find(_resource(outcome.key))
    return stored, pixels


def _resource(key: InstanceKey) -> Resource:
    return Resource(key.partition, key.study, key.series, key.instance)


async def listed(stored: StoredInstance) -> list[str]:
    await frame_cache.written()
    prefix = names.cached_prefix(stored.key, stored.version)
    return [item.name for item in (await container.blob_store().list_page(names.CACHE, prefix))[0]]


async def test_however_many_ask_at_once_it_is_made_once(in_process: None) -> None:
    stored, _ = await kept()
    calls = 0
    begun, release = asyncio.Event(), asyncio.Event()

    async def make() -> bytes:
        nonlocal calls
        calls += 1
        begun.set()
        await release.wait()
        return b"made"

    asking = [asyncio.create_task(frame_cache.obtain(stored, "1/x", make)) for _ in range(20)]
    await begun.wait()
    asking[0].cancel()  # a client that goes away takes nothing from the others
    release.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers[1:] == [b"made"] * 19
    assert await frame_cache.obtain(stored, "1/x", make) == b"made", "while it is written, too"
    assert len(await listed(stored)) == 1
    assert await frame_cache.obtain(stored, "1/x", make) == b"made"
    assert calls == 1


async def test_a_failure_reaches_all_who_wait_and_is_not_kept(in_process: None) -> None:
    stored, _ = await kept()
    calls = 0

    async def make() -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        if calls == 1:
            raise NotAcceptable("It cannot be had.")
        return b"made"

    asking = [frame_cache.obtain(stored, "1/x", make) for _ in range(5)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["It cannot be had."] * 5
    assert await listed(stored) == []
    assert await frame_cache.obtain(stored, "1/x", make) == b"made"


async def test_a_frame_that_cannot_be_written_is_served_all_the_same(
    in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, pixels = await kept()

    async def upload(*_: Any) -> None:
        raise DependencyUnavailable("no room")

    with monkeypatch.context() as patched:
        patched.setattr(container.blob_store(), "upload", upload)
        for _ in range(2):
            _, payload = await transcoded.open_frame(stored, 1, ["1.2.840.10008.1.2.1"])
            assert await retrieve.held(payload, 1 << 20) == pixels[0].tobytes()
            assert await listed(stored) == []


async def test_without_its_container_frames_come_and_the_clean_up_works(
    in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "CACHE", "no-such-container")
    stored, pixels = await kept()
    _, payload = await transcoded.open_frame(stored, 2, ["1.2.840.10008.1.2.1"])
    assert await retrieve.held(payload, 1 << 20) == pixels[1].tobytes()
    await frame_cache.written()
    await delete.delete(_resource(stored.key))
    assert await cleanup.clean_deleted() == 1
    assert await frame_cache.evict() == 0


@pytest.mark.parametrize("delay", ["0", "3600"])
async def test_an_entry_written_after_the_clean_up_is_taken_back(
    in_process: None, monkeypatch: pytest.MonkeyPatch, delay: str
) -> None:
    monkeypatch.setenv("DICOM_CLEANUP_DELAY_SECONDS", delay)
    settings.cache_clear()
    stored, _ = await kept()
    deleted = asyncio.Event()

    async def make() -> bytes:
        await deleted.wait()
        return b"late"

    asking = asyncio.create_task(frame_cache.obtain(stored, "1/x", make))
    await asyncio.sleep(0.05)
    await delete.delete(_resource(stored.key))
    cleaned = await cleanup.clean_deleted()
    deleted.set()
    assert await asking == b"late", "a request that began before the delete may finish"
    if delay == "0":
        assert cleaned == 1
        assert await listed(stored) == []
        return
    assert (cleaned, len(await listed(stored))) == (0, 1)
    monkeypatch.setattr(cleanup, "timestamp", lambda *_: "9999")
    assert await cleanup.clean_deleted() == 1
    assert await listed(stored) == []


async def test_the_timer_removes_entries_of_versions_that_are_no_more(in_process: None) -> None:
    stored, _ = await kept()
    await frame_cache.obtain(stored, "1/x", _bytes(100))
    dead = names.cached_name(stored.key, names.new_version(), "1/1/x")
    for name in (dead, "something else"):
        await container.blob_store().upload(names.CACHE, name, b"left by a process that was killed", {})
    assert len(await listed(stored)) == 1
    assert await frame_cache.evict() >= 2
    page, _ = await container.blob_store().list_page(names.CACHE)
    assert [item.name for item in page] == await listed(stored)


async def test_the_oldest_entries_go_until_the_others_are_within_the_bound(
    in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, _ = await kept()
    await frame_cache.evict()
    for number in range(10):
        await frame_cache.obtain(stored, f"{number}/x", _bytes(1000 - 32))
    found = await listed(stored)
    assert len(found) == 10
    age = {name: (7 * position) % 10 for position, name in enumerate(found)}
    monkeypatch.setattr(frame_cache, "_minute", lambda item: age[item.name])
    monkeypatch.setattr(settings(), "cache_bytes", 10_000)
    assert await frame_cache.evict() == 0
    monkeypatch.setattr(settings(), "cache_bytes", 6_000)
    assert await frame_cache.evict() == 5, "to nine tenths, so that not every run deletes"
    assert sorted(age[name] for name in await listed(stored)) == [5, 6, 7, 8, 9]
    monkeypatch.setattr(settings(), "cache_bytes", 0)
    assert await frame_cache.evict() == 5
    assert await listed(stored) == []


async def test_a_bound_of_zero_switches_it_off(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "cache_bytes", 0)
    stored, pixels = await kept()
    _, payload = await transcoded.open_frame(stored, 1, ["1.2.840.10008.1.2.1"])
    assert await retrieve.held(payload, 1 << 20) == pixels[0].tobytes()
    assert await listed(stored) == []


async def test_what_waits_to_be_written_is_bounded(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _ = await kept()
    upload, release = container.blob_store().upload, asyncio.Event()

    async def slow(*arguments: Any) -> None:
        await release.wait()
        await upload(*arguments)

    monkeypatch.setattr(container.blob_store(), "upload", slow)
    for number in range(6):
        assert await frame_cache.obtain(stored, f"{number}/x", _bytes(5 << 20))
    release.set()
    assert len(await listed(stored)) == 3


def _bytes(size: int) -> Callable[[], Any]:
    async def make() -> bytes:
        return bytes(size)

    return make


# --- names -------------------------------------------------------------------------------------------


def test_names_of_entries_say_what_they_were_made_from() -> None:
    key = InstanceKey("p.", "1.2", "1.2.3", "1.2.3.4")
    name = names.cached_name(key, "00abc", "1/7/1.2.840.10008.1.2.1")
    digest = hashlib.sha256(b"p./1.2/1.2.3").hexdigest()[:3]
    assert name == f"{digest}/p.~/1.2/1.2.3/1.2.3.4/00abc/1/7/1.2.840.10008.1.2.1"
    assert names.parse_cached_name(name) == (key, "00abc")
    assert name.startswith(names.cached_prefix(key, "00abc"))
    for other in ("", "a/b", name.replace(digest, "zzz"), name.replace("/00abc/1/7/", "/"), f"x{name}"):
        assert names.parse_cached_name(other) is None
