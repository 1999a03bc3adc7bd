import copy
import inspect
import warnings

import pytest
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.backoff import DecorrelatedJitterBackoff, ExponentialWithJitterBackoff, NoBackoff
from redis.client import CaseInsensitiveDict
from redis.exceptions import DataError

from tests.simulation.faster_driver import make_driver_faster

make_driver_faster()
original_pack = inspect.unwrap(AbstractConnection.pack_command)


@pytest.mark.parametrize(
    "words",
    [
        ("PING",),
        ("CLIENT SETNAME", "a name"),
        ("SET", "kéy", b"\xff\x00", 17),
        ("SET", "key", 1.5),
        ("SET", "key", bytearray(b"x")),
        (b"CONFIG GET", "a"),
        (b"GET", "a"),
        ("SET", "key", ""),
        ("SET", "key", "x" * 7000, "y"),
        ("DECRBY", "key", -5),
    ],
)
def test_commands_are_packed_as_by_redis_py(words):
    connection = Connection()
    expected = original_pack(connection, *words)
    packed = connection.pack_command(*words)
    assert b"".join(map(bytes, packed)) == b"".join(map(bytes, expected))
    assert len(packed) == len(expected)


def test_other_encodings_and_types_are_treated_as_by_redis_py():
    latin = Connection(encoding="latin-1")
    assert latin.pack_command("GET", "é") == original_pack(latin, "GET", "é")
    for value in (True, None, object()):
        with pytest.raises(DataError):
            Connection().pack_command("SET", "key", value)


def test_connections_have_the_same_state_as_those_of_redis_py():
    def state(connection):
        shown = vars(connection) | {
            name: getattr(connection, name)
            for cls in type(connection).__mro__
            for name in getattr(cls, "__slots__", ())
            if name not in ("__dict__", "__weakref__") and hasattr(connection, name)
        }
        return {name: type(value) for name, value in shown.items()}

    plain = Connection.__new__(Connection)
    fast, construct = Connection(db=3), AbstractConnection.__init__
    AbstractConnection.__init__ = construct.__wrapped__
    try:
        plain.__init__(db=3)
    finally:
        AbstractConnection.__init__ = construct
    assert state(fast) == state(plain)
    assert fast.socket_keepalive_options == plain.socket_keepalive_options
    assert fast.socket_keepalive_options is not Connection().socket_keepalive_options


def test_deprecated_options_still_warn():
    with pytest.warns(DeprecationWarning, match="lib_name"):
        Connection(lib_name="x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Connection()


def test_copies_of_retries_are_independent():
    for backoff in (NoBackoff(), ExponentialWithJitterBackoff(), DecorrelatedJitterBackoff()):
        retry = Retry(backoff, 3)
        new = copy.deepcopy(retry)
        new.update_supported_errors([ValueError])
        new.update_retries(7)
        assert retry.get_retries() == 3
        assert ValueError not in retry._supported_errors
        assert type(new._backoff) is type(backoff)
        before = dict(vars(backoff))
        new._backoff.compute(3)
        assert vars(backoff) == before


def test_names_of_commands_are_in_capitals():
    assert dict(CaseInsensitiveDict({"a": 1, "B": 2})) == {"A": 1, "B": 2}
