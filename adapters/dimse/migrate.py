"""Moves the studies of an archive to the server: ``python -m adapters.dimse migrate --from AE@host:port``.

The archive is asked for its studies by windows of dates, which are halved until no answer can have been
cut off by a limit; each study is moved by C-MOVE to the running adapter; in the end the server's numbers of
instances are compared with the archive's. A journal (SQLite) makes all of it resumable.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import re
import sqlite3
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.dimse.config import Configuration, ConfigurationError, PeerTls, Route
from adapters.dimse.dicomweb import DicomWeb, Refused, Unavailable
from adapters.dimse.tls import client_context

_FOUND, _MOVED, _VERIFIED, _FAILED = "found", "moved", "verified", "failed"
_PENDING = (0xFF00, 0xFF01)
_ATTEMPTS = 3
_CONNECT_SECONDS = 15


class MigrationError(Exception):
    """Why nothing can be migrated, in one sentence."""


@dataclass(frozen=True)
class Archive:
    """The archive's address."""

    ae_title: str
    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Archive:
        """``AE@host:port``."""
        match = re.fullmatch(r"([^@\\]{1,16})@(.+):(\d{1,5})", text)
        if match is None:
            raise argparse.ArgumentTypeError("write it as AE@host:port")
        return Archive(match[1], match[2].strip("[]"), int(match[3]))


class Journal:
    """Which studies were found, and how far each is."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS study (uid TEXT PRIMARY KEY, expected INTEGER NOT NULL, "
            "stored INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL, note TEXT NOT NULL DEFAULT '')"
        )

    def close(self) -> None:
        """End."""
        self._database.close()

    def add(self, uid: str, expected: int) -> None:
        """A study the archive has; one that has grown since it was verified is moved again."""
        self._database.execute(
            "INSERT INTO study (uid, expected, state) VALUES (?, ?, ?) ON CONFLICT (uid) DO UPDATE SET "
            "state = CASE WHEN excluded.expected > study.expected THEN 'found' ELSE study.state END, "
            "expected = max(study.expected, excluded.expected)",
            (uid, expected, _FOUND),
        )

    def set(self, uid: str, state: str, note: str = "", expected: int = 0, stored: int = 0) -> None:
        """How far a study is."""
        self._database.execute(
            "UPDATE study SET state = ?, note = ?, expected = max(expected, ?), stored = max(stored, ?) "
            "WHERE uid = ?",
            (state, note, expected, stored, uid),
        )

    def studies(self, *states: str) -> list[tuple[str, int]]:
        """UID and expected number of instances of studies in some states."""
        marks = ",".join("?" * len(states))
        return list(
            self._database.execute(
                f"SELECT uid, expected FROM study WHERE state IN ({marks}) ORDER BY uid", states
            )
        )

    def failures(self) -> list[tuple[str, int, int, str]]:
        """UID, expected, stored and note of what is not verified."""
        query = "SELECT uid, expected, stored, note FROM study WHERE state != 'verified' ORDER BY uid"
        return list(self._database.execute(query))

    def totals(self) -> tuple[int, int, int]:
        """Studies, verified ones, and instances expected."""
        row = self._database.execute(
            "SELECT count(*), coalesce(sum(state = 'verified'), 0), coalesce(sum(expected), 0) FROM study"
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes besides the configuration."""
    today = dt.date.today().strftime("%Y%m%d")
    parser.add_argument("--from", dest="archive", type=Archive.parse, required=True, metavar="AE@HOST:PORT")
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="use TLS; the certificates that signed the archive's"
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="certificate to show to it")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of that certificate")
    parser.add_argument(
        "--tls-any-host", action="store_true", help="do not ask whether its certificate is of its host"
    )
    parser.add_argument("--calling", help="AE title to call the archive with (default: the route's)")
    parser.add_argument(
        "--to", help="AE title of the adapter that the archive moves to (default: the first route)"
    )
    parser.add_argument(
        "--since", type=_date, default="19000101", help="first study date (default %(default)s)"
    )
    parser.add_argument("--until", type=_date, default=today, help="last study date (default today)")
    parser.add_argument(
        "--limit",
        type=int,
        default=100,
        help="answers from which a window of dates is halved (default %(default)s)",
    )
    parser.add_argument("--journal", type=Path, default=Path("migration.db"), help="default %(default)s")
    parser.add_argument(
        "--wait", type=float, default=600, help="seconds to wait for the spool (default %(default)s)"
    )


def _date(text: str) -> str:
    try:
        return dt.datetime.strptime(text, "%Y%m%d").strftime("%Y%m%d")
    except ValueError:
        raise argparse.ArgumentTypeError("write a date as YYYYMMDD") from None


def run(configuration: Configuration, options: argparse.Namespace) -> int:
    """Find, move, verify, report; 0 when everything is in the server."""
    route = _route(configuration, options.to)
    options.tls = _tls(options)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        contextlib.closing(Journal(options.journal)) as journal,
        contextlib.closing(DicomWeb(configuration.server)) as server,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        task = progress.add_task("Looking for studies", total=None)
        with _association(options, route) as association:
            for uid, count in studies(association, options.since, options.until, options.limit):
                journal.add(uid, count)
                progress.advance(task)
        waiting = journal.studies(_FOUND, _FAILED)
        progress.update(task, description="Moving", total=len(waiting), completed=0)
        for uid, expected in waiting:
            _move(options, route, journal, uid, expected)
            progress.advance(task)
        _verify(server, route.partition, journal, options.wait, progress)
        return _report(journal, console)


