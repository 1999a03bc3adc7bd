"""Borrowing a dedicated connection: waiting for it, bringing it back, saving what it popped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from resilient_io.deadlines import context_without_deadline
from resilient_io.errors import Progress
from resilient_io.health import Cause

from .attempt import AttemptFailed
from .errors import Failure, connection_failure
from .pool import Losses, salvage

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency

    from .attempt import Command
    from .multiplexer import Lanes
    from .pool import DedicatedConnections


class Borrowing:
    """Lends the client's dedicated connections to its calls."""

    def __init__(
        self, dedicated: DedicatedConnections, *, lanes: Lanes, health: Dependency
    ) -> None:
        """Lend from `dedicated`, while `health` says that it is worth it."""
        self._dedicated = dedicated
        self._lanes = lanes
        self._health = health
        self._salvages: list[asyncio.Task[None]] = []
        self._losses = Losses()
        self._waiting: list[asyncio.Timeout] = []
        self.closed = False

    async def borrow(self, until: float | None) -> AbstractConnection:
        """Lend a connection, waiting for a dependency that is down.

        Raises:
            AttemptFailed: There is none in time; nothing was sent.
        """
        patience = asyncio.timeout_at(until)
        self._waiting.append(patience)
        try:
            async with patience:
                if not self._health.available:
                    await self._health.until_up()
                return await self._dedicated.acquire()
        except (RedisError, OSError) as error:
            if self.closed:
                failure = Failure(Cause.CLOSED, "the client was closed")
            elif patience.expired():
                raise self._too_late(error) from error
            else:
                failure = connection_failure(error)
                self._health.failed(failure.cause, failure.detail)
            raise AttemptFailed(
                Progress.NOT_SENT,
                failure.cause,
                failure.detail,
                final=failure.permanent,
                error=error,
            ) from error
        finally:
            self._waiting.remove(patience)

    async def identify(self, connection: AbstractConnection, until: float | None) -> None:
        """Learn a lent connection's id, by which a command that blocks on it can be ended.

        Raises:
            AttemptFailed: It was lost, or time ran out; nothing was sent.
        """
        try:
            async with asyncio.timeout_at(until):
                await self._dedicated.identify(connection)
        except (RedisError, OSError) as error:
            failure = connection_failure(error)
            raise AttemptFailed(
                Progress.NOT_SENT, failure.cause, failure.detail, error=error
            ) from error

    def give_back(self, connection: AbstractConnection, *, clean: bool) -> None:
        """Take a connection back; one that is not clean is closed."""
        self._dedicated.give_back(connection, clean=clean)

    def salvage(self, connection: AbstractConnection, command: Command) -> None:
        """End a blocking pop that nobody waits for any more, in a task of the client's."""
        if self.closed:
            self._dedicated.give_back(connection, clean=False)
            return
        task = asyncio.get_running_loop().create_task(
            salvage(
                connection,
                command,
                lanes=self._lanes,
                dedicated=self._dedicated,
                losses=self._losses,
            ),
            name=f"resilient-io salvage {command.spec.name}",
            context=context_without_deadline(),
        )
        self._salvages.append(task)
        task.add_done_callback(self._salvages.remove)

    def close(self) -> None:
        """Lend nothing more; who waits for a connection, waits no longer."""
        self.closed = True
        now = asyncio.get_running_loop().time()
        for patience in self._waiting:
            if not patience.expired():
                patience.reschedule(now)

    async def aclose(self) -> None:
        """Wait for what is being salvaged; each is bounded."""
        if self._salvages:
            await asyncio.wait(list(self._salvages))
        self._losses.over()

    def _too_late(self, error: BaseException) -> AttemptFailed:
        crowded = self._health.available and self._dedicated.crowded
        waited_for = "one of its dedicated connections" if crowded else self._lanes.obstacle
        return AttemptFailed(
            Progress.NOT_SENT,
            Cause.OVERLOADED if crowded else Cause.TIMED_OUT,
            f"the deadline passed while it waited for {waited_for}",
            expired=True,
            overloaded=crowded,
            error=error,
        )
