"""Time limits that are correct on a loaded machine and still tight on an idle one."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

_BEAT = 0.01
_PAUSE = 0.03
"""Delay of the timer in seconds that does not count: a step of a loaded loop takes as long."""


class Slack:
    """The seconds that a loaded machine may add to a time limit.

    Measured from the start of the test: the pauses of the event loop, and the time during which
    this thread was ready to run but had no processor. Delays of the server and of other processes
    cannot be measured here; `base` allows for them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._paused = 0.0
        self._queued = self._in_queue()
        self._arm()

    def __call__(self, base: float = 0.25) -> float:
        return base + self.lost

    @property
    def lost(self) -> float:
        """Delay so far, including a pause that is ending now."""
        return max(self._paused + self._late(), self.queued)

    @property
    def queued(self) -> float:
        """Seconds so far during which this thread was ready to run but had no processor."""
        return self._in_queue() - self._queued

    def stop(self) -> None:
        self._timer.cancel()

    def _arm(self) -> None:
        self._due = self._loop.time() + _BEAT
        self._timer = self._loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        self._paused += self._late()
        self._arm()

    def _late(self) -> float:
        late = self._loop.time() - self._due
        return late if late > _PAUSE else 0.0

    @staticmethod
    def _in_queue() -> float:
        # Not every kernel has these statistics.
        with contextlib.suppress(OSError):
            return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
        return 0.0


@pytest_asyncio.fixture
async def slack() -> AsyncIterator[Slack]:
    """When called, returns the seconds that a loaded machine may add to a time limit."""
    measured = Slack()
    yield measured
    measured.stop()


@pytest.fixture(scope="session")
def networks() -> Any:
    """Return the module that makes networks, which is part of the checkout (see benchmarks)."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        module = importlib.import_module("benchmarks.link.network")
    finally:
        sys.path.pop(0)
    reason = module.why_not_permitted()
    if reason is not None:
        pytest.skip(reason)
    return module


@pytest.fixture
def network(networks: Any) -> Iterator[Any]:
    """Create a network that can be cut. The sockets of the test are in the client's namespace."""
    with networks.Network() as network, network.inside():
        yield network
