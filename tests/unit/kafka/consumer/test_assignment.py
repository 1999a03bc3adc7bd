"""Partitions that are assigned, revoked, lost and assigned again."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import NoOffsetForPartitionError

from resilient_io.health import FlightRecorder
from resilient_io.kafka.consumer import ConsumerSettings
from resilient_io.kafka.consumer.commit_metadata import decode_metadata

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


async def test_a_revoked_partition_delivers_nothing_and_commits_contiguous_offsets(world):
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(4, 0.0)).values()
    for record in (records[0], records[1], records[3]):
        record.done()
    drained = []

    async def drain(partitions):
        drained.append(partitions)
        assert await world.fetch_offsets() == {}
        records[2].done()

    await world.run_with(drain)
    await world.rebalancer.revoke(instance)
    assert drained == [(A,)]
    assert world.commits == [{A: 4}]
    assert world.assignment.partitions == ()
    for record in records:
        record.done()
    assert await world.committer.commit(world.assignment.all, 1.0)
    assert world.commits == [{A: 4}], "nothing for a revoked partition"


async def test_a_failing_drain_does_not_delay_the_group(world, caplog):
    instance = await world.join(A)

    async def drain(_partitions):
        raise ZeroDivisionError

    await world.run_with(drain)
    await world.rebalancer.revoke(instance)
    assert world.assignment.partitions == ()
    assert "draining revoked partitions failed" in caplog.text


async def test_revoking_waits_for_the_record_in_hand(world):
    instance = await world.join(A)
    records = world.records()
    assert (await anext(records)).offset == 0
    revoking = asyncio.create_task(world.rebalancer.revoke(instance))
    await asyncio.sleep(2.0)
    assert not revoking.done()
    following = asyncio.create_task(anext(records))
    await revoking
    assert world.committed == {A: 1}, "requesting the next record handles it"
    await world.assign(instance, A)
    assert (await following).offset == 1
    await records.aclose()


async def test_revoking_waits_no_longer_than_the_drain_timeout(world):
    instance = await world.join(A)
    records = world.records()
    record = await anext(records)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.rebalancer.revoke(instance)
    assert loop.time() - began == pytest.approx(5.0, abs=0.1)
    record.done()
    assert 1 not in world.committed.values(), "too late"
    await world.assign(instance, A)
    assert (await anext(records)).offset == 0, "it is delivered again"
    await records.aclose()


async def test_revoking_ends_when_the_record_in_hand_is_done(world):
    instance = await world.join(A)
    records = world.records()
    record = await anext(records)
    asyncio.get_running_loop().call_later(1.0, record.done)
    await world.rebalancer.revoke(instance)
    assert world.committed == {A: 1}
    await records.aclose()


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (None, None, 3),  # nothing was committed, here or by another member
        (2, 2, 3),  # no other member committed: what was handled here is not read again
        (2, 7, 7),  # another member committed: its offset counts
        (2, 1, 1),  # the offset was set back on purpose
    ],
)
async def test_a_lost_partition_resumes_where_its_committed_offset_allows(
    world, before, after, first
):
    if before is not None:
        world.committed[A] = before
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(6, 0.0)).values()
    for record in records:
        if record.offset < 3:
            record.done()
    world.fetcher.use_instance(None)
    world.rebalancer.lose(instance)
    await world.rebalancer.lost_partitions_removed()
    assert world.commits == []
    assert world.counters.lost == 1
    if after is not None:
        world.committed[A] = after
    await world.join(A)
    found = await world.fetch_offsets()
    assert found[A][0] == first


async def test_a_lost_partition_is_assigned_again_only_after_its_drain(world):
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(1, 0.0)).values()

    async def drain(_partitions):
        await asyncio.sleep(4.0)
        records[0].done()

    await world.run_with(drain)
    world.rebalancer.lose(instance)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.join(A)
    assert loop.time() - began == pytest.approx(4.0)
    assert (await world.fetch_offsets(1)) == {A: [1]}


async def test_no_commit_interval_leaves_commits_to_transactions(make_world):
    world = make_world(settings=ConsumerSettings(commit_interval=None))
    instance = await world.join(A)
    (records,) = (await world.fetcher.fetch(3, 0.0)).values()
    for record in records:
        record.done()
    await world.rebalancer.revoke(instance)
    assert world.commits == []
    await world.assign(instance, A)
    assert (await world.fetch_offsets(1)) == {A: [0]}, "no resume position is remembered"


async def test_the_flight_recorder_notes_assigned_revoked_and_lost_partitions(world):
    recorder = FlightRecorder()
    world.health.add_recorder(recorder)
    instance = await world.join(A, B)
    await world.rebalancer.revoke(instance)
    await world.assign(instance, A)
    world.rebalancer.lose(instance)
    await world.rebalancer.lost_partitions_removed()
    moved = [(each["event"], each["partitions"]) for each in recorder.events()]
    assert moved == [
        ("partitions assigned", 2),
        ("partitions revoked", 2),
        ("partitions assigned", 1),
        ("partitions lost", 1),
    ]


async def test_later_records_are_remembered_although_nothing_was_committed_yet(world):
    await world.join(A)
    (records,) = (await world.fetcher.fetch(3, 0.0)).values()
    (assigned,) = world.assignment.all
    assert assigned.due is None
    records[1].done()
    due = assigned.due
    assert due.offset == 0
    assert decode_metadata(due.metadata, 0).handled == ((1, 2),)


@pytest.mark.parametrize("strategy", ["earliest", "latest", "none"])
async def test_retry_topics_begin_at_their_start_whatever_the_strategy(
    world, monkeypatch, strategy
):
    reset = {}
    monkeypatch.setattr("resilient_io.kafka.consumer.internals.subscribed", lambda _instance: [])
    monkeypatch.setattr(
        "resilient_io.kafka.consumer.internals.reset_position",
        lambda _instance, partition, *, beginning: reset.update({partition: beginning}),
    )
    world.positions._strategy = strategy
    world.positions.read_from_beginning(("r",))
    retry = TopicPartition("r", 0)
    world.log[retry] = []
    instance = await world.join(A, retry)
    assert reset == {retry: True} | ({} if strategy == "none" else {A: strategy == "earliest"})
    reset.clear()
    assert world.positions.handle(instance, NoOffsetForPartitionError(retry))
    world.assignment.get(retry)._state.position = None
    world.assignment.get(retry)._state.has_valid_position = False
    await asyncio.sleep(1.0)
    assert reset == {retry: True}
    assert world.positions.handle(instance, NoOffsetForPartitionError(A)) is (strategy != "none")
    await world.positions.aclose()
