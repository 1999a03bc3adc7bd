"""Bad input: one clear error each, that says what to write instead."""

import random

import pytest

from resilient_io import ConfigurationError
from resilient_io.kafka.processing import DeadLetter, HandlerPolicy, RunLimits, plan_run


async def handle(record):
    """Do nothing."""


async def yields(record):
    yield record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "keys"}, "order='keys' is unknown: write order=\"key\""),
        ({"order": None}, 'write order="key" or order="partition" or order="none"'),
        ({"concurrency": 0}, "concurrency=0 must be an integer of at least 1"),
        ({"concurrency": 2.5}, "concurrency=2.5 must be an integer"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"policy": 3}, r"write policy=HandlerPolicy\(attempts=3\)"),
        ({"limits": 3}, r"write limits=RunLimits\(records=10_000\)"),
        ({"dead_letter": 3}, 'write dead_letter="orders.dead"'),
        ({"dead_letter": ""}, "must be a non-empty string"),
        ({"on_failure": "dead_letter"}, 'needs a topic: write dead_letter="orders.dead" too'),
        (
            {"on_outcome_unknown": "dead_letter"},
            'needs a topic: write dead_letter="orders.dead" too',
        ),
        ({"limits": RunLimits(records=9), "concurrency": 10}, r"write RunLimits\(records=100\)"),
        ({"on_failure": "retry"}, "on_failure='retry' is unknown"),
        ({"on_outcome_unknown": "ignore"}, "on_outcome_unknown='ignore' is unknown"),
        ({"handler": None}, r"write `async def handle\(record\)"),
        ({"handler": yields}, "yields, so it does nothing"),
        ({"handler": 5, "batch_size": 3}, r"write `async def handle\(records\)"),
    ],
)
def test_run_refuses_what_cannot_work(options, message):
    handler = options.pop("handler", handle)
    with pytest.raises(ConfigurationError, match=message):
        plan_run(handler, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HandlerPolicy(attempts=0), "attempts=0"),
        (lambda: HandlerPolicy(backoff=-1), "backoff=-1"),
        (lambda: HandlerPolicy(backoff=20), "write backoff_cap=20 or more"),
        (lambda: HandlerPolicy(timeout=0), "timeout=0"),
        (lambda: RunLimits(records=0), "records=0"),
        (lambda: RunLimits(bytes=0), "bytes=0"),
        (lambda: RunLimits(drain_timeout=-1), "drain_timeout=-1"),
        (lambda: RunLimits(slow_start=-1), "slow_start=-1"),
        (lambda: DeadLetter(topic=7), "topic=7"),
        (lambda: plan_run(handle, dead_letter=DeadLetter(topic="x", producer=5)), "producer=5"),
    ],
)
def test_settings_refuse_what_cannot_work(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_what_fails_goes_to_the_dead_letters_where_there_are_any_and_stops_run_otherwise():
    assert plan_run(handle).on_failure == "stop"
    assert plan_run(handle, dead_letter="dead").on_failure == "dead_letter"
    assert plan_run(handle, dead_letter="dead", on_failure="skip").on_failure == "skip"


def test_a_backoff_grows_to_its_cap_and_is_never_short():
    policy = HandlerPolicy(backoff=1.0, backoff_cap=5.0)
    rng = random.Random(1)
    for retry, bound in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (99999, 5.0)):
        for _ in range(50):
            assert bound / 2 <= policy.wait_before(retry, rng) <= bound
