"""Uploads DICOM files and folders by STOW-RS: ``python -m devhost.load PATH... [--url URL]``.

Files travel several to a request and several requests at a time, each streamed from disk. Everything is
sent, also what is no DICOM: the server says why it refuses a file, and that is what the user wants to see.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_BATCH_FILES = 10
_BATCH_BYTES = 20 * 1024 * 1024
_CHUNK = 1024 * 1024
_ATTEMPTS = 4
_DUPLICATE = 45070
_DEMO = (
    "CT_small.dcm",
    "MR_small.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "JPEG2000.dcm",
    "liver_1frame.dcm",
    "reportsi.dcm",
    "rtdose.dcm",
    "rtplan.dcm",
    "waveform_ecg.dcm",
)


@dataclass(frozen=True)
class File:
    """A file to send; ``uid`` is its SOP Instance UID, empty when it cannot be read."""

    path: Path
    size: int
    uid: str


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``stored``, ``warned``, ``duplicate`` or ``refused``, and why."""

    file: File
    status: str
    reason: str = ""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths`` and below its folders, sorted within each."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def demo_files(folder: Path) -> list[Path]:
    """Studies made into ``folder``, and a few of pydicom's files: several modalities and syntaxes."""
    from pydicom.data import get_testdata_file

    from devhost import demo

    return demo.write(folder) + [Path(str(get_testdata_file(name, download=False))) for name in _DEMO]


def describe(path: Path) -> File:
    """Size and SOP Instance UID of a file. Raises OSError when it cannot be read."""
    from pydicom.filereader import read_partial

    uid = ""
    with path.open("rb") as content, contextlib.suppress(Exception):  # any file at all may come
        ds = read_partial(content, stop_when=lambda tag, *_: tag > 0x00080018)
        uid = str(ds.SOPInstanceUID)
    return File(path, path.stat().st_size, uid)


def batches(files: Iterable[File]) -> Iterator[list[File]]:
    """Files for one request each: up to 10 files and 20 MB.

    No request holds a UID twice, and a file without one travels alone, so that the server's outcomes can
    be told apart.
    """
    batch: list[File] = []
    for file in files:
        if not file.uid:
            yield [file]
            continue
        size = sum(one.size for one in batch) + file.size
        known = any(one.uid == file.uid for one in batch)
        if batch and (len(batch) == _BATCH_FILES or size > _BATCH_BYTES or known):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


class Loader:
    """Sends batches to one server."""

    def __init__(self, url: str, concurrency: int) -> None:
        self._url = f"{url.rstrip('/').removesuffix('/v2')}/v2/studies"
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(timeout=httpx.Timeout(300, connect=10), limits=limits, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, batch: list[File], progress: _Sent) -> list[Outcome]:
        """Send one request, again when the server asks for it; an outcome for each file.

        Raises httpx.ConnectError when there is no server.
        """
        for attempt in range(_ATTEMPTS):
            try:
                response = self._post(batch, progress)
            except httpx.ConnectError:
                raise
            except (httpx.TransportError, OSError) as error:
                return [Outcome(file, "refused", f"{type(error).__name__}: {error}") for file in batch]
            if response.status_code != 503 or attempt == _ATTEMPTS - 1:
                break
            progress.take_back(sum(file.size for file in batch))
            time.sleep(min(30.0, float(response.headers.get("Retry-After", "1"))))
        return read_outcomes(batch, response)

    def _post(self, batch: list[File], progress: _Sent) -> httpx.Response:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"--{boundary}--\r\n".encode()
        length = sum(len(head) + file.size + 2 for file in batch) + len(tail)

        def body() -> Iterator[bytes]:
            for file in batch:
                yield head
                with file.path.open("rb") as content:
                    while chunk := content.read(_CHUNK):
                        yield chunk
                        progress.add(len(chunk))
                yield b"\r\n"
            yield tail

        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(length),
            "Accept": "application/dicom+json",
        }
        return self._client.post(self._url, content=body(), headers=headers)


