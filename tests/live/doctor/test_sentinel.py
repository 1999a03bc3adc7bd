"""The doctor at Sentinels: whether they answer and agree, and whether servers are reached."""

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import RedisSentinel

STEPS = ["name", "TCP", "master", "Sentinels", "replicas", "name", "TCP", "login", "reply", "link"]


def _url(setup, name="mymaster"):
    hosts = ",".join(f"{host}:{port}" for host, port in setup.addresses)
    return f"redis+sentinel://{hosts}/{name}"


async def test_sentinels_that_agree_have_no_problem(examined, sentinel_setup):
    seen = await examined(_url(sentinel_setup))
    assert seen.names == STEPS
    assert exit_code(seen.steps) == 0, seen
    master = sentinel_setup.nodes[0]
    assert seen["master"].data["master"] == f"127.0.0.1:{master.port}"
    assert seen["Sentinels"].found == "3 of 3 Sentinels answer"
    assert seen["replicas"].found == "2 replicas"


async def test_lost_sentinels_and_replicas_are_named(examined, sentinel_setup):
    killed = sentinel_setup.sentinels[:2]
    for sentinel in killed:
        sentinel.kill()
    seen = await examined(_url(sentinel_setup))
    assert seen["TCP"].status is Status.NOTE  # the first one, of the Sentinels
    assert seen["Sentinels"].status in {Status.NOTE, Status.PROBLEM}, seen
    for sentinel in killed:
        assert f"127.0.0.1:{sentinel.port}: connection refused" in seen["Sentinels"].found
    assert "1 of 3 Sentinels answer" in seen["Sentinels"].found


async def test_unknown_name_says_what_is_monitored(examined, sentinel_setup):
    seen = await examined(_url(sentinel_setup, "cache"))
    assert seen.names == STEPS[:3]
    assert seen.last.status is Status.PROBLEM
    assert "no Sentinel knows a master 'cache': use 'mymaster'" in seen.last.found
    assert exit_code(seen.steps) == 1


async def test_server_instead_of_a_sentinel_is_named(examined, shared_redis):
    seen = await examined(f"redis+sentinel://127.0.0.1:{shared_redis.port}/mymaster")
    assert "is not a Sentinel but a server with data" in seen.last.found


async def test_replica_that_is_announced_elsewhere_is_named(examined, redis_server):
    outside = f"monitor mymaster 127.0.0.9 {redis_server.port} 1"
    sentinel = RedisSentinel(redis_server)
    sentinel._options = {"sentinel": [outside]}
    async with sentinel:
        seen = await examined(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert seen.last.status is Status.PROBLEM
    assert f"127.0.0.9:{redis_server.port}: connection refused" in seen.last.found
    assert "there is no replica that could take over" in seen["replicas"].found
    assert "the URL names 1 of the Sentinels" in seen["Sentinels"].found
