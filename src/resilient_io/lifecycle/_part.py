"""One part of a service: entered and left in a task of its own, within bounds."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from resilient_io.errors import ConfigurationError, DeadlineExceeded

from ._report import LifecycleStep, Outcome, log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._budget import Budget

__all__ = ["Part", "name_parts"]

_LAST = 0.25
"""Seconds for what was cancelled because its time was up."""


class Part:
    """Something that is started (if it has `__aenter__`) and closed (`aclose`, or `__aexit__`).

    Both happen in one task, as context managers with a task group or a cancel scope need it.

    Args:
        thing: What was given.
        name: How it is called in the report.
    """

    def __init__(self, thing: Any, name: str) -> None:
        self.thing = thing
        self.name = name
        self.ended: Callable[[Part, BaseException | None], object] | None = None
        self._task: asyncio.Task[None] | None = None
        self._entered: asyncio.Future[None] | None = None
        self._leave: asyncio.Future[float] | None = None
        self._result: object = None

    @property
    def takes_in(self) -> bool:
        """Whether it brings work in (`run`), and is closed while the body still goes on."""
        return callable(getattr(self.thing, "run", None))

    # --- starting

    async def start(self, timeout: float) -> None:
        """Enter it; cancelling this cancels that.

        Raises:
            DeadlineExceeded: It took longer than `timeout` seconds.
            Exception: What it raised.
        """
        loop = asyncio.get_running_loop()
        self._entered, self._leave = loop.create_future(), loop.create_future()
        self._task = loop.create_task(
            self._live(self._entered, self._leave), name=f"resilient-io lifecycle {self.name}"
        )
        began = loop.time()
        try:
            await asyncio.wait(
                [self._task, self._entered],
                timeout=timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            late = not self._task.done()
            self._task.add_done_callback(self._gone)
            if not self._entered.done():
                self._task.cancel()
        if self._entered.done():
            return
        await asyncio.wait([self._task], timeout=_LAST)
        if late:
            raise DeadlineExceeded(
                f"it did not start within {timeout:.3g} s",
                dependency=self.name,
                operation="start",
                elapsed=loop.time() - began,
            )
        if self._task.cancelled():
            raise RuntimeError(f"{self.name} ended its start by a cancellation of its own")
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
            await asyncio.wait([leave])  # awaited itself, it would be cancelled with us
        except asyncio.CancelledError as error:
            # A task group in it may have failed: it is left as `async with` would leave it.
            if not hasattr(kind, "__aexit__") or not await kind.__aexit__(
                self.thing, type(error), error, error.__traceback__
            ):
                raise
            return
        if hasattr(kind, "aclose"):
            self._result = await self.thing.aclose(**_within(leave.result(), self.thing.aclose))
        else:
            await kind.__aexit__(self.thing, None, None, None)

    def _gone(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()  # so that nobody complains of it
        running = self.started and self._leave is not None and not self._leave.done()
        if running and self.ended is not None:
            self.ended(self, error)

    # --- ending

    @property
    def started(self) -> bool:
        """Whether it was entered, or may be yet, so that it has to be closed."""
        if self._task is None or self._entered is None:
            return False
        return self._entered.done() or not self._task.done()

    async def close(self, budget: Budget, after: int) -> LifecycleStep:
        """Leave it, within its share of the time; it is cancelled when that is up.

        Args:
            budget: The time there is.
            after: How many steps come after this one.
        """
        task, leave = self._task, self._leave
        if task is None or leave is None:
            return LifecycleStep(name=self.name, seconds=0.0)
        began = budget.spent
        cancelled = self._cancelled()
        share = budget.share(after)
        if not leave.done():
            leave.set_result(budget.timeout_in(share))
        outcome: Outcome = "done"
        left = ""
        if not await budget.wait(task, lambda: _patience(budget.share(after))):
            outcome, left = "late", "its closing was cut short"
            task.cancel()
            await asyncio.wait([task], timeout=_last(share))
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
        return LifecycleStep(
            name=self.name,
            seconds=round(budget.spent - began, 6),
            outcome=outcome,
            left=", ".join(filter(None, [left, self._left(cancelled)])),
        )

    def _left(self, cancelled: int) -> str:
        """Say what it had still in hand, as far as it tells."""
        failures = getattr(self._result, "failures", None)
        if isinstance(failures, tuple) and failures:
            return f"{len(failures)} records not delivered"
        if more := self._cancelled() - cancelled:
            return f"{more} handlers cancelled, whose records come again"
        return ""

    def _cancelled(self) -> int:
        """Ask a consumer how many handlers did not get to their end."""
        try:
            run = self.thing.run_stats() if hasattr(self.thing, "run_stats") else None
        # The boundary between us and a part of others: what only tells must not keep it, and those
        # after it, from being closed.
        except Exception:  # noqa: BLE001
            return 0
        count = getattr(run, "cancelled", 0)
        return count if isinstance(count, int) else 0


def name_parts(things: Sequence[object]) -> list[Part]:
    """Name each part by its type and its dependency.

    Raises:
        ConfigurationError: One can be neither entered nor closed, or is given twice.
    """
    names: dict[str, int] = {}
    parts: list[Part] = []
    for position, thing in enumerate(things):
        kind = type(thing)
        if isinstance(thing, (list, tuple, type)):
            raise ConfigurationError(
                f"{thing!r} is no part of a service: write each by itself, made: "
                f"Lifecycle(monitor, consumer, producer, redis)"
            )
        if not hasattr(kind, "aclose") and not hasattr(kind, "__aexit__"):
            raise ConfigurationError(
                f"{thing!r} is no async context manager and has no aclose(): write "
                f"contextlib.aclosing(...), or close it in the body"
            )
        if any(thing is other for other in things[:position]):
            raise ConfigurationError(f"{thing!r} is given twice: give it once")
        name = kind.__name__
        of = getattr(getattr(thing, "health", None), "name", None)
        if isinstance(of, str):
            name += f" of {of}"
        names[name] = names.get(name, 0) + 1
        parts.append(Part(thing, name if names[name] == 1 else f"{name} #{names[name]}"))
    return parts


def _last(share: float) -> float:
    return min(_LAST, share / 16)


def _patience(share: float) -> float:
    return share - _last(share)


def _within(share: float, aclose: Callable[..., object]) -> dict[str, float]:
    """Give the timeout as arguments for `aclose`: its share, but no more than it takes by itself.

    A server that gives its last answers a second should not be made to wait for a slow reader.
    """
    try:
        timeout = inspect.signature(aclose).parameters.get("timeout")
    except ValueError:  # written in C, and silent about it
        return {}
    if timeout is None:
        return {}
    own = timeout.default
    return {"timeout": min(share, own) if isinstance(own, (int, float)) else share}
