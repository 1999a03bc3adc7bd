"""What counts as silence of a lane, and what as a sign of life."""

import asyncio
from types import SimpleNamespace

import pytest

from resilient_io.health import Cause
from resilient_io.redis.connection import SECOND_LOOK, Outstanding, Watchdog

TIMEOUT = 2.0


class FakeLane:
    """A lane whose bytes leave as the test says; it is its own transport."""

    response_timeout = TIMEOUT
    deadline = None
    allowance = 0.0

    def __init__(self) -> None:
        self.transport = self
        self.bytes_sent = 0
        self.leaving = 0
        self.closed_at: float | None = None
        self.waiting: list[object] = []
        self.replies = SimpleNamespace(waiting=self.waiting, hand_over=lambda *_: None)
        no_lag = SimpleNamespace(stalled=0.0)
        self.outstanding = Outstanding(SimpleNamespace(record=lambda *_: None), no_lag)
        self.watchdog = Watchdog(self, self.outstanding, self.replies)

    def write(self, size: int, *, leaving: int) -> None:
        self.bytes_sent += size
        self.leaving += leaving
        self.waiting.append(object())
        self.watchdog.arm(self.outstanding.wrote(1, size, self.bytes_sent))

    def get_write_buffer_size(self) -> int:
        return self.leaving

    def get_extra_info(self, name: str) -> None:
        return None

    def own(self, ticket: object, from_end: int) -> None: ...

    def fall_silent(self) -> None: ...

    def close(self, cause: Cause, detail: str) -> None:
        assert cause is Cause.TIMED_OUT
        self.closed_at = asyncio.get_running_loop().time()
        self.watchdog.stop()


@pytest.fixture
async def lane():
    lane = FakeLane()
    yield lane
    lane.watchdog.stop()


async def test_silence_ends_it_after_the_response_timeout(lane):
    began = asyncio.get_running_loop().time()
    lane.write(100, leaving=0)
    await asyncio.sleep(5)
    assert lane.closed_at == pytest.approx(began + TIMEOUT + SECOND_LOOK)


async def test_a_later_ping_that_the_peer_acknowledges_is_no_sign_of_life(lane):
    """Its bytes lie in the socket at one look and are gone at the next."""
    began = asyncio.get_running_loop().time()
    lane.write(100, leaving=0)
    await asyncio.sleep(0.99)
    lane.write(14, leaving=14)
    await asyncio.sleep(0.04)
    lane.leaving = 0
    await asyncio.sleep(5)
    assert lane.closed_at == pytest.approx(began + TIMEOUT + SECOND_LOOK)


async def test_what_left_before_the_first_look_is_no_sign_of_life(lane):
    await asyncio.sleep(10)
    began = asyncio.get_running_loop().time()
    lane.write(1000, leaving=1000)
    await asyncio.sleep(0.5)
    lane.leaving = 0
    await asyncio.sleep(5)
    assert lane.closed_at == pytest.approx(began + TIMEOUT + SECOND_LOOK)


async def test_while_the_oldest_request_is_still_leaving_it_is_not_silent(lane):
    lane.write(10_000, leaving=10_000)
    lane.write(500, leaving=500)  # behind it: it only adds to what has to leave
    for _ in range(10):
        await asyncio.sleep(1)
        lane.leaving -= 900
        lane.write(200, leaving=200)
        assert lane.closed_at is None
    stopped = asyncio.get_running_loop().time()
    await asyncio.sleep(5)
    assert lane.closed_at == pytest.approx(stopped + TIMEOUT, abs=TIMEOUT / 2 + 0.1)
