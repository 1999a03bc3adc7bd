"""Handlers that take one record: the hot path of `run`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

from .attempts import Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.kafka.consumer.record import Record

    from .backlog import Backlog
    from .failures import Failures
    from .workers import Worker, Workers

__all__ = ["Singles", "as_failure", "bounded", "is_no_handler", "no_handler"]


class Singles:
    """Calls the handler with one record after the other.

    Args:
        handler: The application's.
        timeout: Seconds for one call; None for no bound.
        backlog: The records.
        failures: Judges what the handler raises.
        stop: Called when the handler is none, with the error that says so.

    Attributes:
        handled: Records that the handler took without raising.
    """

    def __init__(
        self,
        handler: Callable[[Record], Awaitable[object]],
        *,
        timeout: float | None,
        backlog: Backlog,
        failures: Failures,
        stop: Callable[[Exception], None],
    ) -> None:
        self._handler = handler if timeout is None else bounded(handler, timeout)
        self._backlog = backlog
        self._failures = failures
        self._stop = stop
        self.handled = 0

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
                if not worker.evicted:
                    if worker.task.cancelling():
                        raise  # meant for this task: it ends
                    self._raised(worker, as_failure(error))
                else:
                    self.abandon(worker)
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

    def _raised(self, worker: Worker, error: Exception) -> None:
        if worker.evicted:
            self.abandon(worker)  # it failed because we cancelled it
        elif is_no_handler(error):
            self.abandon(worker)
            self._stop(no_handler(error, "record"))
        else:
            self.failed(worker, error)


def bounded(
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


def is_no_handler(error: Exception) -> bool:
    """Whether it was the call of the handler itself that is wrong, and not what it does."""
    if type(error) is not TypeError or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return Path(innermost.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def no_handler(error: Exception, takes: str) -> ConfigurationError:
    """Return the error that says what a handler has to be."""
    refusal = ConfigurationError(
        f"the handler cannot be called ({error}): write `async def handle({takes}): ...`"
    )
    refusal.__cause__ = error
    return refusal
