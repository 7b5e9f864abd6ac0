"""A manager, a modality and a subscriber of a worklist, as plain HTTP and WebSocket clients."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydicom.uid import generate_uid
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from shared.dicom import event_reports
from tests.conftest import Server
from tests.workitems import data_set, new

WORKLIST = "1.2.840.10008.5.1.4.34.5"
FILTERED_WORKLIST = "1.2.840.10008.5.1.4.34.5.1"
JSON = {"Content-Type": "application/dicom+json"}
STATES = {1: "state", 2: "cancel requested", 3: "progress", 5: "assigned"}


@dataclass
class Worklist:
    """Requests to a Worklist Service, each of which must succeed."""

    server: Server
    partition: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    @property
    def root(self) -> str:
        return f"{self.server.v2}/partitions/{self.partition}" if self.partition else self.server.v2

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        return self.http.request(method, f"{self.root}/{path}", content=content, headers=JSON)

    def done(self, method: str, path: str, body: Any = None) -> httpx.Response:
        response = self.request(method, path, body)
        assert response.status_code in (200, 201, 202), f"{response.status_code} {response.text}"
        return response

    def create(self, **more: Any) -> str:
        uid = str(generate_uid())
        self.done("POST", f"workitems?{uid}", new(**{"WorklistLabel": "Chest"} | more))
        return uid

    def update(self, uid: str, transaction: str, **changes: Any) -> None:
        query = f"?{transaction}" if transaction else ""
        self.done("POST", f"workitems/{uid}{query}", data_set(**changes))

    def change_state(self, uid: str, state: str, transaction: str) -> None:
        body = data_set(ProcedureStepState=state, TransactionUID=transaction)
        self.done("PUT", f"workitems/{uid}/state", body)

    def claim(self, uid: str) -> str:
        transaction = str(generate_uid())
        self.change_state(uid, "IN PROGRESS", transaction)
        return transaction

    def ask_to_cancel(self, uid: str, reason: str = "") -> None:
        body = data_set(ReasonForCancellation=reason) if reason else {}
        self.done("POST", f"workitems/{uid}/cancelrequest", body)

    def cancel(self, uid: str, transaction: str) -> None:
        self.change_state(uid, "CANCELED", transaction)

    def subscribe(self, uid: str, name: str, query: str = "") -> httpx.Response:
        return self.done("POST", f"workitems/{uid}/subscribers/{name}{query}")

    def exists(self, uid: str) -> bool:
        return self.request("GET", f"workitems/{uid}").status_code == 200


Event = tuple[int, str, str, str]


class Subscriber:
    """A client that follows the rules of the conformance statement; ``events`` are those it has handled, as
    (Event ID, workitem, kind, state)."""

    def __init__(self, worklist: Worklist, name: str) -> None:
        self.worklist, self.name = worklist, name
        self.events: list[Event] = []
        self.frames = 0
        self._socket: ClientConnection | None = None

    def connect(self, url: str = "") -> Subscriber:
        """Open a notification connection, then fetch what was missed."""
        self.cut()
        url = url or str(self.worklist.done("GET", f"subscribers/{self.name}").json()["webSocketUrl"])
        self._socket = connect(url)
        self._fetch()
        return self

    def cut(self) -> None:
        """Lose the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def wait_for(self, count: int, timeout: float = 20) -> list[Event]:
        """Until so many events have been handled."""
        deadline = time.monotonic() + timeout
        while len(self.events) < count:
            assert self._socket is not None
            try:
                text = self._socket.recv(timeout=max(0, deadline - time.monotonic()))
            except ConnectionClosed:
                self.connect()
                continue
            except TimeoutError:
                raise AssertionError(f"{count} events expected: {self.events}") from None
            self.frames += 1
            self._handle(json.loads(text))
        return self.events

    def is_silent(self) -> bool:
        """Whether no event comes that has not been handled; what was fetched may still come."""
        assert self._socket is not None
        before = len(self.events)
        with contextlib.suppress(TimeoutError):
            while True:
                self._handle(json.loads(self._socket.recv(timeout=1)))
        return len(self.events) == before

    @property
    def last(self) -> int:
        return self.events[-1][0] if self.events else 0

    def _handle(self, report: dict[str, Any]) -> None:
        number = int(report[event_reports.EVENT_ID]["Value"][0])
        assert "00081195" not in json.dumps(report), "the Transaction UID is the key of who has claimed it"
        if number <= self.last:
            return
        if number > self.last + 1:
            self._fetch()
            return
        uid, kind = report["00001000"]["Value"][0], STATES[report["00001002"]["Value"][0]]
        state = report.get("00741000", {}).get("Value", [""])[0]
        self.events.append((number, uid, kind, state))

    def _fetch(self) -> None:
        while True:
            response = self.worklist.request("GET", f"subscribers/{self.name}/events?after={self.last}")
            if response.status_code == 204:
                return
            for report in response.json():
                self._handle(report)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
