"""Enumerates the instances of a source into the journal: by its change feed, or by searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import httpx

from devhost.follow import problem
from devhost.migrate.journal import Journal
from devhost.migrate.peer import PAGE, Failed, Peer, Unusable, each, value
from shared.dicom.identifiers import InstanceKey

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_DEFAULT_PARTITION = "Microsoft.Default"
_SEARCHES = 4
_MOVES = 50

Report = Callable[[int], None]
"""Called with how many instances were found since the last call."""


class NoChangeFeed(Exception):
    """The source has no change feed."""


async def read_change_feed(source: Peer, feed: Peer, journal: Journal, report: Report) -> None:
    """Follow the ancestor's change feed from where the journal stands to its end.

    ``feed`` is the source without its partition: entries are of all partitions and name theirs. What
    ``offset`` means differs: the Sequence to go on behind, or a number of entries to pass over. So every page
    is asked for with one entry of the page before, which shows whether it is the right one. Raises
    NoChangeFeed, Failed, Unusable.
    """
    if feed.url.endswith("/v1"):
        raise NoChangeFeed  # it ends for a reader at a gap in the sequence
    partition = unquote(source.url.partition("/partitions/")[2]) or _DEFAULT_PARTITION
    sequence, count = int(journal.fact("sequence", "0")), int(journal.fact("count", "0"))
    by_sequence = journal.fact("offset", "sequence") == "sequence"
    moves = 0
    while True:
        offset = max(0, (sequence if by_sequence else count) - 1)
        response = await feed.get("changefeed", offset=offset, limit=PAGE, includemetadata="false")
        if not count and response.status_code not in (200, 204):
            raise NoChangeFeed
        entries = _entries(response, bool(count))
        if count and not (entries and entries[0]["Sequence"] == sequence):
            moves += 1
            if moves > _MOVES:
                raise Unusable("The change feed does not hold the entry any more that was read last.")
            if by_sequence:
                by_sequence = False
                journal.set_fact("offset", "count")
            else:  # an entry came in between: read the last page again, which changes nothing
                count = max(0, count - PAGE)
                sequence = 0
                if count:
                    sequence = await _sequence_at(feed, count - 1)
            continue
        new = entries[1:] if count else entries
        if not new:
            return
        sequence, count = new[-1]["Sequence"], count + len(new)
        ours = [entry for entry in new if (entry.get("PartitionName") or _DEFAULT_PARTITION) == partition]
        journal.changed(
            [(entry["Sequence"], _key(entry), _exists(entry)) for entry in ours],
            {"sequence": sequence, "count": count},
        )
        report(len(ours))


def _entries(response: httpx.Response, known: bool) -> list[dict[str, Any]]:
    """The entries of a page. Raises NoChangeFeed, or Failed where there was one before."""
    try:
        answer = [] if response.status_code == 204 else response.json()
    except ValueError:
        answer = None
    names = {"Sequence", "StudyInstanceUid", "SeriesInstanceUid", "SopInstanceUid", "Action"}
    if isinstance(answer, list) and all(
        isinstance(entry, dict) and names <= entry.keys() for entry in answer
    ):
        return answer
    raise Failed(f"The change feed cannot be read: {problem(response)}") if known else NoChangeFeed


async def _sequence_at(feed: Peer, offset: int) -> int:
    response = await feed.get("changefeed", offset=offset, limit=1, includemetadata="false")
    entries = _entries(response, True)
    return int(entries[0]["Sequence"]) if entries else 0


def _key(entry: dict[str, Any]) -> InstanceKey:
    return InstanceKey("", entry["StudyInstanceUid"], entry["SeriesInstanceUid"], entry["SopInstanceUid"])


def _exists(entry: dict[str, Any]) -> bool:
    """Whether the instance is there after the entry; a replaced one is, in a later version."""
    state = entry.get("State") or ("deleted" if entry["Action"] == "delete" else "current")
    return str(state).lower() != "deleted"


async def search(source: Peer, journal: Journal, run: int, report: Report) -> dict[str, str]:
    """Find all studies and their instances by QIDO-RS (PS3.18 §10.6).

    The studies whose instances could not be found, and why. Raises Failed, Unusable.
    """
    failed: dict[str, str] = {}

    async def instances_of(study: str) -> None:
        try:
            path = f"studies/{quote(study, safe='')}/instances"
            async for results in source.pages(path, _INSTANCE, includefield=_SERIES):
                keys = [InstanceKey("", study, value(r, _SERIES), value(r, _INSTANCE)) for r in results]
                if not all(key.series and key.instance for key in keys):
                    raise Failed("A search for the study's instances leaves out their UIDs.")
                journal.found(keys, run)
                report(len(keys))
        except Failed as error:
            failed[study] = str(error)

    async for results in source.pages("studies", _STUDY):
        await each({value(result, _STUDY) for result in results} - {""}, _SEARCHES, instances_of)
    if not failed:
        journal.no_more_found(run)
    return failed
