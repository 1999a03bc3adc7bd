"""The tasks that call the handler: as many as may run at once, none per record."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from resilient_io.deadlines import context_without_deadline
from resilient_io.errors import ConfigurationError

from .retries import Stage, place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..consumer.record import Record, TopicPartition
    from ..instrumentation import Tracing
    from .retries import Failures
    from .scheduler import Backlog, Item


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


class Handling:
    """Calls the application's handler, and sees to what it raises.

    Args:
        handler: The application's.
        timeout: Seconds for one call; None for no bound.
        backlog: The records.
        failures: Judges what the handler raises.
        stop: Called when the handler is none, with the error that says so.

    Attributes:
        handled: Records that the handler took without raising.
    """

    takes: ClassVar[str]
    """What a handler's argument is called, in the advice on how to write one."""

    def __init__(
        self,
        handler: Callable[..., Awaitable[object]],
        *,
        timeout: float | None,
        backlog: Backlog,
        failures: Failures,
        stop: Callable[[Exception], None],
    ) -> None:
        self._handler = handler if timeout is None else _bounded(handler, timeout)
        self._backlog = backlog
        self._failures = failures
        self._stop = stop
        self.handled = 0

    def failed(self, worker: Worker, error: Exception) -> None:
        """What is in a worker's hands failed."""
        raise NotImplementedError

    def abandon(self, worker: Worker) -> None:
        """What is in a worker's hands was taken away."""
        raise NotImplementedError

    def _raised(self, worker: Worker, error: Exception) -> None:
        if worker.evicted:
            self.abandon(worker)  # it failed because we cancelled it
        elif _is_no_handler(error):
            self.abandon(worker)
            self._stop(_no_handler(error, self.takes))
        else:
            self.failed(worker, error)


def _bounded(
    handler: Callable[..., Awaitable[object]], seconds: float
) -> Callable[..., Awaitable[object]]:
    """Return the handler with a bound on its time; what it raises tells of the bound."""

    async def handle(records: object) -> None:
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                await handler(records)
        except TimeoutError as error:
            if not bound.expired():
                raise
            message = f"the handler took longer than HandlerPolicy(timeout={seconds:g})"
            raise TimeoutError(message) from error

    return handle


def as_failure(error: asyncio.CancelledError) -> Exception:
    """Return a CancelledError that the handler raised by itself as an error like any other."""
    failure = RuntimeError("the handler raised CancelledError by itself")
    failure.__cause__ = error
    return failure


