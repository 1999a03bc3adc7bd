"""The retry loop of the executor keeps every limit: attempts, deadline, budget, cancellation."""

import asyncio
import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from resilient_io import Dependency, RetryPolicy
from resilient_io.errors import OutcomeUnknown, Progress
from resilient_io.health import Cause
from resilient_io.redis import (
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisOutcomeUnknown,
    RedisUnavailable,
)
from resilient_io.redis.attempt import AttemptFailed, Call, Server
from resilient_io.redis.commands import Effect
from resilient_io.redis.errors import REDIRECTED, Refusal
from resilient_io.redis.executor import Executor
from resilient_io.redis.instrumentation import traced
from resilient_io.redis.replicas import ReplicaRead
from resilient_io.retry import RetryBudget, RetrySchedule
from resilient_io.testing import cancel_everywhere


def not_sent(detail, **facts):
    return AttemptFailed(progress=Progress.NOT_SENT, cause=Cause.REFUSED, detail=detail, **facts)


def maybe_applied(detail, **facts):
    return AttemptFailed(progress=Progress.MAYBE_APPLIED, cause=Cause.RESET, detail=detail, **facts)


class FakeConnection:
    """A connection that died, and whose successor fenced it."""

    lost = "for the test"

    def __init__(self, *, fenced=True):
        self.fenced = asyncio.get_running_loop().create_future()
        self.fenced.set_result(fenced)
        self._paid = None

    def pay_for_repeats(self, spend):
        if self._paid is None:
            self._paid = spend()
        return self._paid


class FakeMultiplexer:
    current = None
    bound_state = SimpleNamespace(lost=[])
    failover = SimpleNamespace(expected_within=0.0)

    def refresh(self):
        pass


class Scene(Call):
    """An executor, and a call whose attempts have the given results."""

    bounded = True
    operation = "INCR"
    effect = Effect.NON_IDEMPOTENT

    def __init__(self, *results, effect=Effect.NON_IDEMPOTENT, tokens=100.0, seed=1, **policy):
        self.results = list(results)
        self.effect = effect
        self.policy = RetryPolicy(**policy)
        self.budget = RetryBudget(tokens, lambda: 0)
        self.announced = []
        self.began = []
        self.limits = []
        self.executor = Executor(
            server=Server(
                FakeMultiplexer(),
                health := Dependency("redis"),
                health.reporter(),
                SimpleNamespace(note_refusal=lambda _: None),
            ),
            health=health,
            failover=FakeMultiplexer.failover,
            budget=self.budget,
            rng=random.Random(seed),
        )

    async def attempt(self, limits):
        self.began.append(asyncio.get_running_loop().time())
        self.limits.append(limits)
        result = self.results.pop(0)
        return await result() if callable(result) else result

    def describe(self, error):
        pass

    def retrying(self, attempt, backoff, cause):
        self.announced.append((attempt, backoff))

    async def run(self, *, deliberate=False):
        with traced(self):
            return await self.executor.run(
                self,
                self.policy,
                started=asyncio.get_running_loop().time(),
                deliberate=deliberate,
            )


def backoffs(policy, seed=1):
    schedule = RetrySchedule(policy, random.Random(seed))
    return [schedule.next(made) for made in range(1, policy.attempts)]


async def test_a_successful_attempt_ends_the_loop():
    scene = Scene(not_sent("first"), not_sent("second"), "value")
    assert await scene.run() == "value"
    assert [number for number, _ in scene.announced] == [2, 3]
    delays = backoffs(scene.policy)
    assert [delay for _, delay in scene.announced] == delays
    assert scene.began == pytest.approx([0.0, delays[0], sum(delays)])
    assert scene.executor.retries == 2


async def test_attempts_are_limited_and_the_error_describes_the_last_failure():
    scene = Scene(not_sent("first"), not_sent("second"), not_sent("third"), "never")
    with pytest.raises(RedisUnavailable, match=r"third \(not sent, 3 attempts") as failure:
        await scene.run()
    assert failure.value.__cause__ is None
    assert failure.value.__context__ is None
    assert scene.results == ["never"]


class Moving(Call):
    """A read that is moved as often as it may be, and then fails."""

    operation = "GET"
    effect = Effect.READ

    def __init__(self, *results):
        self.results = list(results)
        self.written = 0

    async def attempt(self, limits):
        self.written += 1
        while limits.moves.begin():
            self.written += 1
        return self.results.pop(0)


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_each_move_of_a_read_counts_as_an_attempt(attempts):
    scene = Scene(effect=Effect.READ, attempts=attempts)
    moving = Moving(maybe_applied("lost"), "never")
    scene.attempt = moving.attempt
    with pytest.raises(RedisUnavailable, match=rf"lost \(sent, {attempts} attempts?,") as failure:
        await scene.run()
    assert moving.written == failure.value.attempts == attempts


