"""C-MOVE and C-GET (PS3.4 §C.4.2, §C.4.3) by WADO-RS.

Instances travel as they are stored where the peer accepts their transfer syntax, else as the server
transcodes them to one that it accepts. They pass through a file, never through memory or a decoder.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from adapters.dimse.dicomweb import DicomWeb, Json, Refused, Unavailable
from adapters.dimse.find import (
    CANCELED,
    IDENTIFIER_MISMATCH,
    LEVELS,
    PENDING,
    UNABLE,
    UNIQUE,
    BadIdentifier,
    above,
    failure,
    level_of,
    value_of,
)

_UIDS_A_SEARCH = 40
_MAXIMUM_CONTEXTS = 128
_NATIVE = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


@dataclass(frozen=True)
class Instance:
    """An instance to send; ``syntax`` is the one it is stored in."""

    study: str
    series: str
    uid: str
    sop_class: str
    syntax: str

    @property
    def path(self) -> str:
        """Its resource."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.uid}"


@dataclass(frozen=True)
class Peer:
    """Where a destination of C-MOVE is, and how it is spoken to by TLS."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    def options(self, opened: Callable[[Association], None], wanted: Iterable[Instance]) -> dict[str, Any]:
        """What ``Sender.associate`` takes."""
        tls = (self.tls, self.host) if self.tls else None
        return {"contexts": contexts(wanted), "tls_args": tls, "opened": opened}


class Retrieved(Dataset):  # type: ignore[misc]
    """Stands for an instance in pynetdicom's loop of sub-operations; its bytes are in a file."""

    def __init__(self, uid: str, file: Path) -> None:
        super().__init__()
        self.SOPInstanceUID = uid
        self.__dict__["file"] = file


class Sender(AE):  # type: ignore[misc]
    """An AE whose outgoing associations send ``Retrieved`` from their files.

    ``associate`` takes one more argument, ``opened``, which is given the association; without it none is
    opened.
    """

    def associate(
        self, *arguments: Any, opened: Callable[[Association], None] | None = None, **options: Any
    ) -> Association | Unreachable:
        """Open an association."""
        if opened is None:
            return Unreachable()
        association = super().associate(*arguments, **options)
        opened(association)
        if not association.is_established:
            association.dul.socket.close()
            return Unreachable()
        association.dul.socket.socket.settimeout(self.network_timeout)  # it may fall silent midway
        send_from_files(association)
        return association


class Unreachable:
    """In place of an association that the destination did not accept: every sub-operation fails.

    pynetdicom would say that the destination is unknown, and not which instances it did not get.
    """

    is_established = True

    def send_c_store(self, *_arguments: Any, **_options: Any) -> Dataset:
        """Fail."""
        raise RuntimeError("the destination does not accept associations")

    def release(self) -> None:
        """Nothing is open."""


def send_from_files(association: Association) -> None:
    """Let pynetdicom, which only knows data sets as sub-operations, send files instead."""
    plain = association.send_c_store

    def send(dataset: Any, *arguments: Any, **options: Any) -> Dataset:
        return plain(
            dataset.__dict__["file"] if isinstance(dataset, Retrieved) else dataset, *arguments, **options
        )

    association.send_c_store = send


def instances(server: DicomWeb, partition: str, identifier: Dataset, patient_root: bool) -> list[Instance]:
    """What an identifier asks for. Raises BadIdentifier, Unavailable, Refused."""
    level = level_of(identifier, patient_root)
    wanted = {}
    for one in LEVELS[: LEVELS.index(level) + 1]:
        value = value_of(identifier, UNIQUE[one])
        if value:
            wanted[UNIQUE[one]] = value.split("\\")
    for keyword in (*above(level, patient_root), UNIQUE[level]):
        if keyword not in wanted:
            raise BadIdentifier(f"{keyword} is missing")
        if keyword != UNIQUE[level] and len(wanted[keyword]) > 1:
            raise BadIdentifier(f"{keyword} must have one value at this level")
        if keyword != "PatientID" and set("".join(wanted[keyword])) - set("0123456789."):
            raise BadIdentifier(f"{keyword} is no UID")
    found: dict[Instance, None] = {}
    last = UNIQUE[level]
    for start in range(0, len(wanted[last]), _UIDS_A_SEARCH):
        some = wanted | {last: wanted[last][start : start + _UIDS_A_SEARCH]}
        query = [(keyword, "\\".join(values)) for keyword, values in some.items() if values]
        for result in server.search(partition, "instances", query):
            if "PatientID" not in wanted or _value(result, "00100020") in wanted["PatientID"]:
                found[_instance(result)] = None
    return list(found)


