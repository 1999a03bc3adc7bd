"""`Lifecycle`: starts the parts of a service, and shuts them down in order on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from resilient_io.deadlines import context_without_deadline
from resilient_io.errors import Closed, ConfigurationError
from resilient_io.health import HealthMonitor
from resilient_io.validation import check_number, check_seconds, check_type

from .parts import (
    Body,
    LifecycleReport,
    LifecycleStep,
    Outcome,
    Part,
    TimeBudget,
    WorkerTasks,
    log,
    name_parts,
)
from .signals import SHELL_EXIT, SignalWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType
    from typing import Self

Phase = Literal["new", "starting", "running", "draining", "stopping", "stopped"]

_NAME = "lifecycle"

_HURRY = 3.0  # seconds that are left after a second signal
_CANCELS = 3  # how often a body or a worker is cancelled that continues after a cancellation
_AFTER_CANCEL = 1.0  # longest wait, in seconds, after each of these cancellations

_Worker = TypeVar("_Worker", bound="Callable[[], Coroutine[Any, Any, object]]")


class Lifecycle:
    """Starts the parts of a service, and shuts them down in order.

    ```
    async with Lifecycle(monitor, consumer, producer, redis, grace_period=25.0):
        await consumer.run(handle)
    ```

    On SIGTERM or SIGINT:

    1. The monitor drains: the service is not ready. For `drain_delay` seconds everything continues,
       so that load balancers stop sending requests.
    2. The previous handler of the signal is called, for example that of uvicorn.
    3. The parts with a `run` are closed, which ends their `run`. Then the workers and the body get
       time to end.
    4. The other parts are closed in the order given, then the monitor, then the servers.

    Everything is closed within `grace_period` seconds; each step leaves some time for those after
    it. A second signal skips all waits and leaves 3 seconds. A third one goes to the previous
    handler immediately. When the block ends without a signal, the same happens without the drain
    delay.

    A body that does not end within `body_timeout` is cancelled, and the block then ends without an
    error. Outside the main thread no signal is handled: call `stop()`.

    After it has stopped, a lifecycle can be started again, also in another event loop, as tests of
    a module-level application do. Its parts must support that, as those of this library do.

    Args:
        monitor: The health of the service; it drains first and is closed after the parts.
        *parts: Clients and other async context managers (or objects with `aclose()`), in the order
            in which they are closed. They are started in the opposite order.
        grace_period: Seconds from the signal until everything is closed, `drain_delay` included.
            Keep it below the pod's terminationGracePeriodSeconds minus its preStop hook.
        drain_delay: Seconds during which the service continues while it is not ready; at most half
            of `grace_period`.
        start_timeout: Seconds for the start of each part.
        body_timeout: Seconds for the body, and for the workers, to end after the parts with a `run`
            are closed. A server with its own handler for the signal, such as uvicorn, may use all
            of the remaining time instead.
        servers: Health servers; they are started first and closed last.
        signals: Signals that shut the service down; an empty sequence for none.

    Raises:
        ConfigurationError: An argument has a wrong value.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        *parts: object,
        grace_period: float = 25.0,
        drain_delay: float = 5.0,
        start_timeout: float = 20.0,
        body_timeout: float = 5.0,
        servers: Sequence[object] = (),
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        check_type(
            "monitor", monitor, HealthMonitor, use="Lifecycle(HealthMonitor(redis.health), redis)"
        )
        if not isinstance(servers, Sequence):
            raise TypeError(
                f"servers must be a sequence, not {type(servers).__name__}: "
                f"use servers=[serve(monitor, port=8080)]"
            )
        self.monitor = monitor
        self._plan = _Plan(
            monitor=monitor,
            parts=tuple(name_parts((*parts, monitor, *servers))),
            servers=len(servers),
            grace_period=grace_period,
            drain_delay=drain_delay,
            start_timeout=start_timeout,
            body_timeout=body_timeout,
            signals=_check_signals(signals),
        )
        self._workers: list[Callable[[], Coroutine[Any, Any, object]]] = []
        self._run = _LifecycleRun(self._plan, self._workers)

    def __repr__(self) -> str:
        names = ", ".join(name for _, name in self._plan.parts)
        return f"<{type(self).__name__} {self.phase}: {names}>"

    @property
    def phase(self) -> Phase:
        """The phase: "new", "starting", "running", "draining", "stopping" or "stopped"."""
        return self._run.phase

    @property
    def stopping(self) -> asyncio.Event:
        """Set after the drain delay, when work should end. A serving body can wait for it."""
        return self._run.stopping

    @property
    def report(self) -> LifecycleReport | None:
        """How the shutdown went; None until everything is closed."""
        return self._run.report

    def worker(self, function: _Worker) -> _Worker:
        """Run an async function without arguments beside the body, once the parts are started.

        Use it for a consumer's `run` if the body belongs to a framework, as in FastAPI. When a
        worker fails, that is logged, the service shuts down as on SIGTERM, and the block raises
        the worker's error.

        Raises:
            ConfigurationError: The lifecycle has started already.
            TypeError: `function` is not an async function.
        """
        if not inspect.iscoroutinefunction(function):
            raise TypeError(
                f"a worker must be an async function, not {function!r}: "
                f"use `async def`, and pass the function without calling it"
            )
        if self.phase != "new":
            raise ConfigurationError("the lifecycle has started already: call worker() before that")
        self._workers.append(function)
        return function

    def stop(self, reason: str = "stop() was called") -> None:
        """Start to shut down, as on SIGTERM, and return immediately.

        During a shutdown, this has no effect. The reason is for the log and the report.
        """
        self._run.stop(reason)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Run as the lifespan of an ASGI application: `FastAPI(lifespan=lifecycle.lifespan)`.

        Requests are served during the drain delay. Then the server's own handler is called, and
        the server ends the lifespan once its requests are answered. If that takes too long, the
        parts are closed before the grace period is over.
        """
        async with self._begin(hosted=True):
            yield

    async def __aenter__(self) -> Self:
        """Start the servers, the monitor, and the parts from the last to the first.

        If a part fails to start, the parts that were started are closed. If this is cancelled, it
        returns immediately, and they are closed in the background within the grace period. A
        signal ends the start, too.

        Raises:
            RuntimeError: The lifecycle is in use.
            DeadlineExceeded: A part did not start within `start_timeout`.
            SystemExit: A signal came; for SIGINT, the previous handler decides.
            Closed: `stop()` was called.
            Exception: The start of a part raised it.
        """
        await self._begin(hosted=False).__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Shut down within the grace period.

        If this is cancelled, it returns immediately, and the shutdown continues in the background.

        Raises:
            Exception: A worker raised it.
        """
        return await self._run.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Shut down, and wait until everything is closed; the same as leaving the block.

        It is idempotent, and may be called before the start and in the body. If this is cancelled,
        it returns immediately, and the shutdown continues in the background.
        """
        if self.phase != "new":
            await self._run.aclose()

    def _begin(self, *, hosted: bool) -> _LifecycleRun:
        if self.phase not in {"new", "stopped"}:
            raise RuntimeError(
                f"this Lifecycle is {self.phase}: it can be started again after it has stopped"
            )
        if self.phase == "stopped" or hosted:
            # The `stopping` event of a new run may be in use already.
            stopping = self._run.stopping if self.phase == "new" else None
            self._run = _LifecycleRun(self._plan, self._workers, hosted=hosted, stopping=stopping)
        return self._run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The arguments of a `Lifecycle`, validated."""

    monitor: HealthMonitor
    parts: tuple[tuple[object, str], ...]  # in the order of closing, with the monitor and servers
    servers: int  # the number of servers at the end of `parts`
    grace_period: float
    drain_delay: float
    start_timeout: float
    body_timeout: float
    signals: tuple[int, ...]

    def __post_init__(self) -> None:
        check_seconds("grace_period", self.grace_period)
        check_number("drain_delay", self.drain_delay)
        check_seconds("start_timeout", self.start_timeout)
        check_number("body_timeout", self.body_timeout)
        if self.drain_delay > self.grace_period / 2:
            raise ConfigurationError(
                f"drain_delay={self.drain_delay:g} leaves too little of "
                f"grace_period={self.grace_period:g} for the shutdown: use "
                f"drain_delay={self.grace_period / 4:g}, or a longer grace_period (the pod's "
                f"terminationGracePeriodSeconds must be longer still)"
            )


