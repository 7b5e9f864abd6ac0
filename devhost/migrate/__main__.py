"""The command line of a migration. The exit code is 0 when everything is at the target, 1 when something is
not, 2 when the run ended early; the same command goes on where one left off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import quote, urlsplit

from rich.console import Console

from devhost.migrate.journal import Journal
from devhost.migrate.peer import Failed, Peer, Unusable
from devhost.migrate.run import COMPARED, FOUND, Migration, Peers
from devhost.setup import Problem, ensure_writable, exclusive

_LEVELS = {"none": 0, "found": FOUND, "full": COMPARED}
_SHOWN = 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def main() -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args()
    try:
        source = _service(options.source, options.from_partition, options.from_token_file)
        target = _service(options.to, options.partition, options.token_file)
    except ValueError as error:
        parser.error(str(error))
    if source == target:
        parser.error("source and target are the same")
    digest = hashlib.sha256(f"{source} {target}".encode()).hexdigest()
    folder: Path = options.journal or Path(".data") / "migrations" / digest[:12]
    console = Console()
    try:
        ensure_writable(folder)
        with exclusive(folder), contextlib.closing(Journal(folder)) as journal:
            return _migrate(options, source, target, folder, journal, console)
    except Problem as problem:
        print(str(problem).replace("--data", "--journal"), file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on where it was.", file=sys.stderr)
    return 2


def _migrate(
    options: argparse.Namespace, source: str, target: str, folder: Path, journal: Journal, console: Console
) -> int:
    for name, url in (("from", source), ("to", target)):
        if journal.fact(name, url) != url:
            raise Problem(f"The journal in {folder} is of another migration ({name} {journal.fact(name)}).")
        journal.set_fact(name, url)
    console.print(f"From {source}\nTo   {target}\nJournal {folder}", soft_wrap=True, markup=False)
    spool = folder / "spool"
    shutil.rmtree(spool, ignore_errors=True)  # of a run that was killed
    spool.mkdir()
    ended = ""
    lost: dict[str, str] = {}
    try:
        lost = asyncio.run(_run(options, source, target, journal, spool, console))
    except (Failed, Unusable) as error:
        ended = str(error)
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    missing = _report(journal, lost, options.report or folder / "report.jsonl", console)
    if ended:
        print(f"{ended}\nThe run ended early; the same command goes on where it was.", file=sys.stderr)
        return 2
    return 1 if missing else 0


async def _run(
    options: argparse.Namespace, source: str, target: str, journal: Journal, spool: Path, console: Console
) -> dict[str, str]:
    connections = options.concurrency + 4
    async with contextlib.AsyncExitStack() as stack:

        def peer(url: str, token_file: Path | None) -> Peer:
            made = Peer(url, token_file, connections)
            stack.push_async_callback(made.close)
            return made

        peers = Peers(
            peer(source, options.from_token_file),
            peer(source.partition("/partitions/")[0], options.from_token_file),
            peer(target, options.token_file),
        )
        migration = Migration(
            peers, journal, spool, console, replace=options.replace, at_once=options.concurrency
        )
        await migration.run(_LEVELS[options.verify], by_search=options.search)
        return migration.lost_studies


def _report(journal: Journal, lost: dict[str, str], file: Path, console: Console) -> int:
    """Write what is missing and why, a line of JSON each, and print the sums; how many lines there are."""
    reasons: Counter[str] = Counter()
    with file.open("w", encoding="utf-8") as out:
        for study, reason in sorted(lost.items()):
            out.write(json.dumps({"study": study, "reason": reason}) + "\n")
            reasons[reason] += 1
        for failure in journal.failures():
            key = failure.key
            line = {"study": key.study, "series": key.series, "instance": key.instance}
            out.write(json.dumps(line | {"reason": failure.reason}) + "\n")
            reasons[failure.reason] += 1
    counts = journal.counts()
    total = sum(count for state, count in counts.items() if state != "gone")
    console.print(
        f"{total} instances: {counts.get('stored', 0)} at the target, {counts.get('failed', 0)} failed,"
        f" {counts.get('pending', 0)} not tried; {counts.get('gone', 0)} more were deleted at the source",
        markup=False,
        soft_wrap=True,
    )
    for reason, count in reasons.most_common(_SHOWN):
        console.print(f"  {count:>6} x {reason}", markup=False, soft_wrap=True)
    if reasons:
        console.print(f"Report {file}", markup=False, soft_wrap=True)
    return reasons.total()


def _service(url: str, partition: str, token_file: Path | None) -> str:
    """The base of a DICOMweb service; without a path it is the one of this server. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url} is not the URL of a DICOMweb service")
    if parts.username or parts.password:
        raise ValueError("a URL must not hold a password; see the token files")
    if token_file and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ValueError(f"a token is not sent to {url}, which is not encrypted")
    base = url.rstrip("/") if parts.path else f"{url}/v2"
    return (
        f"{base.partition('/partitions/')[0]}/partitions/{quote(partition, safe='')}" if partition else base
    )


def _positive(text: str) -> int:
    return max(1, int(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py migrate", description="Copy all instances of a DICOMweb server to another."
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="URL",
        help="the source's DICOMweb service, as in https://old.example/dicom-web",
    )
    parser.add_argument("--to", default="http://127.0.0.1:7071", help="the target (default %(default)s)")
    for prefix, whose in (("--from-", "source"), ("--", "target")):
        parser.add_argument(
            f"{prefix}partition",
            default="",
            metavar="NAME",
            help=f"the {whose}'s partition, if not the default",
        )
        parser.add_argument(
            f"{prefix}token-file",
            type=Path,
            metavar="FILE",
            help=f"file with the {whose}'s access token, or a whole Authorization value such as 'Basic ...';"
            " read anew for every request",
        )
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="folder of the journal (default below .data/migrations)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="file for what is missing and why")
    parser.add_argument(
        "--verify",
        choices=tuple(_LEVELS),
        nargs="?",
        const="full",
        default="found",
        help="found: the target finds each instance (default); full: each is read back and compared",
    )
    parser.add_argument("--replace", action="store_true", help="replace instances that have other content")
    parser.add_argument("--search", action="store_true", help="enumerate by searches, not by the change feed")
    parser.add_argument(
        "--concurrency", type=_positive, default=4, help="studies at a time (default %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
