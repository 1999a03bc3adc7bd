"""The two kinds of calls of a single command: on a multiplexed or on an exclusive connection."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import DataError, RedisError

from resilient_io.deadlines import earlier
from resilient_io.errors import Progress
from resilient_io.text import clean_text

from .attempt import AttemptFailed, await_reply, failure_of
from .commands import Effect, Route, effect_of
from .connect import abort
from .connection import (
    LARGE,
    ConnectionLost,
    NotMultiplexable,
    PendingRequest,
    Promoted,
    Undeliverable,
)
from .errors import advise, refusal, remove_secrets
from .pool import is_recoverable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.errors import ResilientIOError
    from resilient_io.retry import RetryPolicy

    from .attempt import Limits
    from .commands import CommandSpec
    from .multiplexer import Multiplexer
    from .pool import ExclusivePool

    Callbacks = MutableMapping[str | bytes, Callable[..., Any]]

_pack: Callable[[Any], bytes] = hiredis.pack_command

_NOT_FOR_CALLBACKS = ("keys", "NEVER_DECODE", "EMPTY_RESPONSE")
"""Options that redis-py 8.1's `parse_response` removes before it calls a callback."""


class Packer:
    """Packs commands as redis-py's encoder would, with hiredis where both agree."""

    def __init__(self, encoder: Any) -> None:
        """Use the encoder of the client's pool."""
        self._encoder = encoder
        self.direct = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8") and (
            encoder.encoding_errors == "strict"
        )

    def pack(self, words: Sequence[bytes], args: Sequence[object]) -> bytes:
        """Return a packed command.

        Args:
            words: The command's name as it is sent.
            args: The arguments as passed to `execute_command`, including the name.

        Raises:
            redis.exceptions.DataError: An argument is not bytes, str, int or float.
        """
        if self.direct:
            try:
                # A single word is sent as it was passed.
                return _pack((*words, *args[1:]) if len(words) > 1 else args)
            except TypeError:
                pass  # a bytearray, or a value that the encoder rejects with a better message
        encode = self._encoder.encode
        return _pack((*words, *(bytes(encode(argument)) for argument in args[1:])))


def apply_callback(callbacks: Callbacks, name: Any, reply: Any, options: Mapping[str, Any]) -> Any:
    """Return the reply converted by redis-py's callback for the command.

    The result is an awaitable if the callback is asynchronous.
    """
    callback = callbacks.get(name) if isinstance(name, str | bytes) else None
    if callback is None:
        return reply
    plain = {key: value for key, value in options.items() if key not in _NOT_FOR_CALLBACKS}
    return callback(reply, **plain)


@dataclass(frozen=True, slots=True)
class Command:
    """One command as passed to `execute_command`, with its row of the command table."""

    spec: CommandSpec
    args: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice.

        A command that depends on the state of its connection is never repeated on another one.
        """
        return (
            Effect.DANGEROUS if self.spec.route is Route.BOUND else effect_of(self.spec, self.args)
        )

    @property
    def block(self) -> float | None:
        """How many seconds the server may delay the reply; None for no limit."""
        return self.spec.block(self.args) if self.spec.block is not None else 0.0


SCRIPTED = ("EVAL", "FCALL")
"""Prefixes of the commands that run the user's code on the server."""

UNLIMITED = 1e6
"""Seconds that stand for a command that blocks without a limit."""


def read_reply(
    multiplexer: Multiplexer, callbacks: Callbacks, command: Command, reply: object
) -> object:
    """Return what redis-py would return for a raw reply, or an `AttemptFailed`.

    Raises:
        Exception: The reply is an error reply that is not a refusal, or cannot be decoded.
    """
    if isinstance(reply, Exception):
        remove_secrets(reply, multiplexer.target.secrets)
        # The error of a script or of an unknown command proves nothing: a part may be applied.
        native = command.spec.known and not command.spec.name.startswith(SCRIPTED)
        meaning = refusal(reply) if native or command.effect is Effect.READ else None
        if meaning is not None:
            return AttemptFailed(
                progress=Progress.REFUSED,
                cause=meaning.cause,
                detail=clean_text(str(reply)),
                error=reply,
                refusal=meaning,
            )
        if EMPTY_RESPONSE in command.options and isinstance(reply, RedisError):
            return command.options[EMPTY_RESPONSE]
        advise(reply)
        raise reply
    if multiplexer.health.refusing and command.effect is not Effect.READ:
        multiplexer.write_accepted()
    return apply_callback(callbacks, command.args[0], reply, command.options)


