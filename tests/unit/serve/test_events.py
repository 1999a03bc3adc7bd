"""The stream of events: every change at once, every second otherwise, and nothing for nobody."""

import asyncio
import json

import pytest

from resilient_io.health import Dependency, HealthMonitor, State
from resilient_io.serve import _events
from resilient_io.serve._answers import Answers
from resilient_io.serve._events import Broadcast


@pytest.fixture
def stream(service):
    """Streams that whoever carries them closes."""
    return Answers(service.monitor, lasting=True).events


@pytest.fixture
def foreign(service):
    """Streams that somebody else's server carries."""
    return Answers(service.monitor).events


def told(chunk):
    for line in chunk.decode().splitlines():
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))
    raise AssertionError(chunk)


async def test_a_reader_is_told_the_present_at_once_and_how_to_come_again(stream):
    with stream.open() as reader:
        first = await anext(reader)
    assert first.startswith(b"retry: 1000\n\nevent: status\ndata: {")
    assert first.endswith(b"}\n\n")
    assert told(first)["ready"] is True


async def test_a_reader_is_told_every_second_while_nothing_changes(stream):
    loop = asyncio.get_running_loop()
    with stream.open() as reader:
        times = []
        for _ in range(4):
            await anext(reader)
            times.append(loop.time())
    assert times == pytest.approx([0.0, 1.0, 2.0, 3.0])


async def test_a_change_is_told_at_once(stream, service):
    loop = asyncio.get_running_loop()
    with stream.open() as reader:
        await anext(reader)
        loop.call_later(0.3, service.put, service.redis, State.DOWN)
        news = told(await anext(reader))
        assert loop.time() == pytest.approx(0.3)
    assert (news["ready"], news["state"]) == (False, "down")


async def test_a_slow_reader_sees_only_the_newest_and_holds_back_nobody(stream, service):
    seen = []

    async def read_on():
        with stream.open() as fast:
            seen.extend([told(chunk)["state"] async for chunk in fast])

    reading = asyncio.create_task(read_on())
    with stream.open() as slow:
        await anext(slow)
        for _ in range(20):
            await asyncio.sleep(0.1)
            service.put(service.redis, State.DEGRADED)
            await asyncio.sleep(0.1)
            service.redis.accepted()
        await asyncio.sleep(0.05)
        assert told(await anext(slow))["state"] == "up"
        began = asyncio.get_running_loop().time()
        await anext(slow)  # and then waits for news, for nothing was queued
        assert asyncio.get_running_loop().time() > began
    stream.close()
    await reading
    assert seen.count("degraded") >= 20


async def test_an_event_is_made_once_for_all_readers_and_not_at_all_for_none(service):
    made = []

    def status():
        made.append(1)
        return "{}"

    stream = Broadcast(service.monitor, status, lasting=True)
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


async def test_nothing_goes_on_when_the_last_reader_has_left(stream, service):
    with stream.open() as reader:
        await anext(reader)
    assert stream._timer is None
    assert service.monitor._subscriptions._all == []


async def test_a_reader_whose_client_went_away_ends_at_once(stream):
    with stream.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.1, reader.end)
        assert [chunk async for chunk in reader] == []
    assert asyncio.get_running_loop().time() == pytest.approx(0.1)


async def test_closing_ends_every_reader_and_lets_nobody_in(stream):
    with stream.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.1, stream.close)
        assert [chunk async for chunk in reader] == []
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)
    assert stream.full


async def test_closing_cuts_off_a_reader_that_is_in_the_middle_of_sending(stream):
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


async def test_draining_ends_nothing_that_we_close_ourselves(stream, service):
    with stream.open() as reader:
        await anext(reader)
        service.monitor.drain()
        assert told(await anext(reader))["draining"] is True
        await anext(reader)
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)


async def test_a_stream_on_a_foreign_server_ends_after_telling_that_it_drains(foreign, service):
    with foreign.open() as reader:
        await anext(reader)
        asyncio.get_running_loop().call_later(0.2, service.monitor.drain)
        assert [told(chunk)["draining"] async for chunk in reader] == [True]
        assert asyncio.get_running_loop().time() == pytest.approx(0.2)
    with foreign.open() as again:  # whoever comes again is told, once
        assert [told(chunk)["draining"] async for chunk in again] == [True]


async def test_a_stream_on_a_foreign_server_ends_after_a_while(foreign):
    with foreign.open() as reader:
        assert len([chunk async for chunk in reader]) in (11, 12)
    took = asyncio.get_running_loop().time()
    assert _events.LASTS <= took < _events.LASTS + 1.1 * _events.INTERVAL


async def test_so_many_readers_are_let_in_and_no_more(service):
    answers = Answers(service.monitor)
    readers = [answers.events.open() for _ in range(_events.READERS)]
    refused = answers.answer("/events", "GET")
    assert refused.status == 503
    assert dict(refused.headers)["retry-after"] == "5"
    readers[0].__exit__(None, None, None)
    assert answers.answer("/events", "GET").status == 200
    for reader in readers[1:]:
        reader.__exit__(None, None, None)


def test_readers_of_a_loop_that_ended_are_forgotten():
    async def read():
        with stream.open() as reader:
            await anext(reader)
            await anext(reader)

    async def leave_one():
        await anext(stream.open())

    monitor = HealthMonitor(Dependency("redis"))
    stream = Broadcast(monitor, lambda: "{}", lasting=True)
    asyncio.run(leave_one())
    asyncio.run(read())
    assert stream._readers == []
