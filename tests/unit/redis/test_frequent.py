"""Frequent commands send exactly what redis-py's methods send."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
import redis.asyncio as driver
from redis._parsers import Encoder
from redis.exceptions import DataError

from resilient_io.redis import ResilientRedis
from resilient_io.redis.attempt import Packer
from resilient_io.redis.commands import SPECS
from resilient_io.redis.frequent import FrequentCommands

KEY = "key"
ONE_KEY = [((KEY,), {}), ((b"\xff",), {}), ((), {"name": KEY})]
MORE: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "set": [
        ((KEY, b"value"), {}),
        ((KEY, "value", 5), {}),
        ((KEY, 1), {"nx": True, "get": True}),
        ((), {"name": KEY, "value": 1.5, "px": 100}),
    ],
    "hget": [((KEY, "field"), {}), ((KEY,), {"key": "field"})],
    "mget": [
        ((["a", b"b"],), {}),
        (("a",), {}),
        ((["a"], "b", "c"), {}),
        ((("a", "b"),), {}),
        (([],), {}),
        ((), {"keys": ["a", "b"]}),
    ],
    "hset": [
        ((KEY, "field", b"value"), {}),
        ((KEY, "field", None), {}),
        ((KEY,), {"key": "field", "value": 1}),
        ((KEY,), {"mapping": {"a": 1, "b": 2}}),
        ((KEY, "field", 1, {"a": 1}), {}),
        ((KEY, None, None, None, ["a", 1]), {}),
    ],
    "hexists": [((KEY, "field"), {}), ((KEY,), {"key": "field"})],
    "lrange": [((KEY, 0, -1), {}), ((KEY,), {"start": 0, "end": 5})],
    "lindex": [((KEY, 3), {}), ((KEY,), {"index": 3})],
    "sismember": [((KEY, "member"), {}), ((KEY,), {"value": 1})],
    "zrange": [
        ((KEY, 0, -1), {}),
        ((KEY, 0, -1, True), {}),
        ((KEY,), {"start": 0, "end": -1}),
        ((KEY, 0, -1), {"withscores": True, "score_cast_func": int}),
        ((KEY, "-", "+"), {"bylex": True, "offset": 0, "num": 5}),
    ],
    "zscore": [((KEY, "member"), {}), ((KEY,), {"value": "member"})],
    "zcount": [((KEY, "-inf", 5), {}), ((KEY,), {"min": 1, "max": "(2"})],
}
CALLS = [
    (name, args, options)
    for name in vars(FrequentCommands)
    if not name.startswith("_")
    for args, options in MORE.get(name, ONE_KEY)
]


class Plain(driver.Redis):
    """redis-py's client, which returns what it would send."""

    def execute_command(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        return args, options


class Ours(FrequentCommands, Plain):  # type: ignore[misc] # in redis-py itself
    """The same with the methods that are tested."""


@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_frequent_command_sends_what_the_method_of_redis_py_sends(
    name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    sent, expected = (getattr(kind(), name)(*args, **options) for kind in (Ours, Plain))
    # Without options, redis-py's callbacks get the defaults of ZRANGE as options.
    defaults = {"keys": [KEY], "withscores": False, "score_cast_func": float}
    assert sent[0] == expected[0]
    if sent[1] == {}:
        assert {**defaults, **expected[1], "keys": [KEY]} == defaults
    else:
        assert sent[1] == expected[1]


@pytest.mark.parametrize("name", [name for name, _, _ in CALLS])
def test_frequent_command_rejects_missing_arguments(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(Ours(), name)()


@pytest.mark.parametrize("reply", [b"OK", "OK", None, b"QUEUED", b"\xff"])
@pytest.mark.parametrize("options", [{}, {"get": True}, {"get": False}])
def test_reply_to_set_is_read_as_by_redis_py(reply: Any, options: dict[str, Any]) -> None:
    read, expected = (
        kind().response_callbacks["SET"](reply, **options)
        for kind in (ResilientRedis, driver.Redis)
    )
    assert read == expected
    assert type(read) is type(expected)


ENCODER = Encoder("utf-8", "strict", decode_responses=False)  # type: ignore[no-untyped-call]
SMALL: list[tuple[Any, ...]] = [
    ("INCRBY", KEY, 1),
    ("INCRBY", KEY, -256),
    ("INCRBY", KEY, 256),
    ("INCRBY", "k" * 300, 1),
    ("INCRBY", "ü", 1),
    ("INCRBY", b"\xff", 1),
    ("INCRBY", 7, 1),
    ("LRANGE", KEY, 0, -1),
    ("LRANGE", KEY, 0, 10**20),
    ("LRANGE", KEY, 0, "-1"),
    ("LRANGE", KEY, 0, 1.5),
    ("LRANGE", 7, 0, -1),
    ("SET", KEY, "ü"),
    ("SET", KEY, bytearray(b"value")),
    ("LINSERT", KEY, 1, 2, 3),
    ("PING",),
]


@pytest.mark.parametrize("args", SMALL)
def test_command_is_packed_as_by_redis_py(args: tuple[Any, ...]) -> None:
    words = [args[0].encode(), *map(ENCODER.encode, args[1:])]  # type: ignore[no-untyped-call]
    wanted = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
    packer = Packer(ENCODER)
    assert packer.pack_small(SPECS[args[0]], args) == wanted
    assert packer.pack_all([SPECS[args[0]]] * 2, [args] * 2) == [wanted, wanted]


@pytest.mark.parametrize("name", [KEY, "k" * 300, "ü", b"\xff", 7, bytearray(b"key")])
def test_keys_of_a_pipeline_are_packed_as_by_redis_py(name: Any) -> None:
    commands = [("GET", KEY), ("HGETALL", name), ("GET", KEY)]
    pack: Any = hiredis.pack_command
    wanted = [pack((word, bytes(ENCODER.encode(key)))) for word, key in commands]  # type: ignore[no-untyped-call]
    assert Packer(ENCODER).pack_all([SPECS[word] for word, _ in commands], commands) == wanted


@pytest.mark.parametrize("args", [("INCRBY", KEY, True), ("LRANGE", KEY, 0, True)])
def test_bool_is_rejected_as_by_redis_py(args: tuple[Any, ...]) -> None:
    with pytest.raises(DataError):
        Packer(ENCODER).pack_small(SPECS[args[0]], args)


@pytest.mark.parametrize("value", ["v" * 70_000, b"v" * 70_000])
def test_large_value_is_not_packed_with_small_ones(value: Any) -> None:
    assert Packer(ENCODER).pack_small(SPECS["SET"], ("SET", KEY, value)) is None
    assert Packer(ENCODER).pack_small(SPECS["SETRANGE"], ("SETRANGE", KEY, 0, value)) is None


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}])
@pytest.mark.parametrize("legacy", [True, False])
def test_callback_that_is_not_called_would_return_the_reply(
    options: dict[str, Any], legacy: bool
) -> None:
    client = ResilientRedis(legacy_responses=legacy, **options)
    left = client.callback_table.keys() - client.plain_callbacks.keys()
    assert "ZRANGE" in left or options or not legacy
    for name in left:
        for reply in (None, 5, b"reply", [], [b"a", b"1"], [[b"a", 1.0]]):
            assert client.callback_table[name](reply) is reply


def test_changed_callback_is_called_without_options() -> None:
    client = ResilientRedis()
    changed: Any = len
    client.response_callbacks["ZRANGE"] = changed
    assert client.plain_callbacks["ZRANGE"] is changed
    assert "ZRANGE" not in ResilientRedis().plain_callbacks
