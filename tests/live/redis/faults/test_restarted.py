"""The server is killed and comes back on the same port."""

import asyncio

import pytest

from resilient_io import OutcomeUnknown, ResilientIOError, State

UP_WITHIN = 0.25


class Readers:
    """Callers that read continuously, and count the failures."""

    def __init__(self, redis, count: int) -> None:
        self.redis = redis
        self.stop = False
        self.reads = 0
        self.turned_away = 0
        self.tasks = [asyncio.create_task(self._read()) for _ in range(count)]

    async def _read(self) -> None:
        while not self.stop:
            try:
                assert await self.redis.get("absent") is None
                self.reads += 1
            except ResilientIOError:
                self.turned_away += 1
                await asyncio.sleep(0.005)

    async def read_on(self) -> None:
        """Wait until each caller has read twice more on average."""
        until = self.reads + 2 * len(self.tasks)
        async with asyncio.timeout(10):
            while self.reads < until:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self.stop = True
        await asyncio.gather(*self.tasks)


@pytest.mark.parametrize("outage", [0.3, 1.5, pytest.param(5.0, marks=pytest.mark.soak)])
async def test_up_is_published_within_250_ms_after_the_server_accepts_again(
    outage, redis_server, connect, watch, accepting, slack
):
    redis = await connect(redis_server)
    seen = watch(redis)
    redis_server.kill()
    await seen.until(State.DOWN, within=5)
    await asyncio.sleep(outage)

    knock = asyncio.create_task(accepting(redis_server.port))
    start = asyncio.create_task(redis_server.start())
    up = await seen.until(State.UP, within=5)

    assert up - await knock <= UP_WITHIN + slack(0.1)
    await start
    results = await asyncio.gather(*[redis.incr("n") for _ in range(50)])
    assert sorted(results) == list(range(1, 51))
    assert redis.stats().connections >= 1
    assert seen.states == [State.DOWN, State.UP]


async def test_no_read_fails_in_an_outage_of_300_ms(redis_server, connect, watch):
    redis = await connect(redis_server)
    seen = watch(redis)
    readers = Readers(redis, 50)
    await readers.read_on()

    redis_server.kill()
    await asyncio.sleep(0.3)
    await redis_server.start()
    await redis.health.until_up(5)
    await readers.read_on()
    await readers.end()

    assert readers.turned_away == 0
    assert seen.count(State.DOWN) == 1


async def test_no_read_fails_in_a_longer_outage_if_calls_wait(redis_server, connect, quick):
    redis = await connect(redis_server, policy=quick.replace(while_down="wait", deadline=10.0))
    readers = Readers(redis, 50)
    await readers.read_on()

    redis_server.kill()
    await asyncio.sleep(1.2)
    await redis_server.start()
    await readers.read_on()
    await readers.end()

    assert readers.turned_away == 0


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_idle_client_does_not_notice_a_quick_restart_in_its_first_command(
    protocol, redis_server, connect
):
    redis = await connect(redis_server, protocol=protocol)
    assert await redis.set("key", "value")

    await redis_server.restart()
    await redis.health.until_up(5)

    assert await redis.incr("counter") == 1
    assert await redis.get("key") is None


async def test_no_caller_receives_an_error_from_an_old_connection_after_an_outage(
    redis_server, connect, watch
):
    redis = await connect(redis_server)
    seen = watch(redis)
    errors_after: list[BaseException] = []
    for _ in range(3):
        redis_server.kill()
        await seen.until(State.DOWN, within=5)
        await redis_server.start()
        await redis.health.until_up(5)
        results = await asyncio.gather(
            *[redis.incr("counter") for _ in range(100)],
            *[redis.blpop(["absent"], timeout=0.01) for _ in range(5)],
            return_exceptions=True,
        )
        errors_after += [result for result in results if isinstance(result, BaseException)]

    assert not errors_after


async def test_a_restart_between_two_ticks_repeats_no_increment(redis_server, connect):
    redis = await connect(redis_server)
    calls = [asyncio.create_task(redis.incr("counter")) for _ in range(100)]
    await asyncio.sleep(0)

    await redis_server.restart()
    results = await asyncio.gather(*calls, return_exceptions=True)

    acknowledged = [result for result in results if isinstance(result, int)]
    unknown = [result for result in results if isinstance(result, OutcomeUnknown)]
    assert len(acknowledged) + len(unknown) == len(results)
    found = int(await redis_server.query("GET", "counter") or 0)
    assert found <= len(results)
