"""The policy refuses contradictions; the retry loop keeps every bound."""

import asyncio
import dataclasses
import math
import pickle
import random

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.retry import RetryBudget, RetryPolicy, retrying


def test_the_defaults_are_those_of_the_design():
    policy = RetryPolicy()
    assert (policy.attempts, policy.connect_timeout, policy.response_timeout) == (3, 1.0, 2.0)
    assert (policy.deadline, policy.repeat, policy.while_down) == (5.0, "idempotent", "fail")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attempts": 0}, "attempts=0 must be an integer of at least 1"),
        ({"attempts": 2.5}, "attempts=2.5 must be an integer"),
        ({"attempts": True}, "attempts=True must be an integer"),
        ({"backoff": -0.1}, "backoff=-0.1 is out of range: use a finite number of at least 0"),
        ({"backoff": math.nan}, "backoff=nan is out of range"),
        ({"backoff": "fast"}, "backoff='fast' is not a number"),
        ({"backoff": 2.0}, "backoff=2.0 is above backoff_cap=1.0: use backoff_cap=2.0"),
        ({"backoff_cap": math.inf}, "backoff_cap=inf is not finite"),
        ({"deadline": 0}, "deadline=0 is out of range: use a finite number above 0"),
        ({"deadline": 1.0}, "deadline=1.0 is below response_timeout=2.0"),
        ({"deadline": 3.0, "connect_timeout": 4.0}, "deadline=3.0 is below connect_timeout=4.0"),
        ({"response_timeout": -1}, "response_timeout=-1 is out of range"),
        ({"response_timeout": None}, "response_timeout=None is not a number"),
        ({"connect_timeout": 0}, "connect_timeout=0 is out of range"),
        ({"retry_budget": -1}, "retry_budget=-1 is out of range"),
        ({"retry_budget": math.nan}, "retry_budget=nan is out of range"),
        ({"repeat": "all"}, "repeat='all' is unknown: use repeat=\"read\" or"),
        ({"while_down": None}, 'while_down=None is unknown: use while_down="fail" or'),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(wrong, message):
    with pytest.raises(ConfigurationError) as refusal:
        RetryPolicy(**wrong)
    assert message in str(refusal.value)


def test_no_deadline_and_no_bound_on_retries_can_be_asked_for():
    assert RetryPolicy(deadline=None, response_timeout=60).deadline is None
    assert RetryPolicy(retry_budget=math.inf).retry_budget == math.inf
    assert RetryPolicy(backoff=0, backoff_cap=0, retry_budget=0).backoff == 0


def test_replacing_checks_again_and_leaves_the_original():
    policy = RetryPolicy()
    assert policy.replace(repeat="read").repeat == "read"
    assert policy.repeat == "idempotent"
    with pytest.raises(ConfigurationError, match="is below response_timeout"):
        policy.replace(deadline=0.1)
    with pytest.raises(ConfigurationError, match="has no option 'retries': use one of attempts,"):
        policy.replace(retries=5)


def test_it_is_a_value():
    assert RetryPolicy() == RetryPolicy()
    assert pickle.loads(pickle.dumps(RetryPolicy(attempts=7))).attempts == 7  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().attempts = 4


def test_the_backoff_is_drawn_below_a_bound_that_doubles_up_to_the_cap():
    policy = RetryPolicy(backoff=0.1, backoff_cap=0.5)
    highest = random.Random()
    highest.random = lambda: 1.0
    bounds = [policy.backoff_before(retry, highest) for retry in (1, 2, 3, 4, 5, 5000)]
    assert bounds == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5, 0.5])
    rng = random.Random(1)
    drawn = [policy.backoff_before(4, rng) for _ in range(1000)]
    assert min(drawn) < 0.01
    assert 0.49 < max(drawn) <= 0.5


