"""What configures the host: ``host.json``, ``local.settings.json`` and the environment.

Sources: the host.json reference and "Code and test Azure Functions locally" (learn.microsoft.com). As with
``func start``, a variable of the environment wins over the same name in ``local.settings.json``.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devhost.viewer import SignIn

DEFAULT_BODY_LIMIT = 104_857_600


@dataclass(frozen=True)
class Queues:
    """``extensions.queues`` of host.json; times in seconds."""

    batch_size: int = 16
    max_dequeue_count: int = 5
    visibility_timeout: float = 0
    max_polling_interval: float = 60
    base64: bool = True


@dataclass(frozen=True)
class Blobs:
    """``extensions.blobs`` of host.json."""

    max_degree_of_parallelism: int = 8
    poison_blob_threshold: int = 5


@dataclass(frozen=True)
class HostSettings:
    """The settings of one host."""

    root: Path
    port: int = 7071
    route_prefix: str = "api"
    custom_headers: dict[str, str] = field(default_factory=dict)
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False
    body_limit: int = DEFAULT_BODY_LIMIT
    function_timeout: float = 1800
    log_level: str = "INFO"
    queues: Queues = Queues()
    blobs: Blobs = Blobs()
    viewer: Path | None = None
    viewer_sign_in: SignIn | None = None


def load(root: Path) -> HostSettings:
    """The settings of the app in ``root``; puts ``Values`` of local.settings.json into the environment.

    Raises ValueError, naming the file, when one of the files is not what it should be.
    """
    host = _read(root / "host.json")
    local = _read(root / "local.settings.json")
    for name, value in local.get("Values", {}).items():
        os.environ.setdefault(name, str(value))
    local_host = local.get("Host", {})
    extensions = host.get("extensions", {})
    http, queues, blobs = (extensions.get(name, {}) for name in ("http", "queues", "blobs"))
    return HostSettings(
        root=root,
        port=int(local_host.get("LocalHttpPort", 7071)),
        route_prefix=http.get("routePrefix", "api").strip("/"),
        custom_headers=http.get("customHeaders", {}),
        cors_origins=tuple(o.strip() for o in local_host.get("CORS", "").split(",") if o.strip()),
        cors_credentials=bool(local_host.get("CORSCredentials", False)),
        body_limit=int(os.environ.get("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT") or DEFAULT_BODY_LIMIT),
        function_timeout=_seconds(host.get("functionTimeout", "00:30:00")),
        log_level=_log_level(host.get("logging", {}).get("logLevel", {}).get("default", "Information")),
        queues=Queues(
            batch_size=min(32, int(queues.get("batchSize", 16))),
            max_dequeue_count=int(queues.get("maxDequeueCount", 5)),
            visibility_timeout=_seconds(queues.get("visibilityTimeout", "00:00:00")),
            max_polling_interval=_seconds(queues.get("maxPollingInterval", "00:01:00")),
            base64=queues.get("messageEncoding", "base64").lower() == "base64",
        ),
        blobs=Blobs(
            max_degree_of_parallelism=int(blobs.get("maxDegreeOfParallelism", 8)),
            poison_blob_threshold=int(blobs.get("poisonBlobThreshold", 5)),
        ),
        viewer=Path(os.environ["DEVHOST_VIEWER"]) if os.environ.get("DEVHOST_VIEWER") else None,
        viewer_sign_in=_viewer_sign_in(),
    )


def _viewer_sign_in() -> SignIn | None:
    """How the viewer beside the functions signs people in: at the authority whose tokens the app takes."""
    authority = os.environ.get("DICOM_AUTH_AUTHORITY", "")
    client = os.environ.get("DEVHOST_VIEWER_CLIENT_ID", "")
    if not authority or not client:
        return None
    return SignIn(authority, client, os.environ.get("DEVHOST_VIEWER_SCOPE", "openid profile"))


def local_values(root: Path) -> dict[str, str]:
    """Application settings for a start on this machine: the sample's, and over them one's own.

    ``func`` and this host read local.settings.json alone; dev.py and the tests pass these by environment,
    so that a fresh clone runs as it is. Raises ValueError.
    """
    values: dict[str, str] = {}
    for name in ("local.settings.sample.json", "local.settings.json"):
        values.update({key: str(value) for key, value in _read(root / name).get("Values", {}).items()})
    return values


def expand(text: str) -> str:
    """Replace binding expressions ``%NAME%`` by settings, as the host does. Raises ValueError."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f"The binding expression %{match[1]}% names a setting that does not exist.")
        return os.environ[match[1]]

    return re.sub(r"%([^%]+)%", value, text)


def is_disabled(function_name: str) -> bool:
    """Whether ``AzureWebJobs.<name>.Disabled`` switches the function off."""
    return os.environ.get(f"AzureWebJobs.{function_name}.Disabled", "").lower() in ("true", "1")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold a JSON object.")
    return content


def _seconds(span: str) -> float:
    """Seconds of a .NET TimeSpan ``[d.]hh:mm:ss[.fff]``; ``-1`` (no limit) becomes infinity."""
    if span in ("-1", "-00:00:01"):
        return float("inf")
    match = re.fullmatch(r"(?:(\d+)\.)?(\d+):(\d+):(\d+(?:\.\d+)?)", span)
    if match is None:
        raise ValueError(f"host.json: {span!r} is not a time span (hh:mm:ss).")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _log_level(name: str) -> str:
    dotnet = {
        "trace": "DEBUG",
        "debug": "DEBUG",
        "warning": "WARNING",
        "error": "ERROR",
        "critical": "CRITICAL",
    }
    return dotnet.get(name.lower(), "INFO")
