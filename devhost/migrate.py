"""Moves all instances of another DICOMweb server here: ``python -m devhost.migrate --from URL [--to URL]``.

Which studies there are, the source's change feed says where it has one (Microsoft's dicom-server and this
server), else a search, page by page. Study by study, several at a time, instances are retrieved as they are
stored there, spooled to disk, and stored here by STOW-RS. A journal remembers what is done, so that a run
that was cut off, or comes again for what has been added, goes on where the last one ended. What a study has
there and here is compared in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import sqlite3
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from devhost.load import File, batches, describe, read_outcomes
from shared.errors import InvalidRequest
from shared.web.multipart import MultipartReader, parse_content_type

Json = dict[str, Any]

_PAGE = 100
_ATTEMPTS = 8
_LONGEST_PAUSE = 30.0
_CHUNK = 256 * 1024
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_DICOM_JSON = "application/dicom+json"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"


class Unreachable(Exception):
    """A server does not do what is asked of it, also after several tries; the message says what it said."""


class Missing(Unreachable):
    """There is no such resource."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of the source."""

    study: str
    series: str
    uid: str


class Journal:
    """What is done, in a SQLite file that survives a kill at any moment."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.executescript(
            """
            PRAGMA journal_mode=WAL;
            CREATE TABLE IF NOT EXISTS position (id INTEGER PRIMARY KEY CHECK (id = 1), read INTEGER);
            INSERT OR IGNORE INTO position VALUES (1, 0);
            CREATE TABLE IF NOT EXISTS study (uid TEXT PRIMARY KEY, done INTEGER NOT NULL);
            CREATE TABLE IF NOT EXISTS instance (
                uid TEXT PRIMARY KEY, study TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL
            );
            CREATE INDEX IF NOT EXISTS instance_study ON instance (study);
            """
        )

    @property
    def read(self) -> int:
        """How many entries of the source's change feed have been read."""
        return int(self._connection.execute("SELECT read FROM position").fetchone()[0])

    def add_studies(self, uids: Iterable[str], read: int | None = None) -> None:
        """Studies that are to be moved, or moved again, because something was added to them."""
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT OR REPLACE INTO study VALUES (?, 0)", [(uid,) for uid in uids])
        if read is not None:
            self._connection.execute("UPDATE position SET read = ?", (read,))
        self._connection.execute("COMMIT")

    def pending(self) -> list[str]:
        """Studies that are not done."""
        return [
            row[0] for row in self._connection.execute("SELECT uid FROM study WHERE NOT done ORDER BY rowid")
        ]

    def stored(self, study: str) -> set[str]:
        """The instances of a study that are stored."""
        rows = self._connection.execute(
            "SELECT uid FROM instance WHERE study = ? AND status != 'refused'", (study,)
        )
        return {row[0] for row in rows}

    def record(self, instances: Iterable[tuple[Instance, str, str]]) -> None:
        """What became of instances: status and reason."""
        rows = [(one.uid, one.study, status, reason) for one, status, reason in instances]
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def finish(self, study: str) -> None:
        """A study is done: all that can be moved is."""
        self._connection.execute("UPDATE study SET done = 1 WHERE uid = ?", (study,))

    def refused(self) -> list[tuple[str, str, str]]:
        """Study, instance and reason of what is not stored."""
        return list(
            self._connection.execute(
                "SELECT study, uid, reason FROM instance WHERE status = 'refused' ORDER BY study, uid"
            )
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class Server:
    """A DICOMweb server: its Studies service at ``root``, asked again while it cannot answer."""

    def __init__(self, client: httpx.AsyncClient, root: str, token: Path | None) -> None:
        self.root = root.rstrip("/")
        self._client = client
        self._token = token

    def _headers(self, accept: str) -> dict[str, str]:
        """Read for every request: whoever keeps the file fresh keeps the migration going."""
        headers = {"Accept": accept}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
        return headers

    async def json(self, path: str, **query: str | int) -> Any:
        """The JSON of a resource; None where there is no content. Raises Unreachable, Missing."""
        url = f"{self.root}/{path}"
        accept = f"{_DICOM_JSON}, application/json;q=0.9"
        async for attempt in _attempts():
            with attempt:
                response = await self._client.get(url, params=query, headers=self._headers(accept))
                if response.status_code == 204:
                    return None
                attempt.check(response)
                if not response.is_success:
                    raise (Missing if response.status_code == 404 else Unreachable)(_said(response))
                return response.json()
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def retrieve(self, path: str) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read while it comes; one attempt. Raises httpx.HTTPError."""
        headers = self._headers(_AS_STORED)
        async with self._client.stream("GET", f"{self.root}/{path}", headers=headers) as response:
            yield response

    async def store(self, files: Sequence[File]) -> httpx.Response:
        """Store files in one request. Raises Unreachable."""
        boundary = hashlib.sha256(files[0].uid.encode()).hexdigest()[:32]
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"--{boundary}--\r\n".encode()

        async def body() -> AsyncIterator[bytes]:
            for file in files:
                yield head
                with file.path.open("rb") as content:
                    while chunk := content.read(_CHUNK):
                        yield chunk
                yield b"\r\n"
            yield tail

        length = sum(len(head) + file.size + 2 for file in files) + len(tail)
        headers = self._headers(_DICOM_JSON) | {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(length),
        }
        async for attempt in _attempts():
            with attempt:
                response = await self._client.post(f"{self.root}/studies", content=body(), headers=headers)
                attempt.check(response)
                return response
        raise AssertionError("unreachable")


class _Attempt(contextlib.AbstractContextManager["_Attempt"]):
    """One try; what will pass is swallowed, so that the next one comes, but for the last."""

    def __init__(self, last: bool) -> None:
        self._last = last
        self.retry_after = 0.0

    def check(self, response: httpx.Response) -> None:
        """Raise what makes for another try where one may help, and Unreachable where the caller may not."""
        if response.status_code in (408, 429) or response.status_code >= 500:
            after = response.headers.get("Retry-After", "")
            self.retry_after = float(after) if after.isdigit() else 0.0
            raise httpx.HTTPStatusError(
                f"HTTP {response.status_code}", request=response.request, response=response
            )
        if response.status_code in (401, 403):
            raise Unreachable(_said(response))

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if not isinstance(error, httpx.HTTPError):
            return False
        if self._last:
            raise Unreachable(f"{type(error).__name__}: {error}") from None
        return True


async def _attempts() -> AsyncIterator[_Attempt]:
    for number in range(_ATTEMPTS):
        attempt = _Attempt(number == _ATTEMPTS - 1)
        yield attempt
        await asyncio.sleep(max(attempt.retry_after, min(_LONGEST_PAUSE, 0.2 * 2**number)))


def _said(response: httpx.Response) -> str:
    return f"HTTP {response.status_code} from {response.request.url.copy_with(query=None)}"


# --- which studies -----------------------------------------------------------------------------------


async def find_studies(source: Server, partition: str, journal: Journal) -> bool:
    """Put the studies that are to be moved into the journal; whether the source has a change feed."""
    if await _by_change_feed(source, partition, journal):
        return True
    known: set[str] = set()
    while True:
        page = await source.json("studies", limit=_PAGE, offset=len(known)) or []
        new = [uid for uid in (_value(study, _STUDY) for study in page) if uid not in known]
        if not new:
            return False
        known.update(new)
        journal.add_studies(new)


async def _by_change_feed(source: Server, partition: str, journal: Journal) -> bool:
    """Read the feed from where the last run ended; its entries name the studies that something came to."""
    base = urlsplit(source.root)
    root = base.path.partition("/partitions/")[0]
    feed = Server(source._client, base._replace(path=root).geturl(), source._token)
    read = journal.read
    with contextlib.suppress(Missing):
        while True:
            entries = await feed.json("changefeed", offset=read, limit=_PAGE, includeMetadata="false")
            if not entries:
                return True
            named = [{name.lower(): value for name, value in entry.items()} for entry in entries]
            added = [
                entry["studyinstanceuid"]
                for entry in named
                if entry.get("partitionname", partition) == partition
                and str(entry["action"]).lower() != "delete"
            ]
            # Entries to skip on some servers, a sequence number on others: the count loses none on either.
            read += len(entries)
            journal.add_studies(dict.fromkeys(added), read)
    return False


async def instances_of(server: Server, study: str) -> dict[str, Instance]:
    """The instances of a study, by their UIDs."""
    found: dict[str, Instance] = {}
    while True:
        try:
            page = await server.json(f"studies/{study}/instances", limit=_PAGE, offset=len(found)) or []
        except Missing:
            return found
        new = {_value(one, _INSTANCE): one for one in page}
        before = len(found)
        for uid, one in new.items():
            found.setdefault(uid, Instance(study, _value(one, _SERIES), uid))
        if len(found) == before:
            return found


def _value(item: Json, tag: str) -> str:
    return str(item[tag]["Value"][0])


# --- moving ------------------------------------------------------------------------------------------


class Migration:
    """Moves studies from ``source`` to ``target``."""

    def __init__(self, source: Server, target: Server, journal: Journal, spool: Path, verify: bool) -> None:
        self._source = source
        self._target = target
        self._journal = journal
        self._spool = spool
        self._verify = verify

    async def move(self, study: str) -> None:
        """Move what of a study is not here yet, and compare. Raises Unreachable."""
        there = await instances_of(self._source, study)
        done = self._journal.stored(study)
        missing = [one for uid, one in there.items() if uid not in done]
        serieses: dict[str, list[Instance]] = {}
        for one in missing:
            serieses.setdefault(one.series, []).append(one)
        for series, wanted in serieses.items():
            whole = len(wanted) == sum(one.series == series for one in there.values())
            if whole:
                await self._move(f"studies/{study}/series/{series}", wanted)
            else:
                for one in wanted:
                    await self._move(f"studies/{study}/series/{series}/instances/{one.uid}", [one])
        here = await instances_of(self._target, study)
        refused = {uid for _, uid, _ in self._journal.refused()}
        lost = [
            (one, "refused", "it is not here after it was stored")
            for uid, one in there.items()
            if uid not in here and uid not in refused
        ]
        self._journal.record(lost)
        self._journal.finish(study)

    async def _move(self, path: str, wanted: Sequence[Instance]) -> None:
        """Move what is at ``path`` of the source, a few files at a time."""
        left = {one.uid: one for one in wanted}
        for number in range(_ATTEMPTS):
            try:
                async for files in self._batches(path, left):
                    await self._store(files, left)
                break
            except (httpx.HTTPError, InvalidRequest) as error:
                if number == _ATTEMPTS - 1:
                    raise Unreachable(f"{type(error).__name__} in {path}") from None
                await asyncio.sleep(min(_LONGEST_PAUSE, 0.2 * 2**number))
        self._journal.record((one, "refused", "the source does not send it") for one in left.values())

    async def _batches(self, path: str, left: dict[str, Instance]) -> AsyncIterator[list[File]]:
        """Files of the spool as they arrive, in groups for one request; each is removed afterwards."""
        async with self._source.retrieve(path) as response:
            if response.status_code == 404:
                return
            response.raise_for_status()
            content_type = parse_content_type(response.headers.get("Content-Type"))
            boundary = content_type.parameters.get("boundary", "")
            files: list[File] = []
            with tempfile.TemporaryDirectory(dir=self._spool) as folder:
                async for part in MultipartReader(response.aiter_bytes(_CHUNK), boundary).parts():
                    spooled = Path(folder) / uuid.uuid4().hex
                    with spooled.open("wb") as target:
                        async for chunk in part.chunks:
                            target.write(chunk)
                    file = describe(spooled)
                    if file.uid not in left:
                        continue
                    *full, files = [*batches([*files, file])] or [[]]
                    for group in full:
                        yield group
                        for sent in group:
                            sent.path.unlink()
                if files:
                    yield files

    async def _store(self, files: list[File], left: dict[str, Instance]) -> None:
        hashes = {file.uid: _md5(file.path) for file in files} if self._verify else {}
        outcomes = read_outcomes(files, await self._target.store(files))
        found: list[tuple[Instance, str, str]] = []
        for outcome in outcomes:
            instance, status, reason = left[outcome.file.uid], outcome.status, outcome.reason
            if self._verify and status != "refused" and not await self._is_same(instance, hashes):
                status, reason = "refused", "what is here is not what the source sent"
            found.append((instance, status, reason))
        self._journal.record(found)
        for outcome in outcomes:
            del left[outcome.file.uid]

    async def _is_same(self, one: Instance, hashes: dict[str, str]) -> bool:
        """Whether the instance that is here has the bytes that were sent."""
        path = f"studies/{one.study}/series/{one.series}/instances/{one.uid}"
        async with self._target.retrieve(path) as response:
            response.raise_for_status()
            boundary = parse_content_type(response.headers["Content-Type"]).parameters.get("boundary", "")
            async for part in MultipartReader(response.aiter_bytes(_CHUNK), boundary).parts():
                digest = hashlib.md5(usedforsecurity=False)
                async for chunk in part.chunks:
                    digest.update(chunk)
                return digest.hexdigest() == hashes[one.uid]
        return False


def _md5(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


async def migrate(options: argparse.Namespace, journal: Journal, console: Console) -> int:
    """Move everything and print a summary; 0 when nothing is missing. Raises Unreachable."""
    limits = httpx.Limits(max_connections=4 * options.concurrency)
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(300, connect=10), limits=limits, trust_env=False
    ) as client:
        source = Server(client, _root(options.source, options.from_partition), options.from_token_file)
        target = Server(client, _root(options.to, options.partition), options.token_file)
        partition = options.from_partition or "Microsoft.Default"
        has_feed = await find_studies(source, partition, journal)
        studies = journal.pending()
        console.print(
            f"{len(studies)} studies to move, by the source's {'change feed' if has_feed else 'search'}."
        )
        failed: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="dicom-migrate-") as spool, _bar(console) as progress:
            task = progress.add_task("Migrating", total=len(studies))
            migration = Migration(source, target, journal, Path(spool), options.verify)
            queue = iter(studies)

            async def work() -> None:
                for study in queue:
                    try:
                        await migration.move(study)
                    except Unreachable as error:
                        failed[f"study {study}: {error}"] += 1
                    progress.advance(task)

            await asyncio.gather(*(work() for _ in range(options.concurrency)))
    return _sum_up(journal, failed, len(studies), options.report, console)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _sum_up(
    journal: Journal, failed: Counter[str], studies: int, report: Path | None, console: Console
) -> int:
    refused = journal.refused()
    if report is not None:
        lines = [{"study": study, "instance": uid, "reason": reason} for study, uid, reason in refused]
        report.write_text("".join(json.dumps(line) + "\n" for line in lines))
    console.print(f"{studies - len(failed)} studies moved, {len(failed)} to be tried again with another run.")
    for line in failed:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    for reason, count in Counter(reason for _, _, reason in refused).most_common():
        console.print(f"  {count:>6} instances not stored: {reason}", markup=False, soft_wrap=True)
    return 1 if failed or refused else 0


def _root(url: str, partition: str) -> str:
    """The Studies service of a partition; URLs of this server may be given without their ``/v2``."""
    root = url.rstrip("/")
    if not urlsplit(root).path:
        root += "/v2"
    return f"{root}/partitions/{quote(partition, safe='')}" if partition else root


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py migrate", description="Move all instances of another DICOMweb server here."
    )
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="its DICOMweb base URL")
    parser.add_argument("--from-partition", default="", help="partition there")
    parser.add_argument("--from-token-file", type=Path, help="file with an access token for it")
    parser.add_argument("--to", default="http://127.0.0.1:7071", help="this server (default %(default)s)")
    parser.add_argument("--partition", default="", help="partition here")
    parser.add_argument("--token-file", type=Path, help="file with an access token for this server")
    parser.add_argument("--concurrency", type=int, default=4, help="studies at a time (default %(default)s)")
    parser.add_argument("--journal", type=Path, help="file that remembers what is done (default below .data)")
    parser.add_argument("--report", type=Path, help="file for what was not stored, a JSON line an instance")
    parser.add_argument(
        "--verify", action="store_true", help="read every instance back and compare its bytes"
    )
    return parser


def default_journal(options: argparse.Namespace) -> Path:
    """A file for each pair of servers and partitions."""
    pair = "\n".join((options.source, options.from_partition, options.to, options.partition))
    return Path(".data/migrate") / f"{hashlib.sha256(pair.encode()).hexdigest()[:16]}.db"


@contextlib.contextmanager
def _journal(path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal(path)) as journal:
        yield journal


def main() -> int:
    """The command line."""
    options = _parser().parse_args()
    options.concurrency = max(1, options.concurrency)
    console = Console()
    try:
        with _journal(options.journal or default_journal(options)) as journal:
            return asyncio.run(migrate(options, journal, console))
    except Unreachable as error:
        print(f"The migration cannot go on: {error}.", file=sys.stderr)
    except (OSError, sqlite3.Error) as error:
        print(f"The migration cannot go on: {error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the next run goes on from here.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