class MultiplexedCall:
    """One command on a multiplexed connection."""

    def __init__(
        self,
        multiplexer: Multiplexer,
        callbacks: Callbacks,
        policy: RetryPolicy,
        command: Command,
        data: bytes,
        *,
        fallback: ExclusiveCall,
        first: Exception | None = None,
    ) -> None:
        """Create a call.

        Args:
            multiplexer: Sends the command.
            callbacks: redis-py's response callbacks, by command.
            policy: Its response timeout applies.
            command: The command.
            data: The packed command.
            fallback: The same call for a driver whose connections cannot be multiplexed.
            first: What the hot path received instead of a plain reply.
        """
        self._multiplexer = multiplexer
        self._callbacks = callbacks
        self._command = command
        self._data = data
        self._fallback = fallback
        self._first = first
        self.operation = command.spec.name
        # Only the single connection of a bound client carries blocking commands.
        blocking = command.spec.route is Route.EXCLUSIVE and command.spec.block is not None
        self.bounded = not blocking
        block = command.block if blocking else 0.0
        self._timeout = policy.response_timeout + (UNLIMITED if block is None else block)

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return self._command.effect

    def describe(self, error: ResilientIOError) -> None:
        """Add nothing: the error names the command."""

    async def attempt(self, limits: Limits) -> object:
        """Send the command, or continue with what the hot path began."""
        first, self._first = self._first, None
        reply: object = first
        if isinstance(first, ConnectionLost | Undeliverable):
            return failure_of(first)
        if first is None or isinstance(first, Promoted):
            reply = await await_reply(
                self._multiplexer,
                self._submit() if first is None else first.request,
                limits=limits,
                timeout=self._timeout,
                read=self.effect is Effect.READ,
            )
        if isinstance(reply, AttemptFailed):
            return reply
        if isinstance(reply, NotMultiplexable):
            return await self._fallback.attempt(limits)
        result = read_reply(self._multiplexer, self._callbacks, self._command, reply)
        return await result if inspect.isawaitable(result) else result

    def _submit(self) -> PendingRequest:
        raw = frozenset({0}) if NEVER_DECODE in self._command.options else frozenset()
        request = PendingRequest(
            self._data,
            raw=raw,
            large=len(self._data) > LARGE,
            extra_timeout=0.0 if self.bounded else self._timeout,
        )
        self._multiplexer.submit(request)
        return request


class ExclusiveCall:
    """One command on an exclusive connection, sent and parsed by redis-py."""

    def __init__(
        self,
        multiplexer: Multiplexer,
        pool: ExclusivePool,
        policy: RetryPolicy,
        command: Command,
        client: Any,
    ) -> None:
        """Create a call.

        Args:
            multiplexer: Knows the health and the address of the server.
            pool: Lends the connection.
            policy: Its response timeout is added to the time for which the command blocks.
            command: The command.
            client: The client of redis-py whose parsing and callbacks are used.
        """
        self._multiplexer = multiplexer
        self._pool = pool
        self._command = command
        self._client = client
        self.operation = command.spec.name
        self.bounded = command.spec.block is None
        block = command.block
        self._timeout = None if block is None else block + policy.response_timeout

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return self._command.effect

    def describe(self, error: ResilientIOError) -> None:
        """Add nothing: the error names the command."""

    async def attempt(self, limits: Limits) -> object:
        """Acquire a connection, send, wait as long as the command may block, and release it."""
        pool, recoverable = self._pool, is_recoverable(self.operation)
        connection = await pool.acquire_within(limits.sent)
        if isinstance(connection, AttemptFailed):
            return connection
        clean = blocked = False
        try:
            if recoverable:
                failed = await pool.identify(connection, limits.sent)
                if failed is not None:
                    return failed
                blocked = True
            reply = await self._exchange(connection, limits.until)
            clean = not isinstance(reply, AttemptFailed)
        except UnicodeDecodeError:
            clean = True  # the reply was read, and redis-py's parser stays in sync
            raise
        finally:
            if blocked and not clean and connection.is_connected:
                pool.recover(connection, self.operation)
            else:
                pool.give_back(connection, clean=clean)
        if isinstance(reply, AttemptFailed):
            return reply
        if blocked or isinstance(reply, Exception):
            callbacks = self._client.response_callbacks
            return read_reply(self._multiplexer, callbacks, self._command, reply)
        return reply

    async def _exchange(self, connection: AbstractConnection, until: float | None) -> object:
        loop = asyncio.get_running_loop()
        limit = None if self._timeout is None else loop.time() + self._timeout
        args = self._command.args
        try:
            async with asyncio.timeout_at(earlier(limit, until)):
                if is_recoverable(self.operation):
                    await connection.send_command(*args)
                    # A cancelled read must leave the connection open, for the recovery.
                    return await connection.read_response(disconnect_on_error=False)
                # redis-py 8.1 `Redis._send_command_parse_response`: sends, reads, converts.
                return await self._client._send_command_parse_response(
                    connection, args[0], *args, **self._command.options
                )
        except DataError:
            raise
        except (RedisError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            # redis-py 8.1 raises exactly this for a lost connection, and leaves it "connected" with
            # disconnect_on_error=False.
            lost = type(error) is ConnectionLostError or not connection.is_connected
            if refusal(error) is not None or not (lost or timed_out):
                return error  # a reply; redis-py 8.1 drops the connection after some of them
            if lost:
                abort(connection)
            failure = self._multiplexer.target.failure(error)
            if failure.definite:
                self._multiplexer.health.failed(failure.cause, failure.detail)
            return AttemptFailed(
                progress=Progress.MAYBE_APPLIED,
                cause=failure.cause,
                detail=failure.detail,
                timed_out=timed_out,
                expired=until is not None and loop.time() >= until,
            )
