"""Extended query tags: attributes that an operator makes searchable beside those of the attribute table.

A tag names an attribute by keyword or tag, inside sequences by several with dots between them, and the level
at which it is kept. Private ones are named with their creator; their block is wherever a file reserves it
(PS3.5 §7.8.1).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from shared.dicom import json_model, normalise
from shared.dicom.attributes import LENGTH_OF_VR, MATCHING_OF_VR, Attribute, Level, by_path
from shared.dicom.indexed_values import IndexedValue, indexed_values, unindexed
from shared.dicom.json_model import CharacterSet
from shared.dicom.search_terms import name_of, tag_of
from shared.errors import Conflict, InvalidRequest

Json = dict[str, Any]

VRS = frozenset(
    [
        "AE",
        "AS",
        "CS",
        "DA",
        "DS",
        "DT",
        "FD",
        "FL",
        "IS",
        "LO",
        "PN",
        "SH",
        "SL",
        "SS",
        "TM",
        "UI",
        "UL",
        "US",
    ]
)
MOST_TAGS = 128
DEEPEST = 6
"""Sequences around an attribute: its path has 62 characters then."""
LARGEST_VALUE = 32 * 1024
"""Characters of the JSON of a tag's values that the index keeps to return them."""

ADDING, READY, DELETING = "Adding", "Ready", "Deleting"

_LEVELS = {level.name.title(): level for level in (Level.STUDY, Level.SERIES, Level.INSTANCE)}
_FIELDS = {"path": "path", "vr": "vr", "privatecreator": "privateCreator", "level": "level"}


@dataclass(frozen=True, slots=True)
class Definition:
    """What a client defines. ``path`` is tags of eight upper-case digits with dots between them."""

    path: str
    vr: str
    level: Level
    creator: str = ""


@dataclass(frozen=True, slots=True)
class QueryTag:
    """A tag of the index. ``version`` is that of the set of tags in which it took its present form.

    ``operation`` is the id of the operation that adds or deletes it, or added it. ``erroneous``: it lacks
    the values of some instances.
    """

    key: int
    definition: Definition
    status: str
    enabled: bool
    version: int
    operation: str
    erroneous: bool = False

    @property
    def path(self) -> str:
        """The path of the attribute."""
        return self.definition.path

    @property
    def level(self) -> Level:
        """The level at which it is kept."""
        return self.definition.level

    @property
    def active(self) -> bool:
        """Whether what is stored is indexed by it."""
        return self.status != DELETING

    @property
    def attribute(self) -> Attribute:
        """What storing and searching know of it; its values lie in the table of values under a name of
        their own, so that those of a deleted tag are never taken for another's."""
        wanted = self.definition
        return Attribute(
            ".".join(name_of(tag) for tag in wanted.path.split(".")),
            wanted.level,
            MATCHING_OF_VR[wanted.vr],
            length=LENGTH_OF_VR.get(wanted.vr, 64),
            in_values=True,
            path=wanted.path,
            declared_vr=wanted.vr,
            creator=wanted.creator,
            name=f"tag{self.key}",
        )


@dataclass(frozen=True, slots=True)
class TagSet:
    """All tags, as of ``version``."""

    version: int = 0
    tags: tuple[QueryTag, ...] = ()

    @property
    def active(self) -> bool:
        """Whether anything is indexed by any of them."""
        return any(tag.active for tag in self.tags)

    def at(self, level: Level) -> list[QueryTag]:
        """The active tags of a level."""
        return [tag for tag in self.tags if tag.level is level and tag.active]

    def find(self, path: str) -> QueryTag | None:
        """The tag of a path."""
        return next((tag for tag in self.tags if tag.path == path), None)


NO_TAG_SET = TagSet()


# --- definitions -------------------------------------------------------------------------------------


def definitions(entries: Any) -> list[Definition]:
    """What the body of a request defines.

    Raises InvalidRequest that names the first entry that is wrong, and Conflict where an attribute is
    searchable without a tag.
    """
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest("The body must be an array of extended query tags.")
    if len(entries) > MOST_TAGS:
        raise InvalidRequest(f"There can be no more than {MOST_TAGS} extended query tags.")
    found = [_definition(entry) for entry in entries]
    for number, definition in enumerate(found):
        if definition.path in {other.path for other in found[:number]}:
            raise InvalidRequest(f"{_shown(definition.path)} is given twice.")
    return found