class _LifecycleRun:
    """One use of a `Lifecycle`, from the start to the end of the shutdown."""

    def __init__(
        self,
        plan: _Plan,
        workers: Sequence[Callable[[], Coroutine[Any, Any, object]]],
        *,
        hosted: bool = False,  # a server owns the body, as in a lifespan
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._plan = plan
        self._monitor = plan.monitor
        self._hosted = hosted
        self._parts = [Part(thing, name, self._part_ended) for thing, name in plan.parts]
        self._workers = WorkerTasks(workers, self._worker_failed)
        self._stop_reason: tuple[str, int | None] | None = None
        self._signals: SignalWatch | None = None
        self._starting: asyncio.Task[None] | None = None
        self._body: Body | None = None
        self._budget: TimeBudget | None = None
        self._closing: asyncio.Task[None] | None = None
        self.phase: Phase = "new"
        self.stopping = stopping or asyncio.Event()
        self.report: LifecycleReport | None = None

    # --- start

    async def __aenter__(self) -> Self:
        self.phase = "starting"
        self._signals = SignalWatch(
            self._plan.signals,
            self._signal_received,
            lambda: self._monitor.recorder.dump("SIGUSR1"),
        )
        self._signals.install()
        starting = self._starting = asyncio.get_running_loop().create_task(
            self._start_parts(),
            name="resilient-io lifecycle starting",
            context=context_without_deadline(),
        )
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            self.close("the start was cancelled")
            raise
        if self._stop_reason is not None:
            await self._abort_start(*self._stop_reason)
        elif starting.cancelled() or starting.exception() is not None:
            await asyncio.wait([self.close("the start failed")])
            starting.result()
        else:
            self._body = Body()
            self.phase = "running"
            self._workers.start()
        return self

    async def _start_parts(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        first_server = len(self._parts) - self._plan.servers
        for part in (*self._parts[first_server:], *reversed(self._parts[:first_server])):
            await part.start(self._plan.start_timeout)
        seconds = round(loop.time() - began, 6)
        self._monitor.recorder.note(_NAME, "started", seconds=seconds)
        log.info(
            "started in %.3f s",
            seconds,
            extra={
                "event": "started",
                "parts": [part.name for part in self._parts],
                "seconds": seconds,
            },
        )

    async def _abort_start(self, reason: str, number: int | None) -> None:
        await asyncio.wait([self.close(reason, number)])
        if number is None:  # no signal: without an error, a server would start to serve
            raise Closed(
                "it was stopped before it had started", dependency=_NAME, operation="start"
            )
        if self._hosted:
            return  # the server has received the signal, and will not start to serve
        await self._end_program()
        raise SystemExit(SHELL_EXIT + number)

    # --- the decision to shut down

    def stop(self, reason: str) -> None:
        """Start to shut down, as on SIGTERM; no effect during a shutdown."""
        if self._stop_reason is None and self._closing is None and self.phase != "new":
            self._begin_shutdown(reason, None, asyncio.get_running_loop().time())

    def _signal_received(self, number: int, at: float) -> None:
        reason = signal.Signals(number).name
        if self._stop_reason is None and self._closing is None:
            self._begin_shutdown(reason, number, at)
        elif self._stop_reason is None:  # the block has ended already
            self._stop_reason = (reason, number)
            self._chain(number)
        elif self._budget is not None and self.phase != "stopped":
            log.warning(
                "%s again: closing everything within %g s",
                reason,
                _HURRY,
                extra={"event": "hurried", "reason": reason, "grace_period": _HURRY},
            )
            self._budget.hurry(_HURRY)

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
            "%s ended unexpectedly",
            part.name,
            exc_info=error,
            extra={"event": "part_ended", "part": part.name},
        )
        self.stop(f"{part.name} ended unexpectedly")

    def _begin_shutdown(self, reason: str, number: int | None, at: float) -> None:
        self._stop_reason = (reason, number)
        self._monitor.drain()
        self._monitor.recorder.note(_NAME, "draining", reason=reason)
        delay = self._plan.drain_delay if self.phase == "running" else 0.0
        log.info(
            "shutting down (%s): not ready from now on, drain delay %g s, grace period %g s",
            reason,
            delay,
            self._plan.grace_period,
            extra={
                "event": "stopping",
                "reason": reason,
                "drain_delay": delay,
                "grace_period": self._plan.grace_period,
            },
        )
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()  # then `__aenter__` closes everything
        else:
            self.phase = "draining"
            self.close(reason, signal.SIGTERM if number is None else number, at, delay=True)

    # --- shutdown

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        body = self._body
        if body is None:  # a signal ended the start of a lifespan
            return False
        body.leave()
        reason = "the block ended" if kind is None else f"the block raised {kind.__name__}"
        closing = self.close(reason)
        try:
            await asyncio.wait([closing])
        finally:
            ours = body.settle(error)
        closing.result()
        await self._end_program()
        if self._workers.error is not None and (error is None or ours):
            raise self._workers.error
        return ours

    async def aclose(self) -> None:
        """Shut down without waiting for the body, or for the start."""
        reason = "aclose() was called"
        if self.phase == "starting":
            self.stop(reason)
        elif self._body is not None:
            self._body.leave()
        await asyncio.wait([self.close(reason)])

    def close(
        self,
        reason: str,
        number: int | None = None,
        at: float | None = None,
        *,
        delay: bool = False,
    ) -> asyncio.Task[None]:
        """Return the task that closes everything; the first call creates it.

        The grace period starts at the loop time `at`. With `delay`, the drain delay comes first.
        Then the previous handler of the signal `number` is called.
        """
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._monitor.drain()
            self._workers.note_shutdown()
            if self._starting is not None:
                self._starting.cancel()
            self._budget = TimeBudget(self._plan.grace_period, loop.time() if at is None else at)
            self._closing = loop.create_task(
                self._shut_down(reason, number, self._budget, delay=delay),
                name="resilient-io lifecycle closing",
                context=context_without_deadline(),
            )
        return self._closing

    async def _shut_down(
        self, reason: str, number: int | None, budget: TimeBudget, *, delay: bool
    ) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()  # otherwise asyncio logs that it was not retrieved
        try:
            steps = [step async for step in self._steps(number, budget, delay=delay)]
            self.report = LifecycleReport(
                reason=reason,
                seconds=round(budget.spent, 6),
                grace_period=self._plan.grace_period,
                hurried=budget.hurried,
                steps=tuple(steps),
            )
            self.report.log()
        finally:
            self.phase = "stopped"
            if self._signals is not None:
                self._signals.restore()

    async def _steps(
        self, number: int | None, budget: TimeBudget, *, delay: bool
    ) -> AsyncIterator[LifecycleStep]:
        """Execute the steps in order. Each is bounded, and leaves time for those after it."""
        parts = [part for part in self._parts if part.started]
        sources = [part for part in parts if part.is_source]
        others = [part for part in parts if not part.is_source]
        drain_delay = self._plan.drain_delay
        if delay and self._body is not None and drain_delay:
            # Everything continues, while load balancers notice that the service is not ready.
            began = budget.spent
            await budget.wait(self._body.left, lambda: 0.0 if budget.hurried else drain_delay)
            yield _step("drain delay", budget, began)
        hosted = self._chain(number)
        self.stopping.set()
        loop = asyncio.get_running_loop()
        closing = [
            loop.create_task(
                part.close(budget, len(others) + 1),
                name=f"resilient-io lifecycle closing {part.name}",
            )
            for part in sources
        ]
        for step in await asyncio.gather(*closing):
            yield step
        if self._workers.running:
            yield await self._end_workers(budget, len(others) + 1)
        if self._body is not None:
            step = await self._end_body(self._body, budget, len(others), hosted=hosted)
            if step.seconds or step.left:
                yield step
        for after, part in zip(reversed(range(len(others))), others, strict=True):
            yield await part.close(budget, after)

    async def _end_workers(self, budget: TimeBudget, after: int) -> LifecycleStep:
        """Wait for the workers, whose sources are closed, then cancel them."""
        began = budget.spent
        ended = asyncio.get_running_loop().create_task(
            asyncio.wait(self._workers.running), name="resilient-io lifecycle workers ending"
        )
        try:
            outcome = await self._end(ended, self._workers.cancel, budget, after)
        finally:
            ended.cancel()
        running = len(self._workers.running)
        left = f"{running} still run" if running else ""
        return _step("workers", budget, began, outcome, left)

    async def _end_body(
        self, body: Body, budget: TimeBudget, after: int, *, hosted: bool
    ) -> LifecycleStep:
        """Wait for the body, then cancel it, unless a server ends it."""
        began = budget.spent
        outcome: Outcome
        if hosted:
            ended = await budget.wait(body.left, lambda: budget.share(after))
            outcome, reason = "done" if ended else "late", "the server had not ended"
        else:
            if self._workers.error is not None:
                body.cancel()
            outcome = await self._end(body.left, body.cancel, budget, after)
            reason = "it swallows cancellations"
        return _step("body", budget, began, outcome, "" if body.left.done() else reason)

    async def _end(
        self,
        ended: asyncio.Future[Any],
        cancel: Callable[[], object],
        budget: TimeBudget,
        after: int,
    ) -> Outcome:
        """Wait for the body or the workers, then cancel them; again if they swallow that."""
        timeout = self._plan.body_timeout
        if await budget.wait(
            ended, lambda: 0.0 if budget.hurried else min(timeout, budget.share(after))
        ):
            return "done"
        for _ in range(_CANCELS):
            cancel()
            if await budget.wait(ended, lambda: min(_AFTER_CANCEL, budget.share(after))):
                break
        return "late"

    def _chain(self, number: int | None) -> bool:
        """Call the previous handler of a signal; return whether a server ends the body."""
        self.phase = "stopping"
        if number is None or self._signals is None:
            return self._hosted
        return self._signals.chain(number) or self._hosted

    async def _end_program(self) -> None:
        """Call a previous handler that only ends the program."""
        if self._signals is not None and self._signals.finish():
            await asyncio.sleep(0)  # the cancellation arrives here, not in what follows the block


def _step(
    name: str, budget: TimeBudget, began: float, outcome: Outcome = "done", left: str = ""
) -> LifecycleStep:
    seconds = round(budget.spent - began, 6)
    return LifecycleStep(name=name, seconds=seconds, outcome=outcome, left=left)


def _check_signals(signals: object) -> tuple[int, ...]:
    example = "use signals=[signal.SIGTERM]"
    if not isinstance(signals, Sequence) or isinstance(signals, str):
        raise TypeError(f"signals must be a sequence, not {signals!r}: {example}")
    # Not on Windows: SIGKILL and SIGSTOP.
    uncatchable = (getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None))
    for number in signals:
        if not isinstance(number, int):
            raise TypeError(f"signals must contain signal numbers, not {number!r}: {example}")
        if number not in signal.valid_signals() or number in uncatchable:
            raise ConfigurationError(
                f"signals contains {number!r}, which cannot be handled: {example}"
            )
    return tuple(signals)
