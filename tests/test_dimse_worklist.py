"""The Modality Worklist of the adapter over the workitems of a server; findscu and pynetdicom ask."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.sop_class import ModalityWorklistInformationFind

from adapters.dimse import worklist
from adapters.dimse.config import Configuration, ConfigurationError, load
from adapters.dimse.dicomweb import Json, Unavailable
from tests.conftest import Server
from tests.dimse_adapter import Adapter, associated, run_tool, running
from tests.partition import Partition
from tests.workitems import OWNER, Worklist, code, data_set

MANY = 205
"""Workitems of a partition: more than a page of the adapter's searches."""
TITLES = ("OURS", "OTHERS", "MANY")
"""The AE titles of the adapter, each with a partition of its own."""

JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
STUDY = generate_uid()


def request(accession: str, **attributes: Any) -> Json:
    """An item of the Referenced Request Sequence."""
    designator = data_set(UniversalEntityID="1.2.3", UniversalEntityIDType="ISO")
    given: dict[str, Any] = {
        "StudyInstanceUID": STUDY,
        "AccessionNumber": accession,
        "IssuerOfAccessionNumberSequence": designator,
        "OrderPlacerIdentifierSequence": None,
        "OrderFillerIdentifierSequence": None,
        "RequestedProcedureID": f"RP-{accession}",
        "RequestedProcedureDescription": "Head",
        "RequestedProcedureCodeSequence": code("CTHEAD", "CT of the head"),
    }
    return data_set(**given | attributes)


def step(accession: str, station: str, modality: str, start: str, **attributes: Any) -> dict[str, Any]:
    """Attributes of a workitem; ``station`` may be several with commas between them."""
    return {
        "ReferencedRequestSequence": request(accession),
        "ScheduledStationNameCodeSequence": [code(one, f"Room of {one}") for one in station.split(",")],
        "ScheduledStationClassCodeSequence": code(modality),
        "ScheduledProcedureStepStartDateTime": start,
        **attributes,
    }


def name(alphabetic: str, **groups: str) -> dict[str, str]:
    return {"Alphabetic": alphabetic, **groups}


JAPANESE_NAME = name("Yamada^Tarou", Ideographic="山田^太郎", Phonetic="やまだ^たろう")
SCHEDULED: dict[str, dict[str, Any]] = {
    "A1": step("A1", "CT1", "CT", "20260102083000", PatientName=name("Doe^Jane"), PatientID="P1"),
    "A2": step("A2", "CT2", "CT", "20260102093015.5", PatientName=name("Müller^Jörg"), PatientID="P2"),
    "A3": step("A3", "MR1", "MR", "20260103083000", PatientName=JAPANESE_NAME, PatientID="P3"),
    "A4": step("A4", "CT1,CT2", "CT", "20260104170000", PatientName=name("Doe"), PatientID="P4"),
    # half past midnight in Berlin, and the day before in UTC
    "A5": step("A5", "US1", "US", "20260704223000+0000", PatientName=name("Roe^R"), PatientID="P5*"),
}


