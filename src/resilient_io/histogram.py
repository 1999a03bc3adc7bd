"""A histogram that costs next to nothing: it is fed once per write or batch, not per call."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Latencies"]

_SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_PER_OCTAVE: Final = 8
_FLOOR: Final = 1e-6
_BUCKETS: Final = 27 * _PER_OCTAVE


class Latencies:
    """A histogram of seconds from 1 µs to about 2 minutes, eight buckets an octave (±4.5 %)."""

    __slots__ = ("_buckets", "count", "latest", "total")

    def __init__(self) -> None:
        """Start empty."""
        self._buckets = [0] * _BUCKETS
        self.count = 0
        self.total = 0.0
        self.latest: float | None = None

    def record(self, seconds: float, count: int = 1) -> None:
        """Record that `count` calls took `seconds` each."""
        place = int(math.log2(seconds / _FLOOR) * _PER_OCTAVE) if seconds > _FLOOR else 0
        self._buckets[place if place < _BUCKETS else _BUCKETS - 1] += count
        self.count += count
        self.total += seconds * count
        self.latest = seconds

    @property
    def counts(self) -> tuple[tuple[float, int], ...]:
        """The buckets that are not empty: the most seconds that belong to one, and how many."""
        return tuple(
            (_FLOOR * math.exp2((place + 1) / _PER_OCTAVE), count)
            for place, count in enumerate(self._buckets)
            if count
        )

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which `share` (0 to 1) of the calls were answered.

        Returns None while nothing was recorded.
        """
        if not self.count:
            return None
        wanted = share * self.count
        seen = 0
        for place, count in enumerate(self._buckets):
            seen += count
            if count and seen >= wanted:
                return _FLOOR * math.exp2((place + 0.5) / _PER_OCTAVE)
        return None  # pragma: no cover (the loop always gets there)

    @property
    def quantiles(self) -> dict[str, float | None]:
        """The seconds within which 50 %, 90 %, 99 % and 99.9 % were answered."""
        return {name: self.quantile(share) for name, share in _SHARES.items()}
