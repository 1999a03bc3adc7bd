"""The watchdog: which silence ends a connection, and what counts as activity."""

import asyncio
from types import SimpleNamespace

import pytest

from resilient_io.health import Cause
from resilient_io.redis.errors import ConnectionFailure
from resilient_io.redis.in_flight import InFlightWrites
from resilient_io.redis.watchdog import SECOND_CHECK, Watchdog

TIMEOUT = 2.0


class FakeConnection:
    """A connection whose bytes leave as the test says. It is its own transport."""

    response_timeout = TIMEOUT
    deadline = None
    extra_timeout = 0.0
    link = socket = lost = None
    delayed = False

    def __init__(self) -> None:
        self.transport = self
        self.bytes_sent = 0
        self.leaving = 0
        self.closed_at: float | None = None
        self.waiting: list[object] = []
        self.queue = SimpleNamespace(waiting=self.waiting, promote=lambda *_: None)
        no_lag = SimpleNamespace(stalled=0.0, stalled_at=lambda _now: 0.0)
        self.in_flight = InFlightWrites(SimpleNamespace(record=lambda *_: None), no_lag)
        self.watchdog = Watchdog(self, self.in_flight, self.queue, None)

    def write(self, size: int, *, leaving: int) -> None:
        self.bytes_sent += size
        self.leaving += leaving
        self.waiting.append(object())
        self.watchdog.arm(self.in_flight.add(1, size, self.bytes_sent))

    def fall_behind(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.leaving

    def adopt(self, request: object, from_end: int) -> None: ...

    def adopt_queued(self) -> None: ...

    def fall_silent(self) -> None: ...

    def describe_silence(self, seconds: float) -> ConnectionFailure:
        return ConnectionFailure(Cause.TIMED_OUT, f"{seconds:g} s", definite=False)

    def close(self, failure: ConnectionFailure) -> None:
        assert failure.cause is Cause.TIMED_OUT
        self.closed_at = asyncio.get_running_loop().time()
        self.watchdog.stop()


@pytest.fixture
async def connection():
    connection = FakeConnection()
    yield connection
    connection.watchdog.stop()


async def test_silence_closes_the_connection_after_the_response_timeout(connection):
    began = asyncio.get_running_loop().time()
    connection.write(100, leaving=0)
    await asyncio.sleep(5)
    assert connection.closed_at == pytest.approx(began + TIMEOUT + SECOND_CHECK)


async def test_a_later_ping_that_the_peer_acknowledges_is_not_activity(connection):
    """The ping's bytes are in the socket at one check and are gone at the next."""
    began = asyncio.get_running_loop().time()
    connection.write(100, leaving=0)
    await asyncio.sleep(0.99)
    connection.write(14, leaving=14)
    await asyncio.sleep(0.04)
    connection.leaving = 0
    await asyncio.sleep(5)
    assert connection.closed_at == pytest.approx(began + TIMEOUT + SECOND_CHECK)


async def test_bytes_that_left_before_the_first_check_are_not_activity(connection):
    await asyncio.sleep(10)
    began = asyncio.get_running_loop().time()
    connection.write(1000, leaving=1000)
    await asyncio.sleep(0.5)
    connection.leaving = 0
    await asyncio.sleep(5)
    assert connection.closed_at == pytest.approx(began + TIMEOUT + SECOND_CHECK)


async def test_a_connection_is_not_silent_while_its_oldest_request_is_still_leaving(connection):
    connection.write(10_000, leaving=10_000)
    connection.write(500, leaving=500)  # after it: only adds to the bytes that have to leave
    for _ in range(10):
        await asyncio.sleep(1)
        connection.leaving -= 900
        connection.write(200, leaving=200)
        assert connection.closed_at is None
    stopped = asyncio.get_running_loop().time()
    await asyncio.sleep(5)
    assert connection.closed_at == pytest.approx(stopped + TIMEOUT, abs=TIMEOUT / 2 + 0.1)
