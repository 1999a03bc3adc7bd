"""What can go wrong, told by what it means for the caller.

```
ResilientIOError
├─ DependencyUnavailable     nothing was applied: down, no connection, refused
├─ OutcomeUnknown            it may have been applied, and repeating it is not safe
├─ DeadlineExceeded          (also TimeoutError) the time was used up; says how far the call got
├─ Overloaded                our own bound was reached
└─ Closed                    the client was closed
ValueError
└─ ConfigurationError        a setting that cannot work; says what to write instead
```

Each `ResilientIOError` carries `dependency`, `operation`, `attempts`, `elapsed` (seconds) and
`progress` (how far the call got), says all of it in one line, and pickles. What a server refuses
for good (a wrong type, a missing permission) is not among them: that passes as the driver raises
it. A retry decorator around a call must never repeat an `OutcomeUnknown`.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "Closed",
    "ConfigurationError",
    "DeadlineExceeded",
    "DependencyUnavailable",
    "OutcomeUnknown",
    "Overloaded",
    "Progress",
    "ResilientIOError",
]


class Progress(enum.StrEnum):
    """How far a call got before it failed."""

    NOT_SENT = "not sent"
    """Its last byte never left our queue: it was certainly not applied."""

    MAYBE_APPLIED = "maybe applied"
    """It was handed to the transport, and no reply proves what became of it."""

    SENT = "sent"
    """It was handed to the transport, and it only reads: there is nothing to apply."""

    REFUSED = "refused"
    """The server answered that it did not apply it."""


class ResilientIOError(Exception):
    """A call failed in a way that this library judged.

    Args:
        reason: What happened, without a final full stop and without secrets.
        dependency: Name of the dependency, for example "redis".
        operation: What was called, for example "INCR".
        attempts: Attempts made, the first included; 0 when none was begun.
        elapsed: Seconds from the call until it failed.
        progress: How far the call got.
    """

    reason: str
    dependency: str
    operation: str
    attempts: int
    elapsed: float
    progress: Progress

    def __init__(
        self,
        reason: str,
        *,
        dependency: str,
        operation: str,
        attempts: int = 0,
        elapsed: float = 0.0,
        progress: Progress = Progress.NOT_SENT,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.dependency = dependency
        self.operation = operation
        self.attempts = attempts
        self.elapsed = elapsed
        self.progress = progress

    def __str__(self) -> str:
        """Say everything in one line."""
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return (
            f"{self.dependency}: {self.operation}: {self.reason} "
            f"({self.progress.value}, {tries}, {self.elapsed:.3f} s)"
        )

    def __repr__(self) -> str:
        """Say everything; a driver's error among the bases would say its own."""
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(
        self,
    ) -> tuple[object, tuple[type[ResilientIOError], tuple[object, ...]], dict[str, object]]:
        """Pickle without calling `__init__`, whose signature a subclass may have changed."""
        return _revive, (type(self), self.args), dict(self.__dict__)


def _revive(cls: type[ResilientIOError], args: tuple[object, ...]) -> ResilientIOError:
    """Build the bare error; pickle then restores its attributes and notes."""
    error = cls.__new__(cls, *args)
    # OSError, a base of the timeouts, leaves args empty when __init__ is overridden.
    error.args = args
    return error


class DependencyUnavailable(ResilientIOError):
    """Nothing was applied: the dependency is down, unreachable, or refused the call."""


class OutcomeUnknown(ResilientIOError):
    """The call may have been applied, and repeating it is not safe.

    Do not retry it blindly: ask the dependency what became of it, make the operation idempotent,
    or let the caller decide.
    """


class DeadlineExceeded(ResilientIOError, TimeoutError):
    """The time for the call was used up; a read, or nothing was applied.

    `progress` says how far the call got.
    """


class Overloaded(ResilientIOError):
    """A bound of our own was reached (calls or bytes in flight); nothing was sent."""


class Closed(ResilientIOError):
    """The client was closed, before the call or while it waited."""


class ConfigurationError(ValueError):
    """A setting, or a combination of settings, cannot work; the message says what to write."""


_REFUSED_BY: Final = "_resilient_io_refused_by"


def mark_refused(error: BaseException, dependency: str) -> None:
    """Note on a driver's error that its server refuses such calls for now, and applied nothing.

    Args:
        error: The error, as its caller will see it.
        dependency: The name of the dependency that refused.
    """
    setattr(error, _REFUSED_BY, dependency)


def refused_by(error: BaseException) -> str | None:
    """Return the name of the dependency whose refusal this is; None for any other error."""
    name: str | None = getattr(error, _REFUSED_BY, None)
    return name
