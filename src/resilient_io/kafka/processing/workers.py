"""The tasks that call the handler: as many as may run at once, none per record."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.deadlines import context_without_deadline

from .failures import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_io.kafka.consumer.record import TopicPartition

    from .backlog import Backlog, Item

__all__ = ["Work", "Worker", "Workers"]

_log = logging.getLogger("resilient_io.kafka")

_LONGEST_STRETCH = 0.005
_WOKEN_AT_ONCE = 2
EVICTION_GRACE = 1.0
"""Seconds that a cancelled handler gets for its clean-up."""


class Worker:
    """One task, and what it is doing.

    Attributes:
        task: The task.
        items: The records in its hands; empty when it waits for some.
        since: Loop time at which it took them.
        evicted: Whether it was we who cancelled it, to take the records out of its hands.
        freed: Settled when its hands are empty, if somebody waits for that.
        parked: Settled to wake it, while it waits for work.
    """

    __slots__ = ("evicted", "freed", "items", "parked", "since", "task")

    task: asyncio.Task[None]  # set as soon as there is one

    def __init__(self) -> None:
        self.items: Sequence[Item] = ()
        self.since = 0.0
        self.evicted = False
        self.freed: asyncio.Future[None] | None = None
        self.parked: asyncio.Future[None] | None = None


class Work(Protocol):
    """What a worker does with the records that are ready."""

    async def run(self, worker: Worker, pool: Workers) -> None:
        """Take records and call the handler, for ever."""

    def failed(self, worker: Worker, error: Exception) -> None:
        """The records in a worker's hands failed."""

    def abandon(self, worker: Worker) -> None:
        """The records in a worker's hands were taken away: those still ours are ready again."""


