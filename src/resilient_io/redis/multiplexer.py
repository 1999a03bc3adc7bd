"""The set of multiplexed connections of one client: choosing one, reconnecting, waiting calls.

All calls use one connection, so that they keep their order. The other connections stand by, and
take over while the first is busy with a large value, or when it dies. Calls that cannot be sent yet
wait in order, ahead of newer ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from _thread import get_ident
from contextvars import Context
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from resilient_io.errors import Closed
from resilient_io.health import Cause, LoopLag, State
from resilient_io.histogram import Latencies
from resilient_io.link import PathMonitor
from resilient_io.tasks import Signal, describe_task_end, future_factory, log_task_death

from .connect import connect
from .connection import (
    MultiplexedConnection,
    NotMultiplexable,
    PendingRequest,
    Promoted,
    Undeliverable,
)
from .driver_connection import (
    DeadConnection,
    abort,
    fence,
    identify,
    is_multiplexable,
    peer_of,
    query_over,
)
from .errors import CLOSED, ConnectionFailure
from .failover import Failover
from .first_connection import FirstConnection
from .session import BoundState
from .standby import DelayedReplies, choose_for_large
from .turns import ConnectBackoff
from .waiting import Barrier, ConnectFailures, WaitingRequests

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Iterable

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency, Reporter
    from resilient_io.link import LinkState
    from resilient_io.retry import RetryPolicy

    from .connect import RedisTarget
    from .connection import ConnectionOwner, Entry
    from .driver_connection import Fenceable, Query
    from .large_values import Packed
    from .options import ConnectionSettings
    from .session import SessionSettings

_MOST_ELSEWHERE = 16
"""Dead connections of other servers that are remembered, in case they are used again."""

_BY_SERVER = (Cause.RESET, Cause.PROTOCOL)
"""Causes of losses after which the next connection may be lost as early."""

_LATELY = 1.0
"""Seconds after a connection was full in which calls that ran out of time have waited for room."""


class Reconnector:
    """Opens a connection for a slot, until that succeeds, and fences those that died."""

    def __init__(
        self,
        multiplexer: Multiplexer,
        *,
        target: RedisTarget,
        policy: RetryPolicy,
        health: Dependency,
        rng: random.Random,
        token: str,
        session: SessionSettings,
        unfenced: Iterable[DeadConnection] = (),
    ) -> None:
        self._multiplexer = multiplexer
        self._target = target
        self._policy = policy
        self._health = health
        self._rng = rng
        self._token = token
        self._session = session
        self._opened = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._backoffs: list[ConnectBackoff] = []  # of the slots
        self._died: str | None = None
        self._fences = list(unfenced)
        self._unfenced: list[DeadConnection] = []  # those that were left at the close
        self._safe = Signal()  # set while no dead connection may still write
        self._note_fences()
        self._left: list[DeadConnection] = []  # those of a server that is not used any more
        self._elsewhere: list[DeadConnection] = []  # fenced at another address than their own
        self._connecting: list[asyncio.Timeout] = []  # ends the attempts to connect
        self._worthwhile = Signal()
        self._closing = False

    @property
    def unfenced(self) -> tuple[DeadConnection, ...]:
        """The dead connections that were not fenced: the next life of the client does it."""
        return (*self._unfenced, *self._fences)

    @property
    def fencing(self) -> bool:
        """Whether a dead connection may still write: nothing is sent until that is settled."""
        return bool(self._fences)

    def liveness_failure(self) -> str | None:
        """Return which of the tasks ended because of a bug, or None."""
        return None if self._closing else self._died

    def start(self, slots: int) -> None:
        """Open that many connections."""
        for slot in range(slots):
            self._backoffs.append(ConnectBackoff(self._rng))
            self.fill(slot)

    def fill(self, slot: int, *, lived: float = math.inf) -> None:
        """Open the connection of a slot, in a task that ends then, because a task takes 2 KB.

        The former one was lost after it had `lived` for so many seconds.
        """
        self._start_task(self._fill(slot, lived), f"connection {slot}")

    def hurry(self) -> None:
        """End the backoff of connect attempts: a probe succeeded."""
        self._worthwhile.set()
        self._worthwhile.clear()

    def fence(self, lost: Fenceable, survivor: MultiplexedConnection | None) -> None:
        """Fence a connection that died with unanswered calls, over `survivor` or a new one."""
        if lost.fenced.done():
            return
        dead = DeadConnection(lost.name, lost.client_id, lost.peer, lost.fenced)
        if self._closing:
            self._unfenced.append(dead)
            dead.settle(fenced=False)
            return
        self._fences.append(dead)
        self._note_fences()
        if survivor is not None:
            self._start_task(self._fence_over(survivor), "fence")

    def leave_server(self) -> None:
        """Connect again, to another server, which is ours as soon as a connection to it is open.

        What the former server still applies is overwritten when it becomes a replica.
        """
        self._left = list(self._fences)
        now = asyncio.get_running_loop().time()
        for attempt in self._connecting:
            if not attempt.expired():
                attempt.reschedule(now)
        self.hurry()

    async def until_fenced(self) -> None:
        """Wait until no dead connection may still write."""
        while self._fences:
            await self._safe.wait()

    def _note_fences(self) -> None:
        (self._safe.clear if self._fences else self._safe.set)()

    def next_name(self) -> str:
        """Return a name for a new connection: no other one, before or after it, has the same."""
        self._opened += 1
        return f"{self._session.prefix}:{self._token}-{self._opened}"

    async def aclose(self) -> None:
        """End every task. Idempotent."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        while self._fences:
            lost = self._fences.pop(0)
            self._unfenced.append(lost)
            lost.settle(fenced=False)
        self._note_fences()

    # -- one connection --------------------------------------------------------------------

    async def _fill(self, slot: int, lived: float) -> None:
        backoff = self._backoffs[slot]
        await backoff.pause_after_loss(lived, self._worthwhile)
        if backoff.failures and self._health.state is State.DOWN:
            await self._until_up()  # it went down during the pause
        while not self._closing:
            await self._multiplexer.failover.until_over()
            attempt = asyncio.timeout(None)
            try:
                async with self._multiplexer.first.turn(slot) as turn, attempt:
                    # Only probes contact a dependency that went down during the wait.
                    down = turn.waited > 0 and self._health.state is State.DOWN
                    self._connecting.append(attempt)
                    try:
                        connection = None if down else await self._open()
                    finally:
                        self._connecting.remove(attempt)
            except (RedisError, OSError) as error:
                if attempt.expired():
                    continue  # that server was left meanwhile
                failure = self._target.failure(error)
                self._multiplexer.connect_failed(slot, failure)
                await backoff.pause(self._worthwhile, permanent=failure.permanent)
                if self._health.state is State.DOWN:
                    await self._until_up()
                continue
            if down:
                await self._until_up()
                continue
            if connection is None:
                self._multiplexer.fall_back()
                return
            self._multiplexer.connection_opened(slot, connection)
            return

    async def _open(self) -> MultiplexedConnection | None:
        policy = self._policy
        name = self.next_name()
        connection = await connect(
            self._target,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
            began=self._multiplexer.first.note_connection,
        )
        check_master = self._target.expect_master()
        multiplexed = None
        try:
            if is_multiplexable(connection):
                client_id = await identify(connection, name, timeout=policy.connect_timeout)
                query, peer = query_over(connection, policy.connect_timeout), peer_of(connection)
                await self._fence_again(query, peer)
                version = -1
                while version != self._session.version:
                    version = await self._session.apply(query, name)
                    await self._settle_fences(query, peer)
                check_master()
                multiplexed = self._multiplexer.multiplex(connection, name, client_id)
        finally:
            if multiplexed is None:
                abort(connection)
        return multiplexed

    async def _until_up(self) -> None:
        # Only probes contact a dependency that is down. There are none if the application closed it
        # although this client is open.
        with contextlib.suppress(Closed):
            await self._health.until_up()

    # -- fencing ---------------------------------------------------------------------------

    async def _settle_fences(self, query: Query, peer: object) -> None:
        """Before a call is repeated or a new one is sent, end the dead connections' clients."""
        while self._fences:
            lost = self._fences[0]
            left = lost in self._left
            fenced = left or await fence(query, client_id=lost.client_id, name=lost.name)
            if self._fences and self._fences[0] is lost:
                del self._fences[0]
                self._note_fences()
                self._health.note("connection fenced" if fenced else "fencing not permitted")
                lost.settle(fenced=fenced)
                if not left and lost.peer not in (None, peer):
                    self._elsewhere = [*self._elsewhere, lost][-_MOST_ELSEWHERE:]

    async def _fence_again(self, query: Query, peer: object) -> None:
        """Fence the connections that died at this address while its name led to another server."""
        for lost in [each for each in self._elsewhere if each.peer == peer]:
            await fence(query, client_id=lost.client_id, name=lost.name)
            self._elsewhere = [each for each in self._elsewhere if each is not lost]

    async def _fence_over(self, survivor: MultiplexedConnection) -> None:
        backoff = ConnectBackoff(self._rng)
        # If the survivor dies, too, the next connection fences both.
        while survivor.lost is None:
            try:
                await self._settle_fences(survivor.query, survivor.peer)
            except (RedisError, OSError):
                await asyncio.sleep(backoff.next())  # refused for now: BUSY, for example
            else:
                self._multiplexer.refresh()
                return

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        # In an empty context: the deadline and the trace span of the first call do not apply to a
        # task that outlives it.
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io redis {name}", context=Context()
        )
        self._tasks.append(task)
        task.add_done_callback(functools.partial(self._ended, name))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if task.cancelled() or task.exception() is not None:
            log_task_death(task)
            how = describe_task_end(task)
            if how is not None:
                self._died = f"the task of {name} ended: {how}"


