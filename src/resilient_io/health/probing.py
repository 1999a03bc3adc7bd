"""The probe task of a dependency: when it knocks, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
from typing import TYPE_CHECKING

from .loop_lag import LoopLag
from .machine import RISE_SPACING
from .states import Cause, ProbeDegraded, ProbeFailed, State

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .machine import Machine
    from .states import Change


_DOUBT_SPACING = 0.02
"""Least seconds between probes on fresh connections that clients' failures ask for."""

_RESOLUTION = 1e-6
"""Seconds below which no time is left; a rest by rounding would never pass on a virtual loop."""

_log = logging.getLogger("resilient_io.health")


class Client:
    """What one client brings: how to probe, and when it last heard from the dependency."""

    __slots__ = ("last_reply", "probe")

    def __init__(
        self, probe: Callable[[bool], Awaitable[float]], last_reply: Callable[[], float]
    ) -> None:
        self.probe = probe
        self.last_reply = last_reply


class Prober:
    """Owns the probe task, which exists while there is at least one client.

    Args:
        machine: Takes the evidence.
        rng: Source of the jitter.
        publish: Takes what the machine returns.
        note: Takes what the flight recorder should remember.
    """

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        publish: Callable[[Change | None], None],
        note: Callable[..., None],
    ) -> None:
        self._machine = machine
        self._settings = machine.settings
        self._rng = rng
        self._publish = publish
        self._note = note
        self._clients: list[Client] = []
        self._task: asyncio.Task[None] | None = None
        self.lag: LoopLag | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._scope: asyncio.Timeout | None = None  # around the probe that is under way
        self._asked: Client | None = None
        self._asked_suspicious = False
        self._complained = False
        self._verdict: asyncio.Future[None] | None = None  # of the doubt that is being cleared up
        self._reset()

    def _reset(self) -> None:
        self._suspected = False
        self._preempted = False
        self._overruled = -math.inf  # when a failed probe was last overruled by other replies
        self._ended = -math.inf  # when the latest probe ended
        self._doubt_ended = -math.inf  # when the latest one on a fresh connection ended
        self._pause = 0.0  # after it, while it is down
        self._long_knocks = 0

    @property
    def clients(self) -> tuple[Client, ...]:
        """The clients, longest attached first."""
        return tuple(self._clients)

    @property
    def running(self) -> bool:
        """Whether somebody's probe runs."""
        return bool(self._clients)

    def add(self, client: Client) -> None:
        """Probe for one more client."""
        self._clients.append(client)
        if self._task is None:
            self.lag = LoopLag.acquire()
            self._reset()
            self._start()

    def remove(self, client: Client) -> asyncio.Task[None] | None:
        """Probe no more for a client; return the task that may still be leaving its probe."""
        if client not in self._clients:
            return None
        self._clients.remove(client)
        task = self._task
        if task is None or (self._clients and self._asked is not client):
            return None
        task.cancel()
        self._task = None
        self._clear_up()
        if self._clients:
            self._start()
        elif self.lag is not None:
            self.lag.release()
            self.lag = None
        return task

    def abandon(self) -> None:
        """Forget the clients and the task of a loop that was closed."""
        self._clients.clear()
        self._task = self._sleeper = self._scope = self._asked = self._verdict = None
        if self.lag is not None:
            self.lag.release()
            self.lag = None

    def suspect(self) -> None:
        """Probe at once, on a fresh connection: a client has seen a failure."""
        if self._machine.state is State.DOWN:
            return
        self._suspected = True
        scope = self._scope
        if scope is not None and scope.expired():
            return  # it is just failing; what was suspected here is asked next
        if scope is not None and not self._asked_suspicious and not self._preempted:
            self._preempted = True
            scope.reschedule(asyncio.get_running_loop().time())
        elif self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def verdict(self) -> asyncio.Future[None] | None:
        """Return a future that is done when a pending doubt is cleared up; None without one."""
        pending = self._suspected or (self._scope is not None and self._asked_suspicious)
        if not pending or self._task is None or self._machine.state is State.DOWN:
            return None
        if self._verdict is None:
            self._verdict = asyncio.get_running_loop().create_future()
        return self._verdict

    def _clear_up(self) -> None:
        if self._verdict is not None:
            self._verdict.set_result(None)
            self._verdict = None

    def _start(self) -> None:
        # A fresh context: the task outlives the call, and its deadline, that happens to start it.
        self._task = asyncio.get_running_loop().create_task(
            self._run(),
            name=f"resilient-io probe {self._machine.name}",
            context=contextvars.Context(),
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while (due := self._due()) > loop.time():
                await self._sleep_until(due)
            await self._probe(self._clients[0])

    def _due(self) -> float:
        state = self._machine.state
        if state is State.DOWN:
            return self._ended + self._pause
        if self._suspected:
            return self._doubt_ended + _DOUBT_SPACING
        if state is State.UNKNOWN:
            return self._ended
        if state is State.UP:
            return max(self._ended, self._last_reply()) + self._settings.interval
        return self._ended + self._settings.interval

    def _last_reply(self) -> float:
        return max((client.last_reply() for client in self._clients), default=-math.inf)

    async def _sleep_until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        sleeper = self._sleeper = loop.create_future()
        timer = loop.call_at(when, _wake, sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            if self._sleeper is sleeper:
                self._sleeper = None

    async def _probe(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        machine = self._machine
        suspicious = self._suspected or not machine.state.answering
        self._suspected = self._preempted = False
        began = loop.time()
        failure: ProbeFailed | None = None
        change: Change | None = None
        try:
            latency = await self._ask(client, suspicious=suspicious)
        except ProbeDegraded as answer:
            change = machine.probe_degraded(
                loop.time(), answer.cause, answer.detail, answer.latency
            )
        except ProbeFailed as exc:
            failure = exc
        else:
            change = machine.probe_ok(loop.time(), latency)
        if self._preempted:
            return  # no verdict: the one that was asked for follows
        self._ended = loop.time()
        if suspicious:
            self._doubt_ended = self._ended
        if failure is not None:
            self._note("probe failed", cause=failure.cause.value, detail=failure.detail)
            change = self._judge(failure, began, suspicious=suspicious)
        self._pause = self._draw_pause()
        self._publish(change)
        if suspicious:
            self._clear_up()

    def _judge(self, failure: ProbeFailed, began: float, *, suspicious: bool) -> Change | None:
        machine = self._machine
        now = self._ended
        if self._last_reply() > began:
            # It answered others meanwhile. Look again once: the reply may have lain in the
            # socket of a server that is gone.
            self._suspected = now - self._overruled >= self._settings.interval
            self._overruled = now
            return machine.probe_overruled(now)
        if failure.definite and not suspicious:
            # Its connection died, not necessarily the dependency: ask on a fresh one.
            self._suspected = True
            return None
        change = machine.probe_failed(
            now, failure.cause, failure.detail, definite=failure.definite or failure.cause.permanent
        )
        self._suspected = machine.state is not State.DOWN
        return change

    def _draw_pause(self) -> float:
        """Return the seconds until the next knock, should it be down."""
        machine, settings = self._machine, self._settings
        if machine.rising:
            return RISE_SPACING
        cause = machine.cause
        outage = self._ended - machine.since
        if outage < settings.short_outage and not (cause is not None and cause.permanent):
            self._long_knocks = 0
            return self._rng.uniform(0.55, 1.0) * settings.knock
        self._long_knocks = min(self._long_knocks + 1, 32)
        bound = min(settings.knock_cap, settings.knock * 2.0**self._long_knocks)
        return self._rng.uniform(0.5 * settings.knock, bound)

    async def _ask(self, client: Client, *, suspicious: bool) -> float:
        """Run the client's probe; whatever goes wrong comes out as `ProbeFailed`."""
        loop = asyncio.get_running_loop()
        allowed = self._settings.timeout
        lag = self.lag
        began = loop.time()
        stalled = lag.stalled if lag is not None else 0.0
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            # Time for which our own loop was blocked is not the dependency's.
            nonlocal timer
            ours = lag.stalled - stalled if lag is not None else 0.0
            left = allowed - (loop.time() - began - ours)
            if left > _RESOLUTION:
                timer = loop.call_later(left, look)
            elif not scope.expired():  # nor is it already, for the one that preempted this probe
                scope.reschedule(loop.time())

        task = asyncio.current_task()
        try:
            async with asyncio.timeout(None) as scope:
                timer = loop.call_later(allowed, look)
                self._scope, self._asked, self._asked_suspicious = scope, client, suspicious
                try:
                    return await client.probe(suspicious)
                finally:
                    timer.cancel()
                    self._scope = self._asked = None
        except (ProbeFailed, ProbeDegraded):
            raise
        except TimeoutError:
            raise ProbeFailed(Cause.TIMED_OUT, f"no answer within {allowed:g} s") from None
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise ProbeFailed(Cause.OTHER, "the probe cancelled itself") from None
        # The supervisor's boundary: a probe with a bug must not end the watch.
        except Exception as exc:
            if not self._complained:
                self._complained = True
                _log.exception(
                    "%s: the probe raised; counted as failed",
                    self._machine.name,
                    extra={"event": "probe_raised", "dependency": self._machine.name},
                )
            raise ProbeFailed(Cause.OTHER, f"the probe raised {type(exc).__name__}") from exc


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
