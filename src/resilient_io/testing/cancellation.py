"""Cancel a coroutine at every point where it can be cancelled, and report how it reacted."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from .leaks import LeakWatch, place_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

_S = TypeVar("_S")
_T = TypeVar("_T")

_MAX_POINTS: Final = 10_000
_STEPS_AFTER_DEADLINE: Final = 20
_STEPS_OF_WAITING: Final = 3


class Moment(enum.Enum):
    """When a coroutine is cancelled at a point where it waits."""

    SUSPENDED = "when it began to wait"
    WAITING = "when it had waited for three steps of the loop"
    READY = "when its result was ready, before it continued"


class Problem(enum.Enum):
    """What can be wrong with the reaction of a coroutine to a cancellation."""

    SWALLOWED = "swallowed the cancellation"
    LATE = "did not end in time"
    LEAKED_TASK = "left a task behind"
    LEAKED_SOCKET = "left a socket open"
    COMPLAINT = "called the loop's exception handler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem that was found.

    Attributes:
        problem: The kind of problem.
        point: The suspension at which the coroutine was cancelled, counted from 1; None if it was
            not cancelled in that run, or if the run is unknown.
        moment: When it was cancelled at that point.
        where: The line of code that waited.
        detail: What was returned, raised or left.
    """

    problem: Problem
    point: int | None = None
    moment: Moment | None = None
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Return the finding in one line."""
        if self.point is None or self.moment is None:
            return f"not cancelled: {self.problem.value}: {self.detail}"
        at = f"point {self.point}, {self.where}, cancelled {self.moment.value}"
        return f"{at}: {self.problem.value}: {self.detail}"


@dataclass(slots=True, kw_only=True)
class CancelReport:
    """How a coroutine reacted to cancellations.

    Attributes:
        points: How many points were tested; each is a suspension of the coroutine.
        runs: How often the coroutine was run.
        complete: Whether the last run ended without a cancellation, so all points were tested.
        result: What the coroutine returned in that run, or the expected exception that it raised.
        findings: All problems that were found.
    """

    points: int = 0
    runs: int = 0
    complete: bool = False
    result: object = None
    findings: list[Finding] = field(default_factory=list)

    def of(self, problem: Problem) -> list[Finding]:
        """Return the findings of one kind."""
        return [finding for finding in self.findings if finding.problem is problem]

    @property
    def swallowed(self) -> list[Finding]:
        """Cancellations after which the coroutine returned or raised something else."""
        return self.of(Problem.SWALLOWED)

    @property
    def late(self) -> list[Finding]:
        """Cancellations after which the coroutine did not end in time."""
        return self.of(Problem.LATE)

    @property
    def leaked_tasks(self) -> list[Finding]:
        """Tasks that were left."""
        return self.of(Problem.LEAKED_TASK)

    @property
    def leaked_sockets(self) -> list[Finding]:
        """Sockets and transports that were left open."""
        return self.of(Problem.LEAKED_SOCKET)

    @property
    def complaints(self) -> list[Finding]:
        """Calls of the loop's exception handler."""
        return self.of(Problem.COMPLAINT)

    def assert_clean(self) -> None:
        """Raise AssertionError with all findings, or if no point was tested."""
        if self.findings:
            raise AssertionError("\n".join(map(str, self.findings)))
        if not self.points:
            raise AssertionError("the coroutine never waited, so it was never cancelled")


