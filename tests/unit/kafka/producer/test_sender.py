"""The sender: batches in flight, their outcomes, and the change from one driver to the next."""

import asyncio
import traceback

import pytest
from aiokafka import errors as kafka_errors

from resilient_io import Progress
from resilient_io.errors import Closed
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.driver import DriverClosed
from resilient_io.kafka.errors import (
    KafkaOutcomeUnknown,
    KafkaUnavailable,
)
from resilient_io.kafka.producer.records import OVERHEAD, OutgoingRecord


async def test_records_of_one_iteration_form_a_batch_and_later_ones_wait_for_its_answer(components):
    async with components() as producer:
        first = [await producer.send(b"%d" % n) for n in range(3)]
        await asyncio.sleep(0.001)
        second = [await producer.send(b"%d" % n) for n in range(3, 5)]
        assert len(producer.driver.batches) == 1
        assert [(await future).offset for future in first + second] == [0, 1, 2, 3, 4]
        assert [values for _, values, _ in producer.driver.batches] == [
            [b"0", b"1", b"2"],
            [b"3", b"4"],
        ]
        assert producer.errors.delivered == 5


async def test_partitions_do_not_wait_for_each_other(components):
    async with components() as producer:
        producer.driver.answers = False
        await producer.send(b"a", 0)
        await asyncio.sleep(0.001)
        await producer.send(b"b", 1)
        await asyncio.sleep(0.001)
        assert [batch[0] for batch in producer.driver.batches] == [0, 1]
        assert len(producer.sender.in_flight) == 2


async def test_waiting_and_unsent_records_move_to_the_next_driver_in_order(components):
    async with components() as producer:
        producer.driver.answers = False
        futures = [await producer.send(b"%d" % n) for n in range(3)]
        await asyncio.sleep(0.001)
        futures += [await producer.send(b"%d" % n) for n in range(3, 6)]
        producer.supervisor.driver = None
        producer.driver.answer(error=DriverClosed("ended", sent=False))
        await asyncio.sleep(0)
        await producer.replace_driver()
        assert [(await future).offset for future in futures] == list(range(6))
        assert [values for _, values, _ in producer.driver.batches] == [
            [b"%d" % n for n in range(6)]
        ]


async def test_records_of_an_ended_driver_become_unknown_before_the_next_one_sends(components):
    async with components() as producer:
        producer.driver.answers = False
        in_flight = await producer.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await producer.send(b"b")
        await producer.replace_driver(kafka_errors.OutOfOrderSequenceNumber())
        assert isinstance(in_flight.exception(), KafkaOutcomeUnknown)
        assert (await waiting).offset == 0
        assert [values for _, values, _ in producer.driver.batches] == [[b"b"]]


async def test_a_queue_without_a_leader_holds_only_itself_and_asks_until_there_is_one(components):
    async with components() as producer:
        producer.driver.cluster.partitions[0] = -1
        held = await producer.send(b"a", 0)
        assert (await producer.send(b"b", 1)) is not None
        await asyncio.sleep(1.0)
        assert [batch[0] for batch in producer.driver.batches] == [1]
        assert 3 <= producer.driver.updates <= 6
        producer.driver.cluster.partitions[0] = 2
        assert (await held).offset == 0


async def test_answers_replace_a_probe_only_if_all_leaders_answered(components):
    async with components() as producer:
        producer.driver.cluster.partitions = {0: 1, 1: 2}

        async def talk(*partitions):
            producer.probe.replied_at.clear()
            for _ in range(40):
                futures = [await producer.send(b"x", partition) for partition in partitions]
                await asyncio.gather(*futures)
                await asyncio.sleep(0.1)
            return len(producer.probe.replied_at)

        assert 3 <= await talk(0, 1) <= 6
        await talk(0)
        assert await talk(0) == 0
        producer.driver.cluster.partitions = {0: 1, 1: 1}
        assert 3 <= await talk(0) <= 6
        producer.driver.cluster.partitions = {0: 1, 1: -1}
        await talk(0)
        assert await talk(0) == 0


async def test_a_full_batch_leaves_the_rest_for_the_next(components):
    async with components() as producer:
        producer.driver.batch_size = 1000
        futures = [await producer.send(b"x" * 300) for _ in range(7)]
        await asyncio.gather(*futures)
        assert [len(values) for _, values, _ in producer.driver.batches] == [3, 3, 1]


