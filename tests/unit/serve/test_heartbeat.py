"""The heartbeat file."""

import asyncio
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency, HealthMonitor, State
from resilient_io.serve import Heartbeat
from resilient_io.serve import heartbeat as module
from resilient_io.testing import cancel_everywhere


@pytest.fixture
def path(tmp_path):
    return tmp_path / "heartbeat.json"


@pytest.fixture
def writes(monkeypatch):
    """Return the loop times at which the file was written."""
    times = []
    replace = module._replace

    def noting(path, text):
        replace(path, text)
        times.append(loop.time())

    loop = None
    monkeypatch.setattr(module, "_replace", noting)

    def start():
        nonlocal loop
        loop = asyncio.get_running_loop()
        return times

    return start


async def test_file_contains_the_health_of_the_service_in_one_line(path, service):
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        text = path.read_text()
    assert text.count("\n") == 1
    document = json.loads(text)
    assert document.pop("at") > 1_700_000_000
    assert document == {
        "interval": 1.0,
        "ready": True,
        "alive": True,
        "started": True,
        "draining": False,
        "stopped": False,
        "state": "up",
        "because": [],
    }


async def test_file_contains_the_reasons_of_an_unhealthy_service(path, service, check):
    service.put(service.redis, State.DOWN, "connection refused")
    check.why = "its supervisor died"
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        document = json.loads(path.read_text())
    assert (document["ready"], document["alive"], document["state"]) == (False, False, "down")
    assert document["because"] == [
        "redis is down: connection refused",
        "its supervisor died",
    ]


async def test_file_is_written_every_interval_and_on_every_change(path, service, writes):
    times = writes()
    loop = asyncio.get_running_loop()
    async with Heartbeat(service.monitor, path, interval=2.0):
        loop.call_later(2.5, service.put, service.redis, State.DOWN)
        await asyncio.sleep(5.0)
    assert times == pytest.approx([0.0, 2.0, 2.5, 4.5, 5.0])


async def test_file_stays_after_the_end_and_says_stopped(path, service):
    async with Heartbeat(service.monitor, path) as heartbeat:
        await asyncio.sleep(1.5)
    document = json.loads(path.read_text())
    assert (document["stopped"], document["ready"], document["alive"]) == (True, False, True)
    await heartbeat.aclose()
    assert service.monitor._subscriptions._all == []


async def test_heartbeat_leaves_no_other_file(path, service):
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(3.0)
    assert [each.name for each in path.parent.iterdir()] == ["heartbeat.json"]


async def test_file_is_replaced_as_a_whole_or_not_at_all(path, service, monkeypatch):
    path.write_text("before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "replace", fail)
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(3.0)
    assert path.read_text() == "before"
    assert [each.name for each in path.parent.iterdir()] == ["heartbeat.json"]


async def test_write_failure_is_logged_once_and_retried(tmp_path, service, caplog):
    caplog.set_level(logging.INFO, logger="resilient_io.serve")
    directory = tmp_path / "later"
    async with Heartbeat(service.monitor, directory / "heartbeat.json"):
        await asyncio.sleep(5.5)
        directory.mkdir()
        await asyncio.sleep(5.0)
    assert json.loads((directory / "heartbeat.json").read_text())["stopped"] is True
    records = [(record.levelname, record.path) for record in caplog.records]
    expected = str(directory / "heartbeat.json")
    assert records == [("WARNING", expected), ("INFO", expected)]


async def test_heartbeat_can_be_started_again_after_its_end(path, service):
    heartbeat = Heartbeat(service.monitor, path)
    for _ in range(2):
        async with heartbeat:
            with pytest.raises(RuntimeError, match="is running already"):
                heartbeat.start()
            await asyncio.sleep(0.5)
            assert json.loads(path.read_text())["stopped"] is False


async def test_password_in_a_name_is_not_written(path):
    redis = Dependency("redis://user:hunter2@cache")
    async with HealthMonitor(redis) as monitor, Heartbeat(monitor, path):
        await asyncio.sleep(0.1)
        text = path.read_text()
    assert "hunter2" not in text
    assert "@cache is unknown" in text


async def test_closing_does_not_wait_for_a_file_system_that_hangs(path, service, monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(module, "_replace", lambda *_: os.read(reading, 1))
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


async def test_heartbeat_can_be_cancelled_everywhere(path, service):
    async def live():
        async with Heartbeat(service.monitor, path, interval=0.01):
            await asyncio.sleep(0.03)

    report = await cancel_everywhere(live)
    report.assert_clean()
    assert service.monitor._subscriptions._all == []


async def test_wrong_arguments_are_rejected(path, service):
    with pytest.raises(ConfigurationError, match="interval"):
        Heartbeat(service.monitor, path, interval=0)
    with pytest.raises(ConfigurationError, match="path is empty"):
        Heartbeat(service.monitor, "")
    with pytest.raises(TypeError, match="HealthMonitor"):
        Heartbeat(service.redis, path)


def test_file_is_written_while_every_thread_of_the_executor_is_busy(path):
    """Lookups at an unreachable name server occupy all threads; a restart would not help."""
    go = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, go.wait, 60)
        try:
            async with HealthMonitor(Dependency("redis")) as monitor, Heartbeat(monitor, path):
                async with asyncio.timeout(20):
                    while not path.exists():  # noqa: ASYNC110 (only the file changes)
                        await asyncio.sleep(0.01)
            assert json.loads(path.read_text())["stopped"]
        finally:
            go.set()

    asyncio.run(main())


async def test_characters_that_utf_8_cannot_encode_are_replaced(path, service):
    service.put(service.redis, State.DOWN, "said \udce9")
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        document = json.loads(path.read_text(encoding="utf-8"))
    assert document["because"] == ["redis is down: said \N{REPLACEMENT CHARACTER}"]


async def test_symbolic_link_at_the_name_of_the_temporary_file_is_not_followed(
    path, service, monkeypatch
):
    victim = path.with_name("victim")
    victim.write_text("before")
    for name in (f".{path.name}.{os.getpid()}", f".{path.name}.guessed"):
        path.with_name(name).symlink_to(victim)
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(0.1)
        assert json.loads(path.read_text())["ready"] is True
        # Even if the random name were known, the link would not be followed.
        monkeypatch.setattr(module.secrets, "token_hex", lambda _: "guessed")
        await asyncio.sleep(1.5)
    assert victim.read_text() == "before"


async def test_temporary_file_has_another_name_each_time(path, service, monkeypatch):
    names = []
    opened = os.open

    def noting(name, *args, **options):
        names.append(os.path.basename(name))  # noqa: PTH119 (a str or a Path)
        return opened(name, *args, **options)

    monkeypatch.setattr(module.os, "open", noting)
    async with Heartbeat(service.monitor, path):
        await asyncio.sleep(3.5)
    assert len(names) == len(set(names)) >= 4