def _definition(entry: Any) -> Definition:
    if not isinstance(entry, dict):
        raise InvalidRequest("An extended query tag must be a JSON object.")
    given: dict[str, str] = {}
    for name, value in entry.items():
        field = _FIELDS.get(name.lower())
        if field is None:
            raise InvalidRequest(f"An extended query tag has no {name[:64]!r}.")
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidRequest(f"{field} of an extended query tag must be a string.")
        given[field] = value.strip()
    if not given.get("path"):
        raise InvalidRequest("An extended query tag needs a path.")
    path = tag_path(given["path"])
    level = _LEVELS.get(given.get("level", "").title())
    if level is None:
        raise InvalidRequest(f"The level of {_shown(path)} must be Study, Series or Instance.")
    if path in by_path():
        raise Conflict(f"{_shown(path)} is searchable without an extended query tag.")
    creator = given.get("privateCreator", "")
    _check_path(path, creator)
    return Definition(path, _vr(path, given.get("vr", "").upper()), level, creator)


def tag_path(text: str) -> str:
    """The tags that a path of keywords or tags names. Raises InvalidRequest."""
    tags = [tag_of(part) for part in text.split(".")]
    if None in tags or len(tags) > DEEPEST + 1:
        raise InvalidRequest(f"{text[:64]!r} is no path of attributes.")
    return ".".join(tag for tag in tags if tag is not None)


def _check_path(path: str, creator: str) -> None:
    *sequences, last = path.split(".")
    for tag in sequences:
        number = int(tag, 16)
        if not dictionary_has_tag(number) or dictionary_VR(number) != "SQ":
            raise InvalidRequest(f"{name_of(tag)} in {_shown(path)} is no sequence of the standard.")
    if last[:4] in ("0000", "0002", "FFFE") or last[4:] == "0000":
        raise InvalidRequest(f"{_shown(path)} is no attribute of a data set.")
    if not _is_private(last):
        if creator:
            raise InvalidRequest(
                f"{_shown(path)} is an attribute of the standard and has no private creator."
            )
        return
    if int(last[4:], 16) < 0x1000:
        raise InvalidRequest(f"{_shown(path)} is no private attribute: it reserves a block of them.")
    if not creator or normalise.cut(creator, 64) != creator or "\\" in creator:
        raise InvalidRequest(
            f"The private attribute {_shown(path)} needs a private creator of 1 to 64 characters."
        )


def _vr(path: str, given: str) -> str:
    last = path.split(".")[-1]
    number = int(last, 16)
    known: list[str] = []
    if not _is_private(last) and dictionary_has_tag(number):
        known = dictionary_VR(number).split(" or ")
        if given and given not in known:
            raise InvalidRequest(f"The VR of {_shown(path)} is {' or '.join(known)}.")
    vr = given or (known[0] if len(known) == 1 else "")
    if not vr:
        raise InvalidRequest(f"{_shown(path)} needs a VR: the dictionary does not tell it.")
    if vr not in VRS:
        raise InvalidRequest(
            f"Attributes of VR {vr[:2]} such as {_shown(path)} cannot be extended query tags."
        )
    return vr


def _is_private(tag: str) -> bool:
    return int(tag[3], 16) % 2 == 1


def _shown(path: str) -> str:
    return ".".join(name_of(tag) for tag in path.split("."))


# --- values ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TagValues:
    """What the tags of one level have in an instance.

    ``rows`` are the indexed values, ``json`` a DICOM JSON object of the values as they are, ``failed`` the
    keys of tags whose values cannot be indexed, each with a sentence.
    """

    rows: tuple[IndexedValue, ...] = ()
    json: str = ""
    failed: tuple[tuple[int, str], ...] = ()


NO_TAGS = TagValues()


