"""Makes a run reproducible: time, randomness, garbage collection and logging are replaced.

Not replaced: functions that a module imported by name before the run (`from time import
monotonic`), and `datetime.now()`.
"""

from __future__ import annotations

import _random
import asyncio
import contextlib
import functools
import gc
import logging
import os
import random
import sys
import time
import uuid
import warnings
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from .faster_driver import make_driver_faster
from .history import History
from .loop import NothingWillHappen, SimulatedLoop, TooManySteps, describe_exception
from .plan import NetworkSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Replace = Callable[[Any, str, Any], None]

EPOCH = 1_767_225_600.0
"""The wall clock at virtual time 0: 2026-01-01, in UTC."""

LOGGERS = ("resilient_io", "redis", "asyncio")

LONGEST_END = 120.0
"""Virtual seconds that the tasks that are left at the end have for their cancellation."""


NORMAL = NetworkSettings()


@dataclass(slots=True)
class Simulation:
    """The parts of one run.

    Attributes:
        loop: The event loop, which is closed at the end.
        history: The records of the run.
        log_errors: Log records of level ERROR, warnings about coroutines that were never awaited
            and resources that were never closed, and errors in destructors.
        leftover_tasks: Names of the tasks that had to be cancelled at the end.
    """

    loop: SimulatedLoop
    history: History
    log_errors: list[str] = field(default_factory=list)
    leftover_tasks: list[str] = field(default_factory=list)


class _Replacements:
    """Attributes that have another value during a run."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute until `restore`."""
        self._originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def restore(self) -> None:
        """Set all attributes to their original values."""
        for owner, name, value in reversed(self._originals):
            setattr(owner, name, value)


@contextlib.contextmanager
def simulated(seed: int, settings: NetworkSettings = NORMAL) -> Iterator[Simulation]:
    """Replace everything that differs between runs, and yield a loop and a history."""
    loop = SimulatedLoop(
        Random(f"loop/{seed}"), stall=settings.stall, stall_longest=settings.stall_longest
    )
    history = History(loop.time)
    loop.note_stall = lambda seconds: history.event("loop", "stall", seconds=seconds)
    simulation = Simulation(loop, history)
    make_driver_faster()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(_forget_levels)
        replacements = _Replacements()
        stack.callback(replacements.restore)
        replace = replacements.replace
        _silence_logging(replace, simulation.log_errors)
        _catch_warnings(stack, replace, simulation.log_errors)
        _replace_time(replace, loop)
        _replace_randomness(stack, replace, Random(f"process/{seed}"))
        _replace_asyncio(stack, replace, loop)
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        try:
            yield simulation
        finally:
            _end_tasks(simulation)
            history.stop_clock()  # its records outlive the loop, which is garbage


def _replace_time(replace: Replace, loop: SimulatedLoop) -> None:
    def wall() -> float:
        return EPOCH + loop.time()

    def in_nanoseconds(clock: Callable[[], float]) -> Callable[[], int]:
        return lambda: int(clock() * 1e9)

    def sleep(_seconds: float) -> None:
        loop.escape("time.sleep()")

    replace(time, "time", wall)
    replace(time, "time_ns", in_nanoseconds(wall))
    replace(time, "sleep", sleep)
    for name in ("monotonic", "perf_counter", "process_time"):
        replace(time, name, loop.time)
        replace(time, f"{name}_ns", in_nanoseconds(loop.time))


_sources: list[Random] = []
"""Where unseeded generators get their seeds from; empty outside a simulation."""


@functools.cache
def _intercept_seeds() -> None:
    """Replace `Random.seed` once: Python forgets what it has cached about a class that changes."""
    seed_generator = random.Random.seed

    def seed(self: Random, a: Any = None, version: int = 2) -> None:
        if a is None and _sources:
            a = _sources[-1].getrandbits(64)
        seed_generator(self, a, version)

    random.Random.seed = seed