class Workers:
    """A pool that grows as there is work, up to `concurrency`.

    Each worker that wakes up wakes two more while records are ready: so a thousand are awake
    within ten turns of the loop, and when handlers return at once the first one does it all.

    Args:
        work: What they do.
        backlog: The records.
        concurrency: Workers at most.
        stop: Called with the error (no `Exception`: `SystemExit`, say) that ended a worker.
        ending: Whether all tasks of the loop are being cancelled, and not by us.

    Attributes:
        allowed: Workers that may be working now.
        working: Those that are.
        stretch_ends: Loop time at which the loop has to get its turn.
    """

    def __init__(
        self,
        work: Work,
        backlog: Backlog,
        concurrency: int,
        *,
        stop: Callable[[BaseException], None],
        ending: Callable[[], bool],
    ) -> None:
        self._work = work
        self._ready = backlog.ready
        self._concurrency = concurrency
        self._stop = stop
        self._ending = ending
        self._loop = asyncio.get_running_loop()
        self._context = context_without_deadline()
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._numbered = 0
        self._closing = False
        self._turn_marked = False
        self.allowed = concurrency
        self.working = 0
        self.stretch_ends = 0.0

    # --- for the workers

    async def park(self, worker: Worker) -> None:
        """Wait until there is something to do, and a worker more is allowed."""
        worker.items = ()
        self.working -= 1
        self._idle.append(worker)
        parked = worker.parked = self._loop.create_future()
        await parked
        worker.parked = None
        self.wake_others()

    def wake_others(self) -> None:
        """A worker is awake: if it will not do alone, wake two more."""
        if len(self._ready) > 1:
            self.wake()

    async def pause(self, worker: Worker) -> None:
        """The stretch is over: let the loop look at its sockets and timers, or stop working.

        So one question per record, `now > stretch_ends`, is enough for both.
        """
        if self.working > self.allowed:
            await self.park(worker)
            return
        worker.items = ()
        if not self._turn_marked:
            self._turn_marked = True
            self._loop.call_soon(self._new_turn)
        await asyncio.sleep(0)

    def release(self, worker: Worker) -> None:
        """A worker's hands are empty, and somebody waits for that."""
        worker.items = ()
        if worker.evicted:
            worker.evicted = False
            worker.task.uncancel()
        freed, worker.freed = worker.freed, None
        if freed is not None and not freed.done():
            freed.set_result(None)

    def _new_turn(self) -> None:
        self._turn_marked = False
        if self.working <= self.allowed:
            self.stretch_ends = self._loop.time() + _LONGEST_STRETCH

    # --- for their owner

    def wake(self) -> None:
        """Something is ready: see that somebody looks."""
        for _ in range(_WOKEN_AT_ONCE):
            if self._closing or self.working >= self.allowed or not self._ready:
                return
            if self._idle:
                worker = self._idle.pop()
                self.working += 1
                if worker.parked is not None and not worker.parked.done():
                    worker.parked.set_result(None)
            elif len(self._workers) < self._concurrency:
                self._hire()
            else:
                return

    def allow(self, allowed: int) -> None:
        """Change how many may be working; those above it stop when their record is done."""
        self.allowed = allowed
        if self.working > allowed:
            self.stretch_ends = -math.inf  # each looks before it takes another record
        self.wake()

    def busy(self) -> list[Worker]:
        """Return those that have records in their hands."""
        return [worker for worker in self._workers if worker.items]

    async def empty_hands(
        self,
        partitions: Sequence[TopicPartition] | None,
        timeout: float,
        asking: asyncio.Task[Any] | None = None,
    ) -> int:
        """Wait until no worker has a record of these partitions; cancel those that still have.

        Cancelling it leaves at once.

        Args:
            partitions: Which; None for all.
            timeout: Seconds before they are cancelled.
            asking: A task that waits for this itself: as a worker it would wait in vain.

        Returns:
            Handlers that were cancelled.
        """
        held = [worker for worker in self._holding(partitions) if worker.task is not asking]
        if held and timeout > 0.0:
            await asyncio.wait([self._freed(worker) for worker in held], timeout=timeout)
        late = self._holding(partitions)
        for worker in late:
            worker.evicted = True
            worker.task.cancel()
        if late:
            await asyncio.wait([self._freed(worker) for worker in late], timeout=EVICTION_GRACE)
        for worker in late:
            if worker.items and worker.evicted:
                _log.error(
                    "the handler of %s was cancelled and does not end: it swallows the "
                    "cancellation, and may run beside the next handler of its key",
                    place_of(worker.items[0][1]),
                    extra={
                        "event": "handler_swallows_cancel",
                        "topic": worker.items[0][1].topic,
                        "partition": worker.items[0][1].partition,
                        "offset": worker.items[0][1].offset,
                    },
                )
        return len(late)

    def dismiss(self) -> list[asyncio.Task[None]]:
        """Cancel every worker, and return their tasks to be waited for."""
        self._closing = True
        tasks = [worker.task for worker in self._workers]
        for task in tasks:
            task.cancel()
        return tasks

    def _holding(self, partitions: Sequence[TopicPartition] | None) -> list[Worker]:
        return [
            worker
            for worker in self._workers
            if worker.items
            and (
                partitions is None or any(flow.partition in partitions for flow, *_ in worker.items)
            )
        ]

    def _freed(self, worker: Worker) -> asyncio.Future[None]:
        if worker.freed is None:
            worker.freed = self._loop.create_future()
        return worker.freed

    def _hire(self) -> None:
        worker = Worker()
        self._numbered += 1
        self.working += 1
        worker.task = self._loop.create_task(
            self._work.run(worker, self),
            name=f"resilient-io handler {self._numbered}",
            context=self._context.copy(),
        )
        self._workers.append(worker)
        worker.task.add_done_callback(functools.partial(self._left, worker))

    def _left(self, worker: Worker, task: asyncio.Task[None]) -> None:
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        else:
            self.working -= 1
        items = worker.items
        if self._closing or self._ending():
            self._closing = True
            self._work.abandon(worker)
        elif not task.cancelled() and (error := task.exception()) is not None:
            self._work.abandon(worker)
            self._stop(error)
        elif items:
            # The handler cancelled the task it runs in, which is ours. That ended this worker, as
            # a cancellation must; it does not end the consumer.
            error = RuntimeError("the handler cancelled the task that it runs in")
            self._work.failed(worker, error)
        worker.items = ()
        if worker.freed is not None and not worker.freed.done():
            worker.freed.set_result(None)
        self.wake()
