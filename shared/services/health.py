"""Health of the dependencies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shared import container
from shared.errors import DependencyUnavailable
from shared.services import events, fhir, follower

_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Dependency:
    """One dependency; ``description`` says in one sentence what is wrong, or is empty.

    One that is ``degraded`` answers, but is not as it should be.
    """

    name: str
    healthy: bool
    description: str = ""
    degraded: bool = False


@dataclass(frozen=True)
class Report:
    """All dependencies."""

    dependencies: tuple[Dependency, ...]

    @property
    def healthy(self) -> bool:
        """Whether every dependency answers."""
        return all(dependency.healthy for dependency in self.dependencies)

    @property
    def degraded(self) -> bool:
        """Whether any dependency is not as it should be."""
        return any(dependency.degraded for dependency in self.dependencies)


async def check() -> Report:
    """Ask Blob, Table and Queue Storage and SQL whether they answer, all at once.

    How far the followers of the change feed are is told with them. A neighbour that is down does not make
    this server unhealthy.
    """
    followers = [("Events", events.NAME)] if events.configured() else []
    followers += [("Fhir", fhir.NAME)] if fhir.configured() else []
    return Report(
        tuple(
            await asyncio.gather(
                _probe("BlobStorage", lambda: container.blob_store().ping()),
                _probe("TableStorage", _ping_tables),
                _probe("QueueStorage", lambda: container.operation_queue().ping()),
                _probe("Sql", _ping_sql),
                *(_lag(*names) for names in followers),
            )
        )
    )


async def _probe(name: str, ask: Callable[[], Awaitable[str | None]]) -> Dependency:
    """Ask one dependency, which may say what is not as it should be; a client that cannot even be built is a
    finding, too."""
    try:
        complaint = await asyncio.wait_for(ask(), _TIMEOUT_SECONDS)
    except DependencyUnavailable as error:
        return Dependency(name, False, str(error))
    except TimeoutError:
        return Dependency(name, False, f"No answer within {_TIMEOUT_SECONDS} seconds.")
    except Exception as error:
        return Dependency(name, False, f"The check failed with {type(error).__name__}.")
    return Dependency(name, True, complaint or "", degraded=bool(complaint))


async def _lag(name: str, consumer: str) -> Dependency:
    """How far behind a follower of the change feed is; a dependency that is down is told elsewhere."""
    try:
        behind = await asyncio.wait_for(follower.lag(consumer), _TIMEOUT_SECONDS)
    except (DependencyUnavailable, TimeoutError):
        return Dependency(name, True, "How far it is could not be found out.")
    return Dependency(name, True, str(behind))


async def _ping_sql() -> str:
    from shared.sql.migrations import READERS_WAIT, readers_wait

    await container.database().ping()
    return READERS_WAIT if await container.database().read(readers_wait) else ""


async def _ping_tables() -> None:
    async for _ in container.table_service().list_tables(results_per_page=1):
        break
