"""Which representation answers an Accept header (PS3.18 §8.7.3, §8.7.5): pure decisions.

A range that names no transfer syntax asks for the default one, Explicit VR Little Endian; native data is
converted to it. Compressed data is then answered as stored for ``application/dicom`` (each part says its
transfer syntax), because a refusal would keep ordinary clients from compressed studies. ``*/*`` and
``transfer-syntax=*`` mean the stored syntax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.dicom.transfer_syntaxes import (
    DEFAULT_OF_MEDIA_TYPE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    NATIVE,
    media_type,
)
from shared.errors import NotAcceptable
from shared.web.accept import MediaRange, matches

CONVERTIBLE = frozenset({IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE})
OCTET_STREAM = "application/octet-stream"
DICOM = "application/dicom"


@dataclass(frozen=True, slots=True)
class Representation:
    """How to answer: the media type of the part or parts, and each item's transfer syntax."""

    multipart: bool
    media_type: str
    transfer_syntaxes: tuple[str, ...] = ()


def instances(ranges: Sequence[MediaRange], stored: Sequence[str], single_allowed: bool) -> Representation:
    """For whole instances stored in the syntaxes ``stored``. Raises NotAcceptable.

    ``single_allowed`` says that the resource is one instance, which may come without multipart.
    """
    for given in ranges:
        multipart = given.multipart or given.media_type == "*/*"
        if not matches(given.media_type, DICOM) or not (multipart or single_allowed):
            continue
        targets = [_instance_syntax(given, syntax) for syntax in stored]
        if all(targets):
            return Representation(multipart, DICOM, tuple(targets))
    if not any(matches(given.media_type, DICOM) for given in ranges):
        raise NotAcceptable("Instances are available as application/dicom.")
    if not single_allowed and not any(given.multipart for given in ranges):
        raise NotAcceptable('Several instances are available as multipart/related; type="application/dicom".')
    raise NotAcceptable(
        "No transfer syntax of Accept can be served; the stored ones are "
        + ", ".join(sorted(set(stored))[:10])
        + " (ask with transfer-syntax=*)."
    )


def _instance_syntax(given: MediaRange, stored: str) -> str:
    """The syntax to send an instance in, or an empty string where none of the range can be made."""
    asked = given.transfer_syntaxes
    if "*" in asked or stored in asked:
        return stored
    if not asked:
        return stored if given.media_type == "*/*" or stored not in NATIVE else EXPLICIT_LE
    if stored in NATIVE:
        return next((syntax for syntax in asked if syntax in CONVERTIBLE), "")
    return ""


def frames(ranges: Sequence[MediaRange], stored: str, count: int) -> Representation:
    """For ``count`` frames of an instance stored in ``stored``. Raises NotAcceptable."""
    own_type = media_type(stored)
    plain = EXPLICIT_LE if stored in NATIVE and stored != EXPLICIT_BE else stored
    for given in ranges:
        multipart = given.multipart or given.media_type == "*/*"
        if not multipart and count > 1:
            continue
        anything = given.media_type == "*/*"
        asked = given.transfer_syntaxes
        if (anything and not asked) or ("*" in asked and matches(given.media_type, OCTET_STREAM)):
            chosen = OCTET_STREAM if given.media_type == OCTET_STREAM else own_type
            return Representation(multipart, chosen, (plain,))
        if matches(given.media_type, own_type) and own_type != OCTET_STREAM:
            default = DEFAULT_OF_MEDIA_TYPE.get(own_type, stored)
            if (
                "*" in asked
                or stored in asked
                or (not asked and (stored == default or given.media_type != own_type))
            ):
                return Representation(multipart, own_type, (stored,))
            if not asked and own_type.startswith(("image/", "video/")):
                return Representation(multipart, own_type, (stored,))
        if matches(given.media_type, OCTET_STREAM):
            if stored in asked and stored not in NATIVE:
                return Representation(multipart, OCTET_STREAM, (stored,))
            if stored in NATIVE and (not asked or EXPLICIT_LE in asked or stored in asked):
                target = EXPLICIT_LE if not asked or EXPLICIT_LE in asked or stored != EXPLICIT_BE else stored
                return Representation(multipart, OCTET_STREAM, (target,))
    if count > 1 and not any(given.multipart or given.media_type == "*/*" for given in ranges):
        raise NotAcceptable("Several frames are available as multipart/related only.")
    raise NotAcceptable(
        f"The frames are stored in transfer syntax {stored} as {own_type}; "
        "Accept allows neither (ask with transfer-syntax=*)."
    )


def bulkdata(ranges: Sequence[MediaRange], own_type: str = "") -> Representation:
    """For bulk data: its own media type where it has one, else octets; multipart or not as asked.

    Raises NotAcceptable.
    """
    for given in ranges:
        if own_type and matches(given.media_type, own_type):
            return Representation(given.multipart, own_type)
        if matches(given.media_type, OCTET_STREAM):
            return Representation(given.multipart, OCTET_STREAM)
    raise NotAcceptable("Bulk data is available as application/octet-stream.")


def metadata(ranges: Sequence[MediaRange]) -> str:
    """The media type of metadata. Raises NotAcceptable."""
    for given in ranges:
        for offered in ("application/dicom+json", "application/json"):
            if not given.multipart and matches(given.media_type, offered):
                return offered
    raise NotAcceptable("Metadata is available as application/dicom+json.")
