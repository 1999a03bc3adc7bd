"""What a lifecycle starts and ends within its time budget, and the report of that."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from resilient_io.deadlines import context_without_deadline
from resilient_io.errors import ConfigurationError, DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

_RESERVED = 0.5  # seconds reserved for each later step
# Largest share of the remaining time that is reserved: most later steps need little.
_MAX_RESERVED = 0.15
_FORCED_CLOSE = 3.0  # seconds that a client may need after its timeout to force what did not close
_AFTER_CANCEL = 0.25  # seconds for a part that was cancelled because its time was up

Outcome = Literal["done", "late", "failed"]

log = logging.getLogger("resilient_io.lifecycle")


class TimeBudget:
    """The time for a shutdown. Each step may use what is not reserved for later ones."""

    def __init__(self, grace_period: float, began: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._hurried: asyncio.Future[None] = self._loop.create_future()
        self._began = began
        self._until = began + grace_period

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._began

    @property
    def hurried(self) -> bool:
        """Whether `hurry` was called."""
        return self._hurried.done()

    def hurry(self, seconds: float) -> None:
        """Leave only `seconds` from now on; every `wait` takes that into account immediately."""
        self._until = min(self._until, self._loop.time() + seconds)
        if not self._hurried.done():
            self._hurried.set_result(None)

    def share(self, after: int) -> float:
        """Return the seconds that the next step may take if `after` steps follow it."""
        left = max(0.0, self._until - self._loop.time())
        return left - min(after * _RESERVED, left * _MAX_RESERVED)

    async def wait(self, future: asyncio.Future[Any], seconds: Callable[[], float]) -> bool:
        """Wait for a future, without cancelling it; return whether it is done.

        `seconds` returns the longest wait; after `hurry`, it is called again, from that moment on.
        """
        until = self._loop.time() + seconds()
        while not future.done():
            hurried = self.hurried
            await asyncio.wait(
                [future] if hurried else [future, self._hurried],
                timeout=max(0.0, until - self._loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if hurried == self.hurried:
                break
            until = min(until, self._loop.time() + seconds())
        return future.done()


class Part:
    """A part of a service, which one task starts and closes.

    It is started by `__aenter__`, if it has one, and closed by `aclose`, or by `__aexit__`. One
    task does both, as context managers with a task group or a cancel scope require.
    """

    def __init__(
        self, thing: Any, name: str, on_end: Callable[[Part, BaseException | None], object]
    ) -> None:
        self.thing = thing
        self.name = name
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._entered: asyncio.Future[None] | None = None
        self._leave: asyncio.Future[float] | None = None
        self._result: object = None

    @property
    def is_source(self) -> bool:
        """Whether it receives work (it has a `run`), and is closed while the body continues."""
        return callable(getattr(self.thing, "run", None))

    # --- start

    async def start(self, timeout: float) -> None:
        """Start it. If this is cancelled, the start is cancelled."""
        loop = asyncio.get_running_loop()
        self._entered, self._leave = loop.create_future(), loop.create_future()
        self._task = loop.create_task(
            self._live(self._entered, self._leave), name=f"resilient-io lifecycle {self.name}"
        )
        began = loop.time()
        try:
            await asyncio.wait(
                [self._task, self._entered], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            late = not self._task.done()
            self._task.add_done_callback(self._task_ended)
            if not self._entered.done():
                self._task.cancel()
        if self._entered.done():
            return
        await asyncio.wait([self._task], timeout=_AFTER_CANCEL)
        if late:
            raise DeadlineExceeded(
                f"did not start within {timeout:.3g} s",
                dependency=self.name,
                operation="start",
                elapsed=loop.time() - began,
            )
        if self._task.cancelled():
            raise RuntimeError(f"the start of {self.name} cancelled itself")
        error = self._task.exception()
        if error is not None:
            error.add_note(f"while the lifecycle started {self.name}")
            raise error

    async def _live(self, entered: asyncio.Future[None], leave: asyncio.Future[float]) -> None:
        kind = type(self.thing)
        if hasattr(kind, "__aenter__"):
            await kind.__aenter__(self.thing)
        entered.set_result(None)
        try:
            await asyncio.wait([leave])  # awaited directly, it would be cancelled with this task
        except asyncio.CancelledError as error:
            # A task group in it may have failed: it is left as `async with` would leave it.
            if not hasattr(kind, "__aexit__") or not await kind.__aexit__(
                self.thing, type(error), error, error.__traceback__
            ):
                raise
            return
        if hasattr(kind, "aclose"):
            timeout = _close_timeout(leave.result(), self.thing.aclose)
            self._result = await self.thing.aclose(**timeout)
        else:
            await kind.__aexit__(self.thing, None, None, None)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()  # retrieved, so that asyncio is calm
        if self.started and self._leave is not None and not self._leave.done():
            self._on_end(self, error)

    # --- close

    @property
    def started(self) -> bool:
        """Whether it has started, or still may, so that it has to be closed."""
        if self._task is None or self._entered is None:
            return False
        return self._entered.done() or not self._task.done()

    async def close(self, budget: TimeBudget, after: int) -> LifecycleStep:
        """Close it within its share of the time; when that is up, cancel it."""
        task, leave = self._task, self._leave
        if task is None or leave is None:
            return LifecycleStep(name=self.name, seconds=0.0)
        began = budget.spent
        cancelled = self._cancelled_handlers()
        share = budget.share(after)
        if not leave.done():
            leave.set_result(share - min(_FORCED_CLOSE, share / 8))
        outcome: Outcome = "done"
        left = ""
        if not await budget.wait(task, lambda: _until_cancel(budget.share(after))):
            outcome, left = "late", "its closing was cancelled"
            task.cancel()
            await asyncio.wait([task], timeout=_after_cancel(share))
            if not task.done():
                left = "it does not end"
        elif not task.cancelled() and (error := task.exception()) is not None:
            outcome, left = "failed", type(error).__name__
            log.warning(
                "closing %s failed",
                self.name,
                exc_info=error,
                extra={"event": "part_not_closed", "part": self.name},
            )
        failures = getattr(self._result, "failures", None)
        unfinished = ""
        if isinstance(failures, tuple) and failures:
            unfinished = f"{len(failures)} records not delivered"
        elif more := self._cancelled_handlers() - cancelled:
            unfinished = f"{more} handlers cancelled, whose records are redelivered"
        left = ", ".join(filter(None, [left, unfinished]))
        seconds = round(budget.spent - began, 6)
        return LifecycleStep(name=self.name, seconds=seconds, outcome=outcome, left=left)

    def _cancelled_handlers(self) -> int:
        """Return how many handlers of a consumer were cancelled."""
        try:
            run = self.thing.run_stats() if hasattr(self.thing, "run_stats") else None
        # Supervisor boundary: an error in a report must not keep this part, and later ones, from
        # being closed.
        except Exception:  # noqa: BLE001
            return 0
        count = getattr(run, "cancelled", 0)
        return count if isinstance(count, int) else 0


def name_parts(things: Sequence[object]) -> list[tuple[object, str]]:
    """Return the parts with their names: the type and the dependency."""
    names: dict[str, int] = {}
    parts: list[tuple[object, str]] = []
    for position, thing in enumerate(things):
        kind = type(thing)
        if isinstance(thing, (list, tuple, type)):
            raise TypeError(
                f"a part must be an object, not {thing!r}: pass each part as an argument of its "
                f"own, such as Lifecycle(monitor, consumer, producer, redis)"
            )
        if not hasattr(kind, "aclose") and not hasattr(kind, "__aexit__"):
            raise TypeError(
                f"a part must be an async context manager or have aclose(), not {thing!r}: use "
                f"contextlib.aclosing(...), or close it in the body"
            )
        if any(thing is other for other in things[:position]):
            raise ConfigurationError(f"{thing!r} is passed twice: pass it once")
        name = kind.__name__
        dependency = getattr(getattr(thing, "health", None), "name", None)
        if isinstance(dependency, str):
            name += f" of {dependency}"
        names[name] = names.get(name, 0) + 1
        parts.append((thing, name if names[name] == 1 else f"{name} #{names[name]}"))
    return parts


def _after_cancel(share: float) -> float:
    return min(_AFTER_CANCEL, share / 16)


def _until_cancel(share: float) -> float:
    return share - _after_cancel(share)


def _close_timeout(share: float, aclose: Callable[..., object]) -> dict[str, float]:
    """Return the `timeout` argument for `aclose`: the share, but at most the default value.

    A server whose last responses may take a second must not wait longer for a slow reader.
    """
    try:
        timeout = inspect.signature(aclose).parameters.get("timeout")
    except ValueError:  # a function in C without a signature
        return {}
    if timeout is None:
        return {}
    default = timeout.default
    return {"timeout": min(share, default) if isinstance(default, (int, float)) else share}


class WorkerTasks:
    """Runs each function once, in a task, and reports the first failure."""

    def __init__(
        self,
        functions: Sequence[Callable[[], Coroutine[Any, Any, object]]],
        on_failure: Callable[[str, Exception], object],
    ) -> None:
        self._functions = functions
        self._on_failure = on_failure
        self._tasks: list[asyncio.Task[object]] = []
        self._ending = False
        self.error: Exception | None = None

    def start(self) -> None:
        """Start them."""
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            task = asyncio.get_running_loop().create_task(
                function(), name=f"resilient-io worker {name}", context=context_without_deadline()
            )
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    def note_shutdown(self) -> None:
        """Note that a cancellation is no longer a failure."""
        self._ending = True

    @property
    def running(self) -> list[asyncio.Task[object]]:
        """The tasks that are running."""
        return [task for task in self._tasks if not task.done()]

    def cancel(self) -> None:
        """Cancel those that are running."""
        for task in self.running:
            task.cancel()

    def _task_ended(self, task: asyncio.Task[object]) -> None:
        name = task.get_name().rpartition(" ")[2]
        error: BaseException | None
        if not task.cancelled():
            error = task.exception()
        elif self._ending:
            return
        else:  # otherwise nothing would report it
            error = RuntimeError(f"the worker {name} cancelled itself")
        if isinstance(error, Exception) and self.error is None:
            self.error = error
            self._on_failure(name, error)


class Body:
    """The task that entered `async with Lifecycle(...)`, until it leaves the block."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._cancels = 0
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """Note that the task leaves the block."""
        if not self.left.done():
            self.left.set_result(None)

    def cancel(self) -> None:
        """Cancel the task if it is in the block."""
        if self._task is not None and not self.left.done():
            self._cancels += 1
            self._task.cancel("the lifecycle ends the block")

    def settle(self, error: BaseException | None) -> bool:
        """Undo the cancellations of `cancel`, as `asyncio.timeout` does.

        Return whether `error` comes from them, and the task was not cancelled otherwise.
        """
        if self._task is None or asyncio.current_task() is not self._task:
            return False
        cancels, self._cancels = self._cancels, 0
        for _ in range(cancels):
            self._task.uncancel()
        ours = cancels > 0 and isinstance(error, asyncio.CancelledError)
        return ours and self._task.cancelling() <= self._cancelling


