"""The link between the client and the server: cut, lossy, distant; and faults of other things."""

import asyncio
import contextlib
import re

import pytest

from resilient_io import Cause, FlightRecorder, HealthMonitor, ResilientIOError, State
from resilient_io.redis import ResilientRedis
from resilient_io.testing import cancel_everywhere

CALLERS = 50
GONE = re.compile(r"no acknowledgement from the host for \d\.\d s, \d retransmissions")
REACHABLE = "the host is reachable, the server does not answer"


@pytest.fixture
def server(network):
    return network.start_redis()


class Traffic:
    """Callers that write and read as fast as they can; a read must return what was written."""

    def __init__(self, redis, callers=CALLERS):
        self.redis = redis
        self.replies = 0
        self.errors = []
        self.tasks = [asyncio.create_task(self._call(number)) for number in range(callers)]

    async def _call(self, number):
        value = str(number).encode()
        while True:
            try:
                await self.redis.set(f"key:{number}", value)
                assert await self.redis.get(f"key:{number}") == value
                self.replies += 2
            except ResilientIOError as error:
                self.errors.append(error)
                await asyncio.sleep(0.01)

    async def end(self):
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


async def test_a_cut_network_with_traffic_is_down_within_a_second(
    network, server, connect, watch, slack
):
    redis = await connect(server)
    seen = watch(redis)
    traffic = Traffic(redis)
    await asyncio.sleep(0.3)
    cut = asyncio.get_running_loop().time()
    network.cut()
    down = await seen.until(State.DOWN, within=5)
    assert down - cut <= 1.0 + slack(0)
    assert redis.health.cause is Cause.UNREACHABLE
    assert GONE.fullmatch(seen.changes[-1].detail)
    await asyncio.sleep(1.5)
    assert redis.health.cause is Cause.UNREACHABLE, "later probes must not hide the cause"
    assert GONE.fullmatch(redis.health.detail)

    network.restore()
    await redis.health.until_up(5)
    replies = traffic.replies
    await asyncio.sleep(0.5)
    await traffic.end()
    assert traffic.replies > replies
    await seen.until_recovered(within=5)


@pytest.mark.parametrize("idle", [0.05, 0.5, 0.95])
async def test_a_cut_network_without_traffic_is_down_within_two_seconds(
    idle, network, server, connect, watch, slack
):
    redis = await connect(server)
    seen = watch(redis)
    await redis.ping()
    await asyncio.sleep(idle)
    cut = asyncio.get_running_loop().time()
    network.cut()
    down = await seen.until(State.DOWN, within=5)
    assert down - cut <= 2.0 + slack(0)
    assert redis.health.cause is Cause.UNREACHABLE


@pytest.mark.parametrize("callers", [0, CALLERS])
async def test_a_server_that_is_frozen_for_1_5_seconds_is_never_down(
    callers, server, connect, watch
):
    redis = await connect(server)
    seen = watch(redis)
    traffic = Traffic(redis, callers)
    await asyncio.sleep(0.3)
    server.freeze()
    await asyncio.sleep(1.5)
    server.thaw()
    await asyncio.sleep(0.5)
    await traffic.end()
    assert not seen.changes
    assert not traffic.errors


async def test_a_server_that_runs_a_script_for_1_5_seconds_is_never_down(
    server, slow_script, connect, watch
):
    redis = await connect(server)
    seen = watch(redis)
    traffic = Traffic(redis)
    try:
        (reply,) = await asyncio.gather(redis.eval(slow_script.text, 0), return_exceptions=True)
        await asyncio.sleep(0.3)
    finally:
        await traffic.end()
    await slow_script.check_duration(redis)
    assert reply == b"done"
    assert not seen.changes
    assert not traffic.errors


@pytest.mark.parametrize("callers", [1, CALLERS])
async def test_a_link_that_loses_2_percent_of_the_packets_is_never_down(
    callers, network, server, connect, watch
):
    redis = await connect(server)
    seen = watch(redis)
    network.lose(0.02)
    traffic = Traffic(redis, callers)
    await asyncio.sleep(6)
    await traffic.end()
    assert not seen.changes
    assert not traffic.errors
    assert redis.health.link.retransmitted > 0
    assert 0 < redis.health.link.loss < 0.2


async def test_a_distant_server_with_jitter_is_never_down(network, server, connect, watch):
    network.delay(0.06, 0.03)
    redis = await connect(server)
    seen = watch(redis)
    traffic = Traffic(redis)
    await asyncio.sleep(4)
    await traffic.end()
    assert not seen.changes
    assert not traffic.errors
    assert 0.1 < redis.health.link.rtt < 0.4


