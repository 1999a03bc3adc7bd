"""Parts that record what is done to them, and a monitor of one dependency."""

import asyncio
import functools
import signal
from types import SimpleNamespace

import pytest

from resilient_io import Dependency, HealthMonitor


@pytest.fixture(autouse=True)
def default_signal_handlers():
    """Set the handlers that a program starts with.

    The process that started pytest may have ignored signals, as `nohup` and some CI runners do.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Part:
    """A slow context manager that records what is done to it."""

    def __init__(self, diary, name, *, starts=0.0, closes=0.0, fails=None):
        self.diary = diary
        self.name = name
        self.starts = starts
        self.closes = closes
        self.fails = fails

    def note(self, what):
        now = asyncio.get_running_loop().time()
        self.diary.append((round(now, 3), f"{self.name} {what}"))

    async def __aenter__(self):
        self.note("starts")
        await asyncio.sleep(self.starts)
        if self.fails == "start":
            raise ConnectionRefusedError("connection refused")
        return self

    async def __aexit__(self, *exc_info):
        self.note("closes")
        await asyncio.sleep(self.closes)
        if self.fails == "close":
            raise ConnectionResetError("gone")
        self.note("closed")


class Client(Part):
    """A part with a timeout for closing, like the clients of the library."""

    def __init__(self, diary, name, **times):
        super().__init__(diary, name, **times)
        self.timeout = None

    async def aclose(self, timeout=None):
        self.timeout = timeout
        self.note("closes")
        await asyncio.sleep(min(timeout, self.closes))
        self.note("closed")


class Source(Client):
    """A client with a `run` that ends when it is closed."""

    def __init__(self, diary, name, **times):
        super().__init__(diary, name, **times)
        self.over = asyncio.Event()

    async def run(self):
        self.note("runs")
        await self.over.wait()
        self.note("ran")

    async def aclose(self, timeout=None):
        await super().aclose(timeout)
        self.over.set()


class Stubborn(Part):
    """A part whose closing swallows every cancellation."""

    async def __aexit__(self, *exc_info):
        self.note("closes")
        for _ in range(100):
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                self.note("continues")


@pytest.fixture
def diary():
    """Return the recorded events: (loop time, event)."""
    return []


@pytest.fixture
def make(diary):
    """Return factories of parts, such as `make.source("orders", closes=2.0)`."""
    kinds = {"part": Part, "client": Client, "source": Source, "stubborn": Stubborn}
    return SimpleNamespace(**{name: functools.partial(kind, diary) for name, kind in kinds.items()})


@pytest.fixture
def what(diary):
    """Return the recorded events without the times; `what.clear()` removes them."""

    def events():
        return [event for _, event in diary]

    events.clear = diary.clear
    return events


@pytest.fixture
def monitor():
    """Return a monitor of one dependency."""
    return HealthMonitor(Dependency("redis"))
