"""Workitems as tests make them."""

from __future__ import annotations

from typing import Any

import httpx
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import generate_uid

from tests.partition import Partition

Json = dict[str, Any]

JSON = "application/dicom+json"


def element(keyword: str, *values: Any) -> tuple[str, Json]:
    """An attribute of DICOM JSON."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    vr = str(dictionary_VR(tag)).split(" ")[0]
    return f"{tag:08X}", {"vr": vr} | ({"Value": list(values)} if values else {})


def data_set(**attributes: Any) -> Json:
    """DICOM JSON of attributes by keyword: a value, a list of values, None for empty."""
    found = {}
    for keyword, value in attributes.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        tag, one = element(keyword, *values)
        found[tag] = one
    return found


def code(value: str, meaning: str = "Meaning") -> Json:
    """An item of a code sequence."""
    return data_set(CodeValue=value, CodingSchemeDesignator="99TEST", CodeMeaning=meaning)


def new(**attributes: Any) -> Json:
    """The data set of a Create: all a new workitem must have, and ``attributes``."""
    given: dict[str, Any] = {
        "TransactionUID": None,
        "ScheduledProcedureStepPriority": "MEDIUM",
        "ProcedureStepLabel": "Label",
        "WorklistLabel": "Worklist",
        "ScheduledProcessingParametersSequence": None,
        "ScheduledStationNameCodeSequence": None,
        "ScheduledStationClassCodeSequence": None,
        "ScheduledStationGeographicLocationCodeSequence": None,
        "ScheduledProcedureStepStartDateTime": "20261125120000",
        "ScheduledWorkitemCodeSequence": None,
        "CommentsOnTheScheduledProcedureStep": None,
        "InputReadinessState": "READY",
        "InputInformationSequence": None,
        "PatientName": {"Alphabetic": "Doe^Jane"},
        "PatientID": "P1",
        "IssuerOfPatientID": None,
        "IssuerOfPatientIDQualifiersSequence": None,
        "OtherPatientIDsSequence": None,
        "PatientBirthDate": None,
        "PatientSex": None,
        "AdmissionID": None,
        "IssuerOfAdmissionIDSequence": None,
        "AdmittingDiagnosesDescription": None,
        "AdmittingDiagnosesCodeSequence": None,
        "ReferencedRequestSequence": None,
        "ProcedureStepState": "SCHEDULED",
        "ProcedureStepProgressInformationSequence": None,
        "UnifiedProcedureStepPerformedProcedureSequence": None,
    }
    return data_set(**given | attributes)


def performed() -> Json:
    """What a COMPLETED workitem must have."""
    instances = data_set(
        TypeOfInstances="DICOM",
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        ReferencedSOPSequence=data_set(ReferencedSOPClassUID="1.2.3", ReferencedSOPInstanceUID="1.2.3.4"),
    )
    return data_set(
        UnifiedProcedureStepPerformedProcedureSequence=data_set(
            PerformedStationNameCodeSequence=code("CT1"),
            PerformedProcedureStepStartDateTime="20261125120000",
            PerformedWorkitemCodeSequence=code("110005"),
            PerformedProcedureStepEndDateTime="20261125123000",
            OutputInformationSequence=instances,
        )
    )


class Worklist:
    """The worklist of a partition."""

    def __init__(self, partition: Partition) -> None:
        self.root = f"{partition.root}/workitems"
        self.http = partition.http

    def create(self, uid: str | None = None, **attributes: Any) -> str:
        """Create a workitem that must be accepted: its UID."""
        uid = uid or generate_uid()
        response = self.post(f"?{uid}", new(**attributes))
        assert response.status_code == 201, response.text
        return uid

    def post(self, path: str, body: Any, content_type: str = JSON) -> httpx.Response:
        """POST a data set."""
        return self.http.post(f"{self.root}{path}", json=body, headers={"Content-Type": content_type})

    def state(self, uid: str, state: str, transaction: str | None) -> httpx.Response:
        """Change the state."""
        body = data_set(ProcedureStepState=state)
        if transaction is not None:
            body |= data_set(TransactionUID=transaction)
        url = f"{self.root}/{uid}/state"
        return self.http.put(url, json=body, headers={"Content-Type": JSON})

    def update(self, uid: str, transaction: str | None, **attributes: Any) -> httpx.Response:
        """Update attributes."""
        query = f"?transaction-uid={transaction}" if transaction else ""
        return self.post(f"/{uid}{query}", data_set(**attributes))

    def cancel(self, uid: str, **attributes: Any) -> httpx.Response:
        """Request cancellation."""
        return self.post(f"/{uid}/cancelrequest", data_set(**attributes))

    def get(self, uid: str) -> Json:
        """The workitem as it is."""
        response = self.http.get(f"{self.root}/{uid}", headers={"Accept": JSON})
        assert response.status_code == 200, response.text
        found: Json = response.json()
        return found

    def find(self, **query: str | int) -> list[Json]:
        """What a search finds."""
        response = self.http.get(self.root, params=query, headers={"Accept": JSON})
        assert response.status_code in (200, 204), response.text
        found: list[Json] = response.json() if response.status_code == 200 else []
        return found


# --- with any client -----------------------------------------------------------------------------------


LABEL = data_set(ProcedureStepLabel="Another label")
"""An update."""

OWNER = "1.2.3.4"
"""The Transaction UID of whoever claims workitems here."""


def create(client: httpx.Client, uid: str = "") -> httpx.Response:
    """Create Workitem."""
    return client.post("/v2/workitems", json=new(SOPInstanceUID=uid or generate_uid()))


def change(client: httpx.Client, uid: str, state: str = "IN PROGRESS") -> httpx.Response:
    """Change Workitem State."""
    body = data_set(ProcedureStepState=state, TransactionUID=OWNER)
    return client.put(f"/v2/workitems/{uid}/state", json=body)


def created(client: httpx.Client, state: str = "SCHEDULED") -> str:
    """The UID of a workitem in a state."""
    uid = str(generate_uid())
    assert create(client, uid).status_code == 201
    if state != "SCHEDULED":
        assert change(client, uid).status_code == 200
    if state in ("COMPLETED", "CANCELED"):
        assert client.post(f"/v2/workitems/{uid}?{OWNER}", json=performed()).status_code == 200
        assert change(client, uid, state).status_code == 200
    return uid


def path(client: httpx.Client, state: str = "SCHEDULED") -> str:
    """The path of a workitem in a state."""
    return f"/v2/workitems/{created(client, state)}"


def found(client: httpx.Client, **headers: str) -> httpx.Response:
    """A search that finds a workitem."""
    return client.get(f"/v2/workitems?SOPInstanceUID={created(client)}", headers=headers)
