"""The adapter's services, driven by dcmtk and pynetdicom with real files of many transfer syntaxes."""

from __future__ import annotations

import io
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from adapters.dimse.keys import MATCHED
from devhost.azurite import free_ports
from shared.dicom.attributes import ATTRIBUTES, Level
from tests.conftest import Server
from tests.dicom_files import make_file
from tests.dimse_adapter import TITLE, Adapter, associated, dataset_bytes, find, run_tool, running, send

warnings.filterwarnings("ignore", module="pydicom")

STUDY_ROOT, PATIENT_ROOT = (
    StudyRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelFind,
)
FILES = {
    "CT_small.dcm": "",
    "MR_small_implicit.dcm": "-xi",
    "MR_small_bigendian.dcm": "-xb",
    "image_dfl.dcm": "-xd",
    "SC_rgb_jpeg_dcmtk.dcm": "-xy",
    "JPEG-LL.dcm": "-xs",
    "JPEG-lossy.dcm": "-xx",
    "MR_small_RLE.dcm": "-xr",
    "MR_small_jp2klossless.dcm": "-xv",
    "JPEG2000.dcm": "-xw",
    "MR_small_jpeg_ls_lossless.dcm": "-xt",
    "examples_palette.dcm": "",
    "waveform_ecg.dcm": "",
    "reportsi.dcm": "",
}
"""pydicom's files, and the option by which storescu sends their transfer syntax."""


@pytest.fixture(scope="module")
def scp_port() -> int:
    return free_ports()[0]


@pytest.fixture(scope="module")
def adapter(server: Server, tmp_path_factory: pytest.TempPathFactory, scp_port: int) -> Iterator[Adapter]:
    extra = f'[[destinations]]\nae_title = "STORESCP"\nhost = "127.0.0.1"\nport = {scp_port}\n'
    url = f"{server.v2}/partitions/dimse"
    with running(tmp_path_factory.mktemp("adapter"), url, extra=extra) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the files, each with a UID of its own, but otherwise as they are."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for number, name in enumerate(FILES):
        source = Path(str(get_testdata_file(name, download=False)))
        uid = dcmread(source, stop_before_pixels=True).SOPInstanceUID.encode()
        data = source.read_bytes().replace(uid, uid[:-1] + str(number % 10).encode())
        found[name] = folder / name
        found[name].write_bytes(data)
    return found


@pytest.fixture(scope="module")
def stored(adapter: Adapter, files: dict[str, Path]) -> dict[str, Path]:
    """The files, sent over DIMSE and forwarded."""
    assert send(adapter.port, files.values()) == [0] * len(files)
    adapter.wait_until_empty()
    assert adapter.metrics()["dimse_quarantine_objects"] == 0, adapter.log
    return files


def instance_path(path: Path) -> str:
    ds = dcmread(path, stop_before_pixels=True)
    return f"studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def test_echoscu_is_answered(adapter: Adapter) -> None:
    run_tool("echoscu", "-aec", TITLE, "127.0.0.1", adapter.port)


def test_objects_arrive_byte_for_byte_in_every_transfer_syntax(
    stored: dict[str, Path], server: Server, tmp_path: Path
) -> None:
    for path in stored.values():
        answer = httpx.get(
            f"{server.v2}/partitions/dimse/{instance_path(path)}",
            headers={"Accept": "application/dicom; transfer-syntax=*"},
            timeout=60,
        )
        assert answer.status_code == 200, path
        (tmp_path / "got").write_bytes(answer.content)
        assert dataset_bytes(tmp_path / "got") == dataset_bytes(path), path
        assert (
            dcmread(io.BytesIO(answer.content)).file_meta.TransferSyntaxUID
            == dcmread(path).file_meta.TransferSyntaxUID
        )


def test_a_data_set_of_another_uid_than_the_request_is_refused(adapter: Adapter) -> None:
    assert send(adapter.port, [Path(str(get_testdata_file("rtplan.dcm", download=False)))]) == [0xA900]


def test_storescu_sends_every_transfer_syntax_and_twice_is_once(
    stored: dict[str, Path], adapter: Adapter
) -> None:
    """dcmtk encodes some data sets anew: those are other bytes, which are kept aside; none is lost."""
    before = adapter.metrics()
    for name, option in FILES.items():
        run_tool(
            "storescu", *([option] if option else []), "-aec", TITLE, "127.0.0.1", adapter.port, stored[name]
        )
    adapter.wait_until_empty()
    after = adapter.metrics()
    gone = {name: after[name] - before[name] for name in after}
    assert gone["dimse_objects_received_total"] == len(FILES)
    assert gone["dimse_objects_forwarded_total"] + gone["dimse_objects_refused_total"] == len(FILES)
    assert gone["dimse_objects_duplicate_total"] == gone["dimse_objects_forwarded_total"] > 0


