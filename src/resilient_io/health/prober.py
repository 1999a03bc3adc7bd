"""When a dependency is probed, and what the results mean."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import types
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from resilient_io.binding import PerLoop
from resilient_io.link import describe_silence

from .alarm import Alarm
from .loop_lag import LoopLag
from .machine import RISE_SPACING
from .states import Cause, ProbeDegraded, ProbeFailed, State, clean_detail

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence

    from resilient_io.link import LinkState

    from .machine import Machine
    from .states import Change
    from .topology import Topology

# Shortest pause between probes on new connections that the failures of clients request.
_SUSPICION_SPACING = 0.02
# Seconds below which no time is left: a rounding error would never elapse on a virtual loop.
_RESOLUTION = 1e-6
_EARLY = 0.2  # part of the interval by which a probe may be early; see `Alarm`
_ACKNOWLEDGED = 0.1  # seconds; how long before a probe its host may have been heard

_UP = State.UP  # a member of an enumeration takes longer to look up than a global

_log = logging.getLogger("resilient_io.health")


def never() -> float:
    """Return minus infinity, the time of an event that has not happened."""
    return -math.inf


@dataclass(slots=True, eq=False)
class Client:
    """An attached client: how to probe, when it last received anything, and its connections.

    `queued` is for how many seconds its probes have waited for their turn to connect, and
    `keep_alive` is called while it is idle and another client is probed instead, or is busy.
    `topology` returns which servers it knows; None for a single server.
    `replied_elsewhere` is when its server answered others, if that makes a probe unnecessary.
    """

    probe: Callable[[bool], Awaitable[float]]
    last_reply: Callable[[], float]
    links: Callable[[], Sequence[LinkState]] = tuple
    queued: Callable[[], float] = float
    keep_alive: Callable[[], object] = tuple
    topology: Callable[[], Topology] | None = None
    replied_elsewhere: Callable[[], float] = never


class _Probe:
    """A running probe, which can be ended early, as by `asyncio.timeout`.

    Args:
        task: The task in which it runs.
        client: Whose probe it is.
        suspicious: Whether it uses a new connection, because a failure is suspected.
        began: The loop time at which it began.
        lost: How much time had been lost by then that is not the dependency's.
    """

    __slots__ = (
        "began", "client", "ending", "expired", "lost", "silence", "suspicious", "task",
    )  # fmt: skip

    def __init__(
        self,
        task: asyncio.Task[None],
        client: Client,
        suspicious: bool,  # noqa: FBT001 - keywords take time, here once for each probe
        began: float,
        lost: float,
    ) -> None:
        self.task = task
        self.client = client
        self.suspicious = suspicious
        self.began = began
        self.lost = lost
        self.silence = ""  # what was known about the links when its time was over
        self.ending: asyncio.Handle | None = None
        """Ends it in this iteration of the loop."""
        self.expired = False
        """Whether it was ended."""

    def end(self) -> None:
        """End the probe in the next iteration of the loop. Idempotent."""
        if self.ending is None and not self.expired:
            self.ending = self.task.get_loop().call_soon(self._expire)

    def leave(self) -> bool:
        """Return whether a CancelledError of the probe is due to `end` alone."""
        if self.ending is not None:
            self.ending.cancel()
            self.ending = None
        return self.expired and self.task.uncancel() <= 0

    def _expire(self) -> None:
        self.ending, self.expired = None, True
        self.task.cancel()


_runners: PerLoop[_Runner] = PerLoop()


class _Runner:
    """Runs the probes that are due in one event loop, many of them in one task.

    To wake a task for each probe takes longer than a probe that ends without waiting. One that
    waits keeps the task, so that it can be cancelled, and the others get another one.
    """

    __slots__ = ("_due", "_loop", "_started", "_users", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Prober] = deque()
        self._started = False
        self._users = 0
        self.task: asyncio.Task[None] | None = None
        """The latest task."""

    @classmethod
    def acquire(cls, loop: asyncio.AbstractEventLoop) -> _Runner:
        """Return the runner of an event loop. Call `release()` once for each."""
        return _runners.of(loop, partial(cls, loop)).use()

    def use(self) -> Self:
        """Count another user."""
        self._users += 1
        return self

    def release(self) -> None:
        """Release the runner. The last release lets the loop be forgotten."""
        self._users -= 1
        if not self._users:
            _runners.pop(self._loop, None)

    def add(self, prober: Prober) -> None:
        """Queue a prober for the next iteration of the loop, or for after the current one."""
        self._due.append(prober)
        if not self._started:
            self._start()

    def _start(self) -> None:
        self._started = True
        # An empty context: the task outlives the call that starts it, and the call's deadline.
        self.task = self._loop.create_task(
            self._run(), name="resilient-io probes", context=contextvars.Context()
        )

    async def _run(self) -> None:
        await self._run_due()

    @types.coroutine
    def _run_due(self) -> Generator[Any, None, None]:
        task, due = asyncio.current_task(self._loop), self._due
        assert task is not None, "a task runs this"  # noqa: S101
        shared = True
        try:
            while due and shared and not task.cancelling():
                prober = due.popleft()
                probe = prober.begin(task)
                if probe is None:
                    continue
                try:
                    work = probe.client.probe(probe.suspicious)
                    if type(work) is not types.CoroutineType:
                        work = _await(work)
                    try:
                        awaited = work.send(None)
                    except StopIteration as end:
                        latency = end.value
                    else:
                        shared = False
                        self._hand_over()
                        prober.limit(probe)
                        latency = yield from _Rest(work, awaited)
                except (Exception, asyncio.CancelledError) as error:
                    # In a closed loop, a probe ends because it is collected.
                    if self._loop.is_closed() or not prober.failed(probe, error):
                        raise
                else:
                    prober.answered(probe, latency)
        finally:
            if shared:
                self._hand_over()

    def _hand_over(self) -> None:
        self._started = False
        if self._due:
            self._start()


async def _await(work: Awaitable[float]) -> float:
    return await work


class _Rest:
    """The rest of a coroutine that awaits something, as if it had not begun to."""

    __slots__ = ("_awaited", "_work", "close", "throw")

    def __init__(self, work: Coroutine[Any, Any, float], awaited: object) -> None:
        self._work = work
        self._awaited = [awaited]
        self.throw, self.close = work.throw, work.close

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._awaited.pop() if self._awaited else self._work.send(None)


class Prober:
    """Probes a dependency while at least one client is attached to it."""

    # fmt: off
    __slots__ = (
        "_alarm", "_clients", "_distrusts", "_early", "_ended", "_interval", "_logged_bug",
        "_long_pauses", "_machine", "_note", "_overruled", "_pause", "_preempted", "_publish",
        "_queued", "_resolved", "_rng", "_runner", "_running", "_settings", "_suspected",
        "_suspicion_ended", "_time", "lag",
    )
    # fmt: on

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        publish: Callable[[Change | None], None],
        note: Callable[..., None],
    ) -> None:
        self._machine = machine
        self._settings = machine.settings
        self._interval = machine.settings.interval
        self._early = _EARLY * self._interval
        self._rng = rng
        self._publish = publish
        self._note = note
        self._clients: tuple[Client, ...] = ()
        self.lag: LoopLag | None = None
        self._time: Callable[[], float] = never
        self._alarm: Alarm | None = None  # for the pauses and for the probes
        self._runner: _Runner | None = None
        self._queued = False  # whether it waits for its turn
        self._running: _Probe | None = None
        self._logged_bug = False
        self._resolved: asyncio.Future[None] | None = None  # done when the suspicion is resolved
        self._reset()

    def _reset(self) -> None:
        self._suspected = False
        self._preempted = False
        self._distrusts = False  # whether replies do not postpone the next probe
        self._overruled = -math.inf  # when replies to clients last overruled a failed probe
        self._ended = -math.inf  # when the latest probe ended
        self._suspicion_ended = -math.inf  # when the latest probe on a new connection ended
        self._pause = 0.0  # after the latest probe, while DOWN
        self._long_pauses = 0

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients, in the order in which they were attached."""
        return self._clients

    @property
    def running(self) -> bool:
        """Whether a client is attached, and so probes are made."""
        return bool(self._clients)

    def add(self, client: Client) -> None:
        """Attach a client. With the first one, probing begins."""
        self._clients = (*self._clients, client)
        if len(self._clients) == 1:
            loop = asyncio.get_running_loop()
            self.lag = LoopLag.acquire()
            self._time, self._alarm, self._runner = (
                loop.time,
                Alarm(loop, self._ring),
                _Runner.acquire(loop),
            )
            self._reset()
            self._wake()

    def remove(self, client: Client) -> asyncio.Task[None] | None:
        """Detach a client. Return the cancelled task that may still run its probe, or None."""
        if client not in self._clients:
            return None
        self._clients = tuple(other for other in self._clients if other is not client)
        task, probe = None, self._running
        if self._clients and (probe is None or probe.client is not client):
            return None
        if probe is not None:
            task = probe.task
            task.cancel()
            # Another client's suspicion is not resolved by a probe that is cancelled.
            self._suspected = self._suspected or probe.suspicious
            self._running = None
        elif self._queued and self._runner is not None:
            task = self._runner.task
        self._resolve_suspicion()
        if self._clients:
            self._wake()
        else:
            self._stop()
        return task

    def abandon(self) -> None:
        """Forget the clients and the task of a closed loop."""
        self._clients = ()
        self._running = self._resolved = None
        self._queued = False
        self._stop()

    def _stop(self) -> None:
        if self._alarm is not None:
            self._alarm.stop()
            self._alarm = None
        if self.lag is not None:
            self.lag.release()
            self.lag = None
        if self._runner is not None:
            self._runner.release()
            self._runner = None

    def suspect(self) -> None:
        """Probe immediately on a new connection: a client has seen a failure."""
        if self._machine.state is State.DOWN:
            return
        self._suspected = True
        probe = self._running
        if probe is None:
            self._wake()
        elif not (probe.expired or probe.suspicious or self._preempted):
            self._preempted = True  # if it expired, the next probe checks the suspicion
            probe.end()

    def distrust_replies(self) -> None:
        """Probe when the interval has passed, also if replies arrive: they may be refusals."""
        self._distrusts = True

    def take_unreachable(self, detail: str, since: float) -> None:
        """Take the finding of a client that nothing was acknowledged since `since`.

        The client has tried a new connection, too, so this counts as a failed probe on one. If the
        dependency has answered since then, only one path is gone, and a probe decides.
        """
        if self._machine.state is State.DOWN:
            return
        if not self._clients or self._last_reply() > since:
            self.suspect()
            return
        self._suspected = False
        now = self._ended = self._suspicion_ended = asyncio.get_running_loop().time()
        change = self._machine.probe_failed(now, Cause.UNREACHABLE, detail, definite=True)
        self._pause = self._draw_pause()
        probe = self._running
        if probe is None:
            self._wake()
        elif not (probe.expired or self._preempted):
            self._preempted = True
            probe.end()
        self._publish(change)
        self._resolve_suspicion()

    def suspicion_resolved(self) -> asyncio.Future[None] | None:
        """Return a future that is done when the suspicion is resolved; None if there is none."""
        pending = self._suspected or (self._running is not None and self._running.suspicious)
        if not pending or not self._clients or self._machine.state is State.DOWN:
            return None
        if self._resolved is None:
            self._resolved = asyncio.get_running_loop().create_future()
        return self._resolved

    def _resolve_suspicion(self) -> None:
        if self._resolved is not None:
            self._resolved.set_result(None)
            self._resolved = None

    def _wake(self) -> None:
        """Take a turn soon."""
        if self._runner is not None and self._clients and not self._queued:
            self._queued = True
            self._runner.add(self)

    def begin(self, task: asyncio.Task[None]) -> _Probe | None:
        """Return a probe that is due, to be run in `task`. Otherwise, set the alarm for the next.

        The runner must report how the probe ended, and call `limit` if it does not end at once.
        """
        self._queued = False
        machine, lag, clients = self._machine, self.lag, self._clients
        if not clients or lag is None or self._running is not None:
            return None  # all clients were detached, or an earlier probe has not ended
        now, client = self._time(), clients[0]
        when, early = self._next()
        due = when - early <= now
        if len(clients) > 1 and machine.state.answering:
            self._keep_alive(client if due else None)
        if not due:
            self._ring_at(when, early)
            return None
        suspicious = self._suspected or (machine.state is not _UP and not machine.state.answering)
        self._suspected = self._preempted = self._distrusts = False
        lost = lag.stalled_at(now) + client.queued()
        self._running = _Probe(task, client, suspicious, now, lost)
        return self._running

    def limit(self, probe: _Probe) -> None:
        """Limit the time of a probe, which waits for something."""
        probe.task.set_name(f"resilient-io probe {self._machine.name}")
        if self._running is probe:
            # Usually this is the time of the next probe, too.
            self._ring_at(probe.began + self._settings.timeout, self._early)

    def _ring_at(self, when: float, early: float) -> None:
        if self._alarm is not None:
            self._alarm.set(when, early)

    def _keep_alive(self, probed: Client | None) -> None:
        """Have the idle clients use their connections, which a load balancer may forget.

        The probes use those of one client only, and none while replies to any client arrive.
        """
        quiet = asyncio.get_running_loop().time() - self._settings.interval + self._early
        for client in self._clients:
            if client is not probed and client.last_reply() <= quiet:
                client.keep_alive()

    def _next(self) -> tuple[float, float]:
        """Return when the next probe is due, and by how many seconds it may be early."""
        state = self._machine.state
        if state is _UP and not self._suspected and not self._distrusts:
            elsewhere = self._clients[0].replied_elsewhere()
            return max(self._ended, self._last_reply(), elsewhere) + self._interval, self._early
        if state is State.DOWN:
            return self._ended + self._pause, _RESOLUTION
        if self._suspected:
            return self._suspicion_ended + _SUSPICION_SPACING, _RESOLUTION
        if state is State.UNKNOWN:
            return self._ended, _RESOLUTION
        return self._ended + self._interval, self._early

    def _ring(self) -> None:
        if self._running is None:
            when, early = self._next()
            if len(self._clients) == 1 and when - early > self._time():
                self._ring_at(when, early)  # replies have arrived since the alarm was set
            else:
                self._wake()
        else:
            self._check_time(self._running)

    def _last_reply(self) -> float:
        if len(self._clients) == 1:
            return self._clients[0].last_reply()
        return max((client.last_reply() for client in self._clients), default=-math.inf)

    def answered(self, probe: _Probe, latency: float) -> None:
        """Take the good result of a probe."""
        if probe.ending or probe.expired:
            probe.leave()
        alarm = self._alarm
        if self._running is not probe or alarm is None:
            return  # its client was detached
        self._running = None
        machine, now = self._machine, self._time()
        change = machine.probe_ok(now, latency)
        suspected = probe.suspicious or self._suspected or self._preempted
        if suspected or change is not None or machine.state is not _UP:
            self._end(probe, now, change, None)
        else:
            self._ended = now
            alarm.set(now + self._interval, self._early)

    def failed(self, probe: _Probe, error: BaseException) -> bool:
        """Take the exception of a probe. Return whether it was one; it may be a cancellation."""
        ended = probe.leave()
        detached = self._running is not probe
        if not detached:
            self._running = None
        machine, now = self._machine, self._time()
        failure: ProbeFailed | None = None
        change: Change | None = None
        if isinstance(error, ProbeFailed):
            failure = error
        elif not isinstance(error, ProbeDegraded):
            failure = self._explain(error, probe, ended=ended)
            if failure is None:
                return False
        elif not detached:
            detail = clean_detail(error.detail)
            change = machine.probe_degraded(now, error.cause, detail, error.latency)
        if not detached:
            self._end(probe, now, change, failure)
        return True

    def _end(
        self, probe: _Probe, now: float, change: Change | None, failure: ProbeFailed | None
    ) -> None:
        """Publish a change, and plan the next probe."""
        machine = self._machine
        if not self._preempted:  # otherwise without a result: the probe of the suspicion follows
            self._ended = now
            if probe.suspicious:
                self._suspicion_ended = now
            if failure is not None:
                failure.detail = clean_detail(failure.detail)
                self._note("probe failed", cause=failure.cause.value, detail=failure.detail)
                change = self._take_failure(failure, probe.began, suspicious=probe.suspicious)
            if machine.state is State.DOWN:
                self._pause = self._draw_pause()
            else:
                self._long_pauses = 0
            self._publish(change)
            if probe.suspicious:
                self._resolve_suspicion()
        self._wake()

    def _take_failure(
        self, failure: ProbeFailed, began: float, *, suspicious: bool
    ) -> Change | None:
        machine = self._machine
        now = self._ended
        if self._last_reply() > began and not failure.answered:
            # It answered clients during the probe. Probe again once: the reply may have waited in
            # the socket of a server that is gone.
            self._suspected = now - self._overruled >= self._settings.interval
            self._overruled = now
            return machine.probe_overruled(now)
        if failure.definite and not suspicious:
            # Only the probe's connection died for certain: probe again on a new one.
            self._suspected = True
            return None
        change = machine.probe_failed(
            now,
            failure.cause,
            failure.detail,
            definite=failure.definite or failure.cause.permanent,
            answered=failure.answered,
        )
        self._suspected = machine.contact is not State.DOWN
        return change

    def _draw_pause(self) -> float:
        """Return the seconds until the next reconnect probe, if the dependency is DOWN."""
        machine, settings = self._machine, self._settings
        if machine.rising:
            return RISE_SPACING
        cause = machine.cause
        outage = self._ended - machine.since
        if outage < settings.short_outage and not (cause is not None and cause.permanent):
            self._long_pauses = 0
            return self._rng.uniform(0.55, 1.0) * settings.reconnect_interval
        self._long_pauses = min(self._long_pauses + 1, 32)
        bound = min(
            settings.reconnect_interval_cap, settings.reconnect_interval * 2.0**self._long_pauses
        )
        return self._rng.uniform(0.5 * settings.reconnect_interval, bound)

    def _explain(self, error: BaseException, probe: _Probe, *, ended: bool) -> ProbeFailed | None:
        """Return the failure that an exception of a probe means; `ended` if it was ended early."""
        if isinstance(error, TimeoutError) or (ended and isinstance(error, asyncio.CancelledError)):
            detail = f"no answer within {self._settings.timeout:g} s"
            detail += f": {probe.silence}" if probe.silence else ""
            return ProbeFailed(Cause.TIMED_OUT, detail)
        if isinstance(error, asyncio.CancelledError):
            if probe.task.cancelling():
                return None
            return ProbeFailed(Cause.OTHER, "the probe cancelled itself")
        # A bug in a probe must not end the probing.
        if not self._logged_bug:
            self._logged_bug = True
            _log.error(
                "%s: the probe raised an unexpected exception; it counts as failed",
                self._machine.name,
                exc_info=error,
                extra={"event": "probe_raised", "dependency": self._machine.name},
            )
        return ProbeFailed(Cause.OTHER, f"the probe raised {type(error).__name__}")

    def _check_time(self, probe: _Probe) -> None:
        """End the running probe if its time is over."""
        loop, lag, client = asyncio.get_running_loop(), self.lag, probe.client
        if self._alarm is None or lag is None:
            return
        # Time during which our own loop was blocked is not the dependency's, nor is the time in
        # which the probe waits for its turn to connect.
        lost = lag.stalled + client.queued() - probe.lost
        left = self._settings.timeout - (loop.time() - probe.began - lost)
        if left > _RESOLUTION:
            self._alarm.set(loop.time() + left, _RESOLUTION)
        elif not probe.expired:  # a suspicion may have ended this probe already
            # The first request of a probe is acknowledged soon after the probe began.
            within = loop.time() - probe.began + _ACKNOWLEDGED
            probe.silence = describe_silence(client.links(), within=within)
            probe.end()
