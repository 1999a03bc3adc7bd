"""The set of lanes of one client: opening, choosing, replacing and fencing them.

Calls go to one lane, so that they keep their order; the other stands by, and takes over while the
first is busy with a large value, or when it dies. Calls that cannot be sent yet wait in the
backlog, in order, ahead of newer ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from resilient_io._deadline import context_without_deadline
from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause, LoopLag, State

from .classification import Failure, connection_failure
from .dial import abort, ask_over, can_be_a_lane, client_id, dial, fence
from .lane import Lane
from .stats import Latencies
from .ticket import Handover, NoLanes, Ticket, Undeliverable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine
    from typing import Any

    from redis.asyncio.connection import AbstractConnection

    from resilient_io._policy import RetryPolicy
    from resilient_io.health import Dependency

    from .dial import Ask
    from .target import Target
    from .ticket import Entry

CLOSING = "the client was closed"
_BACKOFF = 0.05
_BACKOFF_CAP = 1.0
_PERMANENT_CAP = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSettings:
    """How much a client shares.

    Args:
        count: Connections that all callers share. One carries the calls, the others stand by for
            the time when it is busy with a large value or dies.
        in_flight: Bytes that may be in flight on a lane, each call counted as its own bytes and
            4 KiB: so at most 16,384 calls with the default. Past it callers wait.
    """

    count: int = 2
    in_flight: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if type(self.count) is not int or not 1 <= self.count <= 16:  # noqa: PLR2004
            raise ConfigurationError(
                f"count must be an int from 1 to 16, not {self.count!r}: write count=2"
            )
        if type(self.in_flight) is not int or self.in_flight < 64 * 1024:
            raise ConfigurationError(
                f"in_flight must be an int of at least 65536 (bytes), not {self.in_flight!r}"
            )


class Lanes:
    """Keeps the lanes of one client open and hands calls to the right one."""

    def __init__(
        self,
        *,
        target: Target,
        policy: RetryPolicy,
        health: Dependency,
        settings: LaneSettings,
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
        self._target = target
        self._policy = policy
        self._health = health
        self._settings = settings
        self._rng = rng
        self._names = f"{client_name or 'resilient-io'}:{rng.getrandbits(32):08x}"
        self._opened = 0
        self._bound = bound
        self._slots: list[Lane | None] = [None] * settings.count
        self._preferred: Lane | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._retiring: list[Lane] = []
        self._fences: deque[Lane] = deque()
        self._backlog: deque[Ticket] = deque()
        self._abandoned = 0
        self._closing = False
        self._retired_replies = 0
        self._retired_bytes = [0, 0]
        self.lag: LoopLag | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.time: Callable[[], float]
        self.create_future: Callable[[], asyncio.Future[object]]
        self.latencies = Latencies()
        self.undeliverable: Undeliverable | None = None
        """Why dialling fails for good (a wrong password, say), while it does."""
        self.laneless = False
        """Whether the driver's connections turned out to have no transport (fakes, say)."""
        self.session: list[str] = []
        """The commands that changed the state of a bound connection (WATCH, SELECT …)."""
        self.session_lost: list[str] = []
        """The same of a connection that was lost, until the caller has been told."""
        self.current: Lane | None = None
        """The lane that takes calls now; None while they have to wait."""
        self.fast: Lane | None = None
        """The same for calls that need no second thought; None also while writes are refused."""

    # -- what the gate uses ----------------------------------------------------------------

    def start(self) -> None:
        """Open the lanes, each kept by a task of its own, until `aclose`."""
        if self.loop is not None:
            return
        self.loop = loop = asyncio.get_running_loop()
        self.time, self.create_future = loop.time, loop.create_future
        self.lag = LoopLag.acquire()
        for slot in range(len(self._slots)):
            self._own(self._keep(slot), f"lane {slot}")

    def submit(self, ticket: Ticket) -> None:
        """Send a ticket on the current lane, or put it in the backlog."""
        lane = self.current
        if lane is not None:
            lane.send_ticket(ticket)
        elif self.laneless:
            ticket.interrupt(NoLanes())
        elif self.undeliverable is not None:
            ticket.interrupt(self.undeliverable)
        else:
            self._backlog.append(ticket)

    def another(self, lane: Lane) -> Lane | None:
        """Return an open lane beside `lane` that is not busy with a large value."""
        for other in self._slots:
            if other is not None and other is not lane and not other.busy and not other.full:
                return other
        return None

    def abandon(self, ticket: Ticket) -> None:
        """Note that nobody waits for a ticket any more; it is not sent if it was not yet."""
        ticket.future.cancel()
        if ticket.lane is None:
            self._abandoned += 1
            if self._abandoned * 2 > len(self._backlog):
                self._backlog = deque(t for t in self._backlog if not t.done())
                self._abandoned = 0

    def retire(self, lane: Lane) -> None:
        """Replace a lane: another server should take new calls, those in flight may finish."""
        if lane not in self._slots:
            return
        self._slots = [None if other is lane else other for other in self._slots]
        self._retiring.append(lane)
        for entry, data in reversed(lane.retire()):
            self._requeue(entry, data)
        self._choose()

    def refresh(self) -> None:
        """Choose the lane anew: something that the choice depends on has changed."""
        self._choose()

    @property
    def open_lanes(self) -> list[Lane]:
        """The lanes that are open now."""
        return [lane for lane in self._slots if lane is not None]

    @property
    def waiting(self) -> int:
        """Calls in the backlog."""
        return len(self._backlog) - self._abandoned

    @property
    def replies(self) -> int:
        """Replies received so far, over all lanes that ever were."""
        return self._retired_replies + sum(lane.replies for lane in self.open_lanes)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, over all lanes that ever were."""
        sent, received = self._retired_bytes
        for lane in self.open_lanes:
            sent += lane.bytes_sent
            received += lane.bytes_received
        return sent, received

    def last_byte(self) -> float:
        """Return the loop time of the last byte from any open lane, -inf without one."""
        return max((lane.last_byte for lane in self.open_lanes), default=float("-inf"))

    # -- what lanes tell -------------------------------------------------------------------

    def lane_changed(self, lane: Lane) -> None:  # noqa: ARG002 (the owner's protocol)
        """Choose anew: a lane became full, busy or free."""
        self._choose()

    def lane_lost(self, lane: Lane, unsent: list[tuple[Entry, bytes]]) -> None:
        """Move the calls that were never written to the front of the line, and fence the rest."""
        self._slots = [None if other is lane else other for other in self._slots]
        self._retiring = [other for other in self._retiring if other is not lane]
        self._retired_replies += lane.replies
        self._retired_bytes[0] += lane.bytes_sent
        self._retired_bytes[1] += lane.bytes_received
        for entry, data in reversed(unsent):
            self._requeue(entry, data)
        if not lane.fenced.done():
            self._fences.append(lane)
        if self.session:
            self.session, self.session_lost = [], self.session
            why = "the connection that held its state was lost"
            self._give_up_backlog(Undeliverable(Failure(Cause.RESET, why)))
        lost = lane.lost
        if lost is not None and not self._closing:
            if not lane.retired.done():
                self._health.failed(lost.cause, lost.detail)
            survivor = next(iter(self.open_lanes), None)
            if self._fences and survivor is not None:
                self._own(self._fence_over(survivor), "fence")
        self._choose()

    def _requeue(self, entry: Entry, data: bytes) -> None:
        if not isinstance(entry, Ticket):
            ticket = Ticket(data)
            entry.set_result(Handover(ticket))
            entry = ticket
        elif not data:
            return  # a further place of a ticket that is moved by its first
        entry.lane = None
        self._backlog.appendleft(entry)

    # -- choosing --------------------------------------------------------------------------

    def _choose(self) -> None:
        lane = self._preferred
        if lane is None or lane.lost is not None or lane.busy:
            free = [other for other in self.open_lanes if not other.busy]
            if free:
                lane = free[0]
            elif lane is None or lane.lost is not None:
                lane = next(iter(self.open_lanes), None)
            self._preferred = lane
        if self._fences or self._closing or lane is None or lane.full:
            self.current = self.fast = None
            return
        self.current = lane
        while self._backlog and not lane.full:
            ticket = self._backlog.popleft()
            if ticket.done():
                self._abandoned -= 1
            else:
                lane.send_ticket(ticket)
            if self.current is not lane:
                return  # sending changed the choice, which went on from there
        if lane.full:
            self.current = None
        unhurried = self._health.available and not self._health.refusing and not self._bound
        self.fast = self.current if unhurried else None

    # -- keeping lanes open ----------------------------------------------------------------

    async def _keep(self, slot: int) -> None:
        failures = 0
        while not self._closing:
            try:
                lane = await self._open()
            except (RedisError, OSError) as error:
                failures += 1
                self._dial_failed(slot, error)
                await self._until_worth_dialling(failures)
                continue
            if lane is None:
                return
            if self._closing:
                lane.close(Cause.CLOSED, CLOSING)
                await lane.closed
                return
            failures = 0
            self.undeliverable = None
            self._slots[slot] = lane
            self._health.part_back(f"lane {slot}")
            self._health.succeeded()
            self._choose()
            await asyncio.wait([lane.closed, lane.retired], return_when=asyncio.FIRST_COMPLETED)

    async def _open(self) -> Lane | None:
        self._opened += 1
        policy = self._policy
        name = f"{self._names}-{self._opened}"
        connection = await dial(
            self._target,
            client_name=name,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
        )
        assert self.lag is not None, "lanes are opened only after start()"  # noqa: S101
        try:
            if not can_be_a_lane(connection):
                await self._do_without(connection)
                return None
            ask = ask_over(connection, policy.connect_timeout)
            identity = await client_id(ask)
            await self._settle_fences(ask)
            return Lane(
                connection,
                owner=self,
                name=name,
                client_id=identity,
                response_timeout=policy.response_timeout,
                limit=self._settings.in_flight,
                latencies=self.latencies,
                lag=self.lag,
            )
        except BaseException:  # a connection that did not become a lane must not stay open
            abort(connection)
            raise

    async def _do_without(self, connection: AbstractConnection) -> None:
        self.laneless = True
        self._health.succeeded()
        waiting, self._backlog, self._abandoned = self._backlog, deque(), 0
        for ticket in waiting:
            ticket.interrupt(NoLanes())
        await connection.disconnect()

    def _dial_failed(self, slot: int, error: BaseException) -> None:
        failure = connection_failure(error, tls=self._target.uses_tls)
        if self.open_lanes:
            self._health.part_lost(f"lane {slot}", failure.cause, failure.detail)
            return
        self._health.failed(failure.cause, failure.detail)
        if failure.permanent:
            self.undeliverable = Undeliverable(failure, error)
            self._give_up_backlog(self.undeliverable)

    async def _until_worth_dialling(self, failures: int) -> None:
        cap = _BACKOFF_CAP if self.undeliverable is None else _PERMANENT_CAP
        await asyncio.sleep(self._rng.uniform(0.01, min(cap, _BACKOFF * 2.0 ** min(failures, 10))))
        if self._health.state is State.DOWN:
            # Only probes knock at a dependency that is down.
            await self._health.until_up()

    # -- fencing ---------------------------------------------------------------------------

    async def _settle_fences(self, ask: Ask) -> None:
        """Before anything is repeated or newly sent: what dead lanes sent must be over."""
        while self._fences:
            lane = self._fences[0]
            fenced = await fence(ask, client_id=lane.client_id, name=lane.name)
            if self._fences and self._fences[0] is lane:
                self._fences.popleft()
                lane.fenced.set_result(fenced)

    async def _fence_over(self, survivor: Lane) -> None:
        async def ask(*command: object) -> object:
            ticket = Ticket(survivor.connection.pack_command(*command)[0])
            survivor.send_ticket(ticket)
            reply = await ticket.future
            if isinstance(reply, Exception):
                raise reply
            return reply

        try:
            await self._settle_fences(ask)
        except Exception as error:  # noqa: BLE001 (a LaneLost or error reply: the successor will do it)
            self._health.failed(Cause.LANE_LOST, f"fencing a dead lane failed: {error}")
        self._choose()

    # -- the end ---------------------------------------------------------------------------

    def _give_up_backlog(self, why: Undeliverable) -> None:
        waiting, self._backlog, self._abandoned = self._backlog, deque(), 0
        for ticket in waiting:
            ticket.interrupt(why)

    def _own(self, work: Coroutine[Any, Any, None], what: str) -> None:
        # In a context of its own: a caller's deadline must not end what outlives the call.
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io {what}", context=context_without_deadline()
        )
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def aclose(self) -> None:
        """Close every lane; whatever still waits ends as closed. Doing it twice is fine."""
        self._closing = True
        lanes = [*self.open_lanes, *self._retiring]
        self._give_up_backlog(Undeliverable(Failure(Cause.CLOSED, CLOSING)))
        for lane in lanes:
            lane.close(Cause.CLOSED, CLOSING)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if lanes:
            await asyncio.wait([lane.closed for lane in lanes])
        for lane in self._fences:
            if not lane.fenced.done():
                lane.fenced.set_result(False)
        if self.lag is not None:
            self.lag.release()
            self.lag = None
        self._choose()