class _Sent:
    """Counts bytes from many threads for the progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress = progress
        self._task = task
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._progress.advance(self._task, count)

    def take_back(self, count: int) -> None:
        self.add(-count)


def read_outcomes(batch: list[File], response: httpx.Response) -> list[Outcome]:
    """The outcome of each file by the server's answer (PS3.18 §10.5.3, Table I.2-1)."""
    if response.status_code not in (200, 202, 409):
        reason = _problem(response)
        return [Outcome(file, "refused", reason) for file in batch]
    answer = response.json()
    alone = batch[0] if len(batch) == 1 else None
    files = {file.uid: file for file in batch}
    outcomes: dict[Path, Outcome] = {}
    for item in _items(answer, "00081199"):
        file = alone or files.get(_value(item, "00081155"))
        if file is not None:
            code = _value(item, "00081196")
            status = "stored" if code is None else "warned"
            outcomes[file.path] = Outcome(file, status, _comments(item) or f"warning reason {code}")
    for item in _items(answer, "00081198"):
        file = alone or files.get(_value(item, "00081155"))
        if file is not None:
            code = _value(item, "00081197")
            status = "duplicate" if code == _DUPLICATE else "refused"
            outcomes[file.path] = Outcome(file, status, f"{code}: {_comments(item)}".rstrip(": "))
    missing = "the server's answer does not name it"
    return [outcomes.get(file.path) or Outcome(file, "refused", missing) for file in batch]


def _problem(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = "nothing was stored" if response.status_code == 204 else response.reason_phrase
    return f"HTTP {response.status_code}: {detail}"


def _items(answer: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return list(answer.get(tag, {}).get("Value", ()))


def _value(item: dict[str, Any], tag: str) -> Any:
    values = item.get(tag, {}).get("Value", ())
    return values[0] if values else None


def _comments(item: dict[str, Any]) -> str:
    """The Error Comments of the Failed Attributes Sequence."""
    return "; ".join(str(_value(failed, "00000902")) for failed in _items(item, "00741048"))


def load(paths: list[Path], url: str, concurrency: int, console: Console) -> int:
    """Send everything and print a summary; 0 when nothing was refused."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sizes = {path: path.stat().st_size for path in paths}
    loader = Loader(url, concurrency)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with contextlib.closing(loader), Progress(*columns, console=console, transient=True) as progress:
        sent = _Sent(progress, progress.add_task("Uploading", total=sum(sizes.values())))
        for outcome in _send_all(loader, paths, sent, concurrency):
            counts[outcome.status] += 1
            if outcome.status == "refused":
                reasons[outcome.reason] += 1
                console.print(f"refused {outcome.file.path}: {outcome.reason}", markup=False, soft_wrap=True)
            elif outcome.status == "warned":
                console.print(f"warning {outcome.file.path}: {outcome.reason}", markup=False, soft_wrap=True)
    kinds = ("stored", "warned", "duplicate", "refused")
    console.print(f"{len(paths)} files: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    for reason, count in reasons.most_common():
        console.print(f"  {count:>6} x {reason}", markup=False, soft_wrap=True)
    return 1 if counts["refused"] else 0


def _send_all(loader: Loader, paths: list[Path], sent: _Sent, concurrency: int) -> Iterator[Outcome]:
    """Outcomes as they come; no more requests are prepared than are under way."""
    with ThreadPoolExecutor(concurrency) as pool:
        running: set[Future[list[Outcome]]] = set()
        try:
            for batch in batches(describe(path) for path in paths):
                if len(running) >= concurrency:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
                running.add(pool.submit(loader.send, batch, sent))
            for future in running:
                yield from future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev.py load", description="Upload DICOM files by STOW-RS.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files and folders")
    parser.add_argument("--url", default="http://127.0.0.1:7071", help="the server (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default %(default)s)")
    parser.add_argument("--demo", action="store_true", help="upload sample studies")
    options = parser.parse_args()
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as folder:
            paths = find_files(options.paths) + (demo_files(Path(folder)) if options.demo else [])
            if not paths:
                parser.error("no files were given or found")
            return load(paths, options.url, max(1, options.concurrency), console)
    except httpx.ConnectError:
        print(f"No server answers at {options.url}; start one with `python3 dev.py run`.", file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be read: {error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
