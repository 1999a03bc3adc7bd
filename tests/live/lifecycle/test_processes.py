"""Real processes, real signals, a real Redis: what platforms and terminals do to a service."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resilient_io.lifecycle._signals import TOGETHER

DEBOUNCED = 2 * TOGETHER


async def test_a_sigterm_is_seen_on_readyz_before_anything_stops_and_served_to_the_end(plain):
    service = await plain("wait", notice=2.0, closes=1.5)
    answers = []

    async def ask():
        """As the kubelet does, only more often, for as long as anybody answers."""
        with contextlib.suppress(OSError, IndexError):
            while True:
                status, words = await service.get("/readyz")
                answers.append((time.time(), status, words))
                await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask(), name="the kubelet")
    service.send(signal.SIGTERM)
    await asking
    assert await service.exit_code() == 0
    assert service.order()[2:] == ["body ends", "slow closes", "slow closed", "ended", "exits"]
    assert service.found("body ends")["answered"] is True
    unready = [(at, words) for at, status, words in answers if status == 503]
    assert all("draining" in words for _, words in unready)
    # Seen while it still works, and as long as anything is closing: what tells of it goes last.
    assert unready[0][0] < service.found("body ends")["at"]
    assert unready[-1][0] > service.found("slow closes")["at"]
    report = service.found("ended")["report"]
    assert report["reason"] == "SIGTERM"
    assert report["clean"] is True
    assert [step["name"].partition(" ")[0] for step in report["steps"]] == [
        "notice", "body", "Says", "ResilientRedis", "HealthMonitor", "HealthServer",
    ]  # fmt: skip
    (line,) = await service.logs("stopped in")
    assert "(SIGTERM): notice 2.0" in line


async def test_a_ctrl_c_ends_as_without_us_once_everything_is_closed(plain):
    service = await plain("wait", notice=0.2)
    service.send(signal.SIGINT)
    assert await service.exit_code() == -signal.SIGINT  # Python's own end by KeyboardInterrupt
    assert service.order()[2:] == ["body ends", "slow closes", "slow closed"]
    assert "stopped in" in service.text
    assert service.lines[-1] == "KeyboardInterrupt"


async def test_a_body_that_waits_for_ever_is_ended_and_the_program_goes_on(plain):
    service = await plain("forever", notice=0.0, body_timeout=0.5)
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert service.order()[-2:] == ["ended", "exits"]


async def test_a_second_signal_goes_faster(plain):
    service = await plain("forever", notice=10.0, closes=20.0)
    service.send(signal.SIGTERM)
    await service.logs("not ready from now on")
    await asyncio.sleep(DEBOUNCED)
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    report = service.found("ended")["report"]
    assert report["hurried"] is True
    assert report["seconds"] < 9  # less than the notice alone
    assert any("its closing was cut short" in left for left in report["left"])


async def test_a_third_signal_kills_also_when_the_loop_is_blocked(plain):
    service = await plain("block", notice=10.0)
    for _ in range(2):
        service.send(signal.SIGTERM)
        await asyncio.sleep(DEBOUNCED)
        assert service.process.returncode is None
    service.send(signal.SIGTERM)
    assert await service.exit_code() == -signal.SIGTERM


async def test_a_signal_during_the_start_ends_it(plain):
    service = await plain("wait", running=False, starts=30.0)
    await service.says("slow starts")
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 128 + signal.SIGTERM
    assert "closed within 25 s" in service.text
    assert "stopped in" in service.text
    assert "Traceback" not in service.text


async def test_a_sigusr1_dumps_the_flight_recorder_and_the_service_goes_on(plain):
    service = await plain("wait", notice=0.0)
    service.send(signal.SIGUSR1)
    await service.logs('"dump": "SIGUSR1"')
    assert (await service.get("/readyz"))[0] == 200
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="uvloop is tested on Linux")
async def test_it_works_in_the_loop_of_uvloop(plain):
    pytest.importorskip("uvloop")
    service = await plain("wait", notice=0.5, environment={"LOOP": "uvloop"})
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert service.found("ended")["report"]["clean"] is True


# --- process 1, whose signals without a handler are dropped by the kernel


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")


def namespaces():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0


in_a_namespace = pytest.mark.skipif(
    not namespaces(), reason="NEEDS PERMISSION to make a PID namespace (unshare)"
)


async def inside(service):
    """Give the process id, as seen from here, of what is process 1 in its namespace."""
    pid = service.process.pid
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if children:
                    return int(children[0])
            await asyncio.sleep(0.02)


@in_a_namespace
async def test_process_1_ends_in_order(plain):
    service = await plain("wait", before=UNSHARE, notice=0.5)
    assert service.found("running")["pid"] == 1
    service.send(signal.SIGTERM, await inside(service))
    assert await service.exit_code() == 0
    assert service.found("ended")["report"]["clean"] is True


@in_a_namespace
async def test_a_third_signal_ends_process_1_too(plain):
    service = await plain("block", before=UNSHARE, notice=10.0)
    pid = await inside(service)
    for _ in range(3):
        assert service.process.returncode is None
        service.send(signal.SIGTERM, pid)
        await asyncio.sleep(DEBOUNCED)
    assert await service.exit_code() == 128 + signal.SIGTERM


@in_a_namespace
async def test_process_1_without_a_handler_would_not_even_notice(launch):
    program = Path(__file__).with_name("sleeps.py")
    service = await launch(program.name, before=UNSHARE)
    await service.logs("sleeping")
    pid = await inside(service)
    service.send(signal.SIGTERM, pid)
    await asyncio.sleep(DEBOUNCED)
    assert service.process.returncode is None
    os.kill(pid, signal.SIGKILL)
    await service.exit_code()
