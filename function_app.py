"""The Azure Functions app: creates the FunctionApp and registers what is in ``functions/``."""

import azure.functions as func

from functions import (
    blob_triggers,
    bulkdata,
    change_feed,
    delete,
    export,
    frames,
    health,
    imports,
    metadata,
    openapi,
    operations,
    partitions,
    query_tags,
    queue_triggers,
    rendered,
    retrieve,
    search,
    store,
    timers,
    update,
    wado_uri,
    workitem_subscriptions,
    workitems,
)

_MODULES = (
    blob_triggers,
    bulkdata,
    change_feed,
    delete,
    export,
    frames,
    health,
    imports,
    metadata,
    openapi,
    operations,
    partitions,
    query_tags,
    queue_triggers,
    rendered,
    retrieve,
    search,
    store,
    timers,
    update,
    wado_uri,
    workitem_subscriptions,
    workitems,
)

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
for module in _MODULES:
    app.register_functions(module.blueprint)
