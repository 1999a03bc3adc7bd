"""What a client and all its views share: the connections, the executor and the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from resilient_io.binding import LoopBinding, notify_on_fork
from resilient_io.deadlines import context_without_deadline
from resilient_io.retry import RetryBudget

from .errors import RedisClosed
from .executor import Executor
from .lock_keys import LockKeys
from .multiplexer import Multiplexer, follow_credentials
from .pool import ExclusivePool
from .probe import RedisProbe
from .scripts import KnownScripts

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

    from redis.asyncio.connection import ConnectionPool

    from resilient_io.health import Attachment, Dependency, Reporter, Subscription
    from resilient_io.retry import RetryPolicy

    from .connect import RedisTarget
    from .multiplexer import DeadConnection
    from .options import ConnectionSettings


class Runtime:
    """Runs in the event loop of its first use, and starts again when that loop was closed."""

    multiplexer: Multiplexer
    pool: ExclusivePool
    executor: Executor
    locks: LockKeys
    _reports: Reporter

    def __init__(
        self,
        *,
        target: RedisTarget,
        policy: RetryPolicy,
        health: Dependency,
        settings: ConnectionSettings,
        template: ConnectionPool,
        rng: random.Random,
        tokens: random.Random,
        bound: bool,
    ) -> None:
        self.health = health
        self.target = target
        self.bound = bound
        self._policy = policy
        self._settings = replace(settings, count=1) if bound else settings
        self._template = template
        self.scripts = KnownScripts(template.get_encoder().encode)  # type: ignore[no-untyped-call]
        self._rng = rng
        self._tokens = tokens
        self._binding: LoopBinding | None = None
        self._attachment: Attachment | None = None
        self._subscription: Subscription[Dependency] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closes = 0  # how often `aclose` was called
        self._build()
        notify_on_fork(self.note_fork)

    def _build(self, unfenced: Iterable[DeadConnection] = ()) -> None:
        self._reports = self.health.reporter()
        prefix = self.target.client_name or "resilient-io"
        self.multiplexer = multiplexer = Multiplexer(
            target=self.target,
            policy=self._policy,
            health=self.health,
            reports=self._reports,
            settings=self._settings,
            rng=self._rng,
            names=f"{prefix}:{self._tokens.getrandbits(64):016x}",
            bound=self.bound,
            unfenced=unfenced,
        )
        self.pool = ExclusivePool(
            multiplexer=multiplexer, policy=self._policy, template=self._template
        )
        self.locks = LockKeys(multiplexer=multiplexer, pool=self.pool, rng=self._rng)
        self.executor = Executor(
            multiplexer=multiplexer,
            health=self.health,
            reports=self._reports,
            budget=RetryBudget(self._policy.retry_budget, lambda: multiplexer.traffic[0]),
            rng=self._rng,
        )

    def start(self) -> None:
        """Start in the running loop, unless started. Never waits for the server."""
        binding = self._binding
        if binding is not None and binding.loop is asyncio.get_running_loop():
            return
        self._leave_closed_loop()
        if self._binding is not None:
            self._binding.check("ResilientRedis")
        self._binding = LoopBinding()
        self.multiplexer.start()
        follow_credentials(self._template, self.multiplexer)
        probe = RedisProbe(self.multiplexer, self._policy)
        self._attachment = self.health.start(
            probe, last_reply=self.multiplexer.last_byte, links=probe.links
        )
        self._subscription = self.health.on_update(self._health_changed)

    async def reopen(self) -> None:
        """Make a closed client usable again, after a closing that is under way.

        Raises `RedisClosed` if the client is closed again meanwhile: the later call counts.
        """
        self._leave_closed_loop()
        closes = self._closes
        if self._closing is not None:
            await asyncio.wait([self._closing])
        if self._closes != closes:
            raise RedisClosed(
                "the client was closed again before it was open",
                dependency=self.health.name,
                operation="initialize",
            )
        if self.executor.closed:
            self._build(self.multiplexer.unfenced)

    def _leave_closed_loop(self) -> None:
        """Forget what belongs to a closed loop: none of it can be ended any more."""
        if self._binding is not None and self._binding.closed:
            self._binding = self._closing = None
            self._build(self.multiplexer.unfenced)

    def _health_changed(self, _dependency: Dependency) -> None:
        self.multiplexer.refresh()
        if not self.health.available:
            self.pool.drop_all()

    def liveness_failure(self) -> str | None:
        """Return why only a new process helps, or None, also while the client does not run."""
        if self._binding is None or self._binding.closed or self._closing is not None:
            return None
        return self.multiplexer.liveness_failure()

    async def aclose(self, also: Callable[[], Awaitable[None]]) -> None:
        """Fail every call as closed, close every connection, end every task, and await `also`.

        Idempotent. Cancelling returns immediately; the closing continues in the background.
        """
        self._leave_closed_loop()
        self._closes += 1
        self.executor.close()
        self.pool.close()
        self.locks.close()
        if self._binding is not None and self._binding.forked:
            return  # the sockets belong to the parent process
        self._reports.close()
        self.multiplexer.close()
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(
                self._close(also),
                name="resilient-io redis close",
                context=context_without_deadline(),
            )
        closing = self._closing
        await asyncio.wait([closing])
        closing.result()

    async def _close(self, also: Callable[[], Awaitable[None]]) -> None:
        if self._subscription is not None:
            self._subscription.remove()
        await self.pool.finish_recoveries()
        await self.locks.aclose()
        await self.multiplexer.aclose()
        await self.pool.aclose()
        await self.target.aclose()
        if self._attachment is not None:
            await self._attachment.detach()
        await self.health.release()
        await also()
        self._attachment = self._subscription = self._binding = self._closing = None

    def note_fork(self) -> None:
        """Accept no more calls in a forked process: the parent uses the connections."""
        if self._binding is not None:
            self.multiplexer.disown()
