"""What travels on a lane: a bare future on the hot path, a `Ticket` whenever more must be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from resilient_io.health import Cause

    from .classification import Failure


class Carrier(Protocol):
    """What carries a ticket: a lane, as those see it who follow a call."""

    flushed: int
    """How many calls were handed to the transport so far."""

    lost: LaneLost | None
    fenced: asyncio.Future[bool]
    repeats_paid: bool | None

    @property
    def last_sign(self) -> float:
        """Loop time of the last sign of life."""
        ...

    def serves(self, ticket: Ticket) -> bool:
        """Tell whether the reply that comes next is this ticket's."""
        ...


class LaneLost(Exception):
    """The lane died after this call had been handed to the transport: it was maybe applied."""

    def __init__(self, cause: Cause, detail: str, lane: Carrier) -> None:
        """Keep what the lane knew when it died."""
        super().__init__(detail)
        self.cause = cause
        self.detail = detail
        self.lane = lane


class Handover(Exception):
    """This call's place in the line now belongs to `ticket`; its caller goes on with that one.

    A bare future carries no time limits. When a call has to wait longer than usual (its lane died
    before it was written, or answers late) it keeps its place and gets a ticket.
    """

    def __init__(self, ticket: Ticket) -> None:
        """Hand over the ticket."""
        super().__init__("the call goes on with its ticket")
        self.ticket = ticket


class Undeliverable(Exception):
    """This call was never sent, and waiting longer cannot help."""

    def __init__(self, failure: Failure, error: BaseException | None = None) -> None:
        """Keep why: the client was closed, or dialling failed for good."""
        super().__init__(failure.detail)
        self.failure = failure
        self.error = error


class NoLanes(Exception):
    """This driver's connections have no transport that a lane could take over."""


class _Tick(Exception):
    """It is time to look at the clock."""


TICK = _Tick("look at the clock")


class Ticket:
    """One exchange whose progress is known: `count` commands packed in `data`, sent as one."""

    __slots__ = (
        "allowance",
        "count",
        "data",
        "future",
        "lane",
        "large",
        "ordinal",
        "position",
        "raw",
        "replies",
    )

    def __init__(
        self,
        data: bytes,
        *,
        count: int = 1,
        raw: frozenset[int] = frozenset(),
        large: bool = False,
        allowance: float = 0.0,
    ) -> None:
        """Make a ticket in the running loop.

        Args:
            data: The packed commands.
            count: How many commands they are, so how many replies will come.
            raw: The positions whose replies must not be decoded.
            large: Whether small calls should avoid the lane meanwhile.
            allowance: Seconds that the lane may stay silent beyond its response timeout.
        """
        self.data = data
        self.count = count
        self.raw = raw
        self.large = large
        self.allowance = allowance
        self.replies: list[object] = []
        self.position = 0
        self.lane: Carrier | None = None
        self.ordinal = 0
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    @property
    def special(self) -> bool:
        """Whether a lane has to look at each of its replies."""
        return self.large or bool(self.raw) or self.count > 1

    @property
    def sent(self) -> bool:
        """Whether anything of it was handed to a transport."""
        return self.lane is not None and self.ordinal < self.lane.flushed

    def done(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self.future.done()

    def set_result(self, reply: object) -> None:
        """Take the next reply."""
        if self.count == 1:
            self.future.set_result(reply)
            return
        self.replies.append(reply)
        if len(self.replies) == self.count:
            self.future.set_result(self.replies)

    def interrupt(self, mark: Exception) -> None:
        """End the waiting with a mark; replies that came before stay in `replies`."""
        if not self.future.done():
            self.future.set_result(mark)

    def tick(self) -> None:
        """Wake the waiting caller so that it looks at the clock.

        What comes before the caller runs must not take it for gone, nor be lost on it.
        """
        if not self.future.done():
            woken, self.future = self.future, self.future.get_loop().create_future()
            woken.set_result(TICK)


Entry: TypeAlias = asyncio.Future[object] | Ticket
