"""Every route template of the app, once.

Studies-service routes are given relative to a base that is ``v2`` for the default partition and
``v2/partitions/{partition}`` for a named one; :func:`functions.http.route` registers both. The host
tries functions in alphabetical order of their names and the first template that fits wins, so the
templates of one method must be disjoint (``tests/test_routes.py``).
"""

from __future__ import annotations

BASE = "v2"
PARTITION_BASE = "v2/partitions/{partition}"

PATIENTS = "patients"
STUDIES = "studies"
STUDY = "studies/{study}"
BULK_UPDATE = "studies/$bulkUpdate"
STUDY_METADATA = "studies/{study}/metadata"
STUDY_SERIES = "studies/{study}/series"
STUDY_INSTANCES = "studies/{study}/instances"
ALL_SERIES = "series"
SERIES = "studies/{study}/series/{series}"
SERIES_METADATA = "studies/{study}/series/{series}/metadata"
SERIES_INSTANCES = "studies/{study}/series/{series}/instances"
ALL_INSTANCES = "instances"
INSTANCE = "studies/{study}/series/{series}/instances/{instance}"
INSTANCE_METADATA = "studies/{study}/series/{series}/instances/{instance}/metadata"
FRAMES = "studies/{study}/series/{series}/instances/{instance}/frames/{frames}"
STUDY_RENDERED = "studies/{study}/rendered"
SERIES_RENDERED = "studies/{study}/series/{series}/rendered"
INSTANCE_RENDERED = "studies/{study}/series/{series}/instances/{instance}/rendered"
FRAMES_RENDERED = "studies/{study}/series/{series}/instances/{instance}/frames/{frames}/rendered"
STUDY_THUMBNAIL = "studies/{study}/thumbnail"
SERIES_THUMBNAIL = "studies/{study}/series/{series}/thumbnail"
INSTANCE_THUMBNAIL = "studies/{study}/series/{series}/instances/{instance}/thumbnail"
FRAMES_THUMBNAIL = "studies/{study}/series/{series}/instances/{instance}/frames/{frames}/thumbnail"
BULKDATA = "studies/{study}/series/{series}/instances/{instance}/bulkdata/{path}"

SUBSCRIPTION = "workitems/{workitem}/subscribers/{subscriber}"
SUSPENSION = "workitems/{workitem}/subscribers/{subscriber}/suspend"
SUBSCRIBER = "subscribers/{subscriber}"
SUBSCRIBER_EVENTS = "subscribers/{subscriber}/events"
WORKITEMS = "workitems"
WORKITEM = "workitems/{workitem}"
WORKITEM_STATE = "workitems/{workitem}/state"
WORKITEM_CANCELLATION = "workitems/{workitem}/cancelrequest"

WADO_URI = "wado"
EXPORT = "export"

IMPORT = "import"
IMPORT_REPORT = "import/{operation}/report"

CAPABILITIES = "v2"
PARTITIONS = "v2/partitions"
CHANGE_FEED = "v2/changefeed"
CHANGE_FEED_LATEST = "v2/changefeed/latest"
QUERY_TAGS = "v2/extendedquerytags"
QUERY_TAG = "v2/extendedquerytags/{tag}"
QUERY_TAG_ERRORS = "v2/extendedquerytags/{tag}/errors"
OPERATION = "v2/operations/{operation}"
OPENAPI = "v2/openapi.json"
HEALTH = "health/check"
