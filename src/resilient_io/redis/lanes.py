"""The set of lanes of one client: choosing the one that takes calls, and the backlog.

Calls go to one lane, so that they keep their order; the other stands by, and takes over while the
first is busy with a large value, or when it dies. Calls that cannot be sent yet wait in the
backlog, in order, ahead of newer ones.
"""

from __future__ import annotations

import asyncio
from _thread import get_ident
from functools import partial
from typing import TYPE_CHECKING

from resilient_io.health import Cause, LoopLag

from .backlog import Backlog
from .classification import Failure
from .keeper import Keeper
from .lane import Lane
from .prospects import Prospects
from .session import Session
from .stats import Latencies
from .ticket import Handover, NoLanes, Undeliverable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .settings import ConnectionSettings
    from .target import Target
    from .ticket import Entry, Ticket

_CLOSED = Failure(Cause.CLOSED, "the client was closed")


class Lanes:
    """Hands each call to the right lane, or keeps it until there is one."""

    def __init__(
        self,
        *,
        target: Target,
        policy: RetryPolicy,
        health: Dependency,
        settings: ConnectionSettings,
        rng: random.Random,
        client_name: str | None,
        bound: bool = False,
    ) -> None:
        """Prepare; `start` opens connections.

        Args:
            target: Where to dial, asked at every dial.
            policy: Its connect and response timeouts hold for the lanes.
            health: Told about lost and opened lanes, and asked whether dialling is worth it.
            settings: How many lanes and how much in flight.
            rng: Jitter and names.
            client_name: The name that the caller chose for its connections, a prefix of ours.
            bound: The lane is one caller's own connection; the caller may change its state.
        """
        self._policy = policy
        self._health = health
        self._settings = settings
        self._bound = bound
        self._keeper = Keeper(
            self,
            self._make_lane,
            target=target,
            policy=policy,
            health=health,
            rng=rng,
            client_name=client_name,
        )
        self._slots: list[Lane | None] = [None] * settings.count
        self._retiring: list[Lane] = []
        self._preferred: Lane | None = None
        self._backlog = Backlog()
        self.prospects = Prospects(health, self._backlog.give_up)
        self._choosing = self._stale = False
        self._closing = False
        self._past = (0, 0, 0)
        self.lag: LoopLag | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        """The thread of that loop: together they tell a call from elsewhere."""
        self.is_running: Callable[[], bool]
        self.time: Callable[[], float]
        self.create_future: Callable[[], asyncio.Future[object]]
        self.latencies = Latencies()
        self.laneless = False
        """Whether the driver's connections turned out to have no transport (fakes, say)."""
        self.session = Session()
        """What the caller of a bound connection has set on it."""
        self.current: Lane | None = None
        """The lane that takes calls now; None while they have to wait."""
        self.fast: Lane | None = None
        """The same for calls that need no second thought; None while anything is amiss."""

    # -- what the gate uses ----------------------------------------------------------------

    def start(self) -> None:
        """Open the lanes in the running loop; doing it twice is fine."""
        if self.loop is None:
            self.loop = loop = asyncio.get_running_loop()
            self.thread = get_ident()
            self.is_running = loop.is_running
            self.time, self.create_future = loop.time, partial(asyncio.Future, loop=loop)
            self.lag = LoopLag.acquire()
            self._keeper.start(len(self._slots))

    def submit(self, ticket: Ticket) -> None:
        """Send a ticket on the current lane, or put it in the backlog."""
        lane = self.current
        if lane is not None:
            lane.send_ticket(ticket)
        elif self.laneless:
            ticket.interrupt(NoLanes())
        elif self.prospects.undeliverable is not None and not self.prospects.better:
            ticket.interrupt(self.prospects.undeliverable)
        elif self._closing:
            ticket.interrupt(Undeliverable(_CLOSED))
        else:
            self._backlog.append(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Note that nobody waits for a ticket any more; it is not sent if it was not yet."""
        ticket.future.cancel()
        if ticket.lane is None:
            self._backlog.note_abandoned()

    def forget(self, future: asyncio.Future[object]) -> None:
        """Note that a call was cancelled whose place may belong to a ticket by now."""
        if future.done() and not future.cancelled():
            reply = future.result()
            if isinstance(reply, Handover):
                self.abandon(reply.ticket)

    def retire(self, lane: Lane) -> None:
        """Replace a lane: another server should take new calls, those in flight may finish."""
        if lane in self._slots:
            held = bool(self.session)
            self._health.note("lane left", why="its server does not take writes")
            self._drop(lane)
            self._retiring.append(lane)
            self._backlog.put_back(lane.retire())
            if held:
                self._lose_session()
            self._choose()

    def refresh(self) -> None:
        """Choose the lane anew: something that the choice depends on has changed."""
        if not self._health.available:
            self.prospects.conclude()
        elif self.prospects.better:
            self.prospects.brighten()
            self._keeper.hurry()
        self._choose()

    @property
    def open_lanes(self) -> list[Lane]:
        """The lanes that are open now."""
        return [lane for lane in self._slots if lane is not None]

    @property
    def crowded(self) -> bool:
        """Whether calls in the backlog wait for nothing but room."""
        return bool(self.open_lanes) and self._health.available

    @property
    def obstacle(self) -> str:
        """What calls in the backlog wait for, in words."""
        if self.crowded:
            return "room"
        if self.open_lanes:
            return f"it to be up again ({self._health.detail})"
        why = self.prospects.detail
        return f"a connection ({why})" if why else "a connection"

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps; None while all is well."""
        return None if self._closing else self._keeper.liveness_failure()

    @property
    def waiting(self) -> int:
        """Calls in the backlog."""
        return self._backlog.waiting

    @property
    def replies(self) -> int:
        """Replies received so far, over all lanes that ever were."""
        return self.traffic[0]

    @property
    def traffic(self) -> tuple[int, int, int]:
        """Replies, bytes sent and bytes received so far, over all lanes that ever were."""
        replies, sent, received = self._past
        for lane in (*self.open_lanes, *self._retiring):
            replies += lane.replies
            sent += lane.bytes_sent
            received += lane.bytes_received
        return replies, sent, received

    def last_byte(self) -> float:
        """Return the loop time of the last byte from any open lane, -inf without one."""
        return max((lane.last_byte for lane in self.open_lanes), default=float("-inf"))

    def disown(self) -> None:
        """Take no more calls: the connections belong to the process that this one forked from."""
        self._closing = True
        self._choose()

    async def aclose(self) -> None:
        """Close every lane; whatever still waits ends as closed. Doing it twice is fine."""
        self._closing = True
        lanes = [*self.open_lanes, *self._retiring]
        self._backlog.give_up(Undeliverable(_CLOSED))
        self.prospects.brighten()
        for lane in lanes:
            lane.close(_CLOSED.cause, _CLOSED.detail)
        await self._keeper.aclose()
        if lanes:
            await asyncio.wait([lane.closed for lane in lanes])
        if self.lag is not None:
            self.lag.release()
            self.lag = None
        self._choose()

    # -- what lanes and their keeper tell --------------------------------------------------

    def lane_changed(self, lane: Lane) -> None:  # noqa: ARG002 (the owner's protocol)
        """Choose anew: a lane became full, busy or free."""
        self._choose()

    def lane_fell_silent(self, lane: Lane) -> None:
        """Let health look before the callers' patience is at its end."""
        quiet = lane.response_timeout / 2
        self._health.failed(Cause.TIMED_OUT, f"no byte came within {quiet:g} s")

    def lane_lost(self, lane: Lane, unsent: list[tuple[Entry, bytes]]) -> None:
        """Move the calls that were never written to the front of the line, and fence the rest."""
        replies, sent, received = self._past
        self._past = (
            replies + lane.replies,
            sent + lane.bytes_sent,
            received + lane.bytes_received,
        )
        self._drop(lane)
        self._backlog.put_back(unsent)
        if self.session:
            self._lose_session()
        lost = lane.lost
        if lost is not None and not self._closing and not lane.retired.done():
            self._health.note("lane lost", cause=lost.cause.value, detail=lost.detail)
            self._health.failed(lost.cause, lost.detail)
        self._keeper.lost(lane, next(iter(self.open_lanes), None))
        self._choose()

    def lane_opened(self, slot: int, lane: Lane) -> None:
        """Take a new lane into use."""
        if self._closing:
            lane.close(_CLOSED.cause, _CLOSED.detail)
            return
        self.prospects.succeeded()
        self._slots[slot] = lane
        self._health.note("lane opened", slot=slot)
        self._health.part_back(f"lane {slot}")
        self._health.succeeded()
        self._choose()

    def dial_failed(self, slot: int, failure: Failure, error: BaseException) -> None:
        """Hear why there is no lane in this slot."""
        self._health.note("dial failed", cause=failure.cause.value, detail=failure.detail)
        if self.open_lanes:
            self._health.part_lost(f"lane {slot}", failure.cause, failure.detail)
            return
        self._health.failed(failure.cause, failure.detail)
        self.prospects.failed(failure, error)

    def go_without(self) -> None:
        """Hear that this driver's connections cannot be lanes."""
        self.laneless = True
        self._health.succeeded()
        self._backlog.give_up(NoLanes())

    # -- inside ----------------------------------------------------------------------------

    def _make_lane(self, connection: AbstractConnection, name: str, client_id: int | None) -> Lane:
        assert self.lag is not None, "lanes are opened only after start()"  # noqa: S101
        return Lane(
            connection,
            owner=self,
            name=name,
            client_id=client_id,
            response_timeout=self._policy.response_timeout,
            deadline=self._policy.deadline,
            limit=self._settings.in_flight,
            latencies=self.latencies,
            lag=self.lag,
            pushes=self._bound,
        )

    def _lose_session(self) -> None:
        """Send nothing on a successor that was meant for the state of the connection before."""
        if self.session:
            self.session.lose()
        why = Failure(Cause.RESET, "the connection that held its state was lost")
        self._backlog.give_up(Undeliverable(why))

    def _drop(self, lane: Lane) -> None:
        self._slots = [None if other is lane else other for other in self._slots]
        self._retiring = [other for other in self._retiring if other is not lane]

    def _choose(self) -> None:
        self._stale = True
        if self._choosing:
            return  # sending from the backlog changed something: the loop below begins again
        self._choosing = True
        try:
            while self._stale:
                self._stale = False
                self._choose_once()
        finally:
            self._choosing = False

    def _choose_once(self) -> None:
        lane = self._preferred = self._prefer()
        self.current = self.fast = None
        if lane is None or lane.full or self._closing or self._keeper.fencing:
            return
        if not self._health.available:
            return  # it answers that it does not serve (LOADING), or is silent: only probes knock
        while self._backlog and not self._stale:
            self._backlog.send_next(lane)
        if self._stale:
            return
        self.current = lane
        if not self._health.refusing and not self._bound:
            self.fast = lane

    def _prefer(self) -> Lane | None:
        """Stay with a lane while that keeps the calls in order and nothing large is in the way."""
        preferred = self._preferred
        alive = preferred is not None and preferred in self._slots
        if alive and preferred is not None and not preferred.busy:
            return preferred
        free = next((lane for lane in self.open_lanes if not lane.busy), None)
        if free is None and alive:
            return preferred
        return free if free is not None else next(iter(self.open_lanes), None)
