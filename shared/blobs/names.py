"""Names of containers and blobs: the only module that builds or parses them.

::

    dicom      {hash3}/{partition}/{study}/{series}/{sop}/{version}.dcm
    metadata   {hash3}/{partition}/{study}/{series}/{pack}.pack
    cache      {hash3}/{partition}/{study}/{series}/{sop}/{version}/{content}
    operations {operation}/{what}                  input too large for a table row, outcomes of steps
    audit      {date}/{hour}/{process}-{number}.jsonl  the audit trail, where a setting wants it there

``hash3`` is derived from partition, study and series; it spreads load and keeps a series together. A
``version`` is unique and sorts by the time it was made. Azure refuses or mangles path segments that
end in a dot, and ``.`` and ``..`` are no names at all, so such a segment is followed by ``~``, which
no identifier contains.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import datetime
from hashlib import sha256

from shared.dicom.identifiers import InstanceKey

DICOM = "dicom"
METADATA = "metadata"
INBOX = "inbox"
INBOX_FAILED = "inbox-failed"
CACHE = "cache"
OPERATIONS = "operations"
AUDIT = "audit"
CONTAINERS = DICOM, METADATA, INBOX, INBOX_FAILED, CACHE, OPERATIONS, AUDIT
"""Those in which the server keeps its data."""

_SEGMENT = r"([0-9A-Za-z.\-]{1,64}~?)"
_PARTITION = r"([0-9A-Za-z.\-_]{1,64}~?)"
_VERSION = r"([0-9A-Za-z]{1,32})"
_SERIES = rf"[0-9a-f]{{3}}/{_PARTITION}/{_SEGMENT}/{_SEGMENT}"
_FILE_NAME = re.compile(rf"{_SERIES}/{_SEGMENT}/{_VERSION}\.dcm")
_CACHED_NAME = re.compile(rf"{_SERIES}/{_SEGMENT}/{_VERSION}/[0-9A-Za-z.\-/]+")
_CHANGES_NAME = re.compile(r"[0-9a-f]{32}/changes\.json")
_PACK_NAME = re.compile(rf"{_SERIES}/{_VERSION}\.pack")


def new_version() -> str:
    """20 hexadecimal digits: nanoseconds since 1970, then 16 random bits."""
    return f"{time.time_ns():016x}{secrets.randbits(16):04x}"


def version_time(version: str) -> float:
    """Seconds since 1970 at which a version made by :func:`new_version` was made; 0 for others."""
    try:
        return int(version[:16], 16) / 1e9 if len(version) == 20 else 0.0
    except ValueError:
        return 0.0


def file_name(key: InstanceKey, version: str) -> str:
    """Blob name of one version of an instance in container ``dicom``."""
    return f"{_version_prefix(key, version)}.dcm"


def parse_file_name(name: str) -> tuple[InstanceKey, str] | None:
    """The instance and version a blob name stands for, or None where it is not a proper name."""
    file = _key_and_version(_FILE_NAME.fullmatch(name))
    return file if file and file_name(*file) == name else None


def cached_name(key: InstanceKey, version: str, content: str) -> str:
    """Blob name in container ``cache`` of something made from a version of an instance.

    ``content`` says what: letters, digits, dots, hyphens and slashes.
    """
    return f"{cached_prefix(key, version)}{content}"


def cached_prefix(key: InstanceKey, version: str) -> str:
    """What the names of all that was made from a version begin with, and no other."""
    return f"{_version_prefix(key, version)}/"


def parse_cached_name(name: str) -> tuple[InstanceKey, str] | None:
    """The instance and version that a blob in container ``cache`` was made from, or None."""
    file = _key_and_version(_CACHED_NAME.fullmatch(name))
    return file if file and name.startswith(cached_prefix(*file)) else None


def _key_and_version(match: re.Match[str] | None) -> tuple[InstanceKey, str] | None:
    if match is None:
        return None
    partition, study, series, instance = (_unescape(match[group]) for group in (1, 2, 3, 4))
    return InstanceKey(partition, study, series, instance), match[5]


def pack_name(partition: str, study: str, series: str, pack: str) -> str:
    """Blob name of a pack of metadata documents of a series in container ``metadata``."""
    return f"{_series_prefix(partition, study, series)}/{pack}.pack"


def parse_pack_name(name: str) -> tuple[str, str, str, str] | None:
    """``(partition, study, series, pack)`` of a pack's blob name, or None."""
    match = _PACK_NAME.fullmatch(name)
    if match is None:
        return None
    partition, study, series = (_unescape(match[group]) for group in (1, 2, 3))
    return partition, study, series, match[4]


def changes_name(operation: str) -> str:
    """Blob name, in container ``operations``, of what an update changes: patient data, gone at its end."""
    return f"{operation}/changes.json"


def is_changes_name(name: str) -> bool:
    """Whether a blob of container ``operations`` is one of :func:`changes_name`."""
    return _CHANGES_NAME.fullmatch(name) is not None


def _version_prefix(key: InstanceKey, version: str) -> str:
    return f"{_series_prefix(key.partition, key.study, key.series)}/{_escape(key.instance)}/{version}"


def operation_prefix(operation: str) -> str:
    """What the names of an operation's blobs in container ``operations`` begin with."""
    return f"{operation}/"


def operation_blob(operation: str, what: str) -> str:
    """A blob of an operation in container ``operations``."""
    return f"{operation_prefix(operation)}{what}"


def import_record(operation: str, step: int) -> str:
    """What became of the files of a step of an import, in container ``operations``."""
    return f"{import_records(operation)}{step:08d}.jsonl"


def import_records(operation: str) -> str:
    """What the names of an import's records begin with."""
    return f"{operation_prefix(operation)}import-"


def is_import_record(name: str) -> bool:
    """Whether a blob of container ``operations`` is such a record."""
    return "/import-" in name


def audit_name(moment: datetime, process: str, number: int) -> str:
    """Blob name, in container ``audit``, of what a process writes to the trail in an hour (UTC)."""
    return f"{moment:%Y-%m-%d/%H}/{process}-{number}.jsonl"


def exported_file(operation: str, study: str, series: str, instance: str) -> str:
    """Name of an exported file in the destination's container: the ancestor's layout."""
    return f"{operation}/results/{_escape(study)}/{_escape(series)}/{_escape(instance)}.dcm"


def exported_errors(operation: str) -> str:
    """Name of an export's log of failures in the destination's container."""
    return f"{operation}/errors.log"


def exported_metadata(operation: str, step: int) -> str:
    """Name of a step's part of the table of metadata in the destination's container."""
    return f"{operation}/metadata/part-{step:08d}.parquet"


def _series_prefix(partition: str, study: str, series: str) -> str:
    digest = sha256(f"{partition}/{study}/{series}".encode()).hexdigest()[:3]
    return f"{digest}/{_escape(partition)}/{_escape(study)}/{_escape(series)}"


def _escape(segment: str) -> str:
    return segment + "~" if segment.endswith(".") else segment


def _unescape(segment: str) -> str:
    return segment.removesuffix("~")
