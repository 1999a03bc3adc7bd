"""A look can be left at every point at which it waits, with nothing left open."""

import asyncio
import contextlib

import pytest

from resilient_io.doctor import examine, ground
from resilient_io.testing import RedisServer, cancel_everywhere


async def take(steps):
    return [step.name async for step in steps]


async def test_a_look_at_redis_can_be_cancelled_everywhere(redis_server, monkeypatch):
    monkeypatch.setattr("resilient_io.doctor.redis.load._PINGS", 2)
    url = f"redis://localhost:{redis_server.port}"  # a name, so that it is looked up
    report = await cancel_everywhere(lambda: take(examine(url)))
    assert report.findings == []
    assert report.result[-1] == "load"
    assert report.points > 10


@pytest.mark.soak
async def test_a_look_at_redis_over_tls_can_be_cancelled_everywhere(monkeypatch):
    monkeypatch.setattr("resilient_io.doctor.redis.load._PINGS", 1)
    async with RedisServer(tls=True) as server:
        report = await cancel_everywhere(lambda: take(examine(server.tls_url)))
    assert report.findings == []
    assert "TLS" in report.result


async def test_a_look_at_kafka_can_be_cancelled_everywhere(shared_kafka):
    await shared_kafka.create_topic("doctor-cancelled")
    url = f"kafka://{shared_kafka.bootstrap_servers}"
    report = await cancel_everywhere(
        lambda: take(examine(url, group="doctor-cancelled", topics=["doctor-cancelled"]))
    )
    assert report.findings == []
    assert report.result[-1] == "group"


async def test_a_look_at_our_ground_can_be_cancelled_everywhere(monkeypatch):
    monkeypatch.setattr("resilient_io.doctor.machine.loop._NAPS", 2)
    report = await cancel_everywhere(lambda: take(ground()))
    assert report.findings == []


async def test_who_stops_early_leaves_nothing_open(shared_redis, shared_kafka):
    for url, last in (
        (shared_redis.url, "memory"),
        (f"kafka://{shared_kafka.bootstrap_servers}", "brokers"),
    ):
        async with contextlib.aclosing(examine(url)) as steps:
            async for step in steps:
                if step.name == last:
                    break
        # An open connection or task would fail this test: by its warning, or the watch for leaks.


async def test_a_look_that_never_began_needs_no_end(shared_redis):
    steps = examine(shared_redis.url)
    await steps.aclose()
    del steps


async def test_two_looks_at_once_do_not_disturb_each_other(shared_redis):
    first, second = await asyncio.gather(
        take(examine(shared_redis.url)), take(examine(shared_redis.url))
    )
    assert first == second


async def test_a_look_up_that_hangs_is_given_up_at_the_end(shared_redis, monkeypatch):
    async def hang(*_):
        await asyncio.Event().wait()

    # The doctor's own look-up goes well, and that of the dial does not.
    monkeypatch.setattr("resilient_io.redis.connect._look_up", hang)
    names = await take(examine(f"redis://localhost:{shared_redis.port}", timeout=0.5))
    assert names == ["name", "TCP", "login"]
    # The look-up's task would fail this test if it had been left behind.
