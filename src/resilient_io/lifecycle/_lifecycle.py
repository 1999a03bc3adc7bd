"""`Lifecycle`: starts the parts of a service, and ends them on a signal with nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_io.errors import Closed, ConfigurationError
from resilient_io.health import HealthMonitor

from ._body import Body
from ._course import Course
from ._part import name_parts
from ._times import Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from ._course import Phase
    from ._report import LifecycleReport

__all__ = ["Lifecycle"]

_EXIT = 128
"""What a shell adds to a signal's number for the exit code of who died of it."""

_SERVER = "serve(monitor, port=8080)"

_Worker = TypeVar("_Worker", bound="Callable[[], Coroutine[Any, Any, object]]")


class Lifecycle:
    """Starts the parts of a service, and ends them in order when it is told to end.

    ```
    async with Lifecycle(monitor, consumer, producer, redis, grace=25.0):
        await consumer.run(handle)
    ```

    On SIGTERM or SIGINT it is not ready at once, goes on as before for `notice` seconds while the
    endpoints notice, lets the handler that was there hear the signal, closes what takes work in
    (parts with a `run`, which ends then), lets the body end, closes the other parts in the order
    given, the monitor, and the servers: all of it within `grace` seconds, with something left for
    each. A second signal goes faster: no more waits, and 3 seconds. A third one goes to the handler
    that was there, at once. Leaving the block by itself ends all in the same way, without the
    notice.

    A body that does not end by itself within `body_timeout` is cancelled, and the block then ends
    as if it had ended. Outside the main thread no signal is heard: call `stop()`. It is used once.

    Args:
        monitor: Is told to drain, and is closed.
        *parts: Clients and other async context managers (or what has an `aclose()`), in the order
            in which they are closed; they are started in the opposite order.
        grace: Seconds from the signal until everything is closed, the notice included. Keep it
            below the pod's terminationGracePeriodSeconds less its preStop hook.
        notice: Seconds of going on while not ready, at most half of `grace`.
        start_timeout: Seconds in which each part has to start.
        body_timeout: Seconds for the body, and for workers, to end by themselves once nothing comes
            in any more. A server that has a handler of its own for the signal, uvicorn for example,
            gets all the time there is instead.
        servers: Those that tell how the service is; started first, closed last.
        signals: Those that end it; an empty sequence for none.

    Raises:
        ConfigurationError: Something given cannot work; the message says what to write instead.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        *parts: object,
        grace: float = 25.0,
        notice: float = 5.0,
        start_timeout: float = 20.0,
        body_timeout: float = 5.0,
        servers: Sequence[object] = (),
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    ) -> None:
        if not isinstance(monitor, HealthMonitor):
            raise ConfigurationError(
                f"{monitor!r} is no HealthMonitor: write "
                f"Lifecycle(HealthMonitor(redis.health), redis)"
            )
        if not isinstance(servers, Sequence):
            raise ConfigurationError(f"servers={servers!r} is no list: write servers=[{_SERVER}]")
        times = Times(
            grace=grace, notice=notice, start_timeout=start_timeout, body_timeout=body_timeout
        )
        named = name_parts((*parts, monitor, *servers))
        self.monitor = monitor
        self._names = [part.name for part in named]
        self._course = Course(monitor, named, len(servers), times, _checked(signals))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.phase}: {', '.join(self._names)}>"

    @property
    def phase(self) -> Phase:
        """How far it is: "new", "starting", "running", "draining", "stopping", "stopped"."""
        return self._course.phase

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the work is to end: after the notice. A body that serves waits for it."""
        return self._course.stopping

    @property
    def report(self) -> LifecycleReport | None:
        """What took how long, and what was left; None until everything is closed."""
        return self._course.report

    def worker(self, function: _Worker) -> _Worker:
        """Run an async function beside the body: once the parts are started, until it ends.

        For a consumer's `run` where the body is somebody else's, as in FastAPI. When one fails, it
        is logged, the service ends as on SIGTERM, and the block raises its error.

        Args:
            function: An async function without arguments.

        Raises:
            ConfigurationError: It is none, or it comes too late.
        """
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"{function!r} is no async function: write `async def`, and do not call it"
            )
        if self.phase != "new":
            raise ConfigurationError(
                "worker() comes too late: name the workers before the lifecycle starts"
            )
        self._course.workers.add(function)
        return function

    def stop(self, reason: str = "stop() was called") -> None:
        """Begin to end, as on SIGTERM; returns at once. Once it ends, it changes nothing.

        Args:
            reason: For the log and the report.
        """
        self._course.stop(reason)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Be the lifespan of an ASGI app: `FastAPI(lifespan=lifecycle.lifespan)`.

        Requests are served while it waits for the endpoints to notice; then the server's own
        handler hears the signal, and ends the lifespan once its requests are answered. If it has
        not by then, the parts are closed all the same before the grace is over.
        """
        self._course.hosted = True
        async with self:
            yield

    async def __aenter__(self) -> Self:
        """Start the servers, the monitor, and the parts from the last to the first.

        What was started is closed again when one fails, and when this is cancelled: that leaves at
        once, and the closing goes on by itself, within the grace. A signal meanwhile ends it, too.

        Raises:
            RuntimeError: It was used before.
            DeadlineExceeded: A part did not start within `start_timeout`.
            SystemExit: A signal came; with SIGINT it is what the handler there was does.
            Closed: `stop()` was called meanwhile.
            Exception: What the start of a part raised.
        """
        course = self._course
        if course.phase != "new":
            raise RuntimeError("a Lifecycle is used once: make a new one, with new clients")
        starting = course.start()
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            course.close("the start was cancelled")
            raise
        if course.told is not None:
            await self._end_the_start(*course.told)
        elif starting.cancelled() or starting.exception() is not None:
            await asyncio.wait([course.close("the start failed")])
            starting.result()
        else:
            course.run(Body())
        return self

    async def _end_the_start(self, reason: str, number: int | None) -> None:
        course = self._course
        await asyncio.wait([course.close(reason, number)])
        if number is None:  # nobody else has heard of it: a server would begin to serve
            raise Closed(
                "it was stopped before it had started", dependency="lifecycle", operation="start"
            )
        if course.hosted:
            return  # the server has heard it, and will not begin to serve
        await course.finish()
        raise SystemExit(_EXIT + number)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End everything, within the grace.

        Cancelling leaves at once; the closing goes on by itself, within the grace.

        Raises:
            Exception: What a worker raised.
        """
        course, body = self._course, self._course.body
        if body is None:  # a signal had ended the start of a lifespan
            return False
        body.leave()
        reason = "the block ended" if kind is None else f"the block raised {kind.__name__}"
        closing = course.close(reason)
        try:
            await asyncio.wait([closing])
        finally:
            ours = body.settle(error)
        closing.result()
        await course.finish()
        if course.workers.error is not None and (error is None or ours):
            raise course.workers.error
        return ours

    async def aclose(self) -> None:
        """End everything, and wait until it is closed; as leaving the block does.

        Twice is fine, also before the start and in the body. Cancelling leaves at once; the
        closing goes on by itself, within the grace.
        """
        course = self._course
        if course.phase == "new":
            return
        course.leave("aclose() was called")
        await asyncio.wait([course.close("aclose() was called")])


def _checked(signals: object) -> tuple[int, ...]:
    if not isinstance(signals, Sequence) or isinstance(signals, str):
        raise ConfigurationError(f"signals={signals!r} is no list: write signals=[signal.SIGTERM]")
    deaf = (signal.SIGKILL, signal.SIGSTOP)
    for number in signals:
        if not isinstance(number, int) or number not in signal.valid_signals() or number in deaf:
            raise ConfigurationError(
                f"signals holds {number!r}, which nobody can hear: write signals=[signal.SIGTERM]"
            )
    return tuple(signals)
