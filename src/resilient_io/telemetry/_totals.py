"""Counters that only grow, also when what they count begins anew."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Distribution", "Totals"]


class Distribution(NamedTuple):
    """A histogram, read now.

    Attributes:
        counts: Pairs of the most seconds that belong to a bucket, and how many; none is empty.
        total: All seconds together.
    """

    counts: tuple[tuple[float, int], ...]
    total: float

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(count for _, count in self.counts)

    def plus(self, other: Distribution) -> Distribution:
        """Add another one."""
        counts = dict(self.counts)
        for top, count in other.counts:
            counts[top] = counts.get(top, 0) + count
        return Distribution(tuple(sorted(counts.items())), self.total + other.total)


class Totals:
    """Adds what was counted before a counter went back.

    A client that opens again and each `run` count from 0. For OpenTelemetry a counter that goes
    back is an error; for Prometheus both are the same.
    """

    def __init__(self) -> None:
        self._latest: dict[object, float] = {}
        self._past: dict[object, float] = {}
        self._latest_of: dict[object, Distribution] = {}
        self._past_of: dict[object, Distribution] = {}

    def of_counter(self, key: object, value: float) -> float:
        """Return all that was counted.

        Args:
            key: Which counter.
            value: What it says now.
        """
        latest = self._latest.get(key, 0)
        if value < latest:
            self._past[key] = self._past.get(key, 0) + latest
        self._latest[key] = value
        return value + self._past.get(key, 0)

    def of_histogram(self, key: object, value: Distribution) -> Distribution:
        """Return all that was recorded.

        Args:
            key: Which histogram.
            value: What it says now.
        """
        latest = self._latest_of.get(key)
        past = self._past_of.get(key)
        if latest is not None and value.size < latest.size:
            past = self._past_of[key] = latest if past is None else past.plus(latest)
        self._latest_of[key] = value
        return value if past is None else past.plus(value)