class Multiplexer:
    """Assigns each call to a connection, or keeps it until there is one."""

    # A dictionary of so many attributes takes 1.6 KB.
    # fmt: off
    __slots__ = (
        "__weakref__",
        "_choosing", "_closing", "_delays", "_full_at", "_past", "_path", "_policy", "_preferred",
        "_reading", "_reconnector", "_replacing", "_retiring", "_settings", "_slots", "_stale",
        "_waiting", "bound", "bound_state", "create_future", "current", "failover", "failures",
        "fast", "first", "health", "idle_check", "is_running", "lag", "latencies", "loop",
        "reports", "session", "target", "thread", "time", "unsupported",
    )
    # fmt: on

    def __init__(
        self,
        *,
        target: RedisTarget,
        policy: RetryPolicy,
        health: Dependency,
        settings: ConnectionSettings,
        reports: Reporter,
        rng: random.Random,
        token: str,
        session: SessionSettings,
        bound: bool = False,
        unfenced: Iterable[DeadConnection] = (),
        failover: Failover | None = None,
    ) -> None:
        self.target = target
        self.health = health
        self.failover = failover if failover is not None else Failover(reports, health.name)
        """While it is in progress, calls are held."""
        self.reports = reports
        """What this client reports to `health`, until it is closed."""
        self.session = session
        """What callers have set for all connections."""
        self.bound = bound
        """Whether its connection is bound to a caller, who may change its state."""
        self._policy = policy
        self._settings = settings
        self._reconnector = Reconnector(
            self,
            target=target,
            policy=policy,
            health=health,
            rng=rng,
            token=token,
            session=session,
            unfenced=unfenced,
        )
        self._slots: list[MultiplexedConnection | None] = [None] * settings.count
        self._retiring: list[MultiplexedConnection] = []
        self._preferred: MultiplexedConnection | None = None
        self._waiting = WaitingRequests()
        self._path = PathMonitor(self._path_gone)
        self.failures = ConnectFailures(health, self._waiting)
        self.first = FirstConnection()
        self._delays = DelayedReplies(self._choose)
        self._reading: MultiplexedConnection | None = None  # takes reads instead of `current`
        self.idle_check: asyncio.Future[object] | None = None
        """The reply to the PING that a call of a bound client waits for before it is sent."""
        self._full_at = -math.inf  # when the connection was last found to be full
        self._replacing = False  # whether calls wait for a connection instead of a hogged one
        self._choosing = self._stale = False
        self.failover.on_change(self._choose)
        self._closing = False
        self._past = (0, 0, 0)
        self.lag: LoopLag | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        """The thread of the loop. It identifies calls from other threads."""
        self.is_running: Callable[[], bool]
        self.time: Callable[[], float]
        self.create_future: Callable[[], asyncio.Future[object]]
        self.latencies = Latencies()
        self.unsupported = False
        """Whether the driver's connections have no transport, as those of a fake may."""
        self.bound_state = BoundState()
        self.current: MultiplexedConnection | None = None
        """The connection that accepts calls, or None while calls have to wait."""
        self.fast: MultiplexedConnection | None = None
        """The same for the hot path. None unless everything is well."""

    # -- for calls -------------------------------------------------------------------------

    def start(self) -> None:
        """Open the connections in the running loop. Idempotent."""
        if self.loop is None:
            self.loop = loop = asyncio.get_running_loop()
            self.thread = get_ident()
            self.is_running = loop.is_running
            self.time, self.create_future = loop.time, future_factory(loop)
            self.lag = LoopLag.acquire()
            self._reconnector.start(len(self._slots))

    def runs_here(self) -> bool:
        """Return whether its loop is running in this thread, so that calls may be sent."""
        return get_ident() == self.thread and self.is_running()

    def submit(self, request: PendingRequest, *, read: bool = False) -> None:
        """Send a request on the current connection, or let it wait for one.

        While replies are delayed, a `read` is sent on another connection.
        """
        connection = self.current
        if connection is not None and not (self._waiting and request.movable):
            if read and self._reading is not None:
                connection = self._reading
            elif request.large:
                connection = choose_for_large(request, self.connections, connection) or connection
            connection.send_request(request)
        elif self.unsupported:
            request.interrupt(NotMultiplexable())
        elif self.failures.undeliverable is not None and not self.failures.improved:
            request.interrupt(self.failures.undeliverable)
        elif self._closing:
            request.interrupt(Undeliverable(CLOSED))
        else:
            self._waiting.append(request)

    def move_waiting(
        self, home_of: Callable[[PendingRequest], Multiplexer | None]
    ) -> list[PendingRequest]:
        """Move requests that were not sent to the multiplexers of other nodes, in their order.

        `home_of` returns the one for a request, or None if the request stays.
        """
        moved = self._waiting.take(lambda request: home_of(request) not in (None, self))
        for request in moved:
            home = request.home = home_of(request)
            assert home is not None, "it was taken for another one"  # noqa: S101
            home.submit(request)
            request.check_clock()
        return moved

    def needs_own_connection(self, request: PendingRequest) -> bool:
        """Return whether a large request must not share a connection."""
        current = self.current
        if current is None or self.bound or not request.movable:
            return False
        return choose_for_large(request, self.connections, current) is None

    @property
    def delayed(self) -> bool:
        """Whether reads go over another connection, because replies are delayed."""
        return self._reading is not None

    def has_way_around(self, request: PendingRequest) -> bool:
        """Return whether a request waits for a reply that is delayed while another one answers."""
        connection = request.connection
        if connection is None or not connection.delayed or request.done():
            return False
        return self._reading not in (None, connection) and request.sent

    def abandon(self, request: PendingRequest) -> None:
        """Drop a request whose caller no longer waits. It is not sent if it was not yet."""
        request.future.cancel()
        self.reports.reply_unclear()
        connection = request.connection
        if connection is None:
            self._waiting.note_abandoned()
        elif request.extra_timeout and request.sent:
            # A blocking command, which would keep the caller's own connection from answering.
            why = "the caller of a blocking command no longer waits"
            connection.close(ConnectionFailure(Cause.CONNECTION_LOST, why))

    def abandon_future(self, future: asyncio.Future[object]) -> None:
        """Drop a cancelled call of the hot path, which may have become a request."""
        self.reports.reply_unclear()
        reply = future.result() if future.done() and not future.cancelled() else None
        if isinstance(reply, Promoted):
            self.abandon(reply.request)

    def retire(
        self,
        connection: MultiplexedConnection,
        *,
        why: str = "its server does not accept writes",
    ) -> None:
        """Send new calls over another connection. Those in flight on this one may finish."""
        if connection in self._slots:
            held = bool(self.bound_state)
            self.health.note("connection retired", why=why)
            self._drop(connection)
            self._retiring.append(connection)
            self._waiting.put_back(connection.retire())
            if held:
                self._lose_state()
            self._choose()

    async def apply(self, words: tuple[object, ...]) -> None:
        """Send a command on each open connection. Raise the first error reply."""
        asked = [
            connection.ask(connection.pack(self.session.words_for(words, connection.name)))
            for connection in self.connections
        ]
        errors = [reply for future in asked if isinstance(reply := await future, RedisError)]
        if errors:
            raise errors[0]

    def hold(self) -> Barrier | None:
        """Make later calls wait while a call opens its exclusive connection.

        Return its place among the waiting calls, which must be released in any case.
        """
        if self.loop is None or self.unsupported or self._closing:
            return None
        barrier = Barrier(self._choose)
        self._waiting.add_barrier(barrier)
        self._choose()
        return barrier

    def fence(self, lost: Fenceable) -> None:
        """Send nothing until the server can apply nothing more of an exclusive connection."""
        if self.unsupported:
            lost.fenced.set_result(False)
        else:
            self._reconnector.fence(lost, self._survivor_of(lost))
            self._choose()

    def leave_server(self, failure: ConnectionFailure) -> None:
        """Close every connection: another server has taken over. Calls in flight get no reply."""
        for connection in [*self.connections, *self._retiring]:
            connection.close(failure)
        self._reconnector.leave_server()
        self._choose()

    async def until_safe(self) -> None:
        """Wait until no dead connection may still write, and no failover is in progress.

        So a new write is the last one, and is not lost.
        """
        while self._reconnector.fencing or self.failover.holding:
            await self.failover.until_over()
            await self._reconnector.until_fenced()

    def next_name(self) -> str:
        """Return a unique client name for a new connection."""
        return self._reconnector.next_name()

    def write_accepted(self) -> None:
        """Report an accepted write, which ends a period of refusals."""
        self.reports.accepted()
        self.refresh()

    def refresh(self) -> None:
        """Choose the connection again: something that the choice depends on has changed."""
        if not self.health.available:
            self.failures.confirm()
            self._waiting.check_clocks()
        elif self.failures.improved:
            self.failures.forgive()
            self._reconnector.hurry()
        self._choose()

    @property
    def connections(self) -> list[MultiplexedConnection]:
        """The open connections."""
        return [connection for connection in self._slots if connection is not None]

    @property
    def preferred(self) -> MultiplexedConnection | None:
        """The connection that calls use unless something is wrong with it, if it is open."""
        preferred = self._preferred
        return preferred if preferred in self._slots else None

    @property
    def open_connection(self) -> MultiplexedConnection | None:
        """A connection for a request of the library itself, also while calls have to wait."""
        free = (each for each in self.connections if not each.busy)
        return next(free, next(iter(self.connections), None))

    @property
    def carriers(self) -> list[MultiplexedConnection]:
        """The open connections, one of which may carry an earlier request that must come first.

        None while a lost connection may still apply anything, during a failover, or while a
        caller's MULTI is open.
        """
        unsafe = self._reconnector.fencing or self.failover.holding
        if unsafe or self.bound_state.in_transaction:
            return []
        return [*self.connections, *self._retiring]

    @property
    def unfenced(self) -> tuple[DeadConnection, ...]:
        """What the next life of the client, in the running loop, has to fence first of all.

        That includes the open connections with unanswered calls, if their loop was closed.
        """
        create_future = asyncio.get_running_loop().create_future
        unanswered = (each for each in (*self.connections, *self._retiring) if each.in_flight)
        clients = [
            *((dead.name, dead.client_id, dead.peer) for dead in self._reconnector.unfenced),
            *((each.name, each.client_id, each.peer) for each in unanswered),
        ]
        return tuple(
            DeadConnection(name, client_id, peer, create_future())
            for name, client_id, peer in clients
        )

    @property
    def crowded(self) -> bool:
        """Whether waiting calls wait only because too much is in flight."""
        if self._reconnector.fencing or self._waiting.blocked or not self.health.available:
            return False
        if self.failover.in_progress:
            return False
        return self._replacing or self.time() - self._full_at < _LATELY

    @property
    def obstacle(self) -> str:
        """What waiting calls wait for, for error messages."""
        if self.crowded:
            return "room among the calls in flight"
        if self.failover.in_progress:
            return f"the end of a failover ({self.health.detail})"
        if self._reconnector.fencing and self.health.available:
            return "a lost connection to be fenced"
        if self._waiting.blocked:
            return "an earlier call, which opens an exclusive connection"
        if self.connections and not self.health.available:
            return f"the server to be up again ({self.health.detail})"
        why = self.failures.detail
        return f"a connection ({why})" if why else "a connection"

    def liveness_failure(self) -> str | None:
        """Return why only a new process helps, or None."""
        return None if self._closing else self._reconnector.liveness_failure()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a connection."""
        return self._waiting.waiting

    @property
    def traffic(self) -> tuple[int, int, int]:
        """Replies, bytes sent and bytes received so far, including those of closed connections."""
        total = self._past
        for connection in (*self.connections, *self._retiring):
            total = _add_traffic(total, connection)
        return total

    def last_byte(self) -> float:
        """Return the loop time of the last byte from any open connection, or -inf."""
        last = -math.inf
        for each in self._slots:
            if each is not None and each.last_byte > last:
                last = each.last_byte
        return last

    def links(self) -> list[LinkState]:
        """Return what the kernel knows about the open connections, if it tells."""
        return [link for each in self.connections if (link := each.link) is not None]

    def disown(self) -> None:
        """Accept no more calls: the connections belong to the parent process."""
        self._closing = True
        self._choose()

    def close(self) -> None:
        """Accept no more calls, and end the waits of those that were not sent. Idempotent."""
        self._closing = True
        self._waiting.close(Undeliverable(CLOSED))
        self._choose()

    def abort(self) -> list[MultiplexedConnection]:
        """Close every connection without waiting for its end. Return them. Idempotent."""
        self.close()
        connections = [*self.connections, *self._retiring]
        self.failures.forgive()
        for connection in connections:
            connection.close(CLOSED)
        return connections

    async def aclose(self) -> None:
        """Close every connection. Calls without a reply end as closed. Idempotent."""
        connections = self.abort()
        await self._path.aclose()
        await self._reconnector.aclose()
        if connections:
            await asyncio.wait([connection.closed for connection in connections])
        if self.lag is not None:
            self.lag.release()
            self.lag = None
        self._choose()

    # -- for connections and the reconnector -----------------------------------------------

    def connection_changed(self) -> None:
        """Choose again: a connection became full, busy or free."""
        self._choose()

    def connection_blocked(self, connection: MultiplexedConnection) -> None:
        """Send calls over another connection that is not blocked."""
        if connection.hogged:
            self._choose()
        else:
            self._delays.ask(connection, self.connections, self.current)

    def connection_silent(self, connection: MultiplexedConnection) -> None:
        """Request a health probe before the response timeout ends."""
        silence = connection.describe_silence(connection.response_timeout / 2)
        self.reports.failed(silence.cause, silence.detail)

    def _path_gone(self, detail: str, since: float) -> None:
        """Report that no connection of this client, old or new, is acknowledged by the host."""
        self.health.note("path lost", cause=Cause.UNREACHABLE.value, detail=detail)
        self.reports.unreachable(detail, since)

    def connection_lost(
        self, connection: MultiplexedConnection, unsent: list[tuple[Entry, Packed]]
    ) -> None:
        """Move the calls that were never written to the front of the queue, and fence the rest."""
        self._past = _add_traffic(self._past, connection)
        lost = connection.lost
        by_server = lost is not None and lost.failure.cause in _BY_SERVER
        expected = self.failover.in_progress or not by_server
        lived = math.inf if expected else self.time() - connection.opened
        self._drop(connection, lived=lived)
        self._waiting.put_back(unsent)
        if self.bound_state:
            self._lose_state()
        if lost is not None and not self._closing and not connection.retired:
            cause, detail = lost.failure.cause, lost.failure.detail
            self.health.note("connection lost", cause=cause.value, detail=detail)
            self.reports.failed(cause, detail)
        self._reconnector.fence(connection, self._survivor_of(connection))
        self._choose()

    def connection_opened(self, slot: int, connection: MultiplexedConnection) -> None:
        """Use a new connection."""
        self.first.end(None)
        if self._closing:
            connection.close(CLOSED)
            return
        self.failures.clear()
        self._replacing = False
        self._slots[slot] = connection
        self.health.note("connection opened", slot=slot)
        self.reports.part_back(f"connection {slot}")
        self.reports.succeeded()
        self.failover.connected()
        self._choose()

    def connect_failed(self, slot: int, failure: ConnectionFailure) -> None:
        """Report a failed connect attempt."""
        self.first.end(failure)
        self.health.note("connect failed", cause=failure.cause.value, detail=failure.detail)
        if self._replacing:
            self._replacing = False
            self._choose()
        if self.connections:
            self.reports.part_lost(f"connection {slot}", failure.cause, failure.detail)
            return
        self.reports.failed(failure.cause, failure.detail)
        self.failures.add(failure)

    def fall_back(self) -> None:
        """Send no calls: the driver's connections have no transport to take over."""
        self.unsupported = True
        self.first.end(None)
        self.reports.succeeded()
        self._waiting.fail_all(NotMultiplexable())

    def multiplex(
        self,
        connection: AbstractConnection,
        name: str,
        client_id: int | None,
        *,
        owner: ConnectionOwner | None = None,
    ) -> MultiplexedConnection:
        """Return a multiplexed connection that takes over a connection of redis-py."""
        assert self.lag is not None, "connections are opened only after start()"  # noqa: S101
        return MultiplexedConnection(
            connection,
            owner=self if owner is None else owner,
            detachable=owner is not None,
            name=name,
            client_id=client_id,
            response_timeout=self._policy.response_timeout,
            deadline=self._policy.deadline,
            limit=self._settings.in_flight,
            latencies=self.latencies,
            lag=self.lag,
            pushes=self.bound,
            path=self._path,
            direct_wakeups=self._settings.direct_wakeups,
        )

    # -- internal --------------------------------------------------------------------------

    def _survivor_of(self, lost: Fenceable) -> MultiplexedConnection | None:
        """Return an open connection, to the same address if there is one."""
        same = [each for each in self.connections if each.peer == lost.peer]
        return next(iter(same or self.connections), None)

    def _lose_state(self) -> None:
        """Fail the waiting calls that were meant for the state of the lost connection."""
        if self.bound_state:
            self.bound_state.lose()
        why = "the connection that held the caller's state was lost"
        self._waiting.fail_all(Undeliverable(ConnectionFailure(Cause.RESET, why)))

    def _drop(self, connection: MultiplexedConnection, *, lived: float = math.inf) -> None:
        self._retiring = [other for other in self._retiring if other is not connection]
        if connection in self._slots:
            slot = self._slots.index(connection)
            self._slots[slot] = None
            if not self._closing:
                self._reconnector.fill(slot, lived=lived)

    def _choose(self) -> None:
        self._stale = True
        if self._choosing:
            return  # sending a waiting call changed something: the loop below starts again
        self._choosing = True
        try:
            while self._stale:
                self._stale = False
                self._choose_once()
        finally:
            self._choosing = False

    def _choose_once(self) -> None:
        connection = self._preferred = self._prefer()
        self.current = self.fast = self._reading = None
        if connection is None or self._closing or self._reconnector.fencing:
            return
        if self.failover.holding:
            return
        if connection.full:
            self._full_at = self.time()
            return
        if not self.health.available:
            return  # the server does not serve (LOADING) or is silent: only probes contact it
        if connection.busy and self._make_room():
            return  # all are busy: small calls wait for the new connection
        while self._waiting and not self._stale and not self._waiting.blocked:
            self._waiting.send_next(connection)
        if self._stale:
            return
        self.current = connection
        self._reading = self._delays.instead_of(connection)
        if self._waiting:
            self._waiting.reach_barriers()
        elif not self.health.refusing and not self.bound and self._reading is None:
            self.fast = connection

    def _make_room(self) -> bool:
        """Replace a connection that a huge reply occupies. Return whether calls should wait."""
        if not self._replacing and not self.bound:
            hogged = next((each for each in self.connections if each.hogged), None)
            if hogged is not None:
                self._replacing = True
                self.retire(hogged, why="a huge reply occupies it")
        return self._replacing

    def _prefer(self) -> MultiplexedConnection | None:
        """Keep the connection, which keeps the calls in order, unless a large value blocks it."""
        preferred = self.preferred
        if preferred is not None and not preferred.busy:
            return preferred
        free = next((each for each in self.connections if not each.busy), None)
        return free or preferred or next(iter(self.connections), None)


def _add_traffic(
    total: tuple[int, int, int], connection: MultiplexedConnection
) -> tuple[int, int, int]:
    replies, sent, received = total
    return (
        replies + connection.replies,
        sent + connection.bytes_sent,
        received + connection.bytes_received,
    )
