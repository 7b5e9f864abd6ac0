"""Queue triggers: coordination and steps of long-running operations, messages that failed too often, events.

Two queues of operations, so that a coordinator never waits behind the steps of others.
"""

from __future__ import annotations

import logging

import azure.functions as func

from functions.tracing import traced
from shared import services
from shared.errors import DependencyUnavailable

log = logging.getLogger(__name__)
blueprint = func.Blueprint()

_STORAGE = "AzureWebJobsStorage"


@blueprint.function_name("coordinate_operation")
@blueprint.queue_trigger(arg_name="message", queue_name="operations", connection=_STORAGE)
@traced("queue")
async def coordinate_operation(message: func.QueueMessage) -> None:
    """Count, plan and send the steps of an operation."""
    await services.operations.handle(message.get_body(), (message.dequeue_count or 1) > 1)


@blueprint.function_name("work_on_operation")
@blueprint.queue_trigger(arg_name="message", queue_name="operation-steps", connection=_STORAGE)
@traced("queue")
async def work_on_operation(message: func.QueueMessage) -> None:
    """Work off a step of an operation."""
    await services.operations.handle(message.get_body(), (message.dequeue_count or 1) > 1)


@blueprint.function_name("give_up_coordination")
@blueprint.queue_trigger(arg_name="message", queue_name="operations-poison", connection=_STORAGE)
@traced("queue")
async def give_up_coordination(message: func.QueueMessage) -> None:
    """A coordinator's message that its workers died of."""
    await services.operations.give_up(message.get_body())


@blueprint.function_name("give_up_step")
@blueprint.queue_trigger(arg_name="message", queue_name="operation-steps-poison", connection=_STORAGE)
@traced("queue")
async def give_up_step(message: func.QueueMessage) -> None:
    """A step's message that its workers died of."""
    await services.operations.give_up(message.get_body())


@blueprint.function_name("deliver_workitem_events")
@blueprint.queue_trigger(arg_name="message", queue_name="workitem-events", connection=_STORAGE)
@traced("queue")
async def deliver_workitem_events(message: func.QueueMessage) -> None:
    """Send event reports of workitems; what cannot be sent now is for the timer."""
    try:
        await services.workitem_events.deliver()
    except DependencyUnavailable as error:
        log.warning("Events wait for the timer: %s", error)
