"""Invalid arguments: one clear error each, that says what to use instead."""

import functools
import random
from unittest.mock import AsyncMock, Mock

import pytest

from resilient_io import ConfigurationError
from resilient_io.kafka.processing import DeadLetter, HandlerPolicy, RunLimits, plan_run


async def handle(record):
    """Do nothing."""


async def handle_two(context, record):
    """Do nothing."""


async def yields(record):
    yield record


class Handler:
    async def __call__(self, record):
        """Do nothing."""

    async def method(self, record):
        """Do nothing."""

    def plain(self, record):
        """Do nothing."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "keys"}, "order='keys' is unknown: use order=\"key\""),
        ({"order": None}, 'use order="key" or order="partition" or order="none"'),
        ({"concurrency": 0}, "concurrency=0 must be an integer of at least 1"),
        ({"concurrency": 2.5}, "concurrency=2.5 must be an integer"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"dead_letter": ""}, r'must be a non-empty string, for example topic="orders\.dead"'),
        (
            {"dead_letter": "a", "reads": {"a"}.__contains__},
            "'a' is both a topic of this consumer and the dead",
        ),
        ({"on_failure": "dead_letter"}, 'needs a topic: pass dead_letter="orders.dead" too'),
        (
            {"on_outcome_unknown": "dead_letter"},
            'needs a topic: pass dead_letter="orders.dead" too',
        ),
        ({"limits": RunLimits(records=9), "concurrency": 10}, r"use RunLimits\(records=100\)"),
        ({"on_failure": "retry"}, "on_failure='retry' is unknown"),
        ({"on_outcome_unknown": "ignore"}, "on_outcome_unknown='ignore' is unknown"),
    ],
)
def test_run_refuses_invalid_values(options, message):
    with pytest.raises(ConfigurationError, match=message):
        plan_run(handle, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"handler_policy": 3}, r"use HandlerPolicy\(attempts=3\)"),
        ({"limits": 3}, r"use RunLimits\(records=10_000\)"),
        ({"dead_letter": 3}, 'use dead_letter="orders.dead"'),
        ({"handler": None}, r"not NoneType: use `async def handle\(record\)"),
        ({"handler": print}, "must be a coroutine function, not a plain function"),
        ({"handler": yields}, "must be a coroutine function, not a generator function"),
        ({"handler": 5, "batch_size": 3}, r"not int: use `async def handle\(records\)"),
        ({"handler": lambda record: handle(record)}, "not a plain function"),  # noqa: PLW0108
        ({"handler": Handler().plain}, "not a plain function"),
        ({"handler": functools.partial(print, 1)}, "not a plain function"),
        ({"handler": Mock()}, "not Mock"),
        ({"handler": handle_two}, r"cannot be called with one argument \(missing.*'record'"),
        ({"handler": functools.partial(handle, None)}, "cannot be called with one argument"),
    ],
)
def test_run_refuses_objects_of_the_wrong_type(options, message):
    options = dict(options)
    handler = options.pop("handler", handle)
    with pytest.raises(TypeError, match=message):
        plan_run(handler, **options)


@pytest.mark.parametrize(
    "handler",
    [
        handle,
        Handler(),
        Handler().method,
        functools.partial(handle_two, None),
        functools.partial(
            functools.partial(Handler()),
        ),
        AsyncMock(),
    ],
    ids=["function", "object", "method", "partial", "partial of an object", "AsyncMock"],
)
def test_run_accepts_every_kind_of_coroutine_function(handler):
    assert plan_run(handler).handler is handler


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HandlerPolicy(attempts=0), "attempts=0"),
        (lambda: HandlerPolicy(backoff=-1), "backoff=-1"),
        (lambda: HandlerPolicy(backoff=20), "use backoff_cap=20 or more"),
        (lambda: HandlerPolicy(timeout=0), "timeout=0"),
        (lambda: RunLimits(records=0), "records=0"),
        (lambda: RunLimits(bytes=0), "bytes=0"),
        (lambda: RunLimits(slow_start=-1), "slow_start=-1"),
        (lambda: DeadLetter(topic=7), "topic=7"),
        (lambda: DeadLetter(topic=""), r'topic=\'\' must be .* topic="orders\.dead"'),
    ],
)
def test_options_refuse_invalid_values(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_dead_letter_refuses_a_producer_that_cannot_send():
    with pytest.raises(TypeError, match="producer must be a ResilientKafkaProducer, not int"):
        DeadLetter(topic="x", producer=5)


def test_on_failure_defaults_to_dead_letter_with_a_topic_and_to_stop_without():
    assert plan_run(handle).on_failure == "stop"
    assert plan_run(handle, dead_letter="dead").on_failure == "dead_letter"
    assert plan_run(handle, dead_letter="dead", on_failure="skip").on_failure == "skip"


def test_backoff_grows_to_its_cap_and_is_at_least_half_of_it():
    policy = HandlerPolicy(backoff=1.0, backoff_cap=5.0)
    rng = random.Random(1)
    for retry, bound in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (99999, 5.0)):
        for _ in range(50):
            assert bound / 2 <= policy.backoff_before(retry, rng) <= bound
