"""Whether `run` still moves: what liveness asks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from resilient_io.health import State

from .retries import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health.dependency import Availability

    from .dependencies import Gate
    from .scheduler import Backlog
    from .workers import Worker, Workers


_UNSEEN = 1 / 4  # of the longest standstill: then the process was stopped, or its loop blocked


def answering_since(health: Availability) -> float:
    """Return the loop time since which it answers, degraded or not.

    As far as its history goes: one that is only degraded again and again, as by partitions that
    stand still because handlers hang, hides no standstill.
    """
    for change in reversed(health.history):
        if not change.previous.answering:
            return change.at
    return health.history[0].at if health.history else health.since


class Movement:
    """Notes when a record was last taken in hand or settled.

    Args:
        workers: Who handles the records.
        backlog: The records.
        gate: Shut while a required dependency is down; that is no standstill.
        requires: Those dependencies: one that is down or degraded may be what handlers wait for,
            and the time begins anew when one changes.
        ended: Returns how many calls of the handler ended so far, well or not.
        longest: Seconds without any movement that are too long.
    """

    def __init__(
        self,
        workers: Workers,
        backlog: Backlog,
        gate: Gate,
        *,
        requires: tuple[Availability, ...],
        ended: Callable[[], int],
        longest: float,
    ) -> None:
        self._workers = workers
        self._backlog = backlog
        self._gate = gate
        self._requires = requires
        self._ended = ended
        self._longest = longest
        self._time = asyncio.get_running_loop().time
        self._noted: tuple[float, int] | None = None
        self._moved_at = self._looked_at = self._time()

    def look(self) -> None:
        """Compare with the last look; to be done more often than every `longest` seconds."""
        busy = self._workers.busy()
        noted = (max((worker.since for worker in busy), default=-1.0), self._ended())
        standing = (busy or self._backlog.ready) and not self._excused
        now = self._time()
        if noted != self._noted or not standing:
            self._noted = noted
            self._moved_at = now
        elif now - self._looked_at > _UNSEEN * self._longest:
            # Nothing of this process could move then, a handler as little as a look.
            self._moved_at += now - self._looked_at
        self._looked_at = now

    @property
    def _excused(self) -> bool:
        return self._gate.shut or any(each.state is State.DEGRADED for each in self._requires)

    def liveness_failure(self, since: float) -> str | None:
        """Say for how long nothing has moved, when that is too long; None otherwise.

        Args:
            since: Loop time before which a standstill does not count: Kafka was away.
        """
        self.look()
        began = max(self._moved_at, since, *(each.since for each in self._requires), 0.0)
        seconds = self._time() - began
        if seconds < self._longest:
            return None
        busy = len(self._workers.busy())
        return (
            f"run() has {self._backlog.records} records in memory and {busy} handlers at work, "
            f"and nothing has moved for {seconds:.0f} s"
        )


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
