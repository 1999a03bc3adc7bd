"""Fetching, iterating, committing, rebalancing: on virtual time, with a driver of straw."""

import asyncio
import contextlib
import itertools
from types import SimpleNamespace

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka import errors as driver

from resilient_io.health import Dependency, FlightRecorder
from resilient_io.kafka.consumer.assignment import Holdings, Rebalancing
from resilient_io.kafka.consumer.commits import Committer
from resilient_io.kafka.consumer.fetcher import Feed, Reader
from resilient_io.kafka.consumer.iteration import (
    BatchIterator,
    BatchWalk,
    RecordIterator,
    RecordWalk,
    Turn,
)
from resilient_io.kafka.consumer.options import ConsumerSettings
from resilient_io.kafka.consumer.stats import Counters

pytestmark = pytest.mark.virtual_time

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class State:
    """A partition's, as the driver has it."""

    def __init__(self):
        self.position = 0
        self.has_valid_position = True
        self.highwater = None


class Driver:
    """As much of aiokafka's consumer as is leant on; `log` is what the partitions hold."""

    def __init__(self, world):
        self.world = world
        self.asked = []
        self.polls = 0
        self.raises = []
        self.waiters = []
        self.reassigning = False
        self.generation = next(world.generations)
        self._fetcher = self._coordinator = self._subscription = self
        self.member_id = "me"
        self.subscription = SimpleNamespace(assignment=None)

    # what the tests do

    def assigned(self, *partitions):
        states = {partition: State() for partition in partitions}
        for partition, state in states.items():
            state.position = self.world.committed.get(partition, 0)
        self.subscription.assignment = SimpleNamespace(
            tps=frozenset(partitions), state_value=states.get, states=states
        )

    def arrived(self):
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    # what is asked of it

    @property
    def reassignment_in_progress(self):
        return self.reassigning

    @contextlib.contextmanager
    def fetch_context(self):
        self.polls += 1
        yield

    def check_errors(self):
        if self.raises:
            raise self.raises.pop(0)

    def _create_fetch_waiter(self):
        self.waiters.append(asyncio.get_running_loop().create_future())
        return self.waiters[-1]

    async def getmany(self, *partitions, max_records):
        assert not self.reassigning, "it would wait for the group"
        self.check_errors()
        self.asked.append(partitions)
        states = self.subscription.assignment.states
        found = {}
        for partition in partitions or states:
            records = [
                ConsumerRecord("t", partition.partition, offset, 0, 0, None, b"v", None, -1, 1, ())
                for offset in self.world.log.get(partition, [])
                if offset >= states[partition].position
            ][:max_records]
            if records:
                states[partition].position = records[-1].offset + 1
                found[partition] = records
        return found

    def seek(self, partition, offset):
        self.subscription.assignment.states[partition].position = offset

    async def ensure_coordinator_known(self):
        while self.world.coordinator_away:  # noqa: ASYNC110 - as the driver does
            await asyncio.sleep(0.1)

    async def _do_commit_offsets(self, _assignment, offsets):
        self.world.commits.append({partition: o.offset for partition, o in offsets.items()})
        if self.world.commit_raises:
            raise self.world.commit_raises.pop(0)
        await asyncio.sleep(0.01)
        self.world.committed |= {partition: o.offset for partition, o in offsets.items()}

    async def fetch_committed_offsets(self, partitions):
        await self.ensure_coordinator_known()
        committed = self.world.committed
        return {p: SimpleNamespace(offset=committed[p]) for p in partitions if p in committed}


