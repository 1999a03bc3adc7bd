"""How records wait, travel, expire and are settled, over an instance that answers when told."""

import asyncio
import contextvars
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as driver
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata

from resilient_io import Cause, Dependency, Progress, RetryPolicy, deadline
from resilient_io.errors import Closed
from resilient_io.kafka.driver import InstanceEnded
from resilient_io.kafka.errors import (
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
)
from resilient_io.kafka.producer.accumulator import OVERHEAD, Accumulator
from resilient_io.kafka.producer.buffer import Room
from resilient_io.kafka.producer.bulk import ship
from resilient_io.kafka.producer.closing import drop_travelling, drop_waiting
from resilient_io.kafka.producer.errors import Verdicts
from resilient_io.kafka.producer.metadata import Topics
from resilient_io.kafka.producer.options import DeliverySettings
from resilient_io.kafka.producer.sender import Courier

TOPIC = "topic"


class Cluster:
    def __init__(self, partitions):
        self.partitions = dict.fromkeys(range(partitions), 1)  # partition: leader
        self.unauthorized_topics = set()
        self.listeners = []

    def add_listener(self, listener):
        self.listeners.append(listener)

    def remove_listener(self, listener):
        self.listeners.remove(listener)

    def partitions_for_topic(self, topic):
        return set(self.partitions) if topic == TOPIC else None

    def available_partitions_for_topic(self, topic):
        return {p for p, leader in self.partitions.items() if leader != -1}

    def leader_for_partition(self, tp):
        return self.partitions.get(tp.partition)


class Remembering:
    """A batch under construction that remembers the values written into it."""

    def __init__(self, builder):
        self._builder = builder
        self.size = builder.size
        self.values = []

    def append(self, offset, timestamp, key, value, headers):
        taken = self._builder.append(offset, timestamp, key, value, headers)
        if taken is not None:
            self.values.append(value)
        return taken


class Instance:
    """An aiokafka producer as far as the courier looks: it takes batches and answers when told."""

    def __init__(self, partitions=2):
        self.cluster = Cluster(partitions)
        self.client = SimpleNamespace(
            cluster=self.cluster,
            add_topic=lambda topic: self._updated(),
            set_topics=lambda topics: self._updated(),
            force_metadata_update=self._updated,
        )
        self.updates = 0
        self.batch_size = 10_000
        self.taken = []  # (partition, values, future)
        self.offsets = {}
        self.answers = True
        self._txn_manager = None
        self._message_accumulator = SimpleNamespace(_batches={})

    def _updated(self):
        self.updates += 1
        for listener in list(self.cluster.listeners):
            listener(self.cluster)
        future = asyncio.get_running_loop().create_future()
        future.set_result(True)
        return future

    def create_batch(self):
        batch = BatchBuilder(self.batch_size, 0)
        batch._builder = Remembering(batch._builder)
        batch.values = batch._builder.values
        return batch

    async def send_batch(self, batch, topic, *, partition):
        future = asyncio.get_running_loop().create_future()
        self._message_accumulator._batches[TopicPartition(topic, partition)] = [
            SimpleNamespace(retry_count=1)
        ]
        self.taken.append((partition, batch.values, future))
        if self.answers:
            asyncio.get_running_loop().call_later(0.01, self.answer, len(self.taken) - 1)
        return future

    def answer(self, number=-1, error=None):
        partition, values, future = self.taken[number]
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            return
        base = self.offsets.get(partition, 0)
        self.offsets[partition] = base + len(values)
        future.set_result(
            RecordMetadata(TOPIC, partition, TopicPartition(TOPIC, partition), base, -1, 0, 0)
        )


class Supervisor:
    def __init__(self, instance):
        self.instance = instance
        self.errors = []

    def context(self):
        return contextvars.copy_context()

    def broken(self, instance, error):
        self.errors.append(error)
        if instance is self.instance:
            self.instance = None


