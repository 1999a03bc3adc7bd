"""News for those who were given as callbacks: isolated from the teller and from each other."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from resilient_io.deadlines import context_without_deadline, current_deadline
from resilient_io.errors import Closed, DeadlineExceeded
from resilient_io.validation import check_number

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


T = TypeVar("T")

_log = logging.getLogger("resilient_io.health")


class Subscription(Generic[T]):
    """A registered callback; `remove()` it, or use it in a `with` block.

    The callback runs later, in the event loop: never inside the call or the probe that brought
    the news. Until an awaitable that it returned is done it is not called again, and then only
    with the newest news.

    Attributes:
        failures: How often the callback raised. Only the first time is logged.
        dropped: News that it was too slow for.
    """

    def __init__(self, owner: Subscriptions[T], callback: Callable[[T], object]) -> None:
        self._owner = owner
        self._callback = callback
        self._context = context_without_deadline()
        self._pending: deque[T] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.Handle | None = None
        self._running: asyncio.Future[object] | None = None
        self.failures = 0
        self.dropped = 0

    def remove(self) -> None:
        """Call it no more. One that is being awaited goes on. Removing twice does no harm."""
        self._owner.discard(self)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def tell(self, news: T) -> None:
        """Call it soon."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what the loop before this one left behind will never run
            self._loop, self._handle, self._running = loop, None, None
        if self._running is not None:
            self.dropped += len(self._pending)
            self._pending.clear()
        self._pending.append(news)
        self._schedule()

    def _schedule(self) -> None:
        if self._running is None and self._handle is None and self._pending:
            self._handle = asyncio.get_running_loop().call_soon(self._call, context=self._context)

    def _call(self) -> None:
        self._handle = None
        if not self._pending:
            return
        news = self._pending.popleft()
        try:
            result = self._callback(news)
        # The boundary between us and a callback of others. A CancelledError here is of the
        # callback's own making: nobody can cancel a plain function.
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001
            self._note_failure(exc)
            self._schedule()
            return
        if not inspect.isawaitable(result):
            self._schedule()
            return
        running = asyncio.ensure_future(result)
        while len(self._pending) > 1:
            self._pending.popleft()
            self.dropped += 1
        self._running = running
        self._owner.adopt(running)
        running.add_done_callback(self._ended, context=self._context)

    def _ended(self, running: asyncio.Future[object]) -> None:
        self._running = None
        stopped = self._owner.release(running)
        if running.cancelled():
            if not stopped:
                self._note_failure(asyncio.CancelledError())
        elif (failure := running.exception()) is not None:
            self._note_failure(failure)
        if not stopped:
            self._schedule()

    def _note_failure(self, failure: BaseException) -> None:
        self.failures += 1
        if self.failures == 1:
            _log.error(
                "%s: callback %r raised; further failures of it are only counted",
                self._owner.name,
                self._callback,
                exc_info=failure,
                extra={"event": "callback_raised", "dependency": self._owner.name},
            )


class Subscriptions(Generic[T]):
    """The callbacks of one owner, and the awaitables they are busy with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._all: list[Subscription[T]] = []
        self._busy: list[asyncio.Future[object]] = []

    def add(self, callback: Callable[[T], object]) -> Subscription[T]:
        """Register a callback; needs no running loop."""
        if not callable(callback):
            message = (
                f"on_change() needs a function of one argument, sync or async, not {callback!r}: "
                f"write on_change(print), or `async def changed(change): ...`"
            )
            raise TypeError(message)
        subscription = Subscription(self, callback)
        self._all.append(subscription)
        return subscription

    def discard(self, subscription: Subscription[T]) -> None:
        """Forget a callback."""
        if subscription in self._all:
            self._all.remove(subscription)

    def tell(self, news: T) -> None:
        """Tell every callback, soon."""
        for subscription in self._all:
            subscription.tell(news)

    def adopt(self, running: asyncio.Future[object]) -> None:
        """Own an awaitable until it is done."""
        self._busy.append(running)

    def release(self, running: asyncio.Future[object]) -> bool:
        """Own it no longer; return whether it was we who stopped it."""
        if running in self._busy:
            self._busy.remove(running)
            return False
        return True

    async def finish(self, grace: float) -> None:
        """Let the callbacks that are being awaited end, then cancel them.

        Args:
            grace: Seconds they are given, and again for ending after the cancellation.
        """
        await asyncio.sleep(0)  # those told just now have not been called yet
        me = asyncio.current_task()
        busy = [running for running in self._busy if running is not me]
        if not busy:
            return
        try:
            await asyncio.wait(busy, timeout=grace)
        finally:
            late = [running for running in busy if not running.done()]
            for running in late:
                self._busy.remove(running)
                running.cancel()
        if late:
            await asyncio.wait(late, timeout=grace)


class Feed(Generic[T]):
    """Holds the newest item, and wakes those who wait for one."""

    def __init__(self, newest: T) -> None:
        self.newest = newest
        self.number = 0
        self.closed = False
        self._waiting: list[asyncio.Future[None]] = []

    def publish(self, item: T) -> None:
        """Replace the newest item."""
        self.newest = item
        self.number += 1
        self._wake()

    def close(self) -> None:
        """End every iteration once it has seen the newest item."""
        self.closed = True
        self._wake()

    async def wait(self) -> None:
        """Return at the next `publish` or `close`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)


class Watch(Generic[T]):
    """An endless iteration over a feed: what is now, then the newest of what came since.

    It needs no clean-up: leaving it by `break` or by cancellation leaves nothing behind.
    """

    def __init__(self, feed: Feed[T]) -> None:
        self._feed = feed
        self._seen = -1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        feed = self._feed
        while self._seen == feed.number:
            if feed.closed:
                raise StopAsyncIteration
            await feed.wait()
        self._seen = feed.number
        return feed.newest


W = TypeVar("W")


async def wait_until(
    feed: Feed[W],
    reached: Callable[[], bool],
    *,
    timeout: float | None,
    dependency: str,
    operation: str,
    describe: Callable[[], str],
) -> None:
    """Wait until `reached()`; it is asked again whenever the feed has news.

    Raises:
        ConfigurationError: `timeout` is negative or no number.
        DeadlineExceeded: It was not reached in time; `describe()` says what was instead.
        Closed: The feed was closed.
    """
    if timeout is not None:
        check_number("timeout", timeout)
    if reached():
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = current_deadline()
    if timeout is not None and (until is None or began + timeout < until):
        until = began + timeout
    try:
        async with asyncio.timeout_at(until):
            while not reached():
                if feed.closed:
                    raise Closed(
                        "it was closed",
                        dependency=dependency,
                        operation=operation,
                        elapsed=loop.time() - began,
                    )
                await feed.wait()
    except TimeoutError:
        if reached():
            return
        raise DeadlineExceeded(
            describe(),
            dependency=dependency,
            operation=operation,
            elapsed=loop.time() - began,
        ) from None