def _instance(result: Json) -> Instance:
    tags = ("0020000D", "0020000E", "00080018", "00080016", "00083002")
    return Instance(*(_value(result, tag) for tag in tags))


def _value(result: Json, tag: str) -> str:
    values = result.get(tag, {}).get("Value") or [""]
    return str(values[0])


def contexts(wanted: Iterable[Instance]) -> list[PresentationContext]:
    """What to propose to the destination of a C-MOVE: each class as stored, and the native syntaxes."""
    proposed: dict[tuple[str, tuple[str, ...]], None] = {}
    listed = list(wanted)
    for instance in listed:
        proposed[(instance.sop_class, (instance.syntax,))] = None
    for instance in listed:
        for syntax in _NATIVE:
            proposed[(instance.sop_class, (syntax,))] = None
    return [build_context(name, list(syntaxes)) for name, syntaxes in list(proposed)[:_MAXIMUM_CONTEXTS]]


def syntax_for(instance: Instance, association: Association) -> str:
    """The transfer syntax to ask the server for: ``*`` when the peer takes what is stored."""
    accepted = [
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == instance.sop_class and context.as_scu
    ]
    if instance.syntax in accepted:
        return "*"
    for syntax in (*_NATIVE, *accepted):
        if syntax in accepted:
            return syntax
    return ""


Answers = Iterator[Any]


def get(server: DicomWeb, partition: str, folder: Path, event: Any, patient_root: bool) -> Answers:
    """C-GET: sub-operations on the same association."""
    wanted = yield from _wanted(server, partition, event, patient_root, move=False)
    if wanted:
        send_from_files(event.assoc)
        yield from _send(server, partition, folder, event, wanted, lambda: event.assoc)


def move(
    server: DicomWeb,
    partition: str,
    folder: Path,
    event: Any,
    patient_root: bool,
    destinations: dict[str, Peer],
) -> Answers:
    """C-MOVE: sub-operations on an association with a configured destination."""
    destination = destinations.get(str(event.move_destination or "").strip())
    if destination is None:
        yield None, None  # pynetdicom answers 0xA801, destination unknown
        return
    try:
        wanted = instances(server, partition, event.identifier, patient_root)
    except (BadIdentifier, Unavailable, Refused) as error:
        # the protocol of the handler wants a destination and a number before a status
        yield destination.host, destination.port
        yield 1
        yield _failure(error), None
        return
    opened: list[Association] = []
    yield destination.host, destination.port, destination.options(opened.append, wanted)
    yield len(wanted)
    yield from _send(server, partition, folder, event, wanted, lambda: opened[0])


def _wanted(server: DicomWeb, partition: str, event: Any, patient_root: bool, *, move: bool) -> Any:
    try:
        wanted = instances(server, partition, event.identifier, patient_root)
    except (BadIdentifier, Unavailable, Refused) as error:
        yield 1
        yield _failure(error), None
        return []
    yield len(wanted)
    return wanted


def _failure(error: Exception) -> Dataset:
    if isinstance(error, BadIdentifier) or (isinstance(error, Refused) and error.status == 400):
        return failure(IDENTIFIER_MISMATCH, str(error) if isinstance(error, BadIdentifier) else "")
    return failure(UNABLE, "The server does not answer")


def _send(
    server: DicomWeb, partition: str, folder: Path, event: Any, wanted: list[Instance], association: Any
) -> Answers:
    for instance in wanted:
        if event.is_cancelled:
            yield CANCELED, None
            return
        with tempfile.NamedTemporaryFile(dir=folder, prefix="retrieve-") as file:
            path = Path(file.name)
            peer = association()
            syntax = syntax_for(instance, peer) if peer.is_established else ""
            try:
                if syntax:
                    server.retrieve(partition, instance.path, syntax, path)
            except (Unavailable, Refused):
                path.write_bytes(b"")  # counts as a failed sub-operation
            yield PENDING, Retrieved(instance.uid, path)
