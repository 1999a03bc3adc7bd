"""What is remembered of a record that failed; one that never fails has nothing of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from resilient_io.kafka.consumer.record import Record

__all__ = ["Case", "Failure", "Stage"]


class Stage(enum.Enum):
    """What has to be done for a record next."""

    HANDLE = "handle"
    """Call the handler again."""

    BURY = "bury"
    """Write it to the dead-letter topic."""

    TELL = "tell"
    """Ask the application's own `on_failure`."""

    SKIP = "skip"
    """Let it go, counted."""

    STOP = "stop"
    """End `run` because of it."""


class Case:
    """The history of one record.

    Attributes:
        stage: What has to be done next.
        attempts: Calls of the handler that count.
        excused: Calls that do not count, for a required dependency was away.
        stuck: Failures to bury it, or to tell of it, in a row.
        unknown: Calls that raised `OutcomeUnknown`.
        first_failure: Loop time of the first failure.
        last_failure: Loop time of the latest.
        error: The latest error of the handler, or what a deserialiser raised.
        alone: Whether it is given to a batch handler by itself, to find the culprit.
        timer: Ends the backoff, while there is one.
    """

    __slots__ = (
        "alone",
        "attempts",
        "error",
        "excused",
        "first_failure",
        "last_failure",
        "stage",
        "stuck",
        "timer",
        "unknown",
    )

    def __init__(self, now: float, error: Exception) -> None:
        self.stage = Stage.HANDLE
        self.attempts = 0
        self.excused = 0
        self.stuck = 0
        self.unknown = 0
        self.first_failure = now
        self.last_failure = now
        self.error = error
        self.alone = False
        self.timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a record was given up, for an `on_failure` of the application.

    Attributes:
        record: The record. When it could not be deserialised, `record.error` is the reason and
            `record.raw_value` has the bytes.
        error: What the handler raised last, or what the deserialiser raised.
        attempts: Calls of the handler that count; 0 when it could not be deserialised.
        outcome_unknown: How many of all calls raised `OutcomeUnknown`.
        seconds: Time from the first failure to the last.
    """

    record: Record
    error: Exception
    attempts: int
    outcome_unknown: int
    seconds: float
