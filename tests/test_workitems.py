"""The Worklist Service: workitems created, claimed, updated, ended and searched for, on the wire."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydicom.datadict import tag_for_keyword
from pydicom.uid import generate_uid

from shared.dicom.search_terms import Position
from shared.dicom.workitem_requirements import requirements
from shared.sql import workitems as index
from shared.web import query_params
from tests import native_model
from tests.conftest import Server
from tests.partition import Partition, problem
from tests.test_sql_search import parsed_t_sql
from tests.workitems import JSON, Worklist, code, data_set, element, new, performed

XML = "application/dicom+xml"


@pytest.fixture(scope="module")
def worklist(server: Server) -> Worklist:
    return Worklist(Partition(server))


def state_of(workitem: dict[str, Any]) -> str:
    return str(workitem["00741000"]["Value"][0])


# --- create and retrieve -----------------------------------------------------------------------------


def test_a_workitem_is_created_and_retrieved(worklist: Worklist) -> None:
    uid = generate_uid()
    response = worklist.post(f"?{uid}", new(PatientID="P7"))
    assert response.status_code == 201
    assert response.headers["Location"] == response.headers["Content-Location"] == f"{worklist.root}/{uid}"
    assert not response.content
    found = worklist.get(uid)
    assert found["00080018"]["Value"] == [uid]
    assert found["00080016"]["Value"] == ["1.2.840.10008.5.1.4.34.6.1"]
    assert found["00100020"] == {"vr": "LO", "Value": ["P7"]}
    assert state_of(found) == "SCHEDULED"
    assert "00081195" not in found
    assert list(found) == sorted(found)


@pytest.mark.parametrize("form", ["?workitem={}", "?AffectedSOPInstanceUID={}", "?{}", ""])
def test_the_uid_is_in_the_url_or_in_the_data_set(worklist: Worklist, form: str) -> None:
    uid = generate_uid()
    more = {} if form else {"SOPInstanceUID": uid}
    assert worklist.post(form.format(uid), [new(**more)]).status_code == 201
    assert worklist.get(uid)["00080018"]["Value"] == [uid]


def test_an_empty_worklist_label_is_filled_with_a_warning(worklist: Worklist) -> None:
    uid = generate_uid()
    response = worklist.post(f"?{uid}", new(WorklistLabel=None))
    assert response.status_code == 201
    assert response.headers["Warning"] == ('299 - "The Workitem was created with modifications."')
    assert worklist.get(uid)["00741202"]["Value"] == ["Default"]


def test_a_workitem_is_created_once(worklist: Worklist) -> None:
    uid = worklist.create()
    assert "exists" in problem(worklist.post(f"?{uid}", new()), 409)


REQUIRED = [
    row for row in requirements() if "." not in row.path and row.create[0] in "12" and "C" not in row.create
]


@pytest.mark.parametrize("keyword", [row.path for row in REQUIRED])
def test_what_a_new_workitem_must_have_is_named(worklist: Worklist, keyword: str) -> None:
    body = new()
    del body[f"{tag_for_keyword(keyword):08X}"]
    assert keyword in problem(worklist.post(f"?{generate_uid()}", body), 400)


REFUSED: dict[str, tuple[Any, str]] = {
    "a state of its own": (new(ProcedureStepState="IN PROGRESS"), "ProcedureStepState"),
    "a transaction": (new(TransactionUID="1.2.3"), "TransactionUID"),
    "progress": (
        new(ProcedureStepProgressInformationSequence=data_set(ProcedureStepProgress="5")),
        "ProcedureStepProgress",
    ),
    "a priority of its own": (new(ScheduledProcedureStepPriority="SOON"), "ScheduledProcedureStepPriority"),
    "a code without meaning": (
        new(ScheduledStationNameCodeSequence=data_set(CodeValue="1", CodingSchemeDesignator="2")),
        "ScheduledStationNameCodeSequence.CodeMeaning",
    ),
    "a wrong VR": (new() | {"00100020": {"vr": "PN", "Value": ["x"]}}, "PatientID"),
    "a wrong value": (new(ScheduledProcedureStepStartDateTime="soon"), "ScheduledProcedureStepStartDateTime"),
    "another UID": (new(SOPInstanceUID="1.2.3"), "SOPInstanceUID"),
    "no object": ([1], "object"),
    "two": ([new(), new()], "one DICOM JSON object"),
    "no tag": (new() | {"Patient": {"vr": "LO"}}, "tag"),
    "pixels": (new() | {"7FE00010": {"vr": "OW"}}, "PixelData"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_new_workitem_that_is_wrong_is_refused_with_the_reason(worklist: Worklist, case: str) -> None:
    body, named = REFUSED[case]
    assert named in problem(worklist.post(f"?{generate_uid()}", body), 400)


def test_hostile_bodies_are_refused(worklist: Worklist) -> None:
    def post(content: bytes, content_type: str = JSON) -> httpx.Response:
        url = f"{worklist.root}?{generate_uid()}"
        return worklist.http.post(url, content=content, headers={"Content-Type": content_type})

    assert problem(post(b"{"), 400)
    assert problem(post(b'{"00100020":' * 2000), 400)
    nested = '{"00741210":{"vr":"SQ","Value":[' * 40 + "{}" + "]}}" * 40
    assert "nested" in problem(post(nested.encode()), 400)
    assert problem(post(b" " * (1024 * 1024 + 1)), 413)
    assert problem(post(b"{}", "text/plain"), 415)
    assert problem(post(b"<a", XML), 400)
    bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    assert "document type" in problem(post(bomb, XML), 400)


def test_what_is_not_there_is_404(worklist: Worklist) -> None:
    url = f"{worklist.root}/{generate_uid()}"
    assert problem(worklist.http.get(url), 404)
    assert problem(worklist.update(generate_uid(), None, WorklistLabel="x"), 404)
    assert problem(worklist.state(generate_uid(), "IN PROGRESS", "1.2.3"), 404)
    assert problem(worklist.cancel(generate_uid()), 404)
    assert problem(worklist.http.get(f"{worklist.root}/{'1' * 65}"), 400)


def test_xml_comes_back_as_it_was_sent(worklist: Worklist) -> None:
    import orjson

    from shared.dicom import native_model as writer

    uid, sent = generate_uid(), new(ScheduledStationNameCodeSequence=code("CT1"), PatientSex="F")
    xml = "".join(writer.pieces(orjson.dumps(dict(sorted(sent.items()))).decode())).encode()
    response = worklist.http.post(f"{worklist.root}?{uid}", content=xml, headers={"Content-Type": XML})
    assert response.status_code == 201, response.text
    answer = worklist.http.get(f"{worklist.root}/{uid}", headers={"Accept": XML})
    assert answer.headers["Content-Type"] == XML
    back = native_model.read(answer.content)
    for tag in ("00404025", "00100040", "00100010", "00741204"):
        assert back[tag] == sent[tag]
    found = worklist.http.get(
        worklist.root, params={"SOPInstanceUID": uid}, headers={"Accept": f'multipart/related; type="{XML}"'}
    )
    assert found.status_code == 200
    assert found.headers["Content-Type"].startswith("multipart/related")


# --- states ------------------------------------------------------------------------------------------

OURS, THEIRS = "2.25.1", "2.25.2"


def in_state(worklist: Worklist, state: str) -> str:
    """A workitem that has come to ``state`` in our hands."""
    uid = worklist.create()
    if state != "SCHEDULED":
        assert worklist.state(uid, "IN PROGRESS", OURS).status_code == 200
    if state == "COMPLETED":
        body = performed()
        assert worklist.post(f"/{uid}?transaction-uid={OURS}", body).status_code == 200
    if state in ("COMPLETED", "CANCELED"):
        response = worklist.state(uid, state, OURS)
        assert response.status_code == 200, response.text
    return uid


MISSING = "The Transaction UID is missing."
INCORRECT = "The Transaction UID is incorrect."
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
INCONSISTENT_WORKITEM = "The submitted request is inconsistent with the current state of the Workitem."
NOT_CLAIMED = "The target URI did not reference a claimed Workitem."
ALREADY = "The UPS is already in the requested state of {}."

# What each transaction answers in each state, with our, with another and without a Transaction UID.
TABLE: dict[tuple[str, str], tuple[tuple[int, str], tuple[int, str], tuple[int, str]]] = {
    ("SCHEDULED", "update"): ((400, NOT_CLAIMED), (400, NOT_CLAIMED), (200, "")),
    ("IN PROGRESS", "update"): ((200, ""), (400, NOT_CLAIMED), (400, NOT_CLAIMED)),
    ("COMPLETED", "update"): ((400, INCONSISTENT_WORKITEM),) * 3,
    ("CANCELED", "update"): ((400, INCONSISTENT_WORKITEM),) * 3,
    ("SCHEDULED", "SCHEDULED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("IN PROGRESS", "SCHEDULED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("COMPLETED", "SCHEDULED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("CANCELED", "SCHEDULED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("SCHEDULED", "IN PROGRESS"): ((200, ""), (200, ""), (400, MISSING)),
    ("IN PROGRESS", "IN PROGRESS"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("COMPLETED", "IN PROGRESS"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("CANCELED", "IN PROGRESS"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("SCHEDULED", "COMPLETED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("IN PROGRESS", "COMPLETED"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("COMPLETED", "COMPLETED"): ((200, ALREADY.format("COMPLETED")), (400, INCORRECT), (400, MISSING)),
    ("CANCELED", "COMPLETED"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("SCHEDULED", "CANCELED"): ((409, INCONSISTENT), (409, INCONSISTENT), (400, MISSING)),
    ("IN PROGRESS", "CANCELED"): ((200, ""), (400, INCORRECT), (400, MISSING)),
    ("COMPLETED", "CANCELED"): ((409, INCONSISTENT), (400, INCORRECT), (400, MISSING)),
    ("CANCELED", "CANCELED"): ((200, ALREADY.format("CANCELED")), (400, INCORRECT), (400, MISSING)),
}


@pytest.mark.parametrize(("state", "transaction"), TABLE)
def test_every_transaction_in_every_state(worklist: Worklist, state: str, transaction: str) -> None:
    for key, (status, warning) in zip((OURS, THEIRS, None), TABLE[state, transaction], strict=True):
        uid = in_state(worklist, state)
        before = worklist.get(uid)
        if transaction == "update":
            response = worklist.update(uid, key, WorklistLabel="Other")
        else:
            response = worklist.state(uid, transaction, key)
        assert response.status_code == status, (key, response.text)
        assert response.headers.get("Warning", "") == (f'299 - "{warning}"' if warning else "")
        if status != 200 or warning:
            assert worklist.get(uid) == before


@pytest.mark.parametrize(
    ("state", "status", "warning", "after"),
    [
        ("SCHEDULED", 202, "", "CANCELED"),
        ("IN PROGRESS", 409, "The performer cannot be contacted.", "IN PROGRESS"),
        ("COMPLETED", 409, "The UPS is already COMPLETED.", "COMPLETED"),
        ("CANCELED", 202, ALREADY.format("CANCELED"), "CANCELED"),
    ],
)
def test_a_request_for_cancellation_in_every_state(
    worklist: Worklist, state: str, status: int, warning: str, after: str
) -> None:
    uid = in_state(worklist, state)
    response = worklist.cancel(uid, ReasonForCancellation="Patient left")
    assert response.status_code == status, response.text
    assert response.headers.get("Warning", "") == (f'299 - "{warning}"' if warning else "")
    assert state_of(worklist.get(uid)) == after


def test_a_canceled_workitem_says_when_and_why(worklist: Worklist) -> None:
    uid = worklist.create()
    assert worklist.cancel(uid, ReasonForCancellation="Patient left").status_code == 202
    (progress,) = worklist.get(uid)["00741002"]["Value"]
    assert progress["00741238"]["Value"] == ["Patient left"]
    assert progress["00404052"]["Value"][0].endswith("+0000")
    (reason,) = progress["0074100E"]["Value"]
    assert reason["00080100"]["Value"] == ["110513"]
    without = worklist.create()
    response = worklist.http.post(f"{worklist.root}/{without}/cancelrequest")
    assert response.status_code == 202


def test_a_final_state_names_what_it_lacks(worklist: Worklist) -> None:
    uid = in_state(worklist, "IN PROGRESS")
    said = problem(worklist.state(uid, "COMPLETED", OURS), 409)
    assert "UnifiedProcedureStepPerformedProcedureSequence" in said
    body = performed()
    del body["00741216"]["Value"][0]["00404051"]
    assert worklist.post(f"/{uid}?{OURS}", body).status_code == 200
    said = problem(worklist.state(uid, "COMPLETED", OURS), 409)
    assert "PerformedProcedureStepEndDateTime" in said


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "ReferencedRequestSequence", "SOPClassUID"])
def test_what_an_update_must_not_have_is_named(worklist: Worklist, keyword: str) -> None:
    uid = worklist.create()
    tag, value = element(keyword)
    assert keyword in problem(worklist.post(f"/{uid}", {tag: value}), 400)


def test_an_update_replaces_attributes_as_a_whole(worklist: Worklist) -> None:
    uid = worklist.create(ScheduledStationNameCodeSequence=[code("CT1"), code("CT2")])
    before = worklist.get(uid)
    assert worklist.update(uid, None, ScheduledStationNameCodeSequence=code("MR1")).status_code == 200
    after = worklist.get(uid)
    assert [item["00080100"]["Value"] for item in after["00404025"]["Value"]] == [["MR1"]]
    assert after["00404010"] != before["00404010"]
    changed = {tag for tag in after if after[tag] != before.get(tag)}
    assert changed == {"00404025", "00404010"}


def test_of_many_who_claim_each_workitem_one_wins(server: Server) -> None:
    worklist = Worklist(Partition(server))
    uids = [worklist.create() for _ in range(100)]
    claimed: dict[str, list[str]] = {uid: [] for uid in uids}
    lock = threading.Lock()

    def claim(number: int) -> None:
        key = f"2.25.{number + 1}"
        with httpx.Client(timeout=120) as http:
            for uid in uids[number * 3 :] + uids[: number * 3]:
                body = data_set(ProcedureStepState="IN PROGRESS", TransactionUID=key)
                url = f"{worklist.root}/{uid}/state"
                response = http.put(url, json=body, headers={"Content-Type": JSON})
                assert response.status_code in (200, 400), response.text
                if response.status_code == 200:
                    with lock:
                        claimed[uid].append(key)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(claim, range(32)))
    assert all(len(keys) == 1 for keys in claimed.values())
    for uid, (key,) in list(claimed.items())[:10]:
        assert worklist.update(uid, key, WorklistLabel="mine").status_code == 200


class Model(RuleBasedStateMachine):
    """Random transactions on one workitem, beside a model that is a state, an owner and a label."""

    worklist: Worklist

    @initialize()
    def create(self) -> None:
        self.uid = self.worklist.create()
        self.state, self.owner, self.label, self.done = "SCHEDULED", "", "Worklist", False

    @rule(key=st.sampled_from([OURS, THEIRS, None]), label=st.sampled_from(["A", "B", "C"]))
    def update(self, key: str | None, label: str) -> None:
        status = self.worklist.update(self.uid, key, WorklistLabel=label).status_code
        allowed = self.state in ("SCHEDULED", "IN PROGRESS") and (key or "") == self.owner
        assert (status == 200) is allowed
        self.label = label if allowed else self.label

    @rule(key=st.sampled_from([OURS, THEIRS]))
    def perform(self, key: str) -> None:
        status = self.worklist.post(f"/{self.uid}?{key}", performed()).status_code
        allowed = self.state == "IN PROGRESS" and key == self.owner
        assert (status == 200) is allowed
        self.done = self.done or allowed

    @rule(
        key=st.sampled_from([OURS, THEIRS, None]),
        state=st.sampled_from(["SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"]),
    )
    def change(self, key: str | None, state: str) -> None:
        status = self.worklist.state(self.uid, state, key).status_code
        if self.state == "SCHEDULED":
            allowed = state == "IN PROGRESS" and key is not None
            self.owner = key if allowed and key else self.owner
        else:
            mine = key == self.owner
            ends = self.state == "IN PROGRESS" and (
                state == "CANCELED" or (state == "COMPLETED" and self.done)
            )
            same = self.state == state != "IN PROGRESS"
            allowed = mine and (ends or same)
        assert (status == 200) is allowed, (self.state, state, key)
        self.state = state if allowed else self.state

    @rule()
    def cancel(self) -> None:
        status = self.worklist.cancel(self.uid).status_code
        assert (status == 202) is (self.state in ("SCHEDULED", "CANCELED"))
        if self.state == "SCHEDULED":
            self.state = "CANCELED"

    @invariant()
    def agrees(self) -> None:
        found = self.worklist.get(self.uid)
        assert (state_of(found), found["00741202"]["Value"]) == (self.state, [self.label])
        assert "00081195" not in found


def test_random_transactions_agree_with_a_model(worklist: Worklist) -> None:
    machine = type("Bound", (Model,), {"worklist": worklist})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=checks
        ),
    )


# --- search ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(server: Server) -> tuple[Worklist, dict[str, str]]:
    worklist = Worklist(Partition(server))
    request = data_set(
        StudyInstanceUID="1.2.3",
        AccessionNumber="A1",
        IssuerOfAccessionNumberSequence=None,
        OrderPlacerIdentifierSequence=None,
        OrderFillerIdentifierSequence=None,
        RequestedProcedureID="R1",
        RequestedProcedureDescription=None,
        RequestedProcedureCodeSequence=None,
    )
    uids = {
        "ct": worklist.create(
            PatientName={"Alphabetic": "Müller^Anna"},
            PatientID="P1",
            ScheduledStationNameCodeSequence=code("CT1"),
            ScheduledProcedureStepStartDateTime="20261125080000",
            ReferencedRequestSequence=request,
            StudyInstanceUID="1.2.3",
        ),
        "mr": worklist.create(
            PatientName={"Alphabetic": "Doe^John", "Ideographic": "山田^太郎"},
            PatientID="P2",
            ScheduledStationNameCodeSequence=code("MR1"),
            ScheduledStationClassCodeSequence=code("MR"),
            ScheduledProcedureStepStartDateTime="20261126080000",
            ScheduledProcedureStepPriority="HIGH",
        ),
        "us": worklist.create(PatientID="P1", ScheduledProcedureStepStartDateTime="20261127"),
    }
    assert worklist.state(uids["us"], "IN PROGRESS", OURS).status_code == 200
    return worklist, uids


QUERIES: dict[str, tuple[dict[str, str | int], set[str]]] = {
    "everything": ({}, {"ct", "mr", "us"}),
    "patient": ({"PatientID": "P1"}, {"ct", "us"}),
    "patient by tag": ({"00100020": "P2"}, {"mr"}),
    "name with a wildcard": ({"PatientName": "mull*"}, {"ct"}),
    "name, fuzzily": ({"PatientName": "joh", "fuzzymatching": "true"}, {"mr"}),
    "name, ideographic": ({"PatientName": "山田*"}, {"mr"}),
    "state": ({"ProcedureStepState": "IN PROGRESS"}, {"us"}),
    "station": ({"ScheduledStationNameCodeSequence.CodeValue": "CT1"}, {"ct"}),
    "station class": ({"00404026.00080100": "MR"}, {"mr"}),
    "accession": ({"ReferencedRequestSequence.AccessionNumber": "A1"}, {"ct"}),
    "request": ({"0040A370.00401001": "R1"}, {"ct"}),
    "study": ({"StudyInstanceUID": "1.2.3"}, {"ct"}),
    "a day": ({"ScheduledProcedureStepStartDateTime": "20261125"}, {"ct"}),
    "a range": ({"ScheduledProcedureStepStartDateTime": "20261126-"}, {"mr", "us"}),
    "priority": ({"ScheduledProcedureStepPriority": "HIGH"}, {"mr"}),
    "both": ({"PatientID": "P1", "ProcedureStepState": "SCHEDULED"}, {"ct"}),
    "nothing": ({"PatientID": "nobody"}, set()),
}


@pytest.mark.parametrize("case", QUERIES)
def test_a_search_finds_what_matches(found: tuple[Worklist, dict[str, str]], case: str) -> None:
    worklist, uids = found
    query, expected = QUERIES[case]
    results = worklist.find(**query)
    assert sorted(one["00080018"]["Value"][0] for one in results) == sorted(uids[name] for name in expected)
    assert all("00081195" not in one for one in results)


def test_pages_are_in_order_and_complete(found: tuple[Worklist, dict[str, str]]) -> None:
    worklist, uids = found
    url: str | None = f"{worklist.root}?limit=1&orderby=ScheduledProcedureStepStartDateTime&count=true"
    seen = []
    while url:
        response = worklist.http.get(url, headers={"Accept": JSON})
        assert response.headers["X-Total-Count"] == "3"
        seen += [one["00080018"]["Value"][0] for one in response.json()]
        url = response.links.get("next", {}).get("url")
    assert seen == [uids["ct"], uids["mr"], uids["us"]]


def test_a_search_follows_changes(worklist: Worklist) -> None:
    uid = worklist.create(PatientID="moving")
    assert worklist.update(uid, None, WorklistLabel="Moved").status_code == 200
    (result,) = worklist.find(PatientID="moving", WorklistLabel="moved")
    assert result["00741202"]["Value"] == ["Moved"]
    assert worklist.find(PatientID="moving", WorklistLabel="Worklist") == []


def test_includefield_adds_what_is_not_returned_unasked(worklist: Worklist) -> None:
    worklist.create(PatientID="include", OtherPatientIDsSequence=None, MedicalAlerts="Alert")
    (usual,) = worklist.find(PatientID="include")
    assert usual["0040A370"] == {"vr": "SQ"}
    (whole,) = worklist.find(PatientID="include", includefield="all")
    assert whole["00102000"]["Value"] == ["Alert"]
    assert worklist.find(PatientID="include", includefield="MedicalAlerts")[0]["00102000"]["Value"] == [
        "Alert"
    ]


@pytest.mark.parametrize(
    "query", ["Unknown=1", "TransactionUID=1.2.3", "limit=0", "PatientBirthDate=soon", "orderby=Rows"]
)
def test_a_search_that_is_wrong_is_refused(worklist: Worklist, query: str) -> None:
    assert problem(worklist.http.get(f"{worklist.root}?{query}"), 400)


@pytest.mark.parametrize("query", [*QUERIES.values()])
def test_statements_are_t_sql(query: tuple[dict[str, str | int], set[str]]) -> None:
    given = [(name, str(value)) for name, value in query[0].items()]
    asked = query_params.workitem_request("p", [*given, ("orderby", "-PatientID,ProcedureStepState")])
    page = replace(asked.query, after=Position(("p1", None), 7))
    for statement in (index.statement(asked.query), index.statement(page), index.count_statement(page)):
        assert "workitem" in parsed_t_sql(statement)
