"""The executor: every call passes through it, and it alone decides to send, retry, wait or fail.

It knows four facts: the effect of the command (`commands`), how far the call got (`attempt`), the
state of the dependency (`health`), and how much time is left (the deadline).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import Progress, ResilientIOError, mark_refused
from resilient_io.health import Cause
from resilient_io.retry import RetrySchedule, backoff_bound
from resilient_io.tasks import Signal

from .attempt import (
    AttemptFailed,
    Limits,
    Moves,
    end_of_wait,
    final_error,
    refused,
    server_down,
)
from .commands import Effect
from .errors import (
    CLOSED,
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisNotReplicated,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
    server_refuses,
)
from .instrumentation import tracing_of_call

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryBudget, RetryPolicy

    from .attempt import Call, Carrier, Server
    from .failover import Failover


@dataclass(frozen=True, slots=True)
class Retry:
    """The decision to make another attempt."""

    after: float  # seconds to wait first
    paid: float  # tokens that were taken from the retry budget


@dataclass(frozen=True, slots=True)
class Raise:
    """The decision to make no further attempt, and the error for the caller."""

    error: BaseException


_FURTHER = (Progress.NOT_SENT, Progress.REFUSED, Progress.SENT, Progress.MAYBE_APPLIED)
"""How far an attempt got, in ascending order."""


@dataclass(frozen=True, slots=True)
class _FailingCall:
    """A call that failed at least once, and what all its attempts together have done."""

    call: Call
    policy: RetryPolicy
    started: float
    repeatable: Effect
    schedule: RetrySchedule
    failover: Failover | None
    attempts: int = 0  # including moves of a read to another connection
    not_counted: int = 0  # refusals that are retried until the deadline
    progress: Progress = Progress.NOT_SENT  # of the attempt that got furthest
    carrier: Carrier | None = None  # carried the latest request that was maybe applied
    served: float = 0.0  # seconds during which the server had the requests of a blocking call

    @property
    def counted(self) -> int:
        """How many attempts the policy counts. A patient refusal does not use one up."""
        return self.attempts - self.not_counted

    def limits(self) -> Limits:
        """Return when the next attempt must have been sent and answered, and where."""
        limits = _limits(
            self.call,
            self.policy,
            self.started,
            self.failover,
            counted=self.counted,
            served=self.served,
        )
        carrier = self.carrier if self.fenced_first else None
        return limits if carrier is None or carrier.lost else limits._replace(behind=carrier)

    @property
    def fenced_first(self) -> bool:
        """Whether another copy may be sent only when no earlier one can be applied after it."""
        overwrites = self.call.effect is not Effect.READ
        return overwrites and self.policy.repeat not in ("conditional", "any")

    def after(self, failed: AttemptFailed, *, moves: int) -> _FailingCall:
        """Return the same call after another failed attempt with a number of moves."""
        progress, carrier = failed.progress, self.carrier
        if progress is Progress.MAYBE_APPLIED:
            if self.call.effect is Effect.READ:
                progress = Progress.SENT  # there is nothing to apply
            else:
                carrier = failed.connection
        if failed.applied:
            progress = Progress.MAYBE_APPLIED
        progress = max(self.progress, progress, key=_FURTHER.index)
        patient = failed.refusal is not None and failed.refusal.patient
        return replace(
            self,
            attempts=self.attempts + 1 + moves,
            not_counted=self.not_counted + patient,
            progress=progress,
            carrier=carrier,
            served=self.served + failed.served,
        )


def _kind(failing: _FailingCall, failed: AttemptFailed) -> type[ResilientIOError]:
    if failed.cause is Cause.CLOSED:
        return RedisClosed
    if failing.progress is Progress.MAYBE_APPLIED:
        return RedisOutcomeUnknown
    if failed.overloaded:
        return RedisOverloaded
    if failed.expired or failed.timed_out:
        return RedisDeadlineExceeded
    return RedisAuthenticationFailed if failed.cause is Cause.AUTH else RedisUnavailable


_REPEATABLE = {
    "read": Effect.READ,
    "idempotent": Effect.IDEMPOTENT,
    "conditional": Effect.CONDITIONAL,
    "any": Effect.NON_IDEMPOTENT,
}

_PROBE_BEFORE_ERROR = 0.05
"""Longest time, in seconds, to wait for the health probe before raising a connection error."""

_PROBE_BEFORE_RETRY = 0.25  # the same before retrying after a reply such as LOADING

_NEXT_SERVER = 0.5
"""Longest backoff, in seconds, of a blocking call that waits for the new master."""

_FOLLOWED_AT_ONCE = 3  # redirections of a call that are followed without a pause
_PATIENT_BACKOFF = 0.005
_PATIENT_BACKOFF_CAP = 0.1
_MOST_PATIENT = 32  # such refusals of a call without a deadline

_RETRY_COST = 5.0
_TIMEOUT_COST = 10.0


class Outage:
    """The errors of calls that do not wait for a server that is down, until its state changes."""

    __slots__ = ("_facts", "_kind", "_reason", "detail", "name", "policy", "since")

    def __init__(self, first: ResilientIOError, policy: RetryPolicy, health: Dependency) -> None:
        self._kind, self._reason, self._facts = type(first), first.reason, dict(vars(first))
        self.name = _public_name(self._kind)
        self.policy = policy
        self.since = health.since
        self.detail = health.detail

    def error(self, operation: str) -> ResilientIOError:
        """Return another error like the first one, without running its five `__init__` methods."""
        error = self._kind.__new__(self._kind, self._reason)
        error.__dict__.update(self._facts)
        error.operation = operation
        return error


def _public_name(kind: type[ResilientIOError]) -> str:
    """Return the name of an error of redis-py and ours in `resilient_io.errors`."""
    shared = ResilientIOError.__module__
    return next(base.__name__ for base in kind.__mro__ if base.__module__ == shared)


class Executor:
    """Sends, repeats and fails the calls of one client and all its views.

    `server` is that of all calls which do not choose one at each attempt, as those of a cluster do.
    """

    def __init__(
        self,
        *,
        server: Server | None,
        health: Dependency,
        failover: Failover,
        budget: RetryBudget,
        rng: random.Random,
    ) -> None:
        self.health = health
        self.budget = budget
        self.ended: dict[str, int] = {}
        """How many calls ended in each error, by its name in `resilient_io.errors`."""
        self.retries = 0
        self.refusals = 0
        self._server = server
        self._failover = failover
        self._rng = rng
        self._closing = Signal()
        self._outage: Outage | None = None

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._closing.is_set()

    def close(self) -> None:
        """Accept no more calls, and end those that wait before another attempt."""
        self._closing.set()
        self._outage = None

    async def run(
        self, call: Call, policy: RetryPolicy, *, started: float, deliberate: bool = False
    ) -> Any:
        """Execute a call, with retries, and return its result. Cancelling returns immediately."""
        failing: _FailingCall | None = None
        while True:
            limits = (
                _limits(call, policy, started, self._failover)
                if failing is None
                else failing.limits()
            )
            try:
                result = await call.attempt(limits)
            except RedisError as error:
                self.report_refusals(call, [error])
                if failing is None or failing.progress is not Progress.MAYBE_APPLIED:
                    raise
                result = final_error(error)  # which says nothing about the earlier attempts
            if not isinstance(result, AttemptFailed):
                return result
            self._report(call, result)
            if failing is None:
                repeatable = _REPEATABLE[policy.repeat]
                if deliberate and policy.repeat == "any":
                    repeatable = Effect.DANGEROUS
                schedule = RetrySchedule(policy, self._rng)
                failing = _FailingCall(call, policy, started, repeatable, schedule, self._failover)
            failing = failing.after(result, moves=limits.moves.made if limits.moves else 0)
            decision = await self._decide(failing, result)
            if isinstance(decision, Retry):
                await self._back_off(decision, failing, result)
                unsafe = await self._wait_until_safe(failing, result)
                if self.closed:
                    unsafe = AttemptFailed.because(CLOSED, result.progress)
                if unsafe is None:
                    self.retries += 1
                    continue
                decision = await self._raise(failing, unsafe)
            raise decision.error from None

    def _server_of(self, call: Call) -> Server | None:
        """Return the server of the latest attempt of a call; None if no attempt has found one."""
        return call.server or self._server

    def _health_of(self, call: Call) -> Dependency:
        server = self._server_of(call)
        return self.health if server is None else server.health

    # -- deciding --------------------------------------------------------------------------

    async def _decide(self, failing: _FailingCall, failed: AttemptFailed) -> Retry | Raise:
        """Decide whether to make another attempt. Each reason against it has its own branch."""
        if not self._may_repeat(failing, failed):
            return await self._raise(failing, failed)
        refusal = failed.refusal
        patient = free = refusal is not None and refusal.patient
        if refusal is not None and patient:
            after = self._patient_backoff(failing, redirected=refusal.normal and refusal.elsewhere)
        else:
            after = failing.schedule.next(failing.counted)
        elsewhere = refusal is not None and refusal.elsewhere
        if not patient and not failing.call.bounded and elsewhere:
            # A blocking call keeps waiting during a failover, until its deadline.
            free = True
            if after is None:
                after = self._rng.random() * _NEXT_SERVER
        if after is None:  # that was the last attempt of the policy
            return await self._raise(failing, failed)
        now = asyncio.get_running_loop().time()
        until = failing.limits().sent
        if until is not None and now + after >= until:
            return await self._raise(failing, failed)  # the backoff exceeds the deadline
        paid = 0.0 if free else self._pay(failed)
        if paid is None:
            self.health.note("retry refused by the budget", cause=failed.cause.value)
            why = "; not repeated: the retry budget is used up"
            return await self._raise(failing, failed.with_reason(why))
        return Retry(after, paid)

    def _patient_backoff(self, failing: _FailingCall, *, redirected: bool) -> float | None:
        """Return the pause after a refusal that is retried until the deadline.

        Without a deadline, there is an end to it: None.
        """
        count = failing.not_counted
        if failing.limits().sent is None and count > _MOST_PATIENT:
            return None
        if count <= _FOLLOWED_AT_ONCE and redirected:
            return 0.0
        bound = backoff_bound(_PATIENT_BACKOFF, _PATIENT_BACKOFF_CAP, count)
        return bound * (1 + self._rng.random()) / 2

    async def _raise(self, failing: _FailingCall, failed: AttemptFailed) -> Raise:
        """Return the decision to raise, with the error for the caller."""
        server = self._server_of(failing.call)
        if failed.cause is Cause.RESET:
            # Health publishes an outage before callers see an error.
            await self._health_of(failing.call).wait_for_probe(_PROBE_BEFORE_ERROR)
        elapsed = asyncio.get_running_loop().time() - failing.started
        unknown = failing.progress is Progress.MAYBE_APPLIED
        if failed.refusal is not None and failed.error is not None and not unknown:
            note = f"{failing.attempts} attempts, {elapsed:.3f} s; nothing was applied"
            failed.error.add_note(note)
            mark_refused(failed.error, self.health.name)
            return Raise(failed.error)
        if server is not None and server.multiplexer.bound_state.lost:
            # After the last await: a cancelled caller must not take the loss without raising it.
            failed = failed.with_reason(server.multiplexer.bound_state.take_loss())
        error = self._error(
            _kind(failing, failed),
            failed.detail,
            failing.call.operation,
            attempts=failing.attempts,
            elapsed=elapsed,
            progress=failing.progress,
        )
        if isinstance(error, RedisOutcomeUnknown):
            error.failure = failed.detail
            if failed.progress is Progress.MAYBE_APPLIED and failing.call.effect is not Effect.READ:
                error.reason += "; the call may have been applied"
            elif failed.applied:
                error.reason += "; a part of the call was applied"
            else:
                error.reason += "; an earlier attempt may have been applied"
            self.health.note("outcome unknown", cause=failed.cause.value)
        failing.call.describe(error)
        return Raise(error)

    def _error(
        self, kind: type[ResilientIOError], reason: str, operation: str, **facts: Any
    ) -> ResilientIOError:
        """Return, and count, an error about this dependency."""
        name = _public_name(kind)
        self.ended[name] = self.ended.get(name, 0) + 1
        return kind(reason, dependency=self.health.name, operation=operation, **facts)

    def _may_repeat(self, failing: _FailingCall, failed: AttemptFailed) -> bool:
        if failed.final or failed.expired or failed.cause is Cause.CLOSED:
            return False
        server = self._server_of(failing.call)
        if server is not None and server.multiplexer.bound_state.lost:
            return False
        if failed.progress is not Progress.MAYBE_APPLIED:
            return True  # not sent or refused: certainly not applied
        return failing.call.effect <= failing.repeatable

    def _pay(self, failed: AttemptFailed) -> float | None:
        """Take the tokens of a retry from the budget. Return them, or None if there are too few."""
        price = _TIMEOUT_COST if failed.timed_out else _RETRY_COST
        connection = failed.connection
        if connection is not None and connection.lost:
            paid = connection.pay_for_repeats(lambda: self.budget.try_spend(price))
            return 0.0 if paid else None
        return price if self.budget.try_spend(price) else None

    # -- retrying --------------------------------------------------------------------------

    async def _back_off(
        self, decision: Retry, failing: _FailingCall, failed: AttemptFailed
    ) -> None:
        """Wait before another attempt. Cancelling returns the tokens that it cost."""
        self.health.note("retry scheduled", cause=failed.cause.value)
        tracing = tracing_of_call.get()
        if tracing is not None:
            tracing.retrying(failing.attempts + 1, decision.after, failed.cause.value)
        if not decision.after and not decision.paid:
            return  # another server has the answer
        waited = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decision.after):
                    await self._closing.wait()
            waited = True
        finally:
            if not waited:
                self.budget.refund(decision.paid)
        if failed.refusal is not None and not failed.refusal.degraded and not self.closed:
            # If the probe confirms that the server does not serve, the multiplexer keeps the call.
            until, longest = failing.limits().sent, _PROBE_BEFORE_RETRY
            if until is not None:
                longest = min(longest, until - asyncio.get_running_loop().time())
            await self._health_of(failing.call).wait_for_probe(longest)

    async def _wait_until_safe(
        self, failing: _FailingCall, failed: AttemptFailed
    ) -> AttemptFailed | None:
        """Wait until no earlier copy of a request can be applied, or return why one still can."""
        if failing.progress is not Progress.MAYBE_APPLIED or not failing.fenced_first:
            return None
        carrier, call = failing.carrier, failing.call
        if call.taken_over(carrier):
            return None
        if carrier is None:
            why = "; a copy may still be in flight on an exclusive connection"
        elif not carrier.lost:
            # The request is still in flight. A second copy on the same connection follows it.
            server = self._server_of(call)
            if server is not None and server.multiplexer.current is carrier:
                return None
            why = "; a copy may still be in flight on a connection that takes no more calls"
        else:
            try:
                async with asyncio.timeout_at(failing.limits().sent):
                    if await call.until_fenced(carrier):
                        return None
            except TimeoutError:
                return replace(failed, expired=True)
            why = "; the server does not permit ending the connection that carried it"
            if self.closed:
                why = "; the client was closed"
        return failed.with_reason(why, final=True)

    # -- reporting -------------------------------------------------------------------------

    def _report(self, call: Call, failed: AttemptFailed) -> None:
        """Report a refusal to health; connections report their own failures."""
        meaning = failed.refusal
        if meaning is None:
            return
        self.refusals += 1
        if meaning.normal:
            return
        server = self._server_of(call)
        if server is None:
            return
        if meaning.degraded:
            server.reports.refused(meaning.cause, failed.detail)
            server.multiplexer.refresh()
        else:
            server.reports.failed(meaning.cause, failed.detail, answered=True)
        if meaning.elsewhere or meaning.cause is Cause.NO_REPLICAS:
            server.search.note_refusal(meaning)

    def report_refusals(self, call: Call, replies: Iterable[object]) -> None:
        """Report the first refusal among replies that the caller gets, and that are not repeated.

        For example, the error of a script proves nothing about the call, because a part may be
        applied, but shows as well that the server is a replica.
        """
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        refusals = list(filter(server_refuses, errors))
        for error in refusals:
            mark_refused(error, self.health.name)
        failed = refused(next(iter(refusals), None))
        if failed is not None:
            self._report(call, failed)

    def note_redirected(self) -> None:
        """Count a call that another node of a cluster is to answer, and the further attempt."""
        self.refusals += 1
        self.retries += 1

    # -- calls that are not attempted ------------------------------------------------------

    def closed_error(self, operation: object) -> ResilientIOError:
        """Return the error of a call on a client that is closed for good."""
        return self._error(RedisClosed, "the client is closed", str(operation))

    def not_replicated(
        self,
        operation: str,
        reason: str,
        *,
        reply: object,
        replicas: int | None,
        attempts: int,
        started: float,
    ) -> ResilientIOError:
        """Return the error of a call that was applied, but is not as durable as required."""
        error = self._error(
            RedisNotReplicated,
            reason,
            operation,
            attempts=attempts,
            elapsed=asyncio.get_running_loop().time() - started,
            progress=Progress.APPLIED,
        )
        assert isinstance(error, RedisNotReplicated)  # noqa: S101
        error.reply, error.replicas = reply, replicas
        return error

    def not_open_in_time(self, operation: object, began: float) -> ResilientIOError:
        """Return the error of a call whose deadline passed while its client was still closing."""
        elapsed = asyncio.get_running_loop().time() - began
        reason = "the deadline passed while the client was closing"
        return self._error(RedisDeadlineExceeded, reason, str(operation), elapsed=elapsed)

    def check_available(self, operation: str, policy: RetryPolicy) -> None:
        """Raise if the dependency is down and the policy does not permit waiting."""
        end = end_of_wait(self.health, _outage_wait(policy, self._failover))
        if end is None or asyncio.get_running_loop().time() < end:
            return
        failed = server_down(self.health)
        kind = RedisAuthenticationFailed if failed.cause is Cause.AUTH else RedisUnavailable
        error = self._error(kind, failed.detail, operation)
        self._outage = Outage(error, policy, self.health)
        raise error

    def refusal(self, operation: str, policy: RetryPolicy) -> ResilientIOError | None:
        """Return the error of a call that need not be tried, because the latest one failed at once.

        This is `check_available` for the calls that follow in an outage, without its cost.
        """
        outage, health = self._outage, self.health
        if outage is None or outage.policy is not policy:
            return None
        if health.available or health.since != outage.since or health.detail is not outage.detail:
            self._outage = None
            return None
        self.ended[outage.name] += 1
        return outage.error(operation)

    def check_state(self, operation: str) -> None:
        """Raise once if the connection of a bound client, and with it its state, was lost."""
        if self._server is None:
            return
        state = self._server.multiplexer.bound_state
        if state.lost:
            reason = f"the connection was lost{state.take_loss()}"
            raise self._error(RedisUnavailable, reason, operation)


def _outage_wait(policy: RetryPolicy, failover: Failover | None) -> float:
    """Return how many seconds of an outage a call waits. It waits longer for a failover."""
    if policy.while_down != "fail":
        return math.inf
    expected = 0.0 if failover is None else failover.expected_within
    return max(policy.outage_wait, expected) if policy.outage_wait else 0.0


def _limits(
    call: Call,
    policy: RetryPolicy,
    started: float,
    failover: Failover | None,
    *,
    counted: int = 0,
    served: float = 0.0,
) -> Limits:
    """Return when an attempt must have been sent and answered, after `counted` other attempts."""
    enclosing, wait = current_deadline(), _outage_wait(policy, failover)
    moves = Moves(policy.attempts - counted - 1)
    if policy.deadline is None:
        return Limits(enclosing, enclosing, outage_wait=wait, moves=moves)
    # A blocking command has its own time limit. The deadline limits the time in which its attempts
    # together reach the server, so the time does not count during which the server had them.
    limit = started + policy.deadline + (0.0 if call.bounded else served)
    if enclosing is not None and enclosing < limit:
        limit = enclosing
    return Limits(limit if call.bounded else enclosing, limit, outage_wait=wait, moves=moves)
