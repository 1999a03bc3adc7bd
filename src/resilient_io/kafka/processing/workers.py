"""The tasks that call the handler: as many as may run at the same time, not one per record."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_io.deadlines import context_without_deadline
from resilient_io.tasks import wake

from ..record import place_of
from .scheduler import Action

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiokafka import TopicPartition

    from ..instrumentation import Tracing
    from ..stats import RunCounters
    from .failures import FailureHandler
    from .scheduler import Item, Scheduler

_log = logging.getLogger("resilient_io.kafka")

_LONGEST_STRETCH = 0.005
"""Seconds after which the event loop runs other tasks, even if handlers never wait."""

_WOKEN_TOGETHER = 2

CANCEL_GRACE = 1.0
"""Seconds that a cancelled handler gets for its cleanup."""


@dataclass(slots=True, eq=False)
class Worker:
    """One task that calls the handler."""

    # Set directly after the construction: the task needs the worker.
    task: asyncio.Task[None] = field(init=False)
    items: Sequence[Item] = ()  # the records in its hands
    since: float = 0.0  # loop time at which it took them
    evicted: bool = False  # whether it was cancelled to take the records out of its hands
    freed: asyncio.Future[None] | None = None  # done when its hands are empty
    parked: asyncio.Future[None] | None = None  # done to wake it


@dataclass(kw_only=True, eq=False, repr=False)
class WorkerPool:
    """A pool of workers that grows with the work, up to `concurrency`.

    Each worker that wakes up wakes two more while records are ready. So a thousand workers are
    awake within ten iterations of the event loop, but if handlers return immediately, the first
    worker does everything alone. `stop` is called with an exception that ended a worker and is not
    an `Exception` (`SystemExit`, for example).
    """

    loop_body: HandlerLoop
    scheduler: Scheduler
    concurrency: int
    stop: Callable[[BaseException], None]
    shutting_down: Callable[[], bool]
    check_membership: Callable[[], None]

    def __post_init__(self) -> None:
        self.allowed = self.concurrency
        self.working = 0
        self.stretch_ends = 0.0  # after this loop time, a worker lets other tasks run
        self._ready = self.scheduler.ready
        self._loop = asyncio.get_running_loop()
        self._context = context_without_deadline()
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        self._started = 0
        self._closing = False
        self._new_stretch_scheduled = False

    # --- for the workers

    async def park(self, worker: Worker) -> None:
        """Wait until there is work and another worker is allowed."""
        worker.items = ()
        self.working -= 1
        self._idle.append(worker)
        parked = worker.parked = self._loop.create_future()
        await parked
        worker.parked = None
        self.wake_others()

    def wake_others(self) -> None:
        """Wake two more workers if there is work for more than the calling one."""
        if len(self._ready) > 1:
            self.wake()

    async def pause(self, worker: Worker) -> None:
        """Yield to the event loop; park the worker if too many work or the group expelled us."""
        # All three are checked with one comparison per record: `now > stretch_ends`. A process that
        # was stopped for a whole session is past every stretch, before any timer was called.
        self.check_membership()
        if self.working > self.allowed:
            await self.park(worker)
            return
        worker.items = ()
        if not self._new_stretch_scheduled:
            self._new_stretch_scheduled = True
            self._loop.call_soon(self._begin_stretch)
        await asyncio.sleep(0)

    def release(self, worker: Worker) -> None:
        """Note that a worker's hands are empty, and wake what waits for that."""
        worker.items = ()
        if worker.evicted:
            worker.evicted = False
            worker.task.uncancel()
        freed, worker.freed = worker.freed, None
        if freed is not None:
            wake([freed])

    def _begin_stretch(self) -> None:
        self._new_stretch_scheduled = False
        if self.working <= self.allowed:
            self.stretch_ends = self._loop.time() + _LONGEST_STRETCH

    # --- for the processor

    def wake(self) -> None:
        """Wake or start up to two workers if there is work."""
        for _ in range(_WOKEN_TOGETHER):
            if self._closing or self.working >= self.allowed or not self._ready:
                return
            if self._idle:
                worker = self._idle.pop()
                self.working += 1
                if worker.parked is not None:
                    wake([worker.parked])
            elif len(self._workers) < self.concurrency:
                self._start_worker()
            else:
                return

    def allow(self, allowed: int) -> None:
        """Change how many workers may work; surplus ones stop after their current record."""
        self.allowed = allowed
        if self.working > allowed:
            self.stretch_ends = -math.inf  # each worker pauses before it takes another record
        self.wake()

    def busy(self) -> list[Worker]:
        """Return the workers that have records in their hands."""
        return [worker for worker in self._workers if worker.items]

    async def empty_hands(
        self,
        partitions: Sequence[TopicPartition] | None,
        timeout: float,
        caller: asyncio.Task[Any] | None = None,
        *,
        grace: float = CANCEL_GRACE,
    ) -> int:
        """Wait until no worker has a record of these partitions (None: of any).

        Return how many handlers were cancelled because they took longer than `timeout`; they get
        `grace` seconds for their cleanup. `caller` is the task that waits for this: if it is a
        worker, it is not waited for.
        """
        holding = [worker for worker in self._holding(partitions) if worker.task is not caller]
        if holding and timeout > 0.0:
            await asyncio.wait([self._freed(worker) for worker in holding], timeout=timeout)
        late = self._holding(partitions)
        for worker in late:
            worker.evicted = True
            worker.task.cancel()
        if late:
            await asyncio.wait([self._freed(worker) for worker in late], timeout=grace)
        for worker in late:
            if worker.items and worker.evicted:
                record = worker.items[0][1]
                _log.error(
                    "the handler of %s was cancelled but does not end: it suppresses the "
                    "cancellation, and may run at the same time as the next handler of its key",
                    place_of(record),
                    extra={
                        "event": "handler_swallows_cancel",
                        "topic": record.topic,
                        "partition": record.partition,
                        "offset": record.offset,
                    },
                )
        return len(late)

    def dismiss(self) -> list[asyncio.Task[None]]:
        """Cancel every worker, and return their tasks."""
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
                partitions is None
                or any(state.partition in partitions for state, *_ in worker.items)
            )
        ]

    def _freed(self, worker: Worker) -> asyncio.Future[None]:
        if worker.freed is None:
            worker.freed = self._loop.create_future()
        return worker.freed

    def _start_worker(self) -> None:
        worker = Worker()
        self._started += 1
        self.working += 1
        worker.task = self._loop.create_task(
            self.loop_body.run(worker, self),
            name=f"resilient-io handler {self._started}",
            context=self._context.copy(),
        )
        self._workers.append(worker)
        worker.task.add_done_callback(functools.partial(self._ended, worker))

    def _ended(self, worker: Worker, task: asyncio.Task[None]) -> None:
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        else:
            self.working -= 1
        items = worker.items
        if self._closing or self.shutting_down():
            self._closing = True
            self.loop_body.abandon(worker)
        elif not task.cancelled() and (error := task.exception()) is not None:
            self.loop_body.abandon(worker)
            self.stop(error)
        elif items:
            # The handler cancelled its own task: that ends this worker, but not the consumer.
            error = RuntimeError("the handler cancelled the task that it runs in")
            self.loop_body.failed(worker, error)
        worker.items = ()
        if worker.freed is not None:
            wake([worker.freed])
        self.wake()