@pytest.fixture(scope="module")
def worklists(server: Server) -> tuple[Worklist, ...]:
    """Those of three partitions: scheduled steps and others that nobody may see, one of others, and many."""
    ours, others, many = (Worklist(Partition(server)) for _ in TITLES)
    for accession, attributes in SCHEDULED.items():
        more = {}
        if accession == "A1":
            performer = data_set(
                HumanPerformerCodeSequence=code("DR"),
                HumanPerformerName=name("Who^Doctor"),
                HumanPerformerOrganization="Radiology",
            )
            more = {
                "ScheduledHumanPerformersSequence": performer,
                "ScheduledWorkitemCodeSequence": code("110005"),
                "ScheduledProcedureStepPriority": "HIGH",
                "CommentsOnTheScheduledProcedureStep": "Fasting",
                "PatientBirthDate": "19700101",
                "PatientSex": "F",
                "ProcedureStepLabel": "CT of the head",
            }
        ours.create(**attributes | more)
    claimed = ours.create(**step("CLAIMED", "CT1", "CT", "20260102083000"))
    assert ours.state(claimed, "IN PROGRESS", OWNER).status_code == 200
    canceled = ours.create(**step("CANCELED", "CT1", "CT", "20260102083000"))
    assert ours.cancel(canceled).status_code == 202
    others.create(**step("ELSEWHERE", "CT1", "CT", "20260102083000"))

    def create(number: int) -> None:
        many.create(PatientID=f"M{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(MANY)))
    return ours, others, many


@pytest.fixture(scope="module")
def adapter(
    server: Server, worklists: tuple[Worklist, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adapter]:
    partitions = [one.root.split("/")[-2] for one in worklists]
    routes = "".join(
        f'[[routes]]\nae_title = "{title}"\npartition = "{partition}"\n'
        'calling = ["*"]\nhosts = ["127.0.0.1"]\n'
        for title, partition in zip(TITLES, partitions, strict=True)
    )
    extra = '[worklist]\ntime_zone = "Europe/Berlin"\n'
    with running(tmp_path_factory.mktemp("adapter"), server.v2, routes=routes, extra=extra) as started:
        yield started


STEP_KEYS = (
    "ScheduledStationAETitle",
    "Modality",
    "ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepStartTime",
    "ScheduledPerformingPhysicianName",
)


def identifier(step: dict[str, Any] | None = None, **keys: Any) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in {"PatientName": "", "AccessionNumber": "", **keys}.items():
        setattr(ds, keyword, value)
    item = Dataset()
    for keyword, value in (dict.fromkeys(STEP_KEYS, "") | (step or {})).items():
        setattr(item, keyword, value)
    ds.ScheduledProcedureStepSequence = [item]
    return ds


def ask(adapter: Adapter, wanted: Dataset, called: str = "OURS") -> tuple[list[Dataset], list[int]]:
    """The entries and all statuses."""
    with associated(adapter.port, called=called) as association:
        answers = list(association.send_c_find(wanted, ModalityWorklistInformationFind))
    return [ds for _, ds in answers if ds is not None], [int(status.Status) for status, _ in answers]


@pytest.mark.parametrize(
    ("step", "keys", "found"),
    [
        ({"Modality": "CT"}, {}, "A1 A2 A4"),
        ({"Modality": "MR"}, {}, "A3"),
        ({"Modality": "OT"}, {}, ""),
        ({"ScheduledStationAETitle": "CT1"}, {}, "A1 A4"),
        ({"ScheduledStationAETitle": "CT2", "Modality": "CT"}, {}, "A2 A4"),
        ({"ScheduledStationAETitle": "CT?"}, {}, "A1 A2 A4"),
        ({"ScheduledProcedureStepStartDate": "20260102"}, {}, "A1 A2"),
        ({"ScheduledProcedureStepStartDate": "20260103-20260104"}, {}, "A3 A4"),
        ({"ScheduledProcedureStepStartDate": "-20260102"}, {}, "A1 A2"),
        ({"ScheduledProcedureStepStartDate": "20260401-"}, {}, "A5"),
        (
            {
                "ScheduledProcedureStepStartDate": "20260102-20260103",
                "ScheduledProcedureStepStartTime": "0900",
            },
            {},
            "",
        ),
        (
            {"ScheduledProcedureStepStartDate": "20260102", "ScheduledProcedureStepStartTime": "08-0900"},
            {},
            "A1",
        ),
        # ranges of both are one range of moments: from 9 o'clock on the 2nd until 9 o'clock on the 3rd
        (
            {
                "ScheduledProcedureStepStartDate": "20260102-20260103",
                "ScheduledProcedureStepStartTime": "0900-0900",
            },
            {},
            "A2 A3",
        ),
        ({"ScheduledPerformingPhysicianName": "who*"}, {}, "A1"),
        ({"ScheduledProcedureStepStartDate": "20260705"}, {}, "A5"),
        ({"ScheduledProcedureStepStartDate": "20260704"}, {}, ""),
        ({"ScheduledProcedureStepStartDate": "20260704"}, {"TimezoneOffsetFromUTC": "+0000"}, "A5"),
        ({}, {"PatientName": "doe*"}, "A1 A4"),
        ({}, {"PatientName": "Doe"}, "A4"),
        ({}, {"PatientName": "Müller^J*"}, "A2"),
        ({}, {"PatientName": "MULLER*"}, "A2"),
        ({}, {"PatientName": "*=山田*"}, "A3"),
        ({}, {"PatientName": "山田*"}, "A3"),
        ({}, {"PatientID": "P2"}, "A2"),
        ({}, {"PatientID": "p2"}, ""),
        ({}, {"PatientID": "P5?"}, "A5"),
        ({}, {"AccessionNumber": "A3"}, "A3"),
        ({}, {"RequestedProcedureID": "RP-A1"}, "A1"),
        ({"Modality": "CT"}, {"StudyInstanceUID": STUDY}, "A1 A2 A4"),
        ({"Modality": "CT"}, {"StudyInstanceUID": "1.2.3"}, ""),
        ({"ScheduledProcedureStepStatus": "ARRIVED"}, {}, ""),
    ],
)
def test_each_key_matches_scheduled_steps_of_the_partition_alone(
    adapter: Adapter, step: dict[str, str], keys: dict[str, str], found: str
) -> None:
    entries, statuses = ask(adapter, identifier(step, **keys))
    assert " ".join(sorted(ds.AccessionNumber for ds in entries)) == found
    assert statuses == [0xFF00] * len(entries) + [0]


def test_partitions_and_other_states_are_kept_apart(adapter: Adapter) -> None:
    entries, _ = ask(adapter, identifier(), called="OTHERS")
    assert [ds.AccessionNumber for ds in entries] == ["ELSEWHERE"]
    entries, _ = ask(adapter, identifier())
    assert sorted(ds.AccessionNumber for ds in entries) == sorted(SCHEDULED)


def test_keys_that_no_entry_has_are_not_matched_and_the_answers_say_so(adapter: Adapter) -> None:
    wanted = identifier({"Modality": "MR", "ScheduledProcedureStepEndDate": "20200101"}, InstitutionName="X")
    entries, statuses = ask(adapter, wanted)
    assert [(ds.AccessionNumber, ds.InstitutionName) for ds in entries] == [("A3", "")]
    assert statuses == [0xFF01, 0]


def test_findscu_gets_every_attribute_of_an_entry(adapter: Adapter, tmp_path: Path) -> None:
    keys = (
        "PatientName",
        "PatientID=P1",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "AccessionNumber",
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "RequestedProcedurePriority",
        "RequestedProcedureCodeSequence[0].CodeValue",
        "MedicalAlerts",
        "ScheduledProcedureStepSequence[0].ScheduledStationAETitle",
        "ScheduledProcedureStepSequence[0].ScheduledStationName",
        "ScheduledProcedureStepSequence[0].Modality=CT",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate=20260101-",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime",
        "ScheduledProcedureStepSequence[0].ScheduledPerformingPhysicianName",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription",
        "ScheduledProcedureStepSequence[0].ScheduledProcedureStepID",
        "ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence",
        "ScheduledProcedureStepSequence[0].CommentsOnTheScheduledProcedureStep",
    )
    entry = findscu(adapter, tmp_path, *keys)
    assert [str(entry.PatientName), entry.PatientID, entry.PatientBirthDate, entry.PatientSex] == [
        "Doe^Jane",
        "P1",
        "19700101",
        "F",
    ]
    assert (entry.StudyInstanceUID, entry.AccessionNumber, entry.RequestedProcedureID) == (
        STUDY,
        "A1",
        "RP-A1",
    )
    assert (entry.RequestedProcedureDescription, entry.RequestedProcedurePriority) == ("Head", "HIGH")
    assert [item.CodeValue for item in entry.RequestedProcedureCodeSequence] == ["CTHEAD"]
    assert entry.MedicalAlerts == ""
    (item,) = entry.ScheduledProcedureStepSequence
    assert (item.ScheduledStationAETitle, item.ScheduledStationName) == ("CT1", "Room of CT1")
    assert item.Modality == "CT"
    assert (item.ScheduledProcedureStepStartDate, item.ScheduledProcedureStepStartTime) == (
        "20260102",
        "083000",
    )
    assert str(item.ScheduledPerformingPhysicianName) == "Who^Doctor"
    assert item.ScheduledProcedureStepDescription == "CT of the head"
    assert [one.CodeValue for one in item.ScheduledProtocolCodeSequence] == ["110005"]
    assert item.CommentsOnTheScheduledProcedureStep == "Fasting"
    again = findscu(adapter, tmp_path, *keys)
    assert len(item.ScheduledProcedureStepID) == 16
    assert again.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID == item.ScheduledProcedureStepID


def findscu(adapter: Adapter, folder: Path, *keys: str) -> Dataset:
    """The only answer that dcmtk's findscu gets."""
    options = [part for key in keys for part in ("-k", key)]
    address = ("-aec", "OURS", "127.0.0.1", adapter.port)
    run_tool("findscu", "-W", "-X", *options, *address, cwd=folder)
    (file,) = folder.glob("rsp*.dcm")
    found = dcmread(file)
    file.unlink()
    return found


def test_findscu_finds_and_gets_names_beyond_ascii(adapter: Adapter, tmp_path: Path) -> None:
    keys = ("ScheduledProcedureStepSequence[0].ScheduledStationAETitle=MR1", "PatientName=*=山田*")
    entry = findscu(adapter, tmp_path, "SpecificCharacterSet=ISO_IR 192", *keys)
    assert (entry.SpecificCharacterSet, str(entry.PatientName)) == ("ISO_IR 192", JAPANESE)


def test_a_step_of_several_stations_and_of_another_time_zone(adapter: Adapter) -> None:
    (entry,), _ = ask(adapter, identifier(PatientID="P4"))
    assert list(entry.ScheduledProcedureStepSequence[0].ScheduledStationAETitle) == ["CT1", "CT2"]
    (entry,), _ = ask(adapter, identifier(PatientID="P5*", TimezoneOffsetFromUTC=""))
    item = entry.ScheduledProcedureStepSequence[0]
    assert (item.ScheduledProcedureStepStartDate, item.ScheduledProcedureStepStartTime) == (
        "20260705",
        "003000",
    )
    assert entry.TimezoneOffsetFromUTC == "+0200"


def test_more_than_a_page_is_complete_and_can_be_canceled(adapter: Adapter) -> None:
    wanted = identifier(PatientID="")
    entries, statuses = ask(adapter, wanted, "MANY")
    assert {ds.PatientID for ds in entries} == {f"M{number}" for number in range(MANY)}
    assert statuses == [0xFF00] * MANY + [0]
    with associated(adapter.port, called="MANY") as association:
        seen = []
        for status, _ in association.send_c_find(wanted, ModalityWorklistInformationFind):
            seen.append(int(status.Status))
            if len(seen) == 1:
                association.send_c_cancel(1, query_model=ModalityWorklistInformationFind)
    assert seen[-1] == 0xFE00
    assert len(seen) <= MANY


def test_a_step_that_is_claimed_leaves_the_worklist(
    adapter: Adapter, worklists: tuple[Worklist, ...]
) -> None:
    uid = worklists[1].create(**step("NEXT", "DX1", "DX", "20260102083000"))
    wanted = identifier({"Modality": "DX"})
    assert len(ask(adapter, wanted, "OTHERS")[0]) == 1
    assert worklists[1].state(uid, "IN PROGRESS", OWNER).status_code == 200
    assert ask(adapter, wanted, "OTHERS") == ([], [0])


def test_patient_data_stay_out_of_the_log(adapter: Adapter) -> None:
    assert "Exception" not in adapter.log
    for value in ("Müller", "Yamada", "Doe"):
        assert value not in adapter.log


# --- a server that fails, and answers that no server should give ----------------------------------------


class Recorded:
    """Stands where the server is: workitems that it answers before it is away."""

    def __init__(self, *items: Json, away: bool = False) -> None:
        self.items = items
        self.away = away

    def search(self, _partition: str, _path: str, _query: list[tuple[str, str]]) -> Iterator[Json]:
        yield from self.items
        if self.away:
            raise Unavailable("away")


class Event:
    is_cancelled = False


def statuses_of(server: Any, limit: int = 100) -> list[int]:
    answers = worklist.find(server, "p", identifier(), limit, Event())
    return [int(getattr(status, "Status", status)) for status, _ in answers]


def test_too_many_entries_and_an_absent_server_fail_instead_of_answering_a_part() -> None:
    items = [data_set(**SCHEDULED[accession]) for accession in ("A1", "A2", "A3")]
    assert statuses_of(Recorded(*items), limit=2) == [0xFF00, 0xFF00, 0xA700]
    assert statuses_of(Recorded(away=True)) == [0xC001]
    assert statuses_of(Recorded(*items, away=True)) == [0xFF00, 0xFF00, 0xFF00, 0xC001]


def test_a_value_that_breaks_its_vr_leaves_the_rest_of_the_worklist() -> None:
    broken = data_set(**SCHEDULED["A1"]) | {
        "00101020": {"vr": "DS", "Value": ["tall"]},
        "00404005": {"vr": "DT", "Value": ["soon"]},
    }
    assert statuses_of(Recorded(broken, data_set(**SCHEDULED["A2"]))) == [0xFF00, 0xFF00]


def test_an_unknown_time_zone_is_named_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "adapter.toml"
    path.write_text(
        '[server]\nurl = "http://127.0.0.1:1/v2"\n[spool]\nfolder = "spool"\n[worklist]\ntime_zone = "Mars"\n'
        '[[routes]]\nae_title = "A"\ncalling = ["*"]\nhosts = ["127.0.0.1"]\n'
    )
    with pytest.raises(ConfigurationError, match=r"worklist\.time_zone: .*no such time zone"):
        load(path)
    path.write_text(path.read_text().replace("Mars", "Europe/Berlin"))
    assert isinstance(load(path), Configuration)
