"""An event loop in virtual time, whose schedule is drawn from a seed.

An iteration does what `BaseEventLoop._run_once` does, in the same order. During its poll, what
happens outside our process (packets, servers, faults) runs at its own time and in the order of
time. What that makes ready for our process (sockets, cancellations) runs afterwards in a seeded
order, then the timers. Callbacks of `call_soon` keep their order.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from contextvars import copy_context
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine
    from contextvars import Context
    from random import Random

    from .network import Network

T = TypeVar("T")

START = 1000.0
"""The virtual time at which every loop starts."""

SHORTEST_ITERATION = 5e-6
LONGEST_ITERATION = 50e-6
ITERATION_RANGE = LONGEST_ITERATION - SHORTEST_ITERATION
SHORTEST_STALL = 0.5e-3
NOTED_STALL = 0.02
LONGEST_WAIT = 24 * 3600.0


class SimulationEscape(RuntimeError):
    """The code under test called something that would leave the simulation."""


class NothingWillHappen(RuntimeError):
    """All tasks wait, and no timer, packet or fault is due ever again."""


class TooManySteps(RuntimeError):
    """The run needed more iterations and events than `max_steps`, such as in a busy loop."""


class SimulatedFuture(asyncio.Future[Any]):
    """A future whose hash is a number, so that sets of futures have the same order in every run."""

    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash is a number, as that of SimulatedFuture."""

    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class SimulatedHandle(asyncio.Handle):
    """A callback in the order of `call_soon`. It is faster than asyncio's own class."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._repr = self._source_traceback = None

    def cancel(self) -> None:
        """Do not run it."""
        self._cancelled = True
        self._callback = self._args = None


class SimulatedTimer(asyncio.TimerHandle):
    """A timer. It is faster than asyncio's own class."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._scheduled = True
        self._repr = self._source_traceback = None

    def cancel(self) -> None:
        """Do not run it."""
        self._cancelled = True
        self._callback = self._args = None


class _Due(float):
    """The time of a timer in the heap. Equal times have the order that asyncio's heap gives."""

    __slots__ = ("timer",)

    timer: SimulatedTimer


class IOEvent:
    """A callback that the loop runs at a time, or when a file would be ready."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_loop", "channel")

    def __init__(
        self,
        loop: SimulatedLoop,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        channel: object = None,
        context: Context | None = None,
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._args = args
        self._context = loop.io_context if context is None else context
        self._cancelled = False
        self.channel = channel

    def cancel(self) -> None:
        """Do not run it."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self._cancelled

    def happen(self) -> None:
        """Run it outside our process. An exception ends the run: it is a bug of the simulation."""
        if not self._cancelled:
            self._callback(*self._args)

    def become_ready(self) -> None:
        """Make the loop run it after this poll."""
        if not self._cancelled:
            self._loop.poll_results.append(self)


