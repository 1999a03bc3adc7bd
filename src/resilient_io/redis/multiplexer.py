"""The set of lanes of one client: choosing the one that takes calls, and the backlog.

Calls go to one lane, so that they keep their order; the other stands by, and takes over while the
first is busy with a large value, or when it dies. Calls that cannot be sent yet wait in the
backlog, in order, ahead of newer ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import weakref
from _thread import get_ident
from collections import deque
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

from resilient_io.health import Cause, LoopLag, State
from resilient_io.histogram import Latencies
from resilient_io.tasks import describe_task_end, log_task_death

from .commands import Effect, Route
from .connect import abort, ask_over, can_be_a_lane, dial, fence, introduce
from .connection import Handover, Lane, NoLanes, Ticket, Undeliverable
from .errors import Failure, connection_failure

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .commands import CommandSpec
    from .connect import Ask, Target
    from .connection import Entry
    from .options import ConnectionSettings

    MakeLane = Callable[[AbstractConnection, str, int | None], Lane]

_BACKOFF = 0.05
_BACKOFF_CAP = 1.0
_PERMANENT_CAP = 10.0


class Kept(Protocol):
    """What the keeper tells: the set of lanes."""

    def lane_opened(self, slot: int, lane: Lane) -> None:
        """Take a new lane into use."""

    def dial_failed(self, slot: int, failure: Failure, error: BaseException) -> None:
        """Hear why there is no lane in this slot."""

    def go_without(self) -> None:
        """Hear that this driver's connections cannot be lanes."""

    def refresh(self) -> None:
        """Choose anew: a fence was settled."""


