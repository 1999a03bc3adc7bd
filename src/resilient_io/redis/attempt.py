"""One attempt: sending a ticket, following it to its reply, and saying how far a failure got."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import DataError, RedisError

from resilient_io.errors import Progress
from resilient_io.health import Cause

from .codec import apply_callback
from .commands import Effect, Route, effect_of
from .connect import abort
from .connection import LARGE, SECOND_LOOK, TICK, Handover, LaneLost, NoLanes, Ticket, Undeliverable
from .errors import advise, connection_failure, refusal
from .pool import can_be_salvaged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.retry import RetryPolicy

    from .commands import CommandSpec
    from .connection import Carrier
    from .errors import Refusal
    from .executor import Gate
    from .multiplexer import Lanes


class Limits(NamedTuple):
    """Absolute loop times that bound an attempt; None for no bound.

    They differ only for commands that block: those may wait long for a reply, but not for a
    connection.
    """

    until: float | None
    """When the reply must have come."""

    sent: float | None
    """When the request must have left."""


class AttemptFailed(Exception):
    """An attempt ended without a usable reply.

    Attributes:
        progress: How far it got.
        cause: For health and metrics.
        detail: One line for the error message.
        timed_out: It was silence that ended it, so repeating costs more of the budget.
        expired: The call's own time is used up: no further attempt.
        overloaded: It waited for room on a lane that is open.
        final: Whatever the effect, no further attempt.
        lane: The lane that may still carry it to the server, if any.
        error: The driver's exception behind it, if any.
        refusal: For an error reply that says that nothing was applied: what it said.
    """

    def __init__(
        self,
        progress: Progress,
        cause: Cause,
        detail: str,
        *,
        timed_out: bool = False,
        expired: bool = False,
        overloaded: bool = False,
        final: bool = False,
        lane: Carrier | None = None,
        error: BaseException | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        """Record the facts."""
        super().__init__(detail)
        self.progress = progress
        self.cause = cause
        self.detail = detail
        self.timed_out = timed_out
        self.expired = expired
        self.overloaded = overloaded
        self.final = final
        self.lane = lane
        self.error = error
        self.refusal = refusal


def failed_by(mark: LaneLost | Undeliverable) -> AttemptFailed:
    """Translate what a lane or the set of lanes said."""
    if isinstance(mark, LaneLost):
        return AttemptFailed(
            Progress.MAYBE_APPLIED,
            mark.cause,
            mark.detail,
            timed_out=mark.cause is Cause.TIMED_OUT,
            lane=mark.lane,
        )
    return AttemptFailed(
        Progress.NOT_SENT, mark.failure.cause, mark.failure.detail, final=True, error=mark.error
    )


async def follow(
    lanes: Lanes, ticket: Ticket, *, limits: Limits, patience: float, read: bool
) -> object:
    """Wait for the reply to a ticket, with an eye on the clock.

    Cancelling abandons the ticket: it is not sent if it was not yet, and its reply is dropped.

    Args:
        lanes: Where the ticket travels.
        ticket: A submitted ticket.
        limits: When the call's time is used up.
        patience: Seconds of the lane's silence after which this call gives up.
        read: Whether it may be asked again on another lane while this one is merely slow.

    Raises:
        AttemptFailed: There will be no reply, or none in time.
    """
    loop = asyncio.get_running_loop()
    clock = _Clock(lanes, ticket, patience)
    while True:
        now = loop.time()
        wake = now + (SECOND_LOOK if clock.suspicious else patience)
        limit = limits.until if ticket.sent else limits.sent
        if limit is not None and not clock.suspicious:
            wake = min(wake, limit)
        timer = loop.call_at(wake, ticket.tick)
        answered = False
        try:
            reply = await ticket.future
            answered = True
        finally:
            timer.cancel()
            if not answered:
                lanes.abandon(ticket)
        if reply is TICK:
            failure = None if ticket.done() else clock.judge(limits, read=read)
            if failure is not None:
                lanes.abandon(ticket)
                raise failure
        elif isinstance(reply, Handover):
            ticket = clock.ticket = reply.ticket
        elif isinstance(reply, LaneLost | Undeliverable):
            raise failed_by(reply)
        else:
            return reply


class _Clock:
    """Judges the waiting of one ticket each time the caller looks at the clock."""

    def __init__(self, lanes: Lanes, ticket: Ticket, patience: float) -> None:
        self.lanes = lanes
        self.ticket = ticket
        self.patience = patience
        self.suspicious = False
        self._since = asyncio.get_running_loop().time()
        self._stalled = self._lag()

    def _lag(self) -> float:
        lag = self.lanes.lag
        return lag.stalled if lag is not None else 0.0

    def judge(self, limits: Limits, *, read: bool) -> AttemptFailed | None:
        """Say why the waiting is over, or None while it is not.

        A first verdict is only a suspicion: what lies in the socket by then is read first.
        """
        now = asyncio.get_running_loop().time()
        failure = self._expired(now, limits) or self._impatient(now, read=read)
        if failure is None:
            self.suspicious = False
            return None
        if not self.suspicious:
            self.suspicious = True
            return None
        return failure

    def _expired(self, now: float, limits: Limits) -> AttemptFailed | None:
        sent = self.ticket.sent
        limit = limits.until if sent else limits.sent
        if limit is None or now < limit:
            return None
        lane = self.ticket.lane
        if sent:
            return AttemptFailed(
                Progress.MAYBE_APPLIED,
                Cause.TIMED_OUT,
                "no reply before the deadline",
                timed_out=True,
                expired=True,
                lane=lane,
            )
        crowded = self.lanes.crowded
        return AttemptFailed(
            Progress.NOT_SENT,
            Cause.OVERLOADED if crowded else Cause.TIMED_OUT,
            f"the deadline passed while it waited for {self.lanes.obstacle}",
            expired=True,
            overloaded=crowded,
        )

    def _impatient(self, now: float, *, read: bool) -> AttemptFailed | None:
        lane = self.ticket.lane
        if lane is None or not self.ticket.sent:
            self._since, self._stalled = now, self._lag()
            return None
        waited = now - self._since - (self._lag() - self._stalled)
        if waited < self.patience:
            return None
        silent = lane.last_sign <= self._since
        # Its own reply may be what keeps the lane busy: then asking again would only add to it.
        elsewhere = read and self.lanes.current not in (None, lane) and not lane.serves(self.ticket)
        if not silent and not elsewhere:
            self._since, self._stalled = lane.last_sign, self._lag()
            return None
        return AttemptFailed(
            Progress.MAYBE_APPLIED,
            Cause.TIMED_OUT,
            f"no reply within {self.patience:g} s",
            timed_out=True,
            lane=lane,
        )


class Call(Protocol):
    """What the gate sends, judges and repeats."""

    operation: str
    bounded: bool
    """Whether the policy's deadline holds for it; a blocking command brings its own time."""

    @property
    def effect(self) -> Effect:
        """What executing it twice would do; asked only after a failure."""
        raise NotImplementedError

    async def attempt(self, limits: Limits) -> object:
        """Make one attempt within its limits.

        Raises:
            AttemptFailed: No usable reply came; the gate decides what follows.
        """


@dataclass(frozen=True, slots=True)
class Command:
    """One command as it was given to `execute_command`, with its row of the table."""

    spec: CommandSpec
    args: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def effect(self) -> Effect:
        """What executing it twice would do; what a connection remembers means nothing elsewhere."""
        return (
            Effect.DANGEROUS if self.spec.route is Route.BOUND else effect_of(self.spec, self.args)
        )

    @property
    def block(self) -> float | None:
        """For how many seconds the server may hold back the reply; None is for ever."""
        return self.spec.block(self.args) if self.spec.block is not None else 0.0


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
