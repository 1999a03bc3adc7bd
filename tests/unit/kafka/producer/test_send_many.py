"""`send_many` over a fake driver."""

import asyncio

import pytest
from aiokafka import errors as driver

from resilient_io import Progress, deadline
from resilient_io.kafka.errors import (
    KafkaUnavailable,
)
from resilient_io.kafka.producer.records import OVERHEAD


async def test_records_are_confirmed_batch_by_batch_with_their_offsets(components, fake_driver):
    async with components(fake_driver(1)) as producer:
        producer.driver.batch_size = 1000
        report = await producer.send_many([b"%03d" % n + b"." * 97 for n in range(50)])
        assert report.ok
        assert report.delivered == 50
        assert (report.offsets[0].first, report.offsets[0].last) == (0, 49)
        assert len(producer.driver.batches) > 5
        sent = [value for _, values, _ in producer.driver.batches for value in values]
        assert [int(value[:3]) for value in sent] == list(range(50))
        assert producer.buffer.used == 0


async def test_records_move_to_the_next_driver_and_each_outcome_is_reported(
    components, fake_driver
):
    async with components(fake_driver(1)) as producer:
        producer.driver.batch_size = 1000
        producer.driver.answers = False
        sending = asyncio.create_task(
            producer.send_many([b"%03d" % n + b"." * 97 for n in range(30)])
        )
        await asyncio.sleep(0.01)
        (_, lost, _) = producer.driver.batches[0]
        await producer.replace_driver(driver.UnknownProducerId())
        report = await sending
        assert report.delivered == 30 - len(lost)
        assert [failure.value for failure in report.failures] == lost
        assert {f.progress for f in report.failures} == {Progress.MAYBE_APPLIED}
        assert [f.position for f in report.failures] == list(range(len(lost)))
        assert producer.buffer.used == 0


async def test_a_batch_that_was_never_sent_is_sent_by_the_next_driver(components, fake_driver):
    async with components(fake_driver(1)) as producer:
        producer.driver.batch_size = 1000
        producer.driver.answers = False
        sending = asyncio.create_task(
            producer.send_many([b"%03d" % n + b"." * 97 for n in range(30)])
        )
        await asyncio.sleep(0.01)
        producer.driver.set_attempts(0, 0)
        await producer.replace_driver(driver.UnknownProducerId())
        assert (await sending).ok
        sent = [value for _, values, _ in producer.driver.batches for value in values]
        assert [int(value[:3]) for value in sent] == list(range(30))
        assert producer.buffer.used == 0


async def test_records_fail_at_the_time_limit_and_the_report_says_how_far_each_got(
    components, fake_driver
):
    async with components(fake_driver(1)) as producer:
        producer.driver.batch_size = 1000
        producer.driver.answers = False
        report = await producer.send_many((b"." * 100 for _ in range(30)), timeout=2.0)
        assert producer.loop.time() == pytest.approx(2.0, abs=0.1)
        in_flight = len(report.of(Progress.MAYBE_APPLIED))
        assert in_flight == len(producer.driver.batches[0][1])
        assert len(report.of(Progress.NOT_SENT)) == 30 - in_flight
        assert report.delivered == 0


async def test_no_more_records_are_taken_without_room_or_when_kafka_goes_down(
    components, fake_driver
):
    async with components(fake_driver(1), buffer_bytes=256 * OVERHEAD) as producer:
        producer.driver.answers = False
        taken = []

        def source():
            for n in range(1000):
                taken.append(n)
                yield b"x"

        report = await producer.send_many(source())
        assert not report.complete
        assert report.taken == len(taken) < 400
        assert len(report.failures) == len(taken)
    async with components(fake_driver(1)) as producer:

        def failing_source():
            yield from [b"x"] * 1000
            producer.health.available = False
            yield from [b"x"] * 5000

        report = await producer.send_many(failing_source())
        assert not report.complete
        assert 1000 <= report.taken < 6000
        assert isinstance(report.failures[-1].error, KafkaUnavailable)
        assert report.of(Progress.NOT_SENT) == list(report.failures)  # some had to wait, too


async def test_cancelled_records_free_their_room_and_are_not_sent(components, fake_driver):
    async with components(fake_driver(1)) as producer:
        producer.supervisor.driver = None
        sending = asyncio.create_task(producer.send_many([b"x"] * 100))
        await asyncio.sleep(1.0)
        assert producer.buffer.used
        sending.cancel()
        await asyncio.wait([sending])
        assert producer.buffer.used == 0
        producer.supervisor.driver = producer.driver
        producer.sender.resume()
        await asyncio.sleep(1.0)
        assert producer.driver.batches == []
        assert producer.errors.failed == {}


async def test_the_timeout_limits_a_source_that_yields_nothing(components):
    async with components() as producer:

        async def silent():
            yield b"x"
            await asyncio.Event().wait()

        async with asyncio.timeout(10.0):
            report = await producer.send_many(silent(), timeout=2.0)
        assert producer.loop.time() == pytest.approx(2.0, abs=0.1)
        assert (report.delivered, report.taken, report.complete) == (1, 1, False)


async def test_an_enclosing_deadline_limits_a_source_that_yields_nothing(components):
    async with components() as producer:

        async def silent():
            yield b"x"
            await asyncio.Event().wait()

        async with asyncio.timeout(10.0):
            with deadline(2.0):
                report = await producer.send_many(silent())
        assert (report.delivered, report.complete) == (1, False)


async def test_a_timeout_error_of_the_source_is_raised_unchanged(components):
    async with components() as producer:

        async def late():
            yield b"x"
            raise TimeoutError("of the source")

        with pytest.raises(TimeoutError, match="of the source"):
            await producer.send_many(late(), timeout=5.0)
        assert producer.buffer.used in (0, OVERHEAD + 1)


async def test_records_of_an_async_source_wait_for_room(components, fake_driver):
    async with components(
        fake_driver(1), buffer_bytes=256 * OVERHEAD, delivery_timeout=3.0
    ) as producer:
        producer.driver.answers = False

        async def source():
            for _ in range(400):
                yield b""

        used = []

        async def look():
            while True:
                used.append(producer.buffer.used)
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        report = await producer.send_many(source())
        looking.cancel()
        await asyncio.wait([looking])
        assert not report.complete
        assert max(used) <= 256 * OVERHEAD
        assert min(used) >= 0
        assert report.taken == 257
        assert [f.progress for f in report.failures][-1] is Progress.NOT_SENT
        producer.driver.answer()
        await asyncio.sleep(0.1)
        assert producer.buffer.used == 0


async def test_an_error_of_a_serializer_is_in_the_report_and_not_in_the_log(components, caplog):
    def refuse(value):
        raise ValueError(f"cannot encode {value}")

    async with components() as producer:
        report = await producer.send_many(["hunter2"], serialize_value=refuse)
    assert str(report.failures[0].error) == "cannot encode hunter2"
    assert "1 record was not delivered; last error: ValueError" in caplog.text
    assert "hunter2" not in caplog.text
