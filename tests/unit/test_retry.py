"""The retry policy and the schedule of attempts."""

import dataclasses
import math
import pickle
import random

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.retry import RetryPolicy, RetrySchedule


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
def test_an_invalid_policy_raises_an_error_that_names_what_to_use(wrong, message):
    with pytest.raises(ConfigurationError) as refusal:
        RetryPolicy(**wrong)
    assert message in str(refusal.value)


def test_a_policy_may_have_no_deadline_and_no_limit_of_retries():
    assert RetryPolicy(deadline=None, response_timeout=60).deadline is None
    assert RetryPolicy(retry_budget=math.inf).retry_budget == math.inf
    assert RetryPolicy(backoff=0, backoff_cap=0, retry_budget=0).backoff == 0


def test_replace_checks_the_values_and_leaves_the_original():
    policy = RetryPolicy()
    assert policy.replace(repeat="read").repeat == "read"
    assert policy.repeat == "idempotent"
    with pytest.raises(ConfigurationError, match="is below response_timeout"):
        policy.replace(deadline=0.1, response_timeout=0.2)
    with pytest.raises(ConfigurationError, match="has no option 'retries': use one of attempts,"):
        policy.replace(retries=5)


def test_replacing_the_deadline_shortens_the_timeouts_within_it():
    policy = RetryPolicy(response_timeout=2.0, connect_timeout=0.3).replace(deadline=0.5)
    assert (policy.deadline, policy.response_timeout, policy.connect_timeout) == (0.5, 0.5, 0.3)
    assert policy.replace(deadline=5.0).response_timeout == 0.5
    assert policy.replace(deadline=None).response_timeout == 0.5
    with pytest.raises(ConfigurationError, match="deadline=True is not a number"):
        policy.replace(deadline=True)


def test_a_policy_is_a_value():
    assert RetryPolicy() == RetryPolicy()
    assert pickle.loads(pickle.dumps(RetryPolicy(attempts=7))).attempts == 7  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().attempts = 4


def schedule_of(policy, seed=1):
    return RetrySchedule(policy, random.Random(seed))


def test_the_backoff_is_drawn_below_a_bound_that_doubles_up_to_the_cap():
    policy = RetryPolicy(attempts=5001, backoff=0.1, backoff_cap=0.5)
    highest = random.Random()
    highest.random = lambda: 1.0
    schedule = RetrySchedule(policy, highest)
    bounds = [schedule.next(made) for made in range(1, 5001)]
    assert bounds[:5] + bounds[-1:] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5, 0.5])
    schedule = schedule_of(policy)
    drawn = [schedule.next(made) for made in range(1, 1001)][3:]
    assert min(drawn) < 0.01
    assert 0.49 < max(drawn) <= 0.5


def test_the_schedule_ends_with_the_attempts_of_the_policy():
    schedule = schedule_of(RetryPolicy(attempts=3))
    assert [schedule.next(made) is None for made in (1, 2, 3)] == [False, False, True]
    assert schedule_of(RetryPolicy(attempts=1)).next(1) is None


def test_a_seed_determines_the_schedule():
    def drawn(seed):
        schedule = schedule_of(RetryPolicy(), seed)
        return [schedule.next(1), schedule.next(2)]

    assert drawn(7) == drawn(7) != drawn(8)


def test_a_backoff_of_zero_needs_no_wait():
    assert schedule_of(RetryPolicy(backoff=0, backoff_cap=0)).next(1) == 0.0
