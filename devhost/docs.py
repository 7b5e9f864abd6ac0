"""Writes the generated tables of the conformance statement: ``python -m devhost.docs``.

A table lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; what stands there is replaced. Tables
come from the code that decides, so that the statement cannot drift from it.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.uid import UID_dictionary

from functions import frames as frames_function
from functions import http, routes, store
from shared.dicom import (
    changes,
    failure_reasons,
    identifiers,
    part10,
    search_terms,
    transfer_syntaxes,
    workitem_requirements,
)
from shared.dicom.attributes import Level, Matching, at_level
from shared.web import query_params
from shared.web.negotiate import CONVERTIBLE
from shared.web.transactions import TRANSACTIONS, transaction_of

STATEMENT = Path(__file__).resolve().parents[1] / "docs" / "conformance-statement.md"


def render(text: str) -> str:
    """``text`` with its tables as they should be. Raises KeyError for a table nobody makes."""

    def replaced(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n{_table(name)}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", replaced, text, flags=re.DOTALL)


def _table(name: str) -> str:
    kind, _, argument = name.partition("-")
    if kind == "statuses":
        return _statuses(argument)
    return _TABLES[name]()


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _resources() -> str:
    import function_app  # noqa: F401 - registers the functions

    found: dict[str, tuple[list[str], str, set[str]]] = {}
    for endpoint in http.ENDPOINTS:
        if endpoint.template.startswith(routes.PARTITION_BASE):
            continue
        key = transaction_of(endpoint.handler.__module__, endpoint.handler.__name__)
        path = f"/{endpoint.template}"
        name = TRANSACTIONS[key].name
        methods, _, actions = found.setdefault(f"{path} {name}", ([], name, set()))
        methods += endpoint.methods
        actions.add(endpoint.access.action or "none")
    rows = [
        (f"`{key.partition(' ')[0]}`", ", ".join(methods), name, ", ".join(sorted(actions)))
        for key, (methods, name, actions) in sorted(found.items())
    ]
    return _markdown(("path", "methods", "transaction", "data action"), rows)


def _statuses(transaction: str) -> str:
    rows = [(str(status), when) for status, when in sorted(TRANSACTIONS[transaction].statuses.items())]
    return _markdown(("status", "when"), rows)


def _attributes(level: Level) -> Callable[[], str]:
    def table() -> str:
        rows = [
            (
                f"({a.tag[:4]},{a.tag[4:]})",
                a.keyword,
                a.vr,
                _matching(a.matching),
                "always" if a.default else "on request",
                "server" if a.computed else "file",
            )
            for a in sorted(at_level(level), key=lambda a: a.tag)
        ]
        return _markdown(("tag", "attribute", "VR", "matching", "returned", "value from"), rows)

    return table


def _workitem_requirements() -> str:
    rows = [
        (
            f"({row.tags[-1][:4]},{row.tags[-1][4:]})",
            row.path,
            row.create,
            row.update,
            row.final,
            row.retrieve,
            row.match,
            row.returned,
        )
        for row in workitem_requirements.requirements()
    ]
    head = ("tag", "attribute", "N-CREATE", "N-SET", "final state", "N-GET", "matching key", "return key")
    return _markdown(head, rows)


def _updatable() -> str:
    rows = [
        (f"({tag >> 16:04X},{tag & 0xFFFF:04X})", keyword_for_tag(tag), dictionary_VR(tag), level)
        for tag, level in sorted(changes.updatable().items())
    ]
    return _markdown(("tag", "attribute", "VR", "level"), rows)


def _matching(matching: Matching | None) -> str:
    return matching.value if matching else "none"


def _reasons() -> str:
    """The constants of ``failure_reasons`` with the docstrings that follow them."""
    body = ast.parse(Path(failure_reasons.__file__).read_text()).body
    rows = []
    for assignment, docstring in itertools.pairwise(body):
        if not isinstance(assignment, ast.Assign) or not isinstance(docstring, ast.Expr):
            continue
        (target,) = assignment.targets
        assert isinstance(target, ast.Name)
        kind = "Warning Reason (0008,1196)" if target.id.startswith("WARN") else "Failure Reason (0008,1197)"
        value = ast.literal_eval(assignment.value)
        meaning = re.sub(r"^0x\w+: ", "", ast.literal_eval(docstring.value))
        rows.append((kind, f"{value}", f"{value:04X}H", meaning[0].upper() + meaning[1:]))
    return _markdown(("attribute", "value", "hexadecimal", "meaning"), rows)


_NEWER_THAN_PYDICOM = {
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}


def _transfer_syntaxes() -> str:
    names = dict(_NEWER_THAN_PYDICOM)
    for uid, (name, kind, _, retired, _) in UID_dictionary.items():
        if kind == "Transfer Syntax":
            names[uid] = f"{name} (retired)" if retired else name
    rows = [
        (
            uid,
            names[uid],
            transfer_syntaxes.media_type(uid),
            "yes" if uid in transfer_syntaxes.NATIVE else "no",
        )
        for uid in sorted(names, key=lambda uid: [int(part) for part in uid.split(".")])
    ]
    return _markdown(("UID", "name", "media type of a frame", "can be converted"), rows)


def _conversion_targets() -> str:
    rows = [(uid, UID_dictionary[uid][0]) for uid in sorted(CONVERTIBLE)]
    return _markdown(("UID", "name"), rows)


def _limits() -> str:
    kib, mib, gib = 1024, 1024**2, 1024**3
    rows = [
        ("characters of a UID", "1 to 64 of letters, digits, `.` and `-`"),
        ("characters of a partition's name", "1 to 64 of letters, digits, `.`, `-` and `_`"),
        ("name of the default partition", f"`{identifiers.DEFAULT_PARTITION}`"),
        ("parts of a store", f"{store.MOST_PARTS:,}"),
        ("frames of one request", f"{frames_function.MOST_FRAMES:,}"),
        ("binary value given as InlineBinary", f"up to {part10.INLINE_BINARY // kib} KiB"),
        ("other value given as Value", f"up to {part10.INLINE_TEXT // kib} KiB"),
        ("metadata of one instance in memory", f"{part10.METADATA_LIMIT // mib} MiB"),
        ("data set after inflating", f"{part10.INFLATED_LIMIT // gib} GiB"),
        ("sequences within sequences", f"{part10.DEPTH_LIMIT}"),
        ("results of one search", f"1 to {query_params.MAX_LIMIT}, {query_params.DEFAULT_LIMIT} unless told"),
        ("characters of a value to match", f"{search_terms.MAX_LENGTH:,}, but for lists of UIDs"),
        ("studies of one bulk update", f"1 to {changes.MOST_STUDIES}"),
        ("values in a list of strings to match", f"{search_terms.MAX_ALTERNATIVES}"),
    ]
    return _markdown(("limit", "value"), rows)


_TABLES: dict[str, Callable[[], str]] = {
    "resources": _resources,
    "attributes-study": _attributes(Level.STUDY),
    "attributes-series": _attributes(Level.SERIES),
    "attributes-instance": _attributes(Level.INSTANCE),
    "reasons": _reasons,
    "transfer-syntaxes": _transfer_syntaxes,
    "conversion-targets": _conversion_targets,
    "limits": _limits,
    "updatable": _updatable,
    "workitem-requirements": _workitem_requirements,
}
TABLES = frozenset(_TABLES) | {f"statuses-{transaction}" for transaction in TRANSACTIONS}
"""Every table the statement must hold."""


if __name__ == "__main__":
    STATEMENT.write_text(render(STATEMENT.read_text()))
