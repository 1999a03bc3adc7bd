"""What we lean on in redis-py so that tracers which patch it see our calls."""

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
    """What a stand-in stands for."""

    def __init__(self, *, transaction):
        self.connection_pool = ConnectionPool(host="elsewhere", port=7, db=2)
        self.command_stack = [(("GET", "key"), {})]
        self.scripts = {"one to load"}
        self.watching = False
        self.is_transaction = transaction
        self.explicit_transaction = False


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_the_own_methods_of_redis_py_lead_back_to_ours(name, transaction):
    owner, args, options = CALLS[name]
    made = []

    async def make(*args, **options):
        made.append((args, options))
        return ["reply"]

    stand_in = _StandIn(Real(transaction=transaction), make)
    assert await vars(owner)[name](stand_in, *args, **options) == ["reply"]
    assert made == [(args, options)]


@pytest.mark.parametrize("name", CALLS)
async def test_they_raise_what_ours_raises(name):
    owner, args, options = CALLS[name]

    async def make(*args, **options):
        raise LookupError("ours")

    stand_in = _StandIn(Real(transaction=True), make)
    with pytest.raises(LookupError, match="ours"):
        await vars(owner)[name](stand_in, *args, **options)


def test_a_patch_is_told_from_the_method_itself_however_it_disguises(monkeypatch):
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
