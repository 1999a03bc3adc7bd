"""What a caller is told: the public error that follows from how far a failed call got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from resilient_io.errors import Progress, mark_refused
from resilient_io.health import Cause

from .commands import Effect
from .errors import (
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
)

if TYPE_CHECKING:
    from resilient_io.errors import ResilientIOError
    from resilient_io.health import Dependency

    from .call import Call
    from .exchange import AttemptFailed
    from .ticket import Undeliverable


class Describing(Protocol):
    """A call that has more to say about its failure."""

    def describe(self, error: ResilientIOError) -> None:
        """Add to the error what only the call knows."""


class Verdicts:
    """Makes the errors of one client, and counts them."""

    def __init__(self, dependency: str) -> None:
        """Name the dependency that the errors are about."""
        self._dependency = dependency
        self.retries = 0
        self.refused = 0
        self.ended: dict[str, int] = {}

    def of(
        self, call: Call, last: AttemptFailed, *, attempts: int, elapsed: float
    ) -> BaseException:
        """Say what the failure of a call's last attempt means for the caller.

        Args:
            call: Its effect decides whether the outcome is unknown or harmless.
            last: The facts.
            attempts: How many attempts were made.
            elapsed: Seconds since the call was made.
        """
        if last.refusal is not None and last.error is not None:
            last.error.add_note(f"{attempts} attempts, {elapsed:.3f} s; nothing was applied")
            mark_refused(last.error, self._dependency)
            return last.error
        error = self.error(
            _kind(call, last),
            last.detail,
            call.operation,
            attempts=attempts,
            elapsed=elapsed,
            progress=_progress(call, last),
        )
        if isinstance(error, RedisOutcomeUnknown):
            error.reason += "; it may have been applied"
        describe = getattr(call, "describe", None)
        if describe is not None:
            describe(error)
        return error

    def while_down(
        self, operation: str, health: Dependency, undeliverable: Undeliverable | None
    ) -> ResilientIOError:
        """Make the error of a call that is not even tried, because the dependency is down."""
        cause = health.cause
        kind = RedisAuthenticationFailed if cause is Cause.AUTH else RedisUnavailable
        why = f"{cause.value}: {health.detail}" if cause is not None else "cause unknown"
        error = self.error(kind, f"down ({why})", operation)
        if undeliverable is not None:
            error.__cause__ = undeliverable.error
        return error

    def error(
        self,
        kind: type[ResilientIOError],
        reason: str,
        operation: str,
        *,
        attempts: int = 0,
        elapsed: float = 0.0,
        progress: Progress = Progress.NOT_SENT,
    ) -> ResilientIOError:
        """Make, and count, an error about this dependency."""
        # Counted by the name in `resilient_io.errors`: the first base that is not Redis-flavoured.
        name = kind.__base__.__name__ if kind.__base__ is not None else kind.__name__
        self.ended[name] = self.ended.get(name, 0) + 1
        return kind(
            reason,
            dependency=self._dependency,
            operation=operation,
            attempts=attempts,
            elapsed=elapsed,
            progress=progress,
        )


def _progress(call: Call, last: AttemptFailed) -> Progress:
    if last.progress is Progress.MAYBE_APPLIED and call.effect is Effect.READ:
        return Progress.SENT
    return last.progress


def _kind(call: Call, last: AttemptFailed) -> type[ResilientIOError]:
    if last.cause is Cause.CLOSED:
        return RedisClosed
    if last.progress is Progress.MAYBE_APPLIED and call.effect is not Effect.READ:
        return RedisOutcomeUnknown
    if last.overloaded:
        return RedisOverloaded
    if last.expired or last.timed_out:
        return RedisDeadlineExceeded
    return RedisAuthenticationFailed if last.cause is Cause.AUTH else RedisUnavailable