class Call:
    """A call that has failed once; `outcomes` are what the further attempts bring."""

    def __init__(self, *outcomes, budget=None, **policy):
        self.outcomes = list(outcomes)
        self.policy = RetryPolicy(**policy)
        self.budget = budget or RetryBudget(100.0, lambda: 0)
        self.announced = []
        self.began = []

    async def attempt(self):
        self.began.append(asyncio.get_running_loop().time())
        outcome = self.outcomes.pop(0)
        if callable(outcome):
            return await outcome()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def run(self, first=None, *, until=None, repeatable=(ConnectionError,), cost=5.0, seed=1):
        return await retrying(
            self.policy,
            first=first or ConnectionError("first"),
            attempt=self.attempt,
            may_repeat=lambda failure: isinstance(failure, repeatable),
            until=until,
            budget=self.budget,
            cost=lambda failure: cost,
            rng=random.Random(seed),
            on_retry=lambda number, delay: self.announced.append((number, delay)),
        )


async def test_the_attempt_that_succeeds_ends_it():
    call = Call(ConnectionError("second"), "value")
    assert await call.run() == "value"
    assert [number for number, _ in call.announced] == [2, 3]
    rng = random.Random(1)
    delays = [call.policy.backoff_before(1, rng), call.policy.backoff_before(2, rng)]
    assert [delay for _, delay in call.announced] == delays
    assert call.began == pytest.approx([delays[0], sum(delays)])


async def test_attempts_are_bounded_and_the_last_failure_is_raised_as_it_is():
    last = ConnectionError("third")
    call = Call(ConnectionError("second"), last, "never")
    with pytest.raises(ConnectionError) as failure:
        await call.run()
    assert failure.value is last
    assert len(call.began) == 2
    assert call.outcomes == ["never"]


async def test_with_one_attempt_the_first_failure_is_raised_at_once():
    first = ConnectionError("first")
    call = Call("never", attempts=1)
    with pytest.raises(ConnectionError) as failure:
        await call.run(first)
    assert failure.value is first
    assert not call.began
    assert asyncio.get_running_loop().time() == 0.0
    assert call.budget.tokens == 100.0


async def test_what_may_not_be_repeated_is_raised_at_once():
    call = Call(ValueError("second"), "never")
    with pytest.raises(ValueError, match="second"):
        await call.run()
    assert len(call.began) == 1
    with pytest.raises(KeyError):
        await Call("never").run(KeyError("first"))


async def test_a_backoff_that_would_reach_the_deadline_is_not_slept():
    call = Call(ConnectionError("second"), "never", backoff=10.0, backoff_cap=10.0)
    loop = asyncio.get_running_loop()
    first_delay = call.policy.backoff_before(1, random.Random(1))
    with pytest.raises(ConnectionError, match="second"):
        await call.run(until=first_delay + 0.5)
    assert loop.time() == pytest.approx(first_delay)
    assert call.budget.tokens == 95.0


async def test_each_retry_costs_tokens_and_an_empty_budget_ends_it():
    budget = RetryBudget(9.0, lambda: 0)
    call = Call(ConnectionError("second"), "never", attempts=9, budget=budget)
    with pytest.raises(ConnectionError, match="second"):
        await call.run(cost=5.0)
    assert budget.tokens == 4.0


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_what_is_no_exception_is_never_repeated_whatever_the_caller_says(signal):
    call = Call("never")
    with pytest.raises(signal):
        await call.run(signal(), repeatable=(BaseException,))
    assert not call.began


async def test_a_cancel_during_the_backoff_leaves_at_once_and_gives_the_tokens_back():
    call = Call("never", backoff=100.0, backoff_cap=100.0)
    task = asyncio.create_task(call.run())
    await asyncio.sleep(1.0)
    assert call.budget.tokens == 95.0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() == 1.0
    assert call.budget.tokens == 100.0
    assert not call.began


async def test_a_cancel_during_an_attempt_leaves_at_once_and_keeps_the_tokens():
    async def forever():
        await asyncio.sleep(1000)

    call = Call(forever, backoff=0, backoff_cap=0)
    task = asyncio.create_task(call.run(repeatable=(BaseException,)))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.get_running_loop().time() == 1.0
    assert call.budget.tokens == 95.0


async def test_one_seed_gives_one_schedule():
    def schedule(seed):
        rng = random.Random(seed)
        return [RetryPolicy().backoff_before(retry, rng) for retry in (1, 2)]

    call = Call(ConnectionError(), "value")
    await call.run(seed=7)
    assert [delay for _, delay in call.announced] == schedule(7) != schedule(8)
