"""Operations on two hosts, one of which is killed every few seconds: the result is exact, the status honest.

``DICOM_TEST_KILLED_INSTANCES=20000`` runs them on 20,000 instances.
"""

from __future__ import annotations

import time

from tests.audit import query
from tests.conftest import StartServer
from tests.operations_harness import MOST, TwoServers, store_many


def test_reindexing_survives_kills_of_its_workers(start_server: StartServer) -> None:
    servers = TwoServers(start_server)
    first = servers.servers[0]
    studies = store_many(first, MOST, MilitaryRank="Major")
    tags = [{"path": "SliceThickness", "level": "Instance"}, {"path": "MilitaryRank", "level": "Study"}]
    started = time.monotonic()
    with servers.killing():
        id = servers.request("POST", "/v2/extendedquerytags", json=tags).json()["id"]
        ended = servers.wait_for_end(id, 60 + MOST / 10)
        assert ended["status"] == "succeeded", ended
        assert ended["percentComplete"] == 100
        expected = MOST + len(studies)
        paths = ["00180050", "MilitaryRank"]
        assert ended["results"] == {
            "queryTags": [paths[0], "00101080"],
            "indexed": expected,
            "failed": 0,
        }
        rows = query(first, "SELECT attribute, number, text FROM attribute_value WHERE attribute LIKE 'tag%'")
    took = time.monotonic() - started
    assert sorted(number for _, number, _ in rows if number is not None) == list(range(1, MOST + 1))
    assert [text for _, _, text in rows if text is not None] == ["major"] * len(studies)
    assert query(first, "SELECT count(*) FROM instance WHERE tag_attributes IS NOT NULL") == [(MOST,)]
    assert servers.kills >= 1
    found = servers.request("GET", f"/v2/instances?SliceThickness={MOST}").json()
    assert [result["00180050"]["Value"] for result in found] == [[MOST]]
    print(f"{MOST} instances re-indexed in {took:.0f} s and {servers.kills} kills")
