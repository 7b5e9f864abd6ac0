"""Routes: which function the platform picks for a path.

The host tries functions in alphabetical order of their names and takes the first whose template fits,
without regard to case. So no path may fit two templates, and no method of a template two functions.
"""

from __future__ import annotations

import itertools
import re

import pytest

from devhost.routing import Router, compile_template
from functions import routes
from tests.app_functions import all_functions, http_functions

REGISTERED = http_functions()
STUDY = "1.2.3"
SERIES = f"{STUDY}/series/4.5"
INSTANCE = f"{SERIES}/instances/6.7"
PATHS = {
    ("GET", "patients"): "search_patients",
    ("GET", "studies"): "search_studies",
    ("POST", "studies"): "store_instances",
    ("POST", "export"): "export_instances",
    ("PUT", "studies"): "upsert_instances",
    ("GET", f"studies/{STUDY}"): "retrieve_study",
    ("POST", f"studies/{STUDY}"): "store_study_instances",
    ("PUT", f"studies/{STUDY}"): "upsert_study_instances",
    ("POST", "studies/$bulkUpdate"): "bulk_update",
    ("DELETE", f"studies/{STUDY}"): "delete_study",
    ("GET", f"studies/{STUDY}/metadata"): "retrieve_study_metadata",
    ("GET", f"studies/{STUDY}/series"): "search_study_series",
    ("GET", f"studies/{STUDY}/instances"): "search_study_instances",
    ("GET", "series"): "search_series",
    ("GET", "instances"): "search_instances",
    ("POST", "import"): "import_instances",
    ("GET", f"import/{'0' * 32}/report"): "read_import_report",
    ("GET", "wado"): "retrieve_by_wado_uri",
    ("GET", f"studies/{SERIES}"): "retrieve_series",
    ("DELETE", f"studies/{SERIES}"): "delete_series",
    ("GET", f"studies/{SERIES}/metadata"): "retrieve_series_metadata",
    ("GET", f"studies/{SERIES}/instances"): "search_series_instances",
    ("GET", f"studies/{INSTANCE}"): "retrieve_instance",
    ("DELETE", f"studies/{INSTANCE}"): "delete_instance",
    ("GET", f"studies/{INSTANCE}/metadata"): "retrieve_instance_metadata",
    ("GET", f"studies/{INSTANCE}/frames/1,2"): "retrieve_frames",
    ("GET", f"studies/{STUDY}/rendered"): "render_study",
    ("GET", f"studies/{SERIES}/rendered"): "render_series",
    ("GET", f"studies/{INSTANCE}/rendered"): "render_instance",
    ("GET", f"studies/{INSTANCE}/frames/1,2/rendered"): "render_frames",
    ("GET", f"studies/{STUDY}/thumbnail"): "study_thumbnail",
    ("GET", f"studies/{SERIES}/thumbnail"): "series_thumbnail",
    ("GET", f"studies/{INSTANCE}/thumbnail"): "instance_thumbnail",
    ("GET", f"studies/{INSTANCE}/frames/1,2/thumbnail"): "frames_thumbnail",
    ("GET", f"studies/{INSTANCE}/bulkdata/7FE00010"): "retrieve_bulkdata",
    ("POST", "workitems"): "create_workitem",
    ("GET", "workitems"): "search_workitems",
    ("GET", "workitems/1.2.3"): "retrieve_workitem",
    ("POST", "workitems/1.2.3"): "update_workitem",
    ("PUT", "workitems/1.2.3/state"): "change_workitem_state",
    ("POST", "workitems/1.2.3/cancelrequest"): "request_workitem_cancellation",
    ("POST", "workitems/1.2.3/subscribers/READER"): "subscribe",
    ("DELETE", "workitems/1.2.3/subscribers/READER"): "unsubscribe",
    ("POST", "workitems/1.2.3/subscribers/READER/suspend"): "suspend_subscription",
    ("GET", "subscribers/READER"): "read_subscriber",
    ("GET", "subscribers/READER/events"): "read_events",
}
"""Of the Studies service, relative to its base."""
WHOLE_PATHS = {
    ("GET", "v2"): "retrieve_capabilities",
    ("OPTIONS", "v2"): "retrieve_capabilities",
    ("GET", "v2/partitions"): "list_partitions",
    ("GET", "v2/changefeed"): "read_change_feed",
    ("GET", "v2/changefeed/latest"): "read_latest_change",
    ("POST", "v2/extendedquerytags"): "add_query_tags",
    ("GET", "v2/extendedquerytags"): "list_query_tags",
    ("GET", "v2/extendedquerytags/00180050"): "read_query_tag",
    ("PATCH", "v2/extendedquerytags/SliceThickness"): "update_query_tag",
    ("DELETE", "v2/extendedquerytags/00540220.00080100"): "delete_query_tag",
    ("GET", "v2/extendedquerytags/00180050/errors"): "list_query_tag_errors",
    ("GET", "v2/operations/0123456789abcdef0123456789abcdef"): "read_operation",
    ("DELETE", "v2/operations/0123456789abcdef0123456789abcdef"): "cancel_operation",
    ("GET", "v2/openapi.json"): "read_openapi",
    ("GET", "health/check"): "check_health",
}
SAMPLES = (
    WHOLE_PATHS
    | {(method, f"v2/{path}"): name for (method, path), name in PATHS.items()}
    | {
        (method, f"v2/partitions/clinic-1/{path}"): f"{name}_in_partition"
        for (method, path), name in PATHS.items()
    }
)
HEADS = {("HEAD", path): name for (method, path), name in SAMPLES.items() if method == "GET"}


