"""`ResilientRedisCluster` is redis-py's cluster client: its methods, constructors and results."""

import asyncio
import gc
import re
import weakref

import pytest
import redis.asyncio as redis_py
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio.cluster import ClusterNode
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider

import resilient_io
from resilient_io import ConfigurationError, DependencyUnavailable, HealthMonitor, State
from resilient_io.redis import RedisClosed, ResilientRedisCluster, RouteRefused
from resilient_io.redis.errors import CrossSlotKeys
from resilient_io.telemetry.prometheus import PrometheusMetrics
from resilient_io.telemetry.tracing import trace
from resilient_io.testing import RedisServer, RedisServerCluster, cancel_everywhere, free_port


class RotatingProvider(StreamingCredentialProvider):
    """A provider whose password changes while connections are open."""

    def __init__(self, password):
        self._password = password
        self._listener = None

    def get_credentials(self):
        return "default", self._password

    def on_next(self, callback):
        self._listener = callback

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    async def rotate(self, password):
        """Send a new password to the listener."""
        self._password = password
        await self._listener(SimpleToken(password, 0, 0, {"oid": "default"}))


class CountingTransport:
    """A transport that counts the writes."""

    def __init__(self, transport):
        self._transport = transport
        self.writes = 0

    def write(self, data):
        """Pass data on."""
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_calls_of_a_tick_reach_each_node_in_one_write(client):
    """The other nodes work meanwhile, so a node need not get a part of them earlier."""
    keys = [f"key{number}" for number in range(60)]
    await asyncio.gather(*map(client.get, keys))
    connections = [member.hot.fast for member in client._router.slots]
    counting = [CountingTransport(connection.transport) for connection in connections]
    for connection, transport in zip(connections, counting, strict=True):
        connection.transport = transport
    await asyncio.gather(*(client.get(key) for key in keys * 10))
    assert [transport.writes for transport in counting] == [1, 1, 1]


async def test_client_is_a_cluster_client_of_redis_py(client):
    assert isinstance(client, redis_py.RedisCluster)
    assert resilient_io.ResilientRedisCluster is ResilientRedisCluster
    assert await client.set("a", 1) is True
    assert await client.get("a") == b"1"
    assert await client.hset("h", mapping={"field": "value"}) == 1
    assert await client.hgetall("h") == {b"field": b"value"}
    assert await client.blpop(["nothing"], timeout=0.01) is None
    await client.rpush("list", "x")
    assert await client.blpop(["list"], timeout=0.01) == (b"list", b"x")


async def test_keys_are_on_the_nodes_that_own_their_slots(client, shared_redis_cluster):
    for number in range(30):
        await client.set(f"key{number}", number)
    sizes = [await node.query("DBSIZE") for node in shared_redis_cluster.nodes]
    assert sum(sizes) == 30
    assert all(sizes)
    assert sorted([key async for key in client.scan_iter("key*")]) == sorted(
        f"key{number}".encode() for number in range(30)
    )


async def test_commands_without_keys_go_to_the_nodes_that_redis_py_asks(client):
    await client.mset_nonatomic({"a": 1, "b": 2, "c": 3})
    assert await client.mget_nonatomic("a", "b", "c") == [b"1", b"2", b"3"]
    assert await client.ping() is True
    assert await client.dbsize(target_nodes=client.PRIMARIES) == 3
    assert await client.delete("a", "b", "c") == 3
    replies = await client.info("server", target_nodes=client.ALL_NODES)
    assert len(replies) == 3
    assert await client.flushall(target_nodes=client.get_primaries()) == {
        node.name: True for node in client.get_nodes()
    }


async def test_target_node_gets_the_command(client, shared_redis_cluster):
    await client.ping()
    node = client.get_node("127.0.0.1", shared_redis_cluster.nodes[1].port)
    assert isinstance(node, ClusterNode)
    await client.config_set("slowlog-max-len", 77, target_nodes=node)
    try:
        reply = await shared_redis_cluster.nodes[1].query("CONFIG", "GET", "slowlog-max-len")
        assert reply == [b"slowlog-max-len", b"77"]
        reply = await shared_redis_cluster.nodes[0].query("CONFIG", "GET", "slowlog-max-len")
        assert reply != [b"slowlog-max-len", b"77"]
    finally:
        await client.config_set("slowlog-max-len", 128, target_nodes=node)
    assert client.get_node_from_key("a").name == client.get_primaries()[2].name
    assert client.get_default_node() in client.get_primaries()


