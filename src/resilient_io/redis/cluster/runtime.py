"""What a cluster client and all its views share: the router, the executor and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import Context
from typing import TYPE_CHECKING

from redis.crc import key_slot

from resilient_io.binding import notify_on_fork
from resilient_io.health import Cause
from resilient_io.retry import RetryBudget

from ..errors import RedisClosed
from ..executor import Executor
from ..failover import Failover
from ..lifetime import Lifetime
from ..lock_keys import LockKeys, LockServer
from .health import ClusterHealth
from .nodes import NodeSettings
from .router import Router

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Any

    from resilient_io.health import Dependency, HealthSettings
    from resilient_io.retry import RetryPolicy

    from ..options import ConnectionSettings
    from ..scripts import ScriptBodies
    from .replicas import ReadOptions
    from .slots import Address, AddressRules, SlotTable
    from .subscriber import ClusterSubscriber


_LONGEST_FAILOVER = 15.0
"""Seconds of a node's outage in which a replica may take over: the default node timeout is 15 s."""

_LONGEST_ELECTION = 10.0  # seconds for which calls wait, within their deadlines


class ClusterRuntime:
    """Runs in the event loop of its first use, and starts again when that loop was closed.

    Nothing in it refers to a client, so that a client that is dropped is collected, and closes it.

    Attributes:
        health: The availability of the whole cluster.
        router: Knows which node gets a call.
        executor: Sends, repeats and fails the calls.
        scripts: The scripts that the client knows.
        reads: Chooses the nodes that answer reads; None for masters.
        locks: The keys of its locks.
    """

    executor: Executor
    locks: LockKeys

    def __init__(
        self,
        *,
        startup: Sequence[Address],
        options: Mapping[str, Any],
        policy: RetryPolicy,
        health: Dependency,
        node_health: HealthSettings | None,
        connections: ConnectionSettings,
        rules: AddressRules,
        changed: Callable[[SlotTable], None],
        also_close: Callable[[], Awaitable[None]],
        scripts: ScriptBodies,
        rng: random.Random,
        refresh_interval: float,
        down_share: float,
        reads: ReadOptions,
    ) -> None:
        self.health = health
        self.policy = policy
        self.scripts = scripts
        self.rng = rng
        self._changed = changed
        self._also_close = also_close
        settings = NodeSettings(
            options=options,
            policy=policy,
            connections=connections,
            health=node_health,
            name=health.name,
            rng=rng,
            updated=self._node_updated,
            scripts=scripts,
        )
        self.router = Router(
            startup,
            settings,
            rules=rules,
            health=health,
            changed=self._table_changed,
            rng=rng,
            interval=refresh_interval,
        )
        self.reads = reads.make(self.router, rng)
        self._lag = None if self.reads is None else self.reads.lag
        self._cluster_health = ClusterHealth(health, self.router, down_share=down_share)
        self.subscribers: list[ClusterSubscriber] = []
        """Those that have not ended."""
        self._lifetime = Lifetime("ResilientRedisCluster", health.name)
        self._build()
        notify_on_fork(self)

    def _build(self) -> None:
        self._failover = Failover(self.health.reporter(), self.health.name)
        self._expect_failovers()
        self.locks = LockKeys(
            server_of=self._server_of_key, moved=self.router.refresh_soon, rng=self.rng
        )
        self.executor = Executor(
            server=None,
            health=self.health,
            failover=self._failover,
            budget=RetryBudget(self.policy.retry_budget, self._replies),
            rng=self.rng,
        )

    def _server_of_key(self, key: bytes) -> LockServer | None:
        member = self.router.known_owner(key_slot(key))
        if member is None or not self.running or self.router.closed:
            return None
        if not member.runtime.executor.closed:
            member.start()
        return LockServer(member.multiplexer, member.pool)

    def _table_changed(self, table: SlotTable) -> None:
        self._changed(table)
        self._expect_failovers()
        self.locks.server_changed()

    def _expect_failovers(self) -> None:
        """Make calls wait for the successor of a master, within their deadlines."""
        has_replicas = any(shard.replicas for shard in self.router.table.shards)
        self._failover.expect(_LONGEST_FAILOVER if has_replicas else 0.0)

    def _replies(self) -> int:
        """Return how many replies have arrived from all nodes."""
        members = (member for member in self.router.members.all if member.opened)
        return sum(member.multiplexer.traffic[0] for member in members)

    def _node_updated(self, node: Dependency) -> None:
        self._cluster_health.update(node)

    @property
    def running(self) -> bool:
        """Whether it was started, in a loop that is still open, and not closed since."""
        return self._lifetime.running

    def start(self) -> None:
        """Start in the running loop, unless started. Never waits for a server."""
        if self._lifetime.here:
            return
        self._leave_closed_loop()
        self._lifetime.begin()
        self.router.start()
        if self._lag is not None:
            self._lag.start()
        self._cluster_health.start()

    async def reopen(self) -> None:
        """Make a closed client usable again, after a closing that is under way.

        Raises `RedisClosed` if the client is closed again meanwhile: the later call counts.
        """
        self._leave_closed_loop()
        await self._lifetime.until_closed()
        if self.executor.closed:
            self._build()

    def _leave_closed_loop(self) -> None:
        """Forget what belongs to a closed loop: none of it can be ended any more."""
        if self._lifetime.loop_closed:
            self._lifetime.end()
            self.router.forget_loop()
            if self._lag is not None:
                self._lag.forget_loop()
            self._build()

    def check_available(self, operation: str, policy: RetryPolicy) -> None:
        """Raise if the whole cluster is down and the policy does not permit waiting.

        While the cluster elects a master, all its nodes refuse calls, which takes about a second.
        """
        health = self.health
        electing = health.cause is Cause.CLUSTER_DOWN
        if health.available or (electing and self._time_down() < _LONGEST_ELECTION):
            return
        self.executor.check_available(operation, policy)

    def _time_down(self) -> float:
        return asyncio.get_running_loop().time() - self.health.since

    def liveness_failure(self) -> str | None:
        """Return why only a new process helps, or None, also while the client does not run."""
        if not self.running or self._lifetime.closing is not None:
            return None
        lag = None if self._lag is None else self._lag.failure()
        return lag if lag is not None else self.router.liveness_failure()

    async def aclose(self) -> None:
        """Fail every call as closed, close every connection, and end every task.

        Idempotent. Cancelling returns immediately; the closing continues in the background. Raise
        RuntimeError in another event loop, where it could not wait for the end of anything.
        """
        self._leave_closed_loop()
        self._lifetime.check_loop()
        closing = self._begin_close()
        if closing is not None:
            await asyncio.wait([closing])
            closing.result()

    def _begin_close(self) -> asyncio.Task[None] | None:
        self._lifetime.note_close()
        self.executor.close()
        self.locks.close()
        if self._lifetime.binding is None or self._lifetime.forked:
            return None  # not started, or the sockets belong to the parent process
        for subscriber in list(self.subscribers):
            subscriber.close(self._no_subscriber("the client was closed"))
        self.subscribers.clear()
        self.router.close()
        lifetime = self._lifetime
        return lifetime.closing or lifetime.close_with(self._close(), "redis cluster close")

    async def _close(self) -> None:
        await self._cluster_health.aclose()
        if self._lag is not None:
            await self._lag.aclose()
        await self.locks.aclose()
        await self.router.aclose()
        await self.health.release()
        await self._also_close()
        self._lifetime.end()

    def close_later(self) -> None:
        """Close in the background: the client was collected. May be called in any thread."""
        binding = self._lifetime.binding
        loop = binding.loop if binding is not None else None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                loop.call_soon_threadsafe(self._begin_close, context=Context())

    def note_fork(self) -> None:
        """Accept no more calls in a forked process: the parent uses the connections."""
        if self._lifetime.binding is not None:
            self.router.close()
            for subscriber in self.subscribers:
                subscriber.disown(self._no_subscriber("the process was forked"))

    def _no_subscriber(self, reason: str) -> RedisClosed:
        return RedisClosed(reason, dependency=self.health.name, operation="pubsub")
