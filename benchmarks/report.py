"""Results as tables of ``docs/benchmarks.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def write_table(name: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Replace the table between ``<!-- name -->`` and ``<!-- end of name -->``."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    lines = ["| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *rows]]
    text = DOCUMENT.read_text()
    before, after = text.split(first)[0], text.split(last)[1]
    DOCUMENT.write_text(f"{before}{first}\n" + "\n".join(lines) + f"\n{last}{after}")