def _replace_randomness(stack: contextlib.ExitStack, replace: Replace, source: Random) -> None:
    _intercept_seeds()
    _sources.append(source)
    stack.callback(_sources.pop)
    replace(os, "urandom", source.randbytes)
    replace(random, "_urandom", source.randbytes)  # for SystemRandom
    replace(uuid, "uuid1", lambda *_: uuid.UUID(int=source.getrandbits(128), version=1))
    # Faster than `random.getstate` and `random.setstate`, which convert 625 numbers.
    shared = random._inst
    replace(shared, "gauss_next", None)
    stack.callback(_random.Random.setstate, shared, _random.Random.getstate(shared))
    random.seed(source.getrandbits(64))


def _replace_asyncio(stack: contextlib.ExitStack, replace: Replace, loop: SimulatedLoop) -> None:
    """Replace what is slow in asyncio: its weak set of tasks, and the lookup of the loop."""
    tasks: Any = asyncio.tasks
    registry = tasks._scheduled_tasks if sys.version_info >= (3, 12) else tasks._all_tasks
    registry.add = deque[Any](maxlen=0).append  # it does nothing: the loop has a list of its tasks
    stack.callback(delattr, registry, "add")
    replace(asyncio, "all_tasks", lambda _loop=None: set(loop.unfinished_tasks()))
    replace(asyncio, "wait", _wait)
    if sys.version_info < (3, 12):  # it makes a system call, 700 times in a run
        replace(asyncio, "get_running_loop", loop.running)
        replace(asyncio.events, "get_running_loop", loop.running)


async def _wait(
    futures: Iterable[asyncio.Future[Any]],
    *,
    timeout: float | None = None,
    return_when: str = asyncio.ALL_COMPLETED,
) -> tuple[set[asyncio.Future[Any]], set[asyncio.Future[Any]]]:
    """Do what `asyncio.wait` does, without the search for coroutines among the futures."""
    awaited = set(futures)
    if not awaited:
        raise ValueError("Set of Tasks/Futures is empty.")
    wait: Any = asyncio.tasks._wait  # type: ignore[attr-defined]
    ended, pending = await wait(awaited, timeout, return_when, asyncio.get_running_loop())
    return ended, pending


class _Collector(logging.Handler):
    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, and the exception that belongs to it."""
        text = f"{record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {describe_exception(record.exc_info[1])}"
        self._errors.append(text)


def _silence_logging(replace: Replace, errors: list[str]) -> None:
    collector = _Collector(errors)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        replace(logger, "handlers", [collector])
        replace(logger, "propagate", False)
        replace(logger, "level", logging.ERROR)
    _forget_levels()


def _forget_levels() -> None:
    """Make loggers ask for their levels again. `setLevel` does it for all that exist, each time."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith(LOGGERS) and isinstance(logger, logging.Logger):
            logger._cache.clear()


def _catch_warnings(stack: contextlib.ExitStack, replace: Replace, errors: list[str]) -> None:
    def note_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message)
        if category is ResourceWarning:
            text = text.partition(" at 0x")[0]  # without an address
        errors.append(f"{category.__name__}: {text}")

    def note_unraisable(unraisable: Any) -> None:
        errors.append(f"in a destructor: {describe_exception(unraisable.exc_value)}")

    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("always", category=ResourceWarning)
    warnings.showwarning = note_warning
    replace(sys, "unraisablehook", note_unraisable)


def _end_tasks(simulation: Simulation) -> None:
    """Cancel the tasks that are left, and run the loop until they have ended."""
    loop = simulation.loop
    for _ in range(3):  # a task may start others, or survive its first cancellation
        tasks = loop.unfinished_tasks()
        if not tasks:
            return
        simulation.leftover_tasks += [task.get_name() for task in tasks]
        for task in tasks:
            task.cancel()
        loop.max_steps = loop.steps + 50_000
        with contextlib.suppress(NothingWillHappen, TooManySteps):
            loop.run_until_complete(asyncio.wait(tasks, timeout=LONGEST_END))
    survivor: Any
    for survivor in loop.unfinished_tasks():
        survivor._log_destroy_pending = False
