"""Our own ground, as this machine is."""

import asyncio
import time

from resilient_io.doctor import Status, ground

NAMES = ["CPU", "memory", "open files", "connections", "kernel", "versions", "event loop"]


async def test_the_ground_of_this_machine_can_be_seen(slack):
    began = asyncio.get_running_loop().time()
    steps = [step async for step in ground()]
    assert asyncio.get_running_loop().time() - began < 5.0 + slack()
    assert [step.name for step in steps] == NAMES
    assert {step.name: step.status for step in steps}["versions"] is Status.OK
    assert all(step.found for step in steps)


async def test_another_root_may_be_looked_at(tmp_path):
    steps = {step.name: step async for step in ground(root=tmp_path)}
    assert steps["CPU"].status is Status.BLIND
    assert "no cgroup" in steps["CPU"].found


async def test_a_loop_that_is_blocked_meanwhile_is_told():
    async def block():
        for _ in range(4):
            await asyncio.sleep(0.01)
            time.sleep(0.6)

    blocking = asyncio.create_task(block())
    steps = {step.name: step async for step in ground()}
    await blocking
    # The other steps may have seen a part of it, but not all.
    assert steps["event loop"].status is Status.PROBLEM, steps["event loop"]
    assert steps["event loop"].data["worst"] > 0.5


async def test_without_time_all_is_blind_in_time(slack):
    began = asyncio.get_running_loop().time()
    steps = [step async for step in ground(timeout=1e-9)]
    assert [step.name for step in steps] == NAMES
    assert {step.status for step in steps} == {Status.BLIND}
    assert asyncio.get_running_loop().time() - began < slack()
