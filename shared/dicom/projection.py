"""Projection: some attributes of a DICOM JSON object (PS3.18 Annex F), cut out of its text.

The text is that of a stored document: without blanks, attributes in the order of their tags. What is kept
stays as it is, byte for byte, and what follows the last attribute asked for is not even looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

Tree = Mapping[str, "Tree | None"]
"""Tags and, of a sequence, what is kept of each of its items; None keeps the whole attribute."""

IDENTITY = ("00080016", "00080018", "0020000D", "0020000E")
"""Always kept at the top: SOP Class, SOP Instance, Study Instance and Series Instance UID."""

_DECODE = json.JSONDecoder().raw_decode
_ATTRIBUTE = 10 + 2  # "GGGGEEEE":{
_SEQUENCE = '{"vr":"SQ","Value":['


class Projection:
    """The attributes named by ``paths``: tags, each preceded by those of the sequences it is in.

    ``key`` names the projection: equal projections have equal keys.
    """

    def __init__(self, paths: Iterable[tuple[str, ...]]) -> None:
        root: dict[str, Tree | None] = dict.fromkeys(IDENTITY)
        for path in paths:
            _add(root, path)
        self._tree: Tree = root
        self._last = max(root)
        self.key = ",".join(_names(root))

    def cut(self, document: bytes) -> bytes:
        """The same object with the chosen attributes alone. Raises ValueError where the text is no such."""
        pieces, _ = _object(document.decode(), 0, self._tree, self._last)
        return pieces.encode()


def _add(tree: dict[str, Tree | None], path: tuple[str, ...]) -> None:
    for depth, tag in enumerate(path):
        creator = _creator(tag)
        if creator:
            tree.setdefault(creator, None)
        if depth == len(path) - 1:
            tree[tag] = None
            return
        inner = tree.setdefault(tag, {})
        if inner is None:
            return  # the whole of it is kept
        assert isinstance(inner, dict)
        tree = inner


def _creator(tag: str) -> str:
    """The tag of the private creator that gives a private tag its meaning (PS3.5 §7.8.1)."""
    private = int(tag[3], 16) % 2 == 1 and int(tag[4:], 16) >= 0x1000
    return f"{tag[:4]}00{tag[4:6]}" if private else ""


def _names(tree: Tree) -> Iterator[str]:
    for tag in sorted(tree):
        inner = tree[tag]
        yield tag if inner is None else f"{tag}({','.join(_names(inner))})"


def _object(text: str, start: int, tree: Tree, last: str = "") -> tuple[str, int]:
    """What ``tree`` keeps of the object at ``start``, and where the object ends.

    With ``last`` the search stops behind that tag, and the end is not known (0).
    """
    kept: list[str] = []
    position = start
    if text[start : start + 2] == "{}":
        return "{}", start + 2
    while text[position] in "{,":
        tag = text[position + 2 : position + 10]
        if last and tag > last:
            return "{" + ",".join(kept) + "}", 0
        value = position + _ATTRIBUTE
        _, end = _DECODE(text, value)
        if tag in tree:
            inner = tree[tag]
            whole = inner is None or not text.startswith(_SEQUENCE, value)
            kept.append(f'"{tag}":' + (text[value:end] if whole else _items(text, value, inner or {})))
        position = end
    if text[position] != "}":
        raise ValueError("The text is no DICOM JSON object.")
    return "{" + ",".join(kept) + "}", position + 1


def _items(text: str, start: int, tree: Tree) -> str:
    """A sequence whose items hold no more than ``tree``."""
    items: list[str] = []
    position = start + len(_SEQUENCE)
    while text[position] in "{,":
        item, position = _object(text, position + (text[position] == ","), tree)
        items.append(item)
    return _SEQUENCE + ",".join(items) + "]}"