async def test_command_for_one_node_is_redirected_to_the_owner_of_its_key(client):
    await client.set("a", 1)
    other = client.get_primaries()[0]
    assert client.get_node_from_key("a") != other
    assert await client.get("a") == b"1"
    assert await client.execute_command("GET", "a", target_nodes=other) == b"1"


async def test_scripts_and_functions_run_where_their_keys_are(client, shared_redis_cluster):
    increase = client.register_script("return redis.call('incr', KEYS[1])")
    for key in ("a", "b", "c"):
        assert await increase(keys=[key]) == 1
    for node in shared_redis_cluster.nodes:
        await node.query("SCRIPT", "FLUSH")
    for key in ("a", "b", "c"):
        assert await increase(keys=[key]) == 2
    assert await client.eval("return 7", 0) == 7


async def test_lock_excludes_another_holder(client):
    async with client.lock("lock", timeout=5):
        assert not await client.lock("lock", timeout=5).acquire(blocking=False)
    assert await client.lock("lock", timeout=5).acquire(blocking=False)


async def test_keys_of_several_slots_are_refused_before_anything_is_sent(client):
    with pytest.raises(CrossSlotKeys, match=r"'a'.*'b'.*mget_nonatomic"):
        await client.mget("a", "b")


async def test_commands_that_change_a_shared_connection_are_refused(client):
    with pytest.raises(RouteRefused, match="SELECT"):
        await client.execute_command("SELECT", 1)


async def test_constructors_accept_what_redis_py_accepts(shared_redis_cluster):
    host, port = shared_redis_cluster.addresses[0]
    for client in (
        ResilientRedisCluster(host, port),
        ResilientRedisCluster(host=host, port=port, decode_responses=True, protocol=3),
        ResilientRedisCluster(startup_nodes=[ClusterNode(host, port)]),
        ResilientRedisCluster.from_url(f"redis://{host}:{port}", socket_timeout=1.0),
    ):
        async with client:
            assert await client.set("key", "value")
            assert await client.get("key") in (b"value", "value")


async def test_database_and_unknown_option_are_rejected():
    with pytest.raises(ConfigurationError, match="database 0"):
        ResilientRedisCluster("127.0.0.1", 7000, db=1)
    with pytest.raises(ConfigurationError, match="did you mean"):
        ResilientRedisCluster("127.0.0.1", 7000, max_connectons=1)
    with pytest.raises(ConfigurationError, match="down_share"):
        ResilientRedisCluster("127.0.0.1", 7000, down_share=0)


async def test_single_server_is_named_in_the_error(shared_redis: RedisServer):
    async with ResilientRedisCluster("127.0.0.1", shared_redis.port) as client:
        with pytest.raises(DependencyUnavailable, match=r"single server.*use ResilientRedis"):
            await client.get("a")
        async for change in client.health.watch():
            if change.state is State.DOWN:
                break


async def test_client_without_a_server_neither_raises_nor_hangs():
    async with ResilientRedisCluster("127.0.0.1", free_port()) as client:
        with pytest.raises(DependencyUnavailable, match="refused"):
            await client.get("a")
        async for change in client.health.watch():
            if change.state is State.DOWN:
                break


async def test_closed_client_opens_again_unless_that_is_forbidden(shared_redis_cluster):
    client = ResilientRedisCluster.from_url(shared_redis_cluster.url)
    await client.set("a", 1)
    await client.aclose()
    assert client.health.state is State.UNKNOWN
    assert await client.get("a") == b"1"
    await client.aclose()
    client = ResilientRedisCluster.from_url(shared_redis_cluster.url, reopen=False)
    await client.aclose()
    with pytest.raises(RedisClosed):
        await client.get("a")


