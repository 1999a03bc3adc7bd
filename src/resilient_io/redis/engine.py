"""What a client and all its views share: lanes, dedicated connections, the gate; one event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.binding import notify_on_fork
from resilient_io.deadlines import context_without_deadline
from resilient_io.retry import RetryBudget

from .executor import Gate
from .multiplexer import Lanes, follow_credentials
from .options import ConnectionSettings
from .pool import DedicatedConnections
from .probe import RedisProbe

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, MutableMapping

    from redis.asyncio.connection import ConnectionPool

    from resilient_io.health import Attachment, Change, Dependency, Subscription
    from resilient_io.retry import RetryPolicy

    from .connect import PoolTarget


class Engine:
    """Runs in the event loop of its first use; starts anew when that loop is closed."""

    def __init__(
        self,
        *,
        pool: ConnectionPool,
        target: PoolTarget,
        policy: RetryPolicy,
        health: Dependency,
        settings: ConnectionSettings,
        dedicated_limit: int,
        rng: random.Random,
        callbacks: MutableMapping[str | bytes, Callable[..., Any]],
        bound: bool,
        owns_health: bool,
    ) -> None:
        """Prepare; nothing is opened before `start`."""
        self.health = health
        self.target = target
        self.policy = policy
        self.bound = bound
        self._pool = pool
        self._settings = (
            ConnectionSettings(count=1, in_flight=settings.in_flight) if bound else settings
        )
        self._dedicated_limit = dedicated_limit
        self._rng = rng
        self._callbacks = callbacks
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forked = False
        self._owns_health = owns_health
        self._attachment: Attachment | None = None
        self._subscription: Subscription[Change] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._build()
        notify_on_fork(self)

    def _build(self) -> None:
        self.lanes = Lanes(
            target=self.target,
            policy=self.policy,
            health=self.health,
            settings=self._settings,
            rng=self._rng,
            client_name=self.target.client_name,
            bound=self.bound,
        )
        self.dedicated = DedicatedConnections(
            target=self.target, policy=self.policy, limit=self._dedicated_limit, like=self._pool
        )
        lanes = self.lanes
        self.gate = Gate(
            lanes=lanes,
            dedicated=self.dedicated,
            health=self.health,
            budget=RetryBudget(self.policy.retry_budget, lambda: lanes.replies),
            rng=self._rng,
            callbacks=self._callbacks,
        )

    def start(self) -> None:
        """Start in the running loop, if that has not happened; never waits for the server.

        Raises:
            RuntimeError: It runs in another living event loop, or the process was forked.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._leave_dead_loop()
        if self._forked:
            raise RuntimeError(
                "this client was made before a fork, whose parent uses its connections: make a new "
                "ResilientRedis in the child process"
            )
        if self._loop is not None:
            raise RuntimeError(
                "this client is in use in another running event loop: make one ResilientRedis "
                "for each event loop"
            )
        self._loop = loop
        self.lanes.start()
        follow_credentials(self._pool, self)
        self._attachment = self.health.start(
            RedisProbe(
                lanes=self.lanes, target=self.target, policy=self.policy, health=self.health
            ),
            last_reply=self.lanes.last_byte,
        )
        self._subscription = self.health.on_change(self._health_changed)

    async def reopen(self) -> None:
        """Make a closed engine usable again, when a closing that is under way has ended."""
        self._leave_dead_loop()
        if self._leaving is not None:
            await asyncio.wait([self._leaving])
        if self.gate.closed:
            self._build()

    def _leave_dead_loop(self) -> None:
        """Forget what belongs to a loop that was closed: nothing of it can be ended any more."""
        if self._loop is not None and self._loop.is_closed():
            self._loop = self._leaving = None
            self._build()

    def _health_changed(self, _change: Change) -> None:
        self.lanes.refresh()
        if not self.health.available:
            self.dedicated.drop_all()

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps; None while all is well, or while it does not run."""
        if self._loop is None or self._loop.is_closed() or self._leaving is not None:
            return None
        return self.lanes.liveness_failure()

    async def aclose(self, also: Callable[[], Awaitable[None]]) -> None:
        """Settle every call as closed, close every connection, end every task.

        Closing twice is fine. Cancelling leaves at once; the closing goes on by itself.

        Args:
            also: What the client closes beside, as a part of the same closing.
        """
        self._leave_dead_loop()
        self.gate.borrowing.close()
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(
                self._close(also), name="resilient-io close", context=context_without_deadline()
            )
        leaving = self._leaving
        await asyncio.wait([leaving])
        leaving.result()

    async def _close(self, also: Callable[[], Awaitable[None]]) -> None:
        if self._subscription is not None:
            self._subscription.remove()
        await self.gate.borrowing.aclose()
        await self.lanes.aclose()
        await self.dedicated.aclose()
        await self.target.aclose()
        if self._attachment is not None:
            await self._attachment.detach()
        if self._owns_health:
            await self.health.aclose()
        await also()
        self._attachment = self._subscription = self._loop = self._leaving = None

    def note_fork(self) -> None:
        """Refuse every further use: the sockets belong to the parent process."""
        if self._loop is not None:
            self._forked, self._loop = True, None
            self.lanes.disown()
