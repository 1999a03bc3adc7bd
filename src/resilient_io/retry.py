"""Retries: the policy of a client, the budget of a dependency, and backoff.

Only this module imports tenacity, whose `stop` and `wait` objects schedule the attempts of a call.
They are created at the first failure, so a call that succeeds at the first attempt does not pay for
them. The retry loop itself is in `resilient_io.redis.executor`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import tenacity

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_choice, check_count, check_number, check_seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Repeat = Literal["read", "idempotent", "conditional", "any"]
"""The most that may be repeated after it was maybe applied, in this order."""

WhileDown = Literal["fail", "wait"]
"""What a new call does while the dependency is down."""

_REPEATS, _WHILE_DOWN = get_args(Repeat), get_args(WhileDown)

# Beyond this the doubled bound has passed every cap; 2.0**n would overflow at 1024.
_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and which failed calls a client repeats, and how long a call may take.

    The policy rejects contradictory values when it is created. Three attempts with full jitter and
    the size and costs of the budget are those of the AWS SDKs' standard retry mode. Limiting
    retries by successes, and retrying at one layer only, follows Google's SRE book.

    Args:
        attempts: Maximum number of attempts of a call, including the first. A read that is moved
            from a silent connection to another one is written twice, which counts as two attempts.
            A request that was certainly not executed does not count, and may be written again
            within the deadline, if a cluster redirects or postpones it (MOVED, ASK, TRYAGAIN and
            similar replies), if its script has to be loaded first (NOSCRIPT), or if it blocks and
            continues to wait on another connection or server.
        backoff: Upper bound of the first backoff, in seconds. It doubles with each retry. The
            backoff is drawn evenly between 0 and the bound (full jitter).
        backoff_cap: Largest upper bound of a backoff, in seconds.
        deadline: Maximum total time of a call in seconds, over queueing, connecting, attempts and
            backoff, or None for no limit except an enclosing `resilient_io.deadline`.
        response_timeout: Seconds without a byte from the server, while calls are outstanding, after
            which a connection is considered dead.
        connect_timeout: Maximum time in seconds to open one connection, including the handshake.
        repeat: The calls that may be repeated after they were maybe applied: "read",
            "idempotent" (also plain overwrites), "conditional" (also calls whose effect cannot
            happen twice, but whose second reply may mislead) or "any" (also increments, pushes
            and scripts, which may then be applied twice).
        while_down: "fail" raises an error immediately while the dependency is down; "wait" waits
            for the dependency within the deadline.
        outage_wait: Seconds of an outage during which calls of a Redis client wait within their
            deadline, although `while_down="fail"`: a restart then causes slow calls, not errors. A
            server that has never answered, and a permanent cause, are not waited for. Calls wait
            longer for a failover: with Sentinels, and in a cluster with replicas. 0 switches both
            off.
        retry_budget: Tokens shared by all calls to the dependency. A retry costs 5 tokens, or 10
            after a timeout; a success earns 1. 0 forbids retries, `math.inf` sets no limit.

    Raises:
        ConfigurationError: A value is out of range, or two values contradict each other.
    """

    attempts: int = 3
    backoff: float = 0.05
    backoff_cap: float = 1.0
    deadline: float | None = 5.0
    response_timeout: float = 2.0
    connect_timeout: float = 1.0
    repeat: Repeat = "idempotent"
    while_down: WhileDown = "fail"
    outage_wait: float = 1.0
    retry_budget: float = 500.0

    def __post_init__(self) -> None:
        """Reject invalid values."""
        check_count("attempts", self.attempts)
        check_number("backoff", self.backoff)
        check_number("backoff_cap", self.backoff_cap)
        check_seconds("response_timeout", self.response_timeout)
        check_seconds("connect_timeout", self.connect_timeout)
        check_number("outage_wait", self.outage_wait)
        check_number("retry_budget", self.retry_budget, finite=False)
        check_choice("repeat", self.repeat, _REPEATS)
        check_choice("while_down", self.while_down, _WHILE_DOWN)
        if self.backoff > self.backoff_cap:
            raise ConfigurationError(
                f"backoff={self.backoff!r} is above backoff_cap={self.backoff_cap!r}: "
                f"use backoff_cap={self.backoff!r} or more"
            )
        if self.deadline is None:
            return
        check_seconds("deadline", self.deadline)
        for name in ("response_timeout", "connect_timeout"):
            value = getattr(self, name)
            if self.deadline < value:
                raise ConfigurationError(
                    f"deadline={self.deadline!r} is below {name}={value!r}, which could never be "
                    f"reached: use {name}={self.deadline!r} or less, or limit single calls "
                    f"with `with resilient_io.deadline({self.deadline!r}):`"
                )

    def replace(self, **changes: Any) -> RetryPolicy:
        """Return a copy of the policy with some values changed.

        A shorter `deadline` also shortens the timeouts within it, unless they are changed, too.

        Raises:
            ConfigurationError: A value is out of range, contradicts another, or is unknown.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigurationError(
                    f"RetryPolicy has no option {name!r}: use one of {', '.join(known)}"
                )
        deadline = changes.get("deadline")
        if isinstance(deadline, (int, float)) and deadline > 0 and deadline is not True:
            for name in ("response_timeout", "connect_timeout"):
                changes.setdefault(name, min(getattr(self, name), deadline))
        return dataclasses.replace(self, **changes)


def backoff_bound(initial: float, cap: float, retry: int) -> float:
    """Return the upper bound, in seconds, of the backoff before a retry (1 is the first)."""
    return min(initial * 2.0 ** min(retry - 1, _MAX_DOUBLINGS), cap)


class Backoff:
    """Backoff of a background task, in seconds: doubles with each failure, up to `cap`.

    It has full jitter above `floor`, or none if `rng` is None.
    """

    __slots__ = ("_cap", "_floor", "_initial", "_rng", "failures")

    def __init__(
        self, initial: float, cap: float, rng: random.Random | None = None, *, floor: float = 0.0
    ) -> None:
        self._initial = initial
        self._cap = cap
        self._rng = rng
        self._floor = floor
        self.failures = 0

    def next(self, *, cap: float | None = None) -> float:
        """Count a failure and return the seconds to wait after it, at most `cap` if given."""
        self.failures += 1
        bound = backoff_bound(self._initial, self._cap if cap is None else cap, self.failures)
        if self._rng is None:
            return max(self._floor, bound)
        return self._rng.uniform(self._floor, max(self._floor, bound))

    def reset(self) -> None:
        """Start again with the first backoff."""
        self.failures = 0


class RetryBudget:
    """A token bucket that limits retries: a retry spends tokens, a successful call earns one.

    All calls to one dependency share it, so that retries cannot overload a struggling server. A
    success costs the call nothing: the bucket reads the counter of successes only when a token is
    requested. `capacity` is also the initial number of tokens.
    """

    __slots__ = ("_seen", "_successes", "_tokens", "capacity")

    def __init__(self, capacity: float, successes: Callable[[], int]) -> None:
        self.capacity = capacity
        self._successes = successes
        self._seen = successes()
        self._tokens = capacity

    @property
    def tokens(self) -> float:
        """The number of tokens left."""
        seen = self._successes()
        if seen > self._seen:
            self._tokens = min(self.capacity, self._tokens + (seen - self._seen))
        self._seen = seen
        return self._tokens

    def try_spend(self, cost: float) -> bool:
        """Take `cost` tokens, or take none and return False if there are too few."""
        tokens = self.tokens
        if tokens < cost:
            return False
        self._tokens = tokens - cost
        return True

    def refund(self, cost: float) -> None:
        """Return the tokens of a retry that was cancelled before it began."""
        self._tokens = min(self.capacity, self.tokens + cost)


_TENACITY = tenacity.AsyncRetrying()


class RetrySchedule:
    """When the attempts of one call are made: tenacity's `stop` and `wait` objects of a policy.

    The executor's retry loop creates it at the first failure.
    """

    __slots__ = ("_rng", "_state", "_stop", "_wait")

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._stop = tenacity.stop_after_attempt(policy.attempts)
        cap = policy.backoff_cap if policy.backoff else 0.0
        self._wait = tenacity.wait_exponential(multiplier=policy.backoff, max=cap)
        self._state = tenacity.RetryCallState(_TENACITY, None, (), {})
        self._rng = rng

    def next(self, made: int) -> float | None:
        """Return the backoff, in seconds, after `made` attempts; None if that was the last one."""
        self._state.attempt_number = made
        if self._stop(self._state):
            return None
        # Full jitter. tenacity's own `wait_random_exponential` does not accept a seeded generator.
        return self._rng.random() * self._wait(self._state)