async def test_closing_ends_every_task_and_connection(shared_redis_cluster, no_leaks):
    before = asyncio.all_tasks()
    async with ResilientRedisCluster.from_url(shared_redis_cluster.url) as client:
        await asyncio.gather(*(client.incr(f"key{number}") for number in range(100)))
        assert asyncio.all_tasks() > before
    gc.collect()


async def test_view_has_another_policy_on_the_same_connections(client):
    view = client.with_policy(attempts=1, deadline=1.0)
    await client.set("a", 1)
    assert await view.get("a") == b"1"
    assert view._runtime is client._runtime
    await view.aclose()
    assert await client.get("a") == b"1"


async def test_call_can_be_cancelled_everywhere(client):
    await client.set("a", 1)

    async def call():
        await client.get("a")
        await client.blpop(["nothing"], timeout=0.01)

    await call()  # opens an exclusive connection, which a cancelled call leaves for the next one
    report = await cancel_everywhere(call)
    assert not report.findings
    assert await client.get("a") == b"1"


async def test_counters_and_topology_are_those_of_all_nodes(client, shared_redis_cluster):
    await asyncio.gather(*(client.incr(f"key{number}") for number in range(100)))
    stats = client.stats()
    assert stats.replies >= 100
    assert stats.connections >= 3
    assert stats.latency["p50"] is not None
    topology = client.health.topology
    assert topology is not None
    assert topology.slots_served == topology.slots == 16384
    assert [server.slots for server in topology.masters] == [5461, 5461, 5462]
    assert {server.address for server in topology.masters} == {
        f"127.0.0.1:{port}" for port in shared_redis_cluster.ports
    }


async def test_metrics_and_spans_include_the_cluster_client(client):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace(client, tracer_provider=provider)
    await client.set("a", 1)
    assert [span.name for span in exporter.get_finished_spans()] == ["SET"]
    page, _ = PrometheusMetrics(HealthMonitor(client.health), [client]).render()
    assert b'client="redis",dependency="redis cluster' in page


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the loops that end without a close
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_client_continues_in_the_next_event_loop(shared_cluster_url):
    client = ResilientRedisCluster.from_url(shared_cluster_url)

    async def use() -> None:
        for key in ("a", "b", "c"):
            await client.incr(key)

    async def close() -> None:
        await use()
        await client.aclose()

    asyncio.run(use())
    asyncio.run(use())
    asyncio.run(close())
    gc.collect()


def test_close_in_another_loop_than_the_one_in_use_raises(shared_cluster_url):
    client, loop = ResilientRedisCluster.from_url(shared_cluster_url), asyncio.new_event_loop()

    async def close() -> None:
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="in use in another running event loop"):
                await client.aclose()

    try:
        loop.run_until_complete(client.set("a", 1))
        asyncio.run(close())
        assert loop.run_until_complete(client.get("a")) == b"1"
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


async def test_client_that_is_dropped_is_collected_and_closes(shared_redis_cluster, no_leaks):
    client = ResilientRedisCluster.from_url(shared_redis_cluster.url)
    await client.set("a", 1)
    runtime, alive = client._runtime, weakref.ref(client)
    with pytest.warns(ResourceWarning, match="unclosed client"):  # noqa: PT031
        del client
        gc.collect()
    assert alive() is None
    async with asyncio.timeout(5):
        while runtime.running:  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)


async def authentications(node):
    """Return how often clients have authenticated, including the connection that asks."""
    stats = await node.query("INFO", "commandstats")
    return int(re.search(rb"cmdstat_auth:calls=(\d+)", stats)[1])


async def test_rotated_credentials_reach_the_connections_to_all_nodes():
    provider = RotatingProvider("first")
    async with (
        RedisServerCluster(password="first") as cluster,
        ResilientRedisCluster(
            "127.0.0.1", cluster.ports[0], credential_provider=provider
        ) as client,
    ):
        for key in ("a", "b", "c"):
            await client.set(key, 1)
        for node in cluster.nodes:
            await node.query("ACL", "SETUSER", "default", ">second")
        await asyncio.sleep(0.1)  # until both connections to each node are open
        before = [await authentications(node) for node in cluster.nodes]
        await provider.rotate("second")
        after = [await authentications(node) for node in cluster.nodes]
        assert all(new - old >= 2 for old, new in zip(before, after, strict=True))
