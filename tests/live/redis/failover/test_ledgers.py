"""The faults of a Sentinel set-up, under load, for long: the replies to callers, and the lists.

Twenty callers push unique ids without a pause. The Sentinels take a master for down after 1 s.
"""

import asyncio

import pytest

from resilient_io import State
from resilient_io.testing import SentinelSetup, find_redis
from tests.live.redis.failover.conftest import SERVER, Blackhole, Following
from tests.live.redis.failover.ledger import CALLERS, Callers

pytestmark = pytest.mark.soak


@pytest.fixture
async def setup():
    async with SentinelSetup(replicas=3, binary=find_redis()) as setup:
        yield setup


@pytest.fixture
async def client(setup):
    following = Following(setup)
    await following.redis.initialize()
    await following.redis.ping()
    yield following.redis
    await following.aclose()


def report(name, ledger, audit, began, capsys):
    """Print the figures, and check what has to hold after every fault."""
    switched = min((at for at in ledger.switches if at > began), default=began) - began
    figures = (
        f"{len(ledger.acknowledged):,} acknowledged, first success after "
        f"{ledger.first_success(began):.2f} s (+switch-master after {switched:.2f} s), "
        f"{len(ledger.failed)} failed ({ledger.unknown} unknown), {audit.lost_after(began)} lost "
        f"({len(audit.lost)} with those before the fault), {len(audit.doubled)} doubled, "
        f"longest call {ledger.longest:.2f} s"
    )
    with capsys.disabled():
        print(f"\n{name}: {figures}")  # noqa: T201 - the result of the measurement
    assert audit.lost_after(began) == 0
    assert audit.doubled == []
    assert len(ledger.failed) == ledger.unknown <= 2 * CALLERS, ledger.errors()
    return switched


async def test_killed_master(setup, client, capsys, slack):
    async with Callers(client, setup) as callers:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        (await setup.master()).kill()
        await asyncio.sleep(10)
        audit = await callers.audit()
    switched = report("killed", callers.ledger, audit, began, capsys)
    assert callers.ledger.first_success(began) <= switched + 0.5 + slack()
    assert callers.ledger.longest <= 5 + slack()


async def test_frozen_master_that_returns_after_25_s(setup, client, capsys, slack):
    async with Callers(client, setup) as callers:
        await asyncio.sleep(1)
        old = await setup.master()
        began = asyncio.get_running_loop().time()
        old.freeze()
        await asyncio.sleep(25)
        old.thaw()
        await asyncio.sleep(1)
        before = [await old.query("LLEN", f"list:{number}") for number in range(CALLERS)]
        await asyncio.sleep(4)
        assert (await old.query("ROLE"))[0] == b"master"
        after = [await old.query("LLEN", f"list:{number}") for number in range(CALLERS)]
        await asyncio.sleep(10)
        audit = await callers.audit()
    report("frozen", callers.ledger, audit, began, capsys)
    assert before == after  # nothing was written to it when it returned
    assert callers.ledger.first_success(began, latency=0.5) <= 3.8 + slack()


@pytest.mark.soak(seconds=40)
async def test_ten_planned_failovers_in_a_row(setup, client, capsys, slack):
    async with Callers(client, setup) as callers:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        for _ in range(10):
            await setup.fail_over()
            await asyncio.sleep(1)  # the replicas follow the new master
        await asyncio.sleep(12)
        audit = await callers.audit()
    report("planned", callers.ledger, audit, began, capsys)
    assert callers.ledger.failed == {}
    assert callers.ledger.longest <= 2.5 + slack()


async def until_up(client):
    """Wait until the client is subscribed to all Sentinels again."""
    async with asyncio.timeout(10):
        while client.health.state is not State.UP:  # noqa: ASYNC110 - UP, not only answering
            await asyncio.sleep(0.01)


async def test_failovers_while_sentinels_come_and_go(setup, client, capsys, slack):
    async with Callers(client, setup) as callers:
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        for sentinel in setup.sentinels:
            sentinel.kill()
            await setup.fail_over()
            await sentinel.start()
            await setup.until_settled()
            await until_up(client)
        for sentinel in setup.sentinels:
            sentinel.kill()
        await asyncio.sleep(3)
        assert client.health.state.answering
        for sentinel in setup.sentinels:
            await sentinel.start()
        await setup.until_settled()
        await until_up(client)
        await asyncio.sleep(2)  # the Sentinels know the state of the replicas again
        await setup.fail_over()
        await asyncio.sleep(12)
        audit = await callers.audit()
    report("sentinels down", callers.ledger, audit, began, capsys)
    assert callers.ledger.failed == {}


@pytest.fixture
async def far_client(far):
    following = Following(far)
    await following.redis.initialize()
    await following.redis.ping()
    yield following.redis
    await following.aclose()


async def test_master_that_neither_clients_nor_sentinels_reach(
    network, far, far_client, capsys, slack
):
    async with Callers(far_client, far) as callers:
        await asyncio.sleep(1)
        port = (await far.master()).port
        hole = Blackhole(network, port, everywhere=True)
        began = asyncio.get_running_loop().time()
        hole.begin()
        await asyncio.sleep(25)
        hole.end()
        await asyncio.sleep(15)
        audit = await callers.audit()
    report("blackholed", callers.ledger, audit, began, capsys)
    assert callers.ledger.first_success(began, latency=0.5) <= 3.8 + slack()


async def test_master_that_only_the_client_does_not_reach(network, far, far_client):
    async with Callers(far_client, far) as callers:
        await asyncio.sleep(1)
        master = await far.master()
        hole = Blackhole(network, master.port, everywhere=False)
        hole.begin()
        await asyncio.sleep(6)
        detail = far_client.health.detail
        hole.end()
        await far_client.health.until_up(5)
        await asyncio.sleep(2)
        audit = await callers.audit()
    assert f"3 of 3 Sentinels reach the master {SERVER}:{master.port}, this client" in detail
    assert audit.lost == {}
    assert audit.doubled == []
