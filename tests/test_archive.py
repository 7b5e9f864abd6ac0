"""Studies, series and instances as Zip archives."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import httpx
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from tests.conftest import Server
from tests.dicom_files import make_file
from tests.partition import Partition

ZIP = "application/zip"


def opened(response: httpx.Response) -> ZipFile:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == ZIP
    return ZipFile(io.BytesIO(response.content))


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def test_an_archive_holds_the_files_as_stored(archive: Partition, tmp_path: Path) -> None:
    study, series = str(generate_uid()), [str(generate_uid()), "1.2.3.."]
    files = [make_file(study, one, frames=2, encapsulated=one == series[1]) for one in series * 2]
    archive.keep(*files)
    answer = archive.get(f"studies/{study}", accept=ZIP)
    assert answer.headers["content-disposition"] == f'attachment; filename="{study}.zip"'
    with opened(answer) as unzipped:
        assert unzipped.testzip() is None
        assert sorted(unzipped.read(name) for name in unzipped.namelist()) == sorted(files)
        folders = {name.rpartition("/")[0] for name in unzipped.namelist()}
    assert folders == {f"{study}/{series[0]}", f"{study}/{series[1]}~"}
    path = tmp_path / "study.zip"
    path.write_bytes(answer.content)
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-t", path], check=True, capture_output=True)
    with opened(archive.get(f"studies/{study}/series/{series[0]}", accept=ZIP)) as unzipped:
        assert len(unzipped.namelist()) == 2


def test_files_come_in_the_syntax_asked_for(archive: Partition) -> None:
    (path,) = archive.keep(make_file(transfer_syntax=ImplicitVRLittleEndian))
    accept = f"{ZIP}; transfer-syntax={ExplicitVRLittleEndian}"
    with opened(archive.get(path, accept=accept)) as unzipped:
        (name,) = unzipped.namelist()
        ds = pydicom.dcmread(io.BytesIO(unzipped.read(name)))
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert name.endswith(f"/{ds.SOPInstanceUID}.dcm")


def test_a_file_that_cannot_be_had_says_why(archive: Partition) -> None:
    study = str(generate_uid())
    archive.keep(make_file(study), make_file(study, encapsulated=True))
    accept = f"{ZIP}; transfer-syntax={ExplicitVRLittleEndian}"
    with opened(archive.get(f"studies/{study}", accept=accept)) as unzipped:
        assert sorted(name.rpartition(".")[2] for name in unzipped.namelist()) == ["dcm", "txt"]
        (text,) = (unzipped.read(name) for name in unzipped.namelist() if name.endswith(".txt"))
    assert b"transfer-syntax=*" in text


def test_the_archive_is_one_of_several_choices(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    for accept, expected in (
        (f"{ZIP}; q=0.5, application/dicom", "application/dicom"),
        (f"{ZIP}, application/dicom; q=0.5", ZIP),
        ("*/*", "multipart/related"),
    ):
        assert archive.get(path, accept=accept).headers["content-type"].partition(";")[0] == expected
    assert archive.get("studies/1.2.3", accept=ZIP).status_code == 404
    wanted = f"{ZIP}; transfer-syntax=1.2.840.10008.1.2.4.102"
    assert archive.get(path, accept=wanted).status_code == 406
