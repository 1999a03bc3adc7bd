"""What the library relies on in redis-py, so that tracers that patch it see the calls."""

import pytest
import redis.asyncio.client as driver
from redis.asyncio.connection import ConnectionPool

from resilient_io.redis.instrumentation import _StandIn, is_patched

CALLS = {
    "execute_command": (driver.Redis, ("SET", "key", "value"), {"get": True}),
    "immediate_execute_command": (driver.Pipeline, ("WATCH", "key"), {}),
    "execute": (driver.Pipeline, (), {}),
}


class Real:
    """The client or pipeline behind a stand-in."""

    def __init__(self, *, transaction):
        self.connection_pool = ConnectionPool(host="elsewhere", port=7, db=2)
        self.command_stack = [(("GET", "key"), {})]
        self.scripts = {"a script"}
        self.watching = False
        self.is_transaction = transaction
        self.explicit_transaction = False


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_methods_of_redis_py_call_the_library(name, transaction):
    owner, args, options = CALLS[name]
    made = []

    async def make(*args, **options):
        made.append((args, options))
        return ["reply"]

    stand_in = _StandIn(Real(transaction=transaction), make)
    assert await vars(owner)[name](stand_in, *args, **options) == ["reply"]
    assert made == [(args, options)]


@pytest.mark.parametrize("name", CALLS)
async def test_methods_of_redis_py_raise_the_library_s_errors(name):
    owner, args, options = CALLS[name]

    async def make(*args, **options):
        raise LookupError("ours")

    stand_in = _StandIn(Real(transaction=True), make)
    with pytest.raises(LookupError, match="ours"):
        await vars(owner)[name](stand_in, *args, **options)


def test_patched_method_is_recognized_even_if_it_copies_the_original_s_name(monkeypatch):
    assert not is_patched()
    original = driver.Redis.execute_command

    async def execute_command(self, *args, **options):
        return await original(self, *args, **options)

    execute_command.__module__ = original.__module__
    execute_command.__qualname__ = original.__qualname__
    monkeypatch.setattr(driver.Redis, "execute_command", execute_command)
    assert is_patched()
    monkeypatch.undo()
    assert not is_patched()