class World:
    """The consumer's parts, put together."""

    def __init__(self, *, deserializer=None, settings=None):
        self.log = {A: list(range(10)), B: list(range(10))}
        self.committed = {}
        self.commits = []
        self.commit_raises = []
        self.coordinator_away = False
        self.generations = itertools.count(1)
        self.broken = []
        self.refusal = None
        self.counters = Counters()
        self.settings = settings or ConsumerSettings(drain_timeout=5.0, commit_timeout=3.0)
        self.holdings = Holdings(self.counters)
        self.turn = Turn()
        self.walk = None
        self.feed = Feed(
            "kafka",
            self.holdings,
            Reader(None, deserializer, self.counters),
            broken=lambda instance, error: self.broken.append(error),
            observe=lambda instance: None,
            counters=self.counters,
            refusal=lambda: self.refusal,
        )
        self.committer = Committer("kafka", self.counters)
        self.health = Dependency("kafka")
        self.rebalancing = Rebalancing(
            self.health,
            holdings=self.holdings,
            feed=self.feed,
            committer=self.committer,
            settings=self.settings,
            counters=self.counters,
            drop=lambda going: None,
            drain=self.drain,
            joined=lambda: None,
        )

    async def drain(self, going):
        if self.walk is not None:
            await self.walk.drain(going, self.settings.drain_timeout)
        if self.feed.drain is not None:
            await self.feed.drain(tuple(holding.partition for holding in going))

    async def joined(self, *partitions):
        """An instance enters service and is given partitions."""
        instance = Driver(self)
        self.feed.entered(instance)
        await self.assigned(instance, *partitions)
        return instance

    async def assigned(self, instance, *partitions):
        instance.assigned(*partitions)
        await self.rebalancing.assign(instance, partitions)

    async def enter(self, walk):
        await self.turn.take(walk.what)
        self.walk = walk

    def left(self):
        self.walk = None
        self.turn.give_back()

    def records(self, most=4):
        return RecordIterator(RecordWalk(self.feed, self.enter, self.left, most))

    def batches(self, most=4, max_wait=0.0):
        return BatchIterator(BatchWalk(self.feed, self.enter, self.left, most, max_wait))


async def offsets_of(feed, most=100, wait=0.0):
    found = await feed.fetch(most, wait)
    return {
        partition: [record.offset for record in records] for partition, records in found.items()
    }


async def test_what_is_paused_is_not_asked_for_but_polled_for():
    world = World()
    instance = await world.joined(A, B)
    world.feed.pause([A], "one")
    world.feed.pause([A], "two")
    assert await offsets_of(world.feed, 3) == {B: [0, 1, 2]}
    assert instance.asked == [(B,)]
    world.feed.pause([B], "one")
    assert await offsets_of(world.feed) == {}
    assert instance.asked == [(B,)]
    assert instance.polls == 1, "the group hears of it all the same"
    world.feed.resume([A], "one")
    assert await offsets_of(world.feed) == {}, "the other reason holds"
    world.feed.resume([A], "two")
    assert await offsets_of(world.feed, 2) == {A: [0, 1]}