async def test_a_fatal_error_has_the_driver_replaced_and_reaches_the_callers(components):
    async with components() as producer:
        producer.driver.answers = False
        future = await producer.send(b"a")
        await asyncio.sleep(0.001)
        error = kafka_errors.OutOfOrderSequenceNumber()
        producer.driver.answer(error=error)
        with pytest.raises(KafkaUnavailable) as caught:
            await future
        assert caught.value.progress is Progress.REFUSED  # at its only attempt
        assert producer.supervisor.errors == [error]


async def test_a_fatal_error_after_several_attempts_makes_the_outcome_unknown(components):
    async with components() as producer:
        producer.driver.answers = False
        future = await producer.send(b"a")
        await asyncio.sleep(0.001)
        producer.driver.set_attempts(0, 2)
        producer.driver.answer(error=kafka_errors.UnknownProducerId())
        with pytest.raises(KafkaOutcomeUnknown):
            await future


async def test_a_doubtful_sequence_has_the_driver_replaced_once_nothing_is_in_flight(components):
    async with components() as producer:
        producer.driver._txn_manager = object()
        producer.driver.answers = False
        doubtful, other = await producer.send(b"a", 0), await producer.send(b"b", 1)
        await asyncio.sleep(0.001)
        producer.driver.answer(0, kafka_errors.UnknownError())
        await asyncio.sleep(0.001)
        assert isinstance(doubtful.exception(), KafkaOutcomeUnknown)
        waiting = await producer.send(b"c", 0)
        await asyncio.sleep(1.0)
        assert (
            producer.supervisor.errors == []
        )  # otherwise the outcome of the other one would be unknown
        assert len(producer.driver.batches) == 2
        producer.driver.answer(1)
        assert (await other).offset == 0
        assert len(producer.supervisor.errors) == 1
        await producer.replace_driver()
        assert (await waiting).offset == 0


async def test_records_that_the_driver_did_not_accept_are_passed_again_in_order(components):
    async with components() as producer:
        failures = [kafka_errors.KafkaTimeoutError(), kafka_errors.KafkaTimeoutError()]
        send_batch = producer.driver.send_batch

        async def refuse(batch, topic, *, partition):
            if failures:
                raise failures.pop()
            return await send_batch(batch, topic, partition=partition)

        producer.driver.send_batch = refuse
        futures = [await producer.send(b"%d" % n) for n in range(3)]
        assert [(await future).offset for future in futures] == [0, 1, 2]


async def test_closing_distinguishes_waiting_records_from_those_in_flight(components):
    async with components() as producer:
        producer.driver.answers = False
        in_flight = await producer.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await producer.send(b"b", key=b"k")
    assert isinstance(in_flight.exception(), KafkaOutcomeUnknown)
    assert isinstance(waiting.exception(), Closed)
    assert producer.buffer.used == len(b"a") + OVERHEAD  # held until its answer


async def test_a_broken_driver_gets_no_more_batches(components):
    async with components() as producer:
        producer.supervisor.driver_failed = lambda driver, error: (
            None
        )  # it takes one iteration to act
        producer.driver.answers = False
        first = await producer.send(b"a")
        await asyncio.sleep(0.001)
        waiting = await producer.send(b"b")
        producer.driver.answer(error=kafka_errors.OutOfOrderSequenceNumber())
        await asyncio.sleep(0.01)
        assert first.exception() is not None
        assert len(producer.driver.batches) == 1
        await producer.replace_driver()
        assert (await waiting).offset == 0


async def test_a_batch_that_the_driver_dropped_without_an_answer_is_unknown(components):
    async with components() as producer:
        producer.driver.answers = False
        future = await producer.send(b"a")
        await asyncio.sleep(0.001)
        producer.driver.batches[0][2].cancel()
        with pytest.raises(KafkaOutcomeUnknown):
            await future


async def test_the_leader_of_an_empty_queue_is_not_searched(components):
    async with components() as producer:
        producer.driver.cluster.partitions[0] = -1
        held = await producer.send(b"a", 0, lifetime=2.0)
        await asyncio.wait([held])
        await asyncio.sleep(1.0)
        asked = producer.driver.updates
        await asyncio.sleep(10.0)
        assert producer.driver.updates == asked
        producer.driver.cluster.partitions[0] = 1
        await producer.driver.update_metadata()
        assert (await (await producer.send(b"b", 0))).offset == 0