class World:
    """All parts of a producer but the supervisor and the driver."""

    def __init__(self, instance=None, *, policy=None, burst=1 << 20, full=1 << 20, **settings):
        self.loop = asyncio.get_running_loop()
        self.instance = instance or Instance()
        self.health = Dependency("kafka")
        self.supervisor = Supervisor(self.instance)
        self.verdicts = Verdicts(self.health, self.loop)
        self.settings = DeliverySettings(**settings)
        self.policy = policy or RetryPolicy()
        self.room = Room(self.settings.buffer_bytes, burst)

        async def ready():
            return self.instance

        self.topics = Topics(
            rng=random.Random(1),
            partitioner=None,
            full=full,
            ready=ready,
            context=contextvars.copy_context(),
        )
        self.heard = []
        self.courier = Courier(
            supervisor=self.supervisor,
            topics=self.topics,
            room=self.room,
            health=self.health,
            verdicts=self.verdicts,
            heard=lambda: self.heard.append(self.loop.time()),
            progressed=self.progressed,
        )
        self.accumulator = Accumulator(
            topics=self.topics,
            room=self.room,
            courier=self.courier,
            health=self.health,
            verdicts=self.verdicts,
            policy=self.policy,
            settings=self.settings,
            max_request_size=1 << 20,
            full=full,
        )
        self.topics.attach(self.instance)

    def progressed(self):
        self.accumulator.progressed()

    async def __aenter__(self):
        await self.topics.resolve(TOPIC, None)
        self.instance.updates = 0
        return self

    async def __aexit__(self, *_):
        self.accumulator.close()
        drop_travelling(self.topics.lines, self.verdicts)
        drop_waiting(self.topics.lines, self.verdicts, self.room, self.verdicts.closed)
        await self.topics.aclose()
        await self.courier.aclose()
        self.accumulator.finish()

    async def send(self, value, partition=0, key=None, lifetime=None):
        size = len(value) + OVERHEAD
        lifetime = lifetime or self.settings.delivery_timeout
        future = self.accumulator.offer(TOPIC, key, value, partition, None, None, size, lifetime)
        if future is None:
            future = await self.accumulator.admit(
                TOPIC, key, value, partition, None, None, size, lifetime, "send"
            )
        return future

    async def replaced(self, error=None):
        """Have the instance ended and another one in service, as the supervisor would."""
        old = self.instance
        self.supervisor.instance = None
        self.topics.detach()
        self.courier.retired(old, error)
        self.instance = self.supervisor.instance = Instance()
        self.topics.attach(self.instance)
        self.courier.wake()
        await asyncio.sleep(0)


def line(world, partition=0):
    return world.topics.known[TOPIC].lines[partition]


async def test_records_of_one_tick_travel_in_one_batch_and_the_next_ones_wait_for_its_answer():
    async with World() as world:
        first = [await world.send(b"%d" % n) for n in range(3)]
        await asyncio.sleep(0.001)
        second = [await world.send(b"%d" % n) for n in range(3, 5)]
        assert len(world.instance.taken) == 1
        assert [(await future).offset for future in first + second] == [0, 1, 2, 3, 4]
        assert [values for _, values, _ in world.instance.taken] == [
            [b"0", b"1", b"2"],
            [b"3", b"4"],
        ]
        assert world.verdicts.delivered == 5


async def test_partitions_do_not_wait_for_each_other():
    async with World() as world:
        world.instance.answers = False
        await world.send(b"a", 0)
        await asyncio.sleep(0.001)
        await world.send(b"b", 1)
        await asyncio.sleep(0.001)
        assert [taken[0] for taken in world.instance.taken] == [0, 1]
        assert len(world.courier.travelling) == 2


