"""Exclusive connections: for blocking commands, for WATCH, and for drivers without a transport.

A connection that is closed while a write on it is unanswered is fenced, as multiplexed ones are.

A cancelled blocking pop may still take an element from the server. The pool then ends the command
on the server and puts the element back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis import exceptions
from redis.exceptions import RedisError

from resilient_io.deadlines import context_without_deadline, earlier
from resilient_io.errors import Closed, Progress
from resilient_io.health import Cause

from .attempt import (
    AttemptFailed,
    Call,
    await_reply,
    end_of_wait,
    expired_while_waiting,
    server_down,
)
from .blocked import BlockedCalls, end_wait, keep_alive
from .connect import connect, connect_again
from .connection import NotMultiplexable
from .driver_connection import (
    PROMPT_ANSWER,
    TRUSTED_IDLE,
    ExclusiveConnection,
    StallTolerantTimeout,
    abort,
    identify,
    is_lost,
    is_multiplexable,
    peer_of,
    query_over,
)
from .errors import CLOSED, ConnectionFailure
from .turns import ConnectTurn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .attempt import Limits
    from .connection import Entry, MultiplexedConnection, PendingRequest
    from .large_values import Packed
    from .multiplexer import Multiplexer


T = TypeVar("T")

_FAREWELL_TIMEOUT = 0.5  # seconds to end the waits on a server that was left
_FAREWELL_PAUSE = 0.05  # seconds in which its replies about that arrive

_KEPT_IDLE = 8  # maximum number of idle connections that are kept for the next call
_HEAD_START = 0.003
"""Seconds for which later calls wait after an exclusive connection is written to. A server that
finds requests on two connections at the same time may execute the later one first."""

_MOST_SUSPECTS = 8  # connections at a time for reads that may kill their connection


class _Wait:
    """A caller's wait for a connection, until `until`, or `queued_until` while it is queued."""

    __slots__ = ("_queued_until", "_until", "left", "timeout")

    def __init__(
        self, timeout: asyncio.Timeout, until: float | None, queued_until: float | None
    ) -> None:
        self.timeout = timeout
        self.left: ConnectionFailure | None = None
        """Why the server was left, if it was."""
        self._until = until
        self._queued_until = queued_until

    def end(self) -> None:
        """End the wait now."""
        self._until = self._queued_until  # a turn changes nothing any more
        if not self.timeout.expired():
            self.timeout.reschedule(asyncio.get_running_loop().time())

    def pause(self) -> None:
        """Begin to wait for a turn to connect."""
        if self._until != self._queued_until and not self.timeout.expired():
            self.timeout.reschedule(self._queued_until)

    def resume(self, waited: float) -> None:
        """Continue after `waited` seconds, which do not count."""
        if self._until != self._queued_until and not self.timeout.expired():
            extended = None if self._until is None else self._until + waited
            self._until = earlier(extended, self._queued_until)
            self.timeout.reschedule(self._until)


