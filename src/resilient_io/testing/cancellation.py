"""Cancels a coroutine at every point where it can be cancelled, and tells how it took it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from resilient_io.testing._leaks import LeakWatch
from resilient_io.testing._places import place_of
from resilient_io.testing._stepper import Moment, Stepper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["CancelReport", "Finding", "Moment", "Problem", "cancel_everywhere"]

_S = TypeVar("_S")

_LONGEST: Final = 10_000
_STEPS_BEYOND: Final = 20


class Problem(enum.Enum):
    """What can be wrong with how a coroutine takes a cancel."""

    SWALLOWED = "swallowed the cancel"
    LATE = "did not end at once"
    LEAKED_TASK = "left a task behind"
    LEAKED_SOCKET = "left a socket open"
    COMPLAINT = "made the loop complain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong that was found.

    Attributes:
        problem: What kind of thing.
        point: The suspension at which it was cancelled, counted from 1; None if it was not
            cancelled in that run, or if it is not known which run it was.
        moment: When at that point.
        where: The line of code that waited.
        detail: What was returned, raised or left.
    """

    problem: Problem
    point: int | None = None
    moment: Moment | None = None
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        if self.point is None or self.moment is None:
            return f"not cancelled: {self.problem.value}: {self.detail}"
        at = f"point {self.point}, {self.where}, cancelled {self.moment.value}"
        return f"{at}: {self.problem.value}: {self.detail}"


@dataclass(slots=True, kw_only=True)
class CancelReport:
    """How a coroutine took being cancelled.

    Attributes:
        points: How many points were tried, each one a suspension of the coroutine.
        runs: How often it was run.
        complete: The last run ended by itself, so there is no further point.
        result: What it returned, or the expected exception that it raised, in that run.
        findings: All that was wrong.
    """

    points: int = 0
    runs: int = 0
    complete: bool = False
    result: object = None
    findings: list[Finding] = field(default_factory=list)

    def of(self, problem: Problem) -> list[Finding]:
        """Give the findings of this kind."""
        return [finding for finding in self.findings if finding.problem is problem]

    @property
    def swallowed(self) -> list[Finding]:
        """Cancels after which the coroutine returned, or raised something else."""
        return self.of(Problem.SWALLOWED)

    @property
    def late(self) -> list[Finding]:
        """Cancels that it did not obey at once."""
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
        """What the loop's exception handler was told."""
        return self.of(Problem.COMPLAINT)

    def assert_clean(self) -> None:
        """Raise AssertionError with all findings, if there are any or nothing was tried."""
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
    """Run a coroutine again and again, and cancel it at its first point, its second, and so on.

    A point is a suspension of the coroutine. At each it is cancelled in one run when it has just
    begun to wait, in another when the tasks that it started have run for some steps, and in another
    when what it waited for is there but it has not yet run on: the moment at which a cancel is lost
    most easily. It ends with a run that was not cancelled. Nothing is asserted: ask the report.

    Cancelling this cancels the run that is on, and waits for its end.

    Args:
        make_coroutine: Gives the coroutine, anew for each run; it is given what `setup` gives.
        setup: Gives an async context manager, entered around each run; its time is not judged.
        check: Called after each run, within `setup`, with what that gives; may be a coroutine
            function. What it raises ends everything, with a note that says which run it was.
        raises: What the coroutine raises when it is not cancelled, if it does.
        max_points: Stop after so many points; None goes on to the end.
        moments: When to cancel at each point.
        within: Seconds of the loop's time in which a cancelled coroutine has to end.
        settle: Seconds in which tasks and sockets have to go away after a run.
        run_timeout: Seconds that a run may take as a whole.

    Raises:
        RuntimeError: A run took longer than `run_timeout` without having been cancelled, or there
            is no end to the points.
    """
    report = CancelReport()
    last_point = _LONGEST if max_points is None else max_points
    with LeakWatch(settle) as leaks:
        while not report.complete and report.points < last_point:
            for moment in moments:
                leaks.begin()
                run = _Run(report, moment)
                async with setup() if setup else _nothing() as state:
                    given = () if setup is None else (state,)
                    # The coroutine is held by nobody after this, so that what it forgot to close
                    # is closed by the garbage collector, which warns.
                    await run.cancelled(make_coroutine(*given), within, run_timeout, raises)
                    if check is not None:
                        await run.checked(check, given)
                run.left(*await leaks.end())
                report.runs += 1
                if report.complete:
                    break
            else:
                report.points += 1
        for text in leaks.collected():
            report.findings.append(Finding(problem=Problem.LEAKED_SOCKET, detail=text))
    if max_points is None and not report.complete:
        raise RuntimeError(f"the coroutine still goes on at point {_LONGEST}: give max_points")
    return report


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield None


class _Run:
    """One run, and what is wrong with it."""

    def __init__(self, report: CancelReport, moment: Moment) -> None:
        self._report = report
        self._moment = moment
        self._point = report.points + 1
        self._cancelled = False
        self._where = ""

    async def cancelled(
        self,
        coroutine: Coroutine[Any, Any, object],
        within: float,
        run_timeout: float,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        """Run the coroutine, cancel it, and judge how it ends."""
        stepper = Stepper(
            coroutine, point=self._point, moment=self._moment, within=within, steps=_STEPS_BEYOND
        )
        try:
            ended, _ = await asyncio.wait([stepper.task], timeout=run_timeout)
            if not ended and stepper.cancelled_at is None:
                raise RuntimeError(
                    f"a run was not over after {run_timeout} s, nor where it was to be cancelled, "
                    f"but waits in {place_of(stepper)}: give a longer run_timeout, or max_points"
                )
        finally:
            if not stepper.task.done():
                stepper.task.cancel()
                await asyncio.wait([stepper.task], timeout=1.0)
        self._cancelled = stepper.cancelled_at is not None
        self._where = stepper.where
        if stepper.late:
            self._found(Problem.LATE, "it ended later" if ended else "it never ended")
        if stepper.task.done():
            self._judge(stepper, expected)
        stepper.forget()

    def _judge(
        self, stepper: Stepper[object], expected: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        task = stepper.task
        if task.cancelled():
            if not self._cancelled:
                raise RuntimeError("the coroutine raised CancelledError, but was not cancelled")
            return
        error = task.exception()
        if self._cancelled:
            did = f"returned {task.result()!r}" if error is None else f"raised {error!r}"
            by = "" if stepper.reached_coroutine else ", for what it awaited ate the cancel"
            self._found(Problem.SWALLOWED, did + by)
        elif error is not None and not (expected and isinstance(error, expected)):
            raise error
        else:
            self._report.complete = True
            self._report.result = error or task.result()

    async def checked(self, check: Callable[..., object], given: tuple[object, ...]) -> None:
        """Let the caller check what the run left."""
        try:
            result = check(*given)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            if self._cancelled:
                at = f"point {self._point} ({self._where}), {self._moment.value}"
                error.add_note(f"after a run that was cancelled at {at}")
            raise

    def left(self, tasks: list[str], sockets: list[str], complaints: list[str]) -> None:
        """Judge what was left."""
        for problem, texts in (
            (Problem.LEAKED_TASK, tasks),
            (Problem.LEAKED_SOCKET, sockets),
            (Problem.COMPLAINT, complaints),
        ):
            for text in texts:
                self._found(problem, text)

    def _found(self, problem: Problem, detail: str) -> None:
        self._report.findings.append(
            Finding(
                problem=problem,
                point=self._point if self._cancelled else None,
                moment=self._moment if self._cancelled else None,
                where=self._where,
                detail=detail,
            )
        )