@pytest.fixture(scope="module")
def router() -> Router:
    router = Router()
    for function in REGISTERED:
        router.add(function.name, function.methods, function.template)
    return router


@pytest.mark.parametrize(("method", "path"), [*SAMPLES, *HEADS])
def test_a_path_reaches_its_function(router: Router, method: str, path: str) -> None:
    expected = (SAMPLES | HEADS)[method, path]
    for spelling in (path, path.upper()):
        found = router.match(method, spelling)
        assert found is not None
        assert found[0] == expected


def test_every_function_has_a_sample_path() -> None:
    assert {function.name for function in REGISTERED} == set(SAMPLES.values())


def test_names_of_functions_are_unique() -> None:
    names = [function.name.lower() for function in all_functions()]
    assert len(names) == len(set(names))


def test_every_template_is_used_and_every_studies_route_has_both_forms() -> None:
    constants = {
        value
        for name, value in vars(routes).items()
        if name.isupper() and name not in ("BASE", "PARTITION_BASE")
    }
    whole = {
        value
        for value in constants
        if value == routes.BASE or value.startswith((f"{routes.BASE}/", "health/"))
    }
    expected = set(whole)
    for value in constants - whole:
        expected |= {f"{routes.BASE}/{value}", f"{routes.PARTITION_BASE}/{value}"}
    assert {function.template for function in REGISTERED} == expected


def test_a_route_takes_the_same_methods_in_a_partition() -> None:
    methods = {function.name: function.methods for function in REGISTERED}
    for name, given in methods.items():
        if name.endswith("_in_partition"):
            assert given == methods[name.removesuffix("_in_partition")]


def test_no_path_fits_two_templates() -> None:
    """So the order of names never decides which template wins, whatever functions are added."""
    templates = sorted({function.template for function in REGISTERED})
    for one, other in itertools.permutations(templates, 2):
        path = re.sub(r"{\w+}", "x", one)
        if one.endswith(f"/{routes.BULK_UPDATE}") and other.endswith(f"/{routes.STUDY}"):
            continue
        assert compile_template(other).match(path) is None, (path, other)


def test_the_route_of_bulk_updates_comes_before_that_of_a_study() -> None:
    """The one exception, which the ancestor has made: a name that is no UID where a UID could stand."""
    updates = [f for f in REGISTERED if f.template.endswith(routes.BULK_UPDATE)]
    studies = [f for f in REGISTERED if f.template.endswith(f"/{routes.STUDY}") and "POST" in f.methods]
    assert len(updates) == len(studies) == 2
    assert max(f.name for f in updates) < min(f.name for f in studies)


def test_no_two_functions_share_a_template_and_a_method() -> None:
    for one, other in itertools.combinations(REGISTERED, 2):
        if one.template == other.template:
            assert not one.methods & other.methods, (one.name, other.name)


def test_no_route_begins_with_a_reserved_segment() -> None:
    for function in REGISTERED:
        assert function.template.partition("/")[0] not in ("admin", "runtime")
