"""An examination can be cancelled at every point at which it waits, and leaves nothing open."""

import asyncio
import contextlib

import pytest

from resilient_io.doctor import examine, examine_host
from resilient_io.testing import RedisServer, SentinelSetup, cancel_everywhere


async def names_of(steps):
    return [step.name async for step in steps]


async def test_redis_examination_can_be_cancelled_everywhere(redis_server):
    url = f"redis://localhost:{redis_server.port}"  # a name, so that it is looked up
    report = await cancel_everywhere(lambda: names_of(examine(url)))
    assert report.findings == []
    assert report.result[-1] == "link"
    assert report.points > 10


async def test_sentinel_examination_can_be_cancelled_everywhere():
    async with SentinelSetup(replicas=1, sentinels=1) as setup:
        host, port = setup.addresses[0]
        url = f"redis+sentinel://{host}:{port}/mymaster"
        report = await cancel_everywhere(lambda: names_of(examine(url)))
    assert report.findings == []
    assert report.result[-1] == "replicas"


async def test_cluster_examination_can_be_cancelled_everywhere():
    async with RedisServer(options={"cluster-enabled": "yes"}) as server:
        await server.query("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        report = await cancel_everywhere(lambda: names_of(examine(server.url)))
    assert report.findings == []
    assert report.result[-1] == "replicas"


@pytest.mark.soak
async def test_redis_examination_over_tls_can_be_cancelled_everywhere():
    async with RedisServer(tls=True) as server:
        report = await cancel_everywhere(lambda: names_of(examine(server.tls_url)))
    assert report.findings == []
    assert "TLS" in report.result


async def test_kafka_examination_can_be_cancelled_everywhere(shared_kafka):
    url = f"kafka://{shared_kafka.bootstrap_servers}"
    report = await cancel_everywhere(lambda: names_of(examine(url, group="doctor-cancelled")))
    assert report.findings == []
    assert report.result[-1] == "group"


async def test_host_examination_can_be_cancelled_everywhere():
    report = await cancel_everywhere(lambda: names_of(examine_host()))
    assert report.findings == []


async def test_examination_that_is_stopped_early_leaves_nothing_open(shared_redis, shared_kafka):
    for url, last in (
        (shared_redis.url, "login"),
        (f"kafka://{shared_kafka.bootstrap_servers}", "reply"),
    ):
        async with contextlib.aclosing(examine(url)) as steps:
            async for step in steps:
                if step.name == last:
                    break
        # An open connection or task would fail this test: by its warning, or the check for leaks.


async def test_examination_that_never_began_needs_no_end(shared_redis):
    steps = examine(shared_redis.url)
    await steps.aclose()
    del steps


async def test_two_concurrent_examinations_do_not_disturb_each_other(shared_redis):
    first, second = await asyncio.gather(
        names_of(examine(shared_redis.url)), names_of(examine(shared_redis.url))
    )
    assert first == second


async def test_lookup_that_hangs_is_abandoned_at_the_end(shared_redis, monkeypatch):
    async def hang(*_):
        await asyncio.Event().wait()

    # The lookup of the step "name" succeeds, and that of the login hangs.
    monkeypatch.setattr("resilient_io.redis.addresses._look_up", hang)
    names = await names_of(examine(f"redis://localhost:{shared_redis.port}", timeout=0.5))
    assert names == ["name", "TCP", "login"]
    # The lookup's task would fail this test if it were left behind.