# --- the report


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleStep:
    """One step of a shutdown.

    Attributes:
        name: What was done or closed: "drain delay", "workers", "body", or the part's name.
        seconds: How long it took.
        outcome: "done"; "late" if its time was up and it was cancelled; "failed" if it raised.
        left: What was left undone; empty if nothing was.
    """

    name: str
    seconds: float
    outcome: Outcome = "done"
    left: str = ""

    def __str__(self) -> str:
        outcome = "" if self.outcome == "done" else f" ({self.outcome})"
        return f"{self.name} {self.seconds:.3f} s{outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleReport:
    """How a service was shut down.

    Attributes:
        reason: The reason: "SIGTERM", "the block ended", or the argument of `stop()`.
        seconds: How long the shutdown took.
        grace_period: Longest time, in seconds, that it was allowed to take.
        hurried: Whether a second signal made it faster.
        steps: The steps, in order. Consumers are closed at the same time.
    """

    reason: str
    seconds: float
    grace_period: float
    hurried: bool
    steps: tuple[LifecycleStep, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """What was left undone, with the name of the step; empty if nothing was."""
        return tuple(f"{step.name}: {step.left}" for step in self.steps if step.left)

    @property
    def clean(self) -> bool:
        """Whether every step was done within the grace period and nothing was left undone."""
        done = all(step.outcome == "done" for step in self.steps)
        return done and not self.left and self.seconds <= self.grace_period

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain data that `json.dumps` accepts."""
        return {**asdict(self), "left": list(self.left), "clean": self.clean}

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.steps)) or "nothing to close"
        left = f"; left undone: {'; '.join(self.left)}" if self.left else ""
        hurried = ", hurried by a second signal" if self.hurried else ""
        return (
            f"stopped in {self.seconds:.3f} s of {self.grace_period:g} s "
            f"({self.reason}{hurried}): {steps}{left}"
        )

    def log(self) -> None:
        """Write the one log record about the shutdown."""
        log.log(
            logging.INFO if self.clean else logging.WARNING,
            "%s",
            self,
            extra={
                "event": "stopped",
                "reason": self.reason,
                "seconds": round(self.seconds, 6),
                "grace_period": self.grace_period,
                "hurried": self.hurried,
                "steps": [asdict(step) for step in self.steps],
                "left": list(self.left),
            },
        )