async def test_moves_before_a_redirection_count_and_the_redirection_does_not():
    redirected = replace(refused("MOVED 1 host:1"), refusal=REDIRECTED)
    scene = Scene(effect=Effect.READ, attempts=3)
    moving = Moving(redirected, maybe_applied("lost"), "never")
    scene.attempt = moving.attempt
    with pytest.raises(RedisUnavailable, match="lost"):
        await scene.run()
    assert moving.written == 4


async def test_attempts_on_a_replica_and_on_its_master_are_limited_together():
    replica, master = Moving(maybe_applied("replica lost")), Moving(maybe_applied("lost"), "never")
    scene = Scene(effect=Effect.READ, attempts=3)
    scene.attempt = ReplicaRead(replica, lambda: master).attempt
    with pytest.raises(RedisUnavailable):
        await scene.run()
    assert replica.written + master.written == 3


async def test_a_policy_with_one_attempt_raises_immediately():
    scene = Scene(not_sent("first"), "never", attempts=1)
    with pytest.raises(RedisUnavailable, match="first"):
        await scene.run()
    assert len(scene.began) == 1
    assert asyncio.get_running_loop().time() == 0.0
    assert scene.budget.tokens == 100.0


@pytest.mark.parametrize("facts", [{"final": True}, {"expired": True}])
async def test_a_final_or_expired_failure_is_raised_immediately(facts):
    scene = Scene(not_sent("first"), not_sent("second", **facts), "never")
    with pytest.raises(Exception, match="second"):
        await scene.run()
    assert len(scene.began) == 2
    scene = Scene(not_sent("first", **facts), "never")
    with pytest.raises(Exception, match="first"):
        await scene.run()
    assert len(scene.began) == 1


@pytest.mark.parametrize(
    ("effect", "repeat", "repeated"),
    [
        (Effect.READ, "read", True),
        (Effect.IDEMPOTENT, "read", False),
        (Effect.IDEMPOTENT, "idempotent", True),
        (Effect.CONDITIONAL, "idempotent", False),
        (Effect.CONDITIONAL, "conditional", True),
        (Effect.NON_IDEMPOTENT, "conditional", False),
        (Effect.NON_IDEMPOTENT, "any", True),
        (Effect.DANGEROUS, "any", False),
    ],
)
async def test_a_maybe_applied_call_is_repeated_up_to_the_policy(effect, repeat, repeated):
    lost = maybe_applied("lost", connection=FakeConnection())
    scene = Scene(lost, "value", effect=effect, repeat=repeat)
    if repeated:
        assert await scene.run() == "value"
    else:
        with pytest.raises(RedisOutcomeUnknown, match="lost; the call may have been applied"):
            await scene.run()
        assert len(scene.began) == 1


async def test_a_dangerous_call_is_repeated_only_with_a_policy_chosen_for_the_call():
    lost = maybe_applied("lost", connection=FakeConnection())
    scene = Scene(lost, "value", effect=Effect.DANGEROUS, repeat="any")
    assert await scene.run(deliberate=True) == "value"


async def test_a_write_is_not_repeated_while_its_first_copy_may_still_be_applied():
    lost = maybe_applied("lost", connection=FakeConnection(fenced=False))
    scene = Scene(lost, "never", effect=Effect.IDEMPOTENT)
    with pytest.raises(OutcomeUnknown, match="does not permit ending the connection"):
        await scene.run()
    assert len(scene.began) == 1
    lost = maybe_applied("lost", connection=None)
    scene = Scene(lost, "never", effect=Effect.IDEMPOTENT)
    with pytest.raises(OutcomeUnknown, match="may still be in flight on an exclusive connection"):
        await scene.run()
    assert len(scene.began) == 1


def refused(text="OOM command not allowed"):
    error = OutOfMemoryError(text)
    return AttemptFailed(
        progress=Progress.REFUSED,
        cause=Cause.OUT_OF_MEMORY,
        detail=text,
        error=error,
        refusal=Refusal(Cause.OUT_OF_MEMORY, degraded=True),
    )


async def invalid():
    raise ResponseError("no such key")


