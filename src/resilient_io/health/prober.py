"""The probe task of a dependency: when it probes, and what the results mean."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.link import describe_silence

from .alarm import Alarm
from .loop_lag import LoopLag
from .machine import RISE_SPACING
from .states import Cause, ProbeDegraded, ProbeFailed, State, clean_detail

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.link import LinkState

    from .machine import Machine
    from .states import Change
    from .topology import Topology

# Shortest pause between probes on new connections that the failures of clients request.
_SUSPICION_SPACING = 0.02
# Seconds below which no time is left: a rounding error would never elapse on a virtual loop.
_RESOLUTION = 1e-6
_EARLY = 0.05  # part of the interval by which a probe may be early; see `Alarm`
_ACKNOWLEDGED = 0.1  # seconds; how long before a probe its host may have been heard

_log = logging.getLogger("resilient_io.health")


def never() -> float:
    """Return the time of what has not happened."""
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


class _Scope:
    """Ends the running probe early, as `asyncio.timeout` does, but one serves all of a task."""

    __slots__ = ("_before", "_handle", "_loop", "_task", "expired")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        self._loop = loop
        self._task = task
        self._before = 0
        self._handle: asyncio.Handle | None = None
        self.expired = False
        """Whether the probe was ended."""

    def enter(self) -> None:
        """Begin with the next probe."""
        self._before, self.expired = self._task.cancelling(), False

    def end(self) -> None:
        """End the probe in the next iteration of the loop. Idempotent."""
        if self._handle is None and not self.expired:
            self._handle = self._loop.call_soon(self._expire)

    def leave(self) -> bool:
        """Return whether a CancelledError of the probe is due to `end` alone."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        return self.expired and self._task.uncancel() <= self._before

    def _expire(self) -> None:
        self._handle, self.expired = None, True
        self._task.cancel()


