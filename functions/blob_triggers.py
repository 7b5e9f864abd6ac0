"""Blob triggers: files that appear in ``dicom`` are indexed, files dropped into ``inbox`` are stored.

The blob's name is what counts; its bytes are read by the app's own client, as a stream. On Flex
Consumption the source must be Event Grid, elsewhere containers are scanned: a setting decides.
"""

from __future__ import annotations

import logging
import os

import azure.functions as func

from functions.tracing import traced
from shared import services

blueprint = func.Blueprint()
log = logging.getLogger(__name__)

_SOURCE = func.BlobSource(os.environ.get("DICOM_BLOB_TRIGGER_SOURCE", "LogsAndContainerScan"))


@blueprint.function_name("index_dicom_blob")
@blueprint.blob_trigger(
    arg_name="blob", path="dicom/{name}", connection="AzureWebJobsStorage", source=_SOURCE
)
@traced("blob")
async def index_dicom_blob(blob: func.InputStream) -> None:
    """Index a Part 10 file that appeared in ``dicom``, unless it is known or being stored."""
    result = await services.ingest.ingest(_name(blob))
    if result.name not in ("KNOWN", "IN_FLIGHT"):
        log.info("A blob in dicom: %s.", result.value)


@blueprint.function_name("store_inbox_blob")
@blueprint.blob_trigger(
    arg_name="blob", path="inbox/{name}", connection="AzureWebJobsStorage", source=_SOURCE
)
@traced("blob")
async def store_inbox_blob(blob: func.InputStream) -> None:
    """Store a file that was dropped into ``inbox``."""
    await services.inbox.take(_name(blob))


def _name(blob: func.InputStream) -> str:
    """The blob's name within its container; the trigger gives ``container/name``."""
    return (blob.name or "").partition("/")[2]
