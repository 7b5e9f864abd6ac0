"""De-identification of data sets (PS3.15 Annex E).

``shared/dicom/confidentiality.py`` says what becomes of which attribute. Dummy values by VR come from
``dicom-anonymizer``; walking into sequences, UIDs, dates and everything unknown is done here, because that
library leaves the items of most sequences alone and draws UIDs at random (``docs/decisions``).
``docs/de-identification.md`` says what is done, and what is not. Nothing raised or logged here holds a value.
"""

from __future__ import annotations

import hmac
import io
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import Any

from dicomanonymizer.simpledicomanonymizer import replace_element
from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO, DicomIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID_dictionary

from shared.dicom.confidentiality import BASIC_PROFILE, EDITION, Action, Option, Rules, is_known, rules_of
from shared.dicom.convert import Converter
from shared.dicom.transfer_syntaxes import EXPLICIT_LE

IMPLEMENTATION = "2.25.155338462373092361366424573906127424321"
"""ImplementationClassUID of what writes the files."""

_WARN_NOBODY = pydicom_config.IGNORE  # warnings and log lines of pydicom quote values
pydicom_config.settings.reading_validation_mode = _WARN_NOBODY
pydicom_config.settings.writing_validation_mode = _WARN_NOBODY
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


class CannotDeidentify(Exception):
    """An instance that must not be exported under the profile; the message says why, without any value."""


# --- pseudonyms --------------------------------------------------------------------------------------


