"""Shadow values: the form in which attribute values are indexed and in which queries are compared.

Storing and searching call the same functions, so that matching behaves the same on every SQL engine
(PS3.4 §C.2.2.2: PN is matched without regard to case and accents; other text here without regard to
case).
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime, timedelta

from shared.dicom.attributes import Matching

_DATE = re.compile(r"([0-9]{4})([.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12][0-9]|3[01])")
_CLOCK = r"([01][0-9]|2[0-3])(?:%s([0-5][0-9])(?:%s([0-5][0-9]|60)(?:\.([0-9]{1,6}))?)?)?"
_TIME = re.compile(_CLOCK % (":?", ":?"))
_DATETIME = re.compile(
    rf"([0-9]{{4}})(?:(0[1-9]|1[0-2])(?:(0[1-9]|[12][0-9]|3[01])(?:{_CLOCK % ('', '')})?)?)?"
    r"([+-](?:0[0-9]|1[0-3])[0-5][0-9]|[+]1400)?"
)
_OFFSET = re.compile(r"[+-](?:0[0-9]|1[0-3])[0-5][0-9]|[+]1400")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}")


def cut(value: str, units: int) -> str:
    """As much of ``value`` as fits into ``units`` UTF-16 code units; no character is cut in two.

    NVARCHAR(n) of SQL Server holds n of these, not n characters. Every database gets the same text.
    """
    if len(value) <= units // 2 or value.isascii():
        return value[:units]
    return value.encode("utf-16-le", "surrogatepass")[: 2 * units].decode("utf-16-le", "ignore")


def text(value: str) -> str:
    """Case-insensitive form of a string attribute."""
    return unicodedata.normalize("NFKC", value.strip()).casefold()


def person_name(value: str) -> str:
    """Case- and accent-insensitive form of a PN, its component groups still separated by ``=``.

    Trailing empty components do not count (PS3.5 §6.2.1): ``Doe^John^^`` and ``Doe^John`` are equal.
    """
    groups = [group.strip().rstrip("^ ") for group in value.split("=")]
    return _without_accents("=".join(groups)).rstrip("=")


def name_words(value: str) -> str:
    """The words of a PN, each preceded by one space: what fuzzy matching looks for prefixes in."""
    return "".join(" " + word for word in re.split(r"[\s^=\\,]+", _without_accents(value)) if word)


def _without_accents(value: str) -> str:
    decomposed = unicodedata.normalize("NFKD", value)
    return unicodedata.normalize(
        "NFC", "".join(c for c in decomposed if not unicodedata.combining(c))
    ).casefold()


def date(value: str) -> str | None:
    """``YYYYMMDD``, or None where ``value`` is no DA; ``YYYY.MM.DD`` is the form of ACR-NEMA.

    The 31st of any month passes: it ends many a range.
    """
    match = _DATE.fullmatch(value.strip())
    return match[1] + match[3] + match[4] if match else None


def time(value: str, fill: str = "0") -> str | None:
    """``HHMMSS.FFFFFF``, or None where ``value`` is no TM.

    Missing components are the earliest ones, or the latest where ``fill`` is ``"9"`` (the end of a range).
    """
    match = _TIME.fullmatch(value.strip())
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    last = "00" if fill == "0" else "59"
    return f"{hour}{minute or last}{second or last}.{(fraction or '').ljust(6, fill)}"


def date_time(value: str, fill: str = "0") -> str | None:
    """``YYYYMMDDHHMMSS.FFFFFF`` as it is written, whatever its time zone; None where ``value`` is no DT.

    ``fill`` is as for :func:`time`.
    """
    return _date_time(value, fill, None)


def instant(value: str, time_zone: str = "", fill: str = "0") -> str | None:
    """A DT in UTC as ``YYYYMMDDHHMMSS.FFFFFF``; None where it is no DT or its time zone is not known.

    ``time_zone`` (``+HHMM``) is that of a value which has none.
    """
    return _date_time(value, fill, time_zone)


def reach(local: str, utc: str, hours: int) -> str:
    """How far what is written may lie from an instant: ``hours`` from it, or ``local`` if that is farther."""
    moment = datetime.strptime(utc, "%Y%m%d%H%M%S.%f")
    try:
        moment += timedelta(hours=hours)
    except OverflowError:
        return "0" if hours < 0 else "99999"
    shifted = f"{moment.year:04d}{moment:%m%d%H%M%S}.{moment.microsecond:06d}"
    return min(local, shifted) if hours < 0 else max(local, shifted)


def offset(value: str) -> str:
    """A time zone ``+HHMM`` or ``-HHMM``, or empty where ``value`` is none (PS3.3 §C.12.1.1.8)."""
    return value.strip() if _OFFSET.fullmatch(value.strip()) else ""


def _date_time(value: str, fill: str, time_zone: str | None) -> str | None:
    """``time_zone`` None: as it is written."""
    match = _DATETIME.fullmatch(value.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, own = match.groups()
    late = fill == "9"
    month = month or ("12" if late else "01")
    try:
        day = day or (_last_day(int(year), int(month)) if late else "01")
        moment = datetime(
            int(year),
            int(month),
            int(day),
            int(hour or (23 if late else 0)),
            int(minute or (59 if late else 0)),
            min(int(second or (59 if late else 0)), 59),
            int((fraction or "").ljust(6, fill)),
        )
        if time_zone is not None:
            zone = own or time_zone
            if not zone:
                return None
            shift = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
            moment = moment - shift if zone[0] == "+" else moment + shift
    except (ValueError, OverflowError):
        return None
    return f"{moment.year:04d}{moment:%m%d%H%M%S}.{moment.microsecond:06d}"


def _last_day(year: int, month: int) -> str:
    following = datetime(year + month // 12, month % 12 + 1, 1)
    return f"{(following - timedelta(days=1)).day:02d}"


def shadow(matching: Matching, value: str) -> str | int | None:
    """The indexed form of the string ``value``; None where it has none (nothing will match it)."""
    if not value:
        return None
    if matching is Matching.UID:
        return value
    if matching is Matching.PERSON_NAME:
        return person_name(value)
    if matching is Matching.DATE:
        return date(value)
    if matching is Matching.TIME:
        return time(value)
    if matching is Matching.DATETIME:
        return date_time(value)
    if matching is Matching.NUMBER:
        return number(value)
    return text(value)


def number(value: str) -> int | None:
    """An IS within 32 bits, or None."""
    if _INTEGER.fullmatch(value.strip()) is None:
        return None
    result = int(value)
    return result if -(2**31) <= result < 2**31 else None


def decimal(value: str) -> float | None:
    """A finite number, or None."""
    if _DECIMAL.fullmatch(value.strip()) is None:
        return None
    result = float(value)
    return result if math.isfinite(result) else None