async def test_a_record_that_was_not_handed_over_ends_exactly_at_its_deadline_as_not_sent():
    async with World() as world:
        world.supervisor.instance = None
        future = await world.send(b"x", lifetime=3.0)
        began = world.loop.time()
        with pytest.raises(KafkaDeadlineExceeded) as caught:
            await future
        assert world.loop.time() - began == pytest.approx(3.0)
        assert caught.value.progress is Progress.NOT_SENT
        assert world.room.used == 0
        assert not line(world).records


async def test_deadlines_are_kept_in_whatever_order_they_come():
    async with World() as world:
        world.supervisor.instance = None
        ends = {}
        for seconds in (5.0, 1.0, 3.0, 0.5, 4.0):
            future = await world.send(b"x", lifetime=seconds)
            future.add_done_callback(
                lambda _, seconds=seconds: ends.setdefault(seconds, world.loop.time())
            )
        began = world.loop.time()
        await asyncio.sleep(6)
        assert list(ends) == [0.5, 1.0, 3.0, 4.0, 5.0]
        for seconds, at in ends.items():
            assert at - began == pytest.approx(seconds, abs=0.02)
        assert world.room.used == 0


async def test_one_that_was_handed_over_is_unknown_and_its_line_waits_for_the_answer():
    async with World() as world:
        world.instance.answers = False
        with deadline(1.0):
            travelling = await world.send(b"a")
        await asyncio.sleep(0.1)
        waiting = await world.send(b"b")
        with pytest.raises(KafkaOutcomeUnknown):
            await travelling
        assert world.loop.time() == pytest.approx(1.0)
        assert len(world.instance.taken) == 1
        world.instance.answer()
        await asyncio.sleep(0.001)
        world.instance.answer()
        assert (await waiting).offset == 1
        assert world.supervisor.errors == []


async def test_cancelled_records_are_never_handed_over():
    async with World() as world:
        futures = [await world.send(b"%d" % n) for n in range(5)]
        for future in futures[1:4]:
            future.cancel()
        await asyncio.gather(futures[0], futures[4])
        assert [values for _, values, _ in world.instance.taken] == [[b"0", b"4"]]
        assert world.room.used == 0


async def test_what_waits_and_what_was_never_sent_move_to_the_next_instance_in_order():
    async with World() as world:
        world.instance.answers = False
        futures = [await world.send(b"%d" % n) for n in range(3)]
        await asyncio.sleep(0.001)
        futures += [await world.send(b"%d" % n) for n in range(3, 6)]
        world.supervisor.instance = None
        world.instance.answer(error=InstanceEnded("ended", sent=False))
        await asyncio.sleep(0)
        await world.replaced()
        assert [(await future).offset for future in futures] == list(range(6))
        assert [values for _, values, _ in world.instance.taken] == [[b"%d" % n for n in range(6)]]


async def test_what_an_ended_instance_had_is_unknown_and_settled_before_the_next_one_sends():
    async with World() as world:
        world.instance.answers = False
        travelling = await world.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await world.send(b"b")
        await world.replaced(driver.OutOfOrderSequenceNumber())
        assert isinstance(travelling.exception(), KafkaOutcomeUnknown)
        assert (await waiting).offset == 0
        assert [values for _, values, _ in world.instance.taken] == [[b"b"]]


async def test_a_line_without_a_leader_holds_only_itself_and_asks_until_there_is_one():
    async with World() as world:
        world.instance.cluster.partitions[0] = -1
        held = await world.send(b"a", 0)
        assert (await world.send(b"b", 1)) is not None
        await asyncio.sleep(1.0)
        assert [taken[0] for taken in world.instance.taken] == [1]
        assert 3 <= world.instance.updates <= 6
        world.instance.cluster.partitions[0] = 2
        assert (await held).offset == 0


