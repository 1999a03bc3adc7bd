"""Watches the handlers: reports a `run` without progress to liveness, and warns of slow calls."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.health import State

from ..record import place_of

if TYPE_CHECKING:
    from resilient_io.health import Dependency

    from ..stats import RunCounters
    from .dependencies import DependencyGate
    from .options import RunPlan
    from .scheduler import Scheduler
    from .workers import Worker, WorkerPool

_log = logging.getLogger("resilient_io.kafka")

_CHECK_GAP = 1 / 4
"""Share of the time limit: after a longer gap between two checks, the process was stopped or its
event loop was blocked."""

_WARNING_SHARE = 0.8  # of max_poll_interval: a call that takes longer is logged
_CHECKS_PER_LIMIT = 20
_LONGEST_CHECK_INTERVAL = 5.0


def answering_since(health: Dependency) -> float:
    """Return the loop time since which a dependency has answered, degraded or not.

    DEGRADED does not interrupt that time: partitions that stall because handlers hang make Kafka
    DEGRADED, and must not hide the missing progress. The history limits how far back it reaches.
    """
    for change in reversed(health.history):
        if not change.previous.answering:
            return change.at
    return health.history[0].at if health.history else health.since


@dataclass(kw_only=True, eq=False, repr=False)
class Watchdog:
    """Detects a `run` without progress, and logs slow handlers.

    It checks the handlers periodically, which costs their hot path nothing. While a required
    dependency is down or degraded, handlers may be waiting for it: each change of its state starts
    the time without progress again.
    """

    plan: RunPlan
    workers: WorkerPool
    scheduler: Scheduler
    gate: DependencyGate
    counters: RunCounters
    max_poll_interval: float
    drain_timeout: float

    def __post_init__(self) -> None:
        self._limit = max(self.max_poll_interval, self.plan.handler_policy.timeout or 0.0)
        self._loop = asyncio.get_running_loop()
        self._last_seen: tuple[float, int] | None = None
        self._progress_at = self._checked_at = self._loop.time()
        self._warned: list[tuple[Worker, float]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start checking."""
        interval = min(self.max_poll_interval / _CHECKS_PER_LIMIT, _LONGEST_CHECK_INTERVAL)
        self._timer = self._loop.call_later(interval, self._check)

    def stop(self) -> None:
        """Stop checking. This method is idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def liveness_failure(self, since: float) -> str | None:
        """Return how long no record has made progress since then, if that is too long."""
        self._check_progress()
        began = max(self._progress_at, since, *(each.since for each in self.plan.requires), 0.0)
        seconds = self._loop.time() - began
        if seconds < self._limit:
            return None
        return (
            f"run() has {self.scheduler.records} records in memory and "
            f"{len(self.workers.busy())} running handlers, and has made no progress for "
            f"{seconds:.0f} s"
        )

    def _check(self) -> None:
        self.start()
        self._check_progress()
        self._warn_of_slow_handlers()

    def _check_progress(self) -> None:
        busy = self.workers.busy()
        seen = (max((worker.since for worker in busy), default=-1.0), self.counters.ended)
        dependency_may_block = self.gate.shut or any(
            each.state is State.DEGRADED for each in self.plan.requires
        )
        waiting = (busy or self.scheduler.ready) and not dependency_may_block
        now = self._loop.time()
        if seen != self._last_seen or not waiting:
            self._last_seen = seen
            self._progress_at = now
        elif now - self._checked_at > _CHECK_GAP * self._limit:
            # Nothing in this process could run in the meantime, neither a handler nor this check.
            self._progress_at += now - self._checked_at
        self._checked_at = now

    def _warn_of_slow_handlers(self) -> None:
        now = self._loop.time()
        slow = [
            (worker, worker.since)
            for worker in self.workers.busy()
            if now - worker.since >= _WARNING_SHARE * self.max_poll_interval
        ]
        for worker, since in slow:
            if (worker, since) not in self._warned:
                record = worker.items[0][1]
                _log.warning(
                    "the handler of %s has been running for %.0f s (max_poll_interval_ms=%d); "
                    "polling continues, but a rebalance would cancel the handler after %g s",
                    place_of(record),
                    now - since,
                    self.max_poll_interval * 1000,
                    self.drain_timeout,
                    extra={
                        "event": "handler_slow",
                        "topic": record.topic,
                        "partition": record.partition,
                        "offset": record.offset,
                        "seconds": now - since,
                    },
                )
        self._warned = slow
