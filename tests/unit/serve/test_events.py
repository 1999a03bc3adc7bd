"""The event stream: on every change, once per second, and no work without readers."""

import asyncio
import json

import pytest

from resilient_io.health import Cause, Dependency, HealthMonitor, State
from resilient_io.serve import events
from resilient_io.serve.endpoints import Endpoints
from resilient_io.serve.events import StatusBroadcast


@pytest.fixture
def stream(service):
    """Return streams that their server closes."""
    return Endpoints(service.monitor, closes_streams=True).events


@pytest.fixture
def other_server(service):
    """Return streams that another server carries."""
    return Endpoints(service.monitor).events


def data_of(chunk):
    for line in chunk.decode().splitlines():
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))
    raise AssertionError(chunk)


async def test_reader_gets_the_current_status_immediately_and_a_retry_time(stream):
    with stream.open() as reader:
        first = await anext(reader)
    assert first.startswith(b"retry: 1000\n\nevent: status\ndata: {")
    assert first.endswith(b"}\n\n")
    assert data_of(first)["ready"] is True


async def test_reader_gets_an_event_every_second_while_nothing_changes(stream):
    loop = asyncio.get_running_loop()
    with stream.open() as reader:
        times = []
        for _ in range(4):
            await anext(reader)
            times.append(loop.time())
    assert times == pytest.approx([0.0, 1.0, 2.0, 3.0])


async def test_change_is_sent_immediately(stream, service):
    loop = asyncio.get_running_loop()
    with stream.open() as reader:
        await anext(reader)
        loop.call_later(0.3, service.put, service.redis, State.DOWN)
        event = data_of(await anext(reader))
        assert loop.time() == pytest.approx(0.3)
    assert (event["ready"], event["state"]) == (False, "down")


async def test_slow_reader_gets_only_the_latest_event_and_delays_no_other(stream, service):
    seen = []

    async def read_all():
        with stream.open() as fast:
            seen.extend([data_of(chunk)["state"] async for chunk in fast])

    reading = asyncio.create_task(read_all())
    with stream.open() as slow:
        await anext(slow)
        for _ in range(20):
            await asyncio.sleep(0.1)
            service.redis.part_lost("connection", Cause.RESET)
            await asyncio.sleep(0.1)
            service.redis.part_back("connection")
        await asyncio.sleep(0.05)
        assert data_of(await anext(slow))["state"] == "up"
        began = asyncio.get_running_loop().time()
        await anext(slow)  # waits for the next event: nothing was queued
        assert asyncio.get_running_loop().time() > began
    stream.close()
    await reading
    assert seen.count("degraded") >= 20


async def test_event_is_built_once_for_all_readers_and_never_without_readers(service):
    made = []

    def status():
        made.append(1)
        return "{}"

    stream = StatusBroadcast(service.monitor, status, closes_streams=True)
    await asyncio.sleep(10)
    assert made == []
    with stream.open() as one, stream.open() as two:
        await anext(one)
        await anext(two)
        assert len(made) == 1
        await asyncio.gather(anext(one), anext(two))
        assert len(made) == 2
    await asyncio.sleep(10)
    assert len(made) == 2


async def test_timer_stops_when_the_last_reader_has_left(stream, service):
    with stream.open() as reader:
        await anext(reader)
    assert stream._timer is None
    assert service.monitor._subscriptions._all == []


async def test_reader_ends_immediately_when_its_client_disconnects(stream):
    with stream.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.1, reader.end)
        assert [chunk async for chunk in reader] == []
    assert asyncio.get_running_loop().time() == pytest.approx(0.1)


async def test_closing_ends_every_reader_and_accepts_no_more(stream):
    with stream.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.1, stream.close)
        assert [chunk async for chunk in reader] == []
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)
    assert stream.full


async def test_closing_aborts_a_reader_that_is_sending(stream):
    cut = []
    with (
        stream.open(lambda: cut.append("sending")) as sending,
        stream.open(lambda: cut.append("waiting")) as waiting,
    ):
        await anext(sending)
        await anext(waiting)
        task = asyncio.create_task(anext(waiting, None))
        await asyncio.sleep(0)
        stream.close()
        assert await task is None
    assert cut == ["sending"]


async def test_draining_does_not_end_streams_that_the_server_closes(stream, service):
    with stream.open() as reader:
        await anext(reader)
        service.monitor.drain()
        assert data_of(await anext(reader))["draining"] is True
        await anext(reader)
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)


async def test_stream_on_another_server_ends_after_the_event_about_draining(other_server, service):
    with other_server.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.2, service.monitor.drain)
        assert [data_of(chunk)["draining"] async for chunk in reader] == [True]
        assert asyncio.get_running_loop().time() == pytest.approx(0.2)
    with other_server.open() as again:  # a reader that reconnects gets one event
        assert [data_of(chunk)["draining"] async for chunk in again] == [True]


async def test_stream_on_another_server_has_a_bounded_lifetime(other_server):
    with other_server.open() as reader:
        assert len([chunk async for chunk in reader]) in (11, 12)
    took = asyncio.get_running_loop().time()
    assert events.STREAM_SECONDS <= took < events.STREAM_SECONDS + 1.1 * events.INTERVAL


async def test_number_of_readers_is_bounded(service):
    answers = Endpoints(service.monitor)
    readers = [answers.events.open() for _ in range(events.MAX_READERS)]
    rejected = answers.answer("/events", "GET")
    assert rejected.status == 503
    assert dict(rejected.headers)["retry-after"] == "5"
    readers[0].__exit__(None, None, None)
    assert answers.answer("/events", "GET").status == 200
    for reader in readers[1:]:
        reader.__exit__(None, None, None)


def test_readers_of_a_closed_event_loop_are_removed():
    async def read():
        with stream.open() as reader:
            await anext(reader)
            await anext(reader)

    async def leave_one():
        await anext(stream.open())

    monitor = HealthMonitor(Dependency("redis"))
    stream = StatusBroadcast(monitor, lambda: "{}", closes_streams=True)
    asyncio.run(leave_one())
    asyncio.run(read())
    assert stream._readers == []
