"""An event loop with virtual time, which jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from .leaks import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from _typeshed import FileDescriptorLike

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_SOCKET_WAIT_BEFORE_JUMP: Final = 0.02
_SOCKET_WAIT_WITHOUT_TIMERS: Final = 5.0


class NothingWillHappenError(Exception):
    """All tasks wait, and no event will wake them; the message lists the tasks."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0.0 and jumps to the next timer when nothing is ready.

    A test that sleeps for an hour takes no time, and `loop.time()` is exact and the same in every
    run. When all tasks wait and no timer is set, the loop raises `NothingWillHappenError`, where
    another loop would hang. The loop waits for threads of `run_in_executor`. Sockets work, but
    before each jump they get 20 ms of real time; use a normal loop for tests with servers.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._threads = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def block(self, seconds: float) -> None:
        """Advance the time without running anything, like code that blocks the loop."""
        if not seconds >= 0:
            raise ValueError(f"seconds must be at least 0, not {seconds}: time cannot go back")
        self._now += seconds

    @property
    def waits_for_threads(self) -> bool:
        """Whether a thread of an executor runs, so that time stands still."""
        return self._threads > 0

    def jump(self) -> bool:
        """Set the time to the next timer; return False if there is none. For the selector."""
        # Relies on BaseEventLoop._scheduled (CPython 3.4 to 3.14), whose head is an active timer
        # when the selector is called: the sum of timeouts would drift because of rounding.
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if timers:
            self._now = max(self._now, timers[0].when())
        return bool(timers)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*_Ts], _T],
        *args: *_Ts,
    ) -> asyncio.Future[_T]:
        """Run a function in a thread; time stands still until it ends."""
        future = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the threads. Time stands still meanwhile, so `timeout` has no effect."""
        del timeout
        self._threads += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._threads -= 1

    def _thread_ended(self, _: asyncio.Future[_T]) -> None:
        self._threads -= 1


def new_virtual_loop() -> VirtualTimeLoop:
    """Return a new loop, as a `loop_factory` for `asyncio.Runner` or pytest-asyncio."""
    return VirtualTimeLoop()


class _JumpingSelector(selectors.BaseSelector):
    """Polls a real selector; if nothing is ready, the loop's time jumps instead of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._inner = selectors.DefaultSelector()

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._inner.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._loop.waits_for_threads:
            return self._inner.select(1.0)
        if len(self._inner.get_map()) > 1:  # one is the loop's own, with which threads wake it
            ready = self._inner.select(
                _SOCKET_WAIT_WITHOUT_TIMERS if timeout is None else _SOCKET_WAIT_BEFORE_JUMP
            )
        if not ready and not self._loop.jump():
            raise NothingWillHappenError(_waiting_tasks(self._loop))
        return ready


def _waiting_tasks(loop: asyncio.AbstractEventLoop) -> str:
    tasks = sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)
    places = [f"  {task.get_name()} in {place_of(task.get_coro())}" for task in tasks]
    return "\n".join(["no timer is set, nothing is ready, and these tasks wait:", *places])