class Keeper:
    """Opens a lane for each slot, and another when it ends, until it is closed."""

    def __init__(
        self,
        kept: Kept,
        make_lane: MakeLane,
        *,
        target: Target,
        policy: RetryPolicy,
        health: Dependency,
        rng: random.Random,
        client_name: str | None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            kept: Who hears about it.
            make_lane: Makes a lane of a connection, its name and its CLIENT ID.
            target: Where to dial, asked at every dial.
            policy: Its connect and response timeouts hold.
            health: Says whether dialling is worth it.
            rng: Jitter and names.
            client_name: The name that the caller chose for its connections, a prefix of ours.
        """
        self._kept = kept
        self._make_lane = make_lane
        self._target = target
        self._policy = policy
        self._health = health
        self._rng = rng
        self._names = f"{client_name or 'resilient-io'}:{rng.getrandbits(32):08x}"
        self._dialled = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._died: str | None = None
        self._fences: deque[Lane] = deque()
        self._worth_it = asyncio.Event()
        self._closing = False

    @property
    def fencing(self) -> bool:
        """Whether a dead lane may still write: nothing is sent until that is settled."""
        return bool(self._fences)

    def liveness_failure(self) -> str | None:
        """Say which task of ours is gone that nobody starts again; None while all is well."""
        return None if self._closing else self._died

    def start(self, slots: int) -> None:
        """Open that many lanes."""
        for slot in range(slots):
            self._own(self._keep(slot), f"lane {slot}")

    def hurry(self) -> None:
        """Dial now where it is paused: a probe has got through."""
        self._worth_it.set()
        self._worth_it.clear()

    def lost(self, lane: Lane, survivor: Lane | None) -> None:
        """Fence a dead lane whose calls were maybe applied; a successor does it otherwise."""
        if lane.fenced.done():
            return
        self._fences.append(lane)
        if survivor is not None and not self._closing:
            self._own(self._fence_over(survivor), "fence")

    async def aclose(self) -> None:
        """End every task; doing it twice is fine."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        while self._fences:
            self._fences.popleft().fenced.set_result(False)

    # -- one lane --------------------------------------------------------------------------

    async def _keep(self, slot: int) -> None:
        failures = 0
        while not self._closing:
            try:
                lane = await self._open()
            except (RedisError, OSError) as error:
                failures += 1
                failure = connection_failure(error, tls=self._target.uses_tls)
                self._kept.dial_failed(slot, failure, error)
                await self._until_worth_dialling(failures, permanent=failure.permanent)
                continue
            if lane is None:
                self._kept.go_without()
                return
            failures = 0
            self._kept.lane_opened(slot, lane)
            await asyncio.wait([lane.closed, lane.retired], return_when=asyncio.FIRST_COMPLETED)

    async def _open(self) -> Lane | None:
        self._dialled += 1
        policy = self._policy
        name = f"{self._names}-{self._dialled}"
        connection = await dial(
            self._target,
            client_name=None,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
        )
        lane = None
        try:
            if can_be_a_lane(connection):
                ask = ask_over(connection, policy.connect_timeout)
                identity = await introduce(ask, name)
                await self._settle_fences(ask)
                lane = self._make_lane(connection, name, identity)
        finally:
            if lane is None:
                # A connection that did not become a lane must not stay open.
                abort(connection)
        return lane

    async def _until_worth_dialling(self, failures: int, *, permanent: bool) -> None:
        cap = _PERMANENT_CAP if permanent else _BACKOFF_CAP
        pause = self._rng.uniform(0.01, min(cap, _BACKOFF * 2.0 ** min(failures, 10)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._worth_it.wait()
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
                self._health.note("lane fenced" if fenced else "lane could not be fenced")
                lane.fenced.set_result(fenced)

    async def _fence_over(self, survivor: Lane) -> None:
        try:
            await self._settle_fences(survivor.ask)
        except (RedisError, OSError):
            return  # the survivor died, too, which it has reported: the next lane does it
        self._kept.refresh()

    def _own(self, work: Coroutine[Any, Any, None], what: str) -> None:
        # In an empty context: neither the deadline nor the span of the call that happens to come
        # first is that of what outlives it.
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io {what}", context=Context()
        )
        self._tasks.append(task)
        task.add_done_callback(functools.partial(self._ended, what))

    def _ended(self, what: str, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        log_task_death(task)
        if task.cancelled() or task.exception() is not None:
            how = describe_task_end(task)
            if how is not None:
                self._died = f"the task of {what} is gone: {how}"


class Backlog:
    """A line of tickets. Its length is bounded by the callers who wait: each has one place."""

    def __init__(self) -> None:
        """Start empty."""
        self._tickets: deque[Ticket] = deque()
        self._abandoned = 0

    def __len__(self) -> int:
        """Count the places, abandoned ones included."""
        return len(self._tickets)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return sum(not ticket.done() for ticket in self._tickets)

    def append(self, ticket: Ticket) -> None:
        """Put a new call at the end."""
        self._tickets.append(ticket)

    def put_back(self, unsent: list[tuple[Entry, bytes]]) -> None:
        """Put calls that a lane did not write to the front, in their order.

        Those without a ticket get one: they wait longer than usual.
        """
        for entry, data in reversed(unsent):
            if not isinstance(entry, Ticket):
                ticket = Ticket(data)
                entry.set_result(Handover(ticket))
            elif data:
                ticket = entry
            else:
                continue  # a further place of a ticket that is moved by its first
            ticket.lane = None
            self._tickets.appendleft(ticket)

    def note_abandoned(self) -> None:
        """Note that somebody went away; places are cleared when half of them are abandoned."""
        self._abandoned += 1
        if self._abandoned * 2 > len(self._tickets):
            self._tickets = deque(ticket for ticket in self._tickets if not ticket.done())
            self._abandoned = 0

    def send_next(self, lane: Lane) -> None:
        """Send the first call on `lane`, unless its caller went away."""
        ticket = self._tickets.popleft()
        if not ticket.done():
            lane.send_ticket(ticket)

    def give_up(self, why: Exception) -> None:
        """Tell everyone that waiting is of no use."""
        waiting, self._tickets, self._abandoned = self._tickets, deque(), 0
        for ticket in waiting:
            ticket.interrupt(why)


_DOUBT = 0.5
"""Seconds that callers wait at most for health to confirm that dialling fails for good."""


class Prospects:
    """What the latest failed dial means for the calls that wait for a connection.

    A failure for good (a wrong password, say) ends their waiting, but health is to know of it
    before they do. When health gets better, they may hope again.
    """

    def __init__(self, health: Dependency, give_up: Callable[[Undeliverable], None]) -> None:
        """Begin without a failure.

        Args:
            health: Asked whether it knows of the failure, or got better since.
            give_up: Called when waiting is of no use any more.
        """
        self._health = health
        self._give_up = give_up
        self._latest: Failure | None = None
        self._failed_at = 0.0
        self._doubt: Undeliverable | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.undeliverable: Undeliverable | None = None
        """Why dialling fails for good, once health agrees or had its time to."""

    @property
    def detail(self) -> str:
        """Why the latest dial failed, in words; empty without one."""
        return self._latest.detail if self._latest is not None else ""

    @property
    def better(self) -> bool:
        """Whether health has become better since dialling failed."""
        health = self._health
        return (
            self._latest is not None and health.state.answering and health.since > self._failed_at
        )

    def failed(self, failure: Failure, error: BaseException) -> None:
        """Take a failed dial."""
        loop = asyncio.get_running_loop()
        self._latest, self._failed_at = failure, loop.time()
        if failure.permanent and self.undeliverable is None:
            self._doubt = Undeliverable(failure, error)
            self._stop_timer()
            self._timer = loop.call_later(_DOUBT, self.conclude)

    def conclude(self) -> None:
        """Give up, if dialling failed for good and there was no success since."""
        if self._doubt is not None:
            self.undeliverable = self._doubt
            self._give_up(self._doubt)

    def brighten(self) -> None:
        """Forget what failed: a connection was made, or health got better."""
        self.undeliverable = self._doubt = None
        self._stop_timer()

    def succeeded(self) -> None:
        """Take a successful dial."""
        self._latest = None
        self.brighten()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_ENDS_TRANSACTION = ("EXEC", "DISCARD", "UNWATCH")
_TRANSACTION = ("WATCH", "MULTI")


class Session:
    """Remembers it, so that nothing goes on silently on a connection that does not."""

    def __init__(self) -> None:
        """Start with a connection on which nothing is set."""
        self._set: list[str] = []
        self.lost: list[str] = []
        """What a lost connection held, until the caller has been told."""

    def __bool__(self) -> bool:
        """Tell whether anything is set on the connection."""
        return bool(self._set)

    def note(self, spec: CommandSpec) -> None:
        """Note a command that is about to be sent."""
        if spec.name in _ENDS_TRANSACTION:
            self._set = [name for name in self._set if name not in _TRANSACTION]
        elif (
            spec.route is Route.BOUND
            and spec.effect is not Effect.READ
            and spec.name not in self._set
        ):
            self._set.append(spec.name)

    def lose(self) -> None:
        """Note that the connection is gone."""
        self._set, self.lost = [], self._set

    def take_loss(self) -> str:
        """Say what was lost, once, as the end of a sentence."""
        lost, self.lost = self.lost, []
        return f", and with it what {', '.join(lost)} had set: begin again"


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


_log = logging.getLogger("resilient_io.redis")


class Logged(Protocol):
    """Who has lanes that are logged in."""

    lanes: Lanes
    health: Dependency


def follow_credentials(pool: ConnectionPool, engine: Logged) -> None:
    """Have every lane send AUTH when a streaming provider hands out new credentials.

    A refused AUTH leaves the connection logged in as before; it is logged. Connections made later
    ask the provider themselves. A provider tells one listener only, so the pool that it told
    before is told by us.

    Args:
        pool: The client's pool; its settings name the provider, if there is one.
        engine: Whose lanes log in; it is not kept alive for that.
    """
    provider = pool.connection_kwargs.get("credential_provider")
    if not isinstance(provider, StreamingCredentialProvider):
        return
    followed = weakref.ref(engine)

    async def rotate(token: Any) -> None:
        await pool.re_auth_callback(token)
        living = followed()
        if living is None:
            return
        for lane in living.lanes.open_lanes:
            try:
                await lane.ask("AUTH", token.try_get("oid"), token.get_value())
            except (RedisError, OSError) as error:
                _log.warning(
                    "%s: rotated credentials were refused, the old login stays: %s",
                    living.health.name,
                    error,
                    extra={"event": "credentials_refused", "dependency": living.health.name},
                )

    # Typed for a plain function; redis-py 8.1 itself registers a coroutine function here.
    provider.on_next(rotate)  # type: ignore[arg-type]