async def test_answers_stand_for_a_probe_only_if_all_leaders_gave_some():
    async with World() as world:
        world.instance.cluster.partitions = {0: 1, 1: 2}

        async def talk(*partitions):
            world.heard.clear()
            for _ in range(40):
                futures = [await world.send(b"x", partition) for partition in partitions]
                await asyncio.gather(*futures)
                await asyncio.sleep(0.1)
            return len(world.heard)

        assert 3 <= await talk(0, 1) <= 6
        await talk(0)
        assert await talk(0) == 0
        world.instance.cluster.partitions = {0: 1, 1: 1}
        assert 3 <= await talk(0) <= 6
        world.instance.cluster.partitions = {0: 1, 1: -1}
        await talk(0)
        assert await talk(0) == 0


async def test_a_full_batch_leaves_the_rest_for_the_next():
    async with World() as world:
        world.instance.batch_size = 1000
        futures = [await world.send(b"x" * 300) for _ in range(7)]
        await asyncio.gather(*futures)
        assert [len(values) for _, values, _ in world.instance.taken] == [3, 3, 1]


async def test_the_loop_gets_a_turn_after_each_burst_and_room_is_given_in_order():
    async with World(burst=2 * OVERHEAD, buffer_bytes=256 * OVERHEAD) as world:
        world.instance.answers = False
        done = []

        async def fill():
            for n in range(300):
                await world.send(b"")
                done.append(n)

        filling = asyncio.create_task(fill())
        await asyncio.sleep(1.0)
        assert len(done) == 256
        assert world.room.waiting == 1
        assert world.instance.taken  # handed over while it was being filled
        world.instance.answers = True
        world.instance.answer()
        await filling
        await world.accumulator.flushed()
        assert world.room.used == 0


async def test_without_room_in_time_it_is_overloaded_and_nothing_is_taken():
    policy = RetryPolicy(deadline=2.0)
    async with World(buffer_bytes=256 * OVERHEAD, policy=policy) as world:
        world.instance.answers = False
        for _ in range(256):
            await world.send(b"")
        began = world.loop.time()
        with pytest.raises(KafkaOverloaded):
            await world.send(b"")
        assert world.loop.time() - began == pytest.approx(2.0)
        assert world.room.used == 256 * OVERHEAD


async def test_room_that_cancelled_records_hold_is_found_when_it_is_needed():
    async with World(buffer_bytes=256 * OVERHEAD) as world:
        world.supervisor.instance = None
        futures = [await world.send(b"") for _ in range(256)]
        for future in futures:
            future.cancel()
        await world.send(b"")
        assert world.room.used == OVERHEAD


async def test_while_kafka_is_down_calls_fail_at_once_or_wait_as_the_policy_says():
    async with World() as world:
        world.health.available = False
        with pytest.raises(KafkaUnavailable) as caught:
            await world.send(b"x")
        assert caught.value.progress is Progress.NOT_SENT
    async with World(policy=RetryPolicy(while_down="wait")) as world:
        world.health.available = False
        future = await world.send(b"x")
        await asyncio.sleep(1.0)
        assert not world.instance.taken
        world.health.available = True
        world.courier.wake()
        assert (await future).offset == 0


async def test_lingering_waits_for_company_and_not_once_there_is_enough():
    async with World(linger=0.5, full=10 * OVERHEAD) as world:
        began = world.loop.time()
        await (await world.send(b""))
        assert world.loop.time() - began == pytest.approx(0.51)
        began = world.loop.time()
        futures = [await world.send(b"") for _ in range(10)]
        await futures[-1]
        assert world.loop.time() - began == pytest.approx(0.01)
        assert len(world.instance.taken) == 2


async def test_a_flush_waits_for_what_was_sent_before_it_only():
    async with World() as world:
        world.instance.answers = False
        await world.send(b"a")
        flushing = asyncio.create_task(world.accumulator.flushed())
        await asyncio.sleep(0.001)
        await world.send(b"b")
        world.instance.answer()
        await asyncio.sleep(0.001)
        assert flushing.done()
        assert len(world.instance.taken) == 2


