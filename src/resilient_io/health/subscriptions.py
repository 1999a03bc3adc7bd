"""Delivery of state changes: to callbacks, to async iterators, and to tasks that wait."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Generic, TypeVar

from resilient_io.deadlines import context_without_deadline, timeout_within
from resilient_io.errors import Closed, DeadlineExceeded
from resilient_io.tasks import wake
from resilient_io.validation import check_number

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

T = TypeVar("T")
W = TypeVar("W")

_log = logging.getLogger("resilient_io.health")


class Subscription(Generic[T]):
    """A registered callback. Call `remove()`, or use it in a `with` block.

    The callback runs later in the event loop, never inside the call or the probe that caused the
    change. It is not called again until an awaitable that it returned is done, and then only with
    the latest change.

    Attributes:
        failures: How often the callback raised an exception. Only the first is logged.
        dropped: Number of changes that a slow callback skipped.
    """

    def __init__(self, owner: Subscriptions[T], callback: Callable[[T], object]) -> None:
        self._owner = owner
        self._callback = callback
        self._context = context_without_deadline()
        self._pending: list[T] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.Handle | None = None
        self._running: asyncio.Future[object] | None = None
        self.failures = 0
        self.dropped = 0

    def remove(self) -> None:
        """Stop calling the callback. A call that is being awaited continues. Idempotent."""
        self._owner.discard(self)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def notify(self, change: T) -> None:
        """Schedule a call."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # calls scheduled in an earlier loop never run
            self._loop, self._handle, self._running = loop, None, None
        if self._running is not None:
            self.dropped += len(self._pending)
            self._pending.clear()
        self._pending.append(change)
        self._schedule()

    def _schedule(self) -> None:
        if self._running is None and self._handle is None and self._pending:
            self._handle = asyncio.get_running_loop().call_soon(self._call, context=self._context)

    def _call(self) -> None:
        self._handle = None
        if not self._pending:
            return
        change = self._pending.pop(0)
        try:
            result = self._callback(change)
        # The boundary to the application's callback. A CancelledError here comes from the callback
        # itself: a plain function cannot be cancelled.
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            self._record_failure(exc)
            self._schedule()
            return
        if not inspect.isawaitable(result):
            self._schedule()
            return
        running = asyncio.ensure_future(result)
        if len(self._pending) > 1:
            self.dropped += len(self._pending) - 1
            del self._pending[:-1]
        self._running = running
        self._owner.adopt(running)
        running.add_done_callback(self._ended, context=self._context)

    def _ended(self, running: asyncio.Future[object]) -> None:
        self._running = None
        stopped = self._owner.release(running)
        if running.cancelled():
            if not stopped:
                self._record_failure(asyncio.CancelledError())
        elif (failure := running.exception()) is not None:
            self._record_failure(failure)
        if not stopped:
            self._schedule()

    def _record_failure(self, failure: BaseException) -> None:
        self.failures += 1
        if self.failures == 1:
            _log.error(
                "%s: callback %r raised an exception; further ones are only counted",
                self._owner.name,
                self._callback,
                exc_info=failure,
                extra={"event": "callback_raised", "dependency": self._owner.name},
            )


class Subscriptions(Generic[T]):
    """The callbacks of one owner, isolated from the owner and from each other."""

    __slots__ = ("_all", "_running", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._all: list[Subscription[T]] = []
        self._running: list[asyncio.Future[object]] = []

    def add(self, callback: Callable[[T], object]) -> Subscription[T]:
        """Register a callback. Needs no running loop."""
        if not callable(callback):
            raise TypeError(
                f"callback must be a function of one argument, sync or async, not "
                f"{type(callback).__name__}: use on_change(print), or "
                f"`async def changed(change): ...`"
            )
        subscription = Subscription(self, callback)
        self._all.append(subscription)
        return subscription

    def discard(self, subscription: Subscription[T]) -> None:
        """Unregister a callback."""
        if subscription in self._all:
            self._all.remove(subscription)

    def notify(self, change: T) -> None:
        """Schedule a call of every callback."""
        for subscription in self._all:
            subscription.notify(change)

    def adopt(self, running: asyncio.Future[object]) -> None:
        """Own the awaitable of an async callback until it is done."""
        self._running.append(running)

    def release(self, running: asyncio.Future[object]) -> bool:
        """Stop owning an awaitable. Return whether `finish` cancelled it."""
        if running in self._running:
            self._running.remove(running)
            return False
        return True

    async def finish(self, timeout: float) -> None:
        """Wait for the async callbacks that are running, then cancel them."""
        await asyncio.sleep(0)  # the latest calls are only scheduled
        current = asyncio.current_task()
        running = [each for each in self._running if each is not current]
        if not running:
            return
        try:
            await asyncio.wait(running, timeout=timeout)
        finally:
            late = [each for each in running if not each.done()]
            for each in late:
                self._running.remove(each)
                each.cancel()
        if late:
            await asyncio.wait(late, timeout=timeout)


class Broadcast(Generic[T]):
    """Holds the latest item and wakes the tasks that wait for one."""

    __slots__ = ("_waiters", "closed", "latest", "number")

    def __init__(self, latest: T) -> None:
        self.latest = latest
        self.number = 0
        self.closed = False
        self._waiters: list[asyncio.Future[None]] = []

    def publish(self, item: T) -> None:
        """Replace the latest item."""
        self.latest = item
        self.number += 1
        self._wake()

    def close(self) -> None:
        """End every iteration after the latest item."""
        self.closed = True
        self._wake()

    async def wait(self) -> None:
        """Wait for the next `publish` or `close`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        wake(waiter for waiter in waiters if not waiter.get_loop().is_closed())


class Watch(Generic[T]):
    """An endless iteration over a broadcast: the current item, then the latest new one.

    A slow consumer sees only the latest change. Leaving the loop needs no cleanup.
    """

    def __init__(self, broadcast: Broadcast[T]) -> None:
        self._broadcast = broadcast
        self._seen = -1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        broadcast = self._broadcast
        while self._seen == broadcast.number:
            if broadcast.closed:
                raise StopAsyncIteration
            await broadcast.wait()
        self._seen = broadcast.number
        return broadcast.latest


async def wait_until(
    broadcast: Broadcast[W],
    reached: Callable[[], bool],
    *,
    timeout: float | None,
    dependency: str,
    operation: str,
    describe: Callable[[], str],
) -> None:
    """Wait until `reached()` returns true. It is called again after every broadcast."""
    if timeout is not None:
        check_number("timeout", timeout)
    if reached():
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with timeout_within(timeout):
            while not reached():
                if broadcast.closed:
                    raise Closed(
                        "it was closed",
                        dependency=dependency,
                        operation=operation,
                        elapsed=loop.time() - began,
                    )
                await broadcast.wait()
    except TimeoutError:
        if reached():
            return
        raise DeadlineExceeded(
            describe(), dependency=dependency, operation=operation, elapsed=loop.time() - began
        ) from None
