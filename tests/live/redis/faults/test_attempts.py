"""`attempts` limits how often a request is written, also if a read moves to another connection."""

import re

import pytest
from redis.exceptions import BusyLoadingError, OutOfMemoryError

from resilient_io import RetryPolicy
from resilient_io.redis import RedisUnavailable

LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


async def test_moved_transaction_of_reads_is_refused_no_more_often(
    fault_proxy, redis_server, connect
):
    if b"valkey" in await redis_server.query("INFO", "server"):
        pytest.skip("Valkey executes a transaction of reads without memory")
    redis = await connect(fault_proxy, policy=RetryPolicy(attempts=3, backoff=0.01))
    held = fault_proxy.hold("MULTI")
    await redis_server.query("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(OutOfMemoryError) as caught:
        await redis.pipeline().echo("read").execute()
    assert caught.value.__notes__[0].startswith("3 attempts")
    assert len(held.struck) == 1
    info = (await redis_server.query("INFO", "commandstats")).decode()
    assert re.search(r"cmdstat_echo:calls=0,.*,rejected_calls=2,", info)


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.parametrize("kind", ["command", "pipeline"])
async def test_moved_read_is_written_no_more_often(fault_proxy, connect, kind, attempts):
    policy = RetryPolicy(attempts=attempts, backoff=0.01)
    redis = await connect(fault_proxy, policy=policy)
    held = fault_proxy.hold("GET")
    refused = fault_proxy.answer("GET", LOADING, times=None)
    with pytest.raises(BusyLoadingError):
        if kind == "command":
            await redis.get("key")
        else:
            await redis.pipeline(transaction=False).get("key").execute()
    assert len(held.struck) == 1
    assert len(refused.struck) == attempts - 1


async def test_moved_read_whose_connection_is_lost_is_written_no_more_often(fault_proxy, connect):
    redis = await connect(fault_proxy, policy=RetryPolicy(attempts=3, backoff=0.01))
    held = fault_proxy.hold("GET")
    lost = fault_proxy.reset_on("GET", times=None)
    with pytest.raises(RedisUnavailable) as caught:
        await redis.get("key")
    assert len(held.struck) + len(lost.struck) == caught.value.attempts == 3
