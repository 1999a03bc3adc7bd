"""Errors tell everything in one line, and survive pickling and copying."""

import copy
import pickle
import timeit

import pytest
import redis.exceptions

from resilient_io import errors
from resilient_io.errors import (
    Closed,
    ConfigurationError,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    Progress,
    ResilientIOError,
)


class RedisOutcomeUnknown(
    OutcomeUnknown, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError
):
    """Stands for what the Redis part makes of it."""


class RedisDeadlineExceeded(DeadlineExceeded, redis.exceptions.TimeoutError):
    """With two timeouts, the builtin's and redis-py's, among its bases."""


class BatchFailed(OutcomeUnknown):
    """Has a signature and an attribute of its own."""

    def __init__(self, answered):
        super().__init__("cut off", dependency="redis", operation="PIPELINE")
        self.answered = answered


EVERY_KIND = [
    ResilientIOError,
    DependencyUnavailable,
    OutcomeUnknown,
    DeadlineExceeded,
    Overloaded,
    Closed,
    RedisOutcomeUnknown,
    RedisDeadlineExceeded,
]


def make(kind):
    return kind(
        "no reply within 2.0 s; it may have been applied",
        dependency="redis",
        operation="INCR",
        attempts=1,
        elapsed=2.0031,
        progress=Progress.MAYBE_APPLIED,
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_message_says_everything_in_one_line(kind):
    assert str(make(kind)) == (
        "redis: INCR: no reply within 2.0 s; it may have been applied "
        "(maybe applied, 1 attempt, 2.003 s)"
    )


def test_the_message_counts_attempts_in_english():
    error = DependencyUnavailable("down", dependency="redis", operation="GET")
    assert str(error) == "redis: GET: down (not sent, 0 attempts, 0.000 s)"


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize(
    "duplicate",
    [
        *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(6)),  # noqa: S301
        copy.copy,
        copy.deepcopy,
    ],
)
def test_an_error_survives_pickling_and_copying(kind, duplicate):
    error = make(kind)
    error.add_note("seen by a worker")
    twin = duplicate(error)
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    assert twin.__notes__ == ["seen by a worker"]


def test_an_error_with_another_signature_pickles_too():
    twin = pickle.loads(pickle.dumps(BatchFailed([1, 2])))  # noqa: S301
    assert twin.answered == [1, 2]
    assert twin.operation == "PIPELINE"


def test_the_redis_flavoured_ones_are_caught_as_the_drivers():
    for kind in (redis.ConnectionError, redis.TimeoutError, redis.RedisError, OutcomeUnknown):
        with pytest.raises(kind):
            raise make(RedisOutcomeUnknown)
    with pytest.raises(TimeoutError):
        raise make(RedisDeadlineExceeded)


def test_a_spent_deadline_is_also_the_builtin_timeout():
    with pytest.raises(TimeoutError):
        raise make(DeadlineExceeded)
    assert make(DeadlineExceeded).errno is None


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_repr_names_the_kind_and_says_everything(kind):
    assert repr(make(kind)) == f"<{kind.__name__}: {make(kind)}>"


def test_a_wrong_setting_is_a_value_error():
    assert issubclass(ConfigurationError, ValueError)
    assert not issubclass(ConfigurationError, ResilientIOError)


def test_the_tree_in_the_docstring_is_the_hierarchy():
    for name in errors.__all__:
        if name != "Progress":
            assert f"{name} " in errors.__doc__ or f"{name}\n" in errors.__doc__


def test_making_one_costs_microseconds():
    best = min(timeit.repeat(lambda: make(DependencyUnavailable), number=2000, repeat=5)) / 2000
    assert best < 10e-6  # about 1 us on an idle machine; room for a busy one
