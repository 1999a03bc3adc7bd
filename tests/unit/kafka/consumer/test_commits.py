"""Commits: attempts, time limits, and failures of the driver."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as driver

A = TopicPartition("t", 0)


async def test_a_commit_of_another_generation_is_never_sent(world):
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()
    records[0].done()
    holdings = world.assignment.all
    world.coordinator_away = True
    committing = asyncio.create_task(world.committer.commit(holdings, 3.0))
    await asyncio.sleep(0.5)
    instance.generation = 99  # a rebalance in the meantime
    world.coordinator_away = False
    assert not await committing
    assert world.commits == []
    assert world.counters.commits_failed == 1


async def test_an_insistent_commit_is_retried_within_its_timeout(world):
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()
    records[0].done()
    world.commit_raises = [driver.NotCoordinatorForGroupError(), driver.RequestTimedOutError()]
    await world.rebalancer.revoke(instance)
    assert world.committed == {A: 1}
    assert world.counters.commits_failed == 2


async def test_a_commit_that_crashes_in_the_driver_is_logged_once_and_not_raised(world, caplog):
    await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()
    records[0].done()
    world.commit_raises = [AssertionError("as if"), AssertionError("as if")]
    for _ in range(2):
        assert not await world.committer.commit(world.assignment.all, 1.0, insist=True)
    assert await world.committer.commit(world.assignment.all, 1.0)
    assert world.committed == {A: 1}
    assert [each for each in caplog.messages if "offsets cannot be committed" in each] == [
        "kafka: offsets cannot be committed: AssertionError: as if"
    ]


async def test_a_commit_without_a_coordinator_ends_within_its_timeout(world):
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()
    records[0].done()
    world.coordinator_away = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.rebalancer.revoke(instance)
    assert loop.time() - began == pytest.approx(3.0)
    assert world.counters.lost == 1


async def test_a_failed_commit_is_logged_without_secrets_and_control_characters(
    world_with_secret, caplog
):
    world, secret = world_with_secret
    await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()
    records[0].done()
    world.commit_raises = [AssertionError(f"\x1b[2J{secret}\r\n" + "x" * 10_000)]
    assert not await world.committer.commit(world.assignment.all, 1.0)
    (logged,) = [each for each in caplog.messages if "offsets cannot be committed" in each]
    assert secret not in logged
    assert logged.isprintable()
    assert len(logged) < 400
