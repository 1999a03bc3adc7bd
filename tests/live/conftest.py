"""Bounds that hold on a loaded machine, without being wide on a quiet one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

_BEAT = 0.01
_PAUSE = 0.03
"""Seconds that a beat may be late before it counts: a tick under load takes as long."""


class Slack:
    """What a loaded machine may add to a bound: what it took from us, and a little for the others.

    It measures from the start of the test on: the pauses of our own loop, and the time for which
    we were ready to run and did not get a processor. What the server or a proxy may have lost
    besides cannot be seen from here; `base` allows for that.
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
        """Seconds so far, a pause that is only now ending included."""
        return max(self._paused + self._late(), self.queued)

    @property
    def queued(self) -> float:
        """Seconds so far for which we were ready to run and did not get a processor."""
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
        # Not every kernel keeps this account.
        with contextlib.suppress(OSError):
            return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9
        return 0.0


@pytest_asyncio.fixture
async def slack() -> AsyncIterator[Slack]:
    """Give the seconds that a loaded machine may add to any bound, when it is called."""
    measured = Slack()
    yield measured
    measured.stop()