class Prober:
    """Owns the probe task, which exists while at least one client is attached."""

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        publish: Callable[[Change | None], None],
        note: Callable[..., None],
    ) -> None:
        self._machine = machine
        self._settings = machine.settings
        self._early = _EARLY * machine.settings.interval
        self._rng = rng
        self._publish = publish
        self._note = note
        self._clients: list[Client] = []
        self._task: asyncio.Task[None] | None = None
        self.lag: LoopLag | None = None
        self._time: Callable[[], float] = never
        self._alarm: Alarm | None = None  # of the task, for its pauses and for its probes
        self._sleeper: asyncio.Future[bool] | None = None
        self._scope: _Scope | None = None  # around the running probe
        self._limit = (0.0, 0.0)  # when it began, and how much time had been lost by then
        self._silence = ""  # what was known about the links when its time was over
        self._probed: Client | None = None  # whose probe is running
        self._probing_suspicion = False
        self._logged_bug = False
        self._resolved: asyncio.Future[None] | None = None  # done when the suspicion is resolved
        self._reset()

    def _reset(self) -> None:
        self._suspected = False
        self._preempted = False
        self._overruled = -math.inf  # when replies to clients last overruled a failed probe
        self._ended = -math.inf  # when the latest probe ended
        self._suspicion_ended = -math.inf  # when the latest probe on a new connection ended
        self._pause = 0.0  # after the latest probe, while DOWN
        self._long_pauses = 0

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients, in the order in which they were attached."""
        return tuple(self._clients)

    @property
    def running(self) -> bool:
        """Whether a client is attached, and so a probe task runs."""
        return bool(self._clients)

    def add(self, client: Client) -> None:
        """Attach a client. The first one starts the task."""
        self._clients.append(client)
        if self._task is None:
            self.lag = LoopLag.acquire()
            self._reset()
            self._start()

    def remove(self, client: Client) -> asyncio.Task[None] | None:
        """Detach a client. Return the cancelled task that may still run its probe, or None."""
        if client not in self._clients:
            return None
        self._clients.remove(client)
        task = self._task
        if task is None or (self._clients and self._probed is not client):
            return None
        task.cancel()
        self._task = None
        # Another client's suspicion is not resolved by a probe that is cancelled.
        self._suspected = self._suspected or (self._scope is not None and self._probing_suspicion)
        self._resolve_suspicion()
        if self._clients:
            self._start()
        else:
            self._release_lag()
        return task

    def abandon(self) -> None:
        """Forget the clients and the task of a closed loop."""
        self._clients.clear()
        self._task = self._sleeper = self._scope = self._probed = self._resolved = None
        self._alarm = None
        self._release_lag()

    def _release_lag(self) -> None:
        if self.lag is not None:
            self.lag.release()
            self.lag = None

    def suspect(self) -> None:
        """Probe immediately on a new connection: a client has seen a failure."""
        if self._machine.state is State.DOWN:
            return
        self._suspected = True
        scope = self._scope
        if scope is not None and scope.expired:
            return  # the running probe is failing; the next one checks the suspicion
        if scope is not None and not self._probing_suspicion and not self._preempted:
            self._preempted = True
            scope.end()
        elif self._sleeper is not None:
            self._wake(self._sleeper)

    def take_unreachable(self, detail: str, since: float) -> None:
        """Take the finding of a client that nothing was acknowledged since `since`.

        The client has tried a new connection, too, so this counts as a failed probe on one. If the
        dependency has answered since then, only one path is gone, and a probe decides.
        """
        if self._machine.state is State.DOWN:
            return
        if self._task is None or self._last_reply() > since:
            self.suspect()
            return
        self._suspected = False
        now = self._ended = self._suspicion_ended = asyncio.get_running_loop().time()
        change = self._machine.probe_failed(now, Cause.UNREACHABLE, detail, definite=True)
        self._pause = self._draw_pause()
        scope = self._scope
        if scope is not None and not scope.expired and not self._preempted:
            self._preempted = True
            scope.end()
        elif self._sleeper is not None:
            self._wake(self._sleeper)
        self._publish(change)
        self._resolve_suspicion()

    def suspicion_resolved(self) -> asyncio.Future[None] | None:
        """Return a future that is done when the suspicion is resolved; None if there is none."""
        pending = self._suspected or (self._scope is not None and self._probing_suspicion)
        if not pending or self._task is None or self._machine.state is State.DOWN:
            return None
        if self._resolved is None:
            self._resolved = asyncio.get_running_loop().create_future()
        return self._resolved

    def _resolve_suspicion(self) -> None:
        if self._resolved is not None:
            self._resolved.set_result(None)
            self._resolved = None

    def _start(self) -> None:
        # An empty context: the task outlives the call that starts it, and the call's deadline.
        self._task = asyncio.get_running_loop().create_task(
            self._run(),
            name=f"resilient-io probe {self._machine.name}",
            context=contextvars.Context(),
        )

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "a task runs this"  # noqa: S101
        self._time = loop.time
        alarm = self._alarm = Alarm(loop, self._ring)
        scope = _Scope(loop, task)
        machine, due = self._machine, False
        when, early = 0.0, self._early
        try:
            while True:
                if not due or self._suspected or machine.state is not State.UP:
                    when, early = self._next()
                    due = when - early <= loop.time()
                    if len(self._clients) > 1 and machine.state.answering:
                        self._keep_alive(self._clients[0] if due else None)
                if due:
                    due = False
                    if not await self._probe(self._clients[0], alarm, scope):
                        continue
                    when, early = self._ended + self._settings.interval, self._early
                sleeper = self._sleeper = loop.create_future()
                alarm.set(when, early)
                try:
                    due = await sleeper
                finally:
                    if self._sleeper is sleeper:
                        self._sleeper = None
        finally:
            alarm.stop()

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
        if state is State.DOWN:
            return self._ended + self._pause, _RESOLUTION
        if self._suspected:
            return self._suspicion_ended + _SUSPICION_SPACING, _RESOLUTION
        if state is State.UNKNOWN:
            return self._ended, _RESOLUTION
        last = self._ended
        if state is State.UP:
            last = max(last, self._last_reply(), self._clients[0].replied_elsewhere())
        return last + self._settings.interval, self._early

    def _ring(self) -> None:
        if self._scope is not None:
            self._check_time(self._scope)
            return
        sleeper, alarm = self._sleeper, self._alarm
        if sleeper is None or alarm is None:
            return
        if len(self._clients) == 1:
            due, early = self._next()
            if due - early > self._time():
                alarm.set(due, early)  # replies have arrived since it was set
                return
        # Of clients that ring together, one may ping for the others: they look again.
        alone = len(self._clients) == 1 and self._clients[0].replied_elsewhere is never
        self._wake(sleeper, due=alone)

    def _wake(self, sleeper: asyncio.Future[bool], *, due: bool = False) -> None:
        """End the pause before the next probe, of which it may be known that it is `due`."""
        if not sleeper.done():
            sleeper.set_result(due)

    def _last_reply(self) -> float:
        if len(self._clients) == 1:
            return self._clients[0].last_reply()
        return max((client.last_reply() for client in self._clients), default=-math.inf)

    async def _probe(self, client: Client, alarm: Alarm, scope: _Scope) -> bool:
        """Probe, and take the result. Return whether it is UP, and nothing has changed."""
        machine, time = self._machine, self._time
        suspicious = self._suspected or not machine.state.answering
        self._suspected = self._preempted = False
        began = time()
        failure: ProbeFailed | None = None
        change: Change | None = None
        # Usually this is the time of the next probe, too.
        alarm.set(began + self._settings.timeout, self._early)
        try:
            latency = await self._run_probe(client, began, scope, suspicious=suspicious)
        except ProbeDegraded as answer:
            now = time()
            change = machine.probe_degraded(
                now, answer.cause, clean_detail(answer.detail), answer.latency
            )
        except ProbeFailed as exc:
            failure, now = exc, time()
        else:
            now = time()
            change = machine.probe_ok(now, latency)
        if self._preempted:
            return False  # without a result: the probe of the suspicion follows
        self._ended = now
        if not suspicious and failure is None and change is None and machine.state is State.UP:
            return True
        if suspicious:
            self._suspicion_ended = self._ended
        if failure is not None:
            failure.detail = clean_detail(failure.detail)
            self._note("probe failed", cause=failure.cause.value, detail=failure.detail)
            change = self._take_failure(failure, began, suspicious=suspicious)
        if machine.state is State.DOWN:
            self._pause = self._draw_pause()
        else:
            self._long_pauses = 0
        self._publish(change)
        if suspicious:
            self._resolve_suspicion()
        return False

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

    async def _run_probe(
        self, client: Client, began: float, scope: _Scope, *, suspicious: bool
    ) -> float:
        """Run a client's probe within the time limit. Every failure becomes a `ProbeFailed`."""
        lag = self.lag
        assert lag is not None, "there is a client"  # noqa: S101
        self._limit, self._silence = (began, lag.stalled_at(began) + client.queued()), ""
        ended = False
        scope.enter()
        self._scope, self._probed, self._probing_suspicion = scope, client, suspicious
        try:
            try:
                return await client.probe(suspicious)
            finally:
                ended = scope.leave()
                if self._scope is scope:
                    self._scope = self._probed = None
        except (ProbeFailed, ProbeDegraded):
            raise
        except (TimeoutError, asyncio.CancelledError) as exc:
            task = asyncio.current_task()
            if ended or isinstance(exc, TimeoutError):
                detail = f"no answer within {self._settings.timeout:g} s"
                detail += f": {self._silence}" if self._silence else ""
                raise ProbeFailed(Cause.TIMED_OUT, detail) from None
            if task is None or task.cancelling():
                raise
            raise ProbeFailed(Cause.OTHER, "the probe cancelled itself") from None
        # The supervisor's boundary: a bug in a probe must not end the task.
        except Exception as exc:
            if not self._logged_bug:
                self._logged_bug = True
                _log.exception(
                    "%s: the probe raised an unexpected exception; it counts as failed",
                    self._machine.name,
                    extra={"event": "probe_raised", "dependency": self._machine.name},
                )
            raise ProbeFailed(Cause.OTHER, f"the probe raised {type(exc).__name__}") from exc

    def _check_time(self, scope: _Scope) -> None:
        """End the running probe if its time is over."""
        loop, lag, client = asyncio.get_running_loop(), self.lag, self._probed
        if self._alarm is None or lag is None or client is None:
            return
        began, lost = self._limit
        # Time during which our own loop was blocked is not the dependency's, nor is the time in
        # which the probe waits for its turn to connect.
        lost = lag.stalled + client.queued() - lost
        left = self._settings.timeout - (loop.time() - began - lost)
        if left > _RESOLUTION:
            self._alarm.set(loop.time() + left, _RESOLUTION)
        elif not scope.expired:  # a suspicion may have ended this probe already
            # The first request of a probe is acknowledged soon after the probe began.
            within = self._settings.timeout + _ACKNOWLEDGED
            self._silence = describe_silence(client.links(), within=within)
            scope.end()