@overload
async def cancel_everywhere(
    make_coroutine: Callable[[], Coroutine[Any, Any, object]],
    *,
    setup: None = None,
    check: Callable[[], object] | None = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    max_points: int | None = None,
    moments: Sequence[Moment] = tuple(Moment),
    within: float = 0.1,
    settle: float = 0.1,
    run_timeout: float = 30.0,
) -> CancelReport: ...
@overload
async def cancel_everywhere(
    make_coroutine: Callable[[_S], Coroutine[Any, Any, object]],
    *,
    setup: Callable[[], AbstractAsyncContextManager[_S]],
    check: Callable[[_S], object] | None = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    max_points: int | None = None,
    moments: Sequence[Moment] = tuple(Moment),
    within: float = 0.1,
    settle: float = 0.1,
    run_timeout: float = 30.0,
) -> CancelReport: ...
async def cancel_everywhere(
    make_coroutine: Callable[..., Coroutine[Any, Any, object]],
    *,
    setup: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
    check: Callable[..., object] | None = None,
    raises: type[Exception] | tuple[type[Exception], ...] = (),
    max_points: int | None = None,
    moments: Sequence[Moment] = tuple(Moment),
    within: float = 0.1,
    settle: float = 0.1,
    run_timeout: float = 30.0,
) -> CancelReport:
    """Run a coroutine repeatedly, and cancel it at its first point, its second, and so on.

    A point is a suspension of the coroutine. At each point the coroutine is cancelled in three
    runs: when it has just begun to wait, when the tasks that it started have run for a few steps,
    and when its result is ready but the coroutine has not continued, which is when cancellations
    are lost most easily. The last run is not cancelled. This function asserts nothing: check the
    report, for example with `report.assert_clean()`.

    Cancelling this function cancels the current run and waits for its end.

    Args:
        make_coroutine: Returns a new coroutine for each run; takes the result of `setup`.
        setup: Returns an async context manager, which is entered around each run.
        check: Called after each run, within `setup`, with the result of `setup`; may be a
            coroutine function. An exception ends everything, with a note that names the run.
        raises: The exceptions that the coroutine may raise when it is not cancelled.
        max_points: Stop after this many points; None to continue to the end.
        moments: When to cancel at each point.
        within: Seconds of the loop's time within which a cancelled coroutine has to end.
        settle: Seconds within which tasks and sockets have to go away after a run.
        run_timeout: Maximum duration of a run in seconds.

    Raises:
        RuntimeError: A run took longer than `run_timeout` without having been cancelled, or the
            coroutine has more than 10,000 points.
    """
    report = CancelReport()
    last_point = _MAX_POINTS if max_points is None else max_points
    with LeakWatch(settle) as leaks:
        while not report.complete and report.points < last_point:
            for moment in moments:
                leaks.begin()
                run = _Run(report, moment)
                async with setup() if setup else _nothing() as state:
                    arguments = () if setup is None else (state,)
                    # No reference to the coroutine is kept, so that the garbage collector closes
                    # what the coroutine forgot to close, and warns.
                    await run.execute(make_coroutine(*arguments), within, run_timeout, raises)
                    if check is not None:
                        await run.check(check, arguments)
                run.record_leaks(*await leaks.end())
                report.runs += 1
                if report.complete:
                    break
            else:
                report.points += 1
        for text in leaks.collected():
            report.findings.append(Finding(problem=Problem.LEAKED_SOCKET, detail=text))
    if max_points is None and not report.complete:
        raise RuntimeError(f"the coroutine has not ended at point {_MAX_POINTS}: pass max_points")
    return report


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield None


