"""What a look at a dependency, or at our own ground, gives: one step after the other."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Status", "Step", "exit_code"]


class Status(enum.StrEnum):
    """What a step makes of what it found."""

    OK = "ok"
    """All is as it should be."""

    NOTE = "note"
    """Works, but worth knowing: a risk, or the likely reason of something else."""

    PROBLEM = "problem"
    """Does not work, or is about to stop working; the advice says what to do."""

    BLIND = "blind"
    """Could not look: no permission, no answer in time, nothing to ask. Proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an examination.

    Attributes:
        name: What was looked at, in one or two words: "TCP", "slow log".
        status: What is made of it.
        seconds: How long the look took.
        found: What was seen, in one line, without secrets.
        advice: What to do next, in one or two sentences; "" where there is nothing to do.
        data: The figures behind it, for programs; only what JSON can hold, and no secrets.
    """

    name: str
    status: Status
    seconds: float
    found: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON would hold it."""
        return {
            "name": self.name,
            "status": str(self.status),
            "seconds": round(self.seconds, 6),
            "found": self.found,
            "advice": self.advice,
            "data": dict(self.data),
        }


def exit_code(steps: Iterable[Step]) -> int:
    """Say what a command should end with that has shown these steps.

    Args:
        steps: All steps of all examinations.

    Returns:
        1 when a step is a problem; else 2 when a step could not look; else 0.
    """
    seen = {step.status for step in steps}
    if Status.PROBLEM in seen:
        return 1
    return 2 if Status.BLIND in seen else 0
