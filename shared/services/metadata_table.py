"""The table of an export's metadata in Apache Parquet: a row an instance, a column an attribute.

``pyarrow`` writes it. It is large, so an app that never exports tables need not carry it.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from shared.dicom.attributes import ATTRIBUTES, Attribute
from shared.errors import InvalidRequest

_WHOLE = frozenset({"IS", "SL", "SS", "SV", "UL", "US"})
_REAL = frozenset({"DS", "FD", "FL"})


def check_available() -> None:
    """Raise InvalidRequest where the app has no pyarrow."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InvalidRequest("This server writes no Parquet: the package pyarrow is not installed.")


def table(rows: Sequence[dict[str, Any]]) -> bytes:
    """A Parquet file of ``rows``; each has ``path``, ``transferSyntaxUid`` and ``attributes`` (DICOM JSON).

    Columns are the same in every file: path, transfer syntax, and the attributes by keyword. Integers and
    decimals are numbers (the first of several), null where malformed. Other
    values are text, joined by backslashes; sequences are JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    values: dict[str, list[Any]] = {
        "path": [row["path"] for row in rows],
        "AvailableTransferSyntaxUID": [row["transferSyntaxUid"] for row in rows],
    }
    for tag, attribute in columns().items():
        values[attribute.keyword] = [_value(attribute, row["attributes"].get(tag)) for row in rows]
    arrays = [pa.array(column, _schema().field(name).type) for name, column in values.items()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_schema()), buffer, compression="zstd")
    return buffer.getvalue()


@cache
def columns() -> dict[str, Attribute]:
    """The attributes that have a column, by tag: those of the data set itself that the index knows."""
    return {a.tag: a for a in ATTRIBUTES if not a.computed and len(a.tags) == 1}


@cache
def _schema() -> Any:
    import pyarrow as pa

    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("AvailableTransferSyntaxUID", pa.string()),
    ]
    for attribute in columns().values():
        kind = (
            pa.int64() if attribute.vr in _WHOLE else pa.float64() if attribute.vr in _REAL else pa.string()
        )
        fields.append(pa.field(attribute.keyword, kind))
    return pa.schema(fields)


def _value(attribute: Attribute, given: dict[str, Any] | None) -> Any:
    values = (given or {}).get("Value") or []
    if not values:
        return None
    if attribute.vr in _WHOLE or attribute.vr in _REAL:
        return _number(values[0], int if attribute.vr in _WHOLE else float)
    if attribute.vr == "SQ":
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if attribute.vr == "PN":
        return "\\".join(_name(value) for value in values)
    return "\\".join("" if value is None else str(value) for value in values)


def _number(value: Any, kind: type[int] | type[float]) -> int | float | None:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if kind is int and not -(2**63) <= number < 2**63 else number


def _name(value: Any) -> str:
    """The groups of a person's name as the file has them: alphabetic, ideographic, phonetic."""
    if not isinstance(value, dict):
        return ""
    groups = [str(value.get(group, "")) for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")