class _Run:
    """One run of the coroutine, which adds its findings to the report."""

    def __init__(self, report: CancelReport, moment: Moment) -> None:
        self._report = report
        self._moment = moment
        self._point = report.points + 1
        self._cancelled = False
        self._where = ""

    async def execute(
        self,
        coroutine: Coroutine[Any, Any, object],
        within: float,
        run_timeout: float,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        """Run the coroutine, cancel it, and check how it ends."""
        stepper = _Stepper(coroutine, point=self._point, moment=self._moment, within=within)
        try:
            ended, _ = await asyncio.wait([stepper.task], timeout=run_timeout)
            if not ended and stepper.cancelled_at is None:
                raise RuntimeError(
                    f"a run did not end within {run_timeout} s, nor reach the point at which to "
                    f"cancel it; it waits in {place_of(stepper)}: pass a longer run_timeout, or "
                    "max_points"
                )
        finally:
            if not stepper.task.done():
                stepper.task.cancel()
                await asyncio.wait([stepper.task], timeout=1.0)
        self._cancelled = stepper.cancelled_at is not None
        self._where = stepper.where
        if stepper.late:
            self._add(Problem.LATE, "ended later" if ended else "never ended")
        if stepper.task.done():
            self._check_end(stepper, expected)
        stepper.forget()

    def _check_end(
        self, stepper: _Stepper[object], expected: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        task = stepper.task
        if task.cancelled():
            if not self._cancelled:
                raise RuntimeError("the coroutine raised CancelledError, but was not cancelled")
            return
        error = task.exception()
        if self._cancelled:
            end = f"returned {task.result()!r}" if error is None else f"raised {error!r}"
            by = "" if stepper.reached_coroutine else ", because its awaitable swallowed it"
            self._add(Problem.SWALLOWED, end + by)
        elif error is not None and not (expected and isinstance(error, expected)):
            raise error
        else:
            self._report.complete = True
            self._report.result = error or task.result()

    async def check(self, check: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Run the caller's check after the run."""
        try:
            result = check(*arguments)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            if self._cancelled:
                at = f"point {self._point} ({self._where}), {self._moment.value}"
                error.add_note(f"after a run that was cancelled at {at}")
            raise

    def record_leaks(self, tasks: list[str], sockets: list[str], complaints: list[str]) -> None:
        """Add findings for what the run has left."""
        for problem, texts in (
            (Problem.LEAKED_TASK, tasks),
            (Problem.LEAKED_SOCKET, sockets),
            (Problem.COMPLAINT, complaints),
        ):
            for text in texts:
                self._add(problem, text)

    def _add(self, problem: Problem, detail: str) -> None:
        self._report.findings.append(
            Finding(
                problem=problem,
                point=self._point if self._cancelled else None,
                moment=self._moment if self._cancelled else None,
                where=self._where,
                detail=detail,
            )
        )


class _Stepper(Coroutine[Any, Any, _T]):
    """Runs a coroutine in a task, and cancels the task at the n-th suspension.

    Args:
        inner: The coroutine.
        point: The suspension to cancel at, counted from 1.
        moment: When to cancel there.
        within: Seconds after which a task that has not ended counts as late.
    """

    def __init__(
        self, inner: Coroutine[Any, Any, _T], *, point: int, moment: Moment, within: float
    ) -> None:
        self._inner = inner
        self._point = point
        self._moment = moment
        self._within = within
        self._timer: asyncio.TimerHandle | None = None
        self.suspensions = 0
        self.where = ""
        self.cancelled_at: float | None = None
        self.reached_coroutine = False
        self.late = False
        self.task = asyncio.get_running_loop().create_task(self, name=f"cancelled at {point}")
        self.task.add_done_callback(self._ended)

    def send(self, value: Any, /) -> Any:
        """Run the coroutine to its next suspension."""
        return self._suspended(self._inner.send(value))

    def throw(
        self,
        kind: Any,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Any:
        """Raise an exception in the coroutine, and run it to its next suspension."""
        if self.cancelled_at is not None:
            self.reached_coroutine = True
        if value is None and traceback is None:
            return self._suspended(self._inner.throw(kind))
        return self._suspended(self._inner.throw(kind, value, traceback))

    def close(self) -> None:
        """Close the coroutine."""
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()

    @property
    def cr_frame(self) -> object:
        """Frame of the coroutine, for `place_of`."""
        return getattr(self._inner, "cr_frame", None)

    @property
    def cr_await(self) -> object:
        """The awaitable of the coroutine, for `place_of`."""
        return getattr(self._inner, "cr_await", None)

    def forget(self) -> None:
        """Drop the references to the coroutine and its task."""
        del self._inner, self.task

    def _suspended(self, awaited: Any) -> Any:
        if self.cancelled_at is None:
            self.suspensions += 1
            if self.suspensions == self._point:
                self.where = place_of(self._inner)
                if self._moment is Moment.SUSPENDED or not asyncio.isfuture(awaited):
                    self._cancel()
                else:
                    # Before the task's own callback, which is added when this returns.
                    awaited.add_done_callback(self._cancel)
                    if self._moment is Moment.WAITING:
                        self._cancel_after(_STEPS_OF_WAITING)
        return awaited

    def _cancel_after(self, steps: int) -> None:
        if self.cancelled_at is None:
            if steps:
                asyncio.get_running_loop().call_soon(self._cancel_after, steps - 1)
            else:
                self._cancel()

    def _cancel(self, _: object = None) -> None:
        if self.cancelled_at is not None:
            return
        loop = asyncio.get_running_loop()
        self.cancelled_at = loop.time()
        self.task.cancel()
        # The steps of the loop allow for a loop that was blocked until after the deadline.
        self._timer = loop.call_later(self._within, self._check_late, _STEPS_AFTER_DEADLINE)

    def _check_late(self, steps: int) -> None:
        if self.task.done():
            return
        if steps:
            asyncio.get_running_loop().call_soon(self._check_late, steps - 1)
        else:
            self.late = True

    def _ended(self, _: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
