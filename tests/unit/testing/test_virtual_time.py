"""The loop with virtual time is exact, never waits, and raises when nothing will happen."""

import asyncio
import os
import signal
import socket
import time

import pytest

from resilient_io.testing import NothingWillHappenError, VirtualTimeLoop, new_virtual_loop


def run(coroutine):
    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        return runner.run(coroutine)


async def test_unit_tests_run_on_a_loop_with_virtual_time():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


async def test_hour_of_sleep_is_exact_and_takes_no_real_time():
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    began = loop.time()
    for _ in range(100):
        await asyncio.sleep(36)
    assert loop.time() - began == 3600
    assert time.perf_counter() - start < 1


def test_time_starts_at_zero_and_timers_fire_at_their_exact_time():
    fired = []

    async def main():
        loop = asyncio.get_running_loop()
        assert loop.time() == 0
        for at in (0.3, 0.1, 0.7):
            loop.call_at(at, lambda: fired.append(loop.time()))
        await asyncio.sleep(1)

    run(main())
    assert fired == [0.1, 0.3, 0.7]


async def test_ready_callbacks_run_before_time_advances():
    loop = asyncio.get_running_loop()
    began = loop.time()
    sleeper = asyncio.create_task(asyncio.sleep(0.001))
    for _ in range(100):
        await asyncio.sleep(0)
    assert loop.time() == began
    assert not sleeper.done()
    await sleeper


async def test_signal_is_handled_before_time_advances():
    loop = asyncio.get_running_loop()
    began = loop.time()
    seen = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: seen.append(loop.time() - began))
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(5)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert seen == [0]


async def test_timeouts_use_virtual_time():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.Event().wait()


async def test_cancelled_timer_does_not_advance_time():
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(1, int).cancel()
    await asyncio.sleep(2)
    assert loop.time() == began + 2


def test_loop_raises_when_nothing_will_happen_and_lists_the_tasks():
    async def waits_for_ever():
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappenError, match=r"Event\.wait \(.*locks\.py:\d+\)"):
        run(waits_for_ever())


async def test_block_advances_time():
    loop = asyncio.get_running_loop()
    began = loop.time()
    due = []
    loop.call_later(1, lambda: due.append(loop.time() - began))
    loop.block(5)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert due == [5]
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="must be at least 0, not"):
            loop.block(wrong)


async def test_time_stands_still_while_a_thread_runs():
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(0.001):
        assert await asyncio.to_thread(time.sleep, 0.05) is None
    assert loop.time() == began
    assert await loop.getaddrinfo("127.0.0.1", 1, type=socket.SOCK_STREAM)


def test_loop_closes_while_threads_still_run():
    async def main():
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)

    run(main())


async def test_sockets_are_served_before_time_advances():
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    _, other = await asyncio.open_connection(sock=there)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(10):
        other.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    assert loop.time() == began
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await reader.read(1)
    assert loop.time() == began + 10
    writer.close()
    other.close()
    await writer.wait_closed()
    await other.wait_closed()
