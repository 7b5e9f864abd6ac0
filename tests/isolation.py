"""Partitions that hold equal UIDs and different content, and what of one would show in another.

Everything of a partition bears its marker: patient, descriptions, a large private value, the pixels. A
:class:`Tenant` requests things of its partition and looks through whatever comes back, also inside
multipart bodies, archives and images, for what is of another: markers, pixels and URLs.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
from azure.storage.blob import BlobServiceClient
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import generate_uid

from shared.dicom.identifiers import DEFAULT_PARTITION
from tests.conftest import Server
from tests.dicom_files import make_dataset, multipart, read_multipart, to_file
from tests.operations_harness import wait_for_end

SIDE = 16
PRIVATE_BYTES = 40_000
_TRANSPORT = httpx.HTTPTransport(retries=2, limits=httpx.Limits(max_connections=40))


@dataclass(frozen=True)
class Uids:
    """The identifiers of an instance, the same in every partition."""

    study: str
    series: str
    instance: str

    @property
    def study_path(self) -> str:
        """The study below a Studies service."""
        return f"studies/{self.study}"

    @property
    def series_path(self) -> str:
        """The series."""
        return f"{self.study_path}/series/{self.series}"

    @property
    def path(self) -> str:
        """The instance."""
        return f"{self.series_path}/instances/{self.instance}"


def same_everywhere(studies: int = 2, series: int = 2, instances: int = 2) -> list[Uids]:
    """Identifiers of ``studies`` times ``series`` times ``instances`` instances."""
    found = []
    for _ in range(studies):
        study = generate_uid()
        for _ in range(series):
            uid = generate_uid()
            found += [Uids(study, uid, generate_uid()) for _ in range(instances)]
    return found


@dataclass
class Tenant:
    """A partition with its marker and the value of all its pixels.

    ``known`` are the identifiers in use, ``bare`` addresses the default partition without naming it, and
    ``stored`` are the generations of instances that its only writer knows to be there.
    """

    server: Server
    name: str
    value: int
    known: list[Uids]
    others: list[Tenant]
    bare: bool = False
    marker: str = field(default_factory=lambda: f"MARK{uuid.uuid4().hex}")
    stored: dict[Uids, int] = field(default_factory=dict)
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http = httpx.Client(timeout=120, transport=_TRANSPORT)
        self.root = self.server.v2 if self.bare else f"{self.server.v2}/partitions/{self.name}"

    # --- what it stores --------------------------------------------------------------------------------

    def dataset(self, uids: Uids, generation: int = 0) -> Dataset:
        """The instance as this partition has it."""
        pixels = bytes([self.value]) * (2 * SIDE * SIDE)
        ds = make_dataset(
            uids.study,
            uids.series,
            uids.instance,
            PatientID=self.marker,
            PatientName=f"{self.marker}^{generation}",
            StudyDescription=self.marker,
            SeriesDescription=self.marker,
            AccessionNumber=self.marker[:16],
            StationName=self.marker[:16],
            InstanceNumber=generation,
            Rows=SIDE,
            Columns=SIDE,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            NumberOfFrames=2,
            WindowCenter=128,
            WindowWidth=256,
            PixelData=pixels,
        )
        ds["PixelData"].VR = "OB"
        block = ds.private_block(0x0099, "ISOLATION", create=True)
        block.add_new(
            0x01, "OB", (self.marker.encode() * (PRIVATE_BYTES // len(self.marker)))[:PRIVATE_BYTES]
        )
        return ds

    def store(self, *wanted: Uids, path: str = "studies", method: str = "POST") -> httpx.Response:
        """Store a new generation of instances and remember those that the answer says are stored."""
        generations = {uids: next(self.generations) for uids in wanted}
        body, headers = multipart(to_file(self.dataset(uids, generations[uids])) for uids in wanted)
        response = self.request(method, path, content=body, headers=headers)
        assert response.status_code in (200, 202, 409), response.text
        for item in response.json().get("00081199", {}).get("Value", []):
            (uid,) = item["00081155"]["Value"]
            (uids,) = (u for u in wanted if u.instance == uid)
            self.stored[uids] = generations[uids]
        return response

    def import_file(self, uids: Uids) -> None:
        """Have a new generation of an instance imported, and junk that will be in the report."""
        generation = next(self.generations)
        connection = self.server.environment["AzureWebJobsStorage"]
        source = BlobServiceClient.from_connection_string(connection).create_container(
            f"source-{uuid.uuid4().hex[:12]}"
        )
        source.upload_blob("file", to_file(self.dataset(uids, generation)))
        source.upload_blob(f"junk of {self.marker}", b"junk")
        settings = {"connectionString": connection, "blobContainerName": source.container_name}
        body = {"source": {"type": "azureblob", "settings": settings}, "duplicates": "replace"}
        response = self.request("POST", "import", json=body)
        assert response.status_code == 202, response.text
        results = wait_for_end(response.json()["href"], 120)["results"]
        assert results["stored"] + results["replaced"] == results["refused"] == 1, results
        self.stored[uids] = generation
        self.imports.append(response.json()["id"])
        source.delete_container()

    def update_study(self, uids: Uids) -> None:
        """Have the description of a study changed, which succeeds where there is such a study here."""
        description = {"00081030": {"vr": "LO", "Value": [f"{self.marker} updated"]}}
        body = {"studyInstanceUids": [uids.study], "changeDataset": description}
        response = self.request("POST", "studies/$bulkUpdate", json=body)
        assert response.status_code == 202, response.text
        operation = wait_for_end(response.json()["href"], 120)
        there = sum(one.study == uids.study for one in self.stored)
        assert operation["status"] == ("succeeded" if there else "failed"), operation
        assert operation["results"]["instanceUpdated"] == there

    def read_reports(self) -> None:
        """A report of one's own shows what is one's own, and one of another is not there."""
        for id in self.imports[-2:]:
            assert self.marker in self.get(f"import/{id}/report").text
        for other in self.others:
            for id in other.imports[-2:]:
                assert self.get(f"import/{id}/report").status_code == 404

    def read_operations(self) -> None:
        """What operations of one's own say has nothing of another."""
        for id in self.imports[-2:]:
            response = self.http.get(f"{self.server.v2}/operations/{id}")
            assert response.status_code == 200
            assert f"import/{id}/report" in response.text
            self.look_through(response)

    def forget(self, prefix: str) -> int:
        """Delete what is below a path; the status."""
        response = self.request("DELETE", prefix)
        there = [uids for uids in self.stored if f"{uids.path}/".startswith(f"{prefix}/")]
        assert response.status_code == (204 if there else 404), (prefix, response.status_code)
        for uids in there:
            del self.stored[uids]
        return response.status_code

    # --- what it sees ----------------------------------------------------------------------------------

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A request below the partition's root, its answer looked through."""
        response = self.http.request(method, f"{self.root}/{path}", **options)
        assert response.status_code < 500, (method, path, response.status_code, response.text)
        self.look_through(response)
        return response

    def get(self, path: str, accept: str = "*/*", **options: Any) -> httpx.Response:
        """GET, and now and then HEAD before it."""
        if random.random() < 0.1:
            self.request("HEAD", path, headers={"Accept": accept}, **options)
        return self.request("GET", path, headers={"Accept": accept}, **options)

    def look_through(self, response: httpx.Response) -> None:
        """AssertionError where an answer shows anything of another partition."""
        for name, value in response.headers.multi_items():
            self._look_at_text(f"{name}: {value}".encode())
        if response.status_code in (200, 202, 206, 409) and response.content:
            self.look_at(response.headers.get("Content-Type", ""), response.content)
        else:
            self._look_at_text(response.content)

    def look_at(self, content_type: str, body: bytes) -> None:
        """Look at a body, and at the bodies within it."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/related":
            for headers, part in read_multipart(content_type, body):
                self._look_at_text(str(headers).encode())
                self.look_at(headers["content-type"], part)
        elif kind == "application/zip":
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                for name in archive.namelist():
                    self.look_at("application/dicom" if name.endswith(".dcm") else "", archive.read(name))
        elif kind.startswith("image/"):
            pixels = np.asarray(Image.open(io.BytesIO(body)).convert("L")).astype(int)
            assert abs(pixels - self.value).max() <= 4, f"pixels of another partition: {np.unique(pixels)}"
        elif kind == "application/dicom":
            self._look_at_file(body)
        elif kind == "application/octet-stream":
            self._look_at_text(body)
            if self.marker.encode() not in body:
                assert set(body) <= {self.value}, "pixels of another partition"
        else:
            self._look_at_text(body)

    def _look_at_file(self, body: bytes) -> None:
        self._look_at_text(body)
        ds = dcmread(DicomBytesIO(body))
        assert ds.PatientID == self.marker
        assert set(ds.PixelData) == {self.value}

    def _look_at_text(self, body: bytes) -> None:
        for other in self.others:
            assert other.marker.encode() not in body, f"{self.name} shows what is of {other.name}"
        for partition in re.findall(rb"/v2/(?:partitions/([^/\"<\s]+)/)?(?:studies|series|instances)", body):
            shown = partition.decode() or DEFAULT_PARTITION
            assert shown == self.name, f"{self.name} shows a URL of {shown}"


def tenants(server: Server) -> list[Tenant]:
    """The default partition and two whose names differ in case alone."""
    known = same_everywhere()
    made = [
        Tenant(server, DEFAULT_PARTITION, 40, known, [], bare=True),
        Tenant(server, "Clinic-1", 128, known, []),
        Tenant(server, "clinic-1", 220, known, []),
    ]
    for tenant in made:
        tenant.others.extend(other for other in made if other is not tenant)
    return made


def named(tenant: Tenant) -> Tenant:
    """The same partition, with its name in every path."""
    return replace(tenant, bare=False)


def feed(server: Server) -> Iterator[dict[str, Any]]:
    """Every entry of the change feed with metadata."""
    offset = 0
    with httpx.Client(timeout=60) as client:
        while True:
            response = client.get(f"{server.v2}/changefeed", params={"offset": offset, "limit": 200})
            entries = response.raise_for_status().json()
            if not entries:
                return
            yield from entries
            offset = entries[-1]["Sequence"]