class Pseudonyms:
    """What stands for UIDs and patients: the same for the same in every step of an operation, as both are
    derived with its key (HMAC-SHA256), and nothing that tells what it was without the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def uid(self, uid: str) -> str:
        """The replacement of a UID: below 2.25 (PS3.5 §B.2). UIDs that the standard registers stay."""
        if not uid or uid in UID_dictionary:
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def patient(self, identity: str) -> str:
        """The replacement of a PatientID."""
        return self._digest("patient", identity)[:8].hex().upper() if identity else ""

    def shift(self, identity: str) -> timedelta:
        """How far the dates of a patient are moved: 1 to 3,650 days back."""
        return timedelta(days=-1 - int.from_bytes(self._digest("dates", identity)[:8], "big") % 3650)

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}\0{text}".encode(), "sha256")


# --- a data set --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deidentified:
    """``header`` is preamble and file meta information, ``elements`` the data set up to pixel data,
    ``attributes`` are those asked for, as DICOM JSON."""

    header: bytes
    elements: bytes
    attributes: dict[str, Any]


class Deidentifier:
    """Applies the profile with ``options`` to one instance after another."""

    def __init__(
        self, options: frozenset[Option], pseudonyms: Pseudonyms, *, allow_burned_in: bool = False
    ) -> None:
        self._options = options
        self._rules = rules_of(options)
        self._pseudonyms = pseudonyms
        self._allow_burned_in = allow_burned_in

    def uid(self, uid: str) -> str:
        """What becomes of a Study, Series or SOP Instance UID."""
        return uid if Option.UIDS in self._options else self._pseudonyms.uid(uid)

    def deidentify(
        self, elements: bytes, syntax: str, partition: str = "", wanted: Iterable[str] = ()
    ) -> Deidentified:
        """The data set ``elements`` (what precedes pixel data) of transfer syntax ``syntax``, in the same
        one, with new file meta information. Deflated ones are given and returned inflated.

        ``partition`` keeps patients of equal PatientID in two partitions apart, ``wanted`` are tags. Raises
        CannotDeidentify.
        """
        try:
            ds = _read(elements, syntax)
            self._refuse(ds)
            patient = f"{partition}\0{_text(ds, 0x00100021)}\0{_text(ds, 0x00100020)}"
            _Cleaning(self._rules, self._pseudonyms, patient).clean(ds, top=True)
            self._mark(ds)
            return Deidentified(_meta(ds, syntax), _written(ds, syntax), _json(ds, wanted))
        except CannotDeidentify:
            raise
        except Exception as error:  # any, and its message may quote a value
            raise CannotDeidentify("The data set is too damaged to be de-identified.") from error

    def _refuse(self, ds: Dataset) -> None:
        if 0x00420011 in ds:
            raise CannotDeidentify("An encapsulated document cannot be de-identified.")
        if _text(ds, 0x00280301).upper() == "YES" and not self._allow_burned_in:
            raise CannotDeidentify("BurnedInAnnotation is YES: the pixels may identify the patient.")

    def _mark(self, ds: Dataset) -> None:
        """What PS3.15 §E.1.1 asks for: that, how and by which options the data set was de-identified."""
        methods = [BASIC_PROFILE, *sorted((option.code, option.meaning) for option in self._options)]
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = [
            f"DICOM PS3.15 Annex E, edition {EDITION}",
            *(
                meaning.replace("Longitudinal Temporal Information", "Long. Temp. Inf.")
                for _, meaning in methods
            ),
        ]
        ds.DeidentificationMethodCodeSequence = Sequence(_code(*method) for method in methods)
        dates = {Option.FULL_DATES: "UNMODIFIED", Option.MODIFIED_DATES: "MODIFIED"}
        ds.LongitudinalTemporalInformationModified = next(
            (said for option, said in dates.items() if option in self._options), "REMOVED"
        )


class _Cleaning:
    """One data set being cleaned."""

    def __init__(self, rules: Rules, pseudonyms: Pseudonyms, patient: str) -> None:
        self._rules = rules
        self._pseudonyms = pseudonyms
        self._patient = patient

    def clean(self, ds: Dataset, *, top: bool = False, dummies: bool = False) -> None:
        """Apply the rules to a data set or item; ``dummies``: it is part of a sequence that is replaced."""
        for tag in list(ds.keys()):
            action = self._rules.of(tag)
            if tag.is_private or tag.element == 0 or not is_known(tag) or action is Action.REMOVE:
                del ds[tag]
                continue
            element = _understood(ds, tag)
            if element is None:
                del ds[tag]
            elif element.VR == "SQ":
                self._sequence(element, action, dummies)
            elif top and tag == 0x00100020:
                element.value = self._pseudonyms.patient(self._patient) if element.value else ""
            elif dummies and action is None and element.VR not in ("CS", "UI"):
                self._leaf(ds, element, Action.DUMMY)
            elif action is not None:
                self._leaf(ds, element, action)
            elif dummies and element.VR == "UI":
                self._leaf(ds, element, Action.UID)

    def _sequence(self, element: DataElement, action: Action | None, dummies: bool) -> None:
        if action is Action.EMPTY:
            element.value = Sequence()
            return
        for item in element.value:
            self.clean(item, dummies=dummies or action is Action.DUMMY)

    def _leaf(self, ds: Dataset, element: DataElement, action: Action) -> None:
        match action:
            case Action.EMPTY:
                element.value = empty_value_for_VR(element.VR)
            case Action.DUMMY if element.VR != "UI":
                _replace(element)
            case Action.UID | Action.DUMMY if element.VR == "UI":
                element.value = _each(element.value, lambda uid: self._pseudonyms.uid(str(uid).strip()))
            case Action.SHIFT:
                self._shift(ds, element)
            case Action.UID:
                del ds[element.tag]

    def _shift(self, ds: Dataset, element: DataElement) -> None:
        """Move a date, or what the basic profile does where it is none."""
        days = self._pseudonyms.shift(self._patient)
        try:
            element.value = _each(element.value, lambda value: _shifted(str(value), days))
        except (ValueError, OverflowError):
            basic = self._rules.basic[element.tag]
            if basic is Action.REMOVE:
                del ds[element.tag]
            else:
                self._leaf(ds, element, basic)


def _read(elements: bytes, syntax: str) -> Dataset:
    """The data set, however it is encoded: first brought into Explicit VR Little Endian."""
    explicit = Converter(syntax, EXPLICIT_LE).convert(elements)
    return read_dataset(io.BytesIO(explicit), is_implicit_VR=False, is_little_endian=True)


def _understood(ds: Dataset, tag: BaseTag) -> DataElement | None:
    """The element, if it is of the kind its tag is of: a value in a wrong VR may hide anything."""
    try:
        element = ds[tag]
    except Exception:  # its value is none of its VR; the message would quote it
        return None
    expected = str(_dictionary_vr(tag))
    if (element.VR == "UN" and expected != "UN") or (element.VR == "SQ") is not (expected == "SQ"):
        return None
    return element


@cache
def _dictionary_vr(tag: BaseTag) -> str:
    return str(dictionary_VR(tag))


def _text(ds: Dataset, tag: int) -> str:
    try:
        value = ds[tag].value if tag in ds else ""
    except Exception:
        return ""
    return str(value or "").strip()


def _replace(element: DataElement) -> None:
    """A dummy value of the VR, by the library; where it has none, no value."""
    try:
        replace_element(element)
    except NotImplementedError:
        element.value = empty_value_for_VR(element.VR)


def _each(value: Any, change: Callable[[Any], str]) -> Any:
    if isinstance(value, MultiValue | list):
        return [change(item) for item in value]
    return change(value) if value else value


def _shifted(value: str, days: timedelta) -> str:
    """A DA or DT value moved by days; its time of day, precision and offset stay. Raises ValueError."""
    digits = value.strip()
    if not digits:
        return ""
    moved = date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) + days
    if not digits[:8].isdigit() or len(digits) < 8:
        raise ValueError("not a whole date")
    return f"{moved:%Y%m%d}".rjust(8, "0") + digits[8:]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _meta(ds: Dataset, syntax: str) -> bytes:
    """A new preamble and new file meta information: the old ones say where the file came from."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = IMPLEMENTATION
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta)
    return bytes(128) + b"DICM" + bytes(buffer.getvalue())


def _written(ds: Dataset, syntax: str) -> bytes:
    buffer: DicomIO = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return Converter(EXPLICIT_LE, syntax).convert(buffer.getvalue())


def _json(ds: Dataset, wanted: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tag in wanted:
        number = int(tag, 16)
        if number in ds:
            try:
                found[tag] = ds[number].to_json_dict(None, 1 << 20)
            except Exception:  # a value that is none of its VR
                found[tag] = {"vr": ds[number].VR}
    return found
