"""The kinds of call that pass the gate: each makes one attempt at a time and knows its effect."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import DataError, RedisError

from resilient_io.errors import Progress

from .classification import advise, connection_failure, refusal
from .codec import apply_callback
from .commands import Effect, Route
from .dial import abort
from .exchange import AttemptFailed, Limits, failed_by, follow
from .replies import LARGE
from .salvage import can_be_salvaged
from .ticket import Handover, LaneLost, NoLanes, Ticket, Undeliverable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .call import Command
    from .gate import Gate

SCRIPTED = ("EVAL", "FCALL")
"""How the names of commands begin that run code of the user's on the server."""

_FOR_EVER = 1e6
"""Seconds that stand for a block without an end."""


def read_reply(gate: Gate, command: Command, reply: object) -> object:
    """Turn a raw reply into what redis-py would return, or raise what it means.

    Raises:
        AttemptFailed: It is an error that proves that nothing was applied, for now.
        Exception: It is any other error reply, or a value that cannot be decoded.
    """
    if isinstance(reply, Exception):
        # What a script or an unknown command answers proves nothing: it may have worked before.
        native = command.spec.known and not command.spec.name.startswith(SCRIPTED)
        meaning = refusal(reply) if native or command.effect is Effect.READ else None
        if meaning is not None:
            raise AttemptFailed(
                Progress.REFUSED, meaning.cause, str(reply), error=reply, refusal=meaning
            )
        if EMPTY_RESPONSE in command.options and isinstance(reply, RedisError):
            return command.options[EMPTY_RESPONSE]
        advise(reply)
        raise reply
    if gate.health.refusing and command.effect is not Effect.READ:
        gate.accepted()
    return apply_callback(gate.callbacks, command.args[0], reply, command.options)


class LaneCall:
    """One command on a lane."""

    def __init__(
        self,
        gate: Gate,
        policy: RetryPolicy,
        command: Command,
        data: bytes,
        *,
        otherwise: DedicatedCall,
        first: Exception | None = None,
    ) -> None:
        """Prepare.

        Args:
            gate: Its lanes and callbacks are used.
            policy: Its response timeout is this call's patience.
            command: What to send.
            data: The same, packed.
            otherwise: The same call for a driver whose connections cannot be lanes.
            first: What the fast path got instead of a plain reply.
        """
        self._gate = gate
        self._command = command
        self._data = data
        self._otherwise = otherwise
        self._first = first
        self.operation = command.spec.name
        # Only a client's own single lane carries commands that block.
        blocking = command.spec.route is Route.DEDICATED and command.spec.block is not None
        self.bounded = not blocking
        block = command.block if blocking else 0.0
        self._patience = policy.response_timeout + (_FOR_EVER if block is None else block)

    @property
    def effect(self) -> Effect:
        """What executing it twice would do."""
        return self._command.effect

    async def attempt(self, limits: Limits) -> object:
        """Send it, or go on with what the fast path began."""
        first, self._first = self._first, None
        if isinstance(first, LaneLost | Undeliverable):
            raise failed_by(first)
        if first is None or isinstance(first, Handover):
            ticket = self._submit() if first is None else first.ticket
            reply = await follow(
                self._gate.lanes,
                ticket,
                limits=limits,
                patience=self._patience,
                read=self.effect is Effect.READ,
            )
        else:
            reply = first
        if isinstance(reply, NoLanes):
            return await self._otherwise.attempt(limits)
        result = read_reply(self._gate, self._command, reply)
        return await result if inspect.isawaitable(result) else result

    def _submit(self) -> Ticket:
        lanes = self._gate.lanes
        raw = frozenset({0}) if NEVER_DECODE in self._command.options else frozenset()
        ticket = Ticket(
            self._data,
            raw=raw,
            large=len(self._data) > LARGE,
            allowance=0.0 if self.bounded else self._patience,
        )
        lanes.submit(ticket)
        return ticket


class DedicatedCall:
    """One command on a connection of its own; through redis-py's own sending and parsing."""

    def __init__(self, gate: Gate, policy: RetryPolicy, command: Command, client: Any) -> None:
        """Prepare.

        Args:
            gate: Its dedicated connections are used.
            policy: Its response timeout is added to the time for which the command blocks.
            command: What to send.
            client: The redis-py client whose parsing and callbacks are used.
        """
        self._gate = gate
        self._command = command
        self._client = client
        self.operation = command.spec.name
        self.bounded = command.spec.block is None
        block = command.block
        self._patience = None if block is None else block + policy.response_timeout

    @property
    def effect(self) -> Effect:
        """What executing it twice would do."""
        return self._command.effect

    async def attempt(self, limits: Limits) -> object:
        """Borrow a connection, send, wait as long as the command may block, give it back."""
        borrowing = self._gate.borrowing
        connection = await borrowing.borrow(limits.sent)
        clean = blocked = False
        try:
            if can_be_salvaged(self._command):
                await borrowing.identify(connection, limits.sent)
                blocked = True
            reply = await self._exchange(connection, limits.until)
            clean = True
        except UnicodeDecodeError:
            clean = True  # the reply was read, and redis-py's parser stays in step
            raise
        finally:
            if blocked and not clean and connection.is_connected:
                borrowing.salvage(connection, self._command)
            else:
                borrowing.give_back(connection, clean=clean)
        if blocked or isinstance(reply, Exception):
            return read_reply(self._gate, self._command, reply)
        return reply

    async def _exchange(self, connection: AbstractConnection, until: float | None) -> object:
        loop = asyncio.get_running_loop()
        limits = [] if self._patience is None else [loop.time() + self._patience]
        if until is not None:
            limits.append(until)
        args = self._command.args
        try:
            async with asyncio.timeout_at(min(limits, default=None)):
                if can_be_salvaged(self._command):
                    await connection.send_command(*args)
                    # A cancelled read must leave the connection open, for the salvage.
                    return await connection.read_response(disconnect_on_error=False)
                # redis-py 8.1 `Redis._send_command_parse_response`: sends, reads, converts.
                return await self._client._send_command_parse_response(
                    connection, args[0], *args, **self._command.options
                )
        except DataError:
            raise
        except (RedisError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            # redis-py 8.1 raises exactly this for a lost connection, and leaves it "connected"
            # when it was told not to disconnect.
            lost = type(error) is ConnectionLostError or not connection.is_connected
            if refusal(error) is not None or not (lost or timed_out):
                return error  # a reply; redis-py 8.1 drops the connection after some of them
            if lost:
                abort(connection)
            failure = connection_failure(error)
            if failure.definite:
                self._gate.health.failed(failure.cause, failure.detail)
            raise AttemptFailed(
                Progress.MAYBE_APPLIED,
                failure.cause,
                failure.detail,
                timed_out=timed_out,
                expired=until is not None and loop.time() >= until,
                error=error,
            ) from error
