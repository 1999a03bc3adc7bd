"""The accumulator: deadlines, buffer memory, lingering, flushing and calls that wait."""

import asyncio

import pytest
from aiokafka import errors as driver

from resilient_io import Cause, Progress, RetryPolicy, deadline
from resilient_io.kafka.errors import (
    KafkaDeadlineExceeded,
    KafkaOutcomeUnknown,
    KafkaOverloaded,
    KafkaUnavailable,
)
from resilient_io.kafka.producer.records import OVERHEAD
from resilient_io.kafka.producer.transaction_state import OpenTransaction


async def test_a_record_that_waits_fails_exactly_at_its_deadline_as_not_sent(components):
    async with components() as producer:
        producer.supervisor.driver = None
        future = await producer.send(b"x", lifetime=3.0)
        began = producer.loop.time()
        with pytest.raises(KafkaDeadlineExceeded) as caught:
            await future
        assert producer.loop.time() - began == pytest.approx(3.0)
        assert caught.value.progress is Progress.NOT_SENT
        assert producer.buffer.used == 0
        assert not producer.topic.queues[0].entries


async def test_deadlines_are_kept_in_any_order(components):
    async with components() as producer:
        producer.supervisor.driver = None
        ends = {}
        for seconds in (5.0, 1.0, 3.0, 0.5, 4.0):
            future = await producer.send(b"x", lifetime=seconds)
            future.add_done_callback(
                lambda _, seconds=seconds: ends.setdefault(seconds, producer.loop.time())
            )
        began = producer.loop.time()
        await asyncio.sleep(6)
        assert list(ends) == [0.5, 1.0, 3.0, 4.0, 5.0]
        for seconds, at in ends.items():
            assert at - began == pytest.approx(seconds, abs=0.02)
        assert producer.buffer.used == 0


async def test_a_sent_record_becomes_unknown_and_its_queue_waits_for_the_answer(components):
    async with components() as producer:
        producer.driver.answers = False
        with deadline(1.0):
            in_flight = await producer.send(b"a")
        await asyncio.sleep(0.1)
        waiting = await producer.send(b"b")
        with pytest.raises(KafkaOutcomeUnknown):
            await in_flight
        assert producer.loop.time() == pytest.approx(1.0)
        assert len(producer.driver.batches) == 1
        producer.driver.answer()
        await asyncio.sleep(0.001)
        producer.driver.answer()
        assert (await waiting).offset == 1
        assert producer.supervisor.errors == []


async def test_a_batch_is_complete_before_a_task_that_waits_for_one_record_continues(components):
    """Otherwise a task that waits for all of them in turn would continue for each."""
    async with components() as producer:
        futures = [await producer.send(b"%d" % n) for n in range(5)]
        await futures[0]
        assert [future.done() and future.result().offset for future in futures] == [0, 1, 2, 3, 4]


async def test_cancelled_records_are_never_sent(components):
    async with components() as producer:
        futures = [await producer.send(b"%d" % n) for n in range(5)]
        for future in futures[1:4]:
            future.cancel()
        await asyncio.gather(futures[0], futures[4])
        assert [values for _, values, _ in producer.driver.batches] == [[b"0", b"4"]]
        assert producer.buffer.used == 0


async def test_the_event_loop_runs_after_each_burst_and_room_is_granted_in_order(components):
    async with components(burst=2 * OVERHEAD, buffer_bytes=256 * OVERHEAD) as producer:
        producer.driver.answers = False
        done = []

        async def fill():
            for n in range(300):
                await producer.send(b"")
                done.append(n)

        filling = asyncio.create_task(fill())
        await asyncio.sleep(1.0)
        assert len(done) == 256
        assert producer.buffer.callers_waiting == 1
        assert producer.driver.batches  # sent while the buffer was being filled
        producer.driver.answers = True
        producer.driver.answer()
        await filling
        await producer.accumulator.flush()
        assert producer.buffer.used == 0


