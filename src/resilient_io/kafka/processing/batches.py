"""Handlers that take several records at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .attempts import Stage
from .handling import Handling, as_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.kafka.consumer.record import Record

    from .backlog import Item
    from .workers import Worker, Workers

__all__ = ["Batches"]


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
