"""What C-STORE acknowledges is never lost: kills, outages, refusals, full disks, strangers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from adapters.dimse.spool import Spool, SpoolFull, SpoolInUse
from tests.audit import query
from tests.conftest import ROOT, Server, StartServer
from tests.dicom_files import make_file
from tests.dimse_adapter import TITLE, Adapter, associated, running, send
from tests.tcp_proxy import Proxy

STORES = int(os.environ.get("DICOM_TEST_KILLED_STORES", "200"))


def write(path: Path, *uids: str | None, **attributes: Any) -> Path:
    path.write_bytes(make_file(*uids, frames=0, **attributes))
    return path


def test_acknowledged_objects_survive_kills_of_adapter_and_server(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Everything acknowledged is in the server exactly once, whoever died when."""
    server = start_server(own_storage=True)
    with running(tmp_path / "adapter", server.v2) as adapter:
        started = time.monotonic()
        acknowledged: list[str] = []
        kills = _store_under_kills(server, adapter, tmp_path, acknowledged)
        adapter.wait_until_empty(120 + STORES / 4)
        took = time.monotonic() - started
        print(f"{len(acknowledged)} objects in {took:.0f} s, {kills} kills")
        assert adapter.metrics()["dimse_quarantine_objects"] == 0, adapter.log[-2000:]
    rows = [row[0] for row in query(server, "SELECT sop_instance_uid FROM instance")]
    assert len(rows) == len(set(rows))
    assert set(acknowledged) - set(rows) == set()
    assert len(acknowledged) == STORES
    assert len(query(server, "SELECT sequence FROM change_feed")) == len(rows)
    server.close()


def _store_under_kills(server: Server, adapter: Adapter, folder: Path, acknowledged: list[str]) -> int:
    """Send objects one after the other, again until acknowledged, while somebody kills; how many kills."""
    waiting = [generate_uid() for _ in range(STORES)]
    series = [(generate_uid(), generate_uid()) for _ in range(10)]
    lock, ended, kills = threading.Lock(), threading.Event(), 0

    def worker(number: int) -> None:
        path = folder / f"sent-{number}.dcm"
        while True:
            with lock:
                if not waiting:
                    return
                uids = [waiting.pop() for _ in range(min(8, len(waiting)))]
            while uids:
                ae = AE()
                ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
                association = ae.associate("127.0.0.1", adapter.port, ae_title=TITLE)
                if not association.is_established:
                    time.sleep(0.1)
                    continue
                while uids and association.is_established:
                    random.seed(uids[0])
                    write(path, *random.choice(series), uids[0], RetrieveURL=None)
                    try:
                        answer = association.send_c_store(path)
                    except (RuntimeError, ValueError):
                        break
                    if "Status" in answer and answer.Status == 0:
                        acknowledged.append(uids.pop(0))
                if association.is_established:
                    association.release()

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: ([t.join() for t in threads], ended.set())).start()
    while not ended.wait(random.uniform(0.3, 1.5)):
        kills += 1
        if kills % 3 == 0:
            server.kill()
            server.restart()
        else:
            adapter.kill()
            adapter.start()
    return kills


def test_an_outage_ends_without_loss_and_lost_answers_do_not_store_twice(
    server: Server, tmp_path: Path
) -> None:
    study, series = generate_uid(), generate_uid()
    files = [write(tmp_path / f"{n}", study, series) for n in range(6)]
    with Proxy(server.port) as proxy:
        proxy.mode = "refuse"
        url = f"http://127.0.0.1:{proxy.port}/v2/partitions/outage"
        with running(tmp_path / "adapter", url) as adapter:
            assert send(adapter.port, files[:3]) == [0] * 3
            time.sleep(0.5)
            figures = adapter.metrics()
            assert figures["dimse_spool_objects"] == 3
            assert figures["dimse_spool_oldest_seconds"] > 0.3
            assert figures["dimse_forward_requests_failed_total"] > 0
            proxy.mode = "lose_answers"
            assert send(adapter.port, [*files[3:], files[0]]) == [0] * 4
            time.sleep(1)
            proxy.mode = "pass"
            adapter.wait_until_empty()
            assert adapter.metrics()["dimse_quarantine_objects"] == 0
    found = httpx.get(f"{server.v2}/partitions/outage/instances?StudyInstanceUID={study}", timeout=60).json()
    assert len(found) == 6


def test_refused_and_conflicting_objects_are_kept_aside_with_the_reason(
    server: Server, tmp_path: Path
) -> None:
    uids = (generate_uid(), generate_uid(), generate_uid())
    good = write(tmp_path / "good", *uids)
    other = write(tmp_path / "other", *uids, PatientName="Other^Bytes")
    refused = write(tmp_path / "refused", PatientID=None)
    with running(tmp_path / "adapter", f"{server.v2}/partitions/quarantine") as adapter:
        assert send(adapter.port, [good, refused]) == [0, 0]
        adapter.wait_until_empty()
        assert send(adapter.port, [good, other]) == [0, 0]
        adapter.wait_until_empty()
        figures = adapter.metrics()
        assert figures["dimse_quarantine_objects"] == 2
        assert figures["dimse_objects_duplicate_total"] == 1
        reasons = [
            json.loads(p.read_text())["reason"] for p in (adapter.spool / "quarantine").glob("*/*.json")
        ]
        assert sorted(reason.split(":")[0] for reason in reasons) == [
            "another instance with this SOP Instance UID is stored already",
            "failure reason 43264",
        ]
        assert len(list((adapter.spool / "quarantine").glob("*/*.dcm"))) == 2


