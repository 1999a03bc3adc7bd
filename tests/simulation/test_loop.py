import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import pytest

from tests.simulation.loop import (
    ESCAPING,
    START,
    NothingWillHappen,
    SimulatedLoop,
    SimulationEscape,
    TooManySteps,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loop():
    loop = SimulatedLoop(Random(1), stall=0.0)
    yield loop
    loop.close()


def test_time_jumps_to_the_next_timer(loop):
    async def main():
        await asyncio.sleep(3600)
        return loop.time()

    assert START + 3600 <= loop.run_until_complete(main()) < START + 3600.01


def test_call_soon_keeps_its_order(loop):
    seen = []

    async def main():
        for number in range(100):
            loop.call_soon(seen.append, number)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert seen == list(range(100))


def test_outside_events_run_at_their_own_time_during_a_stall(loop):
    seen = []

    async def main():
        loop.at(START + 1.0, lambda: seen.append(loop.time()))
        loop.at(START + 2.0, lambda: seen.append(loop.time()))
        loop.block(3.0)
        seen.append(loop.time())

    loop.run_until_complete(main())
    assert seen[:2] == [START + 1.0, START + 2.0]
    assert seen[2] >= START + 3.0


def test_an_outside_event_can_stall_the_process(loop):
    seen = []

    async def main():
        loop.at(START + 1.0, loop.block, 5.0)
        loop.at(START + 2.0, lambda: seen.append(loop.time()))
        await asyncio.sleep(1.5)
        seen.append(loop.time())

    loop.run_until_complete(main())
    assert seen[0] == START + 2.0
    assert START + 6.0 <= seen[1] < START + 6.1


def orders_of_one_poll(**options):
    """Return the orders in which three events of one poll ran, over some seeds."""
    orders = set()
    for seed in range(40):
        loop = SimulatedLoop(Random(seed), stall=0.0)
        seen = []

        async def main(loop=loop, seen=seen):
            for name in "abc":
                loop.at_poll(START + 1.0, seen.append, name, **options)
            loop.call_at(START + 1.0, seen.append, "timer")
            await asyncio.sleep(2.0)

        loop.run_until_complete(main())
        loop.close()
        orders.add("".join(seen))
    return orders


def test_events_of_one_poll_run_in_any_order_before_timers():
    orders = orders_of_one_poll()
    assert len(orders) == 6
    assert all(order.endswith("timer") for order in orders)


def test_events_of_one_channel_keep_their_order():
    assert orders_of_one_poll(channel="socket") == {"abctimer"}


def test_cancelled_events_do_not_run(loop):
    seen = []

    async def main():
        loop.at(START + 1.0, seen.append, "outside").cancel()
        loop.at_poll(START + 1.0, seen.append, "poll").cancel()
        await asyncio.sleep(2.0)

    loop.run_until_complete(main())
    assert seen == []


@pytest.mark.parametrize("first", ["cancellation", "result"])
def test_cancellation_and_result_meet_in_one_poll_in_both_orders(first):
    outcomes = set()
    for seed in range(30):
        loop = SimulatedLoop(Random(seed), stall=0.0)

        async def main(loop=loop):
            future = loop.create_future()
            task = loop.create_task(asyncio.wait_for(future, 5.0))
            order = []
            loop.at_poll(START + 1.0, lambda: (order.append("cancellation"), task.cancel()))
            loop.at_poll(START + 1.0, lambda: (order.append("result"), future.set_result(1)))
            await asyncio.sleep(0.5)
            await asyncio.wait([task])
            return order[0]

        outcomes.add(loop.run_until_complete(main()))
        loop.close()
    assert first in outcomes


def test_stalls_bring_timers_and_events_together():
    loop = SimulatedLoop(Random(1), stall=1.0, stall_longest=0.2)
    times = []

    async def main():
        for _ in range(200):
            before = loop.time()
            await asyncio.sleep(0)
            times.append(loop.time() - before)

    loop.run_until_complete(main())
    loop.close()
    assert min(times) >= 0.0005
    assert 0.05 < max(times) < 0.201


def test_waiting_for_nothing_names_the_tasks(loop):
    async def main():
        await loop.create_future()

    with pytest.raises(NothingWillHappen, match=r"caller \(test_loop.py:\d+\)"):
        loop.run_until_complete(loop.create_task(main(), name="caller"))


def test_busy_loops_end(loop):
    loop.max_steps = 1000

    async def main():
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(TooManySteps):
        loop.run_until_complete(main())


def test_endless_outside_events_end(loop):
    loop.max_steps = 1000

    def tick():
        loop.at(loop.time() + 1.0, tick)

    async def main():
        tick()
        await loop.create_future()

    with pytest.raises(TooManySteps):
        loop.run_until_complete(main())


@pytest.mark.parametrize("name", ESCAPING)
def test_calls_that_would_leave_the_simulation_raise(loop, name):
    with pytest.raises(SimulationEscape, match=name):
        getattr(loop, name)(1, 2)


def test_an_escape_cannot_be_swallowed(loop):
    async def main():
        try:
            await loop.sock_recv(None, 1)
        except Exception:  # noqa: BLE001
            await asyncio.sleep(1.0)

    with pytest.raises(SimulationEscape, match=r"sock_recv\(\)"):
        loop.run_until_complete(main())


def test_another_thread_escapes(loop):
    errors = []

    def call():
        try:
            loop.call_soon_threadsafe(print)
        except SimulationEscape as error:
            errors.append(str(error))

    async def main():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        await asyncio.sleep(0)

    with pytest.raises(SimulationEscape, match="call_soon_threadsafe"):
        loop.run_until_complete(main())
    assert errors


def test_connections_need_a_network(loop):
    async def main():
        await loop.create_connection(asyncio.Protocol, "10.0.0.1", 1)

    with pytest.raises(SimulationEscape):
        loop.run_until_complete(main())


def test_executor_runs_inline(loop):
    async def main():
        assert await asyncio.to_thread(threading.get_ident) == threading.get_ident()
        with pytest.raises(ValueError, match="x"):
            await loop.run_in_executor(None, int, "x")

    loop.run_until_complete(main())


def test_errors_of_callbacks_are_collected(loop):
    async def fail():
        raise ValueError("unseen")

    async def main():
        loop.call_soon(int, "x")
        loop.at_poll(loop.time(), int, "y")
        task = loop.create_task(fail(), name="failing")
        await asyncio.sleep(1.0)
        del task

    loop.run_until_complete(main())
    assert len(loop.errors) == 3
    assert any("'x'" in error for error in loop.errors)
    assert any("'y'" in error for error in loop.errors)
    assert any("unseen" in error for error in loop.errors)


def test_errors_of_outside_events_end_the_run(loop):
    async def main():
        loop.at(START + 1.0, int, "x")
        await asyncio.sleep(2.0)

    with pytest.raises(ValueError, match="'x'"):
        loop.run_until_complete(main())


def names_in_sets():
    """Return the order in which sets of tasks and futures iterate."""
    loop = SimulatedLoop(Random(1))

    async def main():
        tasks = {loop.create_task(asyncio.sleep(number % 3)) for number in range(50)}
        done, pending = await asyncio.wait(tasks, timeout=0.5)
        names = [task.get_name() for task in (*tasks, *done, *pending)]
        futures = {loop.create_future() for _ in range(50)}
        names += [str(future.number) for future in futures]
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                names.append(group.create_task(asyncio.sleep(1)).get_name())
        return names

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_sets_of_tasks_have_the_same_order_in_every_process():
    expected = names_in_sets()
    assert expected == names_in_sets()
    program = "x = [object() for _ in range(9999)]; from tests.simulation.test_loop import *; "
    result = subprocess.run(
        [sys.executable, "-c", program + "print(*names_in_sets())"],
        cwd=ROOT,
        env={"PYTHONPATH": "src:.", "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == expected


def test_lookup_needs_a_network(loop):
    async def main():
        await loop.getaddrinfo("redis.test", 6379, type=socket.SOCK_STREAM)

    with pytest.raises(SimulationEscape, match="getaddrinfo"):
        loop.run_until_complete(main())
