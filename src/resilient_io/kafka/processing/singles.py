"""Handlers that take one record: the hot path of `run`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .attempts import Stage
from .handling import Handling, as_failure

if TYPE_CHECKING:
    from .workers import Worker, Workers

__all__ = ["Singles"]


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
