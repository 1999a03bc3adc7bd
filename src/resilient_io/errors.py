"""The exception hierarchy, by what a failure means for the caller.

```
ResilientIOError
├─ DependencyUnavailable     nothing was applied: down, no connection, refused
├─ OutcomeUnknown            the call may have been applied, and repeating it is not safe
├─ DeadlineExceeded          (also TimeoutError) the time ran out; says how far the call got
├─ NotReplicated             it was applied, but fewer replicas have it than the caller requires
├─ Overloaded                a limit of the client was reached
└─ Closed                    the client was closed
ValueError
└─ ConfigurationError        a setting that cannot work; says what to use instead
```

Each `ResilientIOError` carries `dependency`, `operation`, `attempts`, `elapsed` (seconds) and
`progress` (how far the call got), shows all of them in one line, and can be pickled. Permanent
refusals of a server (wrong type, missing permission) are not part of the hierarchy: they are raised
as the driver raises them. A retry decorator around a call must never repeat an `OutcomeUnknown`.
"""

from __future__ import annotations

import enum
from typing import Final


class Progress(enum.StrEnum):
    """How far a call got before it failed."""

    NOT_SENT = "not sent"
    """Its last byte never left the client's queue: it was certainly not applied."""

    MAYBE_APPLIED = "maybe applied"
    """It was passed to the transport, and no reply shows whether it was applied."""

    SENT = "sent"
    """It was passed to the transport, and it is a read: there is nothing to apply."""

    APPLIED = "applied"
    """The server replied that it applied it."""

    REFUSED = "refused"
    """The server replied that it did not apply it."""


class ResilientIOError(Exception):
    """Base class of the errors that resilient-io raises for a failed call.

    Args:
        reason: What happened, without a final period and without secrets.
        dependency: Name of the dependency, for example "redis".
        operation: Name of the call, for example "INCR".
        attempts: Number of attempts, including the first; 0 if none was begun.
        elapsed: Seconds from the call to the failure.
        progress: How far the call got.
    """

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
        """Return one line with everything that is known about the failure."""
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return (
            f"{self.dependency}: {self.operation}: {self.reason} "
            f"({self.progress.value}, {tries}, {self.elapsed:.3f} s)"
        )

    def __repr__(self) -> str:
        """Return the class and the line of `str()`; a driver's error among the bases differs."""
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(
        self,
    ) -> tuple[object, tuple[type[ResilientIOError], tuple[object, ...]], dict[str, object]]:
        """Pickle without calling `__init__`, whose signature a subclass may have changed."""
        return _revive, (type(self), self.args), dict(self.__dict__)


def _revive(cls: type[ResilientIOError], args: tuple[object, ...]) -> ResilientIOError:
    """Return the bare error; pickle then restores its attributes and notes."""
    error = cls.__new__(cls, *args)
    # OSError, a base of the timeouts, leaves args empty when __init__ is overridden.
    error.args = args
    return error


class DependencyUnavailable(ResilientIOError):
    """Nothing was applied: the dependency is down, unreachable, or refused the call."""


class OutcomeUnknown(ResilientIOError):
    """The call may have been applied, and repeating it is not safe.

    Do not retry it blindly: query the dependency for the outcome, make the operation idempotent,
    or report the error to the caller.
    """


class NotReplicated(ResilientIOError):
    """The call was applied, but is not as durable as required: a failover may lose it.

    Repeating it would apply it a second time. `progress` is `Progress.APPLIED`.
    """


class DeadlineExceeded(ResilientIOError, TimeoutError):
    """The time for the call ran out. The call was a read, or nothing was applied.

    `progress` says how far the call got.
    """


class Overloaded(ResilientIOError):
    """A limit of the client was reached (calls or bytes in flight). Nothing was sent."""


class Closed(ResilientIOError):
    """The client was closed before the call, or while the call waited."""


class ConfigurationError(ValueError):
    """A setting, or a combination of settings, is invalid. The message says what to use instead."""


_REFUSED_BY: Final = "_resilient_io_refused_by"


def mark_refused(error: BaseException, dependency: str) -> None:
    """Mark a driver's error as a refusal that applies to every such call for now.

    A server that is out of memory or read-only refuses every write and applies none. The consumer
    must distinguish such a refusal from an error of a single record without the driver of Redis.
    """
    setattr(error, _REFUSED_BY, dependency)


def refused_by(error: BaseException) -> str | None:
    """Return the name of the dependency whose refusal an error is, or None for another error."""
    name: str | None = getattr(error, _REFUSED_BY, None)
    return name
