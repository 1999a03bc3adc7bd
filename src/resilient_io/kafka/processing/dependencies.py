"""`requires=[...]`: nothing is handled while a dependency is down, and little right after."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from resilient_io.errors import (
    ConfigurationError,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    refused_by,
)
from resilient_io.health import State
from resilient_io.health.dependency import Availability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_io.errors import ResilientIOError
    from resilient_io.health import Change, Subscription


_log = logging.getLogger("resilient_io.kafka")

_DEEPEST_CAUSE = 8


class Gate:
    """How many handlers may run at once, as the required dependencies allow.

    Args:
        requires: The dependencies; empty lets everything pass.
        concurrency: Handlers at once in good times.
        slow_start: Seconds from 1 handler to `concurrency` after an outage.
        moved: Called when `allowed` changed.
        judged: Returns how many calls of the handler ended so far by its own doing, well or not:
            while none does, the number of handlers does not grow.

    Attributes:
        allowed: Handlers that may run now; 0 while it is shut.
        closed: How often it was shut.
    """

    def __init__(
        self,
        requires: tuple[Availability, ...],
        *,
        concurrency: int,
        slow_start: float,
        moved: Callable[[], None],
        judged: Callable[[], int],
    ) -> None:
        self._requires = requires
        self._concurrency = concurrency
        self._step = slow_start / max(1, math.ceil(math.log2(concurrency)))
        self._moved = moved
        self._judged = judged
        self._subscriptions: list[Subscription[Change]] = []
        self._ramp: asyncio.TimerHandle | None = None
        self._judged_before = 0
        self._shut_at = 0.0
        self._shut_for: list[Availability] = []
        self.allowed = concurrency
        self.closed = 0

    @property
    def shut(self) -> bool:
        """Whether nothing may be handled now."""
        return self.allowed == 0

    def start(self) -> None:
        """Look, and go on looking."""
        self._subscriptions = [each.on_change(self._look) for each in self._requires]
        self._look()

    def stop(self) -> None:
        """Look no more; twice is fine."""
        for subscription in self._subscriptions:
            subscription.remove()
        self._subscriptions.clear()
        self._end_ramp()

    def excuses(self, error: Exception, began: float) -> bool:
        """Whether a handler failed because of a required dependency, and not of its record.

        `DependencyUnavailable` of one is reason enough, and so is what its server refuses for now,
        whatever it is asked: out of memory, read-only. The others (`DeadlineExceeded`,
        `Overloaded`, `OutcomeUnknown`) are so only when the dependency was down meanwhile: a
        call that is too slow by itself would otherwise be repeated for ever.

        Args:
            error: What the handler raised; what it was raised from counts, too.
            began: Loop time at which the handler was called.
        """
        for each in _chain(error):
            if isinstance(
                each, (DependencyUnavailable, DeadlineExceeded, Overloaded, OutcomeUnknown)
            ):
                for dependency in self._requires:
                    if dependency.name == each.dependency:
                        return _is_due_to(dependency, each, began)
            refused = refused_by(each)
            if refused is not None and any(refused == known.name for known in self._requires):
                return True
        return False

    def _look(self, _: object = None) -> None:
        down = [each for each in self._requires if each.state is State.DOWN]
        loop = asyncio.get_running_loop()
        if down and not self.shut:
            self._end_ramp()
            self.allowed = 0
            self.closed += 1
            self._shut_at = loop.time()
            _log.warning(
                "paused: %s is down, and required by the handler",
                " and ".join(each.name for each in down),
                extra={"event": "handlers_paused", "dependencies": [each.name for each in down]},
            )
            self._shut_for = down
            for each in down:
                each.note("handlers paused")
            self._moved()
        elif not down and self.shut:
            _log.warning(
                "going on: all that is required is back after %.1f s",
                self._seconds_shut,
                extra={"event": "handlers_resumed", "after": self._seconds_shut},
            )
            for each in self._shut_for:
                each.note("handlers resumed", after=round(self._seconds_shut, 3))
            self.allowed = 1 if self._step > 0.0 else self._concurrency
            self._judged_before = self._judged()
            self._moved()
            self._climb_later()

    @property
    def _seconds_shut(self) -> float:
        return asyncio.get_running_loop().time() - self._shut_at

    def _climb_later(self) -> None:
        if self.allowed < self._concurrency:
            self._ramp = asyncio.get_running_loop().call_later(self._step, self._climb)

    def _climb(self) -> None:
        judged = self._judged()
        if judged > self._judged_before:
            self._judged_before = judged
            self.allowed = min(self.allowed * 2, self._concurrency)
            self._moved()
        self._climb_later()

    def _end_ramp(self) -> None:
        if self._ramp is not None:
            self._ramp.cancel()
            self._ramp = None


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    for _ in range(_DEEPEST_CAUSE):
        if error is None:
            return
        yield error
        error = error.__cause__


def _is_due_to(dependency: Availability, error: ResilientIOError, began: float) -> bool:
    if isinstance(error, DependencyUnavailable) or dependency.state is State.DOWN:
        return True
    return any(
        change.previous is State.DOWN and change.at >= began for change in dependency.history
    )


def outcome_unknown(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that something may have been applied."""
    return any(isinstance(each, OutcomeUnknown) for each in _chain(error))


def check_requires(requires: object) -> tuple[Availability, ...]:
    """Return the dependencies as a tuple.

    Raises:
        ConfigurationError: They are no `Availability`s; the message says what to write.
    """
    if not isinstance(requires, (list, tuple)):
        raise ConfigurationError(
            f"requires={requires!r} must be a list: write requires=[redis.health]"
        )
    for each in requires:
        if not isinstance(each, Availability):
            hint = "write requires=[redis.health], the health of a client"
            raise ConfigurationError(f"requires holds {type(each).__name__}: {hint}")
    return tuple(requires)
