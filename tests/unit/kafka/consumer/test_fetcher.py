"""The fetcher: pausing, waiting, failures of the driver, deserializing."""

import asyncio
import traceback

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as driver

from resilient_io import ConfigurationError

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


async def test_paused_partitions_are_polled_for_but_not_fetched(world):
    instance = await world.join(A, B)
    world.fetcher.pause([A], "one")
    world.fetcher.pause([A], "two")
    assert await world.fetch_offsets(3) == {B: [0, 1, 2]}
    assert instance.taken == [B]
    world.fetcher.pause([B], "one")
    assert await world.fetch_offsets() == {}
    assert instance.taken == [B]
    assert instance.polls == 2, "the group is polled nevertheless"
    world.fetcher.resume([A], "one")
    assert await world.fetch_offsets() == {}, "the other reason holds"
    world.fetcher.resume([A], "two")
    assert await world.fetch_offsets(2) == {A: [0, 1]}


async def test_resuming_a_partition_wakes_a_waiting_fetch(world):
    await world.join(A)
    world.fetcher.pause([A], "one")
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(2.0, world.fetcher.resume, [A], "one")
    assert await world.fetch_offsets(1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(2.0)


async def test_records_that_are_put_back_are_delivered_first_once_the_partition_is_resumed(world):
    await world.join(A, B)
    found = await world.fetcher.fetch(3, 0.0)
    assert world.fetcher.put_back(A, found[A][1:])
    world.fetcher.pause([A], "not due")
    assert list(await world.fetch_offsets()) == [B]
    world.fetcher.resume([A], "not due")
    assert await world.fetch_offsets() == {A: [1, 2]}
    assert await world.fetch_offsets() == {A: list(range(3, 10))}


async def test_records_of_a_former_assignment_are_not_put_back(world):
    instance = await world.join(A)
    found = await world.fetcher.fetch(3, 0.0)
    await world.rebalancer.revoke(instance)
    assert not world.fetcher.put_back(A, found[A])
    await world.assign(instance, A)
    assert not world.fetcher.put_back(A, found[A])
    assert not world.fetcher.put_back(A, [])


@pytest.fixture
def existing(monkeypatch):
    """Return the topics that exist, to be changed, and the failures of the requests for them."""
    topics, failures = [], []

    async def missing_topics(_instance, required):
        if failures:
            raise failures.pop(0)
        return [topic for topic in required if topic not in topics]

    monkeypatch.setattr("resilient_io.kafka.consumer.fetcher.missing_topics", missing_topics)
    return topics, failures


async def test_required_topics_are_waited_for_until_kafka_answers(world, existing):
    topics, failures = existing
    topics.append("r")
    failures += [driver.NodeNotReadyError(), TimeoutError()]
    waiting = asyncio.create_task(world.fetcher.require_topics(("r",)))
    await asyncio.sleep(60.0)
    assert not waiting.done()
    await world.join(A)
    await asyncio.sleep(3.0)
    waiting.result()
    assert failures == []


async def test_a_missing_topic_raises_unless_it_is_created_soon(world, existing):
    topics, _ = existing
    await world.join(A)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConfigurationError, match="missing topics: 'r', 's'"):
        await world.fetcher.require_topics(("r", "s"))
    assert loop.time() - began == pytest.approx(5.0, abs=0.6)
    waiting = asyncio.create_task(world.fetcher.require_topics(("r", "s")))
    await asyncio.sleep(3.0)
    topics += ["r", "s"]
    await waiting
    topics.clear()
    waiting = asyncio.create_task(world.fetcher.require_topics(("r",)))
    await asyncio.sleep(1.0)
    world.fetcher.close()
    await waiting


