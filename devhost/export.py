"""Exports instances of a running server: ``python -m devhost.export [IDENTIFIER...] --to DESTINATION``.

Starts an export over the API, follows it, and says what came of it. The exit code is 0 when everything was
exported, 1 when something was not, 2 when there was no export.
"""

from __future__ import annotations

import argparse
import os
import sys

import httpx
from rich.console import Console

from devhost.follow import Json, OperationLost, Refused, follow, start

_VARIABLE = "DICOM_EXPORT_TO"


def main() -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args()
    to = options.to or os.environ.get(_VARIABLE, "")
    if not to:
        parser.error(f"a destination is needed: --to, or the variable {_VARIABLE}")
    if bool(options.identifiers) == bool(options.query):
        parser.error("either identifiers or --query say what to export")
    try:
        return export(options.url, options.partition, _body(options, to), Console())
    except (OperationLost, Refused) as error:
        print(error, file=sys.stderr)
    except httpx.TransportError:
        print(f"No server answers at {options.url}; start one with `python3 dev.py run`.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the export goes on.", file=sys.stderr)
    return 2


def export(url: str, partition: str, body: Json, console: Console) -> int:
    """Export and follow; the exit code."""
    base = f"{url}/v2/partitions/{partition}" if partition else f"{url}/v2"
    with httpx.Client(timeout=60, trust_env=False) as client:
        href = start(client, f"{base}/export", body)
        console.print(f"Operation {href}", soft_wrap=True, markup=False)
        operation = follow(client, href, "Exporting", console)
    results = operation["results"] or {}
    exported, skipped = results.get("exported", 0), results.get("skipped", 0)
    console.print(f"{operation['status']}: {exported} exported, {skipped} skipped", markup=False)
    for error in operation["errors"]:
        console.print(f"  {error}", soft_wrap=True, markup=False)
    if results.get("errorHref") and skipped:
        console.print(f"Failures    {results['errorHref']}", soft_wrap=True, markup=False)
    return 0 if operation["status"] == "succeeded" and not skipped else 1


def _body(options: argparse.Namespace, to: str) -> Json:
    source = {"type": "identifiers", "settings": {"values": options.identifiers}}
    if options.query:
        source = {"type": "query", "settings": {"query": options.query}}
    where: Json = {"blobContainerUri": to}
    if options.container:
        where = {"connectionString": to, "blobContainerName": options.container}
    if options.identity:
        where["useManagedIdentity"] = True
    body: Json = {"source": source, "destination": {"type": "azureblob", "settings": where}}
    if options.deidentify or options.retain:
        body["deidentification"] = {"profile": "basic", "options": options.retain}
    if options.parquet:
        body["metadata"] = {"type": "parquet"}
    return body


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py export", description="Export instances to a container of Azure Blob Storage."
    )
    parser.add_argument(
        "identifiers", nargs="*", metavar="IDENTIFIER", help="STUDY[/SERIES[/INSTANCE]], by their UIDs"
    )
    parser.add_argument("--query", metavar="SEARCH", help="what a search finds, as in 'studies?PatientID=1'")
    parser.add_argument(
        "--to",
        metavar="DESTINATION",
        help="URI of the container with its SAS, or with --container a connection string; the variable "
        f"{_VARIABLE} keeps it out of the shell's history",
    )
    parser.add_argument("--container", help="the container, where DESTINATION is a connection string")
    parser.add_argument(
        "--identity", action="store_true", help="the server's own identity opens the container"
    )
    parser.add_argument("--deidentify", action="store_true", help="by the basic profile of DICOM PS3.15")
    parser.add_argument(
        "--retain",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of the profile, as in retainUids; may be repeated",
    )
    parser.add_argument("--parquet", action="store_true", help="with a table of the metadata")
    parser.add_argument("--partition", default="", help="a partition other than the default one")
    parser.add_argument("--url", default="http://127.0.0.1:7071", help="the server (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