async def test_a_fatal_error_breaks_the_instance_and_the_callers_are_told():
    async with World() as world:
        world.instance.answers = False
        future = await world.send(b"a")
        await asyncio.sleep(0.001)
        error = driver.OutOfOrderSequenceNumber()
        world.instance.answer(error=error)
        with pytest.raises(KafkaUnavailable) as caught:
            await future
        assert caught.value.progress is Progress.REFUSED  # at its only attempt
        assert world.supervisor.errors == [error]


async def test_after_several_attempts_nobody_knows_what_a_fatal_error_means():
    async with World() as world:
        world.instance.answers = False
        future = await world.send(b"a")
        await asyncio.sleep(0.001)
        (batch,) = world.instance._message_accumulator._batches[TopicPartition(TOPIC, 0)]
        batch.retry_count = 2
        world.instance.answer(error=driver.UnknownProducerId())
        with pytest.raises(KafkaOutcomeUnknown):
            await future


async def test_a_batch_of_doubtful_numbering_has_the_instance_renewed_once_nothing_travels():
    async with World() as world:
        world.instance._txn_manager = object()
        world.instance.answers = False
        doubtful, other = await world.send(b"a", 0), await world.send(b"b", 1)
        await asyncio.sleep(0.001)
        world.instance.answer(0, driver.UnknownError())
        await asyncio.sleep(0.001)
        assert isinstance(doubtful.exception(), KafkaOutcomeUnknown)
        waiting = await world.send(b"c", 0)
        await asyncio.sleep(1.0)
        assert world.supervisor.errors == []  # the other one would be made unknown
        assert len(world.instance.taken) == 2
        world.instance.answer(1)
        assert (await other).offset == 0
        assert len(world.supervisor.errors) == 1
        await world.replaced()
        assert (await waiting).offset == 0


async def test_a_driver_that_takes_nothing_gets_it_again_in_order():
    async with World() as world:
        failures = [driver.KafkaTimeoutError(), driver.KafkaTimeoutError()]
        send_batch = world.instance.send_batch

        async def refuse(batch, topic, *, partition):
            if failures:
                raise failures.pop()
            return await send_batch(batch, topic, partition=partition)

        world.instance.send_batch = refuse
        futures = [await world.send(b"%d" % n) for n in range(3)]
        assert [(await future).offset for future in futures] == [0, 1, 2]


async def test_closing_tells_what_waits_and_what_travels_apart():
    async with World() as world:
        world.instance.answers = False
        travelling = await world.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await world.send(b"b", key=b"k")
    assert isinstance(travelling.exception(), KafkaOutcomeUnknown)
    assert isinstance(waiting.exception(), Closed)
    assert world.room.used == len(b"a") + OVERHEAD  # what travels is held until its answer


async def test_more_partitions_are_noticed_and_keys_are_distributed_anew():
    async with World() as world:
        topic = world.topics.known[TOPIC]
        keys = [b"%d" % n for n in range(100)]

        async def places():
            futures = [await world.send(b"x", None, key) for key in keys]
            return {f.partition for f in await asyncio.gather(*futures)}

        assert await places() == {0, 1}
        world.instance.cluster.partitions = dict.fromkeys(range(8), 1)
        await world.instance._updated()
        assert sorted(topic.lines) == list(range(8))
        assert await places() == set(range(8))


async def test_failed_records_are_logged_in_one_line_for_many(caplog):
    async with World() as world:
        world.supervisor.instance = None
        for _ in range(50):
            await world.send(b"x", lifetime=1.0)
        await asyncio.sleep(2)
        assert world.verdicts.ended == {"KafkaDeadlineExceeded": 50}
        assert len(caplog.records) == 1


