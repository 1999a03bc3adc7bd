"""Errors tell everything in one line, and survive pickling and copying."""

import copy
import pickle

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
def test_message_contains_every_fact_in_one_line(kind):
    assert str(make(kind)) == (
        "redis: INCR: no reply within 2.0 s; it may have been applied "
        "(maybe applied, 1 attempt, 2.003 s)"
    )


def test_message_counts_attempts_in_words():
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


def test_an_error_with_another_signature_can_be_pickled():
    twin = pickle.loads(pickle.dumps(BatchFailed([1, 2])))  # noqa: S301
    assert twin.answered == [1, 2]
    assert twin.operation == "PIPELINE"


def test_redis_errors_are_caught_as_errors_of_the_driver():
    for kind in (redis.ConnectionError, redis.TimeoutError, redis.RedisError, OutcomeUnknown):
        with pytest.raises(kind):
            raise make(RedisOutcomeUnknown)
    with pytest.raises(TimeoutError):
        raise make(RedisDeadlineExceeded)


def test_deadline_exceeded_is_also_the_builtin_timeout_error():
    with pytest.raises(TimeoutError):
        raise make(DeadlineExceeded)
    assert make(DeadlineExceeded).errno is None


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_repr_names_the_class_and_contains_the_message(kind):
    assert repr(make(kind)) == f"<{kind.__name__}: {make(kind)}>"


def test_configuration_error_is_a_value_error():
    assert issubclass(ConfigurationError, ValueError)
    assert not issubclass(ConfigurationError, ResilientIOError)


PUBLIC = [name for name, kind in vars(errors).items() if isinstance(kind, type)]


def test_docstring_draws_every_class_of_the_hierarchy():
    for name in PUBLIC:
        if name != "Progress":
            assert f"{name} " in errors.__doc__ or f"{name}\n" in errors.__doc__
