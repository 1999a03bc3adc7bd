"""Minimizing, with a made-up run that fails if the plan contains certain elements."""

from dataclasses import dataclass, field, replace

import pytest

from tests.simulation.history import History, Operation, Violation
from tests.simulation.minimize import START, minimize
from tests.simulation.plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan


@dataclass(frozen=True)
class FakeResult:
    plan: Plan
    history: History
    violations: list[Violation] = field(default_factory=list)


def big_plan():
    calls = [
        Call(
            number,
            "set",
            pause=0.123456,
            cancel_after=0.5 if number % 3 == 0 else None,
            deadline=1.0 if number % 2 == 0 else None,
        )
        for number in range(1, 41)
    ]
    return Plan(
        seed=5,
        theme="mixed",
        clients=(
            ClientSetup("a", policy={"attempts": 2, "deadline": 3.0}, options={"decode": True}),
            ClientSetup("b", shares_health_of="a", protocol=2, single=True),
            ClientSetup("c"),
        ),
        callers=tuple(
            Caller(number, "ab"[number % 2], tuple(calls[number * 10 : number * 10 + 10]))
            for number in range(4)
        ),
        faults=tuple(
            Fault(number, "cut", at=number * 1.2345, seconds=0.777) for number in range(9)
        ),
        server={"version": 7, "maxclients": 5},
    )


class FakeRun:
    """Fails with "rule" if `needed` is true for a plan; counts the runs."""

    def __init__(self, needed):
        self.needed = needed
        self.plans = []

    def __call__(self, plan):
        self.plans.append(plan)
        clock = [START]
        history = History(lambda: clock[0])
        for caller in plan.callers:
            for call in caller.calls:
                clock[0] += 0.2
                operation = Operation(call.number, call.kind, caller.client, caller.number, ())
                operation.started_at, operation.started = history.next(), clock[0]
                operation.ended_at, operation.ended = history.next(), clock[0]
                history.operations.append(operation)
        return FakeResult(plan, history, self.needed(plan))


def calls_of(plan):
    return {call.number: call for caller in plan.callers for call in caller.calls}


def rule_broken(violation):
    return violation.rule == "rule"


def when(condition, **facts):
    return FakeRun(lambda plan: [Violation("rule", "broken", **facts)] if condition(plan) else [])


def test_minimized_plan_has_only_what_the_violation_needs():
    def needs(plan):
        calls = calls_of(plan)
        return (
            {7, 33} <= set(calls)
            and calls[7].pause > 0.05
            and calls[33].cancel_after is not None
            and {2, 5} <= {fault.number for fault in plan.faults}
        )

    run = when(needs)
    found = minimize(big_plan(), rule_broken, run)
    assert found is not None
    assert found.complete
    calls = calls_of(found.plan)
    assert set(calls) == {7, 33}
    assert 0.05 < calls[7].pause <= 0.1
    assert (calls[7].cancel_after, calls[7].deadline) == (None, None)
    assert calls[33] == Call(33, "set", cancel_after=0.5)
    assert [(fault.number, fault.at, fault.seconds) for fault in found.plan.faults] == [
        (2, 2.5, 0.78),
        (5, 6.2, 0.78),
    ]
    assert found.plan.network == NetworkSettings(jitter=0.0, split=0.0, stall=0.0)
    assert found.plan.server == {}
    assert found.plan.clients == (ClientSetup("a"), ClientSetup("b"))
    assert found.result.plan == found.plan
    assert len(run.plans) == found.runs < 150


def test_options_that_the_violation_needs_remain():
    def needs(plan):
        a = next((client for client in plan.clients if client.label == "a"), None)
        b = next((client for client in plan.clients if client.label == "b"), None)
        return (
            a is not None
            and a.policy.get("attempts") == 2
            and b is not None
            and b.shares_health_of == "a"
            and b.protocol == 2
            and plan.server.get("maxclients") == 5
            and plan.network.split > 0
        )

    found = minimize(big_plan(), rule_broken, when(needs))
    assert found.plan.clients == (
        ClientSetup("a", policy={"attempts": 2}),
        ClientSetup("b", shares_health_of="a", protocol=2),
    )
    assert found.plan.callers == ()
    assert found.plan.faults == ()
    assert found.plan.server == {"maxclients": 5}
    assert found.plan.network == NetworkSettings(jitter=0.0, stall=0.0)


def test_same_plan_is_minimized_to_the_same_plan():
    def needs(plan):
        return sum(calls_of(plan)) % 3 == 1 and len(plan.faults) % 2 == 1

    plans = [minimize(big_plan(), rule_broken, when(needs)) for _ in range(2)]
    assert plans[0].plan == plans[1].plan
    assert plans[0].runs == plans[1].runs


