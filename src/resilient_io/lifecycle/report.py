"""The report of a shutdown: how long each step took, and what was left undone."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Literal

Outcome = Literal["done", "late", "failed"]

log = logging.getLogger("resilient_io.lifecycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleStep:
    """One step of a shutdown.

    Attributes:
        name: What was done or closed: "drain delay", "workers", "body", or the part's name.
        seconds: How long it took.
        outcome: "done"; "late" if its time was up and it was cancelled; "failed" if it raised.
        left: What was left undone; empty if nothing was.
    """

    name: str
    seconds: float
    outcome: Outcome = "done"
    left: str = ""

    def __str__(self) -> str:
        outcome = "" if self.outcome == "done" else f" ({self.outcome})"
        return f"{self.name} {self.seconds:.3f} s{outcome}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleReport:
    """How a service was shut down.

    Attributes:
        reason: The reason: "SIGTERM", "the block ended", or the argument of `stop()`.
        seconds: How long the shutdown took.
        grace_period: Longest time, in seconds, that it was allowed to take.
        hurried: Whether a second signal made it faster.
        steps: The steps, in order. Consumers are closed at the same time.
    """

    reason: str
    seconds: float
    grace_period: float
    hurried: bool
    steps: tuple[LifecycleStep, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """What was left undone, with the name of the step; empty if nothing was."""
        return tuple(f"{step.name}: {step.left}" for step in self.steps if step.left)

    @property
    def clean(self) -> bool:
        """Whether every step was done within the grace period and nothing was left undone."""
        done = all(step.outcome == "done" for step in self.steps)
        return done and not self.left and self.seconds <= self.grace_period

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain data that `json.dumps` accepts."""
        return {**asdict(self), "left": list(self.left), "clean": self.clean}

    def __str__(self) -> str:
        steps = ", ".join(map(str, self.steps)) or "nothing to close"
        left = f"; left undone: {'; '.join(self.left)}" if self.left else ""
        hurried = ", hurried by a second signal" if self.hurried else ""
        return (
            f"stopped in {self.seconds:.3f} s of {self.grace_period:g} s "
            f"({self.reason}{hurried}): {steps}{left}"
        )

    def log(self) -> None:
        """Write the one log record about the shutdown."""
        log.log(
            logging.INFO if self.clean else logging.WARNING,
            "%s",
            self,
            extra={
                "event": "stopped",
                "reason": self.reason,
                "seconds": round(self.seconds, 6),
                "grace_period": self.grace_period,
                "hurried": self.hurried,
                "steps": [asdict(step) for step in self.steps],
                "left": list(self.left),
            },
        )
