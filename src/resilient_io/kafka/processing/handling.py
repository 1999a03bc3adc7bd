"""What handlers of one record and of several have in common: how a call of theirs is judged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .backlog import Backlog
    from .failures import Failures
    from .workers import Worker

__all__ = ["Handling", "as_failure"]


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
