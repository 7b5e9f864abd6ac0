"""A partition of a running server, so that tests which share the server do not see each other's instances."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from tests.conftest import Server
from tests.dicom_files import multipart, read_multipart

DICOM_JSON = "application/dicom+json"


class Partition:
    """A fresh partition of ``server``; paths are relative to its Studies service."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.root = f"{server.v2}/partitions/{self.name}"
        self.http = httpx.Client(timeout=120)

    def request(self, method: str, path: str, content: Any = None, **headers: str) -> httpx.Response:
        """Any request; header names are given with underscores."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.request(method, f"{self.root}/{path}", content=content, headers=names)

    def get(self, path: str, accept: str = "*/*", **headers: str) -> httpx.Response:
        """GET with an Accept header."""
        return self.request("GET", path, Accept=accept, **headers)

    def store(self, *files: bytes, path: str = "studies", method: str = "POST") -> httpx.Response:
        """Store files with one multipart request."""
        body, headers = multipart(files)
        return self.http.request(method, f"{self.root}/{path}", content=body, headers=headers)

    def keep(self, *files: bytes) -> list[str]:
        """Store files that must be accepted; the paths of their instances in order."""
        response = self.store(*files)
        assert response.status_code in (200, 202), response.text
        assert "00081198" not in response.json(), response.text
        return [path_of(file) for file in files]

    def parts(self, path: str, accept: str, status: int = 200) -> list[tuple[dict[str, str], bytes]]:
        """The parts of a multipart response."""
        response = self.get(path, accept)
        assert response.status_code == status, response.text
        return read_multipart(response.headers["Content-Type"], response.content)


def path_of(file: bytes) -> str:
    """The path of the instance that a file holds."""
    ds = dcmread(DicomBytesIO(file), stop_before_pixels=True, force=True)
    return f"studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def problem(response: httpx.Response, status: int) -> str:
    """The sentence of an error, after a check of the error's form."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body.keys() == {"type", "title", "status", "detail"}
    return str(body["detail"])


def values(attribute: dict[str, Any]) -> list[Any]:
    """The values of a DICOM JSON attribute."""
    found: list[Any] = attribute.get("Value", [])
    return found
