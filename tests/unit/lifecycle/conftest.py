"""Parts that tell what happened to them, and a monitor over a dependency that answers."""

import asyncio
import functools
from types import SimpleNamespace

import pytest

from resilient_io import Dependency, HealthMonitor


class Part:
    """A context manager that notes what is done to it, and takes its time."""

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
            raise ConnectionRefusedError("nobody listens")
        return self

    async def __aexit__(self, *exc_info):
        self.note("closes")
        await asyncio.sleep(self.closes)
        if self.fails == "close":
            raise ConnectionResetError("gone")
        self.note("closed")


class Client(Part):
    """A part that bounds its closing itself, as our clients do."""

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
                self.note("goes on")


@pytest.fixture
def diary():
    """What happened when: (loop time, what)."""
    return []


@pytest.fixture
def make(diary):
    """Make parts: `make.part("db", starts=1.0)`, `make.source("orders", closes=2.0)`."""
    kinds = {"part": Part, "client": Client, "source": Source, "stubborn": Stubborn}
    return SimpleNamespace(**{name: functools.partial(kind, diary) for name, kind in kinds.items()})


@pytest.fixture
def what(diary):
    """Tell what happened, without the times."""
    return lambda: [event for _, event in diary]


@pytest.fixture
def monitor():
    """A monitor over one dependency, which is up once it is asked."""
    return HealthMonitor(Dependency("redis"))
