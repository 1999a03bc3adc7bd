"""What the end of a service took, and what was left: kept, and logged as one record."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["LifecycleReport", "LifecycleStep", "Outcome", "log"]

Outcome = Literal["done", "late", "failed"]

log = logging.getLogger("resilient_io.lifecycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleStep:
    """One step of ending.

    Attributes:
        name: What was done or closed: "notice", "body", or the part's name.
        seconds: How long it took.
        outcome: "done"; "late" if it was cut short when its time was up; "failed" if it raised.
        left: What was left undone, in words; empty if nothing was.
    """

    name: str
    seconds: float
    outcome: Outcome = "done"
    left: str = ""

    def __str__(self) -> str:
        told = "" if self.outcome == "done" else f" ({self.outcome})"
        return f"{self.name} {self.seconds:.3f} s{told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleReport:
    """How a service ended.

    Attributes:
        reason: Why it did: "SIGTERM", "the block ended", what `stop()` was told.
        seconds: How long all of it took.
        grace: Seconds that it might have taken.
        hurried: Whether a second signal made it go faster.
        steps: What took how long, in order; consumers are closed at the same time.
    """

    reason: str
    seconds: float
    grace: float
    hurried: bool
    steps: tuple[LifecycleStep, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """What was left undone, by whom; empty if all went well."""
        return tuple(f"{step.name}: {step.left}" for step in self.steps if step.left)

    @property
    def clean(self) -> bool:
        """Whether every step was done, within the grace, and nothing was left."""
        done = all(step.outcome == "done" for step in self.steps)
        return done and not self.left and self.seconds <= self.grace

    def as_dict(self) -> dict[str, object]:
        """Return it as plain data that `json.dumps` takes."""
        return {**asdict(self), "left": list(self.left), "clean": self.clean}

    def __str__(self) -> str:
        """Say it in one line."""
        steps = ", ".join(map(str, self.steps)) or "nothing to close"
        left = f"; left: {'; '.join(self.left)}" if self.left else ""
        hurried = ", hurried by a second signal" if self.hurried else ""
        return (
            f"stopped in {self.seconds:.3f} s of {self.grace:g} s "
            f"({self.reason}{hurried}): {steps}{left}"
        )

    def record(self) -> None:
        """Write the one log record of it."""
        log.log(
            logging.INFO if self.clean else logging.WARNING,
            "%s",
            self,
            extra={
                "event": "stopped",
                "reason": self.reason,
                "seconds": round(self.seconds, 6),
                "grace": self.grace,
                "hurried": self.hurried,
                "steps": [asdict(step) for step in self.steps],
                "left": list(self.left),
            },
        )