class SimulatedLoop(asyncio.BaseEventLoop):
    """A deterministic event loop.

    Attributes:
        network: Where connections and name lookups go.
        errors: What reached the exception handler.
        note_stall: Called with the seconds of a stall that is about to begin.
        steps: The number of iterations and outside events so far.
        max_steps: The largest number of them.
        poll_results: What runs after this poll, in a seeded order.
        now: The virtual time in seconds.
        io_context: The context of I/O events without one of their own.
    """

    _ready: deque[asyncio.Handle | IOEvent]
    _scheduled: list[_Due]
    _thread_id: int | None
    _closed: bool
    _stopping: bool

    def __init__(self, random: Random, *, stall: float = 0.02, stall_longest: float = 0.2) -> None:
        self.now = START
        super().__init__()
        self._debug = False
        self._clock_resolution = 1e-9
        self._random = random
        self._stall = stall
        self._stall_range = math.log(max(stall_longest, SHORTEST_STALL) / SHORTEST_STALL)
        self._outside: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._task_names = itertools.count(1)
        self._polling = False
        self._blocked = 0.0
        self._escape: SimulationEscape | None = None
        self.io_context = copy_context()
        self.network: Network | None = None
        self.errors: list[str] = []
        self.note_stall: Callable[[float], None] | None = None
        self.steps = 0
        self.max_steps = 500_000
        self.poll_results: list[IOEvent] = []
        self.set_exception_handler(SimulatedLoop._collect_error)

    # -- time and events -------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def at(self, when: float, callback: Callable[..., Any], *args: Any) -> IOEvent:
        """Call a function at a time, outside our process: a packet, a server's timer, a fault.

        Such events run in the order of time and then of calls of this method, also while our
        process is stalled.
        """
        event = IOEvent(self, callback, args)
        self.push(when, event.happen)
        return event

    def at_poll(
        self, when: float, callback: Callable[..., Any], *args: Any, channel: object = None
    ) -> IOEvent:
        """Call a function in our process, in the first iteration after a time: an I/O event.

        It runs among the other I/O events of that poll in a seeded order, but events of one
        `channel` keep their order. Use it for cancellations.
        """
        event = IOEvent(self, callback, args, channel)
        self.push(when, event.become_ready)
        return event

    def push(self, when: float, callback: Callable[..., Any], *args: Any) -> None:
        """Do what `at` does, for an event that is never cancelled. It is faster."""
        if when < self.now:  # noqa: PLR1730 (faster than `max`)
            when = self.now
        heappush(self._outside, (when, next(self._order), callback, args))

    def block(self, seconds: float) -> None:
        """Stall our process: time passes, and nothing of it runs."""
        if self._polling:
            self._blocked += seconds
            return
        self._polling = True
        try:
            self._happen_until(self.now + seconds)
        finally:
            self._polling = False

    def _run_once(self) -> None:
        """Run one iteration: the poll, then what was ready before it or became ready in it."""
        if self._escape is not None:
            raise self._escape
        ready, timers, outside = self._ready, self._scheduled, self._outside
        while timers and timers[0].timer._cancelled:
            heappop(timers)
        random = self._random.random
        cost = SHORTEST_ITERATION + random() * ITERATION_RANGE
        if random() < self._stall:
            cost += SHORTEST_STALL * math.exp(random() * self._stall_range)
        busy = ready or self.poll_results or self._stopping
        until = self.now + cost
        if busy and cost < NOTED_STALL and (not outside or outside[0][0] > until):
            # Nothing happens in this poll.
            self.now = until
            self.steps += 1
            if self.steps > self.max_steps:
                self._check_steps()
        else:
            timeout: float | None = 0.0
            if not busy:
                timeout = min(max(0.0, timers[0] - self.now), LONGEST_WAIT) if timers else None
            self._poll(timeout, cost)
        results = self.poll_results
        if results:
            self.poll_results = []
            if len(results) > 1:
                self._shuffle(results)
            ready.extend(results)
        # As in asyncio, a timer is due if its time is closer than the resolution of the clock.
        due = self.now + self._clock_resolution
        while timers and timers[0] < due:
            ready.append(heappop(timers).timer)
        take = ready.popleft
        for _ in range(len(ready)):
            handle = take()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (as `asyncio.Handle._run`)
                name = getattr(handle._callback, "__qualname__", "callback")
                self.call_exception_handler(
                    {"message": f"Exception in callback {name}", "exception": error}
                )
        handle = None  # it may be part of a cycle

    def _poll(self, timeout: float | None, cost: float) -> None:
        """Wait until something is ready, or for `timeout` seconds, and then for `cost` seconds."""
        self.steps += 1
        self._polling = True
        try:
            if timeout != 0:
                self._wait(timeout)
            if cost >= NOTED_STALL and self.note_stall is not None:
                self.note_stall(cost)
            self._happen_until(self.now + cost)
            while self._blocked:
                seconds, self._blocked = self._blocked, 0.0
                if self.note_stall is not None:
                    self.note_stall(seconds)
                self._happen_until(self.now + seconds)
        finally:
            self._polling = False

    def _wait(self, timeout: float | None) -> None:
        outside, results = self._outside, self.poll_results
        # epoll waits for whole milliseconds, rounded up.
        until = math.inf if timeout is None else self.now + math.ceil(timeout * 1000) / 1000
        steps = self.steps
        while outside and outside[0][0] <= until:
            when, _, callback, args = heappop(outside)
            self.now = when
            callback(*args)
            steps += 1
            if steps > self.max_steps:
                break
            if results or self._blocked:
                self.steps = steps
                return
        self.steps = steps
        if steps > self.max_steps:
            self._check_steps()
        if timeout is None:
            raise NothingWillHappen(
                f"no timer, packet or fault is due; these tasks wait: {self._describe_tasks()}"
            )
        self.now = until

    def _happen_until(self, until: float) -> None:
        """Run everything outside that is due by a time, and set the clock to that time."""
        outside = self._outside
        while outside and outside[0][0] <= until:
            when, _, callback, args = heappop(outside)
            self.now = when
            callback(*args)
            self.steps += 1
            if self.steps > self.max_steps:
                break
        self.now = until
        if self.steps > self.max_steps:
            self._check_steps()

    def _check_steps(self) -> None:
        if self.steps > self.max_steps:
            raise TooManySteps(f"more than {self.max_steps} steps: {self._describe_tasks()}")

    def _shuffle(self, results: list[IOEvent]) -> None:
        channels: dict[object, list[IOEvent]] = {}
        for event in results:
            if event.channel is not None:
                channels.setdefault(event.channel, []).append(event)
        self._random.shuffle(results)
        if channels:
            # The positions are drawn, and the events of a channel take theirs in their order.
            queues = {channel: iter(queue) for channel, queue in channels.items()}
            results[:] = [
                event if event.channel is None else next(queues[event.channel]) for event in results
            ]

    def _describe_tasks(self) -> str:
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, SimulatedTask)]
        tasks.sort(key=hash)
        return ", ".join(f"{task.get_name()} {_where(task)}" for task in tasks) or "none"

    def _write_to_self(self) -> None:
        pass

    def _collect_error(self, context: dict[str, Any]) -> None:
        text = str(context.get("message"))
        error = context.get("exception")
        if error is not None:
            text += f": {describe_exception(error)}"
        future = context.get("task") or context.get("future")
        if isinstance(future, asyncio.Task):
            text += f" (task {future.get_name()})"
        self.errors.append(text)

    # Each future and task asks. The built-in type returns False without a frame of Python.
    get_debug = staticmethod(bool)

    # -- callbacks, futures and tasks ------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function in the next iteration, in the order of calls of this method."""
        if self._closed:
            self._check_closed()
        handle = SimulatedHandle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function after some seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function at a time."""
        if self._closed:
            self._check_closed()
        timer = SimulatedTimer(when, callback, args, self, context)
        due = _Due(when)
        due.timer = timer
        heappush(self._scheduled, due)
        return timer

    @property
    def pending_timers(self) -> int:
        """The number of timers that are neither due nor cancelled."""
        return sum(not due.timer.cancelled() for due in self._scheduled)

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Do what `call_soon` does. Other threads are outside the simulation."""
        if self._thread_id is not None and self._thread_id != threading.get_ident():
            self.escape("call_soon_threadsafe() in another thread")
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> SimulatedFuture:
        """Return a future of this loop."""
        future = SimulatedFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Return a task of this loop."""
        self._check_closed()
        if self._task_factory is not None:
            self.escape("set_task_factory()")
        # The name must not come from the counter of the asyncio module.
        if name is None:
            name = f"Task-{next(self._task_names)}"
        task = SimulatedTask.__new__(SimulatedTask)
        task.number = next(self._numbers)  # the constructor needs the hash
        task.__init__(coro, loop=self, name=name, context=context, **options)
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> SimulatedFuture:
        """Call a function now. Its result is an I/O event that follows soon."""
        self._check_closed()
        future = self.create_future()
        setter: Callable[[Any], None]
        try:
            result, setter = func(*args), future.set_result
        except Exception as error:  # noqa: BLE001 (as an executor)
            result, setter = error, future.set_exception
        delay = 20e-6 + self._random.random() * 200e-6
        self.at_poll(self.now + delay, _set_unless_done, future, setter, result)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Return: there is nothing to shut down."""

    # -- the network -----------------------------------------------------------------------

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, ...]]:
        """Look up a name in the simulated network."""
        if self.network is None:
            self.escape("getaddrinfo() without a network")
        return await self.network.getaddrinfo(host, port, family=family)

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Connect to a server in the simulated network."""
        if self.network is None:
            self.escape("create_connection() without a network")
        for name in ("ssl", "sock", "local_addr"):
            if options.pop(name, None) is not None:
                self.escape(f"create_connection({name}=...)")
        return await self.network.create_connection(protocol_factory, host, port, **options)

    async def sock_connect(self, sock: Any, address: tuple[str, int]) -> None:
        """Try whether a host accepts a connection, which is closed again."""
        assert sock.gettimeout() == 0.0, "the socket must not block"
        await self.network.reach(*address)

    # -- what leaves the simulation --------------------------------------------------------

    def escape(self, call: str) -> NoReturn:
        """Raise SimulationEscape now, and again in the next poll, where no one can catch it."""
        self._escape = SimulationEscape(f"{call} would leave the simulation")
        raise self._escape


def _escaping(name: str) -> Callable[..., Any]:
    def method(self: SimulatedLoop, *_args: Any, **_options: Any) -> NoReturn:
        self.escape(f"{name}()")

    method.__name__ = name
    method.__qualname__ = f"SimulatedLoop.{name}"
    method.__doc__ = "Raise SimulationEscape."
    return method


ESCAPING = (
    *("add_reader", "remove_reader", "add_writer", "remove_writer"),
    *("add_signal_handler", "remove_signal_handler"),
    *("create_server", "create_unix_connection", "create_unix_server", "connect_accepted_socket"),
    *("create_datagram_endpoint", "connect_read_pipe", "connect_write_pipe", "start_tls"),
    *("sendfile", "sock_accept", "sock_recv", "sock_recv_into", "sock_recvfrom"),
    *("sock_recvfrom_into", "sock_sendall", "sock_sendfile", "sock_sendto"),
    *("subprocess_exec", "subprocess_shell", "getnameinfo"),
    *("set_default_executor", "set_task_factory"),
)
"""Methods of event loops that would leave the simulation."""

for _name in ESCAPING:
    setattr(SimulatedLoop, _name, _escaping(_name))


def _set_unless_done(
    future: asyncio.Future[Any], setter: Callable[[Any], None], result: Any
) -> None:
    if not future.done():
        setter(result)


def _where(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    if not stack:
        return "(ended)"
    return f"({Path(stack[0].f_code.co_filename).name}:{stack[0].f_lineno})"


def describe_exception(error: BaseException) -> str:
    """Return the type and the text of an exception, and where it was raised."""
    text = f"{type(error).__name__}: {error}"
    traceback = error.__traceback__
    if traceback is None:
        return text
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{text} ({Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno})"
