"""Pipelines of a cluster client while the connection to one node fails."""

import contextlib

import pytest
from redis.crc import key_slot

from resilient_io import DependencyUnavailable, OutcomeUnknown, RetryPolicy
from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import FaultProxy, cancel_everywhere

_POLICY = RetryPolicy(response_timeout=0.3, connect_timeout=0.5, deadline=5.0, backoff=0.01)


def _key(shard):
    """Return a key of one of three masters, which share the slots evenly."""
    names = (f"key{number}" for number in range(1000))
    return next(name for name in names if key_slot(name.encode()) * 3 // 16384 == shard)


A, B, C = _key(0), _key(1), _key(2)


@pytest.fixture
async def proxies(shared_redis_cluster):
    async with contextlib.AsyncExitStack() as stack:
        masters = await shared_redis_cluster.masters()
        yield [await stack.enter_async_context(FaultProxy(node.port)) for node in masters]


@pytest.fixture
async def client(proxies, shared_redis_cluster):
    masters = await shared_redis_cluster.masters()
    known = {node.port: proxy for node, proxy in zip(masters, proxies, strict=True)}

    def remap(address):
        proxy = known.get(address[1])
        return address if proxy is None else (proxy.host, proxy.port)

    async with ResilientRedisCluster(
        proxies[0].host, proxies[0].port, policy=_POLICY, address_remap=remap
    ) as client:
        await client.mset_nonatomic({A: 0, B: 0, C: 0})
        await client.mget_nonatomic(A, B, C)
        yield client


async def test_each_command_has_its_own_outcome(client, proxies):
    proxies[0].drop_reply("INCRBY")
    pipe = client.pipeline().get(A).incr(A).incr(B).get(C).get(A).incr(B)
    first, unknown, *others, unanswered, last = await pipe.execute(raise_on_error=False)
    assert (first, others, last) == (b"0", [1, b"0"], 2)
    assert isinstance(unknown, OutcomeUnknown)
    assert isinstance(unanswered, DependencyUnavailable)  # a read: nothing can be applied
    assert "may have been applied" not in str(unanswered)
    assert await client.mget_nonatomic(A, B) == [b"1", b"2"]


async def test_error_names_what_may_have_been_applied(client, proxies):
    proxies[1].drop_reply("INCRBY")
    pipe = client.pipeline().incr(A).incr(C).incr(B).get(A).incr(B)
    with pytest.raises(OutcomeUnknown) as caught:
        await pipe.execute()
    assert list(caught.value.answered) == [1, 1]
    assert list(caught.value.unanswered) == [2, 4]


async def test_unknown_outcome_is_raised_although_an_earlier_command_has_a_harmless_error(
    client, proxies
):
    """The caller of another error would repeat the pipeline."""
    proxies[1].drop_reply("GET")
    with pytest.raises(OutcomeUnknown) as caught:
        await client.pipeline().incr(A).get(B).incr(B).lpush(A, "text").execute()
    assert list(caught.value.answered) == [1]
    assert list(caught.value.unanswered) == [2]


@pytest.mark.parametrize("answered", [0, 2])
async def test_answered_commands_are_never_sent_again(client, proxies, answered):
    proxies[0].drop_reply("SET", nth=answered + 1)
    pipe = client.pipeline()
    for number in range(4):
        pipe.set(A, number).incr(B)
    assert await pipe.execute() == [True, 1, True, 2, True, 3, True, 4]
    assert await client.mget_nonatomic(A, B) == [b"3", b"4"]


async def test_reads_are_repeated_and_other_nodes_are_not_disturbed(client, proxies):
    proxies[2].reset_on("GET")
    pipe = client.pipeline().get(A).incr(B).get(C).get(C)
    assert await pipe.execute() == [b"0", 1, b"0", b"0"]
    assert await client.get(B) == b"1"


async def test_transaction_is_applied_entirely_or_not_at_all(client, proxies):
    proxies[0].drop_reply("EXEC")
    with pytest.raises(OutcomeUnknown):
        await client.pipeline(transaction=True).incr(A).incr(A).execute()
    assert await client.get(A) in (b"0", b"2")


async def test_cancelling_while_one_node_does_not_answer(client, proxies):
    async def run():
        pipe = client.pipeline().get(A).set(B, 1).get(C)
        await pipe.execute()

    proxies[2].latency(replies=0.01)
    await cancel_everywhere(run)
    proxies[2].latency()
    assert await client.mget_nonatomic(A, B, C) == [b"0", b"1", b"0"]


@pytest.mark.parametrize("batch", [False, True], ids=["command", "pipeline"])
async def test_refusals_of_a_cluster_use_up_no_attempts(client, proxies, batch):
    refused = proxies[0].answer("GET", b"-TRYAGAIN Multiple keys request\r\n", times=4)
    lost = proxies[0].reset_on("GET", times=2)
    if batch:
        assert await client.pipeline().get(A).execute() == [b"0"]
    else:
        assert await client.get(A) == b"0"
    assert (len(refused.struck), len(lost.struck)) == (4, 2)
