"""The loop of the commands: the first Ctrl-C interrupts, the second ends, threads do not block."""

import pytest

STUBBORN = """\
import asyncio, sys
from resilient_io.cli.terminal import run_loop

async def command(interruption):
    print("running", flush=True)
    await interruption.wait()
    print("asked", flush=True)
    await asyncio.sleep(60)

sys.exit(run_loop(command))
"""
FAILING = """\
import asyncio
from resilient_io.cli.terminal import run_loop

async def command(interruption):
    raise ValueError("broken")

run_loop(command)
"""
BUSY = """\
import asyncio, sys, time
from resilient_io.cli.terminal import run_loop

async def command(interruption):
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, time.sleep, 0)
    late = loop.run_in_executor(None, time.sleep, {seconds})
    await asyncio.wait([late], timeout=1.0)
    print("written", end="")
    return 3

code = run_loop(command)
print(" returned", end="", flush=True)
sys.exit(code)
"""


async def test_second_ctrl_c_ends_a_command_that_ignores_the_first(program):
    async with program(STUBBORN) as running:
        await running.until("running")
        running.interrupt()
        await running.until("asked")
        running.interrupt()
        assert await running.ended() == 130
    assert "Traceback" not in running.shown


async def test_exception_of_a_command_is_raised(program):
    async with program(FAILING) as running:
        assert await running.ended() == 1
    assert running.shown.endswith("ValueError: broken\n")


@pytest.mark.parametrize(("seconds", "shown"), [(0, "written returned"), (60, "written")])
async def test_hanging_thread_is_abandoned_after_the_output_is_written(program, seconds, shown):
    async with program(BUSY.format(seconds=seconds)) as running:
        assert await running.ended() == 3
    assert running.shown == shown
