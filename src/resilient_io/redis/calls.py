"""The kinds of call that pass the gate: each makes one attempt at a time and knows its effect."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Protocol

import hiredis
from redis.asyncio.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import DataError, RedisError

from resilient_io.errors import Progress

from .classification import advise, connection_failure, refusal
from .commands import Effect, Route, effect_of
from .exchange import AttemptFailed, failed_by, follow
from .lane import LARGE
from .ticket import Handover, LaneLost, NoLanes, Ticket, Undeliverable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io._policy import RetryPolicy

    from .commands import CommandSpec
    from .gate import Gate

_SCRIPTED = ("EVAL", "EVALSHA", "FCALL")


class Call(Protocol):
    """What the gate sends, judges and repeats."""

    operation: str
    bounded: bool
    """Whether the policy's deadline holds for it; a blocking command brings its own time."""

    @property
    def effect(self) -> Effect:
        """What executing it twice would do; asked only after a failure."""

    async def attempt(self, until: float | None) -> object:
        """Make one attempt, bounded by the absolute loop time `until`.

        Raises:
            AttemptFailed: No usable reply came; the gate decides what follows.
        """


class Packer:
    """Packs commands as redis-py's encoder would, through hiredis where both agree."""

    def __init__(self, encoder: Any) -> None:
        """Use the encoder of the client's pool."""
        self._encoder = encoder
        self.direct = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8") and (
            encoder.encoding_errors == "strict"
        )

    def pack(self, words: Sequence[bytes], args: Sequence[object]) -> bytes:
        """Pack a command.

        Args:
            words: The command's name as it goes over the wire.
            args: The arguments as given to `execute_command`, the name included.

        Raises:
            redis.exceptions.DataError: An argument is neither bytes, str, int nor float.
        """
        if self.direct:
            try:
                packed: bytes = hiredis.pack_command((*words, *args[1:]))
            except TypeError:
                pass  # a bytearray, say, or what the encoder refuses with a better message
            else:
                return packed
        encode = self._encoder.encode
        encoded = (bytes(encode(argument)) for argument in args[1:])
        packed = hiredis.pack_command((*words, *encoded))
        return packed


def read_reply(
    gate: Gate, spec: CommandSpec, args: Sequence[object], reply: object, options: dict[str, Any]
) -> object:
    """Turn a raw reply into what redis-py would return, or raise what it means.

    Raises:
        AttemptFailed: It is an error that proves that nothing was applied, for now.
        Exception: It is any other error reply, or a value that cannot be decoded.
    """
    if isinstance(reply, Exception):
        # What a script or an unknown command answers proves nothing: it may have worked before.
        native = spec.known and not spec.name.startswith(_SCRIPTED)
        meaning = refusal(reply) if native or effect_of(spec, args) is Effect.READ else None
        if meaning is not None:
            raise AttemptFailed(
                Progress.REFUSED, meaning.cause, str(reply), error=reply, refusal=meaning
            )
        if EMPTY_RESPONSE in options and isinstance(reply, RedisError):
            return options[EMPTY_RESPONSE]
        advise(reply)
        raise reply
    if gate.health.refusing and effect_of(spec, args) is not Effect.READ:
        gate.accepted()
    return gate.apply_callback(spec.name, reply, options)