def test_calls_and_faults_after_the_violation_are_left_out_at_once():
    run = when(lambda plan: 4 in calls_of(plan), operations=(4,))
    minimize(big_plan(), rule_broken, run)
    assert set(calls_of(run.plans[1])) == {1, 2, 3, 4}
    assert [fault.number for fault in run.plans[1].faults] == [0]


def test_operation_that_never_ended_keeps_everything_that_follows():
    def run(plan):
        result = when(lambda _: True, operations=(4,))(plan)
        for operation in result.history.operations:
            operation.ended_at = operation.ended = None
        return result

    assert minimize(big_plan(), rule_broken, run) is not None


def test_calls_without_operations_remain_before_the_last_call_that_began():
    calls = (Call(20, "close"), Call(40, "burst"), Call(60, "close"), Call(80, "set"))

    def run(plan):
        history = History(lambda: START)
        operation = Operation(43, "set", "a", 1, ())
        operation.started_at = operation.ended_at = history.next()
        operation.started = operation.ended = START
        history.operations.append(operation)
        plans.append(plan)
        broken = [Violation("rule", "broken", (43,))] if {20, 40} <= set(calls_of(plan)) else []
        return FakeResult(plan, history, broken)

    plans = []
    plan = replace(big_plan(), callers=(Caller(1, "a", calls),), faults=())
    assert set(calls_of(minimize(plan, rule_broken, run).plan)) == {20, 40}
    assert set(calls_of(plans[1])) == {20, 40}


def test_arguments_become_simpler_but_not_timeouts_without_end():
    arguments = {"shape": "sigep", "raises": True, "think": 0.3, "timeout": 3, "count": 7, "key": 2}

    def needs(plan):
        call = calls_of(plan).get(20)
        return call is not None and "p" in call.arguments["shape"] and call.arguments["count"] > 3

    caller = Caller(1, "a", (Call(20, "pipeline", arguments=arguments),))
    found = minimize(replace(big_plan(), callers=(caller,)), rule_broken, when(needs))
    assert calls_of(found.plan)[20].arguments == {
        "shape": "p",
        "raises": False,
        "think": 0.0,
        "timeout": 3,
        "count": 4,
        "key": 2,
    }


def test_calls_begin_at_the_same_time_when_earlier_ones_are_left_out():
    calls = tuple(Call(number, "set", pause=0.1) for number in (20, 40, 60, 80))

    def run(plan):
        now = START
        history = History(lambda: now)
        broken = []
        for call in plan.callers[0].calls if plan.callers else ():
            now += call.pause
            operation = Operation(call.number, "set", "a", 1, ())
            operation.started_at, operation.started = history.next(), now
            if call.number == 80 and plan.faults and abs(now - plan.faults[0].at - START) < 0.01:
                broken = [Violation("rule", "broken", (80,))]
            now += 1.0
            operation.ended_at, operation.ended = history.next(), now
            history.operations.append(operation)
        return FakeResult(plan, history, broken)

    plan = replace(
        big_plan(),
        callers=(Caller(1, "a", calls),),
        faults=(Fault(1, "cut", at=3.4),),
    )
    found = minimize(plan, rule_broken, run).plan
    assert found.callers == (Caller(1, "a", (Call(80, "set"),)),)
    assert found.faults == (Fault(1, "cut", at=0.0),)


def test_violation_of_another_rule_does_not_count():
    def violations(plan):
        return [Violation("rule" if len(plan.faults) > 3 else "other", "broken")]

    found = minimize(big_plan(), rule_broken, FakeRun(violations))
    assert len(found.plan.faults) == 4
    assert found.violation.rule == "rule"


def test_plan_that_does_not_fail_is_not_minimized():
    assert minimize(big_plan(), rule_broken, when(lambda _: False)) is None


def test_run_that_raises_counts_as_one_that_does_not_fail():
    def needs(plan):
        if not plan.faults:
            raise KeyError("the workload needs a fault")
        return True

    assert len(minimize(big_plan(), rule_broken, when(needs)).plan.faults) == 1


@pytest.mark.parametrize("budget", [{"runs": 10}, {"seconds": 10.0}])
def test_budget_ends_the_search_with_the_smallest_plan_so_far(budget):
    now = iter(range(1000))
    run = when(lambda plan: {7, 33} <= set(calls_of(plan)))
    found = minimize(big_plan(), rule_broken, run, clock=lambda: float(next(now)), **budget)
    assert not found.complete
    assert found.runs <= 10
    assert len(calls_of(found.plan)) <= 40
    assert found.result.plan == found.plan


def test_plan_is_not_run_twice():
    plan = replace(big_plan(), faults=())
    run = when(lambda plan: sum(calls_of(plan)) > 700)
    minimize(plan, rule_broken, run)
    assert len(run.plans) == len({repr(plan) for plan in run.plans})