class ExclusivePool:
    """Lends connections, each to one caller at a time.

    redis-py's own `Pipeline`, which uses it for WATCH, can treat it as a pool of redis-py.
    """

    def __init__(
        self,
        *,
        multiplexer: Multiplexer,
        policy: RetryPolicy,
        template: Any,
    ) -> None:
        self._multiplexer = multiplexer
        self._target = multiplexer.target
        self._policy = policy
        self._template = template
        # int(): a mock in the place of the pool has a mock here.
        self._room = asyncio.Semaphore(int(template.max_connections))
        self._idle: dict[AbstractConnection, float] = {}  # with the loop time of their last use
        self._known: dict[AbstractConnection, ExclusiveConnection] = {}
        self._acquired: list[AbstractConnection] = []
        self._connecting: list[asyncio.Task[AbstractConnection]] = []
        self._carriers: list[MultiplexedConnection] = []  # acquired ones that carry a request
        self._suspects = asyncio.Semaphore(_MOST_SUSPECTS)
        self._recoveries: list[asyncio.Task[None]] = []
        self._lost_elements = LostElements()
        self.blocked = BlockedCalls(lambda: multiplexer.open_connection)
        self._waits: dict[Any, _Wait] = {}  # by the task of the caller
        self._opened_after = -math.inf  # older connections lead to a server that was left
        self.closed = False  # whether the client was closed
        self._emptied = False
        self._failing = False  # whether the latest connect attempt failed

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._idle) + len(self._acquired)

    @property
    def in_use(self) -> bool:
        """Whether a call has a connection, or waits for one, or an element is being put back."""
        return bool(self._acquired or self._waits or self._recoveries)

    @property
    def recovering(self) -> bool:
        """Whether popped elements are being put back."""
        return bool(self._recoveries)

    async def acquire(self) -> AbstractConnection:
        """Return a connection that is connected, clean and used by no one else.

        Cancelling returns immediately; a connect attempt that is under way ends by itself, and its
        connection becomes idle.
        """
        await self._room.acquire()
        acquired = False
        try:
            if self._emptied:
                raise exceptions.ConnectionError(CLOSED.detail)
            connection = await self._clean_idle() or await self._connect_in_turn()
            self._acquired.append(connection)
            acquired = True
            return connection
        finally:
            if not acquired:
                self._room.release()

    async def acquire_within(self, limits: Limits) -> AbstractConnection | AttemptFailed:
        """Return a connection that may be written to, or why there is none.

        Waits while the dependency is down, and while a dead connection may still write. The wait
        for a turn to connect does not count for a call that may wait long for its reply.
        """
        return await self._within(
            limits.sent, partial(self._acquire_when_safe, limits), queued_until=limits.until
        )

    async def until_safe(self, until: float | None) -> AttemptFailed | None:
        """Wait until an acquired connection may be written to, or return why it may not."""
        return await self._within(until, self._multiplexer.until_safe)

    async def exchange(
        self,
        request: PendingRequest,
        *,
        call: Call,
        limits: Limits,
        timeout: float,
        suspect: bool = False,
    ) -> Any:
        """Send a request on a connection of its own, and return what `await_reply` does.

        The connection is watched as a multiplexed one is, so a large value may take its time.
        Cancelling closes it. `suspect` marks a read that may kill its connection: few at a time.
        """
        if suspect:
            locked = await self._within(limits.sent, self._suspects.acquire)
            if isinstance(locked, AttemptFailed):
                return locked
        try:
            connection = await self.acquire_within(limits)
            if isinstance(connection, AttemptFailed):
                return connection
            late = limits.too_late()
            if late is not None or not is_multiplexable(connection):
                self.give_back(connection, clean=True)
                return late or NotMultiplexable()
            reply = await self._carry(
                connection, request, call=call, limits=limits, timeout=timeout
            )
            if isinstance(reply, AttemptFailed) and (suspect or request.large):
                reply = _explain(reply, large=request.large)
            return reply
        finally:
            if suspect:
                self._suspects.release()

    def known(self, connection: AbstractConnection) -> ExclusiveConnection:
        """Return how the server knows an acquired connection."""
        return self._known[connection]

    def failure(self, error: BaseException) -> ConnectionFailure:
        """Return why a connection of the pool failed: the server, or this client's own close."""
        return CLOSED if self.closed else self._target.failure(error)

    def give_back(self, connection: AbstractConnection, *, clean: bool) -> None:
        """Return an acquired connection to the pool; it is closed unless it is clean.

        Without effect if the event loop was closed: then the caller ends because it is collected,
        possibly within another loop, and nothing can be sent any more.
        """
        if connection not in self._acquired or not self._multiplexer.runs_here():
            return
        self._acquired.remove(connection)
        self._room.release()
        if clean:
            if connection in self._known:
                self._known[connection].unanswered = False
            self._keep(connection)
        else:
            self._discard(connection)

    def recover(self, connection: AbstractConnection, command: str) -> None:
        """End a blocking pop whose caller is gone, and put back an element that it popped."""
        if self.closed or not self._multiplexer.runs_here():
            self.give_back(connection, clean=False)
            return
        client_id = self._known[connection].client_id
        self._start_recovery(self._recover(connection, client_id, command), f"recover {command}")

    def drop_all(self) -> None:
        """Close every connection: the dependency went down, so no call should wait on one."""
        for carrier in list(self._carriers):
            carrier.close(CLOSED if self.closed else _DOWN)
        for connection in [*self._idle, *self._acquired]:
            self._discard(connection)
        self._idle.clear()

    def renew(self) -> None:
        """Close the idle connections: the next ones have the changed settings."""
        for connection in self._idle:
            self._discard(connection)
        self._idle.clear()

    def leave_server(self, failure: ConnectionFailure | None) -> list[object]:
        """Close every idle connection, and those in use when they are released.

        With a `failure`, those in use are closed immediately, and their calls fail with it. Calls
        that block continue elsewhere if the former server still answers, and ends their wait.
        Return the addresses of their server.
        """
        self._opened_after = asyncio.get_running_loop().time()
        peers = [peer_of(connection) for connection in [*self._idle, *self._acquired]]
        for connection in list(self._idle):
            self._discard(connection)
        self._idle.clear()
        if failure is not None:
            for carrier in list(self._carriers):
                carrier.close(failure)
            waiting: dict[AbstractConnection, ExclusiveConnection] = {}
            for connection in self._acquired:
                known = self._known.get(connection)
                if known is not None:
                    known.failure, known.left = failure, True
                if known is not None and known.blocking and known.client_id is not None:
                    waiting[connection] = known
                else:
                    self._discard(connection)
            if waiting:
                self._start_recovery(self._end_waits(waiting), "end waits")
        return peers

    async def _end_waits(self, waiting: dict[AbstractConnection, ExclusiveConnection]) -> None:
        """End the waits of calls on a server that was left, so that they continue elsewhere."""
        asked: AbstractConnection | None = None
        try:
            first = next(iter(waiting))
            asked = await connect_again(self._target, first, timeout=_FAREWELL_TIMEOUT)
            query = query_over(asked, _FAREWELL_TIMEOUT)
            for known in waiting.values():
                await end_wait(query, known, error=True)
            await asyncio.sleep(_FAREWELL_PAUSE)
        except (RedisError, OSError):
            pass  # it does not answer: nothing is known about these calls
        finally:
            if asked is not None:
                abort(asked)
            for connection, known in waiting.items():
                if self._known.get(connection) is known:
                    self._discard(connection)

    def _start_recovery(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io redis {name}", context=context_without_deadline()
        )
        self._recoveries.append(task)
        task.add_done_callback(self._recoveries.remove)

    def _was_left(self, connection: AbstractConnection) -> bool:
        """Return whether a connection leads to a server that was left since it was opened."""
        known = self._known.get(connection)
        return known is None or known.opened <= self._opened_after

    def close(self) -> None:
        """Lend no more connections, and end the waits for one."""
        self.closed = True
        for wait in self._waits.values():
            wait.end()

    def end_waits(self, failure: ConnectionFailure) -> None:
        """End the waits for a connection, because another server is to be used."""
        for wait in self._waits.values():
            wait.left = failure
            wait.end()

    async def finish_recoveries(self) -> None:
        """Wait for the recoveries under way, which have a time limit."""
        if self._recoveries:
            await asyncio.wait(list(self._recoveries))
        self._lost_elements.clear()

    async def aclose(self) -> None:
        """Close every connection and end connect attempts. Idempotent."""
        self._emptied = True
        await self.blocked.aclose()
        self.drop_all()
        self._room.release()  # a waiting caller wakes, sees that the pool is closed, wakes the next
        connecting = list(self._connecting)
        for task in connecting:
            task.cancel()
        if connecting:
            await asyncio.wait(connecting)

    # -- for connections that carry one request ----------------------------------------------

    def connection_lost(
        self, connection: MultiplexedConnection, unsent: list[tuple[Entry, Packed]]
    ) -> None:
        """Fence a connection that was lost. Nothing is unsent: its request is written at once."""
        del unsent
        self._multiplexer.fence(connection)

    def connection_changed(self) -> None:
        """Do nothing: no other call uses the connection."""

    def connection_blocked(self, connection: MultiplexedConnection) -> None:
        """Do nothing: no other call waits behind this one."""

    def connection_silent(self, connection: MultiplexedConnection) -> None:
        """Request a health probe before the response timeout ends."""
        silence = connection.describe_silence(connection.response_timeout / 2)
        self._multiplexer.reports.failed(silence.cause, silence.detail)

    async def _carry(
        self,
        connection: AbstractConnection,
        request: PendingRequest,
        *,
        call: Call,
        limits: Limits,
        timeout: float,
    ) -> Any:
        """Send a request on an acquired connection, wait for the reply, and release it."""
        known, multiplexer = self._known[connection], self._multiplexer
        carrier = multiplexer.multiplex(connection, known.name, known.client_id, owner=self)
        self._carriers.append(carrier)
        watched = request.extra_timeout >= CHECKED_BLOCK
        if watched:
            self.blocked.add(connection, known)
        closing = False
        try:
            carrier.send_request(request)
            reply = await await_reply(
                multiplexer, request, call=call, limits=limits, timeout=timeout
            )
            # After this reply, the server closes the connection.
            closing = isinstance(reply, Exception) and "Protocol error" in str(reply)
            if known.failure is not None and isinstance(reply, AttemptFailed):
                reply = replace(reply, cause=known.failure.cause, detail=known.failure.detail)
            return reply
        finally:
            if watched:
                self.blocked.remove(connection)
            self._carriers.remove(carrier)
            self.give_back(connection, clean=carrier.detach() and not closing)

    # -- connecting ------------------------------------------------------------------------

    async def _within(
        self,
        until: float | None,
        obtain: Callable[[], Awaitable[T]],
        *,
        queued_until: float | None = None,
    ) -> T | AttemptFailed:
        """Return what `obtain` does, or why it failed or did not end in time."""
        if self.closed:
            return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
        timeout = asyncio.timeout_at(until)
        task = asyncio.current_task()
        self._waits[task] = wait = _Wait(timeout, until, queued_until)
        try:
            async with timeout:
                return await obtain()
        except Closed:  # the application closed the health of an open client
            failure = ConnectionFailure(Cause.CLOSED, "its health was closed")
            return AttemptFailed.because(failure, Progress.NOT_SENT)
        except (RedisError, OSError) as error:
            failure = self.failure(error)
            if wait.left is not None and timeout.expired():
                return AttemptFailed.because(wait.left, Progress.NOT_SENT)
            if failure is not CLOSED and timeout.expired():
                crowded = self._multiplexer.health.available and self._room.locked()
                obstacle = (
                    f"an exclusive connection: all {self._template.max_connections} are in use "
                    f"(raise max_connections)"
                    if crowded
                    else self._multiplexer.obstacle
                )
                return expired_while_waiting(obstacle, overloaded=crowded)
            self._multiplexer.reports.failed(failure.cause, failure.detail)
            return AttemptFailed.because(failure, Progress.NOT_SENT, final=failure.permanent)
        finally:
            del self._waits[task]

    async def _acquire_when_safe(self, limits: Limits) -> AbstractConnection | AttemptFailed:
        while True:
            if not await self._available(limits):
                return server_down(self._multiplexer.health)
            await self._multiplexer.failover.until_over()
            connection = await self.acquire()
            usable = False
            try:
                await self._multiplexer.until_safe()
                usable = not (is_lost(connection) or self._was_left(connection))
            finally:
                if not usable:
                    self.give_back(connection, clean=not is_lost(connection))
            if usable:
                return connection

    async def _available(self, limits: Limits) -> bool:
        """Wait for a server that is down. Return False if the call does not wait any longer."""
        health = self._multiplexer.health
        while not health.available:
            waiting = asyncio.timeout_at(end_of_wait(health, limits.outage_wait))
            try:
                async with waiting:
                    await health.until_up()
            except TimeoutError:
                if not waiting.expired():
                    raise
                return False
        return True

    async def _clean_idle(self) -> AbstractConnection | None:
        while self._idle:
            connection, used = self._idle.popitem()
            if await self._is_usable(connection, used):
                return connection
        return None

    async def _is_usable(self, connection: AbstractConnection, used: float) -> bool:
        """Return whether a connection that was idle is alive and clean; otherwise, close it."""
        usable = False
        try:
            # Data on an idle connection is a farewell or the reply to another call.
            if connection.is_connected and not await connection.can_read():
                usable = await self._answers(connection, used)
        finally:
            if not usable:
                self._discard(connection)
        return usable

    async def _answers(self, connection: AbstractConnection, used: float) -> bool:
        """Return whether a connection answers at once, if it was idle for long."""
        loop = asyncio.get_running_loop()
        idle = loop.time() - used
        if idle <= TRUSTED_IDLE or self._multiplexer.bound:  # it may have begun a MULTI
            return True
        barrier = self._multiplexer.hold()
        try:
            await query_over(connection, PROMPT_ANSWER)("PING")
        except exceptions.ResponseError:
            return True
        except (RedisError, OSError):
            return False
        else:
            if barrier is not None:
                await asyncio.wait([barrier.reached])
        finally:
            if barrier is not None:
                loop.call_later(_HEAD_START, barrier.release)
        return True

    async def _connect_in_turn(self) -> AbstractConnection:
        """Open a connection, or take one that became idle while this waited for its turn."""
        wait = self._waits.get(asyncio.current_task())
        while True:
            turn = ConnectTurn()
            if wait is not None:
                wait.pause()
            try:
                await turn.begin()
                if wait is not None:
                    wait.resume(turn.waited)
                if self._emptied:
                    raise exceptions.ConnectionError(CLOSED.detail)
                if self._multiplexer.health.available:
                    return await self._clean_idle() or await self._connect()
            finally:
                turn.end()
            await self._multiplexer.health.until_up()

    async def _connect(self) -> AbstractConnection:
        # Later calls must not overtake the one for which the connection is opened.
        loop = asyncio.get_running_loop()
        barrier = None if self._failing else self._multiplexer.hold()
        # In its own task: the application's connect function may not handle cancellation.
        task = loop.create_task(
            self._open(),
            name="resilient-io redis exclusive connect",
            context=context_without_deadline(),
        )
        self._connecting.append(task)
        task.add_done_callback(self._connecting.remove)
        waited = False
        try:
            await asyncio.wait([task])
            if barrier is not None and not task.cancelled() and task.exception() is None:
                await asyncio.wait([barrier.reached])
            waited = True
        finally:
            if barrier is not None:
                # The caller writes before it lets the loop run.
                loop.call_later(_HEAD_START, barrier.release)
            if not waited:
                task.add_done_callback(self._keep_orphan)
        self._failing = task.cancelled() or task.exception() is not None
        if task.cancelled():
            raise exceptions.ConnectionError(CLOSED.detail)
        return task.result()

    async def _open(self) -> AbstractConnection:
        policy = self._policy
        fake = self._multiplexer.unsupported
        connection = await connect(
            self._target,
            client_name=self._target.client_name if fake else None,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
        )
        check_master = self._target.expect_master()
        keep_alive(connection)
        known = None
        session = self._multiplexer.session
        try:
            name, client_id, version = self._multiplexer.next_name(), None, session.version
            if is_multiplexable(connection):
                client_id = await identify(connection, name, timeout=policy.connect_timeout)
                version = await session.apply(query_over(connection, policy.connect_timeout), name)
            check_master()
            self._known[connection] = known = ExclusiveConnection(
                name, client_id, version, peer_of(connection)
            )
        finally:
            if known is None:
                abort(connection)
        return connection

    def _keep_orphan(self, task: asyncio.Task[AbstractConnection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._keep(task.result())

    def _keep(self, connection: AbstractConnection) -> None:
        known = self._known.get(connection)
        left = known is not None and (
            self._was_left(connection) or known.version != self._multiplexer.session.version
        )
        if left or self._emptied or len(self._idle) >= _KEPT_IDLE or not connection.is_connected:
            self._discard(connection)
        else:
            self._idle[connection] = asyncio.get_running_loop().time()

    def _discard(self, connection: AbstractConnection) -> None:
        known = self._known.pop(connection, None)
        abort(connection)
        if known is not None:
            known.lost = True
            if known.unanswered:
                self._multiplexer.fence(known)

    # -- recovering a popped element -------------------------------------------------------

    async def _recover(
        self, connection: AbstractConnection, client_id: int | None, command: str
    ) -> None:
        clean = False
        try:
            async with StallTolerantTimeout(RECOVERY_TIMEOUT):
                await self.query("CLIENT", "UNBLOCK", client_id)
                # As bytes: an element that cannot be decoded has to be put back unchanged, too.
                reply: Any = await connection.read_response(disable_decoding=True)
                clean = True
                if reply is not None:
                    key, element, *score = reply
                    condition = ("NX", *score) if score else ()
                    await self.query(UNDO[command], key, *condition, element)
        except (RedisError, OSError) as error:
            self._lost_elements.add(command, self._target.failure(error).detail)
        else:
            self._lost_elements.clear()
        finally:
            self.give_back(connection, clean=clean)

    async def query(self, *words: Any) -> object:
        """Send a command on any open connection, or else on a new one."""
        connection = self._multiplexer.open_connection
        if connection is not None:
            return await connection.query(*words)
        exclusive = await self._clean_idle() or await self._connect()
        answered = False
        try:
            reply: object = await query_over(exclusive, RECOVERY_TIMEOUT)(*words)
            answered = True
            return reply
        finally:
            if answered:
                self._keep(exclusive)
            else:
                self._discard(exclusive)

    # -- the interface of a pool that redis-py 8.1's Pipeline uses ---------------------------

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """The settings of the client's pool."""
        settings: dict[str, Any] = self._template.connection_kwargs
        return settings

    def get_encoder(self) -> Any:
        """Return the encoder of the client's pool."""
        return self._template.get_encoder()

    async def get_connection(self) -> AbstractConnection:
        """Return a connection, as `acquire` does."""
        return await self.acquire()

    async def release(self, connection: AbstractConnection) -> None:
        """Return a connection to the pool. It is clean if it is still connected."""
        self.give_back(connection, clean=connection.is_connected)


_DOWN = ConnectionFailure(Cause.CONNECTION_LOST, "closed, because the server is down")

CHECKED_BLOCK = 5.0
"""Seconds of blocking from which on the server is asked whether it still has the connection."""


def _explain(failed: AttemptFailed, *, large: bool) -> AttemptFailed:
    """Return a copy that names the limits of the server which close a connection."""
    if failed.cause is not Cause.RESET:
        return failed
    limit = "proto-max-bulk-len" if large else "client-output-buffer-limit"
    return replace(failed, detail=f"{failed.detail} (is the value above {limit}?)")


_log = logging.getLogger("resilient_io.redis")

RECOVERY_TIMEOUT = 1.0  # seconds to recover a popped element; then the connection is closed


class LostElements:
    """Counts elements that may have been lost: in an outage, every cancelled pop may lose one.

    The first is logged; further ones are summed up later.
    """

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def add(self, operation: str, detail: str) -> None:
        """Count a cancelled pop that could not be ended cleanly."""
        self._count += 1
        if self._count == 1:
            _log.warning(
                "a cancelled %s could not be ended cleanly, so an element may be lost; "
                "further ones are counted and reported later: %s",
                operation,
                detail,
                extra={"event": "element_maybe_lost", "operation": operation},
            )

    def clear(self) -> None:
        """Report the number of further ones: a recovery succeeded, or the client closes."""
        if self._count > 1:
            _log.warning(
                "%d more cancelled pops could not be ended cleanly meanwhile, so as many elements "
                "may be lost",
                self._count - 1,
                extra={"event": "elements_maybe_lost", "count": self._count - 1},
            )
        self._count = 0


UNDO = {"BLPOP": "LPUSH", "BRPOP": "RPUSH", "BZPOPMIN": "ZADD", "BZPOPMAX": "ZADD"}
"""The commands whose element can be put back, and the command that does it."""