class LaneCall:
    """One command on a lane."""

    bounded = True

    def __init__(
        self,
        gate: Gate,
        policy: RetryPolicy,
        spec: CommandSpec,
        args: Sequence[object],
        options: dict[str, Any],
        data: bytes,
        otherwise: DedicatedCall,
        first: Exception | None = None,
    ) -> None:
        """Prepare.

        Args:
            gate: Its lanes and callbacks are used.
            policy: Its response timeout is this call's patience.
            otherwise: The same call for a driver whose connections cannot be lanes.
            spec: The command's row in the table.
            args: The arguments as given, for judging the effect.
            options: redis-py's options for the response callback.
            data: The packed command.
            first: What the fast path got instead of a plain reply.
        """
        self._gate = gate
        self._patience = policy.response_timeout
        self._spec = spec
        self._args = args
        self._options = options
        self._data = data
        self._first = first
        self._otherwise = otherwise
        self.operation = spec.name
        if spec.block is not None and spec.route is Route.DEDICATED:
            block = spec.block(args)
            self.bounded = False
            self._patience = float("inf") if block is None else block + self._patience

    @property
    def effect(self) -> Effect:
        """What executing it twice would do."""
        return effect_of(self._spec, self._args)

    async def attempt(self, until: float | None) -> object:
        """Send it, or go on with what the fast path began."""
        gate = self._gate
        first, self._first = self._first, None
        if first is None or isinstance(first, Handover):
            ticket = self._submit() if first is None else first.ticket
            reply = await follow(
                gate.lanes,
                ticket,
                until=until,
                patience=min(self._patience, 1e6),
                read=self.effect is Effect.READ,
            )
        elif isinstance(first, LaneLost | Undeliverable):
            raise failed_by(first)
        else:
            reply = first
        if isinstance(reply, NoLanes):
            return await self._otherwise.attempt(until)
        result = read_reply(gate, self._spec, self._args, reply, self._options)
        return await result if inspect.isawaitable(result) else result

    def _submit(self) -> Ticket:
        lanes = self._gate.lanes
        raw = frozenset({0}) if NEVER_DECODE in self._options else frozenset()
        ticket = Ticket(self._data, raw=raw, large=len(self._data) > LARGE)
        if not self.bounded and lanes.current is not None:
            lanes.current.allowance = max(lanes.current.allowance, min(self._patience, 1e6))
        lanes.submit(ticket)
        return ticket


class DedicatedCall:
    """One command on a connection of its own; through redis-py's own sending and parsing."""

    def __init__(
        self,
        gate: Gate,
        policy: RetryPolicy,
        client: Any,
        spec: CommandSpec,
        args: Sequence[object],
        options: Mapping[str, Any],
    ) -> None:
        """Prepare; `client` is the redis-py client whose parsing and callbacks are used."""
        self._gate = gate
        self._client = client
        self._spec = spec
        self._args = args
        self._options = options
        self.operation = spec.name
        self.bounded = spec.block is None
        block = spec.block(args) if spec.block is not None else 0.0
        self._patience = None if block is None else block + policy.response_timeout

    @property
    def effect(self) -> Effect:
        """What executing it twice would do."""
        return effect_of(self._spec, self._args)

    async def attempt(self, until: float | None) -> object:
        """Borrow a connection, send, wait as long as the command may block, give it back."""
        gate = self._gate
        connection = await gate.borrow(until)
        clean = False
        try:
            reply = await self._exchange(connection, until)
            clean = True
        finally:
            gate.dedicated.give_back(connection, clean=clean)
        if isinstance(reply, Exception):
            return read_reply(gate, self._spec, self._args, reply, dict(self._options))
        return reply

    async def _exchange(self, connection: AbstractConnection, until: float | None) -> object:
        loop = asyncio.get_running_loop()
        limits = [] if self._patience is None else [loop.time() + self._patience]
        if until is not None:
            limits.append(until)
        limit = min(limits, default=None)
        try:
            async with asyncio.timeout_at(limit):
                return await self._client._send_command_parse_response(  # noqa: SLF001 (redis-py 8.1)
                    connection, self._args[0], *self._args, **self._options
                )
        except DataError:
            raise
        except (RedisError, OSError) as error:
            if refusal(error) is not None or (
                connection.is_connected and not isinstance(error, TimeoutError)
            ):
                return error  # a reply; redis-py 8.1 drops the connection after some of them
            failure = connection_failure(error)
            if failure.definite:
                self._gate.health.failed(failure.cause, failure.detail)
            raise AttemptFailed(
                Progress.PERHAPS_APPLIED,
                failure.cause,
                failure.detail,
                timed_out=isinstance(error, TimeoutError),
                expired=until is not None and loop.time() >= until,
                error=error,
            ) from error
