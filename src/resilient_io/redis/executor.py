"""The gate: every call passes it, and it alone decides to send, retry, wait or fail.

It knows four facts: what the command does (`commands`), how far the call got (`exchange`), how the
dependency is (`health`), and how much time is left (the deadline).
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.deadlines import current_deadline
from resilient_io.errors import OutcomeUnknown, Progress, mark_refused
from resilient_io.health import Cause
from resilient_io.retry import retrying

from .attempt import AttemptFailed, Limits
from .borrowing import Borrowing
from .commands import Effect
from .errors import (
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
)
from .instrumentation import tracing_of_call

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, MutableMapping

    from resilient_io.errors import ResilientIOError
    from resilient_io.health import Dependency
    from resilient_io.retry import RetryBudget, RetryPolicy

    from .attempt import Call
    from .connection import Undeliverable
    from .multiplexer import Lanes
    from .pool import DedicatedConnections


class Describing(Protocol):
    """A call that has more to say about its failure."""

    def describe(self, error: ResilientIOError) -> None:
        """Add to the error what only the call knows."""


class Verdicts:
    """Makes the errors of one client, and counts them."""

    def __init__(self, dependency: str) -> None:
        """Name the dependency that the errors are about."""
        self._dependency = dependency
        self.retries = 0
        self.refused = 0
        self.ended: dict[str, int] = {}

    def of(
        self, call: Call, last: AttemptFailed, *, attempts: int, elapsed: float
    ) -> BaseException:
        """Say what the failure of a call's last attempt means for the caller.

        Args:
            call: Its effect decides whether the outcome is unknown or harmless.
            last: The facts.
            attempts: How many attempts were made.
            elapsed: Seconds since the call was made.
        """
        if last.refusal is not None and last.error is not None:
            last.error.add_note(f"{attempts} attempts, {elapsed:.3f} s; nothing was applied")
            mark_refused(last.error, self._dependency)
            return last.error
        error = self.error(
            _kind(call, last),
            last.detail,
            call.operation,
            attempts=attempts,
            elapsed=elapsed,
            progress=_progress(call, last),
        )
        if isinstance(error, RedisOutcomeUnknown):
            error.reason += "; it may have been applied"
        describe = getattr(call, "describe", None)
        if describe is not None:
            describe(error)
        return error

    def while_down(
        self, operation: str, health: Dependency, undeliverable: Undeliverable | None
    ) -> ResilientIOError:
        """Make the error of a call that is not even tried, because the dependency is down."""
        cause = health.cause
        kind = RedisAuthenticationFailed if cause is Cause.AUTH else RedisUnavailable
        why = f"{cause.value}: {health.detail}" if cause is not None else "cause unknown"
        error = self.error(kind, f"down ({why})", operation)
        if undeliverable is not None:
            error.__cause__ = undeliverable.error
        return error

    def error(
        self,
        kind: type[ResilientIOError],
        reason: str,
        operation: str,
        *,
        attempts: int = 0,
        elapsed: float = 0.0,
        progress: Progress = Progress.NOT_SENT,
    ) -> ResilientIOError:
        """Make, and count, an error about this dependency."""
        # Counted by the name in `resilient_io.errors`: the first base that is not Redis-flavoured.
        name = kind.__base__.__name__ if kind.__base__ is not None else kind.__name__
        self.ended[name] = self.ended.get(name, 0) + 1
        return kind(
            reason,
            dependency=self._dependency,
            operation=operation,
            attempts=attempts,
            elapsed=elapsed,
            progress=progress,
        )


def _progress(call: Call, last: AttemptFailed) -> Progress:
    if last.progress is Progress.MAYBE_APPLIED and call.effect is Effect.READ:
        return Progress.SENT
    return last.progress


def _kind(call: Call, last: AttemptFailed) -> type[ResilientIOError]:
    if last.cause is Cause.CLOSED:
        return RedisClosed
    if last.progress is Progress.MAYBE_APPLIED and call.effect is not Effect.READ:
        return RedisOutcomeUnknown
    if last.overloaded:
        return RedisOverloaded
    if last.expired or last.timed_out:
        return RedisDeadlineExceeded
    return RedisAuthenticationFailed if last.cause is Cause.AUTH else RedisUnavailable


_REPEATABLE = {
    "read": Effect.READ,
    "idempotent": Effect.IDEMPOTENT,
    "conditional": Effect.CONDITIONAL,
    "any": Effect.NON_IDEMPOTENT,
}

_JUDGEMENT = 0.05
"""Seconds that the caller of a call that was cut waits at most for health's look at it."""