async def test_a_record_without_room_in_time_is_overloaded_and_takes_none(components):
    policy = RetryPolicy(deadline=2.0)
    async with components(buffer_bytes=256 * OVERHEAD, policy=policy) as producer:
        producer.driver.answers = False
        for _ in range(256):
            await producer.send(b"")
        began = producer.loop.time()
        with pytest.raises(KafkaOverloaded):
            await producer.send(b"")
        assert producer.loop.time() - began == pytest.approx(2.0)
        assert producer.buffer.used == 256 * OVERHEAD


async def test_room_of_cancelled_records_is_reclaimed_when_needed(components):
    async with components(buffer_bytes=256 * OVERHEAD) as producer:
        producer.supervisor.driver = None
        futures = [await producer.send(b"") for _ in range(256)]
        for future in futures:
            future.cancel()
        await producer.send(b"")
        assert producer.buffer.used == OVERHEAD


async def test_calls_while_kafka_is_down_fail_immediately_or_wait_as_the_policy_says(components):
    async with components() as producer:
        producer.health.available = False
        with pytest.raises(KafkaUnavailable) as caught:
            await producer.send(b"x")
        assert caught.value.progress is Progress.NOT_SENT
    async with components(policy=RetryPolicy(while_down="wait")) as producer:
        producer.health.available = False
        future = await producer.send(b"x")
        await asyncio.sleep(1.0)
        assert not producer.driver.batches
        producer.health.available = True
        producer.sender.resume()
        assert (await future).offset == 0


async def test_lingering_waits_for_more_records_until_a_batch_is_full(components):
    async with components(linger=0.5, full=10 * OVERHEAD) as producer:
        began = producer.loop.time()
        await (await producer.send(b""))
        assert producer.loop.time() - began == pytest.approx(0.51)
        began = producer.loop.time()
        futures = [await producer.send(b"") for _ in range(10)]
        await futures[-1]
        assert producer.loop.time() - began == pytest.approx(0.01)
        assert len(producer.driver.batches) == 2


async def test_flush_waits_only_for_earlier_records(components):
    async with components() as producer:
        producer.driver.answers = False
        await producer.send(b"a")
        flushing = asyncio.create_task(producer.accumulator.flush())
        await asyncio.sleep(0.001)
        await producer.send(b"b")
        producer.driver.answer()
        await asyncio.sleep(0.001)
        assert flushing.done()
        assert len(producer.driver.batches) == 2


async def test_failed_records_are_logged_in_one_line_for_many(components, caplog):
    async with components() as producer:
        producer.supervisor.driver = None
        for _ in range(50):
            await producer.send(b"x", lifetime=1.0)
        await asyncio.sleep(2)
        assert producer.errors.failed == {"KafkaDeadlineExceeded": 50}
        assert len(caplog.records) == 1


async def test_a_record_that_waits_for_room_while_its_transaction_ends_stays_out_of_the_next(
    components,
):
    async with components(buffer_bytes=256 * OVERHEAD) as producer:
        producer.transaction.open(OpenTransaction())
        producer.driver.answers = False
        for _ in range(256):
            await producer.send(b"")
        late = asyncio.create_task(producer.send(b"late"))
        await asyncio.sleep(0.01)
        producer.transaction.open(OpenTransaction())
        producer.driver.answer()
        with pytest.raises(driver.IllegalOperation):
            await late
        await producer.accumulator.flush()
        assert producer.buffer.used == 0


async def test_a_batch_without_an_answer_is_reported_to_health(components):
    reported = []
    async with components() as producer:
        producer.health.failed = lambda cause, detail: reported.append(cause)
        producer.driver.answers = False
        future = await producer.send(b"x", lifetime=0.5)
        await asyncio.wait([future])
        assert reported == []
        producer.driver.answer()
        await asyncio.sleep(0.01)
        future = await producer.send(b"x", lifetime=3.0)
        await asyncio.wait([future])
        assert reported == [Cause.TIMED_OUT]


async def test_a_late_record_says_why_no_driver_was_in_service(components):
    async with components() as producer:
        producer.supervisor.driver = None
        producer.supervisor.permanent_error = driver.ClusterAuthorizationFailedError("not yours")
        future = await producer.send(b"x", lifetime=1.0)
        with pytest.raises(KafkaDeadlineExceeded) as caught:
            await future
        assert "not yours" in caught.value.__notes__[0]
