"""Measures the rate at which a consumer handles records."""

from __future__ import annotations

import asyncio
import time

_SPACING = 0.005
"""Seconds between two readings of the clock. Timers do not run while a client blocks the loop."""


class Meter:
    """Measures from the first record until the time is over or no record is left.

    Args:
        seconds: How long to measure.
        total: How many records there are.
    """

    def __init__(self, seconds: float, total: int) -> None:
        self._seconds = seconds
        self._total = total
        self._count = 0
        self._look_at = 1
        self._cpu = self._start = 0.0
        self.begun = asyncio.Event()
        self.result: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()

    def handled(self) -> bool:
        """Count one record; return whether the measurement is over."""
        self._count += 1
        return self._count >= self._look_at and self._look()

    def _look(self) -> bool:
        if self.result.done():
            return True
        now = time.perf_counter()
        if not self.begun.is_set():
            self.begun.set()
            self._cpu, self._start = time.process_time(), now
            self._look_at = 2
            return False
        elapsed, count = now - self._start, self._count - 1  # the first one started the clock
        if elapsed < self._seconds and self._count < self._total:
            step = max(1, int(count / elapsed * _SPACING))
            self._look_at = min(self._count + step, self._total)
            return False
        cpu = time.process_time() - self._cpu
        self.result.set_result({"rate": count / elapsed, "cpu": cpu / count * 1e6})
        self._look_at = 0
        return True
