"""One command on an exclusive connection: it may block, and continue on another connection.

If it is cancelled while it pops an element, the pool puts the element back.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import DataError, InvalidResponse, NoScriptError, RedisError

from resilient_io.deadlines import earlier
from resilient_io.errors import Progress

from .attempt import AttemptFailed, Call, read_reply
from .blocked import NOT_ACKNOWLEDGED, is_ended_wait
from .commands import Effect, changes_data
from .driver_connection import ExclusiveConnection, StallTolerantTimeout, abort, exchange
from .errors import refusal
from .pool import CHECKED_BLOCK, UNDO
from .scripts import load_over

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .attempt import Command, Limits
    from .multiplexer import Multiplexer
    from .pool import ExclusivePool
    from .scripts import KnownScripts


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
        asking: bool = False,
    ) -> None:
        self._multiplexer = multiplexer
        self._pool = pool
        self._command = command
        self._asking = asking
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
        pool, recoverable = self._pool, self.operation in UNDO
        connection = await pool.acquire_within(limits)
        if isinstance(connection, AttemptFailed):
            return connection
        late = (limits if self.bounded else limits._replace(sent=limits.until)).too_late()
        if late is not None:
            pool.give_back(connection, clean=True)
            return late
        known = pool.known(connection)
        known.unanswered = self.effect is not Effect.READ
        known.blocking = self._blocks
        clean = False
        sent = asyncio.get_running_loop().time()
        try:
            reply = await self._receive(connection, known, limits.until, sent)
            clean = not isinstance(reply, AttemptFailed | _StillWaiting)
        except (UnicodeDecodeError, DataError):
            # The reply was read, and redis-py's parser stays in sync; or nothing was sent.
            clean = True
            raise
        finally:
            known.blocking = False
            if recoverable and not clean and connection.is_connected and not known.left:
                pool.recover(connection, self.operation)
            else:
                pool.give_back(connection, clean=clean)
        if isinstance(reply, AttemptFailed | _StillWaiting):
            pass
        elif recoverable or isinstance(reply, Exception):
            callbacks = self._client.callback_table
            reply = read_reply(self._multiplexer, callbacks, self._command, reply)
        elif self._multiplexer.health.refusing and changes_data(
            self._command.spec, self._command.args
        ):
            self._multiplexer.write_accepted()
        return reply.served_since(sent) if isinstance(reply, AttemptFailed) else reply

    async def _receive(
        self,
        connection: AbstractConnection,
        known: ExclusiveConnection,
        until: float | None,
        sent: float,
    ) -> object:
        """Send the command and return the reply, or an `AttemptFailed`.

        Return a `_StillWaiting` if the wait for a reply should continue on another connection.
        """
        reply = await self._exchange(connection, known, until)
        if not isinstance(reply, AttemptFailed):
            if not known.left or known.failure is None:
                return reply
            if is_ended_wait(reply):
                return _StillWaiting(sent)
            reply = AttemptFailed.because(known.failure, Progress.MAYBE_APPLIED)
        elif self._may_be_waiting(connection, reply) and await self._pool.blocked.end_wait(
            known, until
        ):
            if self._timeout is None and not reply.expired:
                return _StillWaiting(sent)
            reply = replace(reply, progress=Progress.NOT_SENT)
        return replace(reply, connection=known)

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
        if self._asking:
            await exchange(connection, ("ASKING",))
        if self.operation in UNDO:
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
        if self._timeout is None or self._timeout >= CHECKED_BLOCK:
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
