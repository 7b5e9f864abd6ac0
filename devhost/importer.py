"""Imports a folder or a container into a server: ``python -m devhost.importer SOURCE [--url URL]``.

A folder is copied to a container of its own in the storage of this machine, and imported from there; a
container is given by its URL with a SAS. The server does the work; this shows how far it is, and what it
refused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from azure.core.exceptions import AzureError
from azure.storage.blob import ContainerClient
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from devhost.azurite import PORTS, connection_string
from devhost.follow import Json, OperationLost, Refused, follow, start
from devhost.load import find_files

_UPLOADS = 8
_SHOWN = 20


def settings_of(source: str, prefix: str) -> Json:
    """The settings of a source that is the URL of a container."""
    return {"blobContainerUri": source} | ({"prefix": prefix} if prefix else {})


@contextlib.contextmanager
def uploaded(folder: Path, connection: str, console: Console) -> Iterator[Json]:
    """A container with the files of ``folder``, as the settings of a source; deleted afterwards.

    It stays where the import may go on without us.
    """
    container = ContainerClient.from_connection_string(
        connection, f"import-{uuid.uuid4().hex[:12]}", retry_total=1
    )
    container.create_container()
    over = True
    try:
        _upload(folder, container, console)
        over = False
        yield {"connectionString": connection, "blobContainerName": container.container_name}
        over = True
    except (Refused, httpx.ConnectError):
        over = True
        raise
    finally:
        if over:
            container.delete_container()


def _upload(folder: Path, container: ContainerClient, console: Console) -> None:
    paths = find_files([folder])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Copying", total=sum(path.stat().st_size for path in paths))
        lock = threading.Lock()

        def copy(path: Path) -> None:
            name = path.relative_to(folder).as_posix() if folder.is_dir() else path.name
            with path.open("rb") as content:
                container.upload_blob(name, content, overwrite=True, max_concurrency=1)
            with lock:
                progress.advance(task, path.stat().st_size)

        with ThreadPoolExecutor(_UPLOADS) as pool:
            try:
                for _ in pool.map(copy, paths):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def run(client: httpx.Client, url: str, body: Json, report: Path | None, console: Console) -> int:
    """Import, and print what came of it; 0 when every file is stored."""
    href = start(client, url, body)
    try:
        operation = follow(client, href, "Importing", console)
    except KeyboardInterrupt:
        console.print(f"The import goes on: {href}", soft_wrap=True)
        raise
    results: dict[str, int] = operation["results"] or {}
    console.print(f"{operation['status']}: " + ", ".join(f"{n} {what}" for what, n in results.items()))
    for sentence in operation["errors"]:
        console.print(sentence, markup=False, soft_wrap=True)
    if results.get("refused") or results.get("skipped"):
        _print_report(client, operation["resources"][0], report, console)
    whole = operation["status"] == "succeeded" and not results["refused"] and not results["failed"]
    return 0 if whole else 1


def _print_report(client: httpx.Client, href: str, file: Path | None, console: Console) -> None:
    """The first lines, the sums, and all of it into ``file``."""
    sums: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(client.stream("GET", href))
        response.raise_for_status()
        out = stack.enter_context(file.open("w", encoding="utf-8")) if file else None
        for text in response.iter_lines():
            line: dict[str, Any] = json.loads(text)
            if out:
                out.write(text + "\n")
            if sums.total() < _SHOWN:
                console.print(
                    f"{line['status']} {line['name']}: {line['message']}", markup=False, soft_wrap=True
                )
            sums[f"{line['status']}: {line['message']}"] += 1
    for reason, count in sums.most_common():
        console.print(f"  {count:>6} x {reason}", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py import", description="Import a folder or a container of Blob Storage."
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder, a file, or a container's URL with its SAS"
    )
    parser.add_argument("--url", default="http://127.0.0.1:7071", help="the server (default %(default)s)")
    parser.add_argument("--partition", default="", help="the partition (default: the default one)")
    parser.add_argument("--prefix", default="", help="of a container only blobs whose names begin so")
    parser.add_argument("--replace", action="store_true", help="replace instances that have other content")
    parser.add_argument(
        "--delete-sources", action="store_true", help="delete a container's blobs once they are stored"
    )
    parser.add_argument("--report", type=Path, help="file for the report of what was not stored")
    parser.add_argument(
        "--storage",
        default=os.environ.get("AzureWebJobsStorage") or connection_string(PORTS),  # noqa: SIM112
        help="connection string of the storage for folders (default: the local Azurite)",
    )
    return parser


def main() -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args()
    console = Console()
    root = f"{options.url.rstrip('/').removesuffix('/v2')}/v2"
    if options.partition:
        root += f"/partitions/{quote(options.partition, safe='')}"
    body: Json = {"duplicates": "replace" if options.replace else "skip"}
    remote = options.source.startswith(("http://", "https://"))
    if not remote and not Path(options.source).exists():
        parser.error(f"{options.source} does not exist")
    try:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(httpx.Client(timeout=120, trust_env=False))
            if remote:
                settings = settings_of(options.source, options.prefix)
                body["deleteSources"] = options.delete_sources
            else:
                settings = stack.enter_context(uploaded(Path(options.source), options.storage, console))
            body["source"] = {"type": "azureblob", "settings": settings}
            return run(client, f"{root}/import", body, options.report, console)
    except httpx.ConnectError:
        print(f"No server answers at {options.url}; start one with `python3 dev.py run`.", file=sys.stderr)
    except (OperationLost, Refused, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
    except AzureError as error:
        print(f"The local storage cannot be used ({type(error).__name__}).", file=sys.stderr)
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be read: {error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