async def test_a_receive_window_that_is_closed_for_a_second_is_no_loss(server, connect, watch):
    redis = await connect(server)
    seen = watch(redis)
    server.freeze()
    values = [asyncio.create_task(redis.set(f"big:{n}", bytes(4 << 20))) for n in range(4)]
    await asyncio.sleep(1.0)
    server.thaw()
    assert all(await asyncio.gather(*values))
    assert not seen.changes


async def test_a_frozen_server_is_distinguished_from_a_host_that_is_gone(server, connect, watch):
    redis = await connect(server)
    seen = watch(redis)
    assert await redis.incr("counter") == 1
    server.freeze()
    try:
        calls = [asyncio.create_task(redis.incr("counter")) for _ in range(3)]
        await seen.until(State.DOWN, within=5)
        assert seen.changes[-1].cause is Cause.TIMED_OUT
        assert REACHABLE in seen.changes[-1].detail
        for failed in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failed, ResilientIOError)
            assert REACHABLE in str(failed)
    finally:
        server.thaw()


async def test_a_connection_that_a_middlebox_forgot_is_not_an_outage(
    network, server, connect, watch, slack
):
    """The host answers new connections, so the calls fail with the reason, and nothing is DOWN."""
    redis = await connect(server)
    seen = watch(redis)
    await redis.set("key", "value")
    carrier = redis._runtime.multiplexer.current
    network.forget(carrier.socket.getsockname()[1])
    began = asyncio.get_running_loop().time()
    assert await redis.get("key") == b"value"
    assert asyncio.get_running_loop().time() - began <= 3.0 + slack()
    assert await redis.get("key") == b"value"
    assert State.DOWN not in seen.states
    lost = carrier.lost.failure
    assert lost.cause is Cause.UNREACHABLE
    assert GONE.fullmatch(lost.detail)


async def test_the_link_is_in_the_snapshot_and_in_the_flight_recorder(
    network, server, connect, watch
):
    redis = await connect(server)
    recorder = FlightRecorder()
    monitor = HealthMonitor(redis.health, recorder=recorder)
    seen = watch(redis)
    await redis.ping()
    link = redis.health.snapshot()["link"]
    assert 0 < link["rtt"] < 0.1
    assert link["retransmits"] == link["unacked"] == link["unacked_bytes"] == 0
    assert link["ack_age"] < 1
    assert monitor.snapshot()["critical"][0]["link"]["rtt"] > 0

    traffic = Traffic(redis, 5)
    network.cut()
    await seen.until(State.DOWN, within=5)
    network.restore()
    await redis.health.until_up(5)
    await traffic.end()
    changes = [event for event in recorder.events() if event["event"] == "state changed"]
    assert changes[0]["state"] == "down"
    assert changes[0]["link"]["retransmits"] >= 2
    assert changes[0]["link"]["unacked"] > 0
    assert changes[0]["link"]["ack_age"] >= 0.7
    assert "link" in changes[1]
    await monitor.aclose()


def _checks():
    tasks = asyncio.all_tasks()
    return [task for task in tasks if task.get_name() == "resilient-io link check"]


async def test_closing_during_a_suspicion_leaves_no_attempt(network, server, connect):
    redis = await connect(server)
    network.cut()
    call = asyncio.create_task(redis.get("key"))
    async with asyncio.timeout(5):
        while not (checks := _checks()):  # noqa: ASYNC110 - nothing notifies of it
            await asyncio.sleep(0.01)
    await redis.aclose()
    assert all(check.done() for check in checks)
    with pytest.raises(ResilientIOError):
        await call


async def test_closing_is_cancelled_anywhere_during_a_suspicion(network, server, slack):
    @contextlib.asynccontextmanager
    async def suspicion():
        redis = ResilientRedis.from_url(server.url)
        await redis.ping()
        network.cut()
        call = asyncio.create_task(redis.get("key"))
        async with asyncio.timeout(5):
            while not _checks():  # noqa: ASYNC110 - nothing notifies of it
                await asyncio.sleep(0.01)
        yield redis
        await redis.aclose()
        network.restore()
        await asyncio.gather(call, return_exceptions=True)

    report = await cancel_everywhere(
        lambda redis: redis.aclose(), setup=suspicion, within=0.1 + slack(0), settle=2.0
    )
    report.assert_clean()
