"""The retry budget: spent by retries, earned by successes, never above its capacity."""

import math

from resilient_io.retry import RetryBudget


class Counter:
    def __init__(self, value=0):
        self.value = value

    def __call__(self):
        return self.value


def test_budget_starts_full_and_refuses_when_too_few_tokens_are_left():
    budget = RetryBudget(12.0, Counter())
    assert budget.tokens == 12.0
    assert budget.try_spend(5)
    assert budget.try_spend(5)
    assert not budget.try_spend(5)
    assert budget.tokens == 2.0


def test_a_refused_retry_takes_nothing():
    budget = RetryBudget(4.0, Counter())
    assert not budget.try_spend(5)
    assert budget.try_spend(4)


def test_successes_earn_one_token_each_up_to_the_capacity():
    successes = Counter(1000)  # what came before the budget earns nothing
    budget = RetryBudget(20.0, successes)
    assert budget.try_spend(20)
    successes.value += 7
    assert budget.tokens == 7.0
    successes.value += 500
    assert budget.tokens == 20.0


def test_successes_at_full_capacity_earn_nothing():
    successes = Counter()
    budget = RetryBudget(10.0, successes)
    successes.value += 100
    assert budget.try_spend(10)
    assert not budget.try_spend(1)


def test_a_counter_that_is_reset_earns_nothing_and_costs_nothing():
    successes = Counter(50)
    budget = RetryBudget(10.0, successes)
    budget.try_spend(10)
    successes.value = 0
    assert budget.tokens == 0.0
    successes.value = 3
    assert budget.tokens == 3.0


def test_a_refund_never_exceeds_the_capacity():
    budget = RetryBudget(10.0, Counter())
    budget.try_spend(5)
    budget.refund(5)
    budget.refund(5)
    assert budget.tokens == 10.0


def test_capacity_zero_forbids_retries_and_infinity_allows_all():
    assert not RetryBudget(0.0, Counter()).try_spend(5)
    endless = RetryBudget(math.inf, Counter())
    assert all(endless.try_spend(1e9) for _ in range(10))
