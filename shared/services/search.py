"""Search (QIDO-RS, PS3.18 §10.6): the index's rows as DICOM JSON."""

from __future__ import annotations

from typing import Any

import orjson

from shared import container
from shared.dicom.search_terms import SearchQuery
from shared.sql import search as index
from shared.sql.search import Found, InstanceRow, SeriesRow, StudyRow

Json = dict[str, Any]

_ALWAYS = ("00080056", "00081190", "0020000D", "0020000E", "00080018")
"""Returned whatever is asked: InstanceAvailability, RetrieveURL and the UIDs of the levels there are."""


async def search(query: SearchQuery, service_root: str) -> list[Json]:
    """A page of results, newest first: DICOM JSON objects whose attributes are in order of tag.

    ``service_root`` begins the RetrieveURL of each. Attributes that the files do not have are empty
    where they are returned by default or were asked for by name. Raises DependencyUnavailable.
    """
    rows = await container.database().read(index.search, query)
    returned = query.returned
    empty = {a.tag: {"vr": a.vr} for a in returned if a.default or a.tag in query.requested}
    tags = sorted({a.tag for a in returned}.union(_ALWAYS))
    parents: dict[str, Json] = {}
    return [_result(row, tags, empty, parents, service_root) for row in rows]


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
