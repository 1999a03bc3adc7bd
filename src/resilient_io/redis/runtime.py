"""What a client and all its views share: the connections, the executor and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_io.binding import notify_on_fork
from resilient_io.health import Cause
from resilient_io.retry import RetryBudget

from .attempt import Packer, Server
from .credentials import follow_credentials
from .errors import ConnectionFailure
from .executor import Executor
from .failover import Failover
from .lifetime import Lifetime
from .lock_keys import LockKeys, LockServer
from .master_search import MasterSearch
from .multiplexer import Multiplexer
from .pool import ExclusivePool
from .probe import RedisProbe
from .scripts import KnownScripts, ScriptBodies
from .sentinel_monitor import SentinelMonitor
from .session import SessionSettings
from .subscription import Subscriptions
from .topology import SentinelTopology

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

    from redis.asyncio.connection import ConnectionPool

    from resilient_io.health import Attachment, Dependency, Reporter, Subscription
    from resilient_io.retry import RetryPolicy

    from .attempt import Search
    from .connect import RedisTarget
    from .driver_connection import DeadConnection
    from .options import ConnectionSettings
    from .sentinel import KnownMaster


C = TypeVar("C")

_KEPT_UNUSED = 10.0
"""Seconds for which connections are kept for the next client on the same pool."""


class Runtime:
    """Runs in the event loop of its first use, and starts again when that loop was closed.

    Clients on the same pool share one. Nothing in it refers to a client, so that a client that is
    dropped is collected, and closes it.

    Attributes:
        users: How many clients use it.
    """

    # A dictionary of so many attributes takes 1.6 KB.
    # fmt: off
    __slots__ = (
        "__weakref__", "_at_close", "_attachment", "_checks_use", "_closes_pool", "_companions",
        "_left_quietly", "_lifetime", "_monitor", "_probe", "_reports", "_search", "_settings",
        "_subscription",
        "_template", "_unused_since", "_use_check", "bound", "executor", "failover", "health",
        "locks", "multiplexer", "packer", "policy", "pool", "rng", "scripts", "server", "session",
        "subscriptions", "target", "users",
    )
    # fmt: on

    multiplexer: Multiplexer
    pool: ExclusivePool
    executor: Executor
    locks: LockKeys
    subscriptions: Subscriptions
    server: Server
    failover: Failover
    _monitor: SentinelMonitor | None
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
        bound: bool,
        search: Search | None = None,
        scripts: ScriptBodies | None = None,
    ) -> None:
        self.health = health
        self.target = target
        self.bound = bound
        self.policy = policy
        self._settings = replace(settings, count=1) if bound else settings
        self._template = template
        self._search = search  # instead of looking for another address of the same server
        encode = template.get_encoder().encode  # type: ignore[no-untyped-call]
        self.scripts = KnownScripts(scripts if scripts is not None else ScriptBodies(encode))
        self.packer = Packer(template.get_encoder())  # type: ignore[no-untyped-call]
        self.session = SessionSettings(target.client_name)
        self.rng = rng
        self._lifetime = Lifetime("ResilientRedis", health.name)
        self._probe: RedisProbe | None = None
        self._attachment: Attachment | None = None
        self._subscription: Subscription[Dependency] | None = None
        self._at_close: list[Callable[[], Awaitable[None]]] = []
        self._closes_pool = False  # whether a close has reached `_at_close`
        self.users = 0
        self._unused_since = 0.0
        self._checks_use = False  # whether a timer checks if it is still used
        self._use_check: asyncio.TimerHandle | None = None
        self._companions: dict[type, Any] = {}
        self._build()
        if target.master is not None:
            target.master.on_change(self._master_changed)
        notify_on_fork(self)

    def _build(self, unfenced: Iterable[DeadConnection] = ()) -> None:
        self._left_quietly = False  # whether only subscribers still use the former server
        self._reports = self.health.reporter()
        self.failover = Failover(self._reports, self.health.name)
        self.multiplexer = multiplexer = Multiplexer(
            target=self.target,
            policy=self.policy,
            health=self.health,
            reports=self._reports,
            settings=self._settings,
            rng=self.rng,
            token=f"{self.rng.getrandbits(64):016x}",
            session=self.session,
            bound=self.bound,
            unfenced=unfenced,
            failover=self.failover,
        )
        self._monitor = self._make_monitor()
        self.pool = ExclusivePool(
            multiplexer=multiplexer, policy=self.policy, template=self._template
        )
        self.subscriptions = Subscriptions(
            multiplexer=multiplexer, policy=self.policy, rng=self.rng
        )
        server = LockServer(multiplexer, self.pool)
        self.locks = LockKeys(server_of=partial(_only, server), moved=_do_nothing, rng=self.rng)
        search = self._search or MasterSearch(self.leave_server, self._ask_sentinels, self.rng)
        self.server = Server(multiplexer, self.health, self._reports, search)
        self.executor = Executor(
            server=self.server,
            health=self.health,
            budget=RetryBudget(self.policy.retry_budget, lambda: multiplexer.traffic[0]),
            failover=self.failover,
            rng=self.rng,
        )

    def _make_monitor(self) -> SentinelMonitor | None:
        source = self.target.master
        if source is None:
            return None
        topology = SentinelTopology(
            source=source,
            failover=self.failover,
            multiplexer=self.multiplexer,
            address_map=self.target.address_map,
        )
        return SentinelMonitor(
            self.target,
            source=source,
            failover=self.failover,
            topology=topology,
            health=self.health,
            reports=self._reports,
            rng=self.rng,
        )

    def companion(self, kind: type[C], make: Callable[[], C]) -> C:
        """Return the object of a kind that belongs to this runtime, which closes it.

        It is made when it is first needed, and has a coroutine function `aclose`.
        """
        found: C | None = self._companions.get(kind)
        if found is None:
            found = self._companions[kind] = make()
        return found

    def sibling(self, target: RedisTarget, health: Dependency) -> Runtime:
        """Return a runtime like this one, for another server."""
        return Runtime(
            target=target,
            policy=self.policy,
            health=health,
            settings=self._settings,
            template=self._template,
            rng=self.rng,
            bound=False,
        )

    @property
    def running(self) -> bool:
        """Whether it was started, in a loop that is still open, and not closed since."""
        return self._lifetime.running

    @property
    def ready(self) -> bool:
        """Whether it was started in the running event loop, and is not closed."""
        return self._lifetime.here and not self.executor.closed

    @property
    def usable_here(self) -> bool:
        """Whether it is not in use in another running event loop or process."""
        return self._lifetime.usable_here

    def start(self) -> None:
        """Start in the running loop, unless started. Never waits for the server."""
        if self._lifetime.here:
            return
        self._leave_closed_loop()
        self._lifetime.begin()
        self._checks_use = False
        self.multiplexer.start()
        follow_credentials(self._template, self.subscriptions)
        self._probe = probe = RedisProbe(self.multiplexer, self.policy, self.rng)
        self._attachment = self.health.start(
            probe,
            last_reply=self.multiplexer.last_byte,
            links=probe.links,
            queued=probe.queued,
            keep_alive=probe.keep_alive,
            replied_elsewhere=probe.turns.replied_elsewhere,
            topology=self._monitor.topology if self._monitor is not None else None,
        )
        self._subscription = self.health.on_update(self._health_changed)
        if self._monitor is not None:
            self._monitor.start()

    async def reopen(self) -> None:
        """Make a closed client usable again, after a closing that is under way.

        Raises `RedisClosed` if the client is closed again meanwhile: the later call counts.
        """
        self._leave_closed_loop()
        await self._lifetime.until_closed()
        if self.executor.closed:
            self._build(self.multiplexer.unfenced)

    def _leave_closed_loop(self) -> None:
        """Forget what belongs to a closed loop: none of it can be ended any more."""
        if self._lifetime.loop_closed:
            self._lifetime.end()
            self._build(self.multiplexer.unfenced)

    def _health_changed(self, _dependency: Dependency) -> None:
        self.multiplexer.refresh()
        self.subscriptions.refresh()
        if not self.health.available:
            self.pool.drop_all()
            self._ask_sentinels()
        if self._left_quietly and not self.health.refusing:
            self._left_quietly = False
            failure = ConnectionFailure(Cause.FAILOVER, "another server accepts the writes")
            asyncio.get_running_loop().call_soon(self.subscriptions.leave_server, failure)

    def leave_server(self, failure: ConnectionFailure | None = None) -> None:
        """Leave every connection, shared or exclusive, so that the address is found again.

        With a `failure`, another server has taken over, and is certain to be found: connections are
        closed immediately, and late replies are discarded, because the former server's data are
        about to be overwritten. Without one, calls in flight may finish. Subscribers follow when
        writes are accepted: each move is a gap, and the next server may be a replica, too.
        """
        target, multiplexer = self.target, self.multiplexer
        peers = [*(each.peer for each in multiplexer.connections), *self.pool.leave_server(failure)]
        for peer in peers:
            target.avoid_peer(peer)
        if failure is not None:
            self.subscriptions.leave_server(failure)
            multiplexer.leave_server(failure)
            return
        self._left_quietly = bool(self.subscriptions)
        for connection in multiplexer.connections:
            multiplexer.retire(connection)

    def _master_changed(self, before: KnownMaster | None, after: KnownMaster) -> None:
        """Continue on the new master: the Sentinels have named it."""
        if before is None or not self.running:
            return
        detail = f"the Sentinels made {after} the master instead of {before}"
        self.health.note("failover", detail=detail)
        held = self.multiplexer.waiting
        # In this order: calls that are not held any more must not reach the former master.
        self.leave_server(ConnectionFailure(Cause.FAILOVER, detail))
        self.failover.switch(str(after), detail, held=held)

    def _ask_sentinels(self) -> None:
        if self._monitor is not None:
            self._monitor.ask()

    def liveness_failure(self) -> str | None:
        """Return why only a new process helps, or None, also while the client does not run."""
        lifetime = self._lifetime
        if lifetime.binding is None or lifetime.loop_closed or lifetime.closing is not None:
            return None
        failure = self.multiplexer.liveness_failure() or self.subscriptions.liveness_failure()
        if failure is None and self._monitor is not None:
            failure = self._monitor.liveness_failure()
        return failure

    async def aclose(self, also: Callable[[], Awaitable[None]]) -> None:
        """Fail every call as closed, close every connection, end every task, and await `also`.

        Idempotent. Cancelling returns immediately; the closing continues in the background. Raise
        RuntimeError in another event loop, where it could not wait for the end of anything.
        """
        self._leave_closed_loop()
        self._lifetime.check_loop()
        closing = self._begin_close(also)
        if closing is not None:
            await asyncio.wait([closing])
            closing.result()

    def _begin_close(self, also: Callable[[], Awaitable[None]]) -> asyncio.Task[None] | None:
        self._lifetime.note_close()
        self.executor.close()
        self.pool.close()
        self.locks.close()
        if self._lifetime.forked:
            return None  # the sockets belong to the parent process
        self._reports.close()
        self.subscriptions.close()
        self.multiplexer.close()
        self._at_close.append(also)
        return self._lifetime.closing or self._lifetime.close_with(self._close(), "redis close")

    async def _close(self) -> None:
        if self._use_check is not None:
            self._use_check.cancel()
            self._use_check, self._checks_use = None, False
        if self._subscription is not None:
            self._subscription.remove()
        for companion in list(self._companions.values()):
            await companion.aclose()
        if self._monitor is not None:
            await self._monitor.aclose()
        await self.pool.finish_recoveries()
        await self.locks.aclose()
        await self.subscriptions.aclose()
        await self.multiplexer.aclose()
        await self.pool.aclose()
        if self._attachment is not None:
            await self._attachment.detach()
        if self._probe is not None:
            self._probe.turns.leave()
        await self.target.aclose()  # after the probe, which must not take this for a failure
        await self.health.release()
        self._closes_pool = True
        try:
            while self._at_close:
                await self._at_close.pop()()
        finally:
            self._closes_pool = False
            self._probe = self._attachment = self._subscription = None
            self._lifetime.end()

    def note_fork(self) -> None:
        """Accept no more calls in a forked process: the parent uses the connections.

        A client that was not used before the fork may be used in every process.
        """
        if self._lifetime.binding is not None:
            self.multiplexer.disown()
            self.subscriptions.disown()
        elif not self.executor.closed:
            # With other names: the fencing of another process must not end its connections.
            self._build()

    # -- clients that come and go ------------------------------------------------------------

    def leave(self, *, kept: bool) -> None:
        """Note that a client is closed or collected.

        If the connections are `kept` after the last one, a timer closes them. May be called
        wherever a client is collected: within any other call, and in any thread.
        """
        self.users -= 1
        if kept and not self.users and self.running:
            self._unused_since = self.multiplexer.time()
            if not self._checks_use:
                self._checks_use = True
                self._call_soon(self._close_if_unused)

    def close_later(self, also: Callable[[], Awaitable[None]]) -> None:
        """Close in the background: the owner of the pool was collected. As `leave`, otherwise."""

        def close() -> None:
            if self.running and not self.users:
                self._begin_close(also)
                if not (self.pool.recovering or self.locks.releasing):
                    # Now, because the loop may end before the task runs.
                    self.multiplexer.abort()
                    self.pool.drop_all()

        self._call_soon(close)

    def close_with_pool(self) -> asyncio.Task[None] | None:
        """Begin to close with the pool, and return the task that does so.

        Return None if this runtime, being closed, closes the pool, or is in use in another loop.
        """
        if self._closes_pool or not (self.running and self.usable_here):
            return None
        return self._begin_close(_nothing_else)

    def _close_if_unused(self) -> None:
        due = self._unused_since + _KEPT_UNUSED
        self._checks_use = False
        if self.users or not self.running or self._lifetime.closing is not None:
            return
        if self.multiplexer.time() >= due:
            self._begin_close(_nothing_else)
        else:
            self._checks_use = True
            self._use_check = asyncio.get_running_loop().call_at(due, self._close_if_unused)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        binding = self._lifetime.binding
        loop = binding.loop if binding is not None else None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                loop.call_soon_threadsafe(callback, context=Context())


def _only(server: LockServer, _key: bytes) -> LockServer:
    """Return the server of every key."""
    return server


def _do_nothing() -> None:
    """Ignore that a server does not have a key: all keys are on this one."""


async def _nothing_else() -> None:
    """Do nothing more at the close."""
