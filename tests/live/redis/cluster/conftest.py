"""A cluster client, and clusters whose nodes notice each other's failures quickly."""

from collections.abc import AsyncIterator

import pytest

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster


@pytest.fixture
async def client(shared_redis_cluster: RedisServerCluster) -> AsyncIterator[ResilientRedisCluster]:
    """Open a client of the shared cluster, with the default options."""
    async with ResilientRedisCluster.from_url(shared_redis_cluster.url) as client:
        yield client