def test_findscu_finds_studies_series_and_images(stored: dict[str, Path], adapter: Adapter) -> None:
    ds = dcmread(stored["CT_small.dcm"], stop_before_pixels=True)
    address = ("-aec", TITLE, "127.0.0.1", adapter.port)
    said = run_tool(
        "findscu",
        "-v",
        "-S",
        "-k",
        "QueryRetrieveLevel=STUDY",
        "-k",
        f"PatientID={ds.PatientID}",
        "-k",
        "StudyInstanceUID",
        *address,
    )
    assert str(ds.StudyInstanceUID) in said
    said = run_tool(
        "findscu",
        "-v",
        "-S",
        "-k",
        "QueryRetrieveLevel=SERIES",
        "-k",
        f"StudyInstanceUID={ds.StudyInstanceUID}",
        "-k",
        "SeriesInstanceUID",
        "-k",
        "Modality",
        *address,
    )
    assert str(ds.SeriesInstanceUID) in said
    said = run_tool(
        "findscu",
        "-v",
        "-P",
        "-k",
        "QueryRetrieveLevel=IMAGE",
        "-k",
        f"PatientID={ds.PatientID}",
        "-k",
        f"StudyInstanceUID={ds.StudyInstanceUID}",
        "-k",
        f"SeriesInstanceUID={ds.SeriesInstanceUID}",
        "-k",
        "SOPInstanceUID",
        *address,
    )
    assert str(ds.SOPInstanceUID) in said


def test_every_key_is_returned_and_keys_that_cannot_be_matched_are_announced(
    stored: dict[str, Path], adapter: Adapter
) -> None:
    ds = dcmread(stored["CT_small.dcm"], stop_before_pixels=True)
    answers, statuses = find(
        adapter.port,
        PATIENT_ROOT,
        QueryRetrieveLevel="PATIENT",
        PatientID=ds.PatientID,
        PatientName="*",
        PatientComments="",
    )
    assert [(a.PatientID, str(a.PatientName), a.PatientComments) for a in answers] == [
        (ds.PatientID, str(ds.PatientName), "")
    ]
    assert answers[0].QueryRetrieveLevel == "PATIENT"
    assert answers[0].RetrieveAETitle == TITLE
    assert statuses == [0xFF00, 0x0000]
    answers, statuses = find(
        adapter.port,
        STUDY_ROOT,
        QueryRetrieveLevel="STUDY",
        StudyInstanceUID=ds.StudyInstanceUID,
        InterpretationText="x",
    )
    assert len(answers) == 1
    assert statuses == [0xFF01, 0x0000]


