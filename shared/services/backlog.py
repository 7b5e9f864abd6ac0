"""What waits for queue triggers and for the clean-up, as metrics."""

from __future__ import annotations

from datetime import UTC, datetime

from shared import container, telemetry
from shared.sql import instances
from shared.sql.change_feed import timestamp


async def observe() -> None:
    """Tell telemetry, where it goes anywhere. Raises DependencyUnavailable."""
    if not telemetry.active():
        return
    for queue, messages in (await container.operation_queue().depths()).items():
        telemetry.observe(telemetry.QUEUE_MESSAGES, messages, queue=queue)
    now = timestamp(datetime.now(UTC))
    waiting = await container.database().read(instances.count_due_deletions, now)
    telemetry.observe(telemetry.CLEANUP_WAITING, waiting)
