"""A token bucket that bounds retries by successes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RetryBudget"]


class RetryBudget:
    """Tokens for retries: spent by them, earned back by successful calls.

    Shared by all calls to one dependency, so that a struggling server is not buried under
    retries. It never waits. A success costs the call nothing: the bucket looks at the counter of
    successes only when it is asked for a token.

    Args:
        capacity: Most tokens it can hold, and how many it starts with. 0 forbids every retry,
            `math.inf` bounds none.
        successes: Returns how many calls have succeeded so far; each earns one token.
    """

    __slots__ = ("_seen", "_successes", "_tokens", "capacity")

    def __init__(self, capacity: float, successes: Callable[[], int]) -> None:
        self.capacity = capacity
        self._successes = successes
        self._seen = successes()
        self._tokens = capacity

    @property
    def tokens(self) -> float:
        """Tokens left now."""
        seen = self._successes()
        if seen > self._seen:
            self._tokens = min(self.capacity, self._tokens + (seen - self._seen))
        self._seen = seen
        return self._tokens

    def try_spend(self, cost: float) -> bool:
        """Take `cost` tokens; take none and return False when there are too few."""
        tokens = self.tokens
        if tokens < cost:
            return False
        self._tokens = tokens - cost
        return True

    def refund(self, cost: float) -> None:
        """Give back tokens of a retry that was cancelled before it began."""
        self._tokens = min(self.capacity, self.tokens + cost)