def _route(configuration: Configuration, ae_title: str | None) -> Route:
    for route in configuration.routes:
        if ae_title in (None, route.ae_title):
            return route
    raise MigrationError(f"The adapter has no route {ae_title}.")


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """The TLS to speak to the archive, None for none. Raises ConfigurationError."""
    certificate, key = options.tls_certificate, options.tls_key
    if not options.tls_ca:
        if certificate or key or options.tls_any_host:
            raise ConfigurationError("--tls-ca is missing: the other options of TLS belong to it.")
        return None
    if bool(certificate) != bool(key):
        raise ConfigurationError("--tls-certificate and --tls-key belong together.")
    tls = PeerTls(ca=options.tls_ca, certificate=certificate, key=key, check_host=not options.tls_any_host)
    return client_context(tls, "--tls-")


@contextlib.contextmanager
def _association(options: argparse.Namespace, route: Route) -> Iterator[Association]:
    """An association with the archive. Raises MigrationError."""
    archive: Archive = options.archive
    ae = AE(ae_title=options.calling or route.ae_title)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
    ae.dimse_timeout = 3600  # a large study may take long between two answers
    ae.connection_timeout = _CONNECT_SECONDS
    tls = (options.tls, archive.host) if options.tls else None
    association = ae.associate(archive.host, archive.port, ae_title=archive.ae_title, tls_args=tls)
    if not association.is_established:
        raise MigrationError(
            f"The archive {archive.ae_title}@{archive.host}:{archive.port} does not accept us."
        )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def studies(association: Association, since: str, until: str, limit: int) -> Iterator[tuple[str, int]]:
    """UID and number of instances (0: unknown) of every study; some may come twice.

    Studies without a date are in no window; a search without a window finds them, as far as the archive's
    limit goes.
    """
    pending = [(_day(since), _day(until))]
    while pending:
        first, last = pending.pop()
        complete, found = _find(association, date=f"{first:%Y%m%d}-{last:%Y%m%d}")
        if (not complete or len(found) >= limit) and first < last:
            middle = first + (last - first) // 2
            pending += [(middle + dt.timedelta(days=1), last), (first, middle)]
            continue
        if not complete or len(found) >= limit:
            for hour in range(24):
                whole, some = _find(
                    association, date=f"{first:%Y%m%d}", time=f"{hour:02d}0000-{hour:02d}5959.999999"
                )
                if not whole:
                    raise MigrationError("The archive does not answer the query of a single hour in full.")
                found += some
        yield from found
    _, undated = _find(association)
    yield from undated


def _day(text: str) -> dt.date:
    return dt.datetime.strptime(text, "%Y%m%d").date()


def _find(association: Association, date: str = "", time: str = "") -> tuple[bool, list[tuple[str, int]]]:
    """Whether the answer is complete, and the studies in it."""
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = ""
    query.StudyDate = date
    query.StudyTime = time
    query.NumberOfStudyRelatedInstances = ""
    if not association.is_established:
        raise MigrationError("The archive ended the association.")
    found: list[tuple[str, int]] = []
    for status, answer in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
        if status and status.Status in _PENDING and answer is not None:
            found.append(
                (str(answer.StudyInstanceUID), int(answer.get("NumberOfStudyRelatedInstances") or 0))
            )
        else:
            return bool(status) and status.Status == 0, found
    return False, found


def _move(options: argparse.Namespace, route: Route, journal: Journal, uid: str, expected: int) -> None:
    """Have the archive send a study to the adapter; what happened goes into the journal."""
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = uid
    note = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt)
        try:
            with _association(options, route) as association:
                last = Dataset()
                for status, _ in association.send_c_move(
                    query, route.ae_title, StudyRootQueryRetrieveInformationModelMove
                ):
                    last = status or Dataset()
        except MigrationError:
            note = "the archive does not accept associations"
            continue
        completed = int(last.get("NumberOfCompletedSuboperations") or 0)
        failed = int(last.get("NumberOfFailedSuboperations") or 0)
        warned = int(last.get("NumberOfWarningSuboperations") or 0)
        if last.get("Status") == 0x0000:
            journal.set(uid, _MOVED, expected=completed + warned)
            return
        note = f"status 0x{int(last.get('Status') or 0):04X}, {completed} sent, {failed} failed"
    journal.set(uid, _FAILED, note)


def _verify(server: DicomWeb, partition: str, journal: Journal, wait: float, progress: Progress) -> None:
    """Compare numbers until all are there or the time is up: the adapter forwards meanwhile."""
    deadline = time.monotonic() + wait
    left = journal.studies(_MOVED)
    task = progress.add_task("Comparing", total=len(left))
    while left:
        for uid, expected in left:
            stored = _stored(server, partition, uid)
            if stored >= max(expected, 1):
                journal.set(uid, _VERIFIED, stored=stored)
                progress.advance(task)
            else:
                journal.set(uid, _MOVED, f"{stored} of {expected} instances are in the server", stored=stored)
        left = journal.studies(_MOVED)
        if not left or time.monotonic() > deadline:
            return
        time.sleep(1)


def _stored(server: DicomWeb, partition: str, uid: str) -> int:
    try:
        for result in server.search(partition, "studies", [("StudyInstanceUID", uid)]):
            return int(result.get("00201208", {}).get("Value", [0])[0])
    except (Unavailable, Refused):
        pass
    return 0


def _report(journal: Journal, console: Console) -> int:
    total, verified, instances = journal.totals()
    console.print(
        f"{total} studies with {instances} instances: {verified} are in the server with all of them"
    )
    left = journal.failures()
    for uid, expected, stored, note in left:
        console.print(f"  {uid}: {stored} of {expected}; {note or 'not moved'}", markup=False, soft_wrap=True)
    if left:
        console.print(
            "Run the command again to try these anew; refused instances are in the adapter's quarantine."
        )
    return 1 if left else 0
