"""Search (QIDO-RS, PS3.18 §10.6): the index's rows as DICOM JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import orjson

from shared import container
from shared.dicom import query_tags
from shared.dicom.attributes import Level
from shared.dicom.identifiers import InstanceKey
from shared.dicom.projection import Projection
from shared.dicom.search_terms import Position, SearchQuery
from shared.errors import NotFound
from shared.services import metadata, retrieve
from shared.sql import instances
from shared.sql import search as index
from shared.sql.instances import StoredInstance
from shared.sql.search import Found, InstanceRow, PatientRow, SeriesRow, StudyRow

Json = dict[str, Any]

_ALWAYS = ("00080056", "00081190", "0020000D", "0020000E", "00080018")
"""Returned whatever is asked: InstanceAvailability, RetrieveURL and the UIDs of the levels there are."""


@dataclass(frozen=True)
class Page:
    """Results as DICOM JSON objects whose attributes are in order of tag.

    ``last`` is the position of the last of them where more follow; ``total`` the number of all results,
    where it was asked for.
    """

    results: list[Json]
    last: Position | None = None
    total: int | None = None


async def search(query: SearchQuery, service_root: str, count: bool = False) -> Page:
    """A page of results; ``service_root`` begins the RetrieveURL of each.

    Attributes that the files do not have are empty where they are returned by default or were asked for by
    name. ``count`` counts all results, which reads all that matches. Raises DependencyUnavailable.
    """
    database = container.database()
    one_more = replace(query, limit=query.limit + 1)
    if query.level is Level.PATIENT:
        patients = await database.read(index.search_patients, one_more)
        results = [_patient(found.patient) for found in patients[: query.limit]]
        positions = [found.position for found in patients]
    else:
        rows = await database.read(index.search, one_more)
        results = await _results(rows[: query.limit], query, service_root)
        positions = [row.position for row in rows]
    total = await database.read(index.count, query) if count else None
    more = len(positions) > query.limit
    return Page(results, positions[query.limit - 1] if more else None, total)


async def _results(rows: Sequence[Found], query: SearchQuery, service_root: str) -> list[Json]:
    returned = query.returned
    empty = {a.tag: {"vr": a.vr} for a in returned if a.default or a.tag in query.requested}
    tags = sorted({a.tag for a in returned}.union(_ALWAYS))
    parents: dict[str, Json] = {}
    results = [_result(row, tags, empty, parents, service_root) for row in rows]
    if query.query_tags:
        results = [_with_tags(result, row, query) for result, row in zip(results, rows, strict=True)]
    if not query.not_indexed or not rows:
        return results
    more = await _from_metadata(rows, query, service_root)
    merged = (result | found for result, found in zip(results, more, strict=True))
    return [{tag: result[tag] for tag in sorted(result)} for result in merged]


def _result(row: Found, tags: list[str], empty: Json, parents: dict[str, Json], service_root: str) -> Json:
    """One result. ``parents`` keeps the parsed studies and series, which many rows may share."""
    url = f"{service_root}/studies/{row.study.uid}"
    known = parents.get(row.study.uid) or parents.setdefault(row.study.uid, _study(row.study))
    if row.series is not None:
        url += f"/series/{row.series.uid}"
        path = f"{row.study.uid}/{row.series.uid}"
        known = parents.get(path) or parents.setdefault(path, known | _series(row.series))
    if row.instance is not None:
        url += f"/instances/{row.instance.uid}"
        known = known | _instance(row.instance)
    known = known | {"00081190": {"vr": "UR", "Value": [url]}}
    return {tag: known.get(tag) or empty[tag] for tag in tags if tag in known or tag in empty}


def _with_tags(result: Json, row: Found, query: SearchQuery) -> Json:
    """A result with the values of extended query tags; one that was asked for and has none is empty."""
    found: Json = {}
    for text in row.tag_attributes:
        query_tags.merge(found, query_tags.returned(orjson.loads(text), query.query_tags) if text else {})
    for tag in query.query_tags:
        if "." not in tag.path and tag.path not in found:
            found[tag.path] = {"vr": tag.definition.vr}
    return dict(sorted((found | result).items()))


def _patient(patient: PatientRow) -> Json:
    """A patient's attributes, and how much there is of it (PS3.4 §C.3.4)."""
    attributes: Json = orjson.loads(patient.attributes)
    found = attributes | {
        "00201200": {"vr": "IS", "Value": [patient.number_of_studies]},
        "00201202": {"vr": "IS", "Value": [patient.number_of_series]},
        "00201204": {"vr": "IS", "Value": [patient.number_of_instances]},
    }
    return {tag: found[tag] for tag in sorted(found)}


def _study(study: StudyRow) -> Json:
    attributes: Json = orjson.loads(study.attributes)
    modalities = study.modalities.split("\\") if study.modalities else []
    return attributes | {
        "0020000D": {"vr": "UI", "Value": [study.uid]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00080061": {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"},
        "00201206": {"vr": "IS", "Value": [study.number_of_series]},
        "00201208": {"vr": "IS", "Value": [study.number_of_instances]},
    }


def _series(series: SeriesRow) -> Json:
    attributes: Json = orjson.loads(series.attributes)
    return attributes | {
        "0020000E": {"vr": "UI", "Value": [series.uid]},
        "00201209": {"vr": "IS", "Value": [series.number_of_instances]},
    }


def _instance(instance: InstanceRow) -> Json:
    attributes: Json = orjson.loads(instance.attributes)
    return attributes | {
        "00080018": {"vr": "UI", "Value": [instance.uid]},
        "00083002": {"vr": "UI", "Value": [instance.transfer_syntax_uid]},
    }


# --- attributes that are not indexed ---------------------------------------------------------------------


async def _from_metadata(rows: Sequence[Found], query: SearchQuery, service_root: str) -> list[Json]:
    """What was asked for by name and is in no row of the index: from the metadata of the instance that was
    added last to each result. One more statement, and one ranged read for each pack that holds some."""
    keys = [row.position.key for row in rows]
    partition = query.resource.partition
    last = await container.database().read(instances.last_instances, partition, query.level, keys)
    found: dict[InstanceKey, Json] = {}
    try:
        await _read(list(last.values()), query, service_root, found)
    except NotFound:  # one was deleted while it was read
        for stored in last.values():
            if stored.key not in found:
                with suppress(NotFound):
                    await _read([stored], query, service_root, found)
    representatives = (last.get(key) for key in keys)
    return [found.get(stored.key, {}) if stored else {} for stored in representatives]


async def _read(
    stored: Sequence[StoredInstance], query: SearchQuery, root: str, found: dict[InstanceKey, Json]
) -> None:
    """Put what of the metadata was asked for into ``found``."""
    wanted = Projection((tag,) for tag in query.not_indexed)
    async for text in metadata.projected(retrieve.read_metadata(stored, root), wanted):
        document = orjson.loads(text)
        identity = (document[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
        found[InstanceKey(query.resource.partition, *identity)] = {
            tag: value for tag, value in document.items() if tag in query.not_indexed
        }