async def test_resuming_wakes_who_waits():
    world = World()
    await world.joined(A)
    world.feed.pause([A], "one")
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(2.0, world.feed.resume, [A], "one")
    assert await offsets_of(world.feed, 1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(2.0)


async def test_records_that_arrive_wake_who_waits():
    world = World()
    world.log[A] = []
    instance = await world.joined(A)
    loop = asyncio.get_running_loop()
    began = loop.time()

    def arrive():
        world.log[A].append(0)
        instance.arrived()

    loop.call_later(3.0, arrive)
    assert await offsets_of(world.feed, 1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(3.0)


async def test_nothing_is_asked_for_while_the_group_rebalances():
    world = World()
    instance = await world.joined(A)
    instance.reassigning = True
    assert await offsets_of(world.feed, wait=1.0) == {}
    assert instance.asked == []


async def test_without_an_instance_it_waits_for_the_next():
    world = World()
    loop = asyncio.get_running_loop()
    began = loop.time()
    fetching = asyncio.create_task(offsets_of(world.feed, 1, wait=60.0))
    await asyncio.sleep(5.0)
    await world.joined(A)
    assert await fetching == {A: [0]}
    assert loop.time() - began == pytest.approx(5.0)


async def test_why_no_instance_will_come_is_raised_not_waited_out():
    world = World()
    fetching = asyncio.create_task(offsets_of(world.feed, 1, wait=60.0))
    await asyncio.sleep(1.0)
    world.refusal = driver.GroupAuthorizationFailedError("g")
    world.feed.wake()
    with pytest.raises(driver.GroupAuthorizationFailedError):
        await fetching


async def test_a_failure_that_may_pass_is_waited_out_then_the_instance_is_given_up():
    world = World()
    instance = await world.joined(A)
    instance.raises = [driver.CorruptRecordException() for _ in range(4)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await offsets_of(world.feed, 1, wait=60.0) == {A: [0]}
    assert loop.time() - began == pytest.approx(0.1 + 0.2 + 0.4 + 0.8)
    assert world.broken == []
    instance.raises = [driver.CorruptRecordException() for _ in range(5)]
    assert await offsets_of(world.feed, 1, wait=5.0) == {}
    assert [type(error) for error in world.broken] == [driver.CorruptRecordException]


async def test_a_fatal_failure_gives_the_instance_up_at_once():
    world = World()
    instance = await world.joined(A)
    instance.raises = [driver.KafkaError("Unexpected error during coordination")]
    assert await offsets_of(world.feed, wait=1.0) == {}
    assert len(world.broken) == 1
    assert instance.asked == []


async def test_what_kafka_refuses_for_good_is_raised():
    world = World()
    instance = await world.joined(A)
    instance.raises = [driver.TopicAuthorizationFailedError("t")]
    with pytest.raises(driver.TopicAuthorizationFailedError):
        await offsets_of(world.feed)
    assert world.broken == []


async def test_slow_deserialisers_give_the_loop_its_turn_and_keep_the_order():
    loop = asyncio.get_running_loop()

    def slow(value):
        loop.block(0.002)
        return value

    world = World(deserializer=slow)
    world.log[B] = []
    await world.joined(A)
    seen = []
    while len(seen) < 10:
        found = await offsets_of(world.feed)
        assert len(found[A]) <= 3
        seen += found[A]
    assert seen == list(range(10))
    assert world.holdings.get(A).progress.outstanding == 10


async def test_taken_away_it_hands_out_nothing_and_commits_what_is_contiguous():
    world = World()
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(4, 0.0)).values()
    for record in (records[0], records[1], records[3]):
        record.done()
    drained = []

    async def drain(partitions):
        drained.append(partitions)
        assert await offsets_of(world.feed) == {}
        records[2].done()

    world.feed.on_revoked(drain)
    await world.rebalancing.revoke(instance)
    assert drained == [(A,)]
    assert world.commits == [{A: 4}]
    assert world.holdings.partitions == ()
    for record in records:
        record.done()
    assert await world.committer.commit(world.holdings.all, 1.0)
    assert world.commits == [{A: 4}], "nothing for what is not ours"


async def test_a_commit_of_another_generation_is_never_sent():
    world = World()
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(1, 0.0)).values()
    records[0].done()
    holdings = world.holdings.all
    world.coordinator_away = True
    committing = asyncio.create_task(world.committer.commit(holdings, 3.0))
    await asyncio.sleep(0.5)
    instance.generation = 99  # meanwhile the group has moved on
    world.coordinator_away = False
    assert not await committing
    assert world.commits == []
    assert world.counters.commits_failed == 1


async def test_trouble_of_who_drains_does_not_hold_up_the_group(caplog):
    world = World()
    instance = await world.joined(A)

    async def drain(_partitions):
        raise ZeroDivisionError

    world.feed.on_revoked(drain)
    await world.rebalancing.revoke(instance)
    assert world.holdings.partitions == ()
    assert "giving up partitions failed" in caplog.text


async def test_a_commit_that_matters_is_tried_again_within_its_time():
    world = World()
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(1, 0.0)).values()
    records[0].done()
    world.commit_raises = [driver.NotCoordinatorForGroupError(), driver.RequestTimedOutError()]
    await world.rebalancing.revoke(instance)
    assert world.committed == {A: 1}
    assert world.counters.commits_failed == 2


async def test_a_commit_that_the_driver_breaks_on_is_told_once_and_raised_to_nobody(caplog):
    world = World()
    await world.joined(A)
    (records,) = (await world.feed.fetch(1, 0.0)).values()
    records[0].done()
    world.commit_raises = [AssertionError("as if"), AssertionError("as if")]
    for _ in range(2):
        assert not await world.committer.commit(world.holdings.all, 1.0, insist=True)
    assert await world.committer.commit(world.holdings.all, 1.0)
    assert world.committed == {A: 1}
    assert [each for each in caplog.messages if "offsets cannot be committed" in each] == [
        "kafka: offsets cannot be committed: AssertionError('as if')"
    ]


async def test_a_commit_without_a_coordinator_keeps_its_time():
    world = World()
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(1, 0.0)).values()
    records[0].done()
    world.coordinator_away = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.rebalancing.revoke(instance)
    assert loop.time() - began == pytest.approx(3.0)
    assert world.counters.lost == 1


