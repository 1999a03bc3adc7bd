"""The course of a lifecycle: its start, being told to end, its end; each of them once."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Literal

from resilient_io.deadlines import context_without_deadline

from ._budget import Budget
from ._ending import Ending
from ._report import log
from ._signals import SignalWatch
from ._workers import Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.health import HealthMonitor

    from ._body import Body
    from ._part import Part
    from ._report import LifecycleReport
    from ._times import Times

__all__ = ["Course", "Phase"]

Phase = Literal["new", "starting", "running", "draining", "stopping", "stopped"]

_NAME = "lifecycle"

_HURRY = 3.0
"""Seconds that are left after a second signal."""


class Course:
    """What a `Lifecycle` does, whoever asks for it: its tasks, its signals, how far it is.

    Args:
        monitor: Is told to drain.
        parts: Those of the service in the order of closing, the monitor, then the servers.
        servers: How many of them are servers; these start first.
        times: What was asked for.
        numbers: The signals that end it.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        parts: Sequence[Part],
        servers: int,
        times: Times,
        numbers: Sequence[int],
    ) -> None:
        self._monitor = monitor
        self._parts = parts
        self._servers = servers
        self._times = times
        self._numbers = numbers
        self.workers = Workers(self._worker_failed)
        self.stopping = asyncio.Event()
        self.phase: Phase = "new"
        self.hosted = False
        self.body: Body | None = None
        self.report: LifecycleReport | None = None
        self.told: tuple[str, int | None] | None = None
        self._signals: SignalWatch | None = None
        self._starting: asyncio.Task[None] | None = None
        self._budget: Budget | None = None
        self._closing: asyncio.Task[None] | None = None

    # --- starting

    def start(self) -> asyncio.Task[None]:
        """Hear signals from now on, and begin to start the parts."""
        self.phase = "starting"
        self._signals = SignalWatch(self._numbers, self._heard, self._dump)
        self._signals.install()
        self._starting = asyncio.get_running_loop().create_task(
            self._start(),
            name="resilient-io lifecycle starting",
            context=context_without_deadline(),
        )
        return self._starting

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        rest = len(self._parts) - self._servers
        for part in (*self._parts[rest:], *reversed(self._parts[:rest])):
            part.ended = self._part_ended
            await part.start(self._times.start_timeout)
        seconds = round(loop.time() - began, 6)
        self._monitor.recorder.note(_NAME, "started", seconds=seconds)
        names = [part.name for part in self._parts]
        log.info(
            "started in %.3f s",
            seconds,
            extra={"event": "started", "parts": names, "seconds": seconds},
        )

    def _dump(self) -> None:
        self._monitor.recorder.dump("SIGUSR1")

    def run(self, body: Body) -> None:
        """It is started: the body begins, and the workers do."""
        self.body = body
        self.phase = "running"
        self.workers.start()

    # --- being told to end

    def stop(self, reason: str) -> None:
        """Begin to end, as on SIGTERM; changes nothing once it ends."""
        if self.told is None and self._closing is None and self.phase != "new":
            self._begin(reason, None, asyncio.get_running_loop().time())

    def leave(self, reason: str) -> None:
        """Have everything closed without a wait for the body, or for the start."""
        if self.phase == "starting":
            self.stop(reason)
        elif self.body is not None:
            self.body.leave()

    def _heard(self, number: int, at: float) -> None:
        reason = signal.Signals(number).name
        if self.told is None and self._closing is None:
            self._begin(reason, number, at)
        elif self.told is None:  # it ends already, by itself
            self.told = (reason, number)
            self._chain(number)
        elif self._budget is not None and self.phase != "stopped":
            log.warning(
                "%s again: everything is closed within %g s",
                reason,
                _HURRY,
                extra={"event": "hurried", "reason": reason, "grace": _HURRY},
            )
            self._budget.hurry(_HURRY)

    def _begin(self, reason: str, number: int | None, at: float) -> None:
        self.told = (reason, number)
        self._monitor.drain()
        self._monitor.recorder.note(_NAME, "draining", reason=reason)
        notice = self._times.notice if self.phase == "running" else 0.0
        log.info(
            "%s: not ready from now on, %g s for the endpoints to notice, closed within %g s",
            reason,
            notice,
            self._times.grace,
            extra={
                "event": "stopping",
                "reason": reason,
                "notice": notice,
                "grace": self._times.grace,
            },
        )
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()  # whoever waits for it has it closed
        else:
            self.phase = "draining"
            self.close(reason, signal.SIGTERM if number is None else number, at, notice=True)

    def _worker_failed(self, name: str, error: Exception) -> None:
        log.error(
            "the worker %s failed",
            name,
            exc_info=error,
            extra={"event": "worker_failed", "part": name},
        )
        self.stop(f"the worker {name} failed ({type(error).__name__})")

    def _part_ended(self, part: Part, error: BaseException | None) -> None:
        log.error(
            "%s ended by itself",
            part.name,
            exc_info=error,
            extra={"event": "part_ended", "part": part.name},
        )
        self.stop(f"{part.name} ended by itself")

    # --- ending

    def close(
        self,
        reason: str,
        number: int | None = None,
        at: float | None = None,
        *,
        notice: bool = False,
    ) -> asyncio.Task[None]:
        """Begin to close everything, if that has not begun; the task ends when all is closed.

        Args:
            reason: Why, for the report.
            number: The signal that the handler before us is to hear; None for none.
            at: Loop time from which the grace counts; None for now.
            notice: Whether the endpoints get time to notice first.
        """
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._monitor.drain()
            self.workers.ending = True
            if self._starting is not None:
                self._starting.cancel()
            budget = self._budget = Budget(self._times.grace, loop.time() if at is None else at)
            self._closing = loop.create_task(
                self._end(reason, number, budget, notice=notice),
                name="resilient-io lifecycle closing",
                context=context_without_deadline(),
            )
        return self._closing

    async def _end(self, reason: str, number: int | None, budget: Budget, *, notice: bool) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()  # else asyncio says that nobody asked for it
        ending = Ending(
            reason=reason,
            times=self._times,
            budget=budget,
            body=self.body,
            workers=self.workers,
            parts=[part for part in self._parts if part.started],
            notice=notice,
            chain=lambda: self._chain(number),
            stopping=self.stopping,
        )
        try:
            self.report = await ending.run()
            self.report.record()
        finally:
            self.phase = "stopped"
            if self._signals is not None:
                self._signals.restore()

    def _chain(self, number: int | None) -> bool:
        self.phase = "stopping"
        if number is None or self._signals is None:
            return self.hosted
        return self._signals.chain(number) or self.hosted

    async def finish(self) -> None:
        """Let who only ends the program do so.

        Raises:
            KeyboardInterrupt: That is how Python's own handler of SIGINT does it.
            CancelledError: That is how `asyncio.Runner` does it, if this is its main task.
        """
        if self._signals is not None and self._signals.finish():
            await asyncio.sleep(0)  # cancelled here, and not in the middle of what comes next
