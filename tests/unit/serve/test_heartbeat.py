"""The heartbeat in a file."""

import asyncio
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency, HealthMonitor, State
from resilient_io.serve import Heartbeat, _heartbeat
from resilient_io.testing import cancel_everywhere


@pytest.fixture
def path(tmp_path):
    return tmp_path / "heartbeat.json"


@pytest.fixture
def writes(monkeypatch):
    """The times at which it was written."""
    times = []
    replace = _heartbeat._replace

    def noting(path, words):
        replace(path, words)
        times.append(loop.time())

    loop = None
    monkeypatch.setattr(_heartbeat, "_replace", noting)

    def begin():
        nonlocal loop
        loop = asyncio.get_running_loop()
        return times

    return begin


async def test_it_says_how_the_service_is_in_one_line(path, service):
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        text = path.read_text()
    assert text.count("\n") == 1
    told = json.loads(text)
    assert told.pop("at") > 1_700_000_000
    assert told == {
        "interval": 1.0,
        "ready": True,
        "alive": True,
        "started": True,
        "draining": False,
        "stopped": False,
        "state": "up",
        "because": [],
    }


async def test_it_says_why_the_service_is_not_well(path, service, part):
    service.put(service.redis, State.DOWN, "nobody listens")
    part.why = "its supervisor died"
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        told = json.loads(path.read_text())
    assert (told["ready"], told["alive"], told["state"]) == (False, False, "down")
    assert told["because"] == ["redis is down: nobody listens", "its supervisor died"]


async def test_it_beats_every_interval_and_at_every_change(path, service, writes):
    times = writes()
    loop = asyncio.get_running_loop()
    async with Heartbeat(service.monitor, path, interval=2.0):
        loop.call_later(2.5, service.put, service.redis, State.DOWN)
        await asyncio.sleep(5.0)
    assert times == pytest.approx([0.0, 2.0, 2.5, 4.5, 5.0])


async def test_at_the_end_it_stays_and_says_that_it_has_stopped(path, service):
    async with Heartbeat(service.monitor, path) as heartbeat:
        await asyncio.sleep(1.5)
    told = json.loads(path.read_text())
    assert (told["stopped"], told["ready"], told["alive"]) == (True, False, True)
    await heartbeat.aclose()
    assert service.monitor._subscriptions._all == []


async def test_it_leaves_no_other_file(path, service):
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(3.0)
    assert [each.name for each in path.parent.iterdir()] == ["heartbeat.json"]


async def test_no_reader_ever_sees_a_part_of_it(path, service, monkeypatch):
    path.write_text("before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_heartbeat.Path, "replace", fail)
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(3.0)
    assert path.read_text() == "before"
    assert [each.name for each in path.parent.iterdir()] == ["heartbeat.json"]


async def test_a_file_that_cannot_be_written_is_logged_once_and_tried_again(
    tmp_path, service, caplog
):
    caplog.set_level(logging.INFO, logger="resilient_io.serve")
    folder = tmp_path / "later"
    async with Heartbeat(service.monitor, folder / "heartbeat.json"):
        await asyncio.sleep(5.5)
        folder.mkdir()
        await asyncio.sleep(5.0)
    assert json.loads((folder / "heartbeat.json").read_text())["stopped"] is True
    records = [(record.levelname, record.path) for record in caplog.records]
    named = str(folder / "heartbeat.json")
    assert records == [("WARNING", named), ("INFO", named)]


async def test_it_can_begin_again_after_its_end(path, service):
    heartbeat = Heartbeat(service.monitor, path)
    for _ in range(2):
        async with heartbeat:
            with pytest.raises(RuntimeError, match="beats already"):
                heartbeat.start()
            await asyncio.sleep(0.5)
            assert json.loads(path.read_text())["stopped"] is False


async def test_a_password_in_a_name_does_not_get_into_the_file(path):
    redis = Dependency("redis://user:hunter2@cache")
    async with HealthMonitor(redis) as monitor, Heartbeat(monitor, path):
        await asyncio.sleep(0.1)
        text = path.read_text()
    assert "hunter2" not in text
    assert "@cache is unknown" in text


async def test_a_file_system_that_hangs_does_not_hold_up_the_end(path, service, monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(_heartbeat, "_replace", lambda *_: os.read(reading, 1))
    loop = asyncio.get_running_loop()
    heartbeat = Heartbeat(service.monitor, path)
    heartbeat.start()
    await asyncio.sleep(0)
    loop._threads -= 1  # virtual time goes on, as real time would
    await heartbeat.aclose(timeout=0.5)
    assert loop.time() == pytest.approx(0.5)
    loop._threads += 1
    os.write(writing, b"x")
    os.close(writing)
    await asyncio.sleep(0.1)
    os.close(reading)


async def test_it_can_be_cancelled_everywhere(path, service):
    async def live():
        async with Heartbeat(service.monitor, path, interval=0.01):
            await asyncio.sleep(0.03)

    report = await cancel_everywhere(live)
    report.assert_clean()
    assert service.monitor._subscriptions._all == []


async def test_what_makes_no_sense_is_refused(path, service):
    with pytest.raises(ConfigurationError, match="interval"):
        Heartbeat(service.monitor, path, interval=0)
    with pytest.raises(ConfigurationError, match="names no file"):
        Heartbeat(service.monitor, "")
    with pytest.raises(TypeError, match="HealthMonitor"):
        Heartbeat(service.redis, path)


def test_it_beats_while_every_thread_of_the_loop_is_busy(path):
    """A name server that is away keeps them all, and no restart would bring it back."""
    go = threading.Event()

    async def beat():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, go.wait, 60)
        try:
            async with HealthMonitor(Dependency("redis")) as monitor, Heartbeat(monitor, path):
                async with asyncio.timeout(20):
                    while not path.exists():  # noqa: ASYNC110 (only the file tells)
                        await asyncio.sleep(0.01)
            assert json.loads(path.read_text())["stopped"]
        finally:
            go.set()

    asyncio.run(beat())


async def test_signs_that_no_text_can_hold_do_not_end_it(path, service):
    service.put(service.redis, State.DOWN, "said \udce9")
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        told = json.loads(path.read_text(encoding="utf-8"))
    assert told["because"] == ["redis is down: said \ufffd"]