def test_names_beyond_ascii_are_found_and_returned(adapter: Adapter, tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    study = generate_uid()
    (tmp_path / "f").write_bytes(
        make_file(study, SpecificCharacterSet="ISO_IR 192", PatientName=name, frames=0)
    )
    assert send(adapter.port, [tmp_path / "f"]) == [0]
    adapter.wait_until_empty()
    answers, _ = find(
        adapter.port,
        STUDY_ROOT,
        SpecificCharacterSet="ISO_IR 192",
        QueryRetrieveLevel="STUDY",
        StudyInstanceUID="",
        PatientName="*=山田*",
    )
    assert [(str(a.StudyInstanceUID), str(a.PatientName)) for a in answers] == [(study, name)]
    assert answers[0].SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (STUDY_ROOT, {"QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": ""}),
        (STUDY_ROOT, {"QueryRetrieveLevel": "PATIENT", "PatientID": ""}),
        (PATIENT_ROOT, {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""}),
        (STUDY_ROOT, {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": ["1.2", "1.3"]}),
        (STUDY_ROOT, {"StudyInstanceUID": ""}),
        (STUDY_ROOT, {"QueryRetrieveLevel": "STUDY", "StudyDate": "not a date"}),
    ],
)
def test_identifiers_that_break_the_model_are_refused(
    adapter: Adapter, model: str, keys: dict[str, str]
) -> None:
    assert find(adapter.port, model, **keys) == ([], [0xA900])


def test_a_find_of_many_pages_is_complete_and_can_be_canceled(
    adapter: Adapter, server: Server, tmp_path: Path
) -> None:
    patient = generate_uid()[-20:]
    boundary = "b"
    body = b"".join(
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + make_file(frames=0, PatientID=patient) + b"\r\n"
        for _ in range(250)
    )
    media = f'multipart/related; type="application/dicom"; boundary={boundary}'
    answer = httpx.post(
        f"{server.v2}/partitions/dimse/studies",
        content=body + b"--b--",
        headers={"Content-Type": media},
        timeout=120,
    )
    assert answer.status_code == 200
    answers, statuses = find(
        adapter.port, STUDY_ROOT, QueryRetrieveLevel="STUDY", PatientID=patient, StudyInstanceUID=""
    )
    assert len({a.StudyInstanceUID for a in answers}) == 250
    assert statuses == [0xFF00] * 250 + [0]
    query = Dataset()
    query.QueryRetrieveLevel, query.PatientID, query.StudyInstanceUID = "STUDY", patient, ""
    with associated(adapter.port) as association:
        seen = []
        for status, _ in association.send_c_find(query, STUDY_ROOT):
            seen.append(int(status.Status))
            if len(seen) == 1:
                association.send_c_cancel(1, query_model=STUDY_ROOT)
    assert seen[-1] == 0xFE00
    assert len(seen) < 251


def test_getscu_gets_what_is_stored(stored: dict[str, Path], adapter: Adapter, tmp_path: Path) -> None:
    """getscu takes the syntax it is told to; where another one is stored the server transcodes."""
    for name in ("CT_small.dcm", "MR_small_RLE.dcm"):
        ds = dcmread(stored[name], stop_before_pixels=True)
        (out := tmp_path / name).mkdir()
        run_tool(
            "getscu",
            "-S",
            "+B",
            "-aec",
            TITLE,
            "-od",
            out,
            "-k",
            "QueryRetrieveLevel=STUDY",
            "-k",
            f"StudyInstanceUID={ds.StudyInstanceUID}",
            "127.0.0.1",
            adapter.port,
        )
        got = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in out.iterdir()}
        assert ds.SOPInstanceUID in got
        if name == "CT_small.dcm":
            assert dataset_bytes(got[ds.SOPInstanceUID]) == dataset_bytes(stored[name])
        else:
            assert dcmread(got[ds.SOPInstanceUID]).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_movescu_moves_what_is_stored_and_counts(
    stored: dict[str, Path], adapter: Adapter, scp_port: int, tmp_path: Path
) -> None:
    for name in ("MR_small_jp2klossless.dcm", "examples_palette.dcm"):
        ds = dcmread(stored[name], stop_before_pixels=True)
        (out := tmp_path / name).mkdir()
        said = run_tool(
            "movescu",
            "-d",
            "-S",
            "-aec",
            TITLE,
            "-aet",
            "STORESCP",
            "-aem",
            "STORESCP",
            "+P",
            scp_port,
            "+xa",
            "+B",
            "-k",
            "QueryRetrieveLevel=IMAGE",
            "-k",
            f"StudyInstanceUID={ds.StudyInstanceUID}",
            "-k",
            f"SeriesInstanceUID={ds.SeriesInstanceUID}",
            "-k",
            f"SOPInstanceUID={ds.SOPInstanceUID}",
            "127.0.0.1",
            adapter.port,
            cwd=out,
        )
        assert list(out.iterdir()), said[-4000:]
        (got,) = out.iterdir()
        assert dataset_bytes(got) == dataset_bytes(stored[name]), name
        assert re.search(r"Completed Suboperations\s+: 1", said), said[-1500:]


def test_a_move_to_an_unknown_destination_is_refused(stored: dict[str, Path], adapter: Adapter) -> None:
    ae = AE()
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
    association = ae.associate("127.0.0.1", adapter.port, ae_title=TITLE)
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", "1.2"
    statuses = [
        int(status.Status)
        for status, _ in association.send_c_move(query, "NOWHERE", StudyRootQueryRetrieveInformationModelMove)
    ]
    association.release()
    assert statuses == [0xA801]


def test_keys_are_those_the_server_matches() -> None:
    for name, level in (("STUDY", Level.STUDY), ("SERIES", Level.SERIES), ("IMAGE", Level.INSTANCE)):
        known = {a.keyword for a in ATTRIBUTES if a.matching and a.level <= level}
        assert known - MATCHED[name] == set()
        assert MATCHED[name] - known <= {"Modality"}


def test_logs_hold_no_patient_data(stored: dict[str, Path], adapter: Adapter) -> None:
    for path in stored.values():
        ds = dcmread(path, stop_before_pixels=True)
        for value in (str(ds.get("PatientName", "")), str(ds.get("PatientID", ""))):
            assert len(value) < 4 or value not in adapter.log


def test_dev_py_runs_the_adapter_and_stops_it(server: Server, tmp_path: Path) -> None:
    study = generate_uid()
    file = tmp_path / "sent.dcm"
    file.write_bytes(make_file(study, frames=0))
    with running(tmp_path / "adapter", server.v2, command=("dev.py", "dimse")) as adapter:
        run_tool("echoscu", "-aec", TITLE, "127.0.0.1", adapter.port)
        run_tool("storescu", "-aec", TITLE, "127.0.0.1", adapter.port, file)
        adapter.wait_until_empty()
        assert adapter.stop() == 0
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", adapter.port))  # nothing of it is left
    found = httpx.get(f"{server.v2}/studies?StudyInstanceUID={study}", timeout=60).json()
    assert len(found) == 1
