"""Exclusive connections: for blocking commands, for WATCH, and for drivers without a transport.

A connection that is closed while a write on it is unanswered is fenced, as multiplexed ones are.

A cancelled blocking pop may still take an element from the server. The pool then ends the command
on the server and puts the element back.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis import exceptions
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import DataError, InvalidResponse, NoScriptError, RedisError

from resilient_io.deadlines import context_without_deadline, earlier
from resilient_io.errors import Closed, Progress
from resilient_io.health import Cause

from .attempt import (
    AttemptFailed,
    Call,
    end_of_wait,
    expired_while_waiting,
    read_reply,
    server_down,
)
from .blocked import NOT_ACKNOWLEDGED, BlockedCalls, keep_alive
from .commands import Effect
from .connect import (
    ExclusiveConnection,
    StallTolerantTimeout,
    abort,
    connect,
    identify,
    is_lost,
    is_multiplexable,
    query_over,
)
from .errors import CLOSED, ConnectionFailure, refusal
from .scripts import load_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .attempt import Command, Limits
    from .multiplexer import Multiplexer
    from .scripts import KnownScripts


T = TypeVar("T")

_KEPT_IDLE = 8  # maximum number of idle connections that are kept for the next call
_TRUSTED_IDLE = 1.0  # seconds; a connection that was idle for longer must answer a PING first
_PROMPT_ANSWER = 0.25  # seconds that this answer may take


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
        self._room = asyncio.Semaphore(template.max_connections)
        self._idle: dict[AbstractConnection, float] = {}  # with the loop time of their last use
        self._known: dict[AbstractConnection, ExclusiveConnection] = {}
        self._acquired: list[AbstractConnection] = []
        self._connecting: list[asyncio.Task[AbstractConnection]] = []
        self._recoveries: list[asyncio.Task[None]] = []
        self._lost_elements = LostElements()
        self.blocked = BlockedCalls(lambda: multiplexer.open_connection)
        self._timeouts: list[asyncio.Timeout] = []
        self.closed = False  # whether the client was closed
        self._emptied = False

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._idle) + len(self._acquired)

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
            connection = await self._clean_idle() or await self._connect()
            self._acquired.append(connection)
            acquired = True
            return connection
        finally:
            if not acquired:
                self._room.release()

    async def acquire_within(self, limits: Limits) -> AbstractConnection | AttemptFailed:
        """Return a connection that may be written to, or why there is none.

        Waits while the dependency is down, and while a dead connection may still write.
        """
        return await self._within(limits.sent, partial(self._acquire_when_safe, limits))

    async def until_fenced(self, until: float | None) -> AttemptFailed | None:
        """Wait until an acquired connection may be written to, or return why it may not."""
        return await self._within(until, self._multiplexer.until_fenced)

    def known(self, connection: AbstractConnection) -> ExclusiveConnection:
        """Return how the server knows an acquired connection."""
        return self._known[connection]

    def failure(self, error: BaseException) -> ConnectionFailure:
        """Return why a connection of the pool failed: the server, or this client's own close."""
        return CLOSED if self.closed else self._target.failure(error)

    def give_back(self, connection: AbstractConnection, *, clean: bool) -> None:
        """Return an acquired connection to the pool; it is closed unless it is clean."""
        if connection not in self._acquired:
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
        if self.closed:
            self.give_back(connection, clean=False)
            return
        task = asyncio.get_running_loop().create_task(
            self._recover(connection, self._known[connection].client_id, command),
            name=f"resilient-io redis recover {command}",
            context=context_without_deadline(),
        )
        self._recoveries.append(task)
        task.add_done_callback(self._recoveries.remove)

    def drop_all(self) -> None:
        """Close every connection: the dependency went down, so no call should wait on one."""
        for connection in [*self._idle, *self._acquired]:
            self._discard(connection)
        self._idle.clear()

    def close(self) -> None:
        """Lend no more connections, and end the waits for one."""
        self.closed = True
        now = asyncio.get_running_loop().time()
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(now)

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

    # -- connecting ------------------------------------------------------------------------

    async def _within(
        self, until: float | None, obtain: Callable[[], Awaitable[T]]
    ) -> T | AttemptFailed:
        """Return what `obtain` does, or why it failed or did not end in time."""
        if self.closed:
            return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
        timeout = asyncio.timeout_at(until)
        self._timeouts.append(timeout)
        try:
            async with timeout:
                return await obtain()
        except Closed:  # the application closed the health of an open client
            failure = ConnectionFailure(Cause.CLOSED, "its health was closed")
            return AttemptFailed.because(failure, Progress.NOT_SENT)
        except (RedisError, OSError) as error:
            failure = self.failure(error)
            if failure is not CLOSED and timeout.expired():
                crowded = self._multiplexer.health.available and self._room.locked()
                obstacle = (
                    "an exclusive connection, of which all are in use"
                    if crowded
                    else self._multiplexer.obstacle
                )
                return expired_while_waiting(obstacle, overloaded=crowded)
            self._multiplexer.reports.failed(failure.cause, failure.detail)
            return AttemptFailed.because(failure, Progress.NOT_SENT, final=failure.permanent)
        finally:
            self._timeouts.remove(timeout)

    async def _acquire_when_safe(self, limits: Limits) -> AbstractConnection | AttemptFailed:
        while True:
            if not await self._available(limits):
                return server_down(self._multiplexer.health)
            connection = await self.acquire()
            usable = False
            try:
                await self._multiplexer.until_fenced()
                usable = not is_lost(connection)
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
        if asyncio.get_running_loop().time() - used <= _TRUSTED_IDLE:
            return True
        try:
            await query_over(connection, _PROMPT_ANSWER)("PING")
        except exceptions.ResponseError:
            return True
        except (RedisError, OSError):
            return False
        return True

    async def _connect(self) -> AbstractConnection:
        # In its own task: the application's connect function may not handle cancellation.
        task = asyncio.get_running_loop().create_task(
            self._open(),
            name="resilient-io redis exclusive connect",
            context=context_without_deadline(),
        )
        self._connecting.append(task)
        task.add_done_callback(self._connecting.remove)
        waited = False
        try:
            await asyncio.wait([task])
            waited = True
        finally:
            if not waited:
                task.add_done_callback(self._keep_orphan)
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
        keep_alive(connection)
        known = None
        try:
            name, client_id = self._multiplexer.next_name(), None
            if is_multiplexable(connection):
                query = query_over(connection, policy.connect_timeout)
                client_id = await identify(query, name, protocol=connection.protocol)
            self._known[connection] = known = ExclusiveConnection(name, client_id)
        finally:
            if known is None:
                abort(connection)
        return connection

    def _keep_orphan(self, task: asyncio.Task[AbstractConnection]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._keep(task.result())

    def _keep(self, connection: AbstractConnection) -> None:
        if self._emptied or len(self._idle) >= _KEPT_IDLE or not connection.is_connected:
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
            async with asyncio.timeout(RECOVERY_TIMEOUT):
                await self.query("CLIENT", "UNBLOCK", client_id)
                # As bytes: an element that cannot be decoded has to be put back unchanged, too.
                reply: Any = await connection.read_response(disable_decoding=True)
                clean = True
                if reply is not None:
                    key, element, *score = reply
                    condition = ("NX", *score) if score else ()
                    await self.query(_UNDO[command], key, *condition, element)
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


_log = logging.getLogger("resilient_io.redis")

RECOVERY_TIMEOUT = 1.0  # seconds to recover a popped element; then the connection is closed


class LostElements:
    """Counts elements that may have been lost: in an outage, every cancelled pop may lose one.

    The first is logged; further ones are summed up later.
    """

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


_UNDO = {"BLPOP": "LPUSH", "BRPOP": "RPUSH", "BZPOPMIN": "ZADD", "BZPOPMAX": "ZADD"}
"""The commands whose element can be put back, and the command that does it."""


class _StillWaiting:
    """The result of an attempt whose connection was lost while its command had done nothing."""

    def __init__(self, sent: float) -> None:
        self._served = asyncio.get_running_loop().time() - sent

    def extend(self, limits: Limits) -> Limits:
        """Return the limits of the next attempt: the time of the wait does not count as sending."""
        if limits.sent is None:
            return limits
        return limits._replace(sent=earlier(limits.sent + self._served, limits.until))


class ExclusiveCall(Call):
    """One command on an exclusive connection, sent and parsed by redis-py."""

    def __init__(
        self,
        multiplexer: Multiplexer,
        pool: ExclusivePool,
        policy: RetryPolicy,
        command: Command,
        client: Any,
        *,
        scripts: KnownScripts,
    ) -> None:
        self._multiplexer = multiplexer
        self._pool = pool
        self._command = command
        self._client = client
        self._scripts = scripts
        self.operation = command.spec.name
        self.bounded = command.spec.block is None
        block = command.block
        self._timeout = None if block is None else block + policy.response_timeout
        self._blocks = command.spec.block is not None

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return self._command.effect

    async def attempt(self, limits: Limits) -> object:
        """Acquire a connection, send, wait as long as the command may block, and release it.

        A wait without a limit continues on a new connection if its connection is lost, provided
        that the command has done nothing.
        """
        while True:
            result = await self._attempt_once(limits)
            if not isinstance(result, _StillWaiting):
                return result
            limits = result.extend(limits)
            self._multiplexer.health.note("blocking call resumed", operation=self.operation)

    async def _attempt_once(self, limits: Limits) -> object:
        pool, recoverable = self._pool, self.operation in _UNDO
        connection = await pool.acquire_within(limits)
        if isinstance(connection, AttemptFailed):
            return connection
        late = limits.too_late()
        if late is not None:
            pool.give_back(connection, clean=True)
            return late
        known = pool.known(connection)
        known.unanswered = self.effect is not Effect.READ
        clean = waiting = False
        sent = asyncio.get_running_loop().time()
        try:
            reply = await self._exchange(connection, known, limits.until)
            if isinstance(reply, AttemptFailed) and self._may_be_waiting(connection, reply):
                waiting = await pool.blocked.end_wait(known, limits.until)
            clean = not isinstance(reply, AttemptFailed)
        except (UnicodeDecodeError, DataError):
            # The reply was read, and redis-py's parser stays in sync; or nothing was sent.
            clean = True
            raise
        finally:
            if recoverable and not clean and connection.is_connected:
                pool.recover(connection, self.operation)
            else:
                pool.give_back(connection, clean=clean)
        if isinstance(reply, AttemptFailed):
            if waiting and self._timeout is None and not reply.expired:
                return _StillWaiting(sent)
            progress = Progress.NOT_SENT if waiting else reply.progress
            reply = replace(reply, connection=known, progress=progress)
        elif recoverable or isinstance(reply, Exception):
            callbacks = self._client.response_callbacks
            reply = read_reply(self._multiplexer, callbacks, self._command, reply)
        return reply.served_since(sent) if isinstance(reply, AttemptFailed) else reply

    def _may_be_waiting(self, connection: AbstractConnection, failed: AttemptFailed) -> bool:
        """Return whether to ask the server if it still has the lost connection of this call."""
        return (
            self._blocks
            and not failed.expired
            and not connection.is_connected
            and not self._pool.closed
            and self._multiplexer.health.available
        )

    async def _send(self, connection: AbstractConnection) -> object:
        """Send the command, read its reply and convert it. A missing script is loaded first."""
        args = self._command.args
        if self.operation in _UNDO:
            await connection.send_command(*args)
            # A cancelled read must leave the connection open, for the recovery.
            return await connection.read_response(disconnect_on_error=False)
        # redis-py 8.1 `Redis._send_command_parse_response`: sends, reads, converts.
        send = self._client._send_command_parse_response
        try:
            return await send(connection, args[0], *args, **self._command.options)
        except NoScriptError as error:
            load = self._scripts.load_for(self.operation, args, error)
            if load is None:
                raise
        await load_over(connection, [load])
        return await send(connection, args[0], *args, **self._command.options)

    async def _exchange(
        self, connection: AbstractConnection, known: ExclusiveConnection, until: float | None
    ) -> object:
        loop = asyncio.get_running_loop()
        if self._timeout is None:
            self._pool.blocked.add(connection, known)
        try:
            async with StallTolerantTimeout(self._timeout, until=until):
                return await self._send(connection)
        except DataError:
            raise
        except (RedisError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            # With disconnect_on_error=False, redis-py 8.1 leaves the connection "connected" after a
            # loss, for which it raises exactly ConnectionError, or its own TimeoutError if the
            # kernel gave up, and after bytes that are not RESP.
            lost = (
                type(error) is ConnectionLostError
                or isinstance(error, (InvalidResponse, exceptions.TimeoutError))
                or not connection.is_connected
            )
            if refusal(error) is not None or not (lost or timed_out):
                return error  # a reply; redis-py 8.1 drops the connection after some of them
            if lost:
                abort(connection)
            failure = known.failure or self._pool.failure(error)
            if isinstance(error, exceptions.TimeoutError):
                failure = NOT_ACKNOWLEDGED
            if failure.definite:
                self._multiplexer.reports.failed(failure.cause, failure.detail)
            expired = until is not None and loop.time() >= until
            return AttemptFailed.because(
                failure, Progress.MAYBE_APPLIED, timed_out=timed_out, expired=expired
            )
        finally:
            self._pool.blocked.remove(connection)