async def test_what_waits_for_a_topic_that_was_deleted_is_told_so_and_the_topic_forgotten():
    async with World() as world:
        world.instance.cluster.partitions = {}
        futures = [await world.send(b"x", 0) for _ in range(3)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {driver.UnknownTopicOrPartitionError}
        assert world.loop.time() < 5.0
        assert world.topics.known == {}
        assert world.room.used == 0
        assert world.instance.taken == []
        world.instance.cluster.partitions = {0: 1}
        assert (await (await world.send(b"y", 0))).offset == 0


async def test_a_broken_instance_is_given_nothing_more():
    async with World() as world:
        world.supervisor.broken = lambda instance, error: None  # it takes a tick to act on it
        world.instance.answers = False
        first = await world.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await world.send(b"b")
        world.instance.answer(error=driver.OutOfOrderSequenceNumber())
        await asyncio.sleep(0.01)
        assert first.exception() is not None
        assert len(world.instance.taken) == 1
        await world.replaced()
        assert (await waiting).offset == 0


async def test_a_record_whose_transaction_ends_while_it_waits_for_room_stays_out_of_the_next():
    async with World(buffer_bytes=256 * OVERHEAD) as world:
        transactions = ["first"]
        world.accumulator.admission.transaction = lambda: transactions[-1]
        world.instance.answers = False
        for _ in range(256):
            await world.send(b"")
        late = asyncio.create_task(world.send(b"late"))
        await asyncio.sleep(0.01)
        transactions.append("second")
        world.instance.answer()
        with pytest.raises(driver.IllegalOperation):
            await late
        await world.accumulator.flushed()
        assert world.room.used == 0


async def test_silence_on_a_batch_makes_health_look():
    reported = []
    async with World() as world:
        world.health.failed = lambda cause, detail: reported.append(cause)
        world.instance.answers = False
        future = await world.send(b"x", lifetime=0.5)
        await asyncio.wait([future])
        assert reported == []
        world.instance.answer()
        await asyncio.sleep(0.01)
        future = await world.send(b"x", lifetime=3.0)
        await asyncio.wait([future])
        assert reported == [Cause.TIMED_OUT]


def engine_of(world):
    """What `send_many` needs of a producer's engine."""
    return SimpleNamespace(
        loop=world.loop,
        accumulator=world.accumulator,
        room=world.room,
        settings=world.settings,
        verdicts=world.verdicts,
        health=world.health,
        transactions=SimpleNamespace(check=lambda: None),
    )


def many(world, records, timeout=None):
    return ship(
        engine_of(world),
        TOPIC,
        records,
        timeout=timeout,
        serialize_key=None,
        serialize_value=None,
    )


async def test_many_records_are_confirmed_batch_by_batch_with_their_offsets():
    async with World(Instance(1)) as world:
        world.instance.batch_size = 1000
        report = await many(world, [b"%03d" % n + b"." * 97 for n in range(50)])
        assert report.ok
        assert report.delivered == 50
        assert (report.offsets[0].first, report.offsets[0].last) == (0, 49)
        assert len(world.instance.taken) > 5
        sent = [value for _, values, _ in world.instance.taken for value in values]
        assert [int(value[:3]) for value in sent] == list(range(50))
        assert world.room.used == 0


async def test_many_records_move_to_the_next_instance_and_each_is_told_what_became_of_it():
    async with World(Instance(1)) as world:
        world.instance.batch_size = 1000
        world.instance.answers = False
        sending = asyncio.create_task(many(world, [b"%03d" % n + b"." * 97 for n in range(30)]))
        await asyncio.sleep(0.01)
        (_, lost, _) = world.instance.taken[0]
        await world.replaced(driver.UnknownProducerId())
        report = await sending
        assert report.delivered == 30 - len(lost)
        assert [failure.value for failure in report.failures] == lost
        assert {f.progress for f in report.failures} == {Progress.MAYBE_APPLIED}
        assert [f.position for f in report.failures] == list(range(len(lost)))
        assert world.room.used == 0


async def test_a_batch_of_many_that_was_never_sent_is_sent_by_the_next_instance():
    async with World(Instance(1)) as world:
        world.instance.batch_size = 1000
        world.instance.answers = False
        sending = asyncio.create_task(many(world, [b"%03d" % n + b"." * 97 for n in range(30)]))
        await asyncio.sleep(0.01)
        (batch,) = world.instance._message_accumulator._batches[TopicPartition(TOPIC, 0)]
        batch.retry_count = 0
        await world.replaced(driver.UnknownProducerId())
        assert (await sending).ok
        sent = [value for _, values, _ in world.instance.taken for value in values]
        assert [int(value[:3]) for value in sent] == list(range(30))
        assert world.room.used == 0


async def test_many_records_end_with_their_time_and_the_report_says_how_far_each_got():
    async with World(Instance(1)) as world:
        world.instance.batch_size = 1000
        world.instance.answers = False
        report = await many(world, (b"." * 100 for _ in range(30)), timeout=2.0)
        assert world.loop.time() == pytest.approx(2.0, abs=0.1)
        travelled = len(report.of(Progress.MAYBE_APPLIED))
        assert travelled == len(world.instance.taken[0][1])
        assert len(report.of(Progress.NOT_SENT)) == 30 - travelled
        assert report.delivered == 0


async def test_many_records_stop_being_taken_when_there_is_no_room_or_kafka_goes_down():
    async with World(Instance(1), buffer_bytes=256 * OVERHEAD) as world:
        world.instance.answers = False
        taken = []

        def source():
            for n in range(1000):
                taken.append(n)
                yield b"x"

        report = await many(world, source())
        assert not report.complete
        assert report.taken == len(taken) < 400
        assert len(report.failures) == len(taken)
    async with World(Instance(1)) as world:

        def failing_source():
            yield from [b"x"] * 1000
            world.health.available = False
            yield from [b"x"] * 5000

        report = await many(world, failing_source())
        assert not report.complete
        assert 1000 <= report.taken < 6000
        assert isinstance(report.failures[-1].error, KafkaUnavailable)
        assert report.of(Progress.NOT_SENT) == list(report.failures)  # some had to wait, too


async def test_cancelled_many_records_free_their_room_and_are_not_sent():
    async with World(Instance(1)) as world:
        world.supervisor.instance = None
        sending = asyncio.create_task(many(world, [b"x"] * 100))
        await asyncio.sleep(1.0)
        assert world.room.used
        sending.cancel()
        await asyncio.wait([sending])
        assert world.room.used == 0
        world.supervisor.instance = world.instance
        world.courier.wake()
        await asyncio.sleep(1.0)
        assert world.instance.taken == []
        assert world.verdicts.ended == {}


async def test_a_batch_that_the_driver_dropped_without_an_answer_is_unknown():
    async with World() as world:
        world.instance.answers = False
        future = await world.send(b"a")
        await asyncio.sleep(0.001)
        world.instance.taken[0][2].cancel()
        with pytest.raises(KafkaOutcomeUnknown):
            await future


async def test_a_line_that_travelled_while_its_topic_was_deleted_is_told_so_too():
    async with World() as world:
        world.instance.answers = False
        travelling = await world.send(b"a", 1)
        await asyncio.sleep(0.001)
        waiting = await world.send(b"b", 1)
        world.instance.cluster.partitions = {}
        held = await world.send(b"c", 0)
        await asyncio.wait([held])
        assert isinstance(held.exception(), driver.UnknownTopicOrPartitionError)
        world.instance.answer(0, driver.UnknownTopicOrPartitionError())
        await asyncio.wait([travelling, waiting])
        assert isinstance(waiting.exception(), driver.UnknownTopicOrPartitionError)
        assert world.loop.time() < 6.0
        assert world.room.used == 0
        asked = world.instance.updates
        await asyncio.sleep(10.0)
        assert world.instance.updates == asked  # nobody waits for a leader any more


async def test_what_waited_for_a_deleted_topic_goes_to_the_one_that_was_made_anew():
    async with World() as world:
        world.instance.answers = False
        await world.send(b"a", 1)
        await asyncio.sleep(0.001)
        waiting = await world.send(b"b", 1)
        world.instance.cluster.partitions = {}
        held = await world.send(b"c", 0)
        await asyncio.wait([held])
        world.instance.cluster.partitions = {0: 1, 1: 1}
        await world.instance._updated()
        world.instance.answers = True
        world.instance.answer(0, driver.UnknownTopicOrPartitionError())
        await asyncio.wait([waiting], timeout=5.0)
        assert waiting.done()
        assert world.room.used == 0


async def test_nobody_asks_for_the_leader_of_a_line_that_nothing_waits_in():
    async with World() as world:
        world.instance.cluster.partitions[0] = -1
        held = await world.send(b"a", 0, lifetime=2.0)
        await asyncio.wait([held])
        await asyncio.sleep(1.0)
        asked = world.instance.updates
        await asyncio.sleep(10.0)
        assert world.instance.updates == asked
        world.instance.cluster.partitions[0] = 1
        await world.instance._updated()
        assert (await (await world.send(b"b", 0))).offset == 0


async def test_the_time_for_many_records_bounds_a_source_that_gives_none():
    async with World() as world:

        async def silent():
            yield b"x"
            await asyncio.Event().wait()

        async with asyncio.timeout(10.0):
            report = await many(world, silent(), timeout=2.0)
        assert world.loop.time() == pytest.approx(2.0, abs=0.1)
        assert (report.delivered, report.taken, report.complete) == (1, 1, False)


async def test_a_deadline_around_many_records_bounds_a_source_that_gives_none():
    async with World() as world:

        async def silent():
            yield b"x"
            await asyncio.Event().wait()

        async with asyncio.timeout(10.0):
            with deadline(2.0):
                report = await many(world, silent())
        assert (report.delivered, report.complete) == (1, False)


async def test_a_time_limit_of_the_source_itself_passes_as_it_is():
    async with World() as world:

        async def late():
            yield b"x"
            raise TimeoutError("of the source")

        with pytest.raises(TimeoutError, match="of the source"):
            await many(world, late(), timeout=5.0)
        assert world.room.used in (0, OVERHEAD + 1)


async def test_records_of_a_source_that_comes_while_there_is_no_room_take_none():
    async with World(Instance(1), buffer_bytes=256 * OVERHEAD, delivery_timeout=3.0) as world:
        world.instance.answers = False

        async def source():
            for _ in range(400):
                yield b""

        used = []

        async def look():
            while True:
                used.append(world.room.used)
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        report = await many(world, source())
        looking.cancel()
        await asyncio.wait([looking])
        assert not report.complete
        assert max(used) <= 256 * OVERHEAD
        assert min(used) >= 0
        assert report.taken == 257
        assert [f.progress for f in report.failures][-1] is Progress.NOT_SENT
        world.instance.answer()
        await asyncio.sleep(0.1)
        assert world.room.used == 0


async def test_what_a_serializer_raised_is_in_the_report_and_not_in_the_log(caplog):
    def refuse(value):
        raise ValueError(f"cannot encode {value}")

    async with World() as world:
        report = await ship(
            engine_of(world),
            TOPIC,
            ["hunter2"],
            timeout=None,
            serialize_key=None,
            serialize_value=refuse,
        )
    assert str(report.failures[0].error) == "cannot encode hunter2"
    assert "1 record was not delivered; the newest: ValueError" in caplog.text
    assert "hunter2" not in caplog.text


async def test_what_was_not_handed_over_in_time_says_why_no_instance_could_take_it():
    async with World() as world:
        world.supervisor.instance = None
        world.verdicts.refusal = lambda: driver.ClusterAuthorizationFailedError("not yours")
        future = await world.send(b"x", lifetime=1.0)
        with pytest.raises(KafkaDeadlineExceeded) as caught:
            await future
        assert "not yours" in caught.value.__notes__[0]
