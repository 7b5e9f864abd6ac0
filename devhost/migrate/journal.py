"""The journal of a migration: every instance, and what has become of it, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.dicom.identifiers import InstanceKey

_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS instance (
    study TEXT, series TEXT, instance TEXT,
    state TEXT NOT NULL DEFAULT 'pending',  -- pending, stored, failed; gone: no longer at the source
    sequence INTEGER NOT NULL DEFAULT 0,    -- of the last entry of the change feed about it
    run INTEGER NOT NULL DEFAULT 0,         -- the last one that found it at the source
    digest TEXT NOT NULL DEFAULT '',
    verified INTEGER NOT NULL DEFAULT 0,    -- 1: found at the target, 2: compared with what is there
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (study, series, instance)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instance_state ON instance (state, study);
"""
_STUDIES_AT_ONCE = 500


@dataclass(frozen=True)
class Failure:
    """An instance that is not at the target as it should be, and why."""

    key: InstanceKey
    reason: str


class Journal:
    """The journal in ``folder``. A crash loses at most what the target then calls a duplicate."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "journal.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def fact(self, name: str, default: str = "") -> str:
        """A fact about the migration itself."""
        row = self._connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else default

    def set_fact(self, name: str, value: object) -> None:
        """Write a fact down."""
        self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, str(value)))

    def begin_run(self) -> int:
        """The number of a new run, in which what failed before is to be done again."""
        run = int(self.fact("run", "0")) + 1
        self.set_fact("run", run)
        self._connection.execute("UPDATE instance SET state = 'pending', reason = '' WHERE state = 'failed'")
        return run

    # --- what is at the source -------------------------------------------------------------------------

    def found(self, keys: Iterable[InstanceKey], run: int) -> None:
        """A search of the source found these."""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO instance (study, series, instance, run) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET run = excluded.run,"
                " state = CASE state WHEN 'gone' THEN 'pending' ELSE state END",
                [(key.study, key.series, key.instance, run) for key in keys],
            )

    def no_more_found(self, run: int) -> None:
        """A complete search in ``run`` is over: what it did not find is gone, unless it is stored already."""
        self._connection.execute(
            "UPDATE instance SET state = 'gone' WHERE state = 'pending' AND run < ?", (run,)
        )

    def changed(self, entries: Iterable[tuple[int, InstanceKey, bool]], cursor: dict[str, int]) -> None:
        """Entries of the change feed, (sequence, instance, exists), and where reading goes on after them."""
        with self._connection:
            self._connection.execute("BEGIN")
            for sequence, key, exists in entries:
                self._connection.execute(
                    "INSERT INTO instance (study, series, instance, sequence, state)"
                    " VALUES (:study, :series, :instance, :sequence, :state)"
                    " ON CONFLICT DO UPDATE SET sequence = :sequence, state = :state, verified = 0"
                    " WHERE sequence < :sequence",
                    {
                        "study": key.study,
                        "series": key.series,
                        "instance": key.instance,
                        "sequence": sequence,
                        "state": "pending" if exists else "gone",
                    },
                )
            for name, number in cursor.items():
                self.set_fact(name, number)

    # --- what is to do and done ------------------------------------------------------------------------

    def studies(self, states: str, below: int = 9) -> Iterator[str]:
        """Studies with instances in one of the states and verified below a level, each once."""
        last = ""
        marks = tuple(states.split())
        while True:
            rows = self._connection.execute(
                f"SELECT DISTINCT study FROM instance WHERE state IN ({','.join('?' * len(marks))})"
                " AND verified < ? AND study > ? ORDER BY study LIMIT ?",
                (*marks, below, last, _STUDIES_AT_ONCE),
            ).fetchall()
            if not rows:
                return
            for (last,) in rows:
                yield last

    def series(self, study: str) -> list[tuple[str, list[str], int]]:
        """The series of a study with pending instances: these, and how many others there are."""
        rows = self._connection.execute(
            "SELECT series, instance, state = 'pending' FROM instance WHERE study = ? AND state <> 'gone'"
            " ORDER BY series, instance",
            (study,),
        ).fetchall()
        result: dict[str, tuple[list[str], list[str]]] = {}
        for series, instance, pending in rows:
            result.setdefault(series, ([], []))[not pending].append(instance)
        return [(series, todo, len(done)) for series, (todo, done) in result.items() if todo]

    def stored(self, study: str, below: int) -> dict[InstanceKey, str]:
        """The stored instances of a study that are verified below a level, with their digests."""
        rows = self._connection.execute(
            "SELECT series, instance, digest FROM instance"
            " WHERE study = ? AND state = 'stored' AND verified < ?",
            (study, below),
        )
        return {InstanceKey("", study, series, instance): digest for series, instance, digest in rows}

    def is_stored(self, key: InstanceKey) -> bool:
        """Whether an instance is at the target already."""
        row = self._connection.execute(
            "SELECT 1 FROM instance WHERE study = ? AND series = ? AND instance = ? AND state = 'stored'",
            _row(key),
        ).fetchone()
        return row is not None

    def done(self, key: InstanceKey, digest: str, verified: int) -> None:
        """The target has an instance."""
        self._connection.execute(
            "INSERT INTO instance (study, series, instance, state, digest, verified)"
            " VALUES (?, ?, ?, 'stored', ?, ?) ON CONFLICT DO UPDATE"
            " SET state = 'stored', reason = '', digest = excluded.digest, verified = excluded.verified",
            (*_row(key), digest, verified),
        )

    def verified(self, keys: Iterable[InstanceKey], level: int) -> None:
        """The target has these as they should be."""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "UPDATE instance SET verified = ? WHERE study = ? AND series = ? AND instance = ?",
                [(level, *_row(key)) for key in keys],
            )

    def failed(self, key: InstanceKey, reason: str) -> None:
        """An instance is not at the target; the next run tries again."""
        self._connection.execute(
            "INSERT INTO instance (study, series, instance, state, reason) VALUES (?, ?, ?, 'failed', ?)"
            " ON CONFLICT DO UPDATE SET state = 'failed', reason = excluded.reason, verified = 0",
            (*_row(key), reason),
        )

    # --- sums ------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Instances by state; a state without any is absent."""
        return dict(self._connection.execute("SELECT state, count(*) FROM instance GROUP BY state"))

    def unverified(self, level: int) -> int:
        """Stored instances that are verified below a level."""
        statement = "SELECT count(*) FROM instance WHERE state = 'stored' AND verified < ?"
        return int(self._connection.execute(statement, (level,)).fetchone()[0])

    def failures(self) -> Iterator[Failure]:
        """All that are not at the target: failed, or never tried because the run was cut off."""
        rows = self._connection.execute(
            "SELECT study, series, instance, reason FROM instance WHERE state IN ('failed', 'pending')"
        )
        for study, series, instance, reason in rows:
            yield Failure(InstanceKey("", study, series, instance), reason or "not tried yet")


def _row(key: InstanceKey) -> tuple[str, str, str]:
    return key.study, key.series, key.instance