def values_of(dataset: Json, tags: Iterable[QueryTag]) -> TagValues:
    """The values of ``tags``, which are of one level, in the metadata of an instance."""
    rows: list[IndexedValue] = []
    failed: list[tuple[int, str]] = []
    kept: Json = {}
    time_zone = next(iter(dataset.get("00080201", {}).get("Value", [])), "")
    characters = dataset.get("00080005", {}).get("Value", [])
    for tag in tags:
        attribute = tag.attribute
        found = _chosen(dataset, attribute.tags, attribute.creator, attribute.vr, characters)
        if not found:
            continue
        problem = _problem(found, attribute)
        plain = _without_creator(attribute)
        rows += indexed_values(found, [plain], time_zone)
        if not problem and unindexed(found, plain, time_zone):
            problem = f"A value is no {attribute.vr}, or too large a number, and is not indexed."
        if problem:
            failed.append((tag.key, problem))
        merge(kept, found)
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=False) if kept else ""
    return TagValues(tuple(rows), text if len(text) <= LARGEST_VALUE else "", tuple(failed))


def all_values_of(dataset: Json, tags: TagSet) -> dict[Level, TagValues]:
    """The values of all tags in the metadata of an instance, by their level."""
    return {level: values_of(dataset, tags.at(level)) for level in Level}


def _without_creator(attribute: Attribute) -> Attribute:
    """The same attribute where its values were found in: under the tag it was defined with."""
    return Attribute(
        attribute.keyword,
        attribute.level,
        attribute.matching,
        length=attribute.length,
        in_values=True,
        path=attribute.path,
        declared_vr=attribute.declared_vr,
        name=attribute.name,
    )


def _chosen(
    dataset: Json, tags: Sequence[str], creator: str, vr: str, characters: Sequence[str | None]
) -> Json:
    """The part of a data set that leads to an attribute, which has the tag it was defined with."""
    if len(tags) == 1:
        value = dataset.get(in_block(dataset, tags[0], creator) if creator else tags[0])
        return {tags[0]: _decoded(value, vr, characters)} if value is not None else {}
    items = dataset.get(tags[0], {}).get("Value", [])
    inner = [_chosen(i, tags[1:], creator, vr, characters) if isinstance(i, dict) else {} for i in items]
    return {tags[0]: {"vr": "SQ", "Value": inner}} if any(inner) else {}


def in_block(dataset: Json, tag: str, creator: str) -> str:
    """The tag of a private element in the block that ``creator`` has reserved (PS3.5 §7.8.1), or empty."""
    for block in range(0x10, 0x100):
        if dataset.get(f"{tag[:4]}00{block:02X}", {}).get("Value") == [creator]:
            return f"{tag[:4]}{block:02X}{tag[6:]}"
    return ""


def _decoded(value: Json, vr: str, characters: Sequence[str | None]) -> Json:
    """A value of unknown VR, as implicit files have for private attributes, read as ``vr``."""
    if value.get("vr") != "UN" or "InlineBinary" not in value:
        return value
    try:
        raw = base64.b64decode(value["InlineBinary"])
        encoded = json_model.encode(vr, raw, "<", CharacterSet([name or "" for name in characters]))
    except (binascii.Error, ValueError, LookupError):
        return value
    if encoded.problem:
        return value
    decoded: Json = json.loads('{"vr":"' + vr + '"' + encoded.json + "}")
    return decoded


def _problem(found: Json, attribute: Attribute) -> str:
    """What keeps an attribute from being indexed: another VR, or a value kept elsewhere."""
    for value in _ends(found, attribute.tags):
        if value.get("vr") != attribute.vr:
            return f"The attribute has VR {value.get('vr')} here, not {attribute.vr}."
        if "BulkDataURI" in value:
            return "The value is too large to be indexed."
    return ""


def _ends(dataset: Json, tags: Sequence[str]) -> Iterable[Json]:
    value = dataset.get(tags[0])
    if value is None:
        return
    if len(tags) == 1:
        yield value
        return
    for item in value.get("Value", []):
        yield from _ends(item, tags[1:])


def merge(kept: Json, found: Mapping[str, Any]) -> None:
    """Add what another tag has chosen; items of a sequence stay where they are."""
    for tag, value in found.items():
        if tag not in kept or value.get("vr") != "SQ":
            kept[tag] = value
            continue
        for mine, other in zip(kept[tag]["Value"], value["Value"], strict=True):
            merge(mine, other)


def returned(kept: Json, tags: Iterable[QueryTag]) -> Json:
    """Of the values the index keeps those of ``tags``."""
    result: Json = {}
    for tag in tags:
        merge(result, _chosen(kept, tag.path.split("."), "", tag.definition.vr, ()))
    return result
