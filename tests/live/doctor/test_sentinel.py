"""The doctor at real Sentinels and the servers that they monitor, with and without faults."""

import asyncio

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import RedisSentinel, RedisServer, SentinelSetup

STEPS = ["name", "TCP", "Sentinels", "quorum", "agreement", "master", "replicas"]


def url_of(setup, name="mymaster", *, extra="", login="", options=""):
    """Return the URL of a set-up; `extra` is put after its Sentinels."""
    servers = ",".join(f"{host}:{port}" for host, port in setup.addresses)
    return f"redis+sentinel://{login}{servers}{extra}/{name}{options}"


async def until(examined, url, *found, **options):
    """Examine until the steps have found something, and return what that examination found."""
    async with asyncio.timeout(20):
        while True:
            seen = await examined(url, **options)
            if all(any(text in step.found for step in seen.steps) for text in found):
                return seen
            await asyncio.sleep(0.1)


async def test_healthy_set_up_has_no_problem(examined, sentinel_setup):
    # On a busy machine, Sentinels may take each other for down for a moment.
    seen = await until(examined, url_of(sentinel_setup), "a failover is possible")
    assert seen.names == STEPS
    assert seen.statuses() == dict.fromkeys(STEPS, "ok"), seen
    master = sentinel_setup.nodes[0]
    assert seen["agreement"].data["master"] == f"127.0.0.1:{master.port}"
    assert seen["quorum"].data == {"sentinels": 3, "quorum": 2, "down_after": 1.0}
    assert seen["replicas"].data["replicas"] == 2


async def test_wrong_names_and_wrong_servers(examined, sentinel_setup):
    seen = await examined(url_of(sentinel_setup, "mymastr"))
    assert seen.last.name == "Sentinels"
    assert seen.last.status is Status.PROBLEM
    assert "mymastr is not monitored, but mymaster" in seen.last.found
    assert seen.last.found.count("not monitored") == 1

    data = sentinel_setup.nodes[0]
    seen = await examined(url_of(sentinel_setup, extra=f",127.0.0.1:{data.port},no-such.invalid"))
    assert seen["name"].status is Status.NOTE
    assert seen["Sentinels"].status is Status.NOTE
    assert f"127.0.0.1:{data.port}: not a Sentinel, but a server" in seen["Sentinels"].found
    assert seen["Sentinels"].data["answered"] == 3

    sentinel = sentinel_setup.sentinels[0]
    seen = await examined(sentinel.url)
    assert seen.last.name == "reply"
    assert "this is a Sentinel" in seen.last.found
    assert "/mymaster" in seen.last.advice


async def test_one_of_three_sentinels_is_named_with_the_others_to_add(examined, sentinel_setup):
    first, *others = sentinel_setup.addresses
    url = f"redis+sentinel://{first[0]}:{first[1]}/mymaster"
    seen = await until(examined, url, "a failover is possible", f"127.0.0.1:{others[0][1]}")
    assert seen["quorum"].status is Status.NOTE
    for _, port in others:
        assert f"127.0.0.1:{port}" in seen["quorum"].found


async def test_passwords_of_sentinels_and_servers(examined):
    async with SentinelSetup(
        replicas=1, sentinels=1, password="hunter2", sentinel_password="hunter3"
    ) as setup:
        secrets = {"secrets": ("hunter2", "hunter3")}
        seen = await examined(url_of(setup, login=":hunter2@"), **secrets)
        assert seen.last.name == "Sentinels"
        assert "requires a password" in seen.last.found
        assert "sentinel_password" in seen.last.advice
        options = "?sentinel_password=hunter3"
        seen = await examined(url_of(setup, options=options), **secrets)
        assert seen["master"].status is Status.PROBLEM
        assert "requires a password" in seen["master"].found
        seen = await examined(url_of(setup, login=":hunter2@", options=options), **secrets)
        assert exit_code(seen.steps) == 0, seen
        assert "only 1 Sentinel" in seen["quorum"].found


async def test_lost_sentinels_and_replicas_are_reported(examined):
    async with SentinelSetup(down_after=0.3) as setup:
        setup.sentinels[0].kill()
        setup.sentinels[1].freeze()
        setup.nodes[1].kill()
        await setup.nodes[2].query("CONFIG", "SET", "masterauth", "wrong")
        await setup.nodes[2].query("REPLICAOF", "127.0.0.1", setup.nodes[1].port)
        seen = await until(examined, url_of(setup), "NOQUORUM", "is down", timeout=2.0)
    assert "connection refused" in seen["TCP"].found
    assert "no answer to the login" in seen["Sentinels"].found
    assert seen["Sentinels"].status is Status.NOTE
    assert seen["quorum"].status is Status.PROBLEM
    assert "NOQUORUM" in seen["quorum"].found
    assert seen["master"].status is Status.OK
    assert seen["replicas"].status is Status.PROBLEM
    assert f"replica 127.0.0.1:{setup.nodes[1].port} is down" in seen["replicas"].found
    assert f"127.0.0.1:{setup.nodes[2].port}" in seen["replicas"].found


async def test_replica_with_a_wrong_address(examined, redis_server):
    async with (
        RedisServer(
            replica_of=redis_server, options={"replica-announce-ip": "127.0.0.2"}
        ) as replica,
        RedisSentinel(redis_server) as sentinel,
    ):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
        seen = await until(examined, url, "127.0.0.2")
    assert seen["master"].status is Status.OK
    assert seen["replicas"].status is Status.PROBLEM
    assert f"replica 127.0.0.2:{replica.port} is down: the Sentinels do not" in seen.last.found
    assert "replica-announce-ip" in seen.last.advice


async def test_master_with_an_address_that_leads_elsewhere_from_here(examined, redis_server):
    sentinel = RedisSentinel(redis_server)
    sentinel._options = {"sentinel": [f"monitor mymaster 127.0.0.9 {redis_server.port} 1"]}
    async with sentinel:
        seen = await examined(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    assert seen["master"].status is Status.PROBLEM
    assert f"127.0.0.9:{redis_server.port}: connection refused" in seen["master"].found
    assert "the master has no replica" in seen["replicas"].found


async def test_master_without_a_replica(examined):
    async with SentinelSetup(replicas=0, sentinels=1) as setup:
        seen = await examined(url_of(setup))
    assert seen["replicas"].status is Status.NOTE
    assert "the master has no replica" in seen["replicas"].found
