"""Frequent commands send exactly what redis-py's methods send."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as driver

from resilient_io.redis import ResilientRedis
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
