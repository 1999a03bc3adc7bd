"""One attempt: sending a ticket, following it to its reply, and saying how far a failure got."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from resilient_io.errors import Progress
from resilient_io.health import Cause

from .ticket import TICK, Handover, LaneLost, Undeliverable
from .watchdog import SECOND_LOOK

if TYPE_CHECKING:
    from .classification import Refusal
    from .lanes import Lanes
    from .ticket import Carrier, Ticket


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