def _is_no_handler(error: Exception) -> bool:
    """Whether it was the call of the handler itself that is wrong, and not what it does."""
    if type(error) is not TypeError or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return Path(innermost.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def _no_handler(error: Exception, takes: str) -> ConfigurationError:
    """Return the error that says what a handler has to be."""
    refusal = ConfigurationError(
        f"the handler cannot be called ({error}): write `async def handle({takes}): ...`"
    )
    refusal.__cause__ = error
    return refusal


class Singles(Handling):
    """Calls the handler with one record after the other."""

    takes = "record"

    async def run(  # noqa: C901, PLR0912 - one loop without calls in between: it runs per record
        self, worker: Worker, pool: Workers
    ) -> None:
        """Take records and call the handler, for ever."""
        handler = self._handler
        backlog, failures = self._backlog, self._failures
        ready, finished = backlog.ready, backlog.finished
        time = asyncio.get_running_loop().time
        pool.wake_others()
        while True:
            if not ready:
                await pool.park(worker)
                continue
            now = time()
            if now > pool.stretch_ends:
                await pool.pause(worker)
                continue
            item = flow, record, case = ready.popleft()
            worker.items = (item,)
            worker.since = now
            handled = False
            try:
                if case is None:
                    if record.error is None:
                        await handler(record)
                        handled = True
                    else:
                        failures.unreadable(flow, record, record.error)
                elif case.stage is Stage.HANDLE:
                    await handler(record)
                    handled = True
                else:
                    await failures.go_on(item)
            # The boundary to the application's handler: whatever it raises is judged.
            except Exception as error:  # noqa: BLE001
                self._raised(worker, error)
            except asyncio.CancelledError as error:
                if worker.task.cancelling() and not worker.evicted:
                    raise  # meant for this task: it ends
                self._raised(worker, as_failure(error))
            if handled:
                self.handled += 1
                finished(flow, record)
            if worker.freed is not None:
                pool.release(worker)

    def failed(self, worker: Worker, error: Exception) -> None:
        """The record in a worker's hands failed."""
        for item in worker.items:
            self._failures.handler_failed(item, error, worker.since)

    def abandon(self, worker: Worker) -> None:
        """The record in a worker's hands was taken away: if it is still ours, it is ready."""
        for item in worker.items:
            if item[0].revoked:
                self._backlog.forget(item[1])
            else:
                self._backlog.ready.appendleft(item)


class Batches(Handling):
    """Calls the handler with as many records as are ready, up to a number.

    Records of one line are in a batch in their order, and no other batch has one of that line
    meanwhile. A batch that fails is not given up as a whole: each of its records is tried again by
    itself, so that the culprit is found and the others are not lost with it.

    Args:
        size: Records in a batch, at most.
        **rest: What `Handling` takes.
    """

    takes = "records"

    def __init__(
        self, handler: Callable[[list[Record]], Awaitable[object]], size: int, **rest: Any
    ) -> None:
        super().__init__(handler, **rest)
        self._size = size

    async def run(  # noqa: C901 - one loop without calls in between: it runs per record
        self, worker: Worker, pool: Workers
    ) -> None:
        """Take batches and call the handler, for ever."""
        handler = self._handler
        ready = self._backlog.ready
        time = asyncio.get_running_loop().time
        pool.wake_others()
        while True:
            if not ready:
                await pool.park(worker)
                continue
            now = time()
            if now > pool.stretch_ends:
                await pool.pause(worker)
                continue
            items = self._take()
            worker.items = items
            worker.since = now
            case = items[0][2]
            handled = False
            try:
                if case is not None and case.stage is not Stage.HANDLE:
                    await self._failures.go_on(items[0])
                elif (error := items[0][1].error) is not None:
                    self._failures.unreadable(items[0][0], items[0][1], error)
                else:
                    await handler([record for _, record, _ in items])
                    handled = True
            # The boundary to the application's handler: whatever it raises is judged.
            except Exception as error:  # noqa: BLE001
                self._raised(worker, error)
            except asyncio.CancelledError as error:
                if worker.task.cancelling() and not worker.evicted:
                    raise  # meant for this task: it ends
                self._raised(worker, as_failure(error))
            if handled:
                self._handled(items)
            if worker.freed is not None:
                pool.release(worker)

    def failed(self, worker: Worker, error: Exception) -> None:
        """The records in a worker's hands failed: each is tried again by itself."""
        items = worker.items
        if len(items) == 1:
            self._failures.handler_failed(items[0], error, worker.since)
            return
        for line in self._lines(items):
            self._failures.line_failed(line, error, worker.since)

    def abandon(self, worker: Worker) -> None:
        """The records in a worker's hands were taken away: those still ours are ready again."""
        for head, *followers in reversed(self._lines(worker.items)):
            if head[0].revoked:
                for _, record, _ in (head, *followers):
                    self._backlog.forget(record)
            else:
                self._backlog.put_behind(head[0], head[1], followers)
                self._backlog.ready.appendleft(head)

    def _take(self) -> list[Item]:
        ready, size = self._backlog.ready, self._size
        items: list[Item] = []
        while ready and len(items) < size:
            if not _sociable(ready[0]):
                return items or [ready.popleft()]
            head = ready.popleft()
            items.append(head)
            waiting = self._backlog.behind(head[0], head[1])
            while waiting and len(items) < size and _sociable(waiting[0]):
                items.append(waiting.popleft())
        return items

    def _handled(self, items: Sequence[Item]) -> None:
        self.handled += len(items)
        for head, *followers in self._lines(items):
            for flow, record, _ in followers:
                flow.progress.done(record.offset)
                self._backlog.forget(record)
            self._backlog.finished(head[0], head[1])

    def _lines(self, items: Sequence[Item]) -> list[list[Item]]:
        """Return the records of a batch by line, each line in its order."""
        lines: list[list[Item]] = []
        latest = None
        for item in items:
            flow, record, _ = item
            key = self._backlog.key_of(record)
            if key is not None and latest == (flow.partition, key):
                lines[-1].append(item)
            else:
                lines.append([item])
            latest = (flow.partition, key)
        return lines


def _sociable(item: Item) -> bool:
    """Whether a record may be in a batch with others."""
    case = item[2]
    if case is None:
        return item[1].error is None
    return case.stage is Stage.HANDLE and not case.alone


def seen(
    handler: Callable[[Any], Awaitable[object]], tracing: Tracing, *, several: bool
) -> Callable[[Any], Awaitable[object]]:
    """Return the handler with a span around each call.

    It is in this folder for `handling._is_no_handler`, which looks where a call went wrong.

    Args:
        handler: The application's.
        tracing: Makes the spans.
        several: Whether the handler takes a list of records.
    """

    async def handle(given: Any) -> None:
        with tracing.processing(given if several else [given]):
            await handler(given)

    return handle
