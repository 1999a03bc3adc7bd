"""An event loop in virtual time, whose schedule is drawn from a seed.

An iteration does what `BaseEventLoop._run_once` does, in the same order. During its poll, what
happens outside our process (packets, servers, faults) runs at its own time and in the order of
time. What that makes ready for our process (sockets, cancellations) runs afterwards in a seeded
order, then the timers. Callbacks of `call_soon` keep their order.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from contextvars import copy_context
from heapq import heappop, heappush
from math import exp, inf, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine
    from contextvars import Context
    from random import Random
    from weakref import ReferenceType

    from .network import Network

T = TypeVar("T")

START = 1000.0
"""The virtual time at which every loop starts."""

CLOCK_RESOLUTION = 1e-9
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
        try:
            return self.number
        except AttributeError:  # few futures are ever in a set
            loop: SimulatedLoop = self.get_loop()  # type: ignore[assignment]
            self.number = number = next(loop.numbers)
            return number


class SimulatedTask(asyncio.Task[Any]):
    """A task whose hash is a number, as that of SimulatedFuture."""

    __slots__ = ("number",)

    number: int

    def __hash__(self) -> int:
        return self.number


class SimulatedHandle:
    """A callback in the order of `call_soon`. It is faster than `asyncio.Handle`.

    Attributes:
        call: The callback and its arguments, or None if it was cancelled.
        context: The context in which it runs.
    """

    __slots__ = ("call", "context")

    call: tuple[Any, ...] | None
    context: Context

    def cancel(self) -> None:
        """Do not run it."""
        self.call = None

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.call is None


class SimulatedTimer(float):
    """A timer. It is faster than `asyncio.TimerHandle`.

    It is the time at which it is due. Equal times have the order that asyncio's heap gives them.

    Attributes:
        call: The callback and its arguments, or None if it was cancelled.
        context: The context in which it runs.
    """

    __slots__ = ("call", "context")

    call: tuple[Any, ...] | None
    context: Context

    when = float.__pos__

    def cancel(self) -> None:
        """Do not run it."""
        self.call = None

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.call is None


class IOEvent:
    """A callback that the loop runs at a time, or when a file would be ready."""

    __slots__ = ("_loop", "call", "channel", "context")

    def __init__(
        self,
        loop: SimulatedLoop,
        call: tuple[Any, ...],
        channel: object = None,
        context: Context | None = None,
    ) -> None:
        self._loop = loop
        self.call: tuple[Any, ...] | None = call
        self.context = loop.io_context if context is None else context
        self.channel = channel

    def cancel(self) -> None:
        """Do not run it."""
        self.call = None

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.call is None

    def happen(self) -> None:
        """Run it outside our process. An exception ends the run: it is a bug of the simulation."""
        if self.call is not None:
            callback, *arguments = self.call
            callback(*arguments)

    def become_ready(self) -> None:
        """Make the loop run it after this poll."""
        if self.call is not None:
            self._loop.poll_results.append(self)


class SimulatedLoop(asyncio.BaseEventLoop):
    """A deterministic event loop.

    Attributes:
        network: Where connections and name lookups go.
        errors: What reached the exception handler.
        note_stall: Called with the seconds of a stall that is about to begin.
        steps: The number of iterations and outside events so far.
        max_steps: The largest number of them.
        numbers: Gives the hashes of tasks and futures.
        poll_results: What runs after this poll, in a seeded order.
        outside, order: The events outside our process as a heap, and their numbers.
        now: The virtual time in seconds.
        io_context: The context of I/O events without one of their own.
    """

    # Faster than the dictionary of so many attributes.
    __slots__ = (
        "_blocked",
        "_closed",
        "_escape",
        "_polling",
        "_random",
        "_ready",
        "_scheduled",
        "_stopping",
        "_thread_id",
        "create_future",
        "io_context",
        "max_steps",
        "network",
        "note_stall",
        "now",
        "numbers",
        "order",
        "outside",
        "poll_results",
        "steps",
    )

    _ready: deque[SimulatedHandle | SimulatedTimer | IOEvent]
    _scheduled: list[SimulatedTimer]
    _thread_id: int | None
    _closed: bool
    _stopping: bool

    def __init__(self, random: Random, *, stall: float = 0.02, stall_longest: float = 0.2) -> None:
        self.now = START
        super().__init__()
        self._debug = False
        self._clock_resolution = CLOCK_RESOLUTION
        self._random = random
        self._stall = stall
        self._stall_range = log(max(stall_longest, SHORTEST_STALL) / SHORTEST_STALL)
        self.outside: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.numbers = itertools.count(1)
        # Without a frame of Python.
        self.create_future = functools.partial(SimulatedFuture, loop=self)
        self._task_names = itertools.count(1)
        self._tasks: list[ReferenceType[SimulatedTask]] = []
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

    def close(self) -> None:
        """Close the loop. It forgets everything else, because a client remembers its last loop."""
        super().close()
        self.outside.clear()
        self.poll_results.clear()
        self._tasks.clear()
        self.network = self.note_stall = None

    # -- time and events -------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def running(self) -> SimulatedLoop:
        """Return this loop if it is running, as `asyncio.get_running_loop`."""
        if self._thread_id is None:
            raise RuntimeError("no running event loop")
        return self

    def at(self, when: float, *call: Any) -> IOEvent:
        """Call a function at a time, outside our process: a packet, a server's timer, a fault.

        Such events run in the order of time and then of calls of this method, also while our
        process is stalled.
        """
        event = IOEvent(self, call)
        self.push(when, event.happen)
        return event

    def at_poll(self, when: float, *call: Any, channel: object = None) -> IOEvent:
        """Call a function in our process, in the first iteration after a time: an I/O event.

        It runs among the other I/O events of that poll in a seeded order, but events of one
        `channel` keep their order. Use it for cancellations.
        """
        event = IOEvent(self, call, channel)
        self.push(when, event.become_ready)
        return event

    def push(self, when: float, callback: Callable[..., Any], *args: Any) -> None:
        """Do what `at` does, for an event that is never cancelled. It is faster."""
        if when < self.now:  # noqa: PLR1730 (faster than `max`)
            when = self.now
        heappush(self.outside, (when, next(self.order), callback, args))

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
        """Run iterations until the loop is stopped, which is faster than one per call."""
        ready, timers, outside = self._ready, self._scheduled, self.outside
        results = self.poll_results
        random, take, make_ready, pop = self._random.random, ready.popleft, ready.append, heappop
        stall, shortest, variation = self._stall, SHORTEST_ITERATION, ITERATION_RANGE
        self._polling = False  # an error in a poll has ended the loop
        while True:
            if self._escape is not None:
                raise self._escape
            while timers and timers[0].call is None:
                pop(timers)
            cost = shortest + random() * variation
            stalls = random() < stall
            if stalls:
                cost += SHORTEST_STALL * exp(random() * self._stall_range)
            # The poll.
            self.steps += 1
            if not ready and not results and not self._stopping:
                self._wait(timers[0] if timers else None)
                stalls = stalls or self._blocked > 0.0
            until = self.now + cost
            if stalls or (outside and outside[0][0] <= until):
                self._pass(cost)
            else:
                self.now = until  # nothing happens meanwhile
            if self.steps > self.max_steps:
                self._check_steps()
            if results:
                if len(results) > 1:
                    self._shuffle(results)
                ready.extend(results)
                results.clear()
            if timers:
                # As in asyncio, a timer is due if its time is closer than the clock's resolution.
                due = self.now + CLOCK_RESOLUTION
                while timers and timers[0] < due:
                    make_ready(pop(timers))
            # What became ready by now, and not what these callbacks make ready.
            for _ in range(len(ready)):
                handle = take()
                call = handle.call
                if call is None:
                    continue
                try:
                    if len(call) == 2:  # the usual case, without another tuple
                        handle.context.run(call[0], call[1])
                    else:
                        handle.context.run(*call)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 (as `asyncio.Handle._run`)
                    name = getattr(call[0], "__qualname__", "callback")
                    self.call_exception_handler(
                        {"message": f"Exception in callback {name}", "exception": error}
                    )
            handle = call = None  # they may be part of a cycle
            if self._stopping:
                return

    def _wait(self, timer: float | None) -> None:
        """Wait until something is ready, or until a timer is due."""
        outside, results, pop = self.outside, self.poll_results, heappop
        if timer is None:
            until = inf
        else:
            timeout = timer - self.now
            if timeout <= 0.0:
                return
            # epoll waits for whole milliseconds, rounded up.
            if timeout > LONGEST_WAIT:  # noqa: PLR1730 (faster than min)
                timeout = LONGEST_WAIT
            until = self.now - timeout * -1000 // 1 / 1000
        steps, most = self.steps, self.max_steps
        self._polling = True
        while outside and outside[0][0] <= until:
            self.now, _, callback, args = pop(outside)
            callback(*args)
            steps += 1
            if results or self._blocked or steps > most:
                self._polling = False
                self.steps = steps
                return
        self._polling = False
        self.steps = steps
        if timer is None:
            raise NothingWillHappen(
                f"no timer, packet or fault is due; these tasks wait: {self._describe_tasks()}"
            )
        self.now = until

    def _pass(self, cost: float) -> None:
        """Spend `cost` seconds, and then those for which events blocked our process."""
        self._polling = True
        if cost >= NOTED_STALL and self.note_stall is not None:
            self.note_stall(cost)
        self._happen_until(self.now + cost)
        while self._blocked:
            seconds, self._blocked = self._blocked, 0.0
            if self.note_stall is not None:
                self.note_stall(seconds)
            self._happen_until(self.now + seconds)
        self._polling = False

    def _happen_until(self, until: float) -> None:
        """Run everything outside that is due by a time, and set the clock to that time."""
        outside = self.outside
        while outside and outside[0][0] <= until:
            self.now, _, callback, args = heappop(outside)
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
        tasks = self.unfinished_tasks()
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

    def call_soon(self, *call: Any, context: Context | None = None) -> SimulatedHandle:
        """Call a function in the next iteration, in the order of calls of this method."""
        if self._closed:
            self._check_closed()
        handle = SimulatedHandle()
        handle.call = call
        handle.context = copy_context() if context is None else context
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, *call: Any, context: Context | None = None
    ) -> SimulatedTimer:
        """Call a function after some seconds."""
        if self._closed:
            self._check_closed()
        timer = SimulatedTimer(self.now + delay)
        timer.call = call
        timer.context = copy_context() if context is None else context
        heappush(self._scheduled, timer)
        return timer

    def call_at(self, when: float, *call: Any, context: Context | None = None) -> SimulatedTimer:
        """Call a function at a time."""
        if self._closed:
            self._check_closed()
        timer = SimulatedTimer(when)
        timer.call = call
        timer.context = copy_context() if context is None else context
        heappush(self._scheduled, timer)
        return timer

    @property
    def pending_timers(self) -> int:
        """The number of timers that are neither due nor cancelled."""
        return sum(timer.call is not None for timer in self._scheduled)

    def call_soon_threadsafe(self, *call: Any, context: Context | None = None) -> SimulatedHandle:
        """Do what `call_soon` does. Other threads are outside the simulation."""
        if self._thread_id is not None and self._thread_id != threading.get_ident():
            self.escape("call_soon_threadsafe() in another thread")
        return self.call_soon(*call, context=context)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Return a task of this loop."""
        if self._closed:
            self._check_closed()
        # The name must not come from the counter of the asyncio module.
        if name is None:
            name = f"Task-{next(self._task_names)}"
        task = SimulatedTask.__new__(SimulatedTask)
        task.number = next(self.numbers)  # the constructor needs the hash
        task.__init__(coro, loop=self, name=name, context=context, **options)
        self._tasks.append(ref(task))
        return task

    def unfinished_tasks(self) -> list[SimulatedTask]:
        """Return what `asyncio.all_tasks` returns, in the order in which the tasks were created."""
        found = []
        kept = []
        for reference in self._tasks:
            task = reference()
            if task is not None and not task.done():
                found.append(task)
                kept.append(reference)
        self._tasks = kept
        return found

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