@pytest.mark.parametrize(
    "kind",
    [
        kafka_errors.UnknownError,
        kafka_errors.TopicAuthorizationFailedError,
        kafka_errors.NotEnoughReplicasError,
        kafka_errors.OutOfOrderSequenceNumber,
        AssertionError,
    ],
)
async def test_the_error_of_a_batch_contains_no_secret(kind, components, caplog):
    target = KafkaTarget(
        "broker:9092",
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_plain_username": "user",
            "sasl_plain_password": "canary-s3cret",
        },
    )
    async with components(target=target) as producer:
        producer.driver.answers = False
        future = await producer.send(b"x")
        await asyncio.sleep(0.001)
        producer.driver.answer(error=kind("wrong password canary-s3cret"))
        await asyncio.wait([future])
        shown = "".join(traceback.format_exception(future.exception()))
    assert "wrong password" in shown
    assert "canary-s3cret" not in shown + caplog.text


async def waiting_callers(producer, count):
    """Start tasks that each wait for one record of one batch; return them and their results."""
    producer.driver.answers = False
    done = []

    async def call(number):
        done.append((await (await producer.send(b"%d" % number))).offset)
        return number

    tasks = [asyncio.create_task(call(number)) for number in range(count)]
    await asyncio.sleep(0.001)
    return tasks, done


@pytest.mark.parametrize("direct", [True, False])
async def test_callers_of_a_confirmed_batch_continue_in_order(components, monkeypatch, direct):
    loop = asyncio.get_running_loop()
    if not direct:
        monkeypatch.setattr(loop, "get_debug", lambda: True)
    async with components() as producer:
        tasks, done = await waiting_callers(producer, 5)
        tasks[2].cancel()
        await asyncio.sleep(0)
        producer.driver.answer()
        await asyncio.sleep(0)  # aiokafka's answer is received
        assert done == ([0, 1, 3, 4] if direct else [])
        await asyncio.wait(tasks)
        assert done == [0, 1, 3, 4]
        assert [task.cancelled() for task in tasks] == [False, False, True, False, False]


async def test_a_caller_that_continues_may_send_cancel_and_close(components):
    async with components() as producer:
        tasks, done = await waiting_callers(producer, 3)
        sent = []

        async def act():
            await tasks[0]
            sent.append(await producer.send(b"next"))
            tasks[2].cancel()

        acting = asyncio.create_task(act())
        await asyncio.sleep(0)
        producer.driver.answers = True
        producer.driver.answer(0)
        await asyncio.wait([acting, *tasks])
        assert (await sent[0]).offset == 3
        assert done[:2] == [0, 1]
        assert producer.sender.in_flight == {}


async def test_records_of_send_many_count_in_the_offsets_of_their_batch(components):
    async with components() as producer:
        await producer.send(b"in flight")
        await asyncio.sleep(0.001)
        before = await producer.send(b"1")
        records = [OutgoingRecord(value=b"2", partition=0), OutgoingRecord(value=b"3", partition=0)]
        many = asyncio.create_task(producer.send_many(records))
        await asyncio.sleep(0.001)
        after = await producer.send(b"4")
        report = await many
        assert [(await before).offset, (await after).offset] == [1, 4]
        assert (report.offsets[0].first, report.offsets[0].last) == (2, 3)
        assert [values for _, values, _ in producer.driver.batches][1:] == [
            [b"1", b"2", b"3", b"4"]
        ]


async def test_batches_grow_again_after_the_topic_accepts_larger_ones(components):
    async with components(full=1 << 20) as producer:
        driver, limit = producer.driver, 4
        send_batch = driver.send_batch

        async def send_limited(batch, topic, *, partition):
            if len(batch.values) <= limit:
                return await send_batch(batch, topic, partition=partition)
            refused.append(len(batch.values))
            driver.answers = False
            future = await send_batch(batch, topic, partition=partition)
            driver.answers = True
            driver.answer(error=kafka_errors.MessageSizeTooLargeError())
            driver.batches.pop()
            return future

        driver.send_batch = send_limited
        refused = []

        async def largest():
            """Return the largest batch of 64 records."""
            del driver.batches[:], refused[:]
            await asyncio.gather(*[await producer.send(b"x" * 100) for _ in range(64)])
            return max(len(values) for _, values, _ in driver.batches)

        assert await largest() <= 4
        assert len(refused) > 1
        assert await largest() <= 4
        assert not refused
        sizes = []
        for _ in range(60):  # within 10 minutes, larger batches are tried a few times
            await asyncio.sleep(10)
            assert await largest() <= 4
            sizes += refused
        assert 1 <= len(sizes) <= 6
        limit = 1000
        await asyncio.sleep(3600)
        await largest()
        assert await largest() == 64
        assert all(queue.size_limit is None for queue in producer.metadata.queues)