_HEARING = 0.25
"""The same for a call that was told that the server does not serve, before it is repeated."""

_NEXT_ADDRESS = 0.1
"""Seconds between two looks for another server that would take the writes."""

_RETRY_COST = 5.0
_TIMEOUT_COST = 10.0


class Gate:
    """Sends calls and judges what became of them, for one client and all its views."""

    def __init__(
        self,
        *,
        lanes: Lanes,
        dedicated: DedicatedConnections,
        health: Dependency,
        budget: RetryBudget,
        rng: random.Random,
        callbacks: MutableMapping[str | bytes, Callable[..., Any]],
    ) -> None:
        """Bring together what the decisions need.

        Args:
            lanes: The shared connections.
            dedicated: The connections for one call.
            health: The dependency's state, asked and fed.
            budget: Tokens for retries.
            rng: Jitter.
            callbacks: redis-py's response callbacks, by command.
        """
        self.lanes = lanes
        self.borrowing = Borrowing(dedicated, lanes=lanes, health=health)
        self.health = health
        self.budget = budget
        self.callbacks = callbacks
        self.verdicts = Verdicts(health.name)
        self._rng = rng
        self._left = float("-inf")
        """Loop time at which a lane was last left because its server refused writes."""

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self.borrowing.closed

    async def run(
        self, call: Call, policy: RetryPolicy, *, started: float, deliberate: bool = False
    ) -> Any:
        """Bring a call to its end.

        Cancelling leaves at once, from wherever it waits.

        Args:
            call: What to send.
            policy: How hard to try.
            started: Absolute loop time at which the caller called.
            deliberate: The policy was chosen for this call, so it covers guarded commands, too.

        Raises:
            ResilientIOError: One of its Redis-flavoured kinds, by what it means for the caller.
            redis.exceptions.RedisError: The server refused it; as redis-py raises it.
        """
        limits = _limits(call, policy, started)
        attempts = 1

        def may_repeat(failure: BaseException) -> bool:
            return isinstance(failure, AttemptFailed) and self._may_repeat(
                call, failure, policy, deliberate=deliberate
            )

        try:
            return await call.attempt(limits)
        except AttemptFailed as failure:
            self._learn(failure)
            first = last = failure
        if may_repeat(first):

            async def again() -> Any:
                nonlocal last, attempts
                try:
                    await self._safe_to_repeat(call, last, policy, limits.until)
                    attempts += 1
                    self.verdicts.retries += 1
                    return await call.attempt(_limits(call, policy, started))
                except AttemptFailed as failure:
                    self._learn(failure)
                    last = failure
                    raise

            try:
                return await retrying(
                    policy,
                    first=first,
                    attempt=again,
                    may_repeat=may_repeat,
                    until=limits.until,
                    budget=self.budget,
                    cost=self._cost,
                    rng=self._rng,
                    on_retry=lambda attempt, backoff: self._retry_scheduled(last, attempt, backoff),
                )
            except AttemptFailed as failure:
                last = failure
        if attempts < policy.attempts and may_repeat(last) and self.budget.tokens < _TIMEOUT_COST:
            last.detail += "; not repeated: the retry budget is used up"
            self.health.note("retry refused by the budget", cause=last.cause.value)
        raise await self._conclude(call, last, attempts, started) from last.error

    async def _conclude(
        self, call: Call, last: AttemptFailed, attempts: int, started: float
    ) -> BaseException:
        """Make the error that the caller gets."""
        if self.lanes.session.lost and last.lane is not None:
            last.detail += self.lanes.session.take_loss()
        if last.cause is Cause.RESET:
            # Nobody hears of an outage before health has looked.
            await self.health.wait_for_probe(_JUDGEMENT)
        elapsed = asyncio.get_running_loop().time() - started
        error = self.verdicts.of(call, last, attempts=attempts, elapsed=elapsed)
        if isinstance(error, OutcomeUnknown):
            self.health.note("outcome unknown", cause=last.cause.value)
        return error

    def _retry_scheduled(self, last: AttemptFailed, attempt: int, backoff: float) -> None:
        self.health.note("retry scheduled", cause=last.cause.value)
        tracing = tracing_of_call.get()
        if tracing is not None:
            tracing.retrying(attempt, backoff, last.cause.value)

    # -- deciding --------------------------------------------------------------------------

    def _may_repeat(
        self, call: Call, failure: AttemptFailed, policy: RetryPolicy, *, deliberate: bool
    ) -> bool:
        if failure.final or failure.expired or failure.cause is Cause.CLOSED:
            return False
        if self.lanes.session.lost:
            return False
        if failure.progress is not Progress.MAYBE_APPLIED:
            return True
        allowed = _REPEATABLE[policy.repeat]
        if allowed is Effect.NON_IDEMPOTENT and deliberate:
            allowed = Effect.DANGEROUS
        return call.effect <= allowed

    async def _safe_to_repeat(
        self, call: Call, last: AttemptFailed, policy: RetryPolicy, until: float | None
    ) -> None:
        """Before a write is repeated: its first copy can no longer arrive.

        Raises:
            AttemptFailed: That cannot be known, and the policy does not allow it all the same.
        """
        if last.refusal is not None and not last.refusal.degraded:
            # If health finds, too, that it does not serve, the lanes hold the call back.
            now = asyncio.get_running_loop().time()
            await self.health.wait_for_probe(
                _HEARING if until is None else min(_HEARING, until - now)
            )
        lane = last.lane
        if last.progress is not Progress.MAYBE_APPLIED or call.effect is Effect.READ:
            return
        if policy.repeat in ("conditional", "any"):
            return
        if lane is None:
            last.final = True
            last.detail += "; a copy may still be on its way on a connection of its own"
            raise last
        if lane.lost is None:
            # It travels still. A copy behind it on the same lane is applied after it.
            fenced = self.lanes.current is lane
        else:
            try:
                async with asyncio.timeout_at(until):
                    await asyncio.wait([lane.fenced])
            except TimeoutError:
                last.expired = True
                raise last from None
            fenced = lane.fenced.result()
        if not fenced:
            last.final = True
            last.detail += "; the server does not let us end the connection that carried it"
            raise last

    def _learn(self, failure: AttemptFailed) -> None:
        """Tell health what an attempt has shown; lanes tell about themselves."""
        refused = failure.refusal
        if refused is None:
            return
        self.verdicts.refused += 1
        if refused.degraded:
            self.health.refused(refused.cause, failure.detail)
            self.lanes.refresh()
        else:
            self.health.failed(refused.cause, failure.detail)
        lane = self.lanes.current
        now = asyncio.get_running_loop().time()
        if not refused.elsewhere or lane is None:
            return
        # One opened since has just asked for the address: the next would come to the same server.
        if lane.opened <= self._left or now - self._left >= _NEXT_ADDRESS:
            self._left = now
            self.lanes.retire(lane)

    def accepted(self) -> None:
        """Note an accepted write: it ends a time of refusals."""
        self.health.accepted()
        self.lanes.refresh()

    def _cost(self, failure: BaseException) -> float:
        """Say what repeating costs; all calls that one lost lane carried pay together, once.

        They are repeated over a new connection, which the server has accepted by then.
        """
        timed_out = isinstance(failure, AttemptFailed) and failure.timed_out
        price = _TIMEOUT_COST if timed_out else _RETRY_COST
        lane = failure.lane if isinstance(failure, AttemptFailed) else None
        if lane is None or lane.lost is None:
            return price
        if lane.repeats_paid is None:
            lane.repeats_paid = self.budget.try_spend(price)
        return 0.0 if lane.repeats_paid else math.inf

    def refusal_while_down(self, operation: str) -> ResilientIOError:
        """Make the error of a call that is not even tried."""
        return self.verdicts.while_down(operation, self.health, self.lanes.prospects.undeliverable)

    def refusal_when_closed(self, operation: str) -> ResilientIOError:
        """Make the error of a call on a closed client."""
        return self.verdicts.error(RedisClosed, "the client is closed", operation)

    def check_session(self, operation: str) -> None:
        """Tell the caller of a bound connection, once, that what it had set there is gone.

        Raises:
            RedisUnavailable: The connection was lost since SELECT, WATCH or the like.
        """
        session = self.lanes.session
        if session.lost:
            raise self.verdicts.error(
                RedisUnavailable, f"the connection was lost{session.take_loss()}", operation
            )


def _limits(call: Call, policy: RetryPolicy, started: float) -> Limits:
    """Say when an attempt that begins now must have been sent and answered."""
    around = current_deadline()
    if policy.deadline is None:
        return Limits(around, around)
    if call.bounded:
        until = _earlier(started + policy.deadline, around)
        return Limits(until, until)
    # A command that blocks brings its own time; reaching the server does not take longer for it.
    now = asyncio.get_running_loop().time()
    return Limits(around, _earlier(now + policy.deadline, around))


def _earlier(moment: float, other: float | None) -> float:
    return moment if other is None else min(moment, other)
