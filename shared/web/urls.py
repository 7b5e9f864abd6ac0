"""Absolute URLs that clients can reach, also behind a proxy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from shared.dicom.identifiers import DEFAULT_PARTITION, InstanceKey

_HOST = re.compile(r"[0-9A-Za-z.\-_]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_PREFIX = re.compile(r"(/[0-9A-Za-z.\-_~]+)*/?")


def base_url(headers: Mapping[str, str], scheme: str, host: str, public: str = "") -> str:
    """The scheme, host and path prefix clients see, without a trailing slash.

    In turn: the setting ``public``; ``Forwarded`` (RFC 7239); ``X-Forwarded-Proto``, ``-Host`` and
    ``-Prefix``; the request's own scheme and Host. A malformed header is ignored.
    """
    if public:
        return public.rstrip("/")
    forwarded = _forwarded(headers.get("forwarded", ""))
    seen_scheme = (forwarded.get("proto") or _first(headers.get("x-forwarded-proto", ""))).lower()
    seen_host = forwarded.get("host") or _first(headers.get("x-forwarded-host", ""))
    prefix = _first(headers.get("x-forwarded-prefix", ""))
    if seen_scheme in ("http", "https"):
        scheme = seen_scheme
    if _HOST.fullmatch(seen_host):
        host = seen_host
    if not _PREFIX.fullmatch(prefix):
        prefix = ""
    return f"{scheme}://{host}{prefix.rstrip('/')}"


def _first(value: str) -> str:
    return value.split(",")[0].strip()


def _forwarded(header: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in _first(header).split(";"))
    return {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs if value}


def service_root(base: str, partition: str) -> str:
    """The root of the Studies service of a partition."""
    if partition == DEFAULT_PARTITION:
        return f"{base}/v2"
    return f"{base}/v2/partitions/{quote(partition, safe='')}"


def study_url(root: str, study: str) -> str:
    """URL of a study below a service root."""
    return f"{root}/studies/{study}"


def series_url(root: str, study: str, series: str) -> str:
    """URL of a series."""
    return f"{root}/studies/{study}/series/{series}"


def instance_url(root: str, key: InstanceKey) -> str:
    """URL of an instance."""
    return f"{root}/studies/{key.study}/series/{key.series}/instances/{key.instance}"
