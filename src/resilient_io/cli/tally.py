"""What `watch` has seen of one dependency: bounded, however long it watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_io.health import State

if TYPE_CHECKING:
    from resilient_io.health import Change

__all__ = ["Tally"]


class Tally:
    """Adds up times and answers.

    Args:
        name: Of the dependency.
        now: Loop time at which watching begins.

    Attributes:
        outages: How often it was down.
        longest: Seconds of the longest outage, the one that lasts included once `until` was told.
        answers: How many answers were measured; `fastest`, `slowest` and `mean` in seconds.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.outages = 0
        self.longest = 0.0
        self.answers = 0
        self.fastest = self.slowest = self._total = 0.0
        self._state = State.UNKNOWN
        self._since = now
        self._times = dict.fromkeys(State, 0.0)
        self._current = 0.0  # seconds of the latest outage so far
        self._last_cause = ""

    def answered(self, latency: float) -> None:
        """Count an answer that took so many seconds."""
        self.fastest = latency if not self.answers else min(self.fastest, latency)
        self.slowest = max(self.slowest, latency)
        self._total += latency
        self.answers += 1

    def changed(self, change: Change) -> None:
        """Take a transition."""
        self.until(change.at)
        self._state, self._since = change.state, max(change.at, self._since)
        if change.state is State.DOWN:
            self.outages += 1
            self._current = 0.0
            cause = change.cause.value if change.cause is not None else ""
            self._last_cause = ": ".join(word for word in (cause, change.detail) if word)

    def until(self, now: float) -> None:
        """Count the state that it is in up to this loop time."""
        spent = max(now - self._since, 0.0)
        self._times[self._state] += spent
        self._since += spent
        if self._state is State.DOWN:
            self._current += spent
            self.longest = max(self.longest, self._current)

    @property
    def mean(self) -> float | None:
        """Seconds that an answer took on average; None without any."""
        return self._total / self.answers if self.answers else None

    @property
    def down(self) -> float:
        """Seconds for which it was down."""
        return self._times[State.DOWN]

    @property
    def availability(self) -> float | None:
        """The share of the known time for which it answered; None while nothing is known."""
        answering = self._times[State.UP] + self._times[State.DEGRADED]
        known = answering + self.down
        if known:
            return answering / known
        if self._state is State.UNKNOWN:
            return None
        return 1.0 if self._state.answering else 0.0  # seen, but for no time yet

    @property
    def well(self) -> bool:
        """Whether it was heard from, and was not down."""
        return self.outages == 0 and self._state is not State.UNKNOWN

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON would hold it; times in seconds."""
        return {
            "dependency": self.name,
            "state": self._state.value,
            "availability": self.availability,
            "seconds": {state.value: round(spent, 3) for state, spent in self._times.items()},
            "outages": self.outages,
            "longest_outage": round(self.longest, 3),
            "last_outage": self._last_cause,
            "answers": self.answers,
            "fastest": self.fastest if self.answers else None,
            "mean": self.mean,
            "slowest": self.slowest if self.answers else None,
        }

    def said(self) -> str:
        """Sum it up in one line."""
        share = self.availability
        if share is None:
            return f"{self.name}: nothing was heard"
        parts = [f"{self.name}: answered {share:.2%} of {sum(self._times.values()):.1f} s"]
        if self.outages:
            times = "once" if self.outages == 1 else f"{self.outages} times"
            longest = f", longest {self.longest:.1f} s" if self.outages > 1 else ""
            parts.append(f"down {times}, {self.down:.1f} s{longest} (last: {self._last_cause})")
        if self._times[State.DEGRADED]:
            parts.append(f"degraded for {self._times[State.DEGRADED]:.1f} s")
        if self.mean is not None:
            figures = (self.fastest, self.mean, self.slowest)
            taken = "/".join(f"{seconds * 1000:.2f}" for seconds in figures)
            parts.append(f"{self.answers} answers, min/avg/max {taken} ms")
        return "; ".join(parts)