@dataclass(kw_only=True, eq=False, repr=False)
class HandlerLoop:
    """What a worker runs: takes ready records, calls the handler, and handles its failures.

    With `batch_size`, the handler is called with all ready records, up to that number. Records of
    one key are in order within a batch, and no other batch contains records of that key at the same
    time. A batch that fails is not given up as a whole: each record that the handler has
    not marked as done is retried alone, so that only the one that causes the failure is given up.
    """

    handler: Callable[..., Awaitable[object]]
    batch_size: int | None
    timeout: float | None
    scheduler: Scheduler
    failures: FailureHandler
    counters: RunCounters

    async def run(  # noqa: C901, PLR0912 - one loop without calls in between: it runs per record
        self, worker: Worker, pool: WorkerPool
    ) -> None:
        """Take records and call the handler, until the task is cancelled."""
        handler, batch_size = self.handler, self.batch_size
        if self.timeout is not None:
            handler = _with_timeout(handler, self.timeout)
        scheduler, failures, counters = self.scheduler, self.failures, self.counters
        ready, finish = scheduler.ready, scheduler.finish
        time = asyncio.get_running_loop().time
        items: Sequence[Item]
        pool.wake_others()
        while True:
            if not ready:
                await pool.park(worker)
                continue
            now = time()
            if now > pool.stretch_ends:
                await pool.pause(worker)
                continue
            items = (ready.popleft(),) if batch_size is None else self._take(batch_size)
            worker.items = items
            worker.since = now
            state, record, retry_state = items[0]
            handled = False
            try:
                if retry_state is not None and retry_state.action is not Action.HANDLE:
                    await failures.proceed(items[0])
                elif record.error is not None:
                    failures.unreadable(state, record, record.error)
                else:
                    await handler(record if batch_size is None else [each[1] for each in items])
                    handled = True
            # The boundary to the application's handler, which may raise anything.
            except Exception as error:  # noqa: BLE001
                self._raised(worker, error)
            except asyncio.CancelledError as error:
                if worker.task.cancelling() and not worker.evicted:
                    raise  # the task itself was cancelled
                failure = RuntimeError("the handler raised CancelledError by itself")
                failure.__cause__ = error
                self._raised(worker, failure)
            if handled:
                if batch_size is None:
                    counters.handled += 1
                    finish(state, record)
                else:
                    self._finish(items)
            if worker.freed is not None:
                pool.release(worker)

    def failed(self, worker: Worker, error: Exception) -> None:
        """Handle the failure of the records in a worker's hands: each is retried alone."""
        items = worker.items
        if self.batch_size is None:
            self.failures.handler_failed(items[0], error, worker.since)
            return
        for group in self._by_key(items):
            left = self._settle_marked(group)
            if len(items) == 1 and left:
                self.failures.handler_failed(left[0], error, worker.since)
            elif left:
                self.failures.batch_failed(left, error, worker.since)

    def abandon(self, worker: Worker) -> None:
        """Take the records out of a worker's hands; those still assigned are ready again."""
        for group in reversed(self._by_key(worker.items)):
            left = group if self.batch_size is None else self._settle_marked(group)
            if not left:
                continue
            head, *followers = left
            if head[0].revoked:
                for _, record, _ in (head, *followers):
                    self.scheduler.forget(record)
            else:
                self.scheduler.put_behind(head[0], head[1], followers)
                self.scheduler.ready.appendleft(head)

    def _raised(self, worker: Worker, error: Exception) -> None:
        if worker.evicted:
            self.abandon(worker)  # it failed because it was cancelled
        else:
            self.failed(worker, error)

    def _take(self, size: int) -> list[Item]:
        ready = self.scheduler.ready
        items: list[Item] = []
        while ready and len(items) < size:
            if not _may_be_batched(ready[0]):
                return items or [ready.popleft()]
            head = ready.popleft()
            items.append(head)
            waiting = self.scheduler.behind(head[0], head[1])
            while waiting and len(items) < size and _may_be_batched(waiting[0]):
                items.append(waiting.popleft())
        return items

    def _finish(self, items: Sequence[Item]) -> None:
        self.counters.handled += len(items)
        for head, *followers in self._by_key(items):
            for state, record, _ in followers:
                state.progress.done(record.offset)
                self.scheduler.forget(record)
            self.scheduler.finish(head[0], head[1])

    def _settle_marked(self, group: list[Item]) -> list[Item]:
        """Return the records of a key queue that the batch handler has not marked as done."""
        left = [item for item in group if not item[1].handled]
        self.counters.handled += len(group) - len(left)
        head, *followers = group
        if not left:
            for _, record, _ in followers:
                self.scheduler.forget(record)
            self.scheduler.finish(head[0], head[1])
        elif len(left) < len(group):
            for _, record, _ in group:
                if record.handled:
                    self.scheduler.forget(record)
        return left

    def _by_key(self, items: Sequence[Item]) -> list[list[Item]]:
        """Return the records of a batch grouped by key queue, each group in order."""
        groups: list[list[Item]] = []
        latest = None
        for item in items:
            state, record, _ = item
            key = self.scheduler.key_of(record)
            if key is not None and latest == (state.partition, key):
                groups[-1].append(item)
            else:
                groups.append([item])
            latest = (state.partition, key)
        return groups


def _may_be_batched(item: Item) -> bool:
    retry_state = item[2]
    if retry_state is None:
        return item[1].error is None
    return retry_state.action is Action.HANDLE and not retry_state.alone


def _with_timeout(
    handler: Callable[..., Awaitable[object]], seconds: float
) -> Callable[..., Awaitable[object]]:
    """Return the handler with a time limit, which the resulting TimeoutError names."""

    async def handle(records: object) -> None:
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                await handler(records)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            message = f"the handler took longer than HandlerPolicy(timeout={seconds:g})"
            raise TimeoutError(message) from error

    return handle


def trace_handler(
    handler: Callable[[Any], Awaitable[object]], tracing: Tracing, *, batches: bool
) -> Callable[[Any], Awaitable[object]]:
    """Return the handler with a span around each call."""

    async def handle(given: Any) -> None:
        with tracing.processing(given if batches else [given]):
            await handler(given)

    return handle
