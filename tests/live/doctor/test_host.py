"""The host checks on the machine that the tests run on."""

import asyncio

from resilient_io.doctor import Status, examine_host

NAMES = ["CPU", "memory", "kernel"]


async def test_this_machine_can_be_examined(slack):
    began = asyncio.get_running_loop().time()
    steps = [step async for step in examine_host()]
    assert asyncio.get_running_loop().time() - began < 5.0 + slack()
    assert [step.name for step in steps] == NAMES
    assert all(step.found for step in steps)


async def test_another_root_may_be_examined(tmp_path):
    steps = {step.name: step async for step in examine_host(root=tmp_path)}
    assert steps["CPU"].status is Status.UNKNOWN
    assert "no cgroup" in steps["CPU"].found


async def test_steps_are_unknown_when_no_time_is_left(slack):
    began = asyncio.get_running_loop().time()
    steps = [step async for step in examine_host(timeout=1e-9)]
    assert [step.name for step in steps] == NAMES
    assert {step.status for step in steps} == {Status.UNKNOWN}
    assert asyncio.get_running_loop().time() - began < slack()
