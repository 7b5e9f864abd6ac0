"""Which representation answers an Accept header (PS3.18 §8.7.3, §8.7.5): pure decisions.

A range that names no transfer syntax asks for the default one of its media type: Explicit VR Little Endian
for ``application/dicom`` and ``application/octet-stream``. What cannot be decoded (video, unknown syntaxes)
is then answered as stored for ``application/dicom``, because a refusal would keep ordinary clients from
studies that hold it; each part says its transfer syntax. ``*/*`` and ``transfer-syntax=*`` mean the stored
syntax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.dicom.pixel_data import DECODABLE
from shared.dicom.transcode import transcodable
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
ZIP = "application/zip"
DICOM = "application/dicom"
DICOM_XML = "application/dicom+xml"


@dataclass(frozen=True, slots=True)
class Representation:
    """How to answer: the media type of the part or parts, and each item's transfer syntax."""

    multipart: bool
    media_type: str
    transfer_syntaxes: tuple[str, ...] = ()


def archive(ranges: Sequence[MediaRange]) -> MediaRange | None:
    """What the files of a Zip archive shall be, where that is what the client likes best; else None."""
    for given in ranges:
        if given.media_type == ZIP and not given.multipart:
            return MediaRange(DICOM, True, given.transfer_syntaxes or ("*",))
        if matches(given.media_type, DICOM):
            return None
    return None


def instances(
    ranges: Sequence[MediaRange], stored: Sequence[str], single_allowed: bool
) -> list[Representation]:
    """For whole instances stored in the syntaxes ``stored``, best first. Raises NotAcceptable.

    ``single_allowed`` says that the resource is one instance, which may come without multipart; there may be
    several choices for it, for whether an image fits a transfer syntax depends on its attributes too.
    """
    choices: list[Representation] = []
    for given in ranges:
        multipart = given.multipart or given.media_type == "*/*"
        if not matches(given.media_type, DICOM) or not (multipart or single_allowed):
            continue
        targets = [_instance_syntaxes(given, syntax) for syntax in stored]
        if all(targets):
            wanted = zip(*targets, strict=True) if len(targets) == 1 else [tuple(t[0] for t in targets)]
            choices += [Representation(multipart, DICOM, syntaxes) for syntaxes in wanted]
    if choices:
        return list(dict.fromkeys(choices))
    if not any(matches(given.media_type, DICOM) for given in ranges):
        raise NotAcceptable("Instances are available as application/dicom.")
    if not single_allowed and not any(given.multipart for given in ranges):
        raise NotAcceptable('Several instances are available as multipart/related; type="application/dicom".')
    raise NotAcceptable(
        "No transfer syntax of Accept can be served; the stored ones are "
        + ", ".join(sorted(set(stored))[:10])
        + " (ask with transfer-syntax=*)."
    )


def _instance_syntaxes(given: MediaRange, stored: str) -> list[str]:
    """The syntaxes of the range that an instance can be sent in, in order."""
    if not given.transfer_syntaxes:
        as_stored = given.media_type == "*/*" or stored not in DECODABLE
        return [stored if as_stored else EXPLICIT_LE]
    asked = [stored if syntax == "*" else syntax for syntax in _stored_first(given, stored)]
    return [syntax for syntax in asked if syntax == stored or _convertible(stored, syntax)]


def _stored_first(given: MediaRange, stored: str) -> list[str]:
    """The range's syntaxes in order; equals as they are, the stored one costs neither time nor quality."""
    return sorted(given.transfer_syntaxes, key=lambda syntax: syntax not in ("*", stored))


def _convertible(stored: str, target: str) -> bool:
    return (stored in NATIVE and target in CONVERTIBLE) or transcodable(stored, target)


def frames(ranges: Sequence[MediaRange], stored: str, count: int) -> list[Representation]:
    """For ``count`` frames of an instance stored in ``stored``, best first. Raises NotAcceptable."""
    choices: list[Representation] = []
    for given in ranges:
        multipart = given.multipart or given.media_type == "*/*"
        if multipart or count == 1:
            choices += [
                Representation(multipart, offered, (syntax,))
                for offered, syntax in _frame_forms(given, stored)
            ]
    if choices:
        return list(dict.fromkeys(choices))
    if count > 1 and not any(given.multipart or given.media_type == "*/*" for given in ranges):
        raise NotAcceptable("Several frames are available as multipart/related only.")
    raise NotAcceptable(
        f"The frames are stored in transfer syntax {stored} as {media_type(stored)} and cannot be had in "
        "what Accept allows (ask with transfer-syntax=*)."
    )


def _frame_forms(given: MediaRange, stored: str) -> list[tuple[str, str]]:
    """Media types and syntaxes within one range, in its order (PS3.18 §8.7.3)."""
    if given.transfer_syntaxes:
        forms = (_frame_form(given.media_type, syntax, stored) for syntax in _stored_first(given, stored))
        return [form for form in forms if form]
    own_type = media_type(stored)
    if given.media_type == "*/*":
        return [(own_type, _plain(stored))]
    if matches(given.media_type, own_type) and own_type != OCTET_STREAM:
        return [(own_type, stored)]  # better than the default of image/jpeg
    if matches(given.media_type, OCTET_STREAM):
        return [(OCTET_STREAM, EXPLICIT_LE)] if stored in DECODABLE else []
    wanted = "image/jls" if given.media_type == "image/*" else given.media_type
    default = DEFAULT_OF_MEDIA_TYPE.get(wanted, "")
    return [(wanted, default)] if transcodable(stored, default) else []


def _frame_form(given: str, syntax: str, stored: str) -> tuple[str, str] | None:
    """Media type and syntax for one ``transfer-syntax`` of a range of the type ``given``."""
    own_type = media_type(stored)
    if syntax in ("*", stored):
        allowed = matches(given, OCTET_STREAM) or matches(given, own_type)
        return (OCTET_STREAM if given == OCTET_STREAM else own_type, _plain(stored)) if allowed else None
    if syntax == EXPLICIT_LE:
        return (OCTET_STREAM, syntax) if matches(given, OCTET_STREAM) and stored in DECODABLE else None
    fits = given != OCTET_STREAM and matches(given, media_type(syntax))
    return (media_type(syntax), syntax) if fits and transcodable(stored, syntax) else None


def _plain(stored: str) -> str:
    """How frames come as stored: of native ones only the byte order is left to tell."""
    return EXPLICIT_LE if stored in NATIVE and stored != EXPLICIT_BE else stored


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


_JSON = ("application/dicom+json", "application/json")


def json(ranges: Sequence[MediaRange]) -> str:
    """The media type of DICOM JSON. Raises NotAcceptable."""
    for given in ranges:
        for offered in _JSON:
            if not given.multipart and matches(given.media_type, offered):
                return offered
    raise NotAcceptable("Metadata is available as application/dicom+json.")


def metadata(ranges: Sequence[MediaRange], single: bool) -> Representation:
    """For metadata; ``single`` says that the resource is one instance, whose XML may come without multipart.

    Raises NotAcceptable.
    """
    alone = (*_JSON, DICOM_XML) if single else _JSON
    for given in ranges:
        for offered in (DICOM_XML,) if given.multipart else alone:
            if matches(given.media_type, offered):
                return Representation(given.multipart, offered)
    raise NotAcceptable(
        "Metadata is available as application/dicom+json and as multipart/related; "
        + 'type="application/dicom+xml"'
        + (", or application/dicom+xml alone." if single else ".")
    )
