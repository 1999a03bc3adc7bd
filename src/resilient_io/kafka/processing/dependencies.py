"""`requires=[...]`: pauses handling while a dependency is down, and restarts it slowly."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.errors import (
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    refused_by,
)
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_io.errors import ResilientIOError
    from resilient_io.health import Change, Dependency, Subscription

    from ..stats import RunCounters

_log = logging.getLogger("resilient_io.kafka")

_MAX_CAUSES = 8


@dataclass(kw_only=True, eq=False, repr=False)
class DependencyGate:
    """Limits how many handlers may run, depending on the required dependencies."""

    requires: tuple[Dependency, ...]
    concurrency: int
    slow_start: float
    changed: Callable[[], None]  # called when `allowed` has changed
    counters: RunCounters

    def __post_init__(self) -> None:
        self.allowed = self.concurrency  # handlers that may run; 0 while the gate is shut
        self._step = self.slow_start / max(1, math.ceil(math.log2(self.concurrency)))
        self._subscriptions: list[Subscription[Change]] = []
        self._ramp: asyncio.TimerHandle | None = None
        self._judged_before = 0
        self._shut_at = 0.0
        self._shut_for: list[Dependency] = []

    @property
    def shut(self) -> bool:
        """Whether no record may be handled now."""
        return self.allowed == 0

    def start(self) -> None:
        """Subscribe to the dependencies."""
        self._subscriptions = [each.on_change(self._check) for each in self.requires]
        self._check()

    def stop(self) -> None:
        """Unsubscribe. This method is idempotent."""
        for subscription in self._subscriptions:
            subscription.remove()
        self._subscriptions.clear()
        self._end_ramp()

    def caused(self, error: Exception, began: float) -> bool:
        """Return whether a required dependency, and not the record, caused a handler's failure.

        `DependencyUnavailable` of a required dependency always counts, and so does a refusal that
        its server makes for any call (out of memory, read-only). `DeadlineExceeded`, `Overloaded`
        and `OutcomeUnknown` count only if the dependency was down in the meantime: otherwise a call
        that is too slow by itself would be repeated forever.
        """
        for each in _causes(error):
            if isinstance(
                each, (DependencyUnavailable, DeadlineExceeded, Overloaded, OutcomeUnknown)
            ):
                for dependency in self.requires:
                    if dependency.name == each.dependency:
                        return _is_due_to(dependency, each, began)
            refused = refused_by(each)
            if refused is not None and any(refused == known.name for known in self.requires):
                return True
        return False

    def _check(self, _: object = None) -> None:
        down = [each for each in self.requires if each.state is State.DOWN]
        loop = asyncio.get_running_loop()
        if down and not self.shut:
            self._end_ramp()
            self.allowed = 0
            self.counters.pauses += 1
            self._shut_at = loop.time()
            _log.warning(
                "paused: %s is down and required by the handler",
                " and ".join(each.name for each in down),
                extra={"event": "handlers_paused", "dependencies": [each.name for each in down]},
            )
            self._shut_for = down
            for each in down:
                each.note("handlers paused")
            self.changed()
        elif not down and self.shut:
            seconds = loop.time() - self._shut_at
            _log.warning(
                "resumed: all required dependencies are available again after %.1f s",
                seconds,
                extra={"event": "handlers_resumed", "after": seconds},
            )
            for each in self._shut_for:
                each.note("handlers resumed", after=round(seconds, 3))
            self.allowed = 1 if self._step > 0.0 else self.concurrency
            self._judged_before = self.counters.judged
            self.changed()
            self._grow_later()

    def _grow_later(self) -> None:
        if self.allowed < self.concurrency:
            self._ramp = asyncio.get_running_loop().call_later(self._step, self._grow)

    def _grow(self) -> None:
        judged = self.counters.judged
        if judged > self._judged_before:
            self._judged_before = judged
            self.allowed = min(self.allowed * 2, self.concurrency)
            self.changed()
        self._grow_later()

    def _end_ramp(self) -> None:
        if self._ramp is not None:
            self._ramp.cancel()
            self._ramp = None


def has_unknown_outcome(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is an `OutcomeUnknown`."""
    return any(isinstance(each, OutcomeUnknown) for each in _causes(error))


def _causes(error: BaseException) -> Iterable[BaseException]:
    # Not text.error_chain: an exception that a handler raised while handling another one
    # (`__context__`) is a failure of its own.
    link: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if link is None:
            return
        yield link
        link = link.__cause__


def _is_due_to(dependency: Dependency, error: ResilientIOError, began: float) -> bool:
    if isinstance(error, DependencyUnavailable) or dependency.state is State.DOWN:
        return True
    return any(
        change.previous is State.DOWN and change.at >= began for change in dependency.history
    )
