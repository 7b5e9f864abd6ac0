"""The inbox: any file dropped there is stored like an upload, then removed; a refused one moves aside."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from shared import container, faults
from shared.blobs import names
from shared.blobs.store import BlobNotFound
from shared.dicom import failure_reasons
from shared.dicom.identifiers import DEFAULT_PARTITION
from shared.errors import DependencyUnavailable, without_message
from shared.services import duplicates, store
from shared.settings import settings
from shared.sql.change_feed import timestamp

log = logging.getLogger(__name__)


async def take(name: str) -> None:
    """Store the blob ``name`` of container ``inbox``; a second delivery finds it gone or stored.

    One that cannot be stored moves to ``inbox-failed``, with the reason in its metadata and in the table
    ``inboxfailures``. Raises DependencyUnavailable; the file stays and the trigger tries again.
    """
    try:
        (outcome,) = await store.store(_one_file(name), DEFAULT_PARTITION)
    except BlobNotFound:
        return
    faults.point("inbox.stored")
    if outcome.failure is not None and not await _is_stored_already(name, outcome):
        await _set_aside(name, outcome.failure, outcome.message)
        return
    await container.blob_store().delete(names.INBOX, name)


async def take_left_behind(seconds: float = 240.0) -> int:
    """Store what still lies in ``inbox`` after the grace period; how many files.

    A trigger gives up on a file after a few tries, which an outage of seconds uses up, and may miss one.
    """
    deadline = time.monotonic() + seconds
    taken = 0
    token = ""
    while True:
        page, token = await container.blob_store().list_page(names.INBOX, token=token)
        for item in page:
            if time.time() - item.modified.timestamp() < settings().orphan_grace_seconds:
                continue
            try:
                await take(item.name)
                taken += 1
            except DependencyUnavailable:
                raise
            except Exception as error:  # a bug that one file shows must not keep the others from being stored
                log.error("A file of the inbox could not be handled: %s", without_message(error))
        if not token or time.monotonic() > deadline:
            return taken


async def _one_file(name: str) -> AsyncIterator[AsyncIterator[bytes]]:
    yield container.blob_store().stream(names.INBOX, name)


async def _is_stored_already(name: str, outcome: store.Outcome) -> bool:
    """Whether the refused file is what the server keeps: a delivery that was cut off."""
    if outcome.key is None or outcome.failure not in (
        failure_reasons.ALREADY_EXISTS,
        failure_reasons.BEING_CREATED,
    ):
        return False
    return await duplicates.is_stored(names.INBOX, name, outcome.key)


async def _set_aside(name: str, reason: int, message: str) -> None:
    now = timestamp(datetime.now(UTC))
    metadata = {"reason": message, "failurereason": str(reason), "time": now}
    try:
        await container.blob_store().find(names.INBOX, name)  # or another delivery has dealt with it
        await container.state().record_inbox_failure(name, reason, message, now)
        faults.point("inbox.recorded")
        await container.blob_store().move_to(name, names.INBOX, names.INBOX_FAILED, metadata)
    except BlobNotFound:
        return
