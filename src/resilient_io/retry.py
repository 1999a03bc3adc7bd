"""How often, how long and what may be repeated; and the loop that repeats it.

The only module that imports tenacity. It is entered at the first failure: a call that succeeds
at once costs nothing here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import tenacity

from resilient_io.deadlines import (
    Deadline,
    context_without_deadline,
    current_deadline,
    deadline,
)
from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_number, check_seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

__all__ = [
    "Deadline",
    "Repeat",
    "RetryBudget",
    "RetryPolicy",
    "WhileDown",
    "context_without_deadline",
    "current_deadline",
    "deadline",
    "retrying",
]

T = TypeVar("T")

Repeat = Literal["read", "idempotent", "conditional", "any"]
"""The most that may be repeated after it was maybe applied, in this order."""

WhileDown = Literal["fail", "wait"]
"""What a new call does while the dependency is down."""

# Beyond this the doubled bound has passed every cap; 2.0**n would overflow at 1024.
_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client treats a call that fails, and how long it may take.

    Contradictions are refused when it is made. Three attempts with full jitter, and the size and
    proportions of the budget, are those of the AWS SDKs' standard mode; that retries are bounded
    by successes, and made at one layer only, follows Google's SRE book.

    Args:
        attempts: Attempts of a call, the first included.
        backoff: Upper bound of the first backoff, in seconds; it doubles with each retry. The
            wait is drawn evenly between 0 and the bound (full jitter).
        backoff_cap: Greatest bound of a backoff, in seconds.
        deadline: Total seconds of a call over queueing, connecting, attempts and backoff; None
            for no bound but an enclosing `resilient_io.deadline`.
        response_timeout: Seconds of silence, with calls outstanding, after which a connection is
            given up.
        connect_timeout: Seconds for making one connection, handshake included.
        repeat: The most that may be repeated after it was maybe applied: "read",
            "idempotent" (plain overwrites too), "conditional" (their effect cannot repeat, but the
            reply may mislead) or "any" (increments, pushes, scripts: may be applied twice).
        while_down: "fail" raises at once while the dependency is down; "wait" waits for it
            within the deadline.
        retry_budget: Tokens shared by all calls to the dependency. A retry costs 5, after a
            timeout 10; a success earns 1. 0 forbids retries, `math.inf` bounds none.

    Raises:
        ConfigurationError: A value is out of range, or two contradict each other.
    """

    attempts: int = 3
    backoff: float = 0.05
    backoff_cap: float = 1.0
    deadline: float | None = 5.0
    response_timeout: float = 2.0
    connect_timeout: float = 1.0
    repeat: Repeat = "idempotent"
    while_down: WhileDown = "fail"
    retry_budget: float = 500.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_count("attempts", self.attempts)
        check_number("backoff", self.backoff)
        check_number("backoff_cap", self.backoff_cap)
        check_seconds("response_timeout", self.response_timeout)
        check_seconds("connect_timeout", self.connect_timeout)
        check_number("retry_budget", self.retry_budget, finite=False)
        _check_choice("repeat", self.repeat, get_args(Repeat))
        _check_choice("while_down", self.while_down, get_args(WhileDown))
        if self.backoff > self.backoff_cap:
            message = (
                f"backoff={self.backoff!r} is above backoff_cap={self.backoff_cap!r}: "
                f"write backoff_cap={self.backoff!r} or more"
            )
            raise ConfigurationError(message)
        if self.deadline is None:
            return
        check_seconds("deadline", self.deadline)
        for name in ("response_timeout", "connect_timeout"):
            value = getattr(self, name)
            if self.deadline < value:
                message = (
                    f"deadline={self.deadline!r} is below {name}={value!r}, which could never be "
                    f"reached: write {name}={self.deadline!r} or less, or bound single calls "
                    f"with `with resilient_io.deadline({self.deadline!r}):`"
                )
                raise ConfigurationError(message)

    def replace(self, **changes: Any) -> RetryPolicy:
        """Return a policy with some values changed.

        Raises:
            ConfigurationError: A value is out of range, contradicts another, or is unknown.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                message = f"RetryPolicy has no {name!r}: write one of {', '.join(known)}"
                raise ConfigurationError(message)
        return dataclasses.replace(self, **changes)

    def backoff_before(self, retry: int, rng: random.Random) -> float:
        """Return the seconds to wait before the `retry`-th retry (1 is the first)."""
        bound = self.backoff * 2.0 ** min(retry - 1, _MAX_DOUBLINGS)
        return rng.random() * min(bound, self.backoff_cap)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        wanted = " or ".join(f'{name}="{choice}"' for choice in choices)
        message = f"{name}={value!r} is unknown: write {wanted}"
        raise ConfigurationError(message)


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


async def retrying(
    policy: RetryPolicy,
    *,
    first: BaseException,
    attempt: Callable[[], Awaitable[T]],
    may_repeat: Callable[[BaseException], bool],
    until: float | None,
    budget: RetryBudget,
    cost: Callable[[BaseException], float],
    rng: random.Random,
    on_retry: Callable[[int, float], None] | None = None,
) -> T:
    """Repeat a call whose first attempt has just failed, as far as the policy allows.

    A failure that may not be repeated, or for which attempts, time or tokens are used up, is
    raised as it is, at once: a backoff that would reach `until` is not slept. Cancelling leaves
    at once, also from a backoff, and gives back the tokens of a retry that did not begin.

    Args:
        policy: Attempts and backoff.
        first: The failure of the first attempt.
        attempt: Makes one more attempt; it bounds itself by `until`.
        may_repeat: Whether a failure allows another attempt. Never asked about cancellation or
            other `BaseException`s, which are never repeated.
        until: Absolute loop time at which the call's time is used up; None for no bound.
        budget: Tokens shared by the calls to the dependency.
        cost: Tokens that repeating after this failure costs.
        rng: Source of the jitter.
        on_retry: Told the number of the attempt that will follow (2 for the first retry) and
            the backoff in seconds, before the backoff.
    """
    run = _Run(policy, first, attempt, may_repeat, until, budget, cost, rng, on_retry)
    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(run.repeatable),
        wait=run.wait,
        stop=run.stop,
        before_sleep=run.announce,
        sleep=asyncio.sleep,
        reraise=True,
    )
    try:
        return await attempts(run.next_attempt)
    finally:
        run.refund()


@dataclass(slots=True)
class _Run(Generic[T]):
    """What tenacity asks during one call of `retrying`, whose arguments these are."""

    policy: RetryPolicy
    first: BaseException
    attempt: Callable[[], Awaitable[T]]
    may_repeat: Callable[[BaseException], bool]
    until: float | None
    budget: RetryBudget
    cost: Callable[[BaseException], float]
    rng: random.Random
    on_retry: Callable[[int, float], None] | None
    begun: bool = False
    spent: float = 0.0  # tokens of a retry that has not begun

    async def next_attempt(self) -> T:
        if not self.begun:
            self.begun = True
            raise self.first
        self.spent = 0.0
        return await self.attempt()

    def repeatable(self, failure: BaseException) -> bool:
        return isinstance(failure, Exception) and self.may_repeat(failure)

    def wait(self, state: tenacity.RetryCallState) -> float:
        return self.policy.backoff_before(state.attempt_number, self.rng)

    def stop(self, state: tenacity.RetryCallState) -> bool:
        if state.attempt_number >= self.policy.attempts:
            return True
        if self.until is not None:
            now = asyncio.get_running_loop().time()
            if now + state.upcoming_sleep >= self.until:
                return True
        price = self.cost(_failure_of(state))
        if not self.budget.try_spend(price):
            return True
        self.spent = price
        return False

    def announce(self, state: tenacity.RetryCallState) -> None:
        if self.on_retry is not None:
            self.on_retry(state.attempt_number + 1, state.upcoming_sleep)

    def refund(self) -> None:
        if self.spent:
            self.budget.refund(self.spent)


def _failure_of(state: tenacity.RetryCallState) -> BaseException:
    """Return the failure that tenacity is judging; there always is one when it asks to stop."""
    outcome = state.outcome
    failure = None if outcome is None else outcome.exception()
    if failure is None:  # pragma: no cover - tenacity 9 asks only after a failure
        message = "tenacity asked to stop without a failure"
        raise AssertionError(message)
    return failure
