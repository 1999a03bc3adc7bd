"""A histogram of latencies that is updated once per write or batch, not once per call."""

from __future__ import annotations

import math
from typing import Final

_SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_PER_OCTAVE: Final = 8
_FLOOR: Final = 1e-6
_BUCKETS: Final = 27 * _PER_OCTAVE


class Latencies:
    """A histogram of seconds from 1 µs to about 2 minutes, 8 buckets per power of two (±4.5 %)."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}  # in no order, without the empty ones
        self.count = 0
        self.total = 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Record that `count` calls took `seconds` each."""
        index = int(math.log2(seconds / _FLOOR) * _PER_OCTAVE) if seconds > _FLOOR else 0
        try:
            self._buckets[index] += count
        except KeyError:
            index = min(index, _BUCKETS - 1)
            self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += count
        self.total += seconds * count

    def add(self, other: Latencies) -> None:
        """Add everything that another histogram has recorded."""
        for index, count in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total

    @property
    def counts(self) -> tuple[tuple[float, int], ...]:
        """The non-empty buckets as `(upper_bound_seconds, count)`."""
        return tuple(
            (_FLOOR * math.exp2((index + 1) / _PER_OCTAVE), count)
            for index, count in sorted(self._buckets.items())
        )

    @property
    def quantiles(self) -> dict[str, float | None]:
        """The latencies, in seconds, below which 50 %, 90 %, 99 % and 99.9 % were answered."""
        return {name: self._quantile(share) for name, share in _SHARES.items()}

    def _quantile(self, share: float) -> float | None:
        seen = 0
        for index, count in sorted(self._buckets.items()):
            seen += count
            if seen >= share * self.count:
                return _FLOOR * math.exp2((index + 0.5) / _PER_OCTAVE)
        return None