async def test_arriving_records_wake_a_waiting_fetch(world):
    world.log[A] = []
    instance = await world.join(A)
    loop = asyncio.get_running_loop()
    began = loop.time()

    def arrive():
        world.log[A].append(0)
        instance.arrived()

    loop.call_later(3.0, arrive)
    assert await world.fetch_offsets(1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(3.0)


async def test_partitions_take_turns_while_more_arrives_of_each(world):
    world.per_request = 4
    empty = [TopicPartition("t", number) for number in range(2, 5)]
    await world.join(A, *empty, B)
    turns = [await world.fetch_offsets(4) for _ in range(5)]
    assert turns == [
        {A: [0, 1, 2, 3]},
        {B: [0, 1, 2, 3]},
        {A: [4, 5, 6, 7]},
        {B: [4, 5, 6, 7]},
        {A: [8, 9], B: [8, 9]},
    ]


async def test_a_corrupt_partition_does_not_hold_up_the_others(world):
    world.per_request = 4
    world.corrupt = [A]
    await world.join(A, B)
    found = [await world.fetch_offsets(4, wait=1.0) for _ in range(3)]
    assert found == [{B: [0, 1, 2, 3]}, {B: [4, 5, 6, 7]}, {B: [8, 9]}]
    assert world.broken == []
    assert world.assignment.get(A).position == 0
    world.corrupt = []
    assert await world.fetch_offsets(4, wait=60.0) == {A: [0, 1, 2, 3]}


async def test_a_fetch_that_is_cancelled_while_it_skips_handled_records_loses_none(world):
    world.log[A] = list(range(20))
    await world.join(A)
    world.assignment.get(A).handled = ((0, 10),)
    fetching = asyncio.create_task(world.fetch_offsets(3, wait=60.0))
    await asyncio.sleep(0)
    fetching.cancel()
    await asyncio.wait([fetching])
    assert fetching.cancelled()
    assert world.counters.already_handled == 3
    assert await world.fetch_offsets(3, wait=60.0) == {A: [10, 11]}
    assert await world.fetch_offsets(3, wait=60.0) == {A: [12, 13, 14]}


async def test_nothing_is_requested_during_a_rebalance(world):
    instance = await world.join(A)
    instance.reassigning = True
    assert await world.fetch_offsets(wait=1.0) == {}
    assert instance.taken == []


async def test_fetch_without_an_instance_waits_for_the_next(world):
    loop = asyncio.get_running_loop()
    began = loop.time()
    fetching = asyncio.create_task(world.fetch_offsets(1, wait=60.0))
    await asyncio.sleep(5.0)
    await world.join(A)
    assert await fetching == {A: [0]}
    assert loop.time() - began == pytest.approx(5.0)


async def test_fetch_raises_why_no_instance_can_enter_service(world):
    fetching = asyncio.create_task(world.fetch_offsets(1, wait=60.0))
    await asyncio.sleep(1.0)
    world.supervisor.permanent_error = driver.GroupAuthorizationFailedError("g")
    world.fetcher.wake()
    with pytest.raises(driver.GroupAuthorizationFailedError):
        await fetching


async def test_temporary_failures_are_retried_before_the_instance_is_replaced(world):
    instance = await world.join(A)
    instance.raises = [driver.CorruptRecordException() for _ in range(4)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await world.fetch_offsets(1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(0.1 + 0.2 + 0.4 + 0.8)
    assert world.broken == []
    instance.raises = [driver.CorruptRecordException() for _ in range(5)]
    assert await world.fetch_offsets(1, wait=5.0) == {}
    assert [type(error) for error in world.broken] == [driver.CorruptRecordException]


async def test_a_fatal_failure_replaces_the_instance_immediately(world):
    instance = await world.join(A)
    instance.raises = [driver.KafkaError("Unexpected error during coordination")]
    assert await world.fetch_offsets(wait=1.0) == {}
    assert len(world.broken) == 1
    assert instance.taken == []


async def test_a_connection_whose_session_ended_replaces_the_instance(world):
    instance = await world.join(A)
    said = "Unexpected exception in heartbeat task: IllegalSaslStateError()"
    instance.raises = [driver.KafkaError(said)]
    assert await world.fetch_offsets(wait=1.0) == {}
    assert len(world.broken) == 1


async def test_a_permanent_refusal_is_raised(world):
    instance = await world.join(A)
    instance.raises = [driver.TopicAuthorizationFailedError("t")]
    with pytest.raises(driver.TopicAuthorizationFailedError):
        await world.fetch_offsets()
    assert world.broken == []


async def test_slow_deserializers_let_other_tasks_run_and_keep_the_order(make_world):
    loop = asyncio.get_running_loop()

    def slow(value):
        loop.block(0.002)
        return value

    world = make_world(deserializer=slow)
    world.log[B] = []
    await world.join(A)
    seen = []
    while len(seen) < 10:
        found = await world.fetch_offsets()
        assert len(found[A]) <= 3
        seen += found[A]
    assert seen == list(range(10))
    assert world.assignment.get(A).progress.outstanding == 10


async def test_a_held_fetcher_delivers_nothing_and_polls(world):
    instance = await world.join(A)
    world.hold()
    assert await world.fetch_offsets(wait=5.0) == {}
    assert instance.taken == []
    assert instance.polls >= 1, "the group is polled nevertheless"
    instance.raises.append(driver.GroupAuthorizationFailedError("g"))
    with pytest.raises(driver.GroupAuthorizationFailedError):
        await world.fetch_offsets()
    world.resume()
    assert await world.fetch_offsets(2) == {A: [0, 1]}


async def test_partitions_without_a_group_are_discovered_and_resume_in_the_next_instance(
    make_world,
):
    world = make_world(has_group=False)
    first = world.add_instance()
    assert await world.fetch_offsets() == {}
    first.assigned(A)
    (records,) = (await world.fetcher.fetch(4, 0.0)).values()
    records[0].done()
    world.fetcher.use_instance(None)
    world.rebalancer.lose(first)
    second = world.add_instance()
    second.assigned(A, B)
    assert await world.fetch_offsets() == {}, "the lost partition is still being drained"
    await world.rebalancer.lost_partitions_removed()
    assert await world.fetch_offsets() == {A: list(range(1, 10)), B: list(range(10))}
    assert world.commits == []


async def test_a_permanent_refusal_that_quotes_a_secret_is_raised_without_it(world_with_secret):
    world, secret = world_with_secret
    instance = await world.join(A)
    error = driver.TopicAuthorizationFailedError(f"t, asked as me:{secret}")
    error.__cause__ = ValueError(secret)
    instance.raises = [error]
    with pytest.raises(driver.TopicAuthorizationFailedError, match="t, asked as me:…") as caught:
        await world.fetch_offsets()
    assert secret not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
