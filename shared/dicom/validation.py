"""Whether a value keeps to its VR (PS3.5 §6.2, Table 6.2-1).

A checker takes one decoded value without its padding and returns a sentence about what is wrong, or an
empty string. The sentence never quotes the value: it ends up in responses and logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date as calendar_date

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_IN_LINE = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f]")
_AGE = re.compile(r"\d{3}[DWMY]")
_CODE = re.compile(r"[A-Z0-9 _]{0,16}")
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d{1,12}")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?")
_DATE_TIME = re.compile(
    r"\d{4}((0[1-9]|1[0-2])((0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?)?)?)?"
    r"([+-](0\d|1[0-4])[0-5]\d)?"
)
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*")


def _application_entity(value: str) -> str:
    if len(value) > 16:
        return "is longer than 16 characters"
    return (
        "" if value.isascii() and not _CONTROL_IN_LINE.search(value) else "holds characters AE does not allow"
    )


def _age(value: str) -> str:
    return "" if _AGE.fullmatch(value) else "is not three digits and one of D, W, M or Y"


def _code_string(value: str) -> str:
    return "" if _CODE.fullmatch(value) else "is not up to 16 of A-Z, 0-9, space and underscore"


def _date(value: str) -> str:
    try:
        if len(value) == 8 and value.isascii() and value.isdigit():
            calendar_date(int(value[:4]), int(value[4:6]), int(value[6:]))
            return ""
    except ValueError:
        pass
    return "is not a date YYYYMMDD"


def _decimal(value: str) -> str:
    if len(value) > 16:
        return "is longer than 16 characters"
    return "" if _DECIMAL.fullmatch(value) else "is not a decimal number"


def _integer(value: str) -> str:
    if _INTEGER.fullmatch(value) and -(2**31) <= int(value) < 2**31:
        return ""
    return "is not an integer of 32 bits"


def _time(value: str) -> str:
    return "" if _TIME.fullmatch(value) else "is not a time HHMMSS.FFFFFF"


def _date_time(value: str) -> str:
    return "" if _DATE_TIME.fullmatch(value) else "is not a date and time YYYYMMDDHHMMSS.FFFFFF&ZZXX"


def _uid(value: str) -> str:
    return "" if len(value) <= 64 and _UID.fullmatch(value) else "is not a UID of up to 64 characters"


def _line(limit: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if len(value) > limit:
            return f"is longer than {limit} characters"
        return "" if value.isprintable() or not _CONTROL_IN_LINE.search(value) else "holds control characters"

    return check


def _lines(limit: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if limit and len(value) > limit:
            return f"is longer than {limit} characters"
        return "" if value.isprintable() or not _CONTROL.search(value) else "holds control characters"

    return check


def _person_name(value: str) -> str:
    groups = value.split("=")
    if len(groups) > 3:
        return "has more than three component groups"
    if any(len(group) > 64 for group in groups):
        return "has a component group longer than 64 characters"
    if any(group.count("^") > 4 for group in groups):
        return "has more than five components"
    return "" if value.isprintable() or not _CONTROL_IN_LINE.search(value) else "holds control characters"


CHECKS: dict[str, Callable[[str], str]] = {
    "AE": _application_entity,
    "AS": _age,
    "CS": _code_string,
    "DA": _date,
    "DS": _decimal,
    "DT": _date_time,
    "IS": _integer,
    "LO": _line(64),
    "LT": _lines(10240),
    "PN": _person_name,
    "SH": _line(16),
    "ST": _lines(1024),
    "TM": _time,
    "UC": _line(2**32 - 2),
    "UI": _uid,
    "UR": _line(2**32 - 2),
    "UT": _lines(0),
}
