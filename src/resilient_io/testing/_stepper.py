"""A coroutine around a coroutine, that counts its suspensions and has it cancelled at one."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from resilient_io.testing._places import place_of

if TYPE_CHECKING:
    from types import TracebackType

_T = TypeVar("_T")

_STEPS_OF_WAITING: Final = 3


class Moment(enum.Enum):
    """When, at a point where a coroutine waits, it is cancelled."""

    SUSPENDED = "when it began to wait"
    WAITING = "when it had waited for three steps of the loop"
    READY = "when what it waited for was there, before it ran on"


class Stepper(Coroutine[Any, Any, _T]):
    """Runs a coroutine in a task, which it cancels at the n-th suspension.

    Args:
        inner: The coroutine.
        point: The suspension to cancel at, counted from 1.
        moment: When to cancel there.
        within: Seconds after which a task that goes on is taken down as late.
        steps: Steps of the loop that it is given beyond that, should the loop itself have stalled.
    """

    def __init__(
        self,
        inner: Coroutine[Any, Any, _T],
        *,
        point: int,
        moment: Moment,
        within: float,
        steps: int,
    ) -> None:
        self._inner = inner
        self._point = point
        self._moment = moment
        self._within = within
        self._steps = steps
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
        """Run the coroutine to its next suspension, from an exception on."""
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
        """Frame of the coroutine, for those who ask where the task waits."""
        return getattr(self._inner, "cr_frame", None)

    @property
    def cr_await(self) -> object:
        """What the coroutine awaits, for the same."""
        return getattr(self._inner, "cr_await", None)

    def forget(self) -> None:
        """Let go of the coroutine and its task; it has been judged."""
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
        self._timer = loop.call_later(self._within, self._step_on, self._steps)

    def _step_on(self, steps: int) -> None:
        if self.task.done():
            return
        if steps:
            asyncio.get_running_loop().call_soon(self._step_on, steps - 1)
        else:
            self.late = True

    def _ended(self, _: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
