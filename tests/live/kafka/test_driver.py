"""Starting and stopping aiokafka drivers on real brokers, within a time limit."""

import asyncio
import contextlib
import gc
import warnings

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from resilient_io.kafka.driver import DriverClosed, connections_of, start_driver, stop_driver
from resilient_io.kafka.log_filter import DriverLog
from resilient_io.testing import cancel_everywhere


def _quiet():
    return DriverLog().context()


def _producer(server, **options):
    return AIOKafkaProducer(
        bootstrap_servers=server.bootstrap_servers, **{"enable_idempotence": True, **options}
    )


def _consumer(server, *topics, **options):
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=server.bootstrap_servers,
        **{"enable_auto_commit": False, "session_timeout_ms": 6000, **options},
    )


async def _send(producer, topic, partition=0):
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=b"x")
    return await producer.send_batch(batch, topic, partition=partition)


def _where(task):
    """Return the lines on which a task's coroutines wait, outermost first."""
    lines, coroutine = [], task.get_coro()
    while getattr(coroutine, "cr_frame", None) is not None:
        lines.append((coroutine.cr_code.co_name, coroutine.cr_frame.f_lineno))
        coroutine = coroutine.cr_await
    return tuple(lines)


async def _start_and_cancel(instance, point):
    """Cancel a start at the `point`-th line that the driver's own `start` waits on."""
    starting = asyncio.create_task(start_driver(instance, 10, context=_quiet()))
    await asyncio.sleep(0)
    (inner,) = [t for t in asyncio.all_tasks() if t.get_name() == "resilient-io kafka start"]
    seen, where = 0, None
    while not starting.done():
        now = _where(inner)
        if now != where:
            where, seen = now, seen + 1
            if seen == point:
                starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    async with asyncio.timeout(1):
                        await starting
                return where
        await asyncio.sleep(0)
    await starting
    return None


@pytest.mark.parametrize("kind", ["idempotent", "transactional", "group", "no group", "joining"])
async def test_start_cancelled_at_any_point_leaves_no_task_and_no_socket(shared_kafka, name, kind):
    await shared_kafka.create_topic(name)

    def build():
        match kind:
            case "idempotent":
                return _producer(shared_kafka)
            case "transactional":
                return _producer(shared_kafka, transactional_id=name)
            case "group":
                return _consumer(shared_kafka, group_id=name)
            case "joining":
                return _consumer(shared_kafka, name, group_id=name)
            case _:
                return _consumer(shared_kafka)

    points = []
    while not points or points[-1] is not None:
        instance = build()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before = asyncio.all_tasks()
            points.append(await _start_and_cancel(instance, len(points) + 1))
            if points[-1] is None:
                assert await stop_driver(instance, 5.0, context=_quiet())
            assert asyncio.all_tasks() == before, points[-1]
            assert not any(c.connected() for c in connections_of(instance))
            instance = None
            gc.collect()  # a resource that was not closed would warn now
    assert len(points) > 5


async def test_consumer_stopped_while_joining_leaves_its_group(shared_kafka, name, members):
    await shared_kafka.create_topic(name)
    held = _consumer(shared_kafka, name, group_id=name)  # while it is there, joining takes time
    await start_driver(held, 20, context=_quiet())
    for pause in (0, 0.005, 0.02, 0.5):
        consumer = _consumer(shared_kafka, group_id=name)
        await start_driver(consumer, 20, context=_quiet())
        consumer.subscribe([name])
        await asyncio.sleep(pause)
        assert await stop_driver(consumer, 5.0, context=_quiet()), pause
    await stop_driver(held, 10.0, context=_quiet())
    assert (await members(shared_kafka, name))[1] == []


async def test_gracefully_stopped_consumer_has_left_its_group(shared_kafka, name, members):
    await shared_kafka.create_topic(name)
    consumer = _consumer(shared_kafka, name, group_id=name)
    await start_driver(consumer, 20, context=_quiet())
    assert len((await members(shared_kafka, name))[1]) == 1
    assert await stop_driver(consumer, 5.0, context=_quiet())
    assert (await members(shared_kafka, name))[1] == []


async def test_start_that_hangs_ends_within_its_timeout_and_leaves_nothing(kafka_server):
    kafka_server.freeze()
    loop = asyncio.get_running_loop()
    for instance in (_producer(kafka_server), _consumer(kafka_server, group_id="g")):
        began = loop.time()
        with pytest.raises(TimeoutError):
            await start_driver(instance, 0.5, context=_quiet())
        assert loop.time() - began < 1.5
        assert connections_of(instance) == []
    kafka_server.thaw()


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_stop_ends_within_its_timeout_although_the_broker_is_gone(kafka_server, name, fault):
    loop = asyncio.get_running_loop()
    await kafka_server.create_topic(name, partitions=2)
    producer = _producer(kafka_server)
    await kafka_server.create_topic(f"{name}-empty")
    consumer = _consumer(kafka_server, f"{name}-empty", group_id=name)
    plain = _consumer(
        kafka_server,
        name,
        group_id=f"{name}-2",
        enable_auto_commit=True,
        auto_offset_reset="earliest",
    )
    for instance in (producer, consumer, plain):
        await start_driver(instance, 20, context=_quiet())
    await (await _send(producer, name))
    assert await plain.getmany(timeout_ms=5000)  # so that it has something to commit
    kafka_server.kill() if fault == "killed" else kafka_server.freeze()
    doomed = [await _send(producer, name), await _send(producer, name, 1)]
    reading = asyncio.create_task(consumer.getmany(timeout_ms=60_000))
    committing = asyncio.create_task(plain.commit(), context=_quiet())
    await asyncio.sleep(0.5)
    for instance in (producer, consumer, plain):
        began = loop.time()
        await stop_driver(instance, 1.0, context=_quiet())
        assert loop.time() - began < 2.5
        assert all(not connection.connected() for connection in connections_of(instance))
    # Nothing waits on a stopped driver.
    async with asyncio.timeout(2):
        for future in doomed:
            with pytest.raises(DriverClosed):
                await future
        assert await reading == {}
        with pytest.raises(KafkaError):
            await committing


async def test_late_call_on_a_stopped_driver_is_refused_and_connects_to_nothing(shared_kafka, name):
    await shared_kafka.create_topic(name)
    producer = _producer(shared_kafka)
    consumer = _consumer(shared_kafka, name, group_id=name)
    for instance in (producer, consumer):
        await start_driver(instance, 20, context=_quiet())
        await stop_driver(instance, 5.0, context=_quiet())
    async with asyncio.timeout(2):
        with pytest.raises(KafkaError):
            await _send(producer, name)
        with pytest.raises(KafkaError):
            await producer.partitions_for(f"{name}-other")
        with pytest.raises(KafkaError):
            await consumer.commit(dict.fromkeys(consumer.assignment(), 1))
        with pytest.raises(KafkaError):
            await producer.client.send(1, None)
    assert not any(c.connected() for i in (producer, consumer) for c in connections_of(i))


async def test_cancelled_stop_leaves_nothing(kafka_server, name):
    await kafka_server.create_topic(name)

    @contextlib.asynccontextmanager
    async def running():
        producer = _producer(kafka_server)
        await start_driver(producer, 20, context=_quiet())
        future = await _send(producer, name)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            yield producer
        finally:
            await stop_driver(producer, 0, context=_quiet())

    report = await cancel_everywhere(
        lambda producer: stop_driver(producer, 5, context=_quiet()), setup=running
    )
    report.assert_clean()
    assert report.complete
