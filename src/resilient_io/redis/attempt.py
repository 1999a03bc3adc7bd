"""One attempt of a call: its time limits, waiting for its reply, and its result.

An attempt returns the reply, or an `AttemptFailed` that says how far it got. It never decides
whether the call is repeated: that is the executor's task.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resilient_io.errors import Progress
from resilient_io.health import Cause

from .connection import CHECK_CLOCK, SECOND_CHECK, ConnectionLost, Promoted, Undeliverable

if TYPE_CHECKING:
    from resilient_io.errors import ResilientIOError

    from .commands import Effect
    from .connection import MultiplexedConnection, PendingRequest
    from .errors import Refusal
    from .multiplexer import Multiplexer


class Limits(NamedTuple):
    """Absolute loop times that limit an attempt; None for no limit.

    They differ only for blocking commands, which may wait long for a reply, but not for a
    connection.
    """

    until: float | None
    """When the reply must have arrived."""

    sent: float | None
    """When the request must have been sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """The result of an attempt that ended without a usable reply.

    Attributes:
        progress: How far the attempt got.
        cause: For health and metrics.
        detail: One line for the error message.
        timed_out: Silence ended the attempt, so repeating it costs more of the budget.
        expired: The time of the call ran out: no further attempt.
        overloaded: The call waited for room on an open connection.
        final: No further attempt, whatever the effect of the command.
        connection: The connection that may still carry the request to the server.
        error: For an error reply: the exception of redis-py that represents it.
        refusal: For an error reply that says that nothing was applied: its meaning.
    """

    progress: Progress
    cause: Cause
    detail: str
    timed_out: bool = False
    expired: bool = False
    overloaded: bool = False
    final: bool = False
    connection: MultiplexedConnection | None = None
    error: BaseException | None = None
    refusal: Refusal | None = None

    def with_reason(self, reason: str, *, final: bool = False) -> AttemptFailed:
        """Return a copy whose detail ends with the reason why the call is not repeated."""
        return replace(self, detail=f"{self.detail}{reason}", final=final or self.final)


class Call(Protocol):
    """A call that the executor sends and repeats."""

    operation: str
    """The name of the command, for error messages."""

    bounded: bool
    """Whether the policy's deadline applies. A blocking command has a time limit of its own."""

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice. Computed only after a failure."""
        raise NotImplementedError

    async def attempt(self, limits: Limits) -> object:
        """Make one attempt within its limits. Return the reply, or an `AttemptFailed`."""

    def describe(self, error: ResilientIOError) -> None:
        """Add to an error what only the call knows."""


def failure_of(reason: ConnectionLost | Undeliverable) -> AttemptFailed:
    """Return the failed attempt that a connection or the multiplexer reported."""
    failure = reason.failure
    if isinstance(reason, ConnectionLost):
        return AttemptFailed(
            progress=Progress.MAYBE_APPLIED,
            cause=failure.cause,
            detail=failure.detail,
            timed_out=failure.cause is Cause.TIMED_OUT,
            connection=reason.connection,
        )
    return AttemptFailed(
        progress=Progress.NOT_SENT, cause=failure.cause, detail=failure.detail, final=True
    )


async def await_reply(
    multiplexer: Multiplexer,
    request: PendingRequest,
    *,
    limits: Limits,
    timeout: float,
    read: bool,
) -> Any:
    """Wait for the reply to a submitted request, and check its time limits.

    Return the reply, an exception that represents an error reply, or an `AttemptFailed`.
    Cancelling abandons the request: it is not sent if it was not yet, and its reply is dropped.

    Args:
        multiplexer: The multiplexer that the request was submitted to.
        request: The request.
        limits: When the time of the call runs out.
        timeout: Seconds of the connection's silence after which this call fails.
        read: Whether the call may be repeated on another connection while this one is slow.
    """
    loop = asyncio.get_running_loop()
    clock = _ReplyClock(multiplexer, request, timeout)
    while True:
        now = loop.time()
        wake = now + (SECOND_CHECK if clock.suspicious else timeout)
        limit = limits.until if request.sent else limits.sent
        if limit is not None and not clock.suspicious:
            wake = min(wake, limit)
        timer = loop.call_at(wake, request.check_clock)
        answered = False
        try:
            reply = await request.future
            answered = True
        finally:
            timer.cancel()
            if not answered:
                multiplexer.abandon(request)
        if reply is CHECK_CLOCK:
            failed = None if request.done() else clock.check(limits, read=read)
            if failed is not None:
                multiplexer.abandon(request)
                return failed
        elif isinstance(reply, Promoted):
            request = clock.request = reply.request
        elif isinstance(reply, ConnectionLost | Undeliverable):
            return failure_of(reply)
        else:
            return reply


class _ReplyClock:
    """Decides, each time the caller checks the clock, whether to stop waiting for a reply."""

    def __init__(self, multiplexer: Multiplexer, request: PendingRequest, timeout: float) -> None:
        self.multiplexer = multiplexer
        self.request = request
        self.timeout = timeout
        self.suspicious = False
        self._since = asyncio.get_running_loop().time()
        self._stalled = self._stall_time()

    def _stall_time(self) -> float:
        lag = self.multiplexer.lag
        return lag.stalled if lag is not None else 0.0

    def check(self, limits: Limits, *, read: bool) -> AttemptFailed | None:
        """Return why the wait is over, or None.

        The first time is only a suspicion: data that is already in the socket is read first.
        """
        now = asyncio.get_running_loop().time()
        failed = self._expired(now, limits) or self._timed_out(now, read=read)
        if failed is None:
            self.suspicious = False
            return None
        if not self.suspicious:
            self.suspicious = True
            return None
        return failed

    def _expired(self, now: float, limits: Limits) -> AttemptFailed | None:
        sent = self.request.sent
        limit = limits.until if sent else limits.sent
        if limit is None or now < limit:
            return None
        if sent:
            return AttemptFailed(
                progress=Progress.MAYBE_APPLIED,
                cause=Cause.TIMED_OUT,
                detail="no reply before the deadline",
                timed_out=True,
                expired=True,
                connection=self.request.connection,
            )
        return expired_while_waiting(self.multiplexer.obstacle, overloaded=self.multiplexer.crowded)

    def _timed_out(self, now: float, *, read: bool) -> AttemptFailed | None:
        connection = self.request.connection
        if connection is None or not self.request.sent:
            self._since, self._stalled = now, self._stall_time()
            return None
        waited = now - self._since - (self._stall_time() - self._stalled)
        if waited < self.timeout:
            return None
        silent = connection.last_activity <= self._since
        # If its own reply keeps the connection busy, another attempt would only add to the load.
        elsewhere = (
            read
            and self.multiplexer.current not in (None, connection)
            and not connection.is_next(self.request)
        )
        if not silent and not elsewhere:
            self._since, self._stalled = connection.last_activity, self._stall_time()
            return None
        return AttemptFailed(
            progress=Progress.MAYBE_APPLIED,
            cause=Cause.TIMED_OUT,
            detail=f"no reply within {self.timeout:g} s",
            timed_out=True,
            connection=connection,
        )


def expired_while_waiting(obstacle: str, *, overloaded: bool) -> AttemptFailed:
    """Return the failed attempt of a call whose deadline passed before it was sent."""
    return AttemptFailed(
        progress=Progress.NOT_SENT,
        cause=Cause.OVERLOADED if overloaded else Cause.TIMED_OUT,
        detail=f"the deadline passed while the call waited for {obstacle}",
        expired=True,
        overloaded=overloaded,
    )
