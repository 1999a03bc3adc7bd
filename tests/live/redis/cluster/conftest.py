"""A cluster client, and a cluster to break whose nodes notice each other's failures quickly."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster

NODE_TIMEOUT = 0.5  # seconds


@pytest.fixture
async def client(shared_redis_cluster: RedisServerCluster) -> AsyncIterator[ResilientRedisCluster]:
    """Open a client of the shared cluster, with the default options."""
    async with ResilientRedisCluster.from_url(shared_redis_cluster.url) as client:
        yield client


@pytest.fixture
def shared_cluster_url(_cluster_of_session: RedisServerCluster) -> str:
    """Return the URL of the shared cluster, for tests with event loops of their own."""
    return _cluster_of_session.url


@pytest.fixture(scope="session")
def _breakable() -> Iterator[RedisServerCluster]:
    cluster = RedisServerCluster(replicas=1, node_timeout=NODE_TIMEOUT)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(cluster.start())
        yield cluster
        runner.run(cluster.aclose())


@pytest.fixture
async def cluster(_breakable: RedisServerCluster) -> AsyncIterator[RedisServerCluster]:
    """Three masters with a replica each, to kill and freeze: they are repaired afterwards."""
    for master in await _breakable.masters():
        await master.query("FLUSHALL")
    yield _breakable
    for node in _breakable.nodes:
        if node.running:
            node.thaw()
    await _breakable.start()
