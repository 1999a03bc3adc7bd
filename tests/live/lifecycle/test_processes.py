"""Signals from platforms and terminals to a service that is a real process, with a real Redis."""

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

from resilient_io.lifecycle.signals import SAME_SIGNAL

DEBOUNCED = 2 * SAME_SIGNAL


async def test_sigterm_is_visible_on_readyz_before_anything_stops_and_until_the_end(plain):
    service = await plain("wait", drain_delay=2.0, closes=1.5)
    answers = []

    async def ask():
        """Probe like the kubelet, but more often, while the server answers."""
        with contextlib.suppress(OSError, IndexError):
            while True:
                status, text = await service.get("/readyz")
                answers.append((time.time(), status, text))
                await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask(), name="the kubelet")
    service.send(signal.SIGTERM)
    await asking
    assert await service.exit_code() == 0
    assert service.order()[2:] == ["body ends", "slow closes", "slow closed", "ended", "exits"]
    assert service.found("body ends")["answered"] is True
    unready = [(at, text) for at, status, text in answers if status == 503]
    assert all("draining" in text for _, text in unready)
    # Visible while the body works, and while anything is closing: the server is closed last.
    assert unready[0][0] < service.found("body ends")["at"]
    assert unready[-1][0] > service.found("slow closes")["at"]
    report = service.found("ended")["report"]
    assert report["reason"] == "SIGTERM"
    assert report["clean"] is True
    assert [step["name"].partition(" ")[0] for step in report["steps"]] == [
        "drain", "body", "Says", "ResilientRedis", "HealthMonitor", "HealthServer",
    ]  # fmt: skip
    (line,) = await service.logs("stopped in")
    assert "(SIGTERM): drain delay 2.0" in line


async def test_ctrl_c_ends_the_program_as_usual_after_everything_is_closed(plain):
    service = await plain("wait", drain_delay=0.2)
    service.send(signal.SIGINT)
    assert await service.exit_code() == -signal.SIGINT  # how Python ends after a KeyboardInterrupt
    assert service.order()[2:] == ["body ends", "slow closes", "slow closed"]
    assert "stopped in" in service.text
    assert service.lines[-1] == "KeyboardInterrupt"


async def test_body_that_waits_forever_is_cancelled_and_the_program_continues(plain):
    service = await plain("forever", drain_delay=0.0, body_timeout=0.5)
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert service.order()[-2:] == ["ended", "exits"]


async def test_second_signal_hurries_the_shutdown(plain):
    service = await plain("forever", drain_delay=10.0, closes=20.0)
    service.send(signal.SIGTERM)
    await service.logs("not ready from now on")
    await asyncio.sleep(DEBOUNCED)
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    report = service.found("ended")["report"]
    assert report["hurried"] is True
    assert report["seconds"] < 9  # less than the drain delay alone
    assert any("its closing was cancelled" in left for left in report["left"])


async def test_third_signal_kills_even_while_the_event_loop_is_blocked(plain):
    service = await plain("block", drain_delay=10.0)
    for _ in range(2):
        service.send(signal.SIGTERM)
        await asyncio.sleep(DEBOUNCED)
        assert service.process.returncode is None
    service.send(signal.SIGTERM)
    assert await service.exit_code() == -signal.SIGTERM


async def test_signal_during_the_start_ends_it(plain):
    service = await plain("wait", running=False, starts=30.0)
    await service.says("slow starts")
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 128 + signal.SIGTERM
    assert "grace period 25 s" in service.text
    assert "stopped in" in service.text
    assert "Traceback" not in service.text


async def test_sigusr1_dumps_the_flight_recorder_and_the_service_continues(plain):
    service = await plain("wait", drain_delay=0.0)
    service.send(signal.SIGUSR1)
    await service.logs('"dump": "SIGUSR1"')
    assert (await service.get("/readyz"))[0] == 200
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="uvloop is tested on Linux")
async def test_lifecycle_works_in_uvloop(plain):
    pytest.importorskip("uvloop")
    service = await plain("wait", drain_delay=0.5, environment={"LOOP": "uvloop"})
    service.send(signal.SIGTERM)
    assert await service.exit_code() == 0
    assert service.found("ended")["report"]["clean"] is True


# --- process 1: the kernel ignores signals for which it has no handler


UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")


def namespaces():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0


in_a_namespace = pytest.mark.skipif(
    not namespaces(), reason="NEEDS PERMISSION to create a PID namespace (unshare)"
)


async def inside(service):
    """Return the ID, outside the namespace, of process 1 in the namespace."""
    pid = service.process.pid
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if children:
                    return int(children[0])
            await asyncio.sleep(0.02)


@in_a_namespace
async def test_process_1_shuts_down_in_order(plain):
    service = await plain("wait", before=UNSHARE, drain_delay=0.5)
    assert service.found("running")["pid"] == 1
    service.send(signal.SIGTERM, await inside(service))
    assert await service.exit_code() == 0
    assert service.found("ended")["report"]["clean"] is True


@in_a_namespace
async def test_third_signal_ends_process_1_too(plain):
    service = await plain("block", before=UNSHARE, drain_delay=10.0)
    pid = await inside(service)
    for _ in range(3):
        assert service.process.returncode is None
        service.send(signal.SIGTERM, pid)
        await asyncio.sleep(DEBOUNCED)
    assert await service.exit_code() == 128 + signal.SIGTERM


@in_a_namespace
async def test_process_1_without_a_handler_ignores_sigterm(launch):
    program = Path(__file__).with_name("sleeps.py")
    service = await launch(program.name, before=UNSHARE)
    await service.logs("sleeping")
    pid = await inside(service)
    service.send(signal.SIGTERM, pid)
    await asyncio.sleep(DEBOUNCED)
    assert service.process.returncode is None
    os.kill(pid, signal.SIGKILL)
    await service.exit_code()