LATER = {
    "not sent": lambda: not_sent("refused connection", final=True),
    "expired": lambda: not_sent("the deadline passed", expired=True),
    "overloaded": lambda: not_sent("too much in flight", expired=True, overloaded=True),
    "refused": refused,
    "refused for good": lambda: invalid,
    "sent": lambda: maybe_applied("lost again", connection=FakeConnection(), final=True),
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
@pytest.mark.parametrize(
    ("effect", "policy"),
    [
        (Effect.IDEMPOTENT, {"repeat": "idempotent"}),
        (Effect.CONDITIONAL, {"repeat": "conditional"}),
        (Effect.NON_IDEMPOTENT, {"repeat": "any"}),
    ],
)
async def test_the_attempt_that_got_furthest_decides_whether_the_outcome_is_unknown(
    later, effect, policy
):
    lost = maybe_applied("lost", connection=FakeConnection())
    scene = Scene(lost, later(), effect=effect, attempts=2, **policy)
    with pytest.raises(RedisOutcomeUnknown, match="may have been applied") as caught:
        await scene.run()
    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert caught.value.attempts == 2


async def test_an_attempt_between_a_maybe_applied_and_a_refused_one_changes_nothing():
    lost = maybe_applied("lost", connection=FakeConnection())
    scene = Scene(lost, not_sent("no connection"), refused(), effect=Effect.IDEMPOTENT)
    with pytest.raises(RedisOutcomeUnknown, match="OOM command not allowed; an earlier attempt"):
        await scene.run()


async def test_a_closed_client_reports_that_an_earlier_attempt_was_maybe_applied():
    lost = maybe_applied("lost", connection=FakeConnection())
    closed = AttemptFailed(progress=Progress.NOT_SENT, cause=Cause.CLOSED, detail="closed")
    scene = Scene(lost, closed, effect=Effect.IDEMPOTENT)
    with pytest.raises(RedisClosed) as caught:
        await scene.run()
    assert caught.value.progress is Progress.MAYBE_APPLIED


async def test_a_refusal_after_a_lost_read_or_an_unsent_write_applied_nothing():
    lost = maybe_applied("lost", connection=FakeConnection())
    for scene in (
        Scene(lost, refused(), effect=Effect.READ, attempts=2),
        Scene(not_sent("first"), refused(), attempts=2),
    ):
        with pytest.raises(OutOfMemoryError) as caught:
            await scene.run()
        assert "nothing was applied" in caught.value.__notes__[0]
    with pytest.raises(ResponseError, match="no such key"):
        await Scene(not_sent("first"), invalid).run()


async def test_a_backoff_that_would_exceed_the_deadline_is_not_slept():
    scene = Scene(not_sent("first"), not_sent("second"), "never", backoff=10.0, backoff_cap=10.0)
    first_delay = backoffs(scene.policy)[0]
    scene.policy = scene.policy.replace(deadline=first_delay + 0.5)
    with pytest.raises(RedisUnavailable, match="second"):
        await scene.run()
    assert asyncio.get_running_loop().time() == pytest.approx(first_delay)
    assert scene.budget.tokens == 95.0


async def test_the_time_to_reach_the_server_is_limited_for_all_attempts_of_a_blocking_call():
    async def unreachable():
        await asyncio.sleep(1.0)
        return not_sent("timed out")

    async def waited():
        await asyncio.sleep(30.0)
        return replace(maybe_applied("lost"), served=29.5)

    scene = Scene(unreachable, unreachable, "value", backoff=0, backoff_cap=0)
    scene.bounded = False
    assert await scene.run() == "value"
    assert [limits.sent for limits in scene.limits] == [5.0, 5.0, 5.0]

    scene = Scene(unreachable, waited, "value", effect=Effect.READ, backoff=0, backoff_cap=0)
    scene.bounded = False
    began = asyncio.get_running_loop().time()
    assert await scene.run() == "value"
    assert [limits.sent - began for limits in scene.limits] == [5.0, 5.0, 34.5]
    assert [limits.until for limits in scene.limits] == [None] * 3


async def test_each_retry_costs_tokens_and_an_empty_budget_ends_the_loop():
    scene = Scene(not_sent("first"), not_sent("second"), "never", attempts=9, tokens=9.0)
    with pytest.raises(RedisUnavailable, match="second; not repeated: the retry budget is used up"):
        await scene.run()
    assert scene.budget.tokens == 4.0


async def test_a_retry_after_a_timeout_costs_twice_as_much():
    timed_out = maybe_applied("slow", timed_out=True)
    scene = Scene(timed_out, timed_out, "value", effect=Effect.READ)
    assert await scene.run() == "value"
    assert scene.budget.tokens == 80.0
    scene = Scene(timed_out, effect=Effect.READ, attempts=1)
    with pytest.raises(RedisDeadlineExceeded, match="slow"):
        await scene.run()


async def test_calls_that_one_connection_lost_pay_for_their_repeats_once():
    connection = FakeConnection()
    first = Scene(maybe_applied("lost", connection=connection), "one", effect=Effect.READ)
    second = Scene(maybe_applied("lost", connection=connection), "two", effect=Effect.READ)
    assert await asyncio.gather(first.run(), second.run()) == ["one", "two"]
    assert (first.budget.tokens, second.budget.tokens) == (95.0, 100.0)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_an_exception_that_is_not_a_failed_attempt_is_never_repeated(signal):
    async def interrupted():
        raise signal

    scene = Scene(interrupted, "never")
    with pytest.raises(signal):
        await scene.run()
    assert len(scene.began) == 1


async def test_cancelling_the_backoff_returns_immediately_and_refunds_the_tokens():
    scene = Scene(not_sent("first"), "never", backoff=100.0, backoff_cap=100.0, deadline=1000.0)
    task = asyncio.create_task(scene.run())
    await asyncio.sleep(1.0)
    assert scene.budget.tokens == 95.0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() == 1.0
    assert scene.budget.tokens == 100.0
    assert len(scene.began) == 1


async def test_cancelling_an_attempt_returns_immediately_and_keeps_the_tokens():
    async def endless():
        await asyncio.sleep(1000)

    scene = Scene(not_sent("first"), endless, backoff=0, backoff_cap=0)
    task = asyncio.create_task(scene.run())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() == 1.0
    assert scene.budget.tokens == 95.0


async def test_cancelling_a_retry_at_any_point_returns_immediately():
    async def refused():
        await asyncio.sleep(0.1)
        return not_sent("again")

    def call():
        return Scene(not_sent("first"), refused, refused).run()

    report = await cancel_everywhere(call, raises=RedisUnavailable)
    report.assert_clean()
    assert report.points == 4


async def test_a_cancelled_caller_leaves_the_lost_state_for_the_next_call():
    class BoundState:
        lost = ("SELECT",)

        def take_loss(self):
            self.lost = ()
            return "; SELECT was lost"

    state = BoundState()
    scene = Scene(maybe_applied("connection reset", connection=FakeConnection()))
    scene.executor._server.multiplexer.bound_state = state

    async def wait_for_probe(timeout):
        await asyncio.sleep(timeout)

    scene.executor.health.wait_for_probe = wait_for_probe
    task = asyncio.create_task(scene.run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state.lost == ("SELECT",)
    await scene.executor.health.aclose()


async def test_closing_ends_a_backoff():
    scene = Scene(not_sent("first"), "never", backoff=30.0, backoff_cap=30.0, deadline=None)
    asyncio.get_running_loop().call_later(1.0, scene.executor.close)
    with pytest.raises(RedisClosed, match="the client was closed") as closed:
        await scene.run()
    assert asyncio.get_running_loop().time() == 1.0
    assert closed.value.progress is Progress.NOT_SENT
    assert len(scene.began) == 1


def refusal(executor, policy, operation="GET"):
    """Return the error of a call that fails at once, as the client asks for it, or None."""
    error = executor.refusal(operation, policy)
    if error is None:
        try:
            executor.check_available(operation, policy)
        except RedisUnavailable as raised:
            error = raised
    return error


async def test_calls_of_one_outage_fail_with_equal_errors():
    scene, policy = Scene(), RetryPolicy(outage_wait=0.0)
    executor, health = scene.executor, scene.executor.health
    assert refusal(executor, policy) is None
    health.failed(Cause.REFUSED, "connection refused", definite=True)
    first, second, third = (refusal(executor, policy, name) for name in ("GET", "SET", "GET"))
    assert second is not third
    assert second.operation == "SET"
    assert type(first) is type(third)
    assert (str(first), first.args, vars(first)) == (str(third), third.args, vars(third))
    assert str(copy.copy(second)) == str(second)
    assert executor.ended == {"DependencyUnavailable": 3}
    health.failed(Cause.AUTH, "wrong password", definite=True)
    assert isinstance(refusal(executor, policy), RedisAuthenticationFailed)
    assert "wrong password" in str(refusal(executor, policy))
    executor.close()
    assert executor.refusal("GET", policy) is None


async def test_a_new_outage_is_waited_for_again():
    loop = asyncio.get_running_loop()
    scene, policy = Scene(), RetryPolicy()
    executor, health = scene.executor, scene.executor.health
    health.succeeded()
    for _ in range(2):
        assert refusal(executor, policy) is None
        health.failed(Cause.REFUSED, "connection refused", definite=True)
        assert refusal(executor, policy) is None
        await asyncio.sleep(policy.outage_wait - 0.01)
        assert refusal(executor, policy) is None
        await asyncio.sleep(0.02)
        assert refusal(executor, policy) is not None
        assert refusal(executor, policy) is not None
        assert executor.refusal("GET", RetryPolicy(while_down="wait")) is None
        while not health.available:
            health.succeeded()
            await asyncio.sleep(0.1)
    assert loop.time() < 5
