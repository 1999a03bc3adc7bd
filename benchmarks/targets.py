"""What must be reached, and whether it was."""

from __future__ import annotations

from dataclasses import dataclass

REACHED = "reached"
MISSED = "**missed**"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What must hold for one row.

    Attributes:
        against: The client that ours is compared with.
        of: What of it, if not the rate: "CPU".
        least: What is asked for.
        most: The other way round: a bound from above.
    """

    against: str
    of: str = ""
    least: float | None = None
    most: float | None = None

    def verdict(self, value: float) -> str:
        """Return whether it was reached."""
        if self.most is not None:
            return verdict(value <= self.most)
        assert self.least is not None
        return verdict(value >= self.least)

    @property
    def wording(self) -> str:
        """Return the requirement in words."""
        of = f"{self.of} " * bool(self.of)
        if self.most is not None:
            return f"{of}≤{self.most:g}x {self.against}"
        return f"{of}≥{self.least:g}x {self.against}"


def verdict(reached: bool) -> str:  # noqa: FBT001 (one word for one fact)
    """Return whether something was reached."""
    return REACHED if reached else MISSED
