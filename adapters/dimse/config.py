"""The configuration: one TOML file, typed and validated. ``sample.toml`` shows all of it."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    IPvAnyNetwork,
    ValidationError,
    field_validator,
    model_validator,
)

_MIB = 1024 * 1024


class ConfigurationError(Exception):
    """What is wrong with the file, in one sentence a mistake."""


def _ae_title(value: str) -> str:
    """An AE title (PS3.5 §6.2): up to 16 printable characters without backslash, not only spaces."""
    value = value.strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", value):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """The DICOMweb server: ``url`` is its base with ``/v2``; a token comes from a file, or for ``scope``
    from Azure (managed identity, workload identity, client credentials in the environment)."""

    url: HttpUrl
    token_file: Path | None = None
    scope: str = ""
    timeout_seconds: float = Field(default=300, gt=0)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.token_file and self.scope:
            raise ValueError("token_file and scope exclude each other")
        if (self.token_file or self.scope) and self.url.scheme != "https" and not _is_loopback(self.url.host):
            raise ValueError("an access token is sent by https alone")
        return self


class Listener(_Section):
    """Where associations are accepted; ``sop_classes`` are private storage classes to take as well."""

    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    maximum_pdu: int = Field(default=131072, ge=4096, le=_MIB)
    maximum_associations: int = Field(default=20, ge=1, le=500)
    idle_seconds: float = Field(default=60, gt=0)
    sop_classes: tuple[str, ...] = ()


class Tls(_Section):
    """Certificate and key in PEM; with ``client_ca`` clients must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class PeerTls(_Section):
    """TLS to a peer: ``ca`` signed its certificate, which is of its host unless ``check_host`` is false.

    ``certificate`` and ``key`` are shown to a peer that asks for them. All are files in PEM.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    check_host: bool = True

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class Spool(_Section):
    """Where acknowledged objects wait, and how many bytes may."""

    folder: Path
    maximum_bytes: int = Field(default=50 * 1024 * _MIB, gt=0)


class Forward(_Section):
    """Requests to the server: how many at a time, of how many objects and bytes; pauses after failures."""

    concurrency: int = Field(default=2, ge=1, le=32)
    batch_objects: int = Field(default=20, ge=1, le=200)
    batch_bytes: int = Field(default=20 * _MIB, gt=0)
    first_pause_seconds: float = Field(default=1, gt=0)
    longest_pause_seconds: float = Field(default=60, gt=0)
    attempts: int = Field(default=10, ge=1)


class Query(_Section):
    """A C-FIND that finds more than ``maximum_results`` fails instead of answering a part."""

    maximum_results: int = Field(default=10000, ge=1)


class Worklist(_Section):
    """``time_zone`` (a name such as Europe/Berlin): where start times are shown whose own zone is known."""

    time_zone: str = ""

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return ZoneInfo(value).key if value else value
        except (KeyError, ValueError, OSError):  # not found, no name at all, a folder of the names
            raise ValueError("this machine knows no such time zone") from None


class Metrics(_Section):
    """Where /metrics and /health answer."""

    host: str = "127.0.0.1"
    port: int = Field(default=11180, ge=0, le=65535)


class Route(_Section):
    """An AE title this adapter answers to, the partition behind it, and who may call it.

    ``calling`` are AE titles, ``hosts`` addresses or networks; ``"*"`` in ``calling`` stands for everybody.
    What is not listed is refused. An empty partition is the server's default one.
    """

    ae_title: AETitle
    partition: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    calling: tuple[AETitle, ...]
    hosts: tuple[IPvAnyNetwork, ...]

    def allows(self, calling: str, address: str) -> bool:
        """Whether a caller may open an association."""
        known = "*" in self.calling or calling.strip() in self.calling
        host = ipaddress.ip_address(address.split("%")[0])
        host = getattr(host, "ipv4_mapped", None) or host
        return known and any(host in network for network in self.hosts)


class Destination(_Section):
    """An AE that C-MOVE may send to; with ``tls`` by TLS alone."""

    ae_title: AETitle
    host: str
    port: int = Field(ge=1, le=65535)
    tls: PeerTls | None = None


class Configuration(_Section):
    """All of the file."""

    server: Server
    spool: Spool
    routes: tuple[Route, ...] = Field(min_length=1)
    destinations: tuple[Destination, ...] = ()
    listener: Listener = Listener()
    tls: Tls | None = None
    forward: Forward = Forward()
    query: Query = Query()
    worklist: Worklist = Worklist()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for titles in ([r.ae_title for r in self.routes], [d.ae_title for d in self.destinations]):
            if len(set(titles)) != len(titles):
                raise ValueError("an AE title is listed twice")
        return self


def load(path: Path) -> Configuration:
    """Read the file. Raises ConfigurationError. Relative paths are relative to the file's folder."""
    try:
        values = tomllib.loads(path.read_text())
        found = Configuration.model_validate(values)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}.") from error
    except ValidationError as error:
        said = (f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"{path}: " + "; ".join(said)) from error
    return _resolved(found, path.resolve().parent)


def _resolved(found: Configuration, folder: Path) -> Configuration:
    server, spool = found.server, found.spool
    if server.token_file:
        server = server.model_copy(update={"token_file": folder / server.token_file})
    spool = spool.model_copy(update={"folder": folder / spool.folder})
    tls = _with_paths(found.tls, folder) if found.tls else None
    destinations = tuple(
        one.model_copy(update={"tls": _with_paths(one.tls, folder)}) if one.tls else one
        for one in found.destinations
    )
    update = {"server": server, "spool": spool, "tls": tls, "destinations": destinations}
    return found.model_copy(update=update)


def _with_paths(section: _Section, folder: Path) -> _Section:
    return section.model_copy(
        update={name: folder / value for name, value in section if isinstance(value, Path)}
    )


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False