async def test_the_record_in_hand_is_waited_for_when_its_partition_goes():
    world = World()
    instance = await world.joined(A)
    records = world.records()
    assert (await anext(records)).offset == 0
    revoking = asyncio.create_task(world.rebalancing.revoke(instance))
    await asyncio.sleep(2.0)
    assert not revoking.done()
    following = asyncio.create_task(anext(records))
    await revoking
    assert world.committed == {A: 1}, "asked for the next: handled"
    await world.assigned(instance, A)
    assert (await following).offset == 1
    await records.aclose()


async def test_the_record_in_hand_is_waited_for_only_so_long():
    world = World()
    instance = await world.joined(A)
    records = world.records()
    record = await anext(records)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.rebalancing.revoke(instance)
    assert loop.time() - began == pytest.approx(5.0, abs=0.1)
    record.done()
    assert 1 not in world.committed.values(), "too late"
    await world.assigned(instance, A)
    assert (await anext(records)).offset == 0, "so it comes again"
    await records.aclose()


async def test_done_is_enough_for_the_record_in_hand_to_let_its_partition_go():
    world = World()
    instance = await world.joined(A)
    records = world.records()
    record = await anext(records)
    asyncio.get_running_loop().call_later(1.0, record.done)
    await world.rebalancing.revoke(instance)
    assert world.committed == {A: 1}
    await records.aclose()


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (None, None, 3),  # no commit yet, and nobody else's either
        (2, 2, 3),  # nobody committed meanwhile: what was handled here is not read again
        (2, 7, 7),  # somebody did: it is theirs that counts
        (2, 1, 1),  # somebody set it back, and means it
    ],
)
async def test_a_lost_partition_that_comes_back_goes_on_where_it_can(before, after, first):
    world = World()
    if before is not None:
        world.committed[A] = before
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(6, 0.0)).values()
    for record in records:
        if record.offset < 3:
            record.done()
    world.feed.entered(None)
    world.rebalancing.lose(instance)
    await world.rebalancing.settled()
    assert world.commits == []
    assert world.counters.lost == 1
    if after is not None:
        world.committed[A] = after
    await world.joined(A)
    found = await offsets_of(world.feed)
    assert found[A][0] == first


async def test_nothing_lost_comes_back_before_its_handlers_have_ended():
    world = World()
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(1, 0.0)).values()

    async def drain(_partitions):
        await asyncio.sleep(4.0)
        records[0].done()

    world.feed.on_revoked(drain)
    world.rebalancing.lose(instance)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.joined(A)
    assert loop.time() - began == pytest.approx(4.0)
    assert (await offsets_of(world.feed, 1)) == {A: [1]}


async def test_transactions_commit_by_themselves():
    world = World(settings=ConsumerSettings(commit_interval=None))
    instance = await world.joined(A)
    (records,) = (await world.feed.fetch(3, 0.0)).values()
    for record in records:
        record.done()
    await world.rebalancing.revoke(instance)
    assert world.commits == []
    await world.assigned(instance, A)
    assert (await offsets_of(world.feed, 1)) == {A: [0]}, "nothing is remembered either"


async def test_a_batch_that_was_left_is_handed_out_again_in_order():
    world = World()
    await world.joined(A, B)
    batches = world.batches(most=4, max_wait=0.0)
    batch = await anext(batches)
    batch[1].done()
    await batches.aclose()
    rest = [(r.partition, r.offset) for r in batch if not r.handled]
    seen = []
    async for record in world.records():
        seen.append((record.partition, record.offset))
        if len(seen) == 19:
            break
    assert seen[: len(rest)] == rest
    for partition in range(2):
        offsets = [offset for there, offset in seen if there == partition]
        assert offsets == sorted(offsets)


async def test_a_second_taker_is_refused_and_waits_for_one_that_is_ending():
    turn = Turn()
    await turn.take("running")
    with pytest.raises(RuntimeError, match="this consumer is running already"):
        await turn.take("iterating")
    turn.ending()
    waiting = asyncio.create_task(turn.take("iterating"))
    await asyncio.sleep(1.0)
    assert not waiting.done()
    turn.give_back()
    await waiting
    with pytest.raises(RuntimeError, match="this consumer is iterating already"):
        await turn.take("running")


