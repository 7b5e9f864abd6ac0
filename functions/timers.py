"""Timers: clean-up of deleted instances, of unreferenced bytes, and reconciliation of what no trigger saw.

A paused serverless database is woken by each of them, so their schedules are settings.
"""

from __future__ import annotations

import logging

import azure.functions as func

from functions.tracing import traced
from shared import services

blueprint = func.Blueprint()
log = logging.getLogger(__name__)


@blueprint.function_name("clean_deleted_instances")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_CLEANUP_SCHEDULE%", use_monitor=True)
@traced("timer")
async def clean_deleted_instances(timer: func.TimerRequest) -> None:
    """Remove the bytes of deleted and replaced instances."""
    cleaned = await services.cleanup.clean_deleted()
    if cleaned:
        log.info("Removed the bytes of %d deleted instances.", cleaned)


@blueprint.function_name("reconcile_blobs")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_RECONCILE_SCHEDULE%", use_monitor=True)
@traced("timer")
async def reconcile_blobs(timer: func.TimerRequest) -> None:
    """Index or store files no trigger took; remove files and metadata nothing refers to."""
    taken = await services.inbox.take_left_behind()
    counts = await services.ingest.reconcile()
    compacted = await services.cleanup.sweep_packs()
    summary = {result.name: count for result, count in counts.items() if count}
    if taken or summary or compacted:
        log.info("Took %d from the inbox; reconciled %s; compacted %d packs.", taken, summary, compacted)


@blueprint.function_name("tend_operations")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_OPERATIONS_SCHEDULE%", use_monitor=True)
@traced("timer")
async def tend_operations(timer: func.TimerRequest) -> None:
    """Wake operations that have stalled, and forget those that ended long ago and secrets left behind."""
    revived = await services.operations.revive()
    removed = await services.operations.remove_old()
    await services.update.forget()
    swept = await services.export.sweep() + await services.imports.sweep()
    if revived or removed or swept:
        log.info("Woke %d operations; forgot %d; removed %d secrets and reports.", revived, removed, swept)


@blueprint.function_name("send_events")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_FOLLOWER_SCHEDULE%", use_monitor=False)
@traced("timer")
async def send_events(timer: func.TimerRequest) -> None:
    """Send events of what has changed since the last run."""
    sent = await services.events.follow()
    if sent:
        log.info("Sent the events of %d changes.", sent)


@blueprint.function_name("synchronise_fhir")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_FOLLOWER_SCHEDULE%", use_monitor=False)
@traced("timer")
async def synchronise_fhir(timer: func.TimerRequest) -> None:
    """Bring the FHIR server in step with what has changed since the last run."""
    followed = await services.fhir.follow()
    if followed:
        log.info("The FHIR server is in step with %d more changes.", followed)


@blueprint.function_name("evict_cached_frames")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_RECONCILE_SCHEDULE%", use_monitor=True)
@traced("timer")
async def evict_cached_frames(timer: func.TimerRequest) -> None:
    """Keep the cache of frames within its bound."""
    evicted = await services.frame_cache.evict()
    if evicted:
        log.info("Removed %d frames from the cache.", evicted)


@blueprint.function_name("tend_workitem_events")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_CLEANUP_SCHEDULE%", use_monitor=True)
@traced("timer")
async def tend_workitem_events(timer: func.TimerRequest) -> None:
    """Remove old final workitems and event reports, and send those that no message told of."""
    removed = await services.workitem_subscriptions.remove_final()
    forgotten = await services.workitem_events.prune()
    sent = await services.workitem_events.deliver()
    if sent or forgotten or removed:
        log.info(
            "Sent %d events that were left behind; forgot %d, and %d workitems.", sent, forgotten, removed
        )


@blueprint.function_name("observe_backlog")
@blueprint.timer_trigger(arg_name="timer", schedule="%DICOM_CLEANUP_SCHEDULE%", use_monitor=True)
@traced("timer")
async def observe_backlog(timer: func.TimerRequest) -> None:
    """Say in telemetry how much waits in queues and for the clean-up."""
    await services.backlog.observe()
