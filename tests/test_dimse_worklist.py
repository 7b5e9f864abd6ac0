"""The worklist made of workitems, from answers of a search for workitems as PS3.18 §11.9 has them."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from adapters.dimse import worklist
from adapters.dimse.dicomweb import Json, Unavailable


def code(value: str, meaning: str) -> Json:
    item = {"00080100": {"vr": "SH", "Value": [value]}, "00080104": {"vr": "LO", "Value": [meaning]}}
    return {"vr": "SQ", "Value": [item]}


def workitem(patient: str, station: str, modality: str, moment: str, accession: str) -> Json:
    request = {
        "00080050": {"vr": "SH", "Value": [accession]},
        "00401001": {"vr": "SH", "Value": ["RP1"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    }
    return {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": f"{patient}^A"}]},
        "00100020": {"vr": "LO", "Value": [patient]},
        "0040A370": {"vr": "SQ", "Value": [request]},
        "00404025": code(station, f"Station {station}"),
        "00404026": code(modality, modality),
        "00404005": {"vr": "DT", "Value": [moment]},
        "00741204": {"vr": "LO", "Value": ["CT of the head"]},
    }


class Recorded:
    """Stands where the server is: workitems that it answered, and what it was asked."""

    def __init__(self, *items: Json) -> None:
        self.items = items
        self.asked: list[tuple[str, str]] = []

    def search(self, partition: str, path: str, query: list[tuple[str, str]]) -> Any:
        assert (partition, path) == ("p", "workitems")
        self.asked = query
        if not self.items:
            raise Unavailable("away")
        yield from self.items


class Event:
    is_cancelled = False


SERVER = (
    workitem("Doe", "CT1", "CT", "20260102083000", "A1"),
    workitem("Roe", "CT2", "CT", "20260102093000", "A2"),
    workitem("Poe", "MR1", "MR", "20260103083000", "A3"),
)


def identifier(step: dict[str, str] | None = None, **keys: str) -> Dataset:
    ds = Dataset()
    for keyword, value in {"PatientName": "", "AccessionNumber": "", **keys}.items():
        setattr(ds, keyword, value)
    item = Dataset()
    names = (
        "ScheduledStationAETitle",
        "Modality",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
    )
    for keyword, value in (dict.fromkeys(names, "") | (step or {})).items():
        setattr(item, keyword, value)
    ds.ScheduledProcedureStepSequence = [item]
    return ds


@pytest.mark.parametrize(
    ("step", "keys", "found"),
    [
        ({}, {}, ["A1", "A2", "A3"]),
        ({"Modality": "CT"}, {}, ["A1", "A2"]),
        ({"ScheduledStationAETitle": "MR1"}, {}, ["A3"]),
        ({"ScheduledProcedureStepStartDate": "20260102"}, {}, ["A1", "A2"]),
        ({"ScheduledProcedureStepStartDate": "20260103-"}, {}, ["A3"]),
        ({"ScheduledProcedureStepStartTime": "0800-0900"}, {}, ["A1", "A3"]),
        ({}, {"PatientName": "r*"}, ["A2"]),
        ({}, {"AccessionNumber": "A3"}, ["A3"]),
        ({"Modality": "US"}, {}, []),
    ],
)
def test_scheduled_workitems_are_matched(
    step: dict[str, str], keys: dict[str, str], found: list[str]
) -> None:
    server = Recorded(*SERVER)
    answers = list(worklist.find(server, "p", identifier(step, **keys), 100, Event()))  # type: ignore[arg-type]
    assert [ds.AccessionNumber for _, ds in answers if ds] == found
    assert ("ProcedureStepState", "SCHEDULED") in server.asked


def test_an_entry_has_what_was_asked_for() -> None:
    wanted = identifier({"ScheduledProcedureStepDescription": ""}, RequestedProcedureID="", PatientID="Doe")
    wanted.AdmissionID = ""
    ((status, entry),) = worklist.find(Recorded(*SERVER), "p", wanted, 100, Event())  # type: ignore[arg-type]
    assert status == 0xFF00
    assert entry is not None
    step = entry.ScheduledProcedureStepSequence[0]
    assert (str(entry.PatientName), entry.RequestedProcedureID) == ("Doe^A", "RP1")
    assert (step.ScheduledStationAETitle, step.Modality) == ("CT1", "CT")
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == (
        "20260102",
        "083000",
    )
    assert step.ScheduledProcedureStepDescription == "CT of the head"
    assert not entry.AdmissionID


def test_too_many_entries_and_an_absent_server_fail_instead_of_answering_a_part() -> None:
    answers = list(worklist.find(Recorded(*SERVER), "p", identifier(), 2, Event()))  # type: ignore[arg-type]
    assert [getattr(status, "Status", status) for status, _ in answers] == [0xFF00, 0xFF00, 0xA700]
    answers = list(worklist.find(Recorded(), "p", identifier(), 2, Event()))  # type: ignore[arg-type]
    assert [getattr(status, "Status", status) for status, _ in answers] == [0xC001]