async def test_two_tasks_cannot_share_an_iterator():
    world = World()
    world.log[A] = []
    await world.joined(A)
    records = world.records()
    waiting = asyncio.create_task(anext(records, None))
    await asyncio.sleep(0.5)
    with pytest.raises(RuntimeError, match="in use by another task"):
        await anext(records)
    world.feed.close()
    assert await waiting is None


async def test_closing_ends_who_waits():
    world = World()
    world.log[A] = []
    await world.joined(A)
    records, batches = world.records(), world.batches()
    waiting = asyncio.create_task(anext(records, None))
    await asyncio.sleep(0.5)
    world.feed.close()
    assert await waiting is None
    assert await anext(batches, None) is None
    assert await anext(records, None) is None


async def test_the_flight_recorder_remembers_what_moved_in_and_out():
    world = World()
    recorder = FlightRecorder()
    world.health.add_recorder(recorder)
    instance = await world.joined(A, B)
    await world.rebalancing.revoke(instance)
    await world.assigned(instance, A)
    world.rebalancing.lose(instance)
    await world.rebalancing.settled()
    moved = [(each["event"], each["partitions"]) for each in recorder.events()]
    assert moved == [
        ("partitions assigned", 2),
        ("partitions revoked", 2),
        ("partitions assigned", 1),
        ("partitions lost", 1),
    ]


def hold(world):
    """The place in the group is in doubt."""
    world.feed.held = True
    if world.walk is not None:
        world.walk.hold()


def go_on(world):
    world.feed.held = False
    world.feed.wake()


async def test_while_it_is_held_the_feed_hands_out_nothing_and_polls():
    world = World()
    instance = await world.joined(A)
    hold(world)
    assert await offsets_of(world.feed, wait=5.0) == {}
    assert instance.asked == []
    assert instance.polls >= 1, "the group hears of it all the same"
    instance.raises.append(driver.GroupAuthorizationFailedError("g"))
    with pytest.raises(driver.GroupAuthorizationFailedError):
        await offsets_of(world.feed)
    go_on(world)
    assert await offsets_of(world.feed, 2) == {A: [0, 1]}


@pytest.mark.parametrize("when", ["in hand", "waiting"])
async def test_while_it_is_held_iteration_hands_out_no_record_and_then_the_next(when):
    world = World()
    await world.joined(A)
    records = world.records(most=4)
    assert (await anext(records)).offset == 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    if when == "in hand":
        hold(world)
    else:  # what is there is used up, and the next is waited for
        for _ in range(9):
            await anext(records)
        world.log[A] += range(10, 14)
        loop.call_soon(hold, world)
        world.feed.held = True
    loop.call_later(7.0, go_on, world)
    following = [(await anext(records)).offset for _ in range(4)]
    assert following == ([1, 2, 3, 4] if when == "in hand" else [10, 11, 12, 13])
    assert loop.time() - began == pytest.approx(7.0)
    assert world.counters.given_back == 0
    await records.aclose()


async def test_what_is_held_of_a_partition_that_was_lost_comes_from_nowhere():
    world = World()
    instance = await world.joined(A)
    records = world.records(most=4)
    record = await anext(records)
    record.done()
    hold(world)
    world.rebalancing.lose(instance)
    await world.rebalancing.settled()
    world.log[A] = [7]
    world.committed[A] = 7  # by another member
    await world.joined(A)
    go_on(world)
    assert (await anext(records)).offset == 7
    await records.aclose()


async def test_while_it_is_held_no_batch_comes_and_then_all_of_it():
    world = World()
    await world.joined(A)
    batches = world.batches(most=20, max_wait=3.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(1.0, hold, world)
    loop.call_later(9.0, go_on, world)
    batch = await anext(batches)
    assert [record.offset for record in batch] == list(range(10))
    assert loop.time() - began >= 9.0
    await batches.aclose()


async def test_a_batch_takes_along_nothing_of_a_partition_lost_while_it_was_gathered():
    world = World()
    instance = await world.joined(A)
    batches = world.batches(most=20, max_wait=3.0)
    loop = asyncio.get_running_loop()

    def lose():
        world.rebalancing.lose(instance)
        world.log[A] = []

    loop.call_later(1.0, lose)
    waiting = asyncio.create_task(anext(batches))
    await asyncio.sleep(10.0)
    assert not waiting.done()
    world.feed.close()
    await asyncio.wait([waiting])
    assert isinstance(waiting.exception(), StopAsyncIteration)
