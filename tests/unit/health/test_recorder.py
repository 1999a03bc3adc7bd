"""The flight recorder: its events, and its dumps."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilient_io import Cause, ConfigurationError, Dependency, FlightRecorder, HealthMonitor
from resilient_io.health import recorder as recorder_module


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


async def test_events_have_their_age_and_fields():
    recorder = FlightRecorder()
    recorder.note("redis", "retry scheduled", command="GET", attempt=2)
    await asyncio.sleep(3)
    recorder.note("kafka", "instance replaced")
    assert recorder.events() == [
        {"ago": 3.0, "source": "redis", "event": "retry scheduled", "command": "GET", "attempt": 2},
        {"ago": 0.0, "source": "kafka", "event": "instance replaced"},
    ]
    assert [event["source"] for event in recorder.events(last=1)] == ["kafka"]
    assert recorder.events(last=0) == []


async def test_repeated_event_is_counted_and_displaces_nothing():
    recorder = FlightRecorder(capacity=4)
    recorder.note("redis", "the beginning")
    for _ in range(1000):
        recorder.note("redis", "call failed", cause="timed out")
        recorder.note("kafka", "call failed", cause="refused")
        await asyncio.sleep(0.01)
    beginning, redis, kafka = recorder.events()
    assert beginning["event"] == "the beginning"
    assert redis["times"] == kafka["times"] == 1000
    assert redis["for"] == pytest.approx(9.99)


async def test_later_repetition_and_different_event_are_recorded_separately():
    recorder = FlightRecorder()
    recorder.note("redis", "call failed", cause="timed out")
    recorder.note("redis", "call failed", cause="refused")
    await asyncio.sleep(1.5)
    recorder.note("redis", "call failed", cause="refused")
    assert len(recorder.events()) == 3


async def test_memory_is_bounded():
    recorder = FlightRecorder(capacity=8)
    for number in range(1000):
        recorder.note(f"source {number}", "something")
    assert [event["source"] for event in recorder.events()] == [
        f"source {number}" for number in range(992, 1000)
    ]
    assert len(recorder._newest) <= 16


async def test_displaced_event_is_not_counted_further():
    recorder = FlightRecorder(capacity=2)
    for event in ("a", "b", "c", "a"):
        recorder.note("redis", event)
    assert [event["event"] for event in recorder.events()] == ["c", "a"]


async def test_dump_without_a_sink_goes_to_standard_error(capsys):
    recorder = FlightRecorder()
    recorder.note("redis", "call failed", cause="refused")
    assert recorder.dump("asked") == 1
    head, event = lines_of(capsys.readouterr().err)
    assert (head["dump"], head["events"]) == ("asked", 1)
    assert (event["source"], event["event"], event["cause"]) == ("redis", "call failed", "refused")
    assert head["at"].endswith("Z")
    assert "ago" not in event


async def test_dump_is_appended_to_a_file(tmp_path):
    path = tmp_path / "flight.jsonl"
    recorder = FlightRecorder(sink=str(path))
    recorder.note("redis", "first")
    recorder.dump("once")
    await recorder.aclose()
    recorder.note("redis", "second")
    recorder.dump("twice")
    await recorder.aclose()
    assert [line.get("dump") or line["event"] for line in lines_of(path.read_text())] == [
        "once",
        "first",
        "twice",
        "first",
        "second",
    ]


def test_dump_without_a_loop_is_written(tmp_path):
    path = tmp_path / "flight.jsonl"
    recorder = FlightRecorder(sink=path)
    assert recorder.dump("nothing happened yet") == 0
    assert lines_of(path.read_text())[0]["dump"] == "nothing happened yet"


async def test_dependency_that_goes_down_triggers_a_dump_at_most_every_ten_seconds():
    lines = []
    dependency = Dependency("redis")
    async with HealthMonitor(dependency, recorder=FlightRecorder(sink=lines.append)):
        for _ in range(3):
            dependency.failed(Cause.REFUSED, "connection refused", definite=True)
            await asyncio.sleep(0.5)
            for _ in range(20):
                dependency.succeeded()
                await asyncio.sleep(0.1)
        dumps = [json.loads(line)["dump"] for line in lines if '"dump"' in line]
        assert dumps == ["redis is down"]
        events = [json.loads(line).get("event") for line in lines]
        assert events == [None, "call failed", "state changed"]
        await asyncio.sleep(10)
        dependency.failed(Cause.REFUSED, definite=True)
        assert sum('"dump"' in line for line in lines) == 2


async def test_no_automatic_dump_without_a_sink(capsys):
    dependency = Dependency("redis")
    async with HealthMonitor(dependency):
        dependency.failed(Cause.REFUSED, definite=True)
    assert capsys.readouterr().err == ""


async def test_event_that_json_cannot_represent_does_not_break_other_events():
    lines, seen = [], []
    dependency = Dependency("redis")
    async with HealthMonitor(dependency, recorder=FlightRecorder(sink=lines.append)) as monitor:
        monitor.on_change(seen.append)
        circle = []
        circle.append(circle)
        monitor.recorder.note("orders", "done", by={("a", 1): 2})
        monitor.recorder.note("orders", "gone", all=circle)
        for _ in range(3):
            dependency.failed(Cause.REFUSED, definite=True)
        await asyncio.sleep(0.1)
    assert [change.state.value for change in seen] == ["down"]
    events = [json.loads(line) for line in lines]
    assert [event["by"] for event in events if event.get("event") == "done"] == ["{('a', 1): 2}"]


@pytest.mark.parametrize("kind", ["file", "function"])
async def test_failing_sink_is_logged_once_and_raises_nothing(tmp_path, caplog, kind):
    sink = tmp_path / "no" / "folder" if kind == "file" else lambda line: 1 / 0
    recorder = FlightRecorder(sink=sink)
    for _ in range(3):
        recorder.note("redis", "call failed")
        recorder.dump("asked")
        await recorder.aclose()
    complaints = [record for record in caplog.records if "could not write" in record.message]
    assert len(complaints) == 1


async def test_every_monitor_of_a_dependency_records_its_events_until_it_is_closed():
    dependency = Dependency("redis")
    dependency.note("unheard")
    lines = []
    async with HealthMonitor(dependency) as first:
        async with HealthMonitor(dependency, recorder=FlightRecorder(sink=lines.append)) as second:
            dependency.note("heard", part="lane 1")
            for _ in range(3):
                dependency.failed(Cause.REFUSED, definite=True)
            for monitor in (first, second):
                assert monitor.recorder.events()[0]["event"] == "heard"
        assert "redis is down" in lines[0]
        dependency.note("later")
        assert first.recorder.events()[-1]["event"] == "later"
        assert second.recorder.events()[-1]["event"] != "later"
    async with HealthMonitor(dependency) as third:
        dependency.note("heard by the next")
        assert [event["event"] for event in third.recorder.events()] == ["heard by the next"]
    assert dependency.recorders == ()


async def test_shared_recorder_records_each_event_once_until_the_last_monitor_is_closed():
    dependency, recorder = Dependency("redis"), FlightRecorder()
    async with HealthMonitor(dependency, recorder=recorder):
        async with HealthMonitor(dependency, recorder=recorder) as inner:
            dependency.note("heard", number=1)
            await inner.aclose()  # and again by the context manager
        dependency.note("heard", number=2)
    assert [event["number"] for event in recorder.events()] == [1, 2]
    assert all("times" not in event for event in recorder.events())


async def test_storm_with_different_details_does_not_displace_the_beginning():
    recorder = FlightRecorder(capacity=64)
    recorder.note("redis", "the beginning")
    for number in range(10_000):
        recorder.note("redis", "call failed", cause="refused", detail=f"port {number}")
        recorder.note("redis", "call failed", cause="reset", detail="ab"[number % 2])
        await asyncio.sleep(0.001)
    recorder.note("redis", "call failed", cause="timed out", detail="new")
    beginning, *storm, last = recorder.events()
    assert beginning["event"] == "the beginning"
    assert last["cause"] == "timed out"
    assert len(storm) == 10
    refused = [event for event in storm if event["cause"] == "refused"]
    assert len(refused) + sum(event.get("others", 0) for event in refused) == 10_000
    assert refused[-1]["for"] == pytest.approx(9.99, abs=0.02)
    assert [event["times"] for event in storm if event["cause"] == "reset"] == [5000, 5000]


async def test_every_change_of_a_flapping_dependency_is_kept():
    recorder = FlightRecorder()
    dependency = Dependency("redis")
    async with HealthMonitor(dependency, recorder=recorder):
        for _ in range(20):
            for _ in range(3):
                dependency.failed(Cause.REFUSED, definite=True)
            while dependency.state.value == "down":
                dependency.succeeded(0.001)
                await asyncio.sleep(0.01)
    changes = [event for event in recorder.events() if event["event"] == "state changed"]
    assert len(changes) == dependency.snapshot()["transitions"] >= 20


async def test_large_file_is_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "_MAX_FILE_SIZE", 1000)
    path = tmp_path / "flight.jsonl"
    recorder = FlightRecorder(sink=path)
    recorder.note("redis", "call failed", detail="x" * 600, more="y" * 600, most="z" * 600)
    for _ in range(9):
        recorder.dump("asked")
        await recorder.aclose()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flight.jsonl", "flight.jsonl.1"]
    for each in tmp_path.iterdir():
        assert each.stat().st_size < 3000
        assert lines_of(each.read_text())


async def test_symbolic_link_is_followed_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "_MAX_FILE_SIZE", 10)
    target, link = tmp_path / "elsewhere", tmp_path / "link"
    link.symlink_to(target)
    recorder = FlightRecorder(sink=link)
    for _ in range(3):
        recorder.dump("asked")
        await recorder.aclose()
    assert link.is_symlink()
    assert len(lines_of(target.read_text())) == 3


def test_closing_a_monitor_does_not_wait_long_for_a_hanging_dump(tmp_path):
    go = threading.Event()

    async def close():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, go.wait, 30)  # a slow name lookup, for example
        recorder = FlightRecorder(sink=tmp_path / "flight.jsonl")
        try:
            async with HealthMonitor(Dependency("redis"), recorder=recorder):
                recorder.dump("asked")
                began = loop.time()
            assert 0.9 < loop.time() - began < 10
        finally:
            go.set()

    asyncio.run(close())


@pytest.mark.parametrize(
    ("arguments", "error"), [({"capacity": 0}, ConfigurationError), ({"sink": 3}, TypeError)]
)
def test_invalid_arguments_are_refused(arguments, error):
    with pytest.raises(error):
        FlightRecorder(**arguments)
