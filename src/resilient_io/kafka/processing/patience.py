"""Tells, once, of a handler that has been running for very long, and sees whether any moves."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from .failures import place_of

if TYPE_CHECKING:
    from .movement import Movement
    from .workers import Worker, Workers

__all__ = ["Patience"]

_log = logging.getLogger("resilient_io.kafka")

_SHARE = 0.8
_LOOKS = 20
_LONGEST_LOOK = 5.0


class Patience:
    """Looks at the workers now and then, which costs their hot path nothing.

    Args:
        workers: Whom to look at.
        movement: Looks, too.
        longest: Seconds (`max_poll_interval_ms`) of which 80 % is worth a warning.
        drain: Seconds a handler gets when its partition is taken away, for the message.
    """

    def __init__(
        self, workers: Workers, movement: Movement, *, longest: float, drain: float
    ) -> None:
        self._workers = workers
        self._movement = movement
        self._longest = longest
        self._drain = drain
        self._warned: list[tuple[Worker, float]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Look from now on."""
        pause = min(self._longest / _LOOKS, _LONGEST_LOOK)
        self._timer = self._loop.call_later(pause, self._look)

    def stop(self) -> None:
        """Look no more; twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.start()
        self._movement.look()
        now = self._loop.time()
        slow = [
            (worker, worker.since)
            for worker in self._workers.busy()
            if now - worker.since >= _SHARE * self._longest
        ]
        for worker, since in slow:
            if (worker, since) not in self._warned:
                _log.warning(
                    "the handler of %s has been running for %.0f s, of max_poll_interval_ms=%d; "
                    "polling goes on meanwhile, but a rebalance would cancel it after %g s",
                    place_of(worker.items[0][1]),
                    now - since,
                    self._longest * 1000,
                    self._drain,
                    extra={
                        "event": "handler_slow",
                        "topic": worker.items[0][1].topic,
                        "partition": worker.items[0][1].partition,
                        "offset": worker.items[0][1].offset,
                        "seconds": now - since,
                    },
                )
        self._warned = slow