def test_a_full_spool_refuses_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}") for n in range(4)]
    room = files[0].stat().st_size * 5 // 2 + 400
    with Proxy(server.port) as proxy:
        proxy.mode = "refuse"
        url = f"http://127.0.0.1:{proxy.port}/v2/partitions/full"
        with running(tmp_path / "adapter", url, spool_bytes=room) as adapter:
            statuses = send(adapter.port, files)
            assert statuses == [0, 0, 0xA700, 0xA700]
            assert list((adapter.spool / "incoming").iterdir()) == []
            proxy.mode = "pass"
            adapter.wait_until_empty()
            assert send(adapter.port, files[2:]) == [0, 0]
            adapter.wait_until_empty()


def test_strangers_are_refused(server: Server, tmp_path: Path) -> None:
    routes = (
        '[[routes]]\nae_title = "CT"\npartition = "ct"\ncalling = ["MODALITY"]\nhosts = ["127.0.0.1"]\n'
        '[[routes]]\nae_title = "FAR"\ncalling = ["*"]\nhosts = ["10.0.0.0/8"]\n'
    )
    study = generate_uid()
    with running(tmp_path / "adapter", server.v2, routes=routes) as adapter:
        for calling, called in (("OTHER", "CT"), ("MODALITY", "UNKNOWN"), ("MODALITY", "FAR")):
            with associated(adapter.port, calling=calling, called=called) as association:
                assert association.is_rejected, (calling, called)
        assert adapter.metrics()["dimse_associations_rejected_total"] == 3
        assert send(adapter.port, [write(tmp_path / "f", study)], calling="MODALITY", called="CT") == [0]
        adapter.wait_until_empty()
    found = httpx.get(f"{server.v2}/partitions/ct/studies?StudyInstanceUID={study}", timeout=60)
    assert len(found.json()) == 1
    assert httpx.get(f"{server.v2}/studies?StudyInstanceUID={study}", timeout=60).status_code == 204


def test_an_association_cut_off_midway_leaves_nothing(server: Server, tmp_path: Path) -> None:
    big = write(tmp_path / "big", ImageComments="x" * 3_000_000)
    with (
        running(tmp_path / "adapter", f"{server.v2}/partitions/cut") as adapter,
        Proxy(adapter.port) as proxy,
    ):
        contexts = [(CTImageStorage, ExplicitVRLittleEndian)]
        with associated(proxy.port, contexts) as association:
            threading.Timer(0.02, lambda: setattr(proxy, "mode", "refuse")).start()
            association.send_c_store(big)
        assert send(adapter.port, [big]) == [0]
        adapter.wait_until_empty()
        deadline = time.monotonic() + 10
        while list((adapter.spool / "incoming").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_spool_and_a_port_belong_to_one_adapter(server: Server, tmp_path: Path) -> None:
    with running(tmp_path / "adapter", server.v2) as adapter:
        command = [sys.executable, "-m", "adapters.dimse", "--config", str(adapter.configuration)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert "is in use by another adapter" in second.stderr
        answer = httpx.get(f"http://127.0.0.1:{adapter.metrics_port}/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "Healthy")
        adapter.configuration.write_text(adapter.configuration.read_text().replace('"spool"', '"other"'))
        third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (third.returncode, third.stderr) == (1, "The adapter cannot start: Address already in use.\n")


def test_a_spool_finds_again_what_it_had(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1000)
    for number in range(3):
        source = spool.incoming / f"{number}"
        source.write_bytes(bytes([number]) * 300)
        assert spool.add(source, "a" if number else "", f"1.{number}")
    copy = spool.incoming / "copy"
    copy.write_bytes(b"\1" * 300)
    with pytest.raises(SpoolFull):
        spool.add(copy, "a", "1.1")
    with pytest.raises(SpoolInUse):
        Spool(tmp_path / "spool", 1000)
    taken = spool.take(10, 10**6, 0)
    assert [entry.uid for entry in taken] == ["1.0"]
    spool.done(taken[0])
    assert not spool.add(copy, "a", "1.1"), "the same bytes wait already"
    spool.close()
    again = Spool(tmp_path / "spool", 1000)
    assert (again.objects, again.bytes) == (2, 600)
    assert list(again.incoming.iterdir()) == []
    first = again.take(10, 10**6, 0)
    assert [entry.uid for entry in first] == ["1.1", "1.2"]
    again.quarantine(first[0], "why")
    again.put_back(first[1], pause=60)
    assert again.take(10, 10**6, 0) == []
    assert (again.objects, again.bytes, again.quarantined) == (1, 600, 1)
    again.close()
